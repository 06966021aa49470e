"""The linear probe: what it reports, saves and resumes, and what it rejects."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from factories import class_folders
from paper_results import missing_facts

import dinoeval
from dinoeval.data.opening import open_splits
from dinoeval.errors import ConfigError, DataError
from dinoeval.session import SessionConfig


@pytest.fixture
def backbone(tiny_weights):
    return dinoeval.load(weights=tiny_weights, device="cpu")


def test_sweep_is_reported_and_chosen_on_held_out_images(backbone, image_folder, tmp_path):
    result = dinoeval.evaluate(
        "linear",
        backbone,
        data=str(image_folder),
        readouts=("cls", "last2"),
        lrs=(0.1, 3e38),
        epochs=3,
        train_batch_size=8,
        held_out=0.25,
        out=str(tmp_path / "run"),
    )
    assert [(row["readout"], row["lr"]) for row in result.table] == [("cls", 0.1), ("cls", 3e38), ("last2", 0.1), ("last2", 3e38)]
    diverged = [row["diverged_in_epoch"] is not None for row in result.table]
    assert diverged == [False, True, False, True]
    best = max((row for row in result.table if row["diverged_in_epoch"] is None), key=lambda row: row["held_out_best"])
    assert f"{best['readout']}, lr 0.1" in result.notes[-1]
    assert result.metrics["top1_best_on_val"] == max(row["val_best"] for row in result.table if row["val_best"] is not None)
    assert result.metrics["top1"] <= result.metrics["top1_best_on_val"]
    assert result.metrics["top1"] == pytest.approx(100 * np.mean(result.samples["top1"]))
    assert result.config["readouts"] == ("cls", "last2")
    assert list(result.metrics) == ["top1", "top5", "top1_best_on_val", "top5_best_on_val"]


def test_at_least_one_image_is_held_out(backbone, image_folder):
    options = {"data": str(image_folder), "readouts": ("cls",), "lrs": (0.1,), "epochs": 1}
    result = dinoeval.evaluate("linear", backbone, **options, held_out=0.01)
    assert any("cut to 23" in note for note in result.notes), "24 training images, of which one is held out"


def test_saved_head_scores_equal_the_run(backbone, image_folder, tmp_path):
    options = {"data": str(image_folder), "readouts": ("clsavg",), "lrs": (0.5,), "epochs": 2, "train_batch_size": 8}
    result = dinoeval.evaluate("linear", backbone, **options, out=str(tmp_path / "run"))
    head = str(tmp_path / "run/head_chosen.pth")
    again = dinoeval.evaluate("linear", backbone, data=str(image_folder), head=head)
    assert again.metrics == {"top1": result.metrics["top1"], "top5": result.metrics["top5"]}
    assert again.config["readouts"] == ("clsavg",)


def test_saved_head_requires_its_own_backbone(backbone, image_folder, tmp_path):
    options = {"data": str(image_folder), "readouts": ("clsavg",), "lrs": (0.5,), "epochs": 2, "train_batch_size": 8}
    dinoeval.evaluate("linear", backbone, **options, out=str(tmp_path / "run"))
    head = str(tmp_path / "run/head_chosen.pth")
    other = dinoeval.load("vit_xs8_16", weights="random", device="cpu")
    with pytest.raises(ConfigError, match=r"head_chosen\.pth .*backbone"):
        dinoeval.evaluate("linear", other, data=str(image_folder), head=head)
    with pytest.raises(ConfigError, match=r"192 inputs and 3 classes; cls of .* has 96"):
        dinoeval.evaluate("linear", backbone, data=str(image_folder), head=head, readouts=("cls",))


def test_released_head_is_read_in_interleaved_layout(backbone, image_folder, tmp_path):
    """Input 2j of the head is [CLS] j, input 2j + 1 is mean patch token j; the names begin with DDP's `module.`."""
    random = np.random.default_rng(0)
    on_cls, on_mean = (torch.from_numpy(random.standard_normal((3, 96), dtype=np.float32)) for _ in range(2))
    weight, bias = torch.stack((on_cls, on_mean), -1).reshape(3, 192), torch.tensor([0.1, 0.2, 0.3])
    torch.save({"epoch": 100, "state_dict": {"module.linear.weight": weight, "module.linear.bias": bias}}, tmp_path / "head.pth")
    result = dinoeval.evaluate("linear", backbone, data=str(image_folder), head=str(tmp_path / "head.pth"), readouts=("clsavg",))
    val = open_splits(str(image_folder))[1]
    folder = str(image_folder / "val")
    cls, patches = dinoeval.embed(backbone, folder), dinoeval.embed(backbone, folder, readout="patches")
    logits = torch.from_numpy(cls) @ on_cls.T + torch.from_numpy(patches).mean((1, 2)) @ on_mean.T + bias
    assert result.samples["top1"] == (logits.argmax(1).numpy() == val.labels).astype(int).tolist()
    assert missing_facts(result) == set()


