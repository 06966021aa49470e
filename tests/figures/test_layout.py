"""What figures state: scales, legends, names in any script, and how they appear in notebooks."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
from figure_factories import class_map, synthetic_maps
from PIL import Image

import dinoeval
from dinoeval.errors import ConfigError, DataError, DinoevalError
from dinoeval.figures import ClassMap, FeatureMaps
from dinoeval.figures.class_map import MAX_LOOKS
from dinoeval.figures.names import write_names
from dinoeval.figures.overlay import draw_video
from dinoeval.figures.panels import Panel, draw_rows
from dinoeval.figures.style import color, rgb


def boxes(figure) -> dict[str, tuple[float, float, float, float]]:
    """Return left, lower, right and upper end of the panels with a title, in fractions of the figure."""
    return {axis.get_title(): axis.get_position().extents.tolist() for axis in figure.axes if axis.get_title()}


@pytest.mark.parametrize("heads", [1, 3, 6, 12])
def test_overlay_is_next_to_the_image_and_masks_below_maps(heads):
    maps = synthetic_maps(heads)
    figure = maps.figure()
    found = boxes(figure)
    left, right = found["image"], found["overlay: all heads" if heads <= 7 else f"overlay: 7 of {heads} heads"]
    assert (left[1], left[3]) == (right[1], right[3])
    assert 0 <= right[0] - left[2] < 0.05
    images = {axis: axis.images[0].get_array() for axis in figure.axes if axis.images}
    for head in range(heads):
        box = found[f"head {head}"]
        mask = next(axis.get_position().extents for axis, image in images.items() if np.array_equal(image, maps.mask(head)))
        assert mask[[0, 2]] == pytest.approx([box[0], box[2]])
        assert box[1] - mask[3] > 0
        assert not any(mask[3] < other[3] < box[1] and other[0] == box[0] for other in found.values())


def test_each_map_states_its_minimum_and_maximum():
    maps = synthetic_maps(3)
    texts = [text.get_text() for axis in maps.figure().axes for text in axis.texts]
    assert texts == [f"{limit:.2g}" for head in maps.maps for limit in (head.min(), head.max())]
    texts = [text.get_text() for axis in maps.points_figure([1]).axes[2:] for text in axis.texts]
    assert texts == [f"{limit:.2g}" for limit in (maps.maps[1].min(), maps.maps[1].max())]


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (3, 4000)])
def test_figure_of_a_narrow_image_is_not_gigantic(shape):
    image = np.zeros((*shape, 3), np.uint8)
    figure, axes = draw_rows([[Panel(image, "a", (0.0, 1.0), "viridis"), None], [Panel(image), Panel(image)]])
    assert len(axes) == 3
    assert figure.get_size_inches()[1] < 10
    with Image.open(io.BytesIO(figure._repr_png_())) as shown:
        assert shown.width == 650  # 3.25 inches at 200 dpi.


@pytest.mark.parametrize("count", [1, 12, 37, 112])
def test_groups_have_a_legend_with_distinct_looks(count):
    figure = class_map(count).figure()
    plot, legend = figure.axes
    looks = [(line.get_color(), line.get_marker()) for line in legend.lines]
    assert len(set(looks)) == count
    assert [text.get_text() for text in legend.texts] == [f"class {number}" for number in range(count)]
    assert len(plot.texts) == (count if count <= 12 else 0)
    renderer = figure.canvas.get_renderer()
    drawn = [text.get_window_extent(renderer) for text in legend.texts]
    assert not any(one.overlaps(other) for place, one in enumerate(drawn) for other in drawn[place + 1 :])
    assert all(box.x1 <= figure.bbox.x1 for box in drawn)


def test_more_groups_than_looks_are_named_in_the_plot():
    (plot,) = class_map(MAX_LOOKS + 1).figure().axes
    assert len(plot.texts) == MAX_LOOKS + 1


NAMES = ["猫", "犬", "кошка", "قط", "🐶", "a\nb", "tab\t", "$x^2$", "\udc80", "l" * 90, "l" * 89 + "m", "back\\slash"]


def test_names_in_any_script_differ_and_do_not_warn():
    written = [name["text"] for name in write_names(NAMES)]
    assert len(set(written)) == len(NAMES)
    assert written[2:4] == NAMES[2:4]
    assert (written[5], written[8], written[11]) == ("a\\u000ab", "\\x80", "back\\slash")
    assert [name["text"] for name in write_names(["e\u0301"])] == ["é"]
    points = np.random.default_rng(0).random((len(NAMES), 2), np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ClassMap(points, tuple(NAMES), None, (), 3, 1.0, 0.0)._repr_png_().startswith(b"\x89PNG")
        grouped = ClassMap(points, ("",) * len(NAMES), np.arange(len(NAMES)), tuple(NAMES), 3, 1.0, 0.0)
        assert grouped._repr_png_().startswith(b"\x89PNG")


def test_names_that_look_alike_differ():
    composed, long, changed_middle = "caf\u00e9", "l" * 90, "l" * 45 + "m" + "l" * 44
    written = [name["text"] for name in write_names([composed, "cafe\u0301", long, changed_middle])]
    assert written[:2] == ["caf\\u00e9", "cafe\\u0301"]
    assert written[2] != written[3]
    assert all(len(text) <= 22 for text in written[2:])


def test_video_overlay_has_a_legend_of_all_objects(tmp_path):
    """Object 9 enters in the last frame; its color is not that of object 2."""
    masks = [np.zeros((31, 47), np.uint8) for _ in range(3)]
    masks[0][:4], masks[2][8:20] = 2, 9
    frames = [Image.new("RGB", (47, 31), "white") for _ in masks]
    animation, sheet = draw_video(tmp_path, "clip", ["0", "1", "2"], frames, lambda: masks)
    with Image.open(animation) as written:
        assert written.n_frames == 3
        height = written.height
        colors = {pixel for _, pixel in written.convert("RGB").crop((0, 31, 47, height)).getcolors()}
    assert height == 31 + 2 * 17
    assert {tuple(rgb(color(1)).tolist()), tuple(rgb(color(8)).tolist())} <= colors
    with Image.open(sheet) as written:
        colors = {pixel for _, pixel in written.convert("RGB").getcolors(1 << 20)}
    assert {tuple(rgb(color(1)).tolist()), tuple(rgb(color(8)).tolist())} <= colors


def feature_maps() -> FeatureMaps:
    random = np.random.default_rng(0)
    return FeatureMaps(
        names=("a",) * 5,
        images=(np.zeros((8, 8, 3), np.uint8),) * 5,
        scores=tuple(random.random((2, 2, 3), np.float32) for _ in range(5)),
        foreground=(np.ones((2, 2), bool),) * 5,
        only_foreground=False,
        components=np.eye(3, 8, dtype=np.float32),
        mean=np.zeros(8, np.float32),
        explained_variance_ratio=np.ones(3) / 3,
        limits=np.array([[-1.5, 2.0], [0.0, 1.0], [-3.0, 4.25]]),
        patch=4,
        transform="none",
    )


@pytest.mark.parametrize("shown", [synthetic_maps(3), feature_maps(), class_map(10)], ids=lambda shown: type(shown).__name__)
def test_notebooks_show_the_figure_and_a_short_text(shown, tmp_path):
    with Image.open(io.BytesIO(shown._repr_png_())) as image:
        image.load()
        assert image.format == "PNG"
    assert repr(shown).startswith(f"{type(shown).__name__}(")
    assert len(repr(shown)) < 600
    dinoeval.figures.save(shown, tmp_path / "shown.png")
    assert (tmp_path / "shown.png").stat().st_size > 1000


def test_save_rejects_what_is_not_a_figure(tmp_path):
    with pytest.raises(ConfigError, match="ndarray"):
        dinoeval.figures.save(np.zeros(3), tmp_path / "a.png")
    with pytest.raises(DinoevalError, match=r"none/a\.png"):
        dinoeval.figures.save(class_map(4), tmp_path / "none/a.png")


def test_pca_figure_states_its_color_scale():
    texts = " ".join(text.get_text() for text in feature_maps().figure().texts)
    assert "red -1.5 to 2, green 0 to 1, blue -3 to 4.25" in texts


@pytest.mark.parametrize(
    ("features", "names", "named"),
    [
        (np.full((6, 3), np.nan), "abcdef", "features of a"),
        (np.zeros((6, 3)), "abc", "3 names"),
        (np.zeros(6), "abcdef", r"\(6,\)"),
    ],
)
def test_tsne_rejects_features_that_do_not_fit(features, names, named):
    with pytest.raises(DataError, match=named):
        dinoeval.figures.tsne(features, list(names))
