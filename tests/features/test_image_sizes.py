"""Images that keep sizes of their own: thumbnails, batches of equal size, several scales, worker processes."""

from __future__ import annotations

import dataclasses
import errno
import os

import numpy as np
import pytest
import torch
from factories import synthetic_images
from PIL import Image

import dinoeval
from dinoeval.data.images import in_memory
from dinoeval.data.opening import open_images
from dinoeval.data.transforms import MULTISCALE, Thumbnail, normalize_images
from dinoeval.errors import DataError
from dinoeval.features.cache import FeatureCache
from dinoeval.features.extract import ExtractOptions, extract
from dinoeval.features.forward import forward, forward_readable
from dinoeval.features.readout import Cls

SIZES = [(90, 60), (60, 90), (90, 60), (64, 64), (90, 60), (40, 33), (60, 90)]


@pytest.fixture
def folder(tmp_path):
    for number, size in enumerate(SIZES):
        synthetic_images(1, size, seed=number)[0].save(tmp_path / f"{number}.png")
    return tmp_path


@pytest.fixture
def backbone(tiny_weights):
    return dinoeval.load(weights=tiny_weights)


def test_thumbnail_equals_pillow_and_never_enlarges():
    large, small = synthetic_images(2, (400, 300))[0], synthetic_images(1, (50, 40))[0]
    pixels = Thumbnail(64)(large)
    assert pixels.shape == (3, 48, 64)
    # 400 is more than four times 64: blocks of 3 x 3 pixels are averaged first, then Lanczos.
    expected = large.reduce(3).resize((64, 48), Image.Resampling.LANCZOS, box=(0, 0, 400 / 3, 300 / 3))
    assert np.abs(pixels.permute(1, 2, 0).numpy().astype(int) - np.asarray(expected).astype(int)).max() <= 1
    assert (pixels.permute(1, 2, 0).numpy() != np.asarray(large.resize((64, 48), Image.Resampling.LANCZOS))).any()
    assert Thumbnail(64)(small).shape == (3, 40, 50)
    assert large.size == (400, 300)


def test_thumbnail_id_names_side_scales_and_statistics():
    ids = {Thumbnail().id, Thumbnail(512).id, Thumbnail(224, MULTISCALE).id, Thumbnail(mean=(0.5, 0.5, 0.5)).id}
    assert ids == {
        "thumbnail@1:224",
        "thumbnail@1:512",
        "thumbnail@1:224:x1+0.7071+0.5",
        "thumbnail@1:224:0.5/0.5/0.5:0.229/0.224/0.225",
    }


@pytest.mark.parametrize("scales", [(1.0,), MULTISCALE])
@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_batched_features_equal_single_images(folder, backbone, scales, batch_size):
    images, transform = open_images(folder), Thumbnail(80, scales)
    cached = extract(backbone, images, Cls(), transform, FeatureCache(), options=ExtractOptions(batch_size=batch_size))
    for row, features in enumerate(cached.numpy()):
        pixels = normalize_images(transform(images.open(row))[None])
        seen = [torch.nn.functional.interpolate(pixels, scale_factor=scale, mode="bilinear") if scale < 1 else pixels for scale in scales]
        total = sum(backbone(one).cls[0] for one in seen)
        expected = total if len(scales) == 1 else total / 3 / torch.linalg.vector_norm(total / 3)
        np.testing.assert_allclose(features, expected.numpy(), atol=2e-5)
    np.testing.assert_array_equal(forward(backbone, images, Cls(), transform, batch_size=batch_size), cached.numpy())


def test_scales_and_sides_have_separate_entries(folder, backbone):
    images = open_images(folder)
    for transform in (Thumbnail(80), Thumbnail(80, MULTISCALE), Thumbnail(64)):
        assert not extract(backbone, images, Cls(), transform, FeatureCache()).cached
    calls = []
    backbone.network.register_forward_pre_hook(lambda module, inputs: calls.append(inputs))
    assert extract(backbone, images, Cls(), Thumbnail(80, MULTISCALE), FeatureCache()).cached
    assert not calls


def test_interrupted_run_resumes_to_identical_features(folder, backbone, tmp_path):
    images, transform = open_images(folder), Thumbnail(80)
    one = ExtractOptions(batch_size=1)
    uninterrupted = extract(backbone, images, Cls(), transform, FeatureCache(tmp_path / "uninterrupted"), options=one)
    calls = []

    def interrupt(module, inputs):
        calls.append(inputs)
        if len(calls) > 5:
            raise KeyboardInterrupt

    hook = backbone.network.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        extract(backbone, images, Cls(), transform, FeatureCache(tmp_path / "stopped"), options=one)
    hook.remove()
    # With another batch size, a resumed run keeps the batches of the run that it resumes.
    resumed = extract(backbone, images, Cls(), transform, FeatureCache(tmp_path / "stopped"), options=ExtractOptions(batch_size=3))
    np.testing.assert_array_equal(resumed.numpy(), uninterrupted.numpy())


def test_images_smaller_than_a_patch_are_unreadable(folder, backbone):
    synthetic_images(1, (320, 20))[0].save(folder / "flat.png")  # 80 x 5 when resized: one row of patches
    images = open_images(folder)
    assert len(extract(backbone, images, Cls(), Thumbnail(80), FeatureCache(), options=ExtractOptions(batch_size=2))) == 8
    with pytest.raises(DataError, match=r"flat\.png \(80 x 5 pixels.*at least 8"):
        extract(backbone, images, Cls(), Thumbnail(80, MULTISCALE), FeatureCache())
    kept = extract(backbone, images, Cls(), Thumbnail(80, MULTISCALE), FeatureCache(), options=ExtractOptions(bad_images="skip"))
    assert kept.cached  # the first run stored what it computed
    assert "flat.png" not in kept.images.paths
    found, seen, _ = forward_readable(backbone, images, Cls(), Thumbnail(80, MULTISCALE), bad_images="skip")
    np.testing.assert_array_equal(found, kept.numpy())
    assert seen.paths == kept.images.paths
    with pytest.raises(DataError, match="80 x 5"):
        forward(backbone, in_memory([images.open(7)]), Cls(), Thumbnail(80, MULTISCALE))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_worker_processes_give_identical_features(folder, backbone, tmp_path, workers):
    """Chunks contain several sizes and an unreadable image."""
    (folder / "3b.png").write_text("text")
    images, transform = open_images(folder), Thumbnail(80)
    expected, seen, _ = forward_readable(backbone, images, Cls(), transform, bad_images="skip", batch_size=1)
    options = ExtractOptions(bad_images="skip", batch_size=1, workers=workers)
    found = extract(backbone, images, Cls(), transform, FeatureCache(tmp_path / "cache"), options=options)
    np.testing.assert_array_equal(found.numpy(), expected)
    assert found.images.paths == seen.paths
    assert [(image["row"], image["path"]) for image in found.bad] == [(4, "3b.png")]


@pytest.mark.parametrize("workers", [0, 1])
def test_disk_error_ends_extraction_and_names_the_file(folder, backbone, tmp_path, workers):
    """An I/O error does not mean that the image is corrupted, so that --bad-images skip does not apply."""
    images = dataclasses.replace(open_images(folder), reader=failing_read)
    options = ExtractOptions(bad_images="skip", workers=workers)
    with pytest.raises(DataError, match=r"0\.png .*Input/output error"):
        extract(backbone, images, Cls(), Thumbnail(80), FeatureCache(tmp_path / "cache"), options=options)
    assert not list(FeatureCache(tmp_path / "cache").entries())


def failing_read(row: int) -> bytes:
    raise OSError(errno.EIO, os.strerror(errno.EIO))
