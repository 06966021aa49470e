"""Label propagation on DAVIS: scores, runs that resume, existing masks, and what it rejects."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from paper_results import missing_facts, reasons
from PIL import Image
from video_factories import davis_tree, synthetic_video

import dinoeval
from dinoeval.data.mask_folders import RECORD
from dinoeval.data.masks import read_mask, write_mask
from dinoeval.errors import ConfigError, DataError
from dinoeval.features.cache import FeatureCache
from dinoeval.maths.segmentation import contour_accuracy
from dinoeval.models.architectures import parse_architecture
from dinoeval.models.backbone import Backbone, Provenance
from dinoeval.models.vit import VisionTransformer
from dinoeval.paper.comparable import comparable
from dinoeval.protocols import davis
from dinoeval.session import SessionConfig

OPTIONS = {"image_size": 64, "radius": 4, "context_frames": 2}
WORDS = ["--image-size", "64", "--radius", "4", "--context-frames", "2", "--device", "cpu"]
VIDEOS = {"cat": synthetic_video(5, seed=1), "dog": synthetic_video(4, (64, 128), objects=1, seed=2)}


@pytest.fixture
def root(tmp_path):
    return davis_tree(tmp_path / "DAVIS", VIDEOS)


@pytest.fixture(scope="module")
def backbone(tiny_weights):
    return dinoeval.load(weights=tiny_weights, device="cpu")


def evaluate(backbone, root, **options):
    return dinoeval.evaluate("davis", backbone, data=str(root), **{**OPTIONS, **options})


def score(backbone, root, **options):
    """Evaluate with the default options, because options of propagation do not apply to --masks."""
    return dinoeval.evaluate("davis", backbone, data=str(root), **options)


def slow_scores(out: Path) -> list[tuple[float, float]]:
    """Average J and F of each object over all frames except the first and the last."""
    scores = []
    for name, video in VIDEOS.items():
        for label in range(1, int(video[0][1].max()) + 1):
            pairs = [(mask == label, read_mask(out / name / f"{number:05d}.png") == label) for number, (_, mask) in enumerate(video)][1:-1]
            overlaps = [(true & mask).sum() / (true | mask).sum() if (true | mask).any() else 1.0 for true, mask in pairs]
            scores.append((float(np.mean(overlaps)), float(np.mean([contour_accuracy(*pair) for pair in pairs]))))
    return scores


def test_scores_are_means_over_objects_of_all_sequences(backbone, root, tmp_path):
    result = evaluate(backbone, root, out=str(tmp_path / "out"))
    expected = np.array(slow_scores(tmp_path / "out"))  # two objects of cat, one of dog
    assert result.metrics["J"] == pytest.approx(100 * expected[:, 0].mean())
    assert result.metrics["F"] == pytest.approx(100 * expected[:, 1].mean())
    assert result.metrics["J&F"] == pytest.approx(100 * expected.mean())
    assert list(result.metrics) == list(davis.METRICS) == list(result.standard_errors)
    assert result.samples["path"] == ["cat/1", "cat/2", "dog/1"]
    assert result.samples["J"] == pytest.approx(expected[:, 0].tolist())
    assert [(row["sequence"], row.get("object")) for row in result.table] == [
        ("cat", None),
        ("dog", None),
        ("cat", 1),
        ("cat", 2),
        ("dog", 1),
    ]
    assert result.table[0]["J"] == pytest.approx(100 * expected[:2, 0].mean())
    assert 40 < result.metrics["J&F"] < 100


def test_masks_are_indexed_and_the_first_is_the_annotation(backbone, root, tmp_path):
    evaluate(backbone, root, out=str(tmp_path / "out"))
    names = {path.name for path in (tmp_path / "out/dog").iterdir()}
    assert names == {RECORD, *(f"{number:05d}.png" for number in range(4))}
    with Image.open(tmp_path / "out/dog/00003.png") as mask:
        assert (mask.mode, mask.size) == ("P", (64, 128))
    assert (read_mask(tmp_path / "out/cat/00000.png") == VIDEOS["cat"][0][1]).all()


def existing_masks(folder: Path) -> Path:
    """Write the annotations of all scored frames as masks; the first and the last frame need none."""
    for name, video in VIDEOS.items():
        (folder / name).mkdir(parents=True)
        for number, (_, mask) in enumerate(video[1:-1], 1):
            write_mask(folder / name / f"{number:05d}.png", mask)
    return folder


def test_existing_masks_are_scored_without_a_network(root, tmp_path, backbone):
    masks = existing_masks(tmp_path / "masks")
    result = score(backbone, root, masks=str(masks))
    assert (result.metrics["J"], result.metrics["F"], result.metrics["J_decay"]) == (100, 100, 0)
    assert (result.backbone["arch"], result.transform) == ("none", "none")
    assert "config.masks: yes" in reasons(result)
    assert "vit" not in json.dumps(result.backbone)
    assert result.config["radius"] is None, "it is unknown how the masks were made"
    with pytest.raises(ConfigError, match=r"--masks .*--radius"):
        score(backbone, root, masks=str(masks), radius=3)
    for number in (1, 2, 3):  # The second object of cat is missing in all masks.
        mask = VIDEOS["cat"][number][1]
        write_mask(masks / f"cat/{number:05d}.png", np.where(mask == 2, 0, mask).astype(np.uint8))
    result = score(backbone, root, masks=str(masks), overlay=str(tmp_path / "drawn"))
    assert result.samples["J"] == pytest.approx([1, 0, 1])
    assert result.metrics["J&F"] == pytest.approx(200 / 3)
    assert (tmp_path / "drawn/cat_overlay.gif").exists()


def test_existing_masks_that_do_not_fit_are_rejected(root, tmp_path, backbone):
    masks = existing_masks(tmp_path / "masks")
    good = VIDEOS["cat"][2][1]
    for bad, named in (
        (np.where(good == 2, 3, good), r"object 3\b.*\b1, 2"),
        (good[:-1], "128 x 63 "),
        (np.full_like(good, 255), "255"),
    ):
        write_mask(masks / "cat/00002.png", bad.astype(np.uint8))
        with pytest.raises(DataError, match=rf"00002\.png.*{named}"):
            score(backbone, root, masks=str(masks))
    (masks / "cat/00002.png").unlink()
    with pytest.raises(DataError, match=r"lacks 1 of 3 masks: 00002\.png"):
        score(backbone, root, masks=str(masks))
    shutil.rmtree(masks / "cat")
    with pytest.raises(DataError, match=rf"{masks} .*\bcat\b"):
        score(backbone, root, masks=str(masks))


def test_void_of_the_ground_truth_counts_as_background(root, tmp_path, backbone):
    masks = existing_masks(tmp_path / "masks")
    labels = VIDEOS["dog"][1][1].copy()
    first_half = (labels == 1).cumsum() <= (labels == 1).sum() // 2
    labels[first_half.reshape(labels.shape) & (labels == 1)] = 255
    write_mask(root / "Annotations/480p/dog/00001.png", labels)
    result = score(backbone, root, masks=str(masks))
    fraction = (labels == 1).sum() / (VIDEOS["dog"][1][1] == 1).sum()
    assert result.samples["J"][2] == pytest.approx((fraction + 1) / 2)


def test_finished_sequences_are_kept(backbone, root, tmp_path, caplog):
    out = tmp_path / "out"
    first = evaluate(backbone, root, out=str(out))
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    shutil.rmtree(out / "dog")
    with caplog.at_level("INFO"):
        again = evaluate(backbone, root, out=str(out))
    assert "cat: 5 masks from an earlier run (1 of 2 sequences)" in caplog.text
    assert (again.metrics, again.samples) == (first.metrics, first.samples)
    assert all(path.stat().st_mtime_ns == times[path] for path in (out / "cat").glob("*.png"))
    assert all(path.stat().st_mtime_ns > times[path] for path in (out / "dog").glob("*.png"))
    assert not list(out.glob(".*"))


def test_run_without_out_is_stored_in_the_cache(backbone, root):
    first = evaluate(backbone, root)
    assert evaluate(backbone, root).metrics == first.metrics
    [(folder, finished)] = FeatureCache().runs()
    assert finished
    assert sorted(path.name for path in folder.iterdir()) == ["cat", "dog", "finished"]


def test_one_object_has_no_standard_error(backbone, root):
    result = evaluate(backbone, root, sequences=("dog",))
    assert result.metrics
    assert not result.standard_errors


def test_masks_of_a_different_run_are_rejected_and_kept(backbone, root, tmp_path):
    out = tmp_path / "out"
    evaluate(backbone, root, out=str(out))
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    for options, named in (
        ({"radius": 3}, "radius was 4 and is 3"),
        ({"resize_backend": "pil"}, "transform was"),
        ({"edge_cases": "fixed"}, "edge_cases"),
    ):
        with pytest.raises(ConfigError, match=f"/cat .*{named}"):
            evaluate(backbone, root, out=str(out), **options)
    synthetic_video(1, seed=8)[0][0].save(root / "JPEGImages/480p/cat/00002.jpg")
    with pytest.raises(ConfigError, match=r"/cat .*frames and first mask was"):
        evaluate(backbone, root, out=str(out))
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == before


def test_folders_that_are_not_runs_are_rejected(backbone, root, tmp_path):
    out = tmp_path / "out"
    (out / "dog").mkdir(parents=True)
    (out / "dog/00000.png").write_bytes(b"mine")
    with pytest.raises(ConfigError, match=f"/dog .*{RECORD}.*--out"):
        evaluate(backbone, root, out=str(out))
    assert (out / "dog/00000.png").read_bytes() == b"mine"
    shutil.rmtree(out)
    evaluate(backbone, root, out=str(out))
    write_mask(out / "dog/00002.png", np.zeros((128, 64), np.uint8))
    with pytest.raises(ConfigError, match=r"dog/00002\.png .*--out"):
        evaluate(backbone, root, out=str(out))


@pytest.mark.slow
def test_killed_run_ends_like_an_uninterrupted_one(tiny_weights, backbone, root, tmp_path, caplog):
    """The process is killed between two sequences."""
    command = [sys.executable, "-m", "dinoeval", "davis", "--data", str(root), "--weights", str(tiny_weights), *WORDS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, "--out", str(tmp_path / "killed")], env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    for line in process.stderr:
        if line.startswith("cat:"):
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"
    assert (tmp_path / "killed/cat" / RECORD).exists()
    assert not (tmp_path / "killed/dog").exists()
    uninterrupted = evaluate(backbone, root, out=str(tmp_path / "uninterrupted"))
    with caplog.at_level("INFO"):
        resumed = evaluate(backbone, root, out=str(tmp_path / "killed"))
    assert "cat: 5 masks from an earlier run" in caplog.text
    for part in ("metrics", "samples", "table", "standard_errors"):
        assert getattr(resumed, part) == getattr(uninterrupted, part)
    for path in (tmp_path / "uninterrupted").rglob("*.png"):
        assert path.read_bytes() == (tmp_path / "killed" / path.relative_to(tmp_path / "uninterrupted")).read_bytes()


@pytest.mark.slow
def test_two_processes_equal_one(tiny_weights, root, tmp_path, backbone):
    words = ["davis", "--data", str(root), "--weights", str(tiny_weights), *WORDS]
    words += ["--out", str(tmp_path / "out"), "--json", str(tmp_path / "r.json")]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "dinoeval"]
    subprocess.run([*launcher, *words], check=True, capture_output=True)
    two, one = json.loads((tmp_path / "r.json").read_text()), evaluate(backbone, root)
    assert (two["metrics"], two["samples"]) == (one.metrics, one.samples)


def test_result_names_all_differences_from_table_5(backbone, root):
    result = evaluate(backbone, root, resize_backend="pil", edge_cases="fixed")
    found = reasons(result)
    for fact in (
        "details.sequences: 2",
        "details.objects: 3",
        "details.frames: 9",
        "config.image_size: 64",
        "config.resize_backend: pil",
        "config.radius: 4",
        "config.context_frames: 2",
        "config.edge_cases: fixed",
    ):
        assert fact in found
    assert "temperature" not in found
    assert missing_facts(result) == set()


def test_result_with_the_published_counts_is_comparable(tmp_path):
    """Evaluate 30 short sequences with 61 objects under the name of a released network."""
    videos = {f"video{number:02d}": synthetic_video(3, (64, 64), objects=2 + (number == 0), seed=number) for number in range(30)}
    root = davis_tree(tmp_path / "DAVIS", videos)
    network = VisionTransformer(parse_architecture("vit_xs64_64"))
    named = Backbone(network, arch="vit_xs64_64", provenance=Provenance("vit_s16", "random"), device=torch.device("cpu"))
    result = score(named, root)
    assert reasons(result) == "details.frames: 90 (Table 5 requires 1,999)"
    longer = dataclasses.replace(result, details={**result.details, "frames": 1_999})
    assert [(one.metric, one.value) for one in comparable(longer).rows] == [("J&F", 61.8), ("J", 60.2), ("F", 63.4)]
    assert len(result.samples["J"]) == 61


def test_videos_without_later_annotations_are_not_scored(tiny_weights, tmp_path, call):
    root = davis_tree(tmp_path / "DAVIS", VIDEOS, first_only=True)
    targets = ("--out", tmp_path / "out", "--json", tmp_path / "r.json")
    code, out, _ = call("davis", "--data", root, "--weights", tiny_weights, *WORDS, *targets)
    assert code == 0
    assert "only first frames have annotations" in out
    assert len(list((tmp_path / "out").rglob("*.png"))) == 9
    result = dinoeval.Result.load(tmp_path / "r.json")
    assert result.metrics == {}
    assert result.samples == {"path": []}
    with pytest.raises(DataError, match=rf"{root} .*--masks {tmp_path / 'out'}"):
        dinoeval.evaluate("davis", dinoeval.load(weights=tiny_weights), data=str(root), masks=str(tmp_path / "out"))


def test_davis_2016_has_one_object_per_sequence(backbone, tmp_path):
    root = davis_tree(tmp_path / "DAVIS", VIDEOS, year=2016)
    result = evaluate(backbone, root)
    assert result.samples["path"] == ["cat/1", "dog/1"]
    assert [row["sequence"] for row in result.table] == ["cat", "dog"]
    assert result.metrics["J"] > 40


def test_lost_objects_and_short_sequences_are_noted(backbone, tmp_path):
    mask = VIDEOS["cat"][0][1].copy()
    mask[1, 1] = 3
    cat = [(VIDEOS["cat"][0][0], mask), *VIDEOS["cat"][1:]]
    root = davis_tree(tmp_path / "DAVIS", {"cat": cat, "brief": synthetic_video(2, objects=1)})
    result = evaluate(backbone, root)
    assert result.table[0]["lost"] == "3"
    assert any("token" in note and "cat 3" in note for note in result.notes)
    assert any("not scored" in note and "brief" in note for note in result.notes)
    assert result.samples["J"][3] is None
    assert result.metrics["J"] == pytest.approx(100 * np.mean(result.samples["J"][:3]))
    assert result.samples["J"][2] == 1, "neither later annotations nor masks have the object"
    assert any("no scored annotation" in note and note.endswith("cat 3") for note in result.notes)
    fixed = evaluate(backbone, root, edge_cases="fixed")
    assert fixed.samples["J"][2] == 0
    result.save(tmp_path / "r.json")
    assert dinoeval.Result.load(tmp_path / "r.json").metrics == result.metrics


def test_overlay_draws_every_frame_of_a_sequence(backbone, root, tmp_path):
    evaluate(backbone, root, overlay=str(tmp_path / "drawn"))
    for name, frames in (("cat", 5), ("dog", 4)):
        with Image.open(tmp_path / f"drawn/{name}_overlay.gif") as animation, Image.open(tmp_path / f"drawn/{name}_overlay.png") as sheet:
            assert animation.n_frames == frames
            assert sheet.format == "PNG"


@pytest.mark.parametrize(
    ("options", "session", "named"),
    [
        ({"image_size": 32}, {}, "--image-size .* 64 .*32"),
        ({"radius": 0}, {}, "--radius .* 1 .* 0"),
        ({"temperature": 0.0}, {}, r"--temperature .* 0\.0"),
        ({"top_k": 10**20}, {}, "--top-k .* 1,000,000.* 10000"),
        ({"masks": "m", "out": "o"}, {}, "--masks .*--out"),
        ({"masks": "m"}, {"weights": "w"}, "--masks .*--weights"),
        ({}, {"bad_images": "skip"}, "--bad-images skip"),
        ({}, {"transform": "dino:256/224"}, "--image-size"),
    ],
)
def test_run_rejects_invalid_options(backbone, root, options, session, named):
    with pytest.raises(ConfigError, match=named):
        dinoeval.evaluate("davis", backbone, session=SessionConfig(**session), data=str(root), **{**OPTIONS, **options})
