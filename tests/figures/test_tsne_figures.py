"""Maps of classes: means by hand, t-SNE equal to scikit-learn's, few classes, names that do not cover each other."""

from __future__ import annotations

import numpy as np
import pytest
from factories import class_folders, synthetic_images
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE, trustworthiness

import dinoeval
from dinoeval.cli import main
from dinoeval.errors import ConfigError, DataError


def groups_of_rows(groups: int = 5, each: int = 20, dims: int = 40) -> np.ndarray:
    random = np.random.default_rng(0)
    return (random.standard_normal((groups, 1, dims)) * 4 + random.standard_normal((groups, each, dims))).reshape(-1, dims)


def call(capsys, *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


def test_means_by_hand():
    rows = np.array([[1, 0], [3, 0], [0, 5], [0, 7]], np.float32)
    means, names = dinoeval.figures.class_means(rows, np.array([0, 0, 2, 2]), ("a", "none", "c"))
    assert (means.tolist(), names) == ([[2, 0], [0, 6]], ("a", "c"))
    several = np.array([[1, 0], [1, 1], [-1, 1], [0, 1]])  # -1 is difficult: left out
    means, names = dinoeval.figures.class_means(rows, several, ("a", "b"))
    assert (means.tolist(), names) == ([[2, 0], [1, 4]], ("a", "b"))


def test_the_map_is_scikit_learns_after_pca_and_keeps_neighbours():
    rows = groups_of_rows()
    names = [str(number) for number in range(100)]
    found = dinoeval.figures.tsne(rows, names, steps=500)
    reduced = PCA(30, random_state=0).fit_transform(rows.astype(np.float32))
    expected = TSNE(perplexity=20, learning_rate=200.0, init="pca", random_state=0, **{"max_iter": 500}).fit_transform(reduced)
    np.testing.assert_allclose(found.points, expected, atol=1e-3)
    assert (found.dims, found.perplexity) == (30, 20)
    assert trustworthiness(rows, found.points, n_neighbors=5) > 0.9


def test_few_points_get_a_smaller_perplexity_and_it_is_said(caplog):
    with caplog.at_level("WARNING"):
        found = dinoeval.figures.tsne(groups_of_rows(10, 1), list("abcdefghij"), steps=250)
    assert (found.perplexity, found.dims) == (3.0, 9)
    assert "perplexity 3 instead of 20: there are 10 points" in caplog.text
    with pytest.raises(DataError, match="3 points are too few"):
        dinoeval.figures.tsne(groups_of_rows(3, 1), list("abc"))
    with pytest.raises(ConfigError, match="250 steps or more"):
        dinoeval.figures.tsne(groups_of_rows(10, 1), list("abcdefghij"), steps=10)


def test_names_do_not_cover_each_other_and_are_read_as_they_are():
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


def test_thumbnails_lie_at_their_points():
    points = np.array([[0, 0], [10, 0], [0, 10], [10, 10]], np.float32)
    found = dinoeval.figures.ClassMap(points, tuple("abcd"), None, (), 3, 1.0, 0.0)
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]
    figure = found.figure([Image.new("RGB", (30, 20), colour) for colour in colours])
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())
    assert abs(pixels.shape[0] - pixels.shape[1]) <= 1
    for point, colour in zip(points, colours, strict=True):
        x, y = figure.axes[0].transData.transform(point)
        assert pixels[len(pixels) - 1 - int(y), int(x), :3].tolist() == list(colour)


def test_groups_differ_in_colour_or_sign_and_have_their_names_at_their_middle():
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


def test_the_command_draws_classes_and_images(capsys, tiny_weights, tmp_path):
    data = class_folders(tmp_path / "set", classes=5)
    words = ("tsne", "--weights", tiny_weights, "--steps", 250, "--out")
    code, out, err = call(capsys, *words, tmp_path / "classes.svg", "--data", data)
    assert (code, "5 classes, means of 15 images" in out, "perplexity 1.33" in out) == (0, True, True), err
    code, out, err = call(
        capsys, *words, tmp_path / "each.png", "--data", data, "--each", "--split", "train", "--most", 30, "--show", "pictures"
    )
    assert (code, "30 images" in out, "30 of 40 images are drawn" in err) == (0, True, True), err
    with Image.open(tmp_path / "each.png") as picture:
        assert picture.width >= 975
    (tmp_path / "flat").mkdir()
    for number, picture in enumerate(synthetic_images(6)):
        picture.save(tmp_path / f"flat/{number}.png")
    code, out, err = call(capsys, *words, tmp_path / "flat.pdf", tmp_path / "flat")
    assert (code, "6 images" in out) == (0, True), err
    assert (tmp_path / "flat.pdf").read_bytes().startswith(b"%PDF")
    assert "name images or --data, not both" in call(capsys, *words, tmp_path / "a.png", tmp_path / "flat", "--data", data)[2]
    numbers = {"--most": (3, -1), "--seed": (-1, 2**32), "--learning-rate": ("inf", "nan", 0, "1e+10"), "--steps": (249,), "--dims": (1,),
               "--perplexity": (0, "inf")}  # fmt: skip
    for option, value in [(option, value) for option, values in numbers.items() for value in values]:
        code, _, err = call(
            capsys, "tsne", tmp_path / "flat", "--out", tmp_path / "a.png", "--weights", tmp_path / "none.pth", option, value
        )
        assert (code, f"{option} {value}: " in err) == (2, True), err
    assert "the readout patches gives a map" in call(capsys, *words, tmp_path / "a.png", "--data", data, "--readout", "patches")[2]
