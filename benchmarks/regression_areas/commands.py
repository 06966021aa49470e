"""Areas of verdicts and of the command line: what commands write to files."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import dinoeval
from dinoeval.results import Result
from dinoeval.verdicts import Verdict, compare_results
from regression_areas.datasets import copydays_set, masked_folder
from regression_areas.inputs import PATCH16, TINY, class_folders, command, image_folder, network
from regression_areas.recording import Recorder

OUTCOMES = {"worse": -1, "same": 0, "better": 1}


def results(record: Recorder, folder: Path) -> None:
    """Verdicts on Results: compared with each other in pairs and by their errors."""

    def add(name: str, found: tuple[Sequence[Verdict], Any]) -> None:
        record.add(f"{name}/comparable", not found[1])
        for verdict in found[0]:
            numbers = [verdict.measured, verdict.reference, verdict.difference, verdict.tolerance, OUTCOMES[verdict.outcome]]
            record.add(f"{name}/{verdict.metric}", numbers)

    data = str(class_folders(folder / "classes", val=12))
    copies, masked = str(copydays_set(folder / "copydays")), str(masked_folder(folder / "masked"))
    runs: dict[str, Any] = {
        "knn": ("knn", TINY, {"data": data, "k": (1, 10, 20)}),
        "knn_half": ("knn", TINY, {"data": data, "k": (5,), "train_subset": "50pct"}),
        "copydays": ("copydays", PATCH16, {"data": copies, "image_size": 64}),
        "segment": ("segment", PATCH16, {"data": masked, "image_size": 64}),
    }
    saved = {}
    for name, (protocol, arch, options) in runs.items():
        one, other = (dinoeval.evaluate(protocol, network(folder, arch, seed=seed), **options) for seed in (0, 1))
        one.save(folder / f"{name}.json")
        saved[name] = Result.load(folder / f"{name}.json")
        add(f"{name}/pair", compare_results(one, other))
        add(f"{name}/itself", compare_results(one, one))
        add(f"{name}/saved", compare_results(saved[name], other))
        add(f"{name}/errors", compare_results(dataclasses.replace(one, samples={}), other))
    add("knn/not_comparable", compare_results(saved["knn"], saved["knn_half"]))


def commands(record: Recorder, folder: Path) -> None:
    """What the command line writes: Results, features, images; and exit codes of check."""
    data, photos = class_folders(folder / "classes"), image_folder(folder / "photos", 12, (64, 48), seed=71)
    network_words = ("--arch", "vit_xs8_16", "--weights", "random", "--device", "cpu")

    record.add("knn/code", command("knn", "--json", folder / "digits.json", "--device", "cpu"))
    command("knn", "--data", "digits", *network_words, "--json", folder / "random.json")
    record.add("check/worse", command("check", folder / "random.json", "--against", folder / "digits.json"))
    record.add("check/better", command("check", folder / "digits.json", "--against", folder / "random.json"))
    training = ("--features", "cached", "--epochs", 2, "--train-batch-size", 12, "--lrs", 0.1, 1.0, "--readouts", "cls", "last2")
    command("linear", "--data", data, *network_words, *training, "--json", folder / "linear.json")
    masked = masked_folder(folder / "masked")
    command("segment", "--data", masked, *network_words, "--image-size", 64, "--json", folder / "segment.json")
    for name, file in {"knn/digits": "digits", "knn/random": "random", "linear": "linear", "segment": "segment"}.items():
        record.add_result(name, Result.load(folder / f"{file}.json"))

    command("embed", photos, "--out", folder / "features.npz", *network_words, "--readout", "clsavg")
    with np.load(folder / "features.npz") as written:
        record.add_all("embed", {"features": written["features"], "paths": written["paths"].tolist()})
    command("embed", photos / "0003.png", photos / "0001.png", "--out", folder / "two.npy", *network_words, "--precision", "bf16")
    record.add("embed/two", np.load(folder / "two.npy"))

    pair = photos / "0002.png", photos / "0005.png"
    command("attention", *pair, "--out", folder / "maps", *network_words, "--image-size", 64, "--points", "10,20")
    command("pca", *pair, "--out", folder / "colors", *network_words, "--image-size", 64)
    for path in sorted(path for kind in ("maps", "colors") for path in (folder / kind).glob("*/*.png")):
        if path.stem not in ("figure", "points"):  # these contain text
            record.add(path.relative_to(folder).with_suffix("").as_posix(), np.array(Image.open(path)))
