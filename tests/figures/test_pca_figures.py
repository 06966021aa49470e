"""Principal components of patches: equal to the decomposition of NumPy, with fixed signs; and what the command writes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from factories import synthetic_images
from PIL import Image

import dinoeval
from dinoeval.cli import main
from dinoeval.errors import ConfigError, DataError
from dinoeval.figures import PcaConfig
from dinoeval.figures.feature_maps import _inward_sign


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


def test_components_equal_eigenvectors_of_all_tokens(backbone):
    """Images of two sizes share one decomposition: the eigenvectors of the covariance of all their tokens."""
    images = [*synthetic_images(3, (40, 24)), *synthetic_images(2, (24, 32), seed=9)]
    maps = dinoeval.figures.pca(backbone, images, PcaConfig(percentiles=(5, 95)), image_size="native")
    assert [image.shape for image in maps.images] == [(24, 40, 3)] * 3 + [(32, 24, 3)] * 2
    tokens = tokens_of(backbone, maps.images)
    samples = np.concatenate([one.reshape(-1, 96) for one in tokens]).astype(np.float64)
    values, vectors = np.linalg.eigh(np.cov(samples.T))
    order = np.argsort(values)[::-1][:3]
    np.testing.assert_allclose(maps.explained_variance_ratio, values[order] / values.sum(), rtol=1e-4)
    np.testing.assert_allclose(np.abs((maps.components * vectors[:, order].T).sum(1)), 1, atol=1e-3)
    for one, scores, foreground in zip(tokens, maps.scores, maps.foreground, strict=True):
        np.testing.assert_allclose(scores, (one - samples.mean(0)) @ maps.components.T, atol=1e-4)
        assert scores.shape == (*one.shape[:2], 3)
        np.testing.assert_array_equal(foreground, scores[..., 0] > 0)
    # Signs: the first component is lower at borders, the largest weight of the others is positive.
    border = np.concatenate([np.concatenate((s[0], s[-1], s[1:-1, 0], s[1:-1, -1]))[:, 0] for s in maps.scores])
    inner = np.concatenate([s[1:-1, 1:-1, 0].ravel() for s in maps.scores])
    assert border.mean() < inner.mean()
    assert all(row[np.abs(row).argmax()] > 0 for row in maps.components[1:])
    # Colors: the percentiles over all images become 0 and 255.
    scores = np.concatenate([one.reshape(-1, 3) for one in maps.scores])
    np.testing.assert_allclose(maps.limits, np.percentile(scores, (5, 95), axis=0).T, atol=1e-5)
    colors = np.concatenate([maps.colors(number).reshape(-1, 3) for number in range(5)])
    assert (np.abs((colors == 0).mean(0) - 0.05) < 0.02).all()
    assert (np.abs((colors == 255).mean(0) - 0.05) < 0.02).all()
    np.testing.assert_array_equal(maps.components_image(3)[::4, ::4], maps.colors(3))


def test_only_foreground_fits_components_to_the_foreground(backbone):
    images = synthetic_images(4, (40, 40))
    whole = dinoeval.figures.pca(backbone, images, image_size="native")
    maps = dinoeval.figures.pca(backbone, images, PcaConfig(only_foreground=True), image_size="native")
    for one, other in zip(whole.foreground, maps.foreground, strict=True):
        np.testing.assert_array_equal(one, other)
    samples = np.concatenate([one[mask] for one, mask in zip(tokens_of(backbone, maps.images), maps.foreground, strict=True)])
    np.testing.assert_allclose(maps.mean, samples.mean(0), atol=1e-5)
    values = np.linalg.eigvalsh(np.cov(samples.T.astype(np.float64)))[::-1]
    np.testing.assert_allclose(maps.explained_variance_ratio, values[:3] / values.sum(), rtol=1e-3)
    assert (maps.colors(0)[~maps.foreground[0]] == 255).all()


def test_first_component_is_lower_at_borders():
    inside = np.zeros((4, 5))
    inside[1:3, 1:4] = 1
    assert (_inward_sign([inside]), _inward_sign([-inside]), _inward_sign([np.ones((2, 9))])) == (1, -1, 0)
    assert _inward_sign([inside, -3 * inside]) == -1


def test_projections_do_not_depend_on_batch_size(backbone):
    images = synthetic_images(5, (24, 24))
    one, other, third = (dinoeval.figures.pca(backbone, images, image_size=24, batch_size=size) for size in (2, 2, 5))
    np.testing.assert_array_equal(one.scores, other.scores)
    np.testing.assert_allclose(one.scores, third.scores, atol=1e-4)


def test_pca_command_writes_images_and_a_figure(capsys, tiny_weights, tmp_path):
    (tmp_path / "in").mkdir()
    for number, image in enumerate(synthetic_images(3)):
        image.save(tmp_path / f"in/{number}.png")
    (tmp_path / "in/bad.png").write_text("text")
    words = ["pca", tmp_path / "in", "--out", tmp_path / "out", "--weights", tiny_weights, "--image-size", "24x16", "--bad-images", "skip"]
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in [*words, "--only-foreground", "--format", "svg"]])
    out, err = capsys.readouterr()
    assert stopped.value.code == 0, err
    colors = [np.asarray(Image.open(tmp_path / f"out/{name}/components.png"))[::4, ::4] for name in range(3)]
    kept = sum(int((one != 255).any(-1).sum()) for one in colors)  # The others are white, and maybe a patch with three maxima.
    printed = int(out.split("3 images, ")[1].split(" of 72 patches in the foreground")[0])
    assert kept <= printed <= kept + 1
    assert printed < 72
    assert "skipped bad.png" in err
    for name in ("0", "1", "2"):
        for part in ("image", "components", "foreground"):
            with Image.open(tmp_path / f"out/{name}/{part}.png") as image:
                assert image.size == (24, 16)
    assert (tmp_path / "out/figure.svg").read_text().startswith("<?xml")


def test_pca_reports_invalid_input(backbone, tmp_path):
    with pytest.raises(DataError, match=r"got 1 patches.*--image-size"):
        dinoeval.figures.pca(backbone, synthetic_images(1, (4, 4)), image_size="native")
    with pytest.raises(ConfigError, match=r"--percentiles .*got 99 1"):
        PcaConfig(percentiles=(99, 1))
    with pytest.raises(DataError, match="paths or PIL images, got ndarray"):
        dinoeval.figures.pca(backbone, [np.zeros((8, 8, 3))])
    Image.new("RGB", (3, 9)).save(tmp_path / "small.png")
    with pytest.raises(DataError, match=r"small.png cannot be used: 3 x 9 pixels are smaller than a patch of 4"):
        dinoeval.figures.pca(backbone, [tmp_path / "small.png"], image_size="native")
