"""The command line as a user meets it: real processes, exit codes, one paragraph for each mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from factories import TINY, class_folders, synthetic_images, synthetic_state

from dinoeval.cli import _GO_ON, COMMANDS, main
from dinoeval.models.checkpoints import open_checkpoint, tensor_digest


def run(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dinoeval", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


def call(capsys, *words: object) -> tuple[int, str, str]:
    """The same without a new process."""
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


def test_help_names_every_command_and_needs_no_torch():
    code = "import sys, dinoeval.cli\ntry:\n dinoeval.cli.main(['--help'])\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(command in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(capsys, command):
    code, out, _ = call(capsys, *command.split(), "--help")
    assert (code, "usage: dinoeval" in out) == (0, True)


def test_the_main_job_without_a_flag():
    """The bundled checkpoint on the digits: the README's first command."""
    done = run("knn")
    assert done.returncode == 0, done.stderr
    top1 = float(next(line for line in done.stdout.splitlines() if line.strip().startswith("20")).split()[1])
    assert top1 > 90
    assert "demonstration" in done.stdout
    assert "no published number" in done.stdout


def test_json_and_check(capsys, tiny_weights, image_folder, tmp_path):
    one, other, third = (tmp_path / name for name in ("one.json", "other.json", "third.json"))
    assert call(capsys, "knn", "--weights", tiny_weights, "--data", image_folder, "--json", one)[0] == 0
    assert call(capsys, "knn", "--arch", TINY, "--weights", "random", "--data", image_folder, "--json", other)[0] == 0
    content = json.loads(one.read_text())
    assert set(content["metrics"]) == {"top1@10", "top5@10", "top1@20", "top5@20"}
    assert content["backbone"]["digest"] != json.loads(other.read_text())["backbone"]["digest"]
    code, out, _ = call(capsys, "check", one)
    assert (code, "not comparable: published numbers are of ImageNet-1k" in out) == (2, True)
    assert call(capsys, "check", one, "--against", one)[0] == 0
    content["samples"]["top1@20"] = [0] * 9
    content["metrics"]["top1@20"] = 0.0
    third.write_text(json.dumps(content))
    code, out, _ = call(capsys, "check", one, third, "--against", one)
    assert (code, "worse" in out) == (1, True)


def test_embed_writes_rows_and_paths(capsys, tiny_weights, image_folder, tmp_path):
    out = tmp_path / "f.npz"
    code, _, err = call(capsys, "embed", image_folder / "val", "--weights", tiny_weights, "--out", out, "--readout", "last4")
    assert code == 0, err
    content = np.load(out)
    assert content["features"].shape == (9, 4 * 96)
    assert content["paths"].tolist() == [f"class{label}/{number}.png" for label in range(3) for number in range(3)]
    image = next((image_folder / "val/class1").iterdir())
    assert call(capsys, "embed", image, "--weights", tiny_weights, "--out", tmp_path / "f.npy", "--readout", "patches")[0] == 0
    assert np.load(tmp_path / "f.npy").shape == (1, 4, 4, 96)


def test_cache_commands(capsys, tiny_weights, image_folder, tmp_path):
    call(capsys, "knn", "--weights", tiny_weights, "--data", image_folder)
    root = Path(call(capsys, "cache", "path")[1].strip())
    code, out, _ = call(capsys, "cache", "list")
    assert (code, out.count("vit_xs4_16 cls fp32 dino@1:16/16"), str(root) in out) == (0, 2, True)
    assert call(capsys, "cache", "verify")[0] == 0
    index = next(root.glob("*/features.faiss"))
    index.write_bytes(index.read_bytes()[:-1] + b"!")
    code, out, _ = call(capsys, "cache", "verify")
    assert (code, out.count("damaged: bytes of features.faiss changed"), out.count("whole")) == (1, 1, 1)
    unfinished = f"{'0' * 32}.partial"
    for name in (unfinished, "photos", "film.partial"):  # the latter two are not the cache's
        (root / name).mkdir()
    code, out, _ = call(capsys, "cache", "prune")
    assert out.splitlines() == [f"deleted {unfinished}", f"deleted {index.parent.name}"]
    assert (root / "photos").is_dir()
    assert (root / "film.partial").is_dir()
    assert call(capsys, "cache", "prune", "zzz")[0] == 2
    assert call(capsys, "cache", "prune", "--everything")[0] == 0
    assert "0.0 MB" in call(capsys, "cache", "list")[1]


