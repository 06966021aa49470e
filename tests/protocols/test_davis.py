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
from dinoeval.cli import main
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
    """With the paper's options, because masks that are only scored have no others."""
    return dinoeval.evaluate("davis", backbone, data=str(root), **options)


def slow_scores(out: Path) -> list[tuple[float, float]]:
    """J and F of each object, from the definition: mean over the frames but the first and the last."""
    scores = []
    for name, video in VIDEOS.items():
        for label in range(1, int(video[0][1].max()) + 1):
            pairs = [(mask == label, read_mask(out / name / f"{number:05d}.png") == label) for number, (_, mask) in enumerate(video)][1:-1]
            overlaps = [(truth & mask).sum() / (truth | mask).sum() if (truth | mask).any() else 1.0 for truth, mask in pairs]
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


def test_masks_are_indexed_files_and_the_first_is_the_annotation(backbone, root, tmp_path):
    evaluate(backbone, root, out=str(tmp_path / "out"))
    names = {path.name for path in (tmp_path / "out/dog").iterdir()}
    assert names == {RECORD, *(f"{number:05d}.png" for number in range(4))}
    with Image.open(tmp_path / "out/dog/00003.png") as mask:
        assert (mask.mode, mask.size) == ("P", (64, 128))
    assert (read_mask(tmp_path / "out/cat/00000.png") == VIDEOS["cat"][0][1]).all()


def masks_elsewhere(folder: Path) -> Path:
    """The annotations of all scored frames as masks; those of the first and the last frame are not needed."""
    for name, video in VIDEOS.items():
        (folder / name).mkdir(parents=True)
        for number, (_, mask) in enumerate(video[1:-1], 1):
            write_mask(folder / name / f"{number:05d}.png", mask)
    return folder


def test_masks_made_elsewhere(root, tmp_path, backbone):
    masks = masks_elsewhere(tmp_path / "masks")
    result = score(backbone, root, masks=str(masks))
    assert (result.metrics["J"], result.metrics["F"], result.metrics["J_decay"]) == (100, 100, 0)
    assert (result.backbone["arch"], result.transform) == ("none", "none")
    assert "config.masks: yes" in reasons(result)
    assert "vit" not in json.dumps(result.backbone)
    assert result.config["radius"] is None, "nothing is told of how masks were made"
    with pytest.raises(ConfigError, match="leave out --radius"):
        score(backbone, root, masks=str(masks), radius=3)
    for number in (1, 2, 3):  # cat's second object is nowhere
        mask = VIDEOS["cat"][number][1]
        write_mask(masks / f"cat/{number:05d}.png", np.where(mask == 2, 0, mask).astype(np.uint8))
    result = score(backbone, root, masks=str(masks), overlay=str(tmp_path / "drawn"))
    assert result.samples["J"] == pytest.approx([1, 0, 1])
    assert result.metrics["J&F"] == pytest.approx(200 / 3)
    assert (tmp_path / "drawn/cat_overlay.gif").exists()


def test_masks_that_do_not_fit(root, tmp_path, backbone):
    masks = masks_elsewhere(tmp_path / "masks")
    good = VIDEOS["cat"][2][1]
    for bad, says in (
        (np.where(good == 2, 3, good), "has an object 3.*2 objects"),
        (good[:-1], "128 x 63 pixels"),
        (np.full_like(good, 255), "255"),
    ):
        write_mask(masks / "cat/00002.png", bad.astype(np.uint8))
        with pytest.raises(DataError, match=rf"00002\.png.*{says}"):
            score(backbone, root, masks=str(masks))
    (masks / "cat/00002.png").unlink()
    with pytest.raises(DataError, match=r"00002\.png cannot be read: No such file"):
        score(backbone, root, masks=str(masks))
    shutil.rmtree(masks / "cat")
    with pytest.raises(DataError, match="no folder cat"):
        score(backbone, root, masks=str(masks))


def test_void_of_the_truth_is_background(root, tmp_path, backbone):
    masks = masks_elsewhere(tmp_path / "masks")
    truth = VIDEOS["dog"][1][1].copy()
    half = (truth == 1).cumsum() <= (truth == 1).sum() // 2
    truth[half.reshape(truth.shape) & (truth == 1)] = 255
    write_mask(root / "Annotations/480p/dog/00001.png", truth)
    result = score(backbone, root, masks=str(masks))
    share = (truth == 1).sum() / (VIDEOS["dog"][1][1] == 1).sum()
    assert result.samples["J"][2] == pytest.approx((share + 1) / 2)


