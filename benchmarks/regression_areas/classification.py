"""Areas of the classification protocols on frozen features: k-NN, logistic regression, linear probe."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import torch

import dinoeval
from dinoeval.session import SessionConfig
from regression_areas.inputs import class_folders, label_table, network, voc07
from regression_areas.recording import CannotRunError, Recorder

SKIP = SessionConfig(bad_images="skip")
ALL_READOUTS = ("cls", "last2", "clsavg", "gem")


def knn(record: Recorder, folder: Path) -> None:
    """Weighted k-NN on all images, on subsets of them, and on multi-label datasets."""
    data, table, backbone = str(class_folders(folder / "classes")), str(label_table(folder / "labels")), network(folder)
    listed = folder / "list.txt"
    listed.write_text("".join(f"class{label}/{number:02d}.png\n" for label in (0, 1, 3) for number in (2, 5, 7)))
    os.environ["DINOEVAL_DATA"] = str(voc07(folder / "sets"))
    runs = {
        "digits": {"backbone": dinoeval.load(device="cpu"), "data": "digits"},
        "plain": {"k": (1, 5, 10, 20)},
        "default_k": {},
        "temperature": {"k": (20,), "temperature": 0.5},
        "half": {"k": (5, 10), "train_subset": "50pct"},
        "one_half": {"k": (5,), "train_subset": "50pct", "subset_seeds": 1},
        "fifth": {"backbone": network(folder, seed=1), "k": (5,), "train_subset": "20pct"},
        "listed": {"k": (3,), "train_subset": str(listed)},
        "several_labels": {"data": table, "k": (1, 5, 20)},
        "several_labels_half": {"data": table, "k": (5,), "train_subset": "50pct", "subset_seeds": 2},
        "voc07": {"data": "voc07", "k": (5, 20)},
        "transform": {"session": SessionConfig(transform="dino:20/16"), "k": (10,)},
        "bf16": {"backbone": network(folder, precision="bf16"), "k": (10,)},
        "small_batches": {"backbone": network(folder, seed=2), "session": SessionConfig(batch_size=5), "k": (10,)},
        "worker_process": {"backbone": network(folder, seed=3), "session": SessionConfig(workers=1, batch_size=5), "k": (10,)},
    }
    record.run("knn", runs, backbone=backbone, data=data)
    (Path(data) / "val/class0/99.png").write_bytes(b"unreadable")
    record.run("knn", {"bad_image": {"session": SKIP, "k": (10,)}}, backbone=backbone, data=data)


def _logistic(record: Recorder, folder: Path, solver: str) -> None:
    data, table = str(class_folders(folder / "classes")), str(label_table(folder / "labels"))
    os.environ["DINOEVAL_DATA"] = str(voc07(folder / "sets"))
    runs = {
        "plain": {},
        "chosen": {"lambdas": (0.01, 0.1, 1.0)},
        "half": {"train_subset": "50pct", "subset_seeds": 2, "lambdas": (0.1, 1.0)},
        "several_labels": {"data": table, "lambdas": (0.1, 1.0)},
        "voc07": {"data": "voc07"},
        "stopped": {"max_iter": 3},
    }
    record.run("logistic", runs, backbone=network(folder), data=data, solver=solver)


def logistic(record: Recorder, folder: Path) -> None:
    """Logistic regression by scikit-learn."""
    _logistic(record, folder, "sklearn")


def logistic_cyanure(record: Recorder, folder: Path) -> None:
    """Logistic regression by cyanure, if it is installed."""
    if importlib.util.find_spec("cyanure") is None:
        raise CannotRunError("cyanure is not installed")
    _logistic(record, folder, "cyanure")


def linear(record: Recorder, folder: Path) -> None:
    """The linear probe: augmented and cached features, several readouts, with and without held-out images, saved heads."""
    data, backbone = str(class_folders(folder / "classes")), network(folder)
    sweep = {"readouts": ALL_READOUTS, "lrs": (0.1, 1.0, 3e38), "weight_decays": (0.0, 0.01), "held_out": 0.25}
    common = {"backbone": backbone, "data": data, "train_batch_size": 16, "epochs": 3}
    for features in ("augmented", "cached"):
        out = folder / features
        record.run("linear", {features: {"features": features, "out": str(out), **sweep}}, **common)
        for name in ("head_chosen", "head_best_on_val"):
            saved = torch.load(out / f"{name}.pth", weights_only=False)
            record.add_state(f"{features}/{name}", saved["state_dict"])
            record.add_all(f"{features}/{name}", {"epoch": saved["epoch"], "score": saved["best_acc"], "lr": saved["dinoeval"]["lr"]})
    draw = torch.Generator().manual_seed(9)  # weights in the layout of the released heads
    released = {"module.linear.weight": torch.randn(7, 4 * 96, generator=draw), "module.linear.bias": torch.randn(7, generator=draw)}
    torch.save({"state_dict": released}, folder / "released.pth")
    heads = {"saved_head": folder / "augmented/head_chosen.pth", "released_head": folder / "released.pth"}
    record.run("linear", {name: {"head": str(path)} for name, path in heads.items()}, backbone=backbone, data=data)
    half = {"readouts": ("cls",), "lrs": (0.2, 2.0), "train_subset": "50pct", "subset_seeds": 2}
    runs = {
        "one_head_on_all": {"lrs": (0.5,), "held_out": 0.0, "out": str(folder / "one")},
        "two_heads_on_all": {"lrs": (0.05, 0.5), "held_out": 0.0, "out": str(folder / "all")},
        "half": {**half, "out": str(folder / "half")},
        "cached_half": {**half, "backbone": network(folder, seed=1), "features": "cached"},
    }
    record.run("linear", runs, **common)
    auto = {"readouts": ("auto",), "lrs": (1.0,), "epochs": 1, "features": "cached"}
    record.run("linear", {"default_batch": auto}, backbone=backbone, data=data)
    (Path(data) / "train/class1/99.png").write_bytes(b"unreadable")
    few = {"session": SKIP, "readouts": ("cls",), "lrs": (0.5,), "held_out": 0.1}
    record.run("linear", {f"bad_image/{features}": {"features": features, **few} for features in ("augmented", "cached")}, **common)
