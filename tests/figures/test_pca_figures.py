"""Principal components of patches as colours: against NumPy's own decomposition, with fixed signs; and what is written."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from factories import synthetic_images
from PIL import Image

import dinoeval
from dinoeval.cli import main
from dinoeval.errors import ConfigError, DataError
from dinoeval.figures.feature_maps import _inward


@pytest.fixture(scope="module")
def backbone(tiny_weights) -> dinoeval.Backbone:
    return dinoeval.load(weights=tiny_weights, device="cpu")


def tokens_of(backbone, images) -> list[np.ndarray]:
    from dinoeval.data.transforms import normalize_images

    found = []
    for image in images:
        batch = normalize_images(torch.from_numpy(image.copy()).permute(2, 0, 1)[None])
        found.append(backbone(batch).patches[0].numpy())
    return found


def test_components_are_those_of_all_images_together(backbone):
    """Images of two sizes, one decomposition: the eigenvectors of the covariance of all their tokens."""
    pictures = [*synthetic_images(3, (40, 24)), *synthetic_images(2, (24, 32), seed=9)]
    maps = dinoeval.figures.pca(backbone, pictures, image_size="native", percentiles=(5, 95))
    assert [image.shape for image in maps.images] == [(24, 40, 3)] * 3 + [(32, 24, 3)] * 2
    tokens = tokens_of(backbone, maps.images)
    rows = np.concatenate([one.reshape(-1, 96) for one in tokens]).astype(np.float64)
    values, vectors = np.linalg.eigh(np.cov(rows.T))
    order = np.argsort(values)[::-1][:3]
    np.testing.assert_allclose(maps.explained_variance_ratio, values[order] / values.sum(), rtol=1e-4)
    np.testing.assert_allclose(np.abs((maps.components * vectors[:, order].T).sum(1)), 1, atol=1e-3)
    for one, scores, foreground in zip(tokens, maps.scores, maps.foreground, strict=True):
        np.testing.assert_allclose(scores, (one - rows.mean(0)) @ maps.components.T, atol=1e-4)
        assert scores.shape == (*one.shape[:2], 3)
        np.testing.assert_array_equal(foreground, scores[..., 0] > 0)
    # The signs: borders low in the first, the largest weight positive in the others.
    border = np.concatenate([np.concatenate((s[0], s[-1], s[1:-1, 0], s[1:-1, -1]))[:, 0] for s in maps.scores])
    inner = np.concatenate([s[1:-1, 1:-1, 0].ravel() for s in maps.scores])
    assert border.mean() < inner.mean()
    assert all(row[np.abs(row).argmax()] > 0 for row in maps.components[1:])
    # Colours: the percentiles of all images together become 0 and 255.
    scores = np.concatenate([one.reshape(-1, 3) for one in maps.scores])
    np.testing.assert_allclose(maps.limits, np.percentile(scores, (5, 95), axis=0).T, atol=1e-5)
    colours = np.concatenate([maps.colours(number).reshape(-1, 3) for number in range(5)])
    assert (np.abs((colours == 0).mean(0) - 0.05) < 0.02).all()
    assert (np.abs((colours == 255).mean(0) - 0.05) < 0.02).all()
    np.testing.assert_array_equal(maps.picture(3)[::4, ::4], maps.colours(3))


def test_only_foreground_fits_the_components_anew_to_it(backbone):
    pictures = synthetic_images(4, (40, 40))
    whole = dinoeval.figures.pca(backbone, pictures, image_size="native")
    maps = dinoeval.figures.pca(backbone, pictures, image_size="native", only_foreground=True)
    for one, other in zip(whole.foreground, maps.foreground, strict=True):
        np.testing.assert_array_equal(one, other)
    rows = np.concatenate([one[mask] for one, mask in zip(tokens_of(backbone, maps.images), maps.foreground, strict=True)])
    np.testing.assert_allclose(maps.mean, rows.mean(0), atol=1e-5)
    values = np.linalg.eigvalsh(np.cov(rows.T.astype(np.float64)))[::-1]
    np.testing.assert_allclose(maps.explained_variance_ratio, values[:3] / values.sum(), rtol=1e-3)
    assert (maps.colours(0)[~maps.foreground[0]] == 255).all()


def test_the_first_component_is_turned_so_that_borders_are_low():
    inside = np.zeros((4, 5))
    inside[1:3, 1:4] = 1
    assert (_inward([inside]), _inward([-inside]), _inward([np.ones((2, 9))])) == (1, -1, 0)
    assert _inward([inside, -3 * inside]) == -1


def test_the_same_set_gives_the_same_pictures_in_any_batches(backbone):
    pictures = synthetic_images(5, (24, 24))
    one, other, third = (dinoeval.figures.pca(backbone, pictures, image_size=24, batch_size=size) for size in (2, 2, 5))
    np.testing.assert_array_equal(one.scores, other.scores)
    np.testing.assert_allclose(one.scores, third.scores, atol=1e-4)


def test_the_command_writes_pictures_and_a_figure(capsys, tiny_weights, tmp_path):
    (tmp_path / "in").mkdir()
    for number, picture in enumerate(synthetic_images(3)):
        picture.save(tmp_path / f"in/{number}.png")
    (tmp_path / "in/bad.png").write_text("text")
    words = ["pca", tmp_path / "in", "--out", tmp_path / "out", "--weights", tiny_weights, "--image-size", "24x16", "--bad-images", "skip"]
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in [*words, "--only-foreground", "--format", "svg"]])
    out, err = capsys.readouterr()
    assert stopped.value.code == 0, err
    colours = [np.asarray(Image.open(tmp_path / f"out/{name}/components.png"))[::4, ::4] for name in range(3)]
    kept = sum(int((one != 255).any(-1).sum()) for one in colours)  # the rest is white; so is a patch whose three values are the highest
    said = int(out.split("3 images, ")[1].split(" of 72 patches in the foreground")[0])
    assert kept <= said <= kept + 1
    assert said < 72
    assert "bad.png is left out" in err
    for name in ("0", "1", "2"):
        for part in ("image", "components", "foreground"):
            with Image.open(tmp_path / f"out/{name}/{part}.png") as picture:
                assert picture.size == (24, 16)
    assert (tmp_path / "out/figure.svg").read_text().startswith("<?xml")


def test_mistakes(backbone, tmp_path):
    with pytest.raises(DataError, match="1 patches that differ are too few"):
        dinoeval.figures.pca(backbone, synthetic_images(1, (4, 4)), image_size="native")
    with pytest.raises(ConfigError, match="percentiles must be"):
        dinoeval.figures.pca(backbone, synthetic_images(1), percentiles=(99, 1))
    with pytest.raises(DataError, match="take paths and PIL images, not ndarray"):
        dinoeval.figures.pca(backbone, [np.zeros((8, 8, 3))])
    Image.new("RGB", (3, 9)).save(tmp_path / "small.png")
    with pytest.raises(DataError, match=r"small.png cannot be used: 3 x 9 pixels are smaller than a patch of 4"):
        dinoeval.figures.pca(backbone, [tmp_path / "small.png"], image_size="native")
