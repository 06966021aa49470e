"""The example package: installed as its README says, it runs without changes to dinoeval."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "examples/own_protocol"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Install the example to a temporary folder, and return a function that runs Python with it."""
    folder = tmp_path_factory.mktemp("example")
    shutil.copytree(SOURCE, folder / "source", ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--target", folder / "site"]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, folder / "source"], check=True)
    path = os.pathsep.join(filter(None, [str(folder / "site"), str(ROOT), os.environ.get("PYTHONPATH", "")]))

    def call(*words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *map(str, words)]
        return subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)

    return call


@pytest.mark.slow
def test_example_commands_of_the_readme_work(run, tmp_path):
    result = tmp_path / "r.json"
    shown = run("-m", "dinoeval", "texture", "--help")
    assert (shown.returncode, "--k INT" in shown.stdout) == (0, True), shown.stderr
    scored = run("-m", "dinoeval", "texture", "--data", "digits", "--json", result)
    assert scored.returncode == 0, scored.stderr
    assert "texture@1 on digits" in scored.stdout
    compared = run("-m", "dinoeval", "check", result, "--against", result)
    assert (compared.returncode, "top1" in compared.stdout) == (0, True), compared.stdout
    content = json.loads(result.read_text())
    assert (content["protocol"], content["version"], len(content["samples"]["top1"])) == ("texture", 1, 449)


@pytest.mark.slow
def test_example_has_its_own_paper_rows(run, tmp_path):
    result = tmp_path / "r.json"
    assert run("-m", "dinoeval", "texture", "--json", result).returncode == 0
    compared = run("-m", "dinoeval", "check", result)
    assert (compared.returncode, "README of dinoeval-texture" in compared.stdout) == (0, True), compared.stdout


@pytest.mark.slow
def test_example_is_complete_and_listed_in_the_help(run):
    code = "import dinoeval_texture; from dinoeval.testing import check_protocol; print(check_protocol(dinoeval_texture))"
    assert run("-c", code).stdout == "[]\n"
    assert any(line.split()[:1] == ["texture"] for line in run("-m", "dinoeval", "--help").stdout.splitlines())


def test_example_readme_lists_the_commands_that_are_tested():
    text = (SOURCE / "README.md").read_text()
    for command in ("texture --help", "texture --data digits --json r.json", "check r.json --against r.json"):
        assert f"dinoeval {command}\n" in text
