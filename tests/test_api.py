"""The Python API of notebooks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import dinoeval
from dinoeval.testing import tiny_image_folder, tiny_images


@pytest.fixture
def backbone(tiny_weights) -> dinoeval.Backbone:
    return dinoeval.load(weights=tiny_weights)


def test_embed_keeps_the_order_of_images_and_paths(backbone, tmp_path):
    images = tiny_images(3)
    for number, image in enumerate(images):
        image.save(tmp_path / f"{number}.png")
    features = dinoeval.embed(backbone, images)
    assert (features.shape, features.dtype) == ((3, 96), np.float32)
    np.testing.assert_allclose(dinoeval.embed(backbone, tmp_path), features, atol=2e-6)
    np.testing.assert_allclose(dinoeval.embed(backbone, tmp_path, cache=False), features, atol=2e-6)
    np.testing.assert_allclose(dinoeval.embed(backbone, [tmp_path / "2.png", str(tmp_path / "0.png")]), features[[2, 0]], atol=2e-6)
    np.testing.assert_allclose(dinoeval.embed(backbone, [images[0], tmp_path / "1.png"]), features[:2], atol=2e-6)
    np.testing.assert_allclose(dinoeval.embed(backbone, images[1]), features[1:2], atol=2e-6)


def test_embed_rejects_arrays(backbone):
    with pytest.raises(dinoeval.DinoevalError, match="ndarray"):
        dinoeval.embed(backbone, [np.zeros((4, 4, 3))])  # type: ignore[list-item]


def test_embed_names_an_unreadable_file(backbone, tmp_path):
    (tmp_path / "bad.png").write_text("text")
    with pytest.raises(dinoeval.DinoevalError, match=r"bad\.png"):
        dinoeval.embed(backbone, [*tiny_images(1), tmp_path / "bad.png"])


def test_backbone_returns_tokens_and_attention(backbone):
    tokens = backbone(torch.zeros(2, 3, 16, 24), layers=2)
    assert (tokens.cls.shape, tokens.patches.shape, [layer.shape[1] for layer in tokens.layers]) == ((2, 96), (2, 4, 6, 96), [25, 25])
    assert backbone.attention(torch.zeros(1, 3, 16, 16)).shape == (1, 3, 17, 17)


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 1, 16, 16), (1, 3, 2, 16)])
def test_backbone_rejects_wrong_image_shapes(backbone, shape):
    with pytest.raises(dinoeval.DinoevalError, match=str(shape[-2])):
        backbone(torch.zeros(shape))


def test_backbone_rejects_more_blocks_than_it_has(backbone):
    with pytest.raises(dinoeval.DinoevalError, match="5"):
        backbone(torch.zeros(1, 3, 16, 16), layers=5)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_embed_in_lower_precision_stays_close(tiny_weights, precision):
    images = tiny_images(8)
    full, low = (dinoeval.embed(dinoeval.load(weights=tiny_weights, precision=p), images) for p in ("fp32", precision))
    cosines = (full * low).sum(1) / np.linalg.norm(full, axis=1) / np.linalg.norm(low, axis=1)
    assert cosines.min() > 0.999


def test_evaluate_returns_the_result_of_a_protocol(backbone, tmp_path):
    result = dinoeval.evaluate("knn", backbone, data=str(tiny_image_folder(tmp_path / "data")), k=(5,))
    assert (result.protocol, set(result.metrics)) == ("knn", {"top1@5", "top5@5"})


def test_evaluate_suggests_the_nearest_option(backbone):
    with pytest.raises(dinoeval.DinoevalError, match="temperature"):
        dinoeval.evaluate("knn", backbone, temprature=0.1)


def test_names_are_listed_and_unknown_names_rejected():
    assert set(dinoeval.__all__) <= set(dir(dinoeval))
    with pytest.raises(AttributeError, match="nothing"):
        _ = dinoeval.nothing  # type: ignore[attr-defined]