def test_what_is_finished_is_not_done_again(backbone, root, tmp_path):
    out = tmp_path / "out"
    first = evaluate(backbone, root, out=str(out))
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    shutil.rmtree(out / "dog")
    again = evaluate(backbone, root, out=str(out))
    assert (again.metrics, again.samples) == (first.metrics, first.samples)
    assert all(path.stat().st_mtime_ns == times[path] for path in (out / "cat").glob("*.png"))
    assert all(path.stat().st_mtime_ns > times[path] for path in (out / "dog").glob("*.png"))
    assert not list(out.glob(".*"))


def test_a_run_without_a_place_of_its_own_lies_beside_the_cache(backbone, root):
    whole = evaluate(backbone, root)
    assert evaluate(backbone, root).metrics == whole.metrics
    [(folder, finished)] = FeatureCache().runs()
    assert finished
    assert sorted(path.name for path in folder.iterdir()) == ["cat", "dog", "finished"]


def test_one_object_has_no_standard_error(backbone, root):
    result = evaluate(backbone, root, sequences=("dog",))
    assert result.metrics
    assert not result.standard_errors


def test_masks_of_another_run_are_refused_and_stay(backbone, root, tmp_path):
    out = tmp_path / "out"
    evaluate(backbone, root, out=str(out))
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    for options, says in (
        ({"radius": 3}, "radius was 4 and is 3"),
        ({"resize_backend": "pil"}, "transform was"),
        ({"edge_cases": "fixed"}, "edge_cases"),
    ):
        with pytest.raises(ConfigError, match=f"cat .*{says}"):
            evaluate(backbone, root, out=str(out), **options)
    synthetic_video(1, seed=8)[0][0].save(root / "JPEGImages/480p/cat/00002.jpg")
    with pytest.raises(ConfigError, match="frames and first mask was"):
        evaluate(backbone, root, out=str(out))
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == before


def test_folders_that_are_no_runs_are_refused(backbone, root, tmp_path):
    out = tmp_path / "out"
    (out / "dog").mkdir(parents=True)
    (out / "dog/00000.png").write_bytes(b"mine")
    with pytest.raises(ConfigError, match=f"no {RECORD}.*another --out"):
        evaluate(backbone, root, out=str(out))
    assert (out / "dog/00000.png").read_bytes() == b"mine"
    shutil.rmtree(out)
    evaluate(backbone, root, out=str(out))
    write_mask(out / "dog/00002.png", np.zeros((128, 64), np.uint8))
    with pytest.raises(ConfigError, match=r"00002\.png was changed"):
        evaluate(backbone, root, out=str(out))


def test_a_killed_run_goes_on_to_the_same_numbers(tiny_weights, backbone, root, tmp_path, caplog):
    """A real process, killed between two sequences."""
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
    undisturbed = evaluate(backbone, root, out=str(tmp_path / "undisturbed"))
    with caplog.at_level("INFO"):
        resumed = evaluate(backbone, root, out=str(tmp_path / "killed"))
    assert "cat: its 5 masks were made by an earlier run" in caplog.text
    for part in ("metrics", "samples", "table", "standard_errors"):
        assert getattr(resumed, part) == getattr(undisturbed, part)
    for path in (tmp_path / "undisturbed").rglob("*.png"):
        assert path.read_bytes() == (tmp_path / "killed" / path.relative_to(tmp_path / "undisturbed")).read_bytes()


def test_two_processes_share_the_sequences(tiny_weights, root, tmp_path, backbone):
    words = [
        "davis",
        "--data",
        str(root),
        "--weights",
        str(tiny_weights),
        *WORDS,
        "--out",
        str(tmp_path / "out"),
        "--json",
        str(tmp_path / "r.json"),
    ]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "dinoeval"]
    subprocess.run([*launcher, *words], check=True, capture_output=True)
    two, one = json.loads((tmp_path / "r.json").read_text()), evaluate(backbone, root)
    assert (two["metrics"], two["samples"]) == (one.metrics, one.samples)


def test_what_keeps_it_from_being_the_papers(backbone, root):
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