def test_runs_are_listed_and_deleted_only_when_asked(capsys, tiny_weights, image_folder, tmp_path):
    probe = ("linear", "--weights", tiny_weights, "--data", image_folder, "--epochs", "1", "--train-batch-size", "8", "--readouts", "cls")
    for rate in ("0.1", "1"):
        assert call(capsys, *probe, "--lrs", rate)[0] == 0
    root = Path(call(capsys, "cache", "path")[1].strip())
    stopped, kept = sorted((root / "runs").iterdir())
    for head in stopped.glob("head_*.pth"):  # as a run leaves it that was stopped
        head.unlink()
    (root / "runs/mine").mkdir()
    _, out, _ = call(capsys, "cache", "list")
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert lines[stopped.name].endswith("MB  unfinished run: the same command goes on with it")
    assert lines[kept.name].endswith("MB  finished run")
    assert "mine" not in out
    assert call(capsys, "cache", "prune", "--everything")[0] == 0
    assert kept.is_dir()
    assert call(capsys, "cache", "prune", "--runs")[1] == f"deleted {kept.name}\n"
    assert call(capsys, "cache", "prune", stopped.name[:12])[1] == f"deleted {stopped.name}\n"
    assert [path.name for path in (root / "runs").iterdir()] == ["mine"]


def test_models_lists_and_converts(capsys, tmp_path):
    code, out, _ = call(capsys, "models")
    row = next(line for line in out.splitlines() if line.startswith("vit_s8 "))
    assert (code, row.split()[3:5]) == (0, ["78.3", "79.7"])
    assert "dinoeval models fetch vit_s8" in row
    torch.save({"teacher": {f"backbone.{name}": tensor for name, tensor in synthetic_state(TINY).items()}}, tmp_path / "a.pth")
    code, out, _ = call(capsys, "models", "convert", tmp_path / "a.pth", tmp_path / "a.safetensors", "--arch", TINY)
    assert (code, "prefix backbone." in out) == (0, True)
    assert call(capsys, "embed", next(iter(sorted(tmp_path.iterdir()))), "--out", tmp_path / "x.npy")[0] == 2
    assert call(capsys, "models", "convert", tmp_path / "a.safetensors", tmp_path / "b.safetensors")[0] == 0
    assert open_checkpoint(tmp_path / "b.safetensors").arch == TINY
    assert tensor_digest(open_checkpoint(tmp_path / "b.safetensors").state) == tensor_digest(synthetic_state(TINY))
    assert call(capsys, "models", "convert", tmp_path / "a.pth", tmp_path / "a.pth")[0] == 2


def one_paragraph(done: tuple[int, str, str], *said: str) -> None:
    code, _, err = done
    message = next(line for line in err.splitlines() if line.startswith("dinoeval: "))
    assert code == 2
    assert "Traceback" not in err
    assert err.rstrip().endswith(message)
    for words in said:
        assert words in message


def test_mistakes_are_one_paragraph_each(capsys, tiny_weights, tmp_path):
    pictures = class_folders(tmp_path / "set")
    good = ("--weights", tiny_weights, "--data", pictures)
    one_paragraph(call(capsys, "knm"), "unknown command 'knm'", "Did you mean knn?")
    one_paragraph(call(capsys, "knn", "--arch", "vit_s9x"), "unknown architecture 'vit_s9x'", "Did you mean")
    one_paragraph(call(capsys, "knn", "--arch", "vit_s8"), "https://dl.fbaipublicfiles.com/dino/", str(tmp_path / "weights"))
    one_paragraph(call(capsys, "models", "fetch", "resnet50"), "DINOEVAL_OFFLINE", "dino_resnet50_pretrain.pth")
    one_paragraph(call(capsys, "knn", *good, "--k", 30), "k = 30 is more than the 24 training images")
    one_paragraph(call(capsys, "knn", *good, "--json", tmp_path / "no" / "r.json"), "cannot be written")
    one_paragraph(call(capsys, "knn", *good, "--device", "cuda:7"), "device 'cuda:7' cannot be used")
    one_paragraph(call(capsys, "knn", *good[:2], "--data", tmp_path / "nowhere"), "nowhere")
    one_paragraph(call(capsys, "embed", pictures, "--out", tmp_path / "x.txt"), ".npz or .npy")
    one_paragraph(call(capsys, "embed", pictures, "--out", tmp_path / "x.npy", "--readout", "mean"), "no readout 'mean'")
    one_paragraph(call(capsys, "check", tmp_path / "none.json"), "no Result can be read")
    one_paragraph(call(capsys, "embed", tmp_path / "none.csv", "--out", tmp_path / "x.npy"), "none.csv")
    one_paragraph(call(capsys, "embed", "", "--out", tmp_path / "x.npy"), "''")
    one_paragraph(call(capsys, "embed", pictures, *good[:2], "--readout", "last9", "--out", tmp_path / "x.npy"), "has 4")
    one_paragraph(call(capsys, "knn", *good, "--batch-size", 0), "batch size must be 1 or more")
    one_paragraph(call(capsys, "knn", *good, "--workers", -1), "workers must be 0 or more")
    one_paragraph(call(capsys, "knn", *good, "--device", "meta"), "device 'meta' cannot be used")
    one_paragraph(call(capsys, "knn", *good, "--json", "."), "is a folder")
    one_paragraph(call(capsys, "knn", *good, "--temperature", "inf"), "temperature must be above 0")
    one_paragraph(call(capsys, "models", "convert", "random", tmp_path / "x.safetensors", "--arch", TINY), "untrained")
    one_paragraph(call(capsys, "models", "convert", tiny_weights, "/nonexistent/x.safetensors"), "cannot be written")
    (pictures / "train/class1/z.jpg").write_text("text")
    one_paragraph(call(capsys, "knn", *good), "1 of 25 images", "class1/z.jpg", "--bad-images skip")


