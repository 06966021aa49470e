"""Every script of benchmarks/ runs at tiny size and writes its record. Tests of the released code need DINOEVAL_RELEASED."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS: dict[str, tuple[list[str], set[str]]] = {
    "davis": ([], {"frames", "rows"}),
    "duplicates": ([], {"network", "digest", "copied", "datasets"}),
    "parity": ([], {"released", "torch", "networks", "training"}),
    "parity_attention": ([], {"images", "mass", "rows", "sharp"}),
    "parity_classification": ([], {"networks", "linear", "timm"}),
    "parity_davis": ([], {"runs"}),
    "parity_knn": ([], {"images", "seconds", "rows"}),
    "parity_logistic": ([], {"network", "dims", "rows", "max_difference", "agree"}),
    "parity_pretraining": ([], {"versions", "rows"}),
    "parity_retrieval": ([], {"random_rankings", "descriptors", "copy_detection", "datasets"}),
    "parity_segmentation": ([], {"largest_differences"}),
    "reliability": ([], {"runs", "bit_identical", "resumed", "rows_when_killed"}),
    "reliability_inputs": ([], {"inputs", "kinds", "areas", "faults"}),
    "reliability_search": ([], {"runs", "equal_to_uninterrupted", "on_disk_when_killed"}),
    "reliability_training": ([], {"runs", "linear", "finetune"}),
    "segment": ([], {"images", "sequences", "frame_step", "whole_image_mask", "rows"}),
    "speed/extraction": ([], {"problem", "images_per_second", "smallest_cosine_bf16_fp32", "rates"}),
    "speed/knn": ([], {"problem", "seconds", "speedup", "mac_limit_seconds", "scores", "runs"}),
    "speed/linear": ([], {"problem", "median_seconds", "seconds", "sweep_over_1_rate"}),
    "speed/logistic": ([], {"problem", "median_seconds", "objective", "duality_gap", "top1", "runs"}),
    "speed/propagation": ([], {"problem", "medians", "macs_within_radius", "runs"}),
    "speed/retrieval": ([], {"batches", "distractors", "datasets"}),
    "speed/search": (["--kinds", "exact", "ivf"], {"vectors"}),
    "speed/startup": ([], {"--help", "knn"}),
}
"""Options besides --tiny, and the keys of the record, by script."""
NOT_RUN = {
    "inputs",
    "measurement",
    "mutations",
    "regression",
    "released",
    "scoreboard",
    "scoreboard_patches",
    "scoreboard_speed",
    "synthetic_datasets",
}
"""Files of benchmarks/ that are no script with a record, or that have tests of their own."""


def run_script(name: str, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / f"benchmarks/{name}.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL)


def run_tiny(name: str, out: Path, *words: object) -> dict[str, Any]:
    done = run_script(name, *words, "--tiny", "--out", out)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the scripts link files")
@pytest.mark.parametrize("name", SCRIPTS)
def test_script_writes_record_at_tiny_size(tmp_path, name):
    options, keys = SCRIPTS[name]
    record = run_tiny(name, tmp_path / "record.json", *options)
    assert keys | {"command", "machine", "tiny"} <= record.keys()
    assert f"benchmarks/{name}.py" in record["command"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited by RLIMIT_AS and measured by /proc")
def test_every_fault_of_a_reader_is_counted(tmp_path):
    options = ["--only", "faults", "--inputs", "40", "--seconds", "3"]
    done = run_script("reliability_inputs", *options, "--tiny", "--out", tmp_path / "record.json")
    record = json.loads((tmp_path / "record.json").read_text())
    assert done.returncode == 1
    assert all(record[fault] for fault in ("traceback", "different", "hang", "crash", "executed", "reached")), record["areas"]


def test_every_script_has_a_test():
    folder = ROOT / "benchmarks"
    files = {path.relative_to(folder).with_suffix("").as_posix() for path in [*folder.glob("*.py"), *folder.glob("speed/*.py")]}
    assert files == SCRIPTS.keys() | NOT_RUN


def test_scoreboard_writes_the_committed_page(tmp_path):
    done = run_script("scoreboard", "--out", tmp_path / "README.md")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "README.md").read_text() == (ROOT / "benchmarks/README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("words", "mentioned"), [((), "DATA"), (("--tiny",), "--out")])
def test_missing_argument_is_named(words, mentioned):
    done = run_script("parity_knn", *words)
    assert done.returncode == 2
    assert mentioned in done.stderr


def check_parity(record: dict[str, Any]) -> None:
    assert record["networks"][0]["cls"] < 1e-5
    assert record["training"]["relative_loss"] < 1e-4


def check_attention(record: dict[str, Any]) -> None:
    assert all(row["all_rows"] < 1e-5 and row["differing_mask_patches"] == 0 for row in record["rows"])


def check_classification(record: dict[str, Any]) -> None:
    assert all(row["relative_loss"] < 1e-5 for row in record["linear"][:2])
    assert all(row["dinoeval"]["top1"] == pytest.approx(row["released"]["top1"]) for row in record["linear"])


def check_davis(record: dict[str, Any]) -> None:
    assert record["runs"][0]["opencv"]["min_iou"] == 1


def check_knn(record: dict[str, Any]) -> None:
    assert all(row["top1"]["dinoeval"] == pytest.approx(row["top1"]["released"]) for row in record["rows"])


def check_retrieval(record: dict[str, Any]) -> None:
    assert record["random_rankings"]["released"] < 1e-12
    assert max(record["descriptors"].values()) < 1e-5
    assert max(record["copy_detection"].values()) < 1e-6


def check_speed(record: dict[str, Any]) -> None:
    assert "released" in record["runs"]


def check_extraction(record: dict[str, Any]) -> None:
    assert record["difference_to_released"] < 1e-5


RELEASED: dict[str, Callable[[dict[str, Any]], None]] = {
    "parity": check_parity,
    "parity_attention": check_attention,
    "parity_classification": check_classification,
    "parity_davis": check_davis,
    "parity_knn": check_knn,
    "parity_retrieval": check_retrieval,
    "speed/extraction": check_extraction,
    "speed/knn": check_speed,
    "speed/propagation": check_speed,
}
NEEDS_OPENCV = {"parity_davis", "speed/propagation"}


@pytest.mark.slow
@pytest.mark.parametrize("name", RELEASED)
def test_script_agrees_with_released_code(tmp_path, name):
    checkout = os.environ.get("DINOEVAL_RELEASED")
    if not checkout:
        pytest.skip("DINOEVAL_RELEASED is not set: a checkout of facebookresearch/dino")
    if name in NEEDS_OPENCV:
        pytest.importorskip("cv2", reason="opencv-python-headless is not installed")
    RELEASED[name](run_tiny(name, tmp_path / "record.json", checkout))


@pytest.mark.slow
def test_parts_of_pretraining_agree_with_public_code(tmp_path):
    checkouts = os.environ.get("DINOEVAL_CHECKOUTS")
    if not checkouts:
        pytest.skip("DINOEVAL_CHECKOUTS is not set: a folder with checkouts of dino, swav, dinov2, moco and byol-pytorch")
    record = run_tiny("parity_pretraining", tmp_path / "record.json", checkouts)
    assert {row["of"] for row in record["rows"]} >= {"swav", "dinov2", "moco", "dino"}
    assert all(row["largest_difference"] < 1e-6 for row in record["rows"])
