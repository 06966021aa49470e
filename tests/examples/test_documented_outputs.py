"""The commands of the documentation print what the documentation shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OUTPUTS = {
    "README.md": "knn",
    "docs/protocols/knn.md": "knn",
    "docs/protocols/linear.md": "linear --epochs 5 --features cached",
    "docs/protocols/logistic.md": "logistic",
    "docs/protocols/finetune.md": "finetune --data digits --epochs 5 --warmup-epochs 1",
    "docs/protocols/retrieval.md": "retrieval --data /data/revisited --image-size 64",
    "docs/protocols/copydays.md": "copydays --data /data/copydays --image-size 32",
    "docs/protocols/davis.md": "davis --data /data/DAVIS --image-size 64",
    "docs/protocols/segment.md": "segment --data /data/VOCdevkit --image-size 64",
    "docs/search.md": "search query /data/videos.index /data/videos/video1/00003.jpg --k 3",
    "docs/comparability.md": "check result.json",
}
"""The command whose output a page shows. `/data` is the folder of benchmarks/synthetic_datasets.py."""
TOLERANCE = 2.5  # other processors and versions round differently, and the digits have 449 images


def same_words(shown: str, printed: str) -> bool:
    """Return whether two lines have the same words, and numbers that are nearly equal."""
    words, others = shown.split(), printed.split()
    return len(words) == len(others) and all(one == other or _near(one, other) for one, other in zip(words, others, strict=True))


def _near(shown: str, printed: str) -> bool:
    try:
        return abs(float(shown.rstrip(",%")) - float(printed.rstrip(",%"))) <= TOLERANCE
    except ValueError:
        return False


def missing_line(shown: Sequence[str], printed: Sequence[str]) -> str | None:
    """Find the first line of a page that a command does not print at its place; `...` stands for any text and lines."""
    rest, skipped = list(printed), True
    for line in shown:
        start, dots, _ = line.partition("...")
        while rest and not (rest[0].startswith(start) if dots else same_words(line, rest[0])):
            if not skipped:
                return line
            rest.pop(0)
        if not rest:
            return line
        skipped = bool(dots)
        rest = rest if line == "..." else rest[1:]
    return None


def test_missing_line_is_found():
    printed = ["title", "  top1  96.88 ± 0.82", "a", "b", "note: long"]
    assert missing_line(["title", "  top1   96.90 ± 0.8", "...", "note: ..."], printed) is None
    assert missing_line(["title", "a"], printed) == "a"
    assert missing_line(["top1  90.00 ± 0.82"], printed) == "top1  90.00 ± 0.82"


def run(folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "dinoeval", *command.replace("/data/", f"{folder}/").split()]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "DINOEVAL_CACHE": str(folder / "cache"), "DINOEVAL_OFFLINE": "1"}
    return subprocess.run(words, capture_output=True, text=True, cwd=folder, env=environment)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("documented")
    subprocess.run([sys.executable, ROOT / "benchmarks/synthetic_datasets.py", folder], check=True)
    for command in ("search build /data/videos --out /data/videos.index", "knn --json result.json"):
        run(folder, command).check_returncode()
    return folder


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the datasets contain links")
@pytest.mark.parametrize("page", OUTPUTS)
def test_command_prints_what_the_page_shows(page, folder):
    if "logistic" in page:
        pytest.importorskip("cyanure")
    done = run(folder, OUTPUTS[page])
    printed = [line for line in done.stdout.replace(str(folder), "/data").splitlines() if not line.startswith("seconds:")]
    blocks = [block.splitlines() for block in re.findall(r"^```text\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)]
    missing = [missing_line([line for line in block if not line.startswith("seconds:")], printed) for block in blocks]
    assert None in missing, (missing, printed, done.stderr)