def test_the_papers_numbers_stand_beside_a_set_of_its_counts(tmp_path, monkeypatch):
    """30 sequences with 61 objects, of few tokens and frames each, under the name of a released network."""
    videos = {f"video{number:02d}": synthetic_video(3, (64, 64), objects=2 + (number == 0), seed=number) for number in range(30)}
    root = davis_tree(tmp_path / "DAVIS", videos)
    network = VisionTransformer(parse_architecture("vit_xs64_64"))
    named = Backbone(network, arch="vit_xs64_64", provenance=Provenance("vit_s16", "made up"), device=torch.device("cpu"))
    result = score(named, root)
    assert reasons(result) == "details.frames: 90 (Table 5 requires 1,999)"
    whole = dataclasses.replace(result, details={**result.details, "frames": 1_999})  # as if the sequences were as long
    assert [(one.metric, one.value) for one in comparable(whole).rows] == [("J&F", 61.8), ("J", 60.2), ("F", 63.4)]
    assert len(result.samples["J"]) == 61


def test_first_masks_alone_are_propagated_and_not_scored(tiny_weights, tmp_path, capsys):
    root = davis_tree(tmp_path / "DAVIS", VIDEOS, first_only=True)
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "davis",
                "--data",
                str(root),
                "--weights",
                str(tiny_weights),
                *WORDS,
                "--out",
                str(tmp_path / "out"),
                "--json",
                str(tmp_path / "r.json"),
            ]
        )
    assert ended.value.code == 0
    assert "only first frames have annotations" in capsys.readouterr().out
    assert len(list((tmp_path / "out").rglob("*.png"))) == 9
    result = dinoeval.Result.load(tmp_path / "r.json")
    assert result.metrics == {}
    assert result.samples == {"path": []}
    with pytest.raises(DataError, match="cannot be scored"):
        dinoeval.evaluate("davis", dinoeval.load(weights=tiny_weights), data=str(root), masks=str(tmp_path / "out"))


def test_a_tree_of_2016(backbone, tmp_path):
    root = davis_tree(tmp_path / "DAVIS", VIDEOS, year=2016)
    result = evaluate(backbone, root)
    assert result.samples["path"] == ["cat/1", "dog/1"]
    assert [row["sequence"] for row in result.table] == ["cat", "dog"]
    assert result.metrics["J"] > 40


def test_failures_and_short_sequences_are_told(backbone, tmp_path):
    speck = VIDEOS["cat"][0][1].copy()
    speck[1, 1] = 3
    cat = [(VIDEOS["cat"][0][0], speck), *VIDEOS["cat"][1:]]
    root = davis_tree(tmp_path / "DAVIS", {"cat": cat, "brief": synthetic_video(2, objects=1)})
    result = evaluate(backbone, root)
    assert result.table[0]["lost"] == "3"
    assert any("no token has" in note and "cat 3" in note for note in result.notes)
    assert any("fewer than 3 frames" in note and "brief" in note for note in result.notes)
    assert result.samples["J"][3] is None
    assert result.metrics["J"] == pytest.approx(100 * np.mean(result.samples["J"][:3]))
    assert result.samples["J"][2] == 1  # nowhere in the truth of later frames, nor in the masks
    fixed = evaluate(backbone, root, edge_cases="fixed")
    assert fixed.samples["J"][2] == 0
    result.save(tmp_path / "r.json")
    assert dinoeval.Result.load(tmp_path / "r.json").metrics == result.metrics


def test_pictures_of_masks_over_frames(backbone, root, tmp_path):
    evaluate(backbone, root, overlay=str(tmp_path / "drawn"))
    for name, frames in (("cat", 5), ("dog", 4)):
        with Image.open(tmp_path / f"drawn/{name}_overlay.gif") as film, Image.open(tmp_path / f"drawn/{name}_overlay.png") as sheet:
            assert film.n_frames == frames
            assert sheet.format == "PNG"


@pytest.mark.parametrize(
    ("options", "session", "says"),
    [
        ({"image_size": 32}, {}, "at least 64"),
        ({"radius": 0}, {}, "--radius must be from 1 to"),
        ({"temperature": 0.0}, {}, "above 0"),
        ({"top_k": 10**20}, {}, "--top-k must be from 1 to"),
        ({"masks": "m", "out": "o"}, {}, "leave out --out"),
        ({"masks": "m"}, {"weights": "w"}, "leave out --out, --arch and --weights"),
        ({}, {"bad_images": "skip"}, "--bad-images skip"),
        ({}, {"transform": "dino:256/224"}, "--image-size"),
    ],
)
def test_options_that_make_no_sense(backbone, root, options, session, says):
    with pytest.raises(ConfigError, match=says):
        dinoeval.evaluate("davis", backbone, session=SessionConfig(**session), data=str(root), **{**OPTIONS, **options})


