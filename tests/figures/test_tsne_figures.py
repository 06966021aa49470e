"""t-SNE figures: means by hand, equality with scikit-learn, few or equal points, names that do not overlap."""

from __future__ import annotations

import numpy as np
import pytest
from factories import class_folders, synthetic_images
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE, trustworthiness

import dinoeval
from dinoeval.errors import ConfigError, DataError
from dinoeval.figures import TsneConfig


def grouped_features(groups: int = 5, each: int = 20, dims: int = 40) -> np.ndarray:
    random = np.random.default_rng(0)
    return (random.standard_normal((groups, 1, dims)) * 4 + random.standard_normal((groups, each, dims))).reshape(-1, dims)


def test_class_means_equal_hand_count():
    features = np.array([[1, 0], [3, 0], [0, 5], [0, 7]], np.float32)
    means, names = dinoeval.figures.class_means(features, np.array([0, 0, 2, 2]), ("a", "none", "c"))
    assert (means.tolist(), names) == ([[2, 0], [0, 6]], ("a", "c"))
    multilabel = np.array([[1, 0], [1, 1], [-1, 1], [0, 1]])  # -1 is difficult and does not count.
    means, names = dinoeval.figures.class_means(features, multilabel, ("a", "b"))
    assert (means.tolist(), names) == ([[2, 0], [1, 4]], ("a", "b"))


def test_tsne_equals_scikit_learn_and_keeps_neighbors():
    features = grouped_features()
    names = [str(number) for number in range(100)]
    found = dinoeval.figures.tsne(features, names, TsneConfig(iterations=500))
    reduced = PCA(30, random_state=0).fit_transform(features.astype(np.float32))
    expected = TSNE(perplexity=20, learning_rate=200.0, init="pca", random_state=0, **{"max_iter": 500}).fit_transform(reduced)
    np.testing.assert_allclose(found.points, expected, atol=1e-3)
    assert (found.pca_dims, found.perplexity) == (30, 20)
    assert trustworthiness(features, found.points, n_neighbors=5) > 0.9


def test_perplexity_is_reduced_with_a_warning_for_few_points(caplog):
    with caplog.at_level("WARNING"):
        found = dinoeval.figures.tsne(grouped_features(10, 1), list("abcdefghij"), TsneConfig(iterations=250))
    assert (found.perplexity, found.pca_dims) == (3.0, 9)
    assert "perplexity 3 instead of 20" in caplog.text
    with pytest.raises(DataError, match="at least 4 points, got 3"):
        dinoeval.figures.tsne(grouped_features(3, 1), list("abc"))
    with pytest.raises(ConfigError, match=r"--iterations .*got 10"):
        TsneConfig(iterations=10)


def test_names_do_not_overlap_and_are_not_parsed_as_math():
    grid = np.array([(x, y) for x in range(4) for y in range(4)], np.float32)
    names = tuple(f"${number}^$" for number in range(16))
    found = dinoeval.figures.ClassMap(grid, names, None, (), 30, 20.0, 0.0)
    figure = found.figure()
    renderer = figure.canvas.get_renderer()
    texts = figure.axes[0].texts
    assert [text.get_text() for text in texts] == list(names)
    boxes = [text.get_window_extent(renderer) for text in texts]
    assert not any(one.overlaps(other) for number, one in enumerate(boxes) for other in boxes[:number])
    frame = figure.axes[0].get_window_extent(renderer)
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)
    assert all(text.get_fontsize() >= 7 for text in texts)


def test_thumbnails_are_drawn_at_their_points():
    points = np.array([[0, 0], [10, 0], [0, 10], [10, 10]], np.float32)
    found = dinoeval.figures.ClassMap(points, tuple("abcd"), None, (), 3, 1.0, 0.0)
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]
    figure = found.figure([Image.new("RGB", (30, 20), color) for color in colors])
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())
    assert abs(pixels.shape[0] - pixels.shape[1]) <= 1
    for point, color in zip(points, colors, strict=True):
        x, y = figure.axes[0].transData.transform(point)
        assert pixels[len(pixels) - 1 - int(y), int(x), :3].tolist() == list(color)


def test_groups_have_distinct_looks_and_names_at_their_median():
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(10), 5)
    points = (np.stack((groups % 4, groups // 4), 1) + random.uniform(-0.1, 0.1, (50, 2))).astype(np.float32)
    names = tuple(f"g{number}" for number in range(10))
    axis = dinoeval.figures.ClassMap(points, ("",) * 50, groups, names, 3, 1.0, 0.0).figure().axes[0]
    looks = {(tuple(drawn.get_facecolor()[0]), drawn.get_paths()[0].vertices.tobytes()) for drawn in axis.collections}
    assert len(looks) == 10
    for text, group in zip(axis.texts, range(10), strict=True):
        assert text.get_text() == names[group]
        np.testing.assert_allclose(text.xy, np.median(points[groups == group], axis=0), atol=1e-6)


def test_tsne_command_draws_classes_and_images(call, tiny_weights, tmp_path):
    data = class_folders(tmp_path / "set", classes=5)
    words = ("tsne", "--weights", tiny_weights, "--iterations", 250, "--out")
    code, out, err = call(*words, tmp_path / "classes.svg", "--data", data)
    assert (code, "5 classes, means of 15 images" in out, "perplexity 1.33" in out) == (0, True, True), err
    code, out, err = call(
        *(*words, tmp_path / "each.png", "--data", data, "--split", "train"),
        *("--per-image", "--max-images", 30, "--show", "images"),
    )
    assert (code, "30 images" in out, "30 of 40 images" in err) == (0, True, True), err
    with Image.open(tmp_path / "each.png") as image:
        assert image.width >= 975
    (tmp_path / "flat").mkdir()
    for number, image in enumerate(synthetic_images(6)):
        image.save(tmp_path / f"flat/{number}.png")
    code, out, err = call(*words, tmp_path / "flat.pdf", tmp_path / "flat")
    assert (code, "6 images" in out) == (0, True), err
    assert (tmp_path / "flat.pdf").read_bytes().startswith(b"%PDF")


def test_tsne_command_rejects_invalid_options(call, tiny_weights, tmp_path):
    data = class_folders(tmp_path / "set", classes=5)
    words = ("tsne", "--weights", tiny_weights, "--out", tmp_path / "a.png")
    assert "--data" in call(*words, data, "--data", data)[2]
    assert "--readout patches" in call(*words, "--data", data, "--readout", "patches")[2]


@pytest.mark.parametrize(
    ("option", "value", "shown"),
    [
        ("--max-images", 3, "3"),
        ("--max-images", -1, "-1"),
        ("--seed", -1, "-1"),
        ("--seed", 2**32, "4294967296"),
        ("--learning-rate", "inf", "inf"),
        ("--learning-rate", "nan", "nan"),
        ("--learning-rate", 0, "0.0"),
        ("--learning-rate", "1e+10", "10000000000.0"),
        ("--iterations", 249, "249"),
        ("--pca-dims", 1, "1"),
        ("--perplexity", 0, "0.0"),
        ("--perplexity", "inf", "inf"),
    ],
)
def test_tsne_command_rejects_number_out_of_range(call, tmp_path, option, value, shown):
    code, _, err = call("tsne", tmp_path, "--out", tmp_path / "a.png", "--weights", tmp_path / "none.pth", option, value)
    assert (code, f"{option} must be" in err, f"got {shown}" in err) == (2, True, True), err
