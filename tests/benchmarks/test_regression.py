"""The regression record: the cheapest areas still have the recorded values, and the script finds what changed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
RECORD = BENCHMARKS / "results/regression.json"
VALUE = "inputs/tinted_picture"

pytestmark = pytest.mark.slow


def run(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(BENCHMARKS / "regression.py"), *map(str, words)], capture_output=True, text=True)


@pytest.fixture(scope="module")
def record(tmp_path_factory) -> dict:
    path = tmp_path_factory.mktemp("record") / "record.json"
    done = run("--only", "inputs", "--out", path)
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text())


def test_tiny_areas_have_the_recorded_values():
    """On another processor or with other libraries the script measures, but does not compare: exit code 2."""
    done = run("--tiny", "--against", RECORD)
    assert done.returncode in (0, 2), done.stdout + done.stderr
    assert ("\n0 differences" if done.returncode == 0 else "not compared") in done.stdout


def test_changed_missing_and_new_values_are_printed(record, tmp_path):
    values = dict(record["values"])
    values[VALUE] = {**values[VALUE], "sha256": "0" * 16}
    del values["inputs/boxes"]
    values["inputs/gone"] = 7
    (tmp_path / "record.json").write_text(json.dumps({**record, "values": values}))
    done = run("--only", "inputs", "--against", tmp_path / "record.json")
    assert done.returncode == 1, done.stderr
    assert "3 differences" in done.stdout
    for line in (f"{VALUE}: was 20x24x3 uint8 0000000000000000", "inputs/boxes: was missing", "inputs/gone: was 7, is missing"):
        assert line in done.stdout


def test_record_of_other_libraries_is_not_compared(record, tmp_path):
    machine = {**record["machine"], "numpy": "1.0"}
    (tmp_path / "record.json").write_text(json.dumps({**record, "machine": machine}))
    done = run("--only", "inputs", "--against", tmp_path / "record.json")
    assert done.returncode == 2, done.stderr
    assert "numpy: was 1.0" in done.stdout