def test_outputs_follow_links_and_leave_devices_alone(capsys, tiny_weights, image_folder, tmp_path):
    (tmp_path / "real.json").write_text("old")
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    assert call(capsys, "knn", "--weights", tiny_weights, "--data", image_folder, "--json", tmp_path / "link.json")[0] == 0
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads((tmp_path / "real.json").read_text())["protocol"] == "knn"
    before = Path("/dev/null").stat()
    assert call(capsys, "knn", "--weights", tiny_weights, "--data", image_folder, "--json", "/dev/null")[0] == 0
    assert Path("/dev/null").stat().st_mode == before.st_mode


def test_who_stops_a_command_is_told_whether_it_goes_on_from_there(capsys, tiny_weights, image_folder, tmp_path, monkeypatch):
    def stop(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("PIL.Image.open", stop)
    image = next((image_folder / "val/class1").iterdir())
    code, _, err = call(capsys, "embed", image, "--weights", tiny_weights, "--out", tmp_path / "f.npy")
    assert (code, err.splitlines()[-1].endswith("stopped. What was computed is kept; the same command goes on from there.")) == (130, True)
    for command in ("attention", "pca"):
        code, _, err = call(capsys, command, image, "--weights", tiny_weights, "--out", tmp_path / "out")
        assert (code, err.splitlines()[-1]) == (130, "dinoeval: stopped.")
    assert set(COMMANDS) > _GO_ON


def test_a_misspelt_flag_is_explained_and_exits_2(capsys):
    code, out, err = call(capsys, "knn", "--temprature", "0.1")
    assert code == 2
    assert "--temperature" in out + err


def test_a_reader_that_goes_away_is_no_error():
    command = f"{sys.executable} -m dinoeval models | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


def test_notebook_calls(tiny_weights, tmp_path):
    """The documented Python API, on PIL images and paths, in and out of order."""
    import dinoeval

    backbone = dinoeval.load(weights=tiny_weights)
    pictures = synthetic_images(3)
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.png")
    rows = dinoeval.embed(backbone, pictures)
    assert (rows.shape, rows.dtype) == ((3, 96), np.float32)
    np.testing.assert_allclose(dinoeval.embed(backbone, tmp_path), rows, atol=2e-6)
    np.testing.assert_allclose(dinoeval.embed(backbone, [tmp_path / "2.png", str(tmp_path / "0.png")]), rows[[2, 0]], atol=2e-6)
    np.testing.assert_allclose(dinoeval.embed(backbone, pictures[1]), rows[1:2], atol=2e-6)
    tokens = backbone(torch.zeros(2, 3, 16, 24), layers=2)
    assert (tokens.cls.shape, tokens.patches.shape, [layer.shape[1] for layer in tokens.layers]) == ((2, 96), (2, 4, 6, 96), [25, 25])
    assert backbone.attention(torch.zeros(1, 3, 16, 16)).shape == (1, 3, 17, 17)
    for wrong in (torch.zeros(3, 16, 16), torch.zeros(1, 1, 16, 16), torch.zeros(1, 3, 2, 16)):
        with pytest.raises(dinoeval.DinoevalError):
            backbone(wrong)
    with pytest.raises(dinoeval.DinoevalError, match="the last 5 blocks"):
        backbone(torch.zeros(1, 3, 16, 16), layers=5)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_stays_near(tiny_weights, precision):
    import dinoeval

    pictures = synthetic_images(8)
    full, low = (dinoeval.embed(dinoeval.load(weights=tiny_weights, precision=p), pictures) for p in ("fp32", precision))
    cosines = (full * low).sum(1) / np.linalg.norm(full, axis=1) / np.linalg.norm(low, axis=1)
    assert cosines.min() > 0.999