def propagate(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["propagate", *words])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_a_video_of_ones_own(tiny_weights, root, tmp_path, backbone, capsys):
    frames, mask = root / "JPEGImages/480p/cat", root / "Annotations/480p/cat/00000.png"
    words = [str(frames), str(mask), "--out", str(tmp_path / "own"), "--weights", str(tiny_weights), *WORDS]
    assert propagate(*words, "--overlay", str(tmp_path / "drawn")) == 0
    assert "5 masks of 2 objects" in capsys.readouterr().out
    assert (tmp_path / "drawn/cat_overlay.gif").exists()
    evaluate(backbone, root, out=str(tmp_path / "out"))
    for path in (tmp_path / "out/cat").glob("*.png"):
        assert path.read_bytes() == (tmp_path / "own" / path.name).read_bytes()
    assert propagate(*words) == 0
    assert "already has all 5 masks" in capsys.readouterr().out
    assert propagate(*words, "--top-k", "3") == 2
    assert "top_k was 5 and is 3" in capsys.readouterr().err


def test_an_animated_picture_of_ones_own(tiny_weights, tmp_path, capsys):
    video = VIDEOS["dog"]
    pictures = [picture for picture, _ in video]
    pictures[0].save(tmp_path / "film.gif", save_all=True, append_images=pictures[1:])
    Image.fromarray(video[0][1] * np.uint8(255)).save(tmp_path / "mask.png")
    words = [str(tmp_path / "film.gif"), str(tmp_path / "mask.png"), "--weights", str(tiny_weights), *WORDS]
    assert propagate(*words, "--out", str(tmp_path / "out")) == 0
    last = read_mask(tmp_path / "out/00003.png")
    assert (last == video[-1][1]).mean() > 0.7
    Image.new("L", (64, 128)).save(tmp_path / "mask.png")
    assert propagate(*words, "--out", str(tmp_path / "other")) == 2
    assert "no object" in capsys.readouterr().err
    Image.new("L", (128, 128), 255).save(tmp_path / "mask.png")
    assert propagate(*words, "--out", str(tmp_path / "other")) == 2
    assert "the first mask has 128 x 128" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    assert not list(tmp_path.glob(".*"))


def test_pictures_do_not_take_the_place_of_what_they_show(tiny_weights, root, tmp_path, capsys):
    mask = tmp_path / "cat_overlay.png"
    shutil.copy(root / "Annotations/480p/cat/00000.png", mask)
    before = mask.read_bytes()
    words = [str(root / "JPEGImages/480p/cat"), str(mask), "--out", str(tmp_path / "own"), "--weights", str(tiny_weights), *WORDS]
    assert propagate(*words, "--overlay", str(tmp_path)) == 2
    assert "would overwrite" in capsys.readouterr().err
    assert mask.read_bytes() == before
    shutil.copy(mask, root / "JPEGImages/480p/cat/first.png")
    words[1] = str(root / "JPEGImages/480p/cat/first.png")
    assert propagate(*words) == 2
    assert "first.png is in the folder of the frames" in capsys.readouterr().err


def test_void_in_a_grey_truth_is_no_object(tmp_path, backbone):
    """What 255 means is decided by the first mask, not file by file."""
    video = synthetic_video(4, (64, 128), objects=1, seed=3)
    root = davis_tree(tmp_path / "DAVIS", {"one": video})
    for number, (_, mask) in enumerate(video):
        Image.fromarray(mask if number == 0 else np.where(mask == 1, 255, 0).astype(np.uint8)).save(
            root / f"Annotations/480p/one/{number:05d}.png"
        )
        (tmp_path / "masks/one").mkdir(parents=True, exist_ok=True)
        write_mask(tmp_path / f"masks/one/{number:05d}.png", np.zeros_like(mask))
    result = score(backbone, root, masks=str(tmp_path / "masks"))
    assert (result.metrics["J"], result.metrics["F"]) == (100, 100), "all is void, so nothing is to be found"
