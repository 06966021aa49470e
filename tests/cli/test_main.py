"""The command line as a user meets it: exit codes, help, one paragraph per error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dinoeval.cli.commands import MAX_SUMMARY, PROTOCOL, all_commands
from dinoeval.testing import TINY_ARCH, tiny_image_folder


def run(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dinoeval", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


def test_help_lists_all_commands_without_importing_torch():
    code = "import sys, dinoeval.cli\ntry:\n dinoeval.cli.main(['--help'])\nfinally: assert not {'torch', 'tyro'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    for command in all_commands().values():
        assert any(line.split("  ")[1:2] == [command.name] and line.endswith(command.summary) for line in lines), command.name


@pytest.mark.parametrize("words", [(), ("-h",), ("help",), ("--help",)])
def test_help_is_printed_without_a_command(call, words):
    code, out, _ = call(*words)
    assert (code, "usage: dinoeval COMMAND" in out) == (0, True)


@pytest.mark.parametrize("name", [command.name for command in all_commands().values()])
def test_summary_fits_in_a_line_and_starts_lower_case(name):
    command = all_commands()[name]
    assert 10 <= len(command.summary) <= MAX_SUMMARY
    if command.group != "Protocols of other packages":
        assert command.summary[0].islower()
        assert not command.summary.endswith(".")


def test_table_lists_every_built_in_protocol():
    from dinoeval import protocols

    listed = [name for name, command in all_commands().items() if command.target == PROTOCOL and command.group == "Evaluate"]
    assert sorted(listed) == protocols.builtin_names()


@pytest.mark.parametrize(
    ("group", "members"), [("search", ["build", "query", "duplicates"]), ("cache", ["list", "verify", "prune", "path"])]
)
def test_group_prints_its_commands(call, group, members):
    for words in ((group,), (group, "--help"), (group, "-h")):
        code, out, _ = call(*words)
        assert code == 0
        assert [line.split()[2] for line in out.splitlines() if line.startswith("  dinoeval")] == members


def test_models_help_names_its_subcommands(call):
    code, out, _ = call("models", "--help")
    assert code == 0
    assert "models fetch" in out
    assert "models convert" in out


def test_version_is_printed(call):
    import dinoeval

    assert call("--version") == (0, f"{dinoeval.__version__}\n", "")


def test_presets_of_training_are_listed(call, tmp_path):
    code, out, _ = call("train", "--list-presets", "--json", tmp_path / "presets.json")
    assert code == 0
    assert "table7-row3\n    dino-300ep: --target sinkhorn\n    published: knn 72.2, linear 76.0\n" in out
    found = {one["id"]: one for one in json.loads((tmp_path / "presets.json").read_text())}
    assert found["table13-rn50-dino"]["arch"] == "resnet50"
    assert found["table7-row3"]["recipe"]["local_crops"] == 10
    assert "chosen: 3 Sinkhorn iterations" in out


@pytest.mark.slow
def test_preset_on_a_small_base_trains_and_states_its_changes(tmp_path):
    options = ("--epochs", 2, "--warmup-epochs", 0, "--knn-every", 0, "--workers", 0, "--batch-size", 256, "--out", tmp_path)
    done = run("train", "--data", "digits", "--preset", "table7-row3", "--base", "digits", *options)
    assert done.returncode == 0, done.stderr
    words = " ".join(done.stderr.split())
    assert "table7-row3 on digits with other values: --epochs 2 instead of 300; --batch-size 256 instead of 64; --warmup-epochs 0" in words
    assert "not published, chosen: 3 Sinkhorn iterations" in words
    assert "72.2" not in words
    state = torch.load(tmp_path / "checkpoint.pth", weights_only=True)
    assert (state["args"]["arch"], state["args"]["recipe"]["target"]) == ("vit_xs8_16", "sinkhorn")


@pytest.mark.slow
def test_demonstration_runs_without_options():
    """The first command of the README: the bundled checkpoint on the digits."""
    done = run("knn")
    assert done.returncode == 0, done.stderr
    top1 = float(next(line for line in done.stdout.splitlines() if line.strip().startswith("20")).split()[1])
    assert top1 > 90
    assert "demonstration" in done.stdout
    assert "no published score" in done.stdout


USER_ERRORS = {
    "misspelled preset": (
        "train --data digits --preset table7-row33 --out {tmp}/run",
        ["table7-row33", "Similar: table7-row3", "--list-presets"],
    ),
    "misspelled base": ("train --data digits --preset table7-row3 --base digit --out {tmp}/run", ["digit", "cifar10, digits"]),
    "parts that do not fit": (
        "train --data digits --preset byol --target sinkhorn --out {tmp}/run",
        ["--objective mse", "--target center or none"],
    ),
    "unknown command": ("knm", ["knm", "knn"]),
    "unknown command of a group": ("search bild", ["search bild", "search build"]),
    "unknown architecture": ("knn --arch vit_s9x", ["vit_s9x"]),
    "weights not downloaded": ("knn --arch vit_s8", ["https://dl.fbaipublicfiles.com/dino/", "{weights_folder}"]),
    "fetch while offline": ("models fetch resnet50", ["DINOEVAL_OFFLINE", "dino_resnet50_pretrain.pth"]),
    "too many neighbors": ("knn {good} --k 30", ["30", "24"]),
    "output folder missing": ("knn {good} --json {tmp}/no/r.json", ["{tmp}/no/r.json"]),
    "output is a folder": ("knn {good} --json {tmp}", ["{tmp}", "folder"]),
    "device missing": ("knn {good} --device cuda:7", ["cuda:7"]),
    "device without data": ("knn {good} --device meta", ["meta"]),
    "data missing": ("knn {weights} --data {tmp}/nowhere", ["{tmp}/nowhere"]),
    "embed to a wrong suffix": ("embed {data} --out {tmp}/x.txt", ["{tmp}/x.txt", ".npz", ".npy"]),
    "unknown readout": ("embed {data} --out {tmp}/x.npy --readout mean", ["mean", "clsavg"]),
    "too many blocks": ("embed {data} {weights} --readout last9 --out {tmp}/x.npy", ["9", "4"]),
    "table missing": ("embed {tmp}/none.csv --out {tmp}/x.npy", ["none.csv"]),
    "empty image name": ("embed  --out {tmp}/x.npy", ["''"]),
    "Result missing": ("check {tmp}/none.json", ["none.json"]),
    "batch size zero": ("knn {good} --batch-size 0", ["--batch-size", "0"]),
    "workers negative": ("knn {good} --workers -1", ["--workers", "-1"]),
    "temperature infinite": ("knn {good} --temperature inf", ["temperature", "inf"]),
    "convert random weights": ("models convert random {tmp}/x.safetensors --arch {arch}", ["untrained"]),
    "convert to a missing folder": ("models convert {file} {tmp}/missing/x.safetensors", ["{tmp}/missing/x.safetensors"]),
    "convert to a wrong suffix": ("models convert {file} {tmp}/x.pth", ["{tmp}/x.pth", ".safetensors"]),
}


def assert_one_paragraph(done: tuple[int, str, str], *fragments: str) -> None:
    code, _, err = done
    message = next(line for line in err.splitlines() if line.startswith("dinoeval: "))
    assert code == 2
    assert "Traceback" not in err
    assert err.rstrip().endswith(message)
    for fragment in fragments:
        assert fragment in message


@pytest.mark.parametrize("case", USER_ERRORS)
def test_user_error_prints_one_paragraph(call, tiny_weights, image_folder, tmp_path, case):
    command, fragments = USER_ERRORS[case]
    values = {
        "tmp": tmp_path,
        "data": image_folder,
        "file": tiny_weights,
        "arch": TINY_ARCH,
        "weights_folder": os.environ["DINOEVAL_WEIGHTS"],
        "weights": f"--weights {tiny_weights}",
        "good": f"--weights {tiny_weights} --data {image_folder}",
    }
    words = command.format(**values).split(" ")
    assert_one_paragraph(call(*words), *(fragment.format(**values) for fragment in fragments))


def test_unreadable_image_error_names_image_and_option(call, tiny_weights, tmp_path):
    data = tiny_image_folder(tmp_path / "data")
    (data / "train/class1/z.jpg").write_text("text")
    assert_one_paragraph(call("knn", "--weights", tiny_weights, "--data", data), "1 of 25", "class1/z.jpg", "--bad-images skip")


def test_misspelled_option_suggests_the_nearest(call):
    code, out, err = call("knn", "--temprature", "0.1")
    assert code == 2
    assert "--temperature" in out + err


def test_interrupt_message_mentions_resume_if_supported(call, tiny_weights, image_folder, tmp_path, monkeypatch):
    def interrupt(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("PIL.Image.Image.convert", interrupt)
    image = next((image_folder / "val/class1").iterdir())
    code, _, err = call("embed", image, "--weights", tiny_weights, "--out", tmp_path / "f.npy")
    last = err.splitlines()[-1]
    assert (code, last.endswith("Progress is saved. Rerun the same command to resume.")) == (130, True)
    for command in ("attention", "pca"):
        code, _, err = call(command, image, "--weights", tiny_weights, "--out", tmp_path / "out")
        assert (code, err.splitlines()[-1]) == (130, "dinoeval: interrupted.")


@pytest.mark.slow
def test_closed_pipe_is_not_an_error():
    command = f"{sys.executable} -m dinoeval models | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


def test_json_output_follows_symbolic_links(call, tiny_weights, image_folder, tmp_path):
    (tmp_path / "real.json").write_text("old")
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    assert call("knn", "--weights", tiny_weights, "--data", image_folder, "--json", tmp_path / "link.json")[0] == 0
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads((tmp_path / "real.json").read_text())["protocol"] == "knn"


def test_json_output_leaves_devices_in_place(call, tiny_weights, image_folder):
    before = Path("/dev/null").stat()
    assert call("knn", "--weights", tiny_weights, "--data", image_folder, "--json", "/dev/null")[0] == 0
    assert Path("/dev/null").stat().st_mode == before.st_mode