def test_scores_are_best_on_val_when_nothing_is_held_out(backbone, image_folder):
    result = dinoeval.evaluate("linear", backbone, data=str(image_folder), lrs=(0.1, 0.5), epochs=2, held_out=0.0, readouts=("cls",))
    assert set(result.metrics) == {"top1_best_on_val", "top5_best_on_val"}
    one = dinoeval.evaluate("linear", backbone, data=str(image_folder), lrs=(0.1,), epochs=2, held_out=0.0, readouts=("cls",))
    assert one.metrics["top1"] == one.table[0]["val_last"] == pytest.approx(100 * np.mean(one.samples["top1"]))
    assert one.metrics["top1_best_on_val"] == pytest.approx(100 * np.mean(one.samples["top1_best_on_val"]))
    assert any("cut to 24" in note for note in one.notes)


def test_subsets_are_averaged_with_standard_deviation(backbone, image_folder):
    result = dinoeval.evaluate(
        "linear",
        backbone,
        data=str(image_folder),
        lrs=(0.5,),
        epochs=2,
        train_subset="50pct",
        subset_seeds=2,
        readouts=("cls",),
        held_out=0.0,
    )
    assert set(result.deviations) == set(result.metrics)
    assert set(result.samples) == {"path", "label"}
    assert result.data["train"]["images"] == 12
    assert [row["seed"] for row in result.table] == [0, 1]


def test_finished_run_is_not_reused_for_other_inputs(tmp_path):
    """Tensors do not show the number of attention heads, and replaced images may have the same size."""
    folder = class_folders(tmp_path, extension="bmp")
    tables = []
    for arch in ("vit_xs4_16", "vit_xs4_16_h6"):
        network = dinoeval.load(arch, weights="random", device="cpu")
        tables.append(dinoeval.evaluate("linear", network, data=str(folder), lrs=(0.5,), epochs=2, readouts=("cls",)).table)
    for path in folder.glob("*/*/*.bmp"):
        content = path.read_bytes()
        path.write_bytes(content[:54] + bytes(255 - value for value in content[54:]))
    tables.append(dinoeval.evaluate("linear", network, data=str(folder), lrs=(0.5,), epochs=2, readouts=("cls",)).table)
    assert len({json.dumps(table) for table in tables}) == 3


def test_same_command_returns_its_finished_run(backbone, image_folder):
    options = {"data": str(image_folder), "lrs": (0.5,), "epochs": 3, "readouts": ("cls",)}
    first = dinoeval.evaluate("linear", backbone, **options)
    again = dinoeval.evaluate("linear", backbone, **options)
    assert (first.metrics, first.table) == (again.metrics, again.table)


def test_run_rejects_folder_of_other_settings(backbone, image_folder, tmp_path):
    options = {"data": str(image_folder), "lrs": (0.5,), "readouts": ("cls",), "out": str(tmp_path / "run")}
    dinoeval.evaluate("linear", backbone, epochs=1, **options)
    with pytest.raises(ConfigError, match=r"state\.pth .*epochs was 1 and is 2"):
        dinoeval.evaluate("linear", backbone, epochs=2, **options)


