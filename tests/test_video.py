"""Label propagation: masks against a slow oracle, edge cases of the released code, videos that cannot be propagated."""

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
from dinoeval.video import Propagation
from dinoeval.video_config import PropagationConfig

SIDE = 64


@pytest.fixture(scope="module")
def backbone(tiny_weights):
    return dinoeval.load(weights=tiny_weights, device="cpu")


@pytest.fixture(scope="module")
def transform(backbone):
    return FrameTransform(side=SIDE, patch=backbone.patch_size)


def masks_of(backbone, video, transform, config=None) -> tuple[list[np.ndarray], Propagation]:
    propagation = Propagation(backbone, video[0][1], transform, config or PropagationConfig())
    names = [f"{number:05d}" for number in range(len(video))]
    return list(propagation.masks(names, (frame for frame, _ in video))), propagation


def slow_masks(backbone, video, transform, config: PropagationConfig) -> list[np.ndarray]:
    """Propagate with a full matrix of all tokens by all tokens, in double precision, from the formulas."""
    tokens = [backbone(transform(frame)[None]).patches[0].double() for frame, _ in video]
    h, w, _ = tokens[0].shape
    tokens = [torch.nn.functional.normalize(one.flatten(0, 1), dim=1) for one in tokens]
    first = video[0][1]
    small = torch.from_numpy(np.array(Image.fromarray(first).resize((w, h), Image.Resampling.NEAREST))).long()
    soft = [torch.nn.functional.one_hot(small).flatten(0, 1).double()]  # (h*w, C) per frame
    rows, columns = (torch.arange(h * w) // w, torch.arange(h * w) % w)
    near = ((rows[:, None] - rows).abs() <= config.radius) & ((columns[:, None] - columns).abs() <= config.radius)
    masks = [first]
    for number in range(1, len(video)):
        context = [0, *range(max(1, number - config.context_frames), number)]
        weights = torch.cat([torch.exp(tokens[number] @ tokens[one].T / config.temperature) * near for one in context], dim=1)
        least = weights.topk(config.top_k, dim=1).values[:, -1:]
        weights = weights * (weights >= least)
        soft.append(weights / weights.sum(1, keepdim=True) @ torch.cat([soft[one] for one in context]))
        maps = soft[-1].T.unflatten(1, (h, w))[None].float()
        maps = torch.nn.functional.interpolate(maps, scale_factor=transform.patch, mode="bilinear", align_corners=False)[0]
        low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
        labels = ((maps - low) / (high - low)).argmax(0).to(torch.uint8)
        masks.append(np.asarray(Image.fromarray(labels.numpy()).resize(first.shape[::-1], Image.Resampling.NEAREST)))
    return masks


@pytest.mark.parametrize("size", [(150, 70), (70, 150), (80, 80)], ids=["landscape", "portrait", "square"])
def test_masks_equal_slow_oracle(backbone, transform, size):
    video, config = synthetic_video(6, size, objects=3, seed=2), PropagationConfig(context_frames=2, radius=4)
    found, propagation = masks_of(backbone, video, transform, config)
    expected = slow_masks(backbone, video, transform, config)
    assert [mask.shape for mask in found] == [size[::-1]] * 6
    assert (found[0] == video[0][1]).all()
    for one, other in zip(found, expected, strict=True):
        assert (one != other).mean() < 0.002  # Pixels where two labels tie except for rounding.
    assert {1, 2, 3} <= set(np.unique(found[-1]).tolist())
    assert (found[-1] == video[-1][1]).mean() > 0.7
    assert not propagation.lost
    assert not propagation.constant


@pytest.mark.parametrize("context_frames", [0, 1])
def test_masks_equal_slow_oracle_with_little_context(backbone, transform, context_frames):
    video, config = synthetic_video(5, objects=1, seed=4), PropagationConfig(context_frames=context_frames, radius=3)
    found, expected = masks_of(backbone, video, transform, config)[0], slow_masks(backbone, video, transform, config)
    assert np.mean([(one != other).mean() for one, other in zip(found, expected, strict=True)]) < 0.002


def test_frames_are_read_one_at_a_time(backbone, transform):
    video, read = synthetic_video(4), []

    def frames():
        for number, (frame, _) in enumerate(video):
            read.append(number)
            yield frame

    masks = Propagation(backbone, video[0][1], transform, PropagationConfig()).masks("abcd", frames())
    for _ in itertools.islice(masks, 2):
        pass
    assert read == [0, 1]


def test_video_of_one_frame_yields_the_first_mask(backbone, transform):
    video = synthetic_video(1)
    assert (masks_of(backbone, video, transform)[0][0] == video[0][1]).all()


def with_speck(video):
    """Add a third object of one pixel, which is not at the center of any token."""
    mask = video[0][1].copy()
    mask[1, 1] = 3
    return [(video[0][0], mask), *video[1:]]


def test_object_smaller_than_token_is_lost_unless_fixed(backbone, transform):
    video = with_speck(synthetic_video(3, seed=1))
    released, propagation = masks_of(backbone, video, transform)
    assert propagation.lost == [3]
    assert 3 in released[0]
    assert not any(3 in mask for mask in released[1:])
    fixed, propagation = masks_of(backbone, video, transform, PropagationConfig(edge_cases="fixed"))
    assert propagation.lost == [3]
    assert all((mask[:8, :8] == 3).any() for mask in fixed)


def test_fixed_equals_released_without_edge_cases(backbone, transform):
    video = synthetic_video(4, seed=5)
    pairs = zip(*(masks_of(backbone, video, transform, PropagationConfig(edge_cases=one))[0] for one in ("released", "fixed")), strict=True)
    assert all((one == other).all() for one, other in pairs)


def test_constant_soft_map_wins_unless_fixed(backbone, transform):
    ramp = torch.linspace(0.2, 0.8, 32).expand(16, 32)
    soft = torch.stack([ramp, torch.full((16, 32), 0.3), torch.zeros(16, 32)])
    released, fixed = (
        Propagation(backbone, np.zeros((64, 128), np.uint8), transform, PropagationConfig(edge_cases=one)) for one in ("released", "fixed")
    )
    assert (released._decide("00007", soft.clone()) == 1).all()
    assert released.constant == {"00007": [1]}
    labels = fixed._decide("00007", soft.clone())
    assert fixed.constant == {"00007": [1]}
    assert (labels[:, :32] == 1).all()  # The rescaled ramp is below 0.3 here.
    assert (labels[:, 64:] == 0).all()


@pytest.mark.parametrize("edge_cases", ["released", "fixed"])
def test_object_that_fills_the_frame_is_kept_if_fixed(backbone, transform, edge_cases):
    video = [(frame, np.ones_like(mask)) for frame, mask in synthetic_video(3)]
    masks, propagation = masks_of(backbone, video, transform, PropagationConfig(edge_cases=edge_cases))
    assert propagation.constant == {"00001": [1], "00002": [1]}
    assert edge_cases == "released" or all((mask == 1).all() for mask in masks)


@pytest.mark.parametrize(("channels", "winner"), [(21, 13), (13, None), (8, None), (9, None)])
def test_channels_in_parts_give_the_labels_of_all_at_once(backbone, transform, channels, winner):
    soft = torch.rand(21, 4, 5, generator=torch.Generator().manual_seed(0))
    soft[13] = soft[17] = 0.5  # Both become NaN, and the first NaN wins.
    propagation = Propagation(backbone, np.zeros((16, 20), np.uint8), transform, PropagationConfig())
    maps = torch.nn.functional.interpolate(soft[None, :channels], scale_factor=4, mode="bilinear", align_corners=False)[0]
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    expected = ((maps - low) / (high - low)).max(0).indices.numpy()
    assert (propagation._decide("0", soft[:channels].clone()) == expected).all()
    assert winner is None or (expected == winner).all()


def test_frame_of_another_size_is_rejected(backbone, transform):
    video = synthetic_video(3)
    frames = [video[0][0], video[1][0].resize((100, 64))]
    with pytest.raises(DataError, match=r"frame b has 100 x 64 .* the first frame has 128 x 64"):
        list(Propagation(backbone, video[0][1], transform, PropagationConfig()).masks(["a", "b"], frames))
    with pytest.raises(DataError, match=r"frame a has 128 x 64 .* the first mask has 64 x 128"):
        list(Propagation(backbone, video[0][1].T, transform, PropagationConfig()).masks(["a"], [video[0][0]]))


def test_nan_features_are_rejected(transform, tiny_weights):
    broken = dinoeval.load(weights=tiny_weights, device="cpu")
    broken.network.norm.bias.fill_(torch.nan)
    with pytest.raises(DataError, match="NaN"):
        masks_of(broken, synthetic_video(2), transform)


@pytest.mark.parametrize(
    ("option", "value", "limits"),
    [
        ("context_frames", -1, "0 to 1,000,000"),
        ("radius", 0, "1 to 1,000,000"),
        ("top_k", 0, "1 to 1,000,000"),
        ("top_k", 10**20, "1 to 1,000,000"),
        ("temperature", 0.0, "above 0"),
        ("temperature", float("nan"), "above 0"),
    ],
)
def test_config_rejects_value_out_of_range(option, value, limits):
    with pytest.raises(ConfigError, match=f"--{option.replace('_', '-')} .*{limits}, got {value}"):
        PropagationConfig(**{option: value})
