"""Segmentation by attention: scores, averages, notes, and what it rejects."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from factories import synthetic_images, synthetic_state
from hypothesis import given
from hypothesis import strategies as st
from paper_results import missing_facts, reasons
from PIL import Image
from segmentation_factories import masked_folder, voc_tree

import dinoeval
from dinoeval.cli import main
from dinoeval.data.masks import VOID, write_mask
from dinoeval.errors import ConfigError, DataError
from dinoeval.models.backbone import Backbone
from dinoeval.paper.comparable import comparable
from dinoeval.protocols import segment
from dinoeval.results import Result
from dinoeval.session import SessionConfig

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
PATCH = 4  # pixels, of the tiny network


@pytest.fixture
def backbone(tiny_weights) -> Backbone:
    return dinoeval.load(weights=tiny_weights)


def slow_mask(attention: np.ndarray, mass: float, patch: int) -> list[list[bool]]:
    """Drop the smallest patches as long as they hold at most 1 - mass, as visualize_attention.py does."""
    flat = attention.ravel()
    total, running, kept = sum(flat), 0.0, [False] * len(flat)
    for place in np.argsort(flat, kind="stable"):
        running += flat[place] / total
        kept[place] = running > 1 - mass
    height, width = attention.shape
    return [[kept[(row // patch) * width + column // patch] for column in range(width * patch)] for row in range(height * patch)]


def slow_scores(backbone: Backbone, image: Image.Image, ids: np.ndarray, size: int | None, mass: float, void: str) -> np.ndarray:
    """Compute the Jaccard index of each object (rows) with the mask of each head and of their mean (columns)."""
    labels = Image.fromarray(ids)
    if size:
        image, labels = image.resize((size, size), Image.Resampling.BILINEAR), labels.resize((size, size), Image.Resampling.NEAREST)
    width, height = (side - side % PATCH for side in image.size)
    pixels = (np.asarray(image.convert("RGB"))[:height, :width] / 255 - MEAN) / STD
    batch = torch.from_numpy(pixels.transpose(2, 0, 1)[None].astype(np.float32))
    maps = backbone.attention(batch)[0, :, 0, 1:].numpy().astype(np.float64).reshape(-1, height // PATCH, width // PATCH)
    labels = np.asarray(labels)[:height, :width]
    counted = labels != VOID if void == "ignored" else np.ones_like(labels, bool)
    scores = []
    for label in sorted(set(labels.ravel().tolist()) - {0, VOID}):
        scores.append([])
        for one in (*maps, maps.mean(0)):
            mask = np.array(slow_mask(one, mass, PATCH)) & counted
            scores[-1].append((mask & (labels == label)).sum() / (mask | (labels == label)).sum())
    return np.array(scores)


def test_best_head_of_each_object_matches_hand_computed_case():
    # Two heads, 2 x 2 patches of 2 pixels. Object 1 fills the upper left patch, object 7 half of the lower right one.
    attention = torch.tensor([[[0.6, 0.1], [0.2, 0.1]], [[0.1, 0.2], [0.1, 0.6]]]) / 2  # [CLS] has the other half.
    ids = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 7, 0], [0, 0, 7, 0]], np.uint8)
    # 55 % of head 0 is its upper left patch, of head 1 its lower right one, and of the mean both of these.
    found = segment.score_masks(attention, ids, mass=0.55, void="ignored")
    np.testing.assert_array_equal(found, [[4 / 4, 0 / 8, 4 / 8], [0 / 6, 2 / 4, 2 / 8]])
    outcomes, table = segment.summarize([found])
    assert outcomes["jaccard"].tolist() == [(1 + 0.5) / 2]
    assert outcomes["jaccard_fixed_head"].tolist() == [(1 + 0) / 2], "head 0"
    assert outcomes["jaccard_mean_head"].tolist() == [(0.5 + 0.25) / 2]
    assert [(row["jaccard"], row["best for % of objects"], row["fixed"]) for row in table] == [(50, 50, True), (25, 50, False)]


def test_void_pixels_match_hand_computed_case():
    attention = torch.tensor([[[0.7, 0.1], [0.1, 0.1]]])
    ids = np.array([[1, VOID, 0, 0], [1, VOID, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], np.uint8)
    assert segment.score_masks(attention, ids, mass=0.5, void="ignored").tolist() == [[1, 1]]
    assert segment.score_masks(attention, ids, mass=0.5, void="background").tolist() == [[0.5, 0.5]]
    only_void = np.full((4, 4), VOID, np.uint8)
    assert segment.score_masks(attention, only_void, mass=0.5, void="ignored").shape == (0, 2)


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 2**31))
def test_best_head_per_object_is_at_least_the_fixed_head(heads, images, seed):
    random = np.random.default_rng(seed)
    outcomes, table = segment.summarize([random.random((int(random.integers(1, 4)), heads + 1)) for _ in range(images)])
    assert (outcomes["jaccard"] >= outcomes["jaccard_fixed_head"] - 1e-12).all()
    assert 100 * outcomes["jaccard_fixed_head"].mean() == pytest.approx(max(row["jaccard"] for row in table))
    assert sum(row["best for % of objects"] for row in table) == pytest.approx(100)
    assert sum(row["fixed"] for row in table) == 1


@pytest.mark.parametrize("mass", [0.6, 0.8])
@pytest.mark.parametrize("void", ["ignored", "background"])
@pytest.mark.parametrize("size", [32, 34, "native"])
def test_scores_equal_the_released_masks_and_averages(backbone, tmp_path, mass, void, size):
    root = voc_tree(tmp_path)
    voc = root / "VOCdevkit/VOC2012"
    result = dinoeval.evaluate("segment", backbone, data=str(root), mass=mass, void=void, image_size=size)
    expected = []
    for path in result.samples["path"]:
        name = path.removeprefix("JPEGImages/").removesuffix(".jpg")
        ids = np.asarray(Image.open(voc / f"SegmentationObject/{name}.png"))
        expected.append(slow_scores(backbone, Image.open(voc / path), ids, None if size == "native" else size, mass, void))
    heads = np.array([one[:, :-1].mean(0) for one in expected])
    assert result.samples["jaccard"] == pytest.approx([one[:, :-1].max(1).mean() for one in expected])
    assert result.samples["jaccard_mean_head"] == pytest.approx([one[:, -1].mean() for one in expected])
    assert [row["jaccard"] for row in result.table] == pytest.approx((100 * heads.mean(0)).tolist())
    assert result.metrics["jaccard_fixed_head"] == pytest.approx(100 * heads.mean(0).max())
    assert result.metrics["jaccard"] == pytest.approx(100 * np.mean(result.samples["jaccard"]))
    assert result.config["image_size"] == size


def test_scores_do_not_depend_on_the_batch_size(backbone, tmp_path):
    root = masked_folder(tmp_path / "set", images=5)
    ones, threes = (
        dinoeval.evaluate("segment", backbone, session=SessionConfig(batch_size=size), data=str(root), image_size=32) for size in (1, 3)
    )
    assert ones.samples["path"] == [f"{number}.jpg" for number in range(5)]
    assert threes.samples["jaccard"] == pytest.approx(ones.samples["jaccard"], abs=1e-9)


def test_objects_are_instances_or_classes(backbone, tmp_path):
    root = voc_tree(tmp_path)
    results = [dinoeval.evaluate("segment", backbone, data=str(root), image_size=32, objects=kind) for kind in ("instance", "class")]
    assert [result.config["objects"] for result in results] == ["instance", "class"]
    assert results[0].samples["jaccard"] != results[1].samples["jaccard"]
    folder = dinoeval.evaluate("segment", backbone, data=str(masked_folder(tmp_path / "set")), image_size=32)
    assert folder.config["objects"] == "masks/", "--objects applies to VOC only"


def test_result_names_all_differences_from_figure_4(tmp_path):
    root = voc_tree(tmp_path, images=2)
    torch.save(synthetic_state("vit_xs16"), tmp_path / "x.pth")
    backbone = dinoeval.load(weights=tmp_path / "x.pth", arch="vit_xs16")
    result = dinoeval.evaluate("segment", backbone, data=str(root))
    assert reasons(result) == "details.images: 2 (Figure 4 requires 1,449)"
    assert missing_facts(result) == set()
    assert any("assumed" in note and "instance masks" in note and "void pixels ignored" in note for note in result.notes)
    result = dinoeval.evaluate("segment", backbone, data=str(root), mass=0.7, image_size=64)
    assert "config.mass: 0.7" in reasons(result)
    assert "config.image_size: 64" in reasons(result)


def test_random_weights_are_named_as_a_reason(tmp_path):
    backbone = dinoeval.load("vit_s16", weights="random")
    result = dinoeval.evaluate("segment", backbone, data=str(masked_folder(tmp_path / "set", images=1)), image_size=32)
    assert "random" in "; ".join(comparable(result).reasons)


def test_timm_models_need_patches(tmp_path):
    root = str(masked_folder(tmp_path / "set", images=2))
    network = dinoeval.load("timm/test_vit", weights="random")
    result = dinoeval.evaluate("segment", network, data=root, image_size=64)
    assert len(result.table) == 2, "one row per head"
    assert any("timm" in note and "position embeddings" in note for note in result.notes)
    with pytest.raises(ConfigError, match=r"timm/resnet10t .*\bpatches\b"):
        dinoeval.evaluate("segment", dinoeval.load("timm/resnet10t", weights="random"), data=root)


def test_images_without_objects_are_left_out_and_noted(backbone, tmp_path):
    root = masked_folder(tmp_path / "set", images=5)
    write_mask(root / "masks/0.png", np.zeros((50, 75), np.uint8))
    (root / "images/1.jpg").write_bytes(b"text")
    vanishing = np.zeros((64, 64), np.uint8)
    vanishing[0, 0] = 1  # This pixel is lost at a size of 16.
    write_mask(root / "masks/2.png", vanishing)
    options = {"data": str(root), "image_size": 16}
    with pytest.raises(DataError, match=r"\b1 of 5\b.*1\.jpg"):
        dinoeval.evaluate("segment", backbone, **options)
    result = dinoeval.evaluate("segment", backbone, session=SessionConfig(bad_images="skip"), **options)
    assert result.samples["path"] == ["3.jpg", "4.jpg"]
    assert result.data["images"]["images"] == result.data["masks"]["images"] == 2
    assert result.data["images"]["bad_images"] == ["1.jpg"]
    assert any("without an object" in note and "1 (0.jpg)" in note for note in result.notes)
    assert any("all vanish" in note and note.endswith(": 1") for note in result.notes)
    for row in (0, 1, 3, 4):
        (root / f"images/{row}.jpg").unlink()
    with pytest.raises(DataError, match=rf"no object .*{root}"):
        dinoeval.evaluate("segment", backbone, **options)


def test_native_size_rejects_images_smaller_than_a_patch(tmp_path):
    root = masked_folder(tmp_path / "set", images=2)
    synthetic_images(1, (30, 1))[0].save(root / "images/0.jpg")
    write_mask(root / "masks/0.png", np.ones((1, 30), np.uint8))
    network = dinoeval.load("vit_xs16", weights="random")
    with pytest.raises(DataError, match=r"0\.jpg \(30 x 1 pixels.* 16"):
        dinoeval.evaluate("segment", network, data=str(root), image_size="native")
    assert len(dinoeval.evaluate("segment", network, data=str(root), image_size=32).samples["path"]) == 2, "resizing enlarges it"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"mass": 0.0}, r"--mass .* 0\.0"),
        ({"mass": 1.1}, r"--mass .* 1\.1"),
        ({"mass": float("nan")}, "--mass .* nan"),
        ({"image_size": 3}, r"--image-size.*\b3\b"),
        ({"image_size": 0}, r"--image-size.*\b0\b"),
    ],
)
def test_run_rejects_invalid_options(backbone, tmp_path, options, named):
    with pytest.raises(ConfigError, match=named):
        dinoeval.evaluate("segment", backbone, data=str(masked_folder(tmp_path / "set", images=1)), **options)


def test_mass_of_1_keeps_the_whole_image(backbone, tmp_path):
    root = masked_folder(tmp_path / "set", images=2)
    result = dinoeval.evaluate("segment", backbone, data=str(root), mass=1.0, image_size="native", void="background")
    fractions = []
    for number in range(2):
        ids = np.asarray(Image.open(root / f"masks/{number}.png"))
        ids = ids[: ids.shape[0] - ids.shape[0] % PATCH, : ids.shape[1] - ids.shape[1] % PATCH]
        fractions.append(np.mean([(ids == label).mean() for label in (1, 2)]))
    assert result.samples["jaccard"] == pytest.approx(fractions)


def test_command_prints_metrics_and_every_head(tiny_weights, tmp_path, capsys, monkeypatch):
    voc_tree(tmp_path / "data")
    monkeypatch.setenv("DINOEVAL_DATA", str(tmp_path / "data"))
    target = tmp_path / "result.json"
    for size in ("32", "native"):
        with pytest.raises(SystemExit) as stop:
            main(["segment", "--weights", str(tiny_weights), "--image-size", size, "--json", str(target)])
        assert stop.value.code == 0
        out = capsys.readouterr().out
        assert "jaccard_fixed_head" in out
        assert "best for % of objects" in out
        assert str(json.loads(target.read_text())["config"]["image_size"]) == size
        assert Result.load(target).metrics.keys() == {"jaccard", "jaccard_fixed_head", "jaccard_mean_head"}
    shutil.rmtree(tmp_path / "data")
    with pytest.raises(SystemExit) as stop:
        main(["segment", "--weights", str(tiny_weights)])
    assert stop.value.code == 2
    assert "--data" in capsys.readouterr().err


def test_objects_lost_by_resizing_are_noted(backbone, tmp_path):
    root = masked_folder(tmp_path / "set", images=1)
    with Image.open(root / "masks/0.png") as image:
        mask = np.array(image)
    mask[0, 0] = 9  # This pixel is lost when 75 x 50 pixels become 16 x 16.
    Image.fromarray(mask).save(root / "masks/0.png")
    result = dinoeval.evaluate("segment", backbone, data=str(root), image_size=16)
    assert any("vanish" in note and note.endswith(": 1") for note in result.notes)


def test_16_bit_images_score_like_their_8_bit_versions(backbone, tmp_path):
    scores = []
    for bits in (8, 16):
        root = masked_folder(tmp_path / str(bits), images=1)
        with Image.open(root / "images/0.jpg") as image:
            gray = np.array(image.convert("L"))
        (root / "images/0.jpg").unlink()
        Image.fromarray(gray if bits == 8 else gray.astype(np.uint16) * 257).save(root / "images/0.png")
        scores.append(dinoeval.evaluate("segment", backbone, data=str(root), image_size=32).metrics)
    assert scores[0] == scores[1]
