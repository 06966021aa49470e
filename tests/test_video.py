from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from video_factories import synthetic_video

import dinoeval
from dinoeval.data.frame_transforms import FrameTransform
from dinoeval.errors import ConfigError, DataError
from dinoeval.video import Propagation, PropagationConfig

SIDE = 64


@pytest.fixture(scope="module")
def backbone(tiny_weights):
    return dinoeval.load(weights=tiny_weights, device="cpu")


@pytest.fixture(scope="module")
def transform(backbone):
    return FrameTransform(side=SIDE, patch=backbone.patch_size)


def masks_of(backbone, video, transform, rule=None) -> tuple[list[np.ndarray], Propagation]:
    propagation = Propagation(backbone, video[0][1], transform, rule or PropagationConfig())
    names = [f"{number:05d}" for number in range(len(video))]
    return list(propagation.masks(names, (picture for picture, _ in video))), propagation


def slow_masks(backbone, video, transform, rule: PropagationConfig) -> list[np.ndarray]:
    """The rule with a full matrix of all tokens by all tokens, in double precision, from the formulas."""
    tokens = [backbone(transform(picture)[None]).patches[0].double() for picture, _ in video]
    h, w, _ = tokens[0].shape
    tokens = [torch.nn.functional.normalize(one.flatten(0, 1), dim=1) for one in tokens]
    first = video[0][1]
    small = torch.from_numpy(np.array(Image.fromarray(first).resize((w, h), Image.Resampling.NEAREST))).long()
    soft = [torch.nn.functional.one_hot(small).flatten(0, 1).double()]  # (h*w, C) a frame
    rows, columns = (torch.arange(h * w) // w, torch.arange(h * w) % w)
    near = ((rows[:, None] - rows).abs() <= rule.radius) & ((columns[:, None] - columns).abs() <= rule.radius)
    masks = [first]
    for number in range(1, len(video)):
        context = [0, *range(max(1, number - rule.context), number)]
        weights = torch.cat([torch.exp(tokens[number] @ tokens[one].T / rule.temperature) * near for one in context], dim=1)
        least = weights.topk(rule.top, dim=1).values[:, -1:]
        weights = weights * (weights >= least)
        soft.append(weights / weights.sum(1, keepdim=True) @ torch.cat([soft[one] for one in context]))
        maps = soft[-1].T.unflatten(1, (h, w))[None].float()
        maps = torch.nn.functional.interpolate(maps, scale_factor=transform.patch, mode="bilinear", align_corners=False)[0]
        low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
        labels = ((maps - low) / (high - low)).argmax(0).to(torch.uint8)
        masks.append(np.asarray(Image.fromarray(labels.numpy()).resize(first.shape[::-1], Image.Resampling.NEAREST)))
    return masks


@pytest.mark.parametrize("size", [(150, 70), (70, 150), (80, 80)], ids=["landscape", "portrait", "square"])
def test_masks_equal_the_formulas(backbone, transform, size):
    video, rule = synthetic_video(6, size, objects=3, seed=2), PropagationConfig(context=2, radius=4)
    found, propagation = masks_of(backbone, video, transform, rule)
    expected = slow_masks(backbone, video, transform, rule)
    assert [mask.shape for mask in found] == [size[::-1]] * 6
    assert (found[0] == video[0][1]).all()
    for one, other in zip(found, expected, strict=True):
        assert (one != other).mean() < 0.002  # pixels where two labels are equal but for the last digit
    assert {1, 2, 3} <= set(np.unique(found[-1]).tolist())
    assert (found[-1] == video[-1][1]).mean() > 0.7
    assert not propagation.lost
    assert not propagation.constant


def test_more_context_is_remembered(backbone, transform):
    video = synthetic_video(5, objects=1, seed=4)
    for context in (0, 1):
        rule = PropagationConfig(context=context, radius=3)
        found, expected = masks_of(backbone, video, transform, rule)[0], slow_masks(backbone, video, transform, rule)
        assert np.mean([(one != other).mean() for one, other in zip(found, expected, strict=True)]) < 0.002


def test_frames_are_taken_one_at_a_time(backbone, transform):
    video, taken = synthetic_video(4), []

    def pictures():
        for number, (picture, _) in enumerate(video):
            taken.append(number)
            yield picture

    masks = Propagation(backbone, video[0][1], transform, PropagationConfig()).masks("abcd", pictures())
    for _ in itertools.islice(masks, 2):
        pass
    assert taken == [0, 1]


def test_one_frame_is_its_own_mask(backbone, transform):
    video = synthetic_video(1)
    assert (masks_of(backbone, video, transform)[0][0] == video[0][1]).all()


def with_speck(video):
    """A third object of one pixel, in the middle of none of the tokens."""
    mask = video[0][1].copy()
    mask[1, 1] = 3
    return [(video[0][0], mask), *video[1:]]


def test_an_object_smaller_than_a_token_is_lost_as_released_and_kept_where_that_is_mended(backbone, transform):
    video = with_speck(synthetic_video(3, seed=1))
    released, told = masks_of(backbone, video, transform)
    assert told.lost == [3]
    assert 3 in released[0]
    assert not any(3 in mask for mask in released[1:])
    fixed, told = masks_of(backbone, video, transform, PropagationConfig(edge_cases="fixed"))
    assert told.lost == [3]
    assert all((mask[:8, :8] == 3).any() for mask in fixed)


def test_mending_changes_nothing_where_nothing_fails(backbone, transform):
    video = synthetic_video(4, seed=5)
    pairs = zip(*(masks_of(backbone, video, transform, PropagationConfig(edge_cases=one))[0] for one in ("released", "fixed")), strict=True)
    assert all((one == other).all() for one, other in pairs)


def test_a_map_that_is_the_same_everywhere_wins_as_released(backbone, transform):
    ramp = torch.linspace(0.2, 0.8, 32).expand(16, 32)
    soft = torch.stack([ramp, torch.full((16, 32), 0.3), torch.zeros(16, 32)])
    released, fixed = (
        Propagation(backbone, np.zeros((64, 128), np.uint8), transform, PropagationConfig(edge_cases=one)) for one in ("released", "fixed")
    )
    assert (released._decide("00007", soft.clone()) == 1).all()
    assert released.constant == {"00007": [1]}
    labels = fixed._decide("00007", soft.clone())
    assert fixed.constant == {"00007": [1]}
    assert (labels[:, :32] == 1).all()  # the ramp, stretched, is below 0.3 here
    assert (labels[:, 64:] == 0).all()


def test_an_object_that_fills_the_frame_is_noise_as_released_and_stays_where_that_is_mended(backbone, transform):
    video = [(picture, np.ones_like(mask)) for picture, mask in synthetic_video(3)]
    for edge_cases in ("released", "fixed"):
        masks, told = masks_of(backbone, video, transform, PropagationConfig(edge_cases=edge_cases))
        assert told.constant == {"00001": [1], "00002": [1]}
        assert edge_cases == "released" or all((mask == 1).all() for mask in masks)


def test_many_objects_are_decided_in_parts_as_in_one(backbone, transform):
    soft = torch.rand(21, 4, 5, generator=torch.Generator().manual_seed(0))
    soft[13] = soft[17] = 0.5  # both become NaN, and the first NaN wins
    for number, wins in ((21, 13), (13, None), (8, None), (9, None)):
        propagation = Propagation(backbone, np.zeros((16, 20), np.uint8), transform, PropagationConfig())
        maps = torch.nn.functional.interpolate(soft[None, :number], scale_factor=4, mode="bilinear", align_corners=False)[0]
        low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
        expected = ((maps - low) / (high - low)).max(0).indices.numpy()
        assert (propagation._decide("0", soft[:number].clone()) == expected).all()
        assert wins is None or (expected == wins).all()


def test_frames_of_another_size_are_named(backbone, transform):
    video = synthetic_video(3)
    odd = Propagation(backbone, video[0][1], transform, PropagationConfig()).masks(["a", "b"], [video[0][0], video[1][0].resize((100, 64))])
    with pytest.raises(DataError, match="frame b has 100 x 64 pixels, and the first frame 128 x 64"):
        list(odd)
    with pytest.raises(DataError, match="the first mask 64 x 128"):
        list(Propagation(backbone, video[0][1].T, transform, PropagationConfig()).masks(["a"], [video[0][0]]))


def test_a_broken_network_is_no_background(transform, tiny_weights):
    broken = dinoeval.load(weights=tiny_weights, device="cpu")
    broken.network.norm.bias.fill_(torch.nan)
    with pytest.raises(DataError, match="NaN"):
        masks_of(broken, synthetic_video(2), transform)


@pytest.mark.parametrize("options", [{"context": -1}, {"radius": 0}, {"top": 0}, {"temperature": 0.0}, {"temperature": float("nan")}])
def test_rules_that_make_no_sense(options):
    with pytest.raises(ConfigError):
        PropagationConfig(**options)
