"""Areas of results and of the command line: verdicts, and what commands write to files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from regression_areas.inputs import class_folders, command, flat_folder, network
from regression_areas.recording import Book
from regression_areas.scenes import copydays_set, masked_folder

OUTCOMES = {"worse": -1, "same": 0, "better": 1}


def results(book: Book, folder: Path) -> None:
    """Verdicts on Results: against each other pair by pair and by their errors, against published numbers."""
    import dinoeval
    from dinoeval import verdicts as judge
    from dinoeval.paper.rows import PaperRow
    from dinoeval.results import Result
    from dinoeval.verdicts import compare_results

    def published(result: Result, decimals: int, values: dict[str, float]) -> tuple[list[Any], None]:
        rows = [
            PaperRow(source="here", protocol=result.protocol, network="", metric=metric, value=value, decimals=decimals)
            for metric, value in values.items()
        ]
        z = judge._bonferroni_z(len(rows))
        return [judge._verdict_on_row(result, row, z) for row in rows], None

    def verdicts(name: str, result: Result, against: Result | None, found=None) -> None:
        found, reason = found or compare_results(result, against)
        book.add(f"{name}/comparable", int(reason is None))
        for verdict in found:
            numbers = [verdict.measured, verdict.reference, verdict.difference, verdict.tolerance, OUTCOMES[verdict.outcome]]
            book.add(f"{name}/{verdict.metric}", numbers)

    data = str(class_folders(folder / "classes", val=12))
    copies, masked = str(copydays_set(folder / "copydays")), str(masked_folder(folder / "masked"))
    runs: dict[str, Any] = {
        "knn": ("knn", "vit_xs4_16", {"data": data, "k": (1, 10, 20)}),
        "knn_half": ("knn", "vit_xs4_16", {"data": data, "k": (5,), "train_subset": "50pct"}),
        "copydays": ("copydays", "vit_xs16", {"data": copies, "image_size": 64}),
        "segment": ("segment", "vit_xs16", {"data": masked, "image_size": 64}),
    }
    for name, (protocol, arch, options) in runs.items():
        one, other = (dinoeval.evaluate(protocol, network(folder, arch, seed=seed), **options) for seed in (0, 1))
        verdicts(f"{name}/pair", one, other)
        verdicts(f"{name}/itself", one, one)
        one.save(folder / f"{name}.json")
        verdicts(f"{name}/saved", Result.load(folder / f"{name}.json"), other)
        lost = dataclasses.replace(one, samples={})
        verdicts(f"{name}/errors", lost, other)
        for shift in (-8.0, -0.3, 0.04, 5.0):
            close = {metric: round(value + shift, 1) for metric, value in one.metrics.items()}
            verdicts(f"{name}/published{shift:+}", one, None, published(one, 1, close))
    knn = Result.load(folder / "knn.json")
    verdicts("knn/full_float", knn, None, published(knn, 400, {"top1@10": 50.0}))
    verdicts("knn/not_comparable", knn, Result.load(folder / "knn_half.json"))


def commands(book: Book, folder: Path) -> None:
    """What the command line writes: Results, features, pictures, answers of a search, weights; and exit codes of check."""
    import dinoeval
    from dinoeval.results import Result

    data = class_folders(folder / "classes")
    photos = flat_folder(folder / "photos", 12, (64, 48), seed=71)
    book.add("knn/code", command("knn", "--json", folder / "digits.json", "--device", "cpu")[0])
    book.result("knn/digits", Result.load(folder / "digits.json"))
    weak = ("--arch", "vit_xs8_16", "--weights", "random", "--device", "cpu")
    command("knn", "--data", "digits", *weak, "--json", folder / "weak.json")
    book.result("knn/random", Result.load(folder / "weak.json"))
    book.add("check/worse", command("check", folder / "weak.json", "--against", folder / "digits.json")[0])
    book.add("check/better", command("check", folder / "digits.json", "--against", folder / "weak.json")[0])
    command("linear", "--data", data, *weak, "--features", "cached", "--epochs", 2, "--train-batch-size", 12, "--lrs", 0.1, 1.0,
            "--readouts", "cls", "last2", "--json", folder / "linear.json")  # fmt: skip
    book.result("linear", Result.load(folder / "linear.json"))
    command("segment", "--data", masked_folder(folder / "masked"), *weak, "--image-size", 64, "--json", folder / "segment.json")
    book.result("segment", Result.load(folder / "segment.json"))

    command("embed", photos, "--out", folder / "features.npz", *weak, "--readout", "clsavg")
    with np.load(folder / "features.npz") as written:
        book.add_all("embed", {"features": written["features"], "paths": written["paths"].tolist()})
    command("embed", photos / "0003.png", photos / "0001.png", "--out", folder / "two.npy", *weak, "--precision", "bf16")
    book.add("embed/two", np.load(folder / "two.npy"))

    pair = photos / "0002.png", photos / "0005.png"
    command("attention", *pair, "--out", folder / "maps", *weak, "--image-size", 64, "--points", "10,20")
    command("pca", *pair, "--out", folder / "colors", *weak, "--image-size", 64)
    for kind in ("maps", "colors"):
        for path in sorted((folder / kind).glob("*/*.png")):
            if path.stem not in ("figure", "points"):  # drawn by matplotlib, with words
                book.add(f"{kind}/{path.parent.name}/{path.stem}", np.array(Image.open(path)))

    command("search", "build", photos, "--out", folder / "index", *weak)
    command("search", "query", folder / "index", photos / "0004.png", "--k", 5, "--json", folder / "answer.json")
    answer = json.loads((folder / "answer.json").read_text())["queries"][0]["neighbors"]
    book.add("search/cosines", [one["cosine"] for one in answer])
    book.add("search/names", [Path(one["path"]).name for one in answer])
    command("search", "duplicates", folder / "index", "--json", folder / "groups.json")
    groups = json.loads((folder / "groups.json").read_text())
    book.add_all("search/duplicates", {"threshold": groups["threshold"], "groups": len(groups["groups"]), **groups["measured"]})
    command("models", "convert", "vit_digits", folder / "converted.safetensors")
    book.add("convert/digest", dinoeval.load(weights=folder / "converted.safetensors", device="cpu").digest)
    book.add("cache/verify", command("cache", "verify")[0])