@pytest.mark.slow
def test_killed_run_ends_like_an_uninterrupted_one(tiny_weights, image_folder, tmp_path):
    """Two kills: one when the first state is saved, one when the resumed run saves its first state."""

    def command(name: str) -> list[str]:
        program = "import dinoeval.training.probe.train as p; p.SAVE_SECONDS = 0; from dinoeval.cli import main; main()"
        return [
            *(sys.executable, "-c", program, "linear", "--weights", str(tiny_weights), "--data", str(image_folder), "--device", "cpu"),
            *("--readouts", "cls", "--lrs", "0.1", "1", "--epochs", "20", "--train-batch-size", "4"),
            *("--out", str(tmp_path / name), "--json", str(tmp_path / f"{name}.json")),
        ]

    subprocess.run(command("uninterrupted"), check=True, capture_output=True)
    state = tmp_path / "killed/state.pth"
    stamps = [0]
    for _ in range(2):
        process = subprocess.Popen(command("killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and (not state.exists() or state.stat().st_mtime_ns == stamps[-1]):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        stamps.append(state.stat().st_mtime_ns)
    subprocess.run(command("killed"), check=True, capture_output=True)
    uninterrupted, killed = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("uninterrupted", "killed"))
    assert uninterrupted["metrics"] == killed["metrics"]
    assert uninterrupted["table"] == killed["table"]


def test_unreadable_images_are_named_or_skipped(backbone, tmp_path):
    folder = class_folders(tmp_path / "data")
    (folder / "train/class1/3.png").write_text("text")
    options = {"data": str(folder), "lrs": (0.5,), "epochs": 2, "readouts": ("cls",), "held_out": 0.0}
    with pytest.raises(DataError, match=r"class1/3\.png .*--bad-images skip"):
        dinoeval.evaluate("linear", backbone, **options)
    result = dinoeval.evaluate("linear", backbone, session=SessionConfig(bad_images="skip"), **options)
    assert result.data["train"]["bad_images"] == ["class1/3.png"]
    again = dinoeval.evaluate("linear", backbone, session=SessionConfig(bad_images="skip"), **options)
    assert (again.data, again.metrics) == (result.data, result.metrics)
    cached = dinoeval.evaluate("linear", backbone, session=SessionConfig(bad_images="skip"), features="cached", **options)
    assert cached.data["train"]["bad_images"] == ["class1/3.png"]
    assert [any("cached center crops" in note for note in one.notes) for one in (result, cached)] == [False, True]


@pytest.mark.slow
@pytest.mark.parametrize("features", ["augmented", "cached"])
def test_two_processes_equal_one(features, tiny_weights, image_folder, tmp_path):
    """21 images in steps of 4: the last step holds one, so that one of the processes has none."""
    words = ["linear", "--weights", str(tiny_weights), "--data", str(image_folder), "--device", "cpu", "--readouts", "cls", "--lrs", "0.5"]
    words += ["--epochs", "3", "--train-batch-size", "4", "--held-out", "0.13", "--features", features]
    runs = []
    for name, launcher in (("one", ["-m"]), ("two", ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"])):
        out = ["--out", str(tmp_path / name), "--json", str(tmp_path / f"{name}.json")]
        subprocess.run([sys.executable, *launcher, "dinoeval", *words, *out], check=True, capture_output=True)
        runs.append(json.loads((tmp_path / f"{name}.json").read_text()))
    assert runs[0]["metrics"] == runs[1]["metrics"]
    assert runs[0]["table"][0]["train_loss"] == pytest.approx(runs[1]["table"][0]["train_loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"train_batch_size": 100}, "--train-batch-size 100 exceeds the 22"),
        ({"lrs": (0.1, -1.0)}, "--lrs"),
        ({"lrs": ()}, "--lrs"),
        ({"readouts": ("patches",)}, "--readouts patches"),
        ({"epochs": 0}, "--epochs"),
        ({"held_out": 1.0}, "--held-out"),
        ({"head": "vit_s16"}, "vit_s16"),
        ({"head": "nowhere.pth"}, "nowhere.pth"),
        ({"head": __file__}, Path(__file__).name),
        ({"lrs": (3e38,), "epochs": 3, "train_batch_size": 4}, "diverged.*--lrs"),
    ],
)
def test_run_rejects_invalid_options(backbone, image_folder, options, named):
    with pytest.raises(dinoeval.DinoevalError, match=named):
        dinoeval.evaluate("linear", backbone, data=str(image_folder), **options)


@pytest.mark.parametrize("features", ["augmented", "cached"])
def test_unreadable_images_are_named_also_if_they_are_held_out(backbone, tmp_path, features):
    data = class_folders(tmp_path / "images")
    bad = sorted(data.glob("train/*/[0-3].png"))  # half of the training images, so that some are held out
    for path in bad:
        path.write_bytes(b"no image")
    result = dinoeval.evaluate(
        "linear",
        backbone,
        session=SessionConfig(bad_images="skip", workers=0),
        data=str(data),
        features=features,
        held_out=0.4,
        epochs=1,
        lrs=(0.1,),
    )
    assert sorted(result.data["train"]["bad_images"]) == [path.relative_to(data / "train").as_posix() for path in bad]
