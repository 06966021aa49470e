"""The linear probe: what it trains, what it chooses, what it refuses, and that a killed run ends like an undisturbed one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from factories import class_folders
from paper_results import missing_facts

import dinoeval
from dinoeval.data.opening import open_splits
from dinoeval.data.transforms import CenterCrop, RandomCrop
from dinoeval.errors import CheckpointError, ConfigError, DataError
from dinoeval.features.readout import Cls, ClsAvg, LastCls
from dinoeval.protocols import linear
from dinoeval.session import SessionConfig
from dinoeval.training.probe.sweep import Augmented, Cached, Head, Sweep


class Rows:
    """Features in memory, where the protocol takes them from the cache."""

    def __init__(self, rows: np.ndarray) -> None:
        self.take = rows.__getitem__


@pytest.fixture
def backbone(tiny_weights):
    return dinoeval.load(weights=tiny_weights, device="cpu")


def test_an_epoch_equals_torch_on_the_same_features_in_the_same_order():
    """Order: the released DistributedSampler's, a permutation by seed + epoch; the last batch is smaller; cosine per epoch."""
    random = np.random.default_rng(0)
    features, labels = random.standard_normal((50, 6), dtype=np.float32), random.integers(0, 4, 50)
    sweep = Sweep([Head(readout="cls", lr=1.0, weight_decay=0.0)], {"cls": 6}, labels, 4, epochs=3, batch=16, seed=0,
                  device=torch.device("cpu"))  # fmt: skip
    layer = torch.nn.Linear(6, 4)
    layer.weight.data.copy_(sweep.groups["cls"].weight[0])
    layer.bias.data.zero_()
    optimizer = torch.optim.SGD(layer.parameters(), 1.0 * 16 / 256, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3, eta_min=0)
    for epoch in range(3):
        order = torch.randperm(50, generator=torch.Generator().manual_seed(epoch))
        losses = []
        for rows in order.split(16):
            loss = torch.nn.functional.cross_entropy(layer(torch.from_numpy(features[rows])), torch.from_numpy(labels[rows]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        scheduler.step()
        steps = sweep.steps(np.arange(50))
        for block, rows in Cached({"cls": Rows(features)}, np.arange(50)).batches(epoch, steps):
            sweep.learn(block, labels[rows])
        assert sweep.close_epoch({}, len(steps))["loss"][0] == pytest.approx(np.mean(losses), rel=1e-5)
    torch.testing.assert_close(sweep.groups["cls"].weight[0], layer.weight.data)


def test_the_training_crop_is_torchvisions_with_its_bilinear_default(image_folder):
    from torchvision.transforms import Compose, RandomHorizontalFlip, RandomResizedCrop

    picture = open_splits(str(image_folder))[0].open(0)
    theirs = Compose([RandomResizedCrop(16), RandomHorizontalFlip()])
    seen = set()
    for seed in range(6):
        torch.manual_seed(seed)
        expected = torch.from_numpy(np.array(theirs(picture))).permute(2, 0, 1)
        ours = RandomCrop(16)(picture, seed)
        assert torch.equal(ours, expected)
        seen.add(ours.numpy().tobytes())
    assert len(seen) == 6


def test_random_crops_do_not_touch_the_users_generator(image_folder):
    picture = open_splits(str(image_folder))[0].open(0)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    RandomCrop(16)(picture, 5)
    assert torch.equal(torch.rand(3), expected)


def test_one_forward_pass_gives_all_readouts_and_workers_change_nothing(backbone, image_folder):
    images = open_splits(str(image_folder))[0]
    readouts = [Cls(), LastCls(2), ClsAvg()]
    steps = [np.arange(10), np.array([23, 11, 12])]
    runs = []
    for workers, together in ((0, 32), (2, 4)):
        source = Augmented(backbone, images, readouts, CenterCrop(16, 16), seed=0, workers=workers, batch_size=together)
        runs.append(list(source.batches(1, steps)))
    for (one, rows), (other, again), step in zip(*runs, steps, strict=True):
        assert np.array_equal(rows, step)
        assert np.array_equal(rows, again)
        assert set(one) == {"cls", "last2", "clsavg"}
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=1e-5, atol=1e-5)
    first = runs[0][0][0]
    torch.testing.assert_close(first["cls"], first["last2"][:, 96:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(first["cls"], first["clsavg"][:, ::2], rtol=1e-5, atol=1e-5)


def test_a_sweep_reports_every_head_and_chooses_on_held_out_images(backbone, image_folder, tmp_path):
    result = dinoeval.evaluate(
        "linear", backbone, data=str(image_folder), readouts=("cls", "last2"), lrs=(0.1, 3e38), epochs=3, train_batch_size=8, held_out=0.25,
        out=str(tmp_path / "run"),
    )  # fmt: skip
    assert [(row["readout"], row["lr"]) for row in result.table] == [("cls", 0.1), ("cls", 3e38), ("last2", 0.1), ("last2", 3e38)]
    lost = [row["diverged_in_epoch"] is not None for row in result.table]
    assert lost == [False, True, False, True]
    best = max((row for row, gone in zip(result.table, lost, strict=True) if not gone), key=lambda row: row["held_out_best"])
    assert f"chosen on held-out training images: {best['readout']}, lr 0.1" in result.notes[-1]
    assert result.metrics["top1_best_on_val"] == max(row["val_best"] for row in result.table if row["val_best"] is not None)
    assert result.metrics["top1"] <= result.metrics["top1_best_on_val"]
    assert result.metrics["top1"] == pytest.approx(100 * np.mean(result.samples["top1"]))
    assert result.config["readouts"] == ("cls", "last2")


def test_a_saved_head_scores_what_the_run_said_and_goes_with_its_backbone_only(backbone, image_folder, tmp_path):
    options = {"data": str(image_folder), "readouts": ("clsavg",), "lrs": (0.5,), "epochs": 2, "train_batch_size": 8}
    result = dinoeval.evaluate("linear", backbone, **options, out=str(tmp_path / "run"))
    head = str(tmp_path / "run/head_chosen.pth")
    again = dinoeval.evaluate("linear", backbone, data=str(image_folder), head=head)
    assert again.metrics == {"top1": result.metrics["top1"], "top5": result.metrics["top5"]}
    assert again.config["readouts"] == ("clsavg",)
    other = dinoeval.load("vit_xs8_16", weights="random", device="cpu")
    with pytest.raises(ConfigError, match=r"was trained with another backbone and another network"):
        dinoeval.evaluate("linear", other, data=str(image_folder), head=head)
    with pytest.raises(ConfigError, match=r"192 inputs and 3 classes; cls of .* has 96"):
        dinoeval.evaluate("linear", backbone, data=str(image_folder), head=head, readouts=("cls",))


def test_a_released_head_is_read_in_its_interleaved_layout(backbone, image_folder, tmp_path):
    """Entry 2j of the head's input is [CLS] j, entry 2j + 1 the mean patch's j; the file's names begin with DDP's `module.`."""
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


def test_nothing_held_out_and_several_heads_leave_only_the_papers_way(backbone, image_folder):
    result = dinoeval.evaluate("linear", backbone, data=str(image_folder), lrs=(0.1, 0.5), epochs=2, held_out=0.0, readouts=("cls",))
    assert set(result.metrics) == {"top1_best_on_val", "top5_best_on_val"}
    one = dinoeval.evaluate("linear", backbone, data=str(image_folder), lrs=(0.1,), epochs=2, held_out=0.0, readouts=("cls",))
    assert one.metrics["top1"] == one.table[0]["val_last"] == pytest.approx(100 * np.mean(one.samples["top1"]))
    assert one.metrics["top1_best_on_val"] == pytest.approx(100 * np.mean(one.samples["top1_best_on_val"]))
    assert any("cut to 24" in note for note in one.notes)


def test_subsets_are_averaged_with_their_deviation(backbone, image_folder):
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


def test_a_finished_run_is_not_taken_for_that_of_another_network_or_of_other_pictures(tmp_path):
    """Heads of attention do not show in tensors, and pictures that were replaced may have the size they had."""
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


def test_the_same_command_finds_its_finished_run(backbone, image_folder):
    options = {"data": str(image_folder), "lrs": (0.5,), "epochs": 3, "readouts": ("cls",)}
    first = dinoeval.evaluate("linear", backbone, **options)
    again = dinoeval.evaluate("linear", backbone, **options)
    assert (first.metrics, first.table) == (again.metrics, again.table)


def test_a_run_folder_of_other_settings_is_refused(backbone, image_folder, tmp_path):
    options = {"data": str(image_folder), "lrs": (0.5,), "readouts": ("cls",), "out": str(tmp_path / "run")}
    dinoeval.evaluate("linear", backbone, epochs=1, **options)
    with pytest.raises(ConfigError, match="epochs was 1 and is 2"):
        dinoeval.evaluate("linear", backbone, epochs=2, **options)


def test_a_killed_run_ends_with_the_numbers_of_an_undisturbed_one(tiny_weights, image_folder, tmp_path):
    """Two kills: the first as soon as a state is on disk, the second soon after the run has gone on from it."""

    def command(name: str) -> list[str]:
        begin = "import dinoeval.training.probe.sweep as p; p.SAVE_SECONDS = 0; from dinoeval.cli import main; main()"
        return [
            *(sys.executable, "-c", begin, "linear", "--weights", str(tiny_weights), "--data", str(image_folder), "--device", "cpu"),
            *("--readouts", "cls", "--lrs", "0.1", "1", "--epochs", "20", "--train-batch-size", "4"),
            *("--out", str(tmp_path / name), "--json", str(tmp_path / f"{name}.json")),
        ]

    subprocess.run(command("whole"), check=True, capture_output=True)
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
    whole, killed = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("whole", "killed"))
    assert whole["metrics"] == killed["metrics"]
    assert whole["table"] == killed["table"]


def test_bad_images_are_named_or_left_out(backbone, tmp_path):
    folder = class_folders(tmp_path / "data")
    (folder / "train/class1/3.png").write_text("text")
    options = {"data": str(folder), "lrs": (0.5,), "epochs": 2, "readouts": ("cls",), "held_out": 0.0}
    with pytest.raises(DataError, match=r"class1/3.png cannot be read"):
        dinoeval.evaluate("linear", backbone, **options)
    result = dinoeval.evaluate("linear", backbone, session=SessionConfig(bad_images="skip"), **options)
    assert result.data["train"]["bad_images"] == ["class1/3.png"]
    again = dinoeval.evaluate("linear", backbone, session=SessionConfig(bad_images="skip"), **options)
    assert (again.data, again.metrics) == (result.data, result.metrics)
    cached = dinoeval.evaluate("linear", backbone, session=SessionConfig(bad_images="skip"), features="cached", **options)
    assert cached.data["train"]["bad_images"] == ["class1/3.png"]


def test_features_that_are_no_numbers_name_the_image_and_not_the_rate(image_folder):
    backbone = dinoeval.load("vit_xs4_16", weights="random", device="cpu")
    backbone.network.norm.bias[0] = float("nan")
    source = Augmented(backbone, open_splits(str(image_folder))[0], [Cls()], CenterCrop(16, 16), seed=0)
    with pytest.raises(DataError, match=r"features of class0/0.png by vit_xs4_16 contain NaN"):
        list(source.batches(0, [np.arange(4)]))


@pytest.mark.parametrize("features", ["augmented", "cached"])
def test_two_processes_end_with_the_numbers_of_one(features, tiny_weights, image_folder, tmp_path):
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
    ("options", "says"),
    [
        ({"train_batch_size": 100}, "--train-batch-size 100 exceeds the 22"),
        ({"lrs": (0.1, -1.0)}, "--lrs"),
        ({"lrs": ()}, "--lrs"),
        ({"readouts": ("patches",)}, "--readouts patches"),
        ({"epochs": 0}, "--epochs"),
        ({"held_out": 1.0}, "--held-out"),
        ({"head": "vit_s16"}, "vit_s16' is not a linear head"),
        ({"head": "nowhere.pth"}, "no file nowhere.pth"),
        ({"head": __file__}, "is truncated or not a checkpoint"),
        ({"lrs": (3e38,), "epochs": 3, "train_batch_size": 4}, "every head diverged"),
    ],
)
def test_mistakes_are_one_paragraph(backbone, image_folder, options, says):
    with pytest.raises((ConfigError, CheckpointError, dinoeval.DinoevalError), match=says):
        dinoeval.evaluate("linear", backbone, data=str(image_folder), **options)


def test_the_papers_features_go_by_architecture():
    assert [linear.default_readout(arch) for arch in ("vit_s16", "vit_s8", "vit_b16", "vit_b8", "resnet50", "xcit_small_12_p8")] == [
        "last4", "last4", "clsavg", "clsavg", "cls", "cls",
    ]  # fmt: skip
