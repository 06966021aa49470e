"""Areas without pictures: published numbers, defaults and recipes; the functions of dinoeval.maths on drawn arrays."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from regression_areas.recording import Book

CENTERED = {"center_whitening": "whitening_centered", "max_iter": "max_passes", "ap_cutoff": "top", "resize_backend": "reading", "edge_cases": "failures", "context_frames": "context", "top_k": "top"}  # options that have another name here


def _plain(value: Any) -> Any:
    """A setting as a number, a word or a list of such; floats in full."""
    if isinstance(value, bool | int | float | str) or value is None:
        return value
    return json.dumps(value) if value else "none"


def constants(book: Book, folder: Path) -> None:
    """Published numbers, defaults of protocols, recipes of training, multiply-adds of networks."""
    from dinoeval import protocols
    from dinoeval.models.zoo import ZOO
    from dinoeval.throughput import count_macs
    from dinoeval.training.pretrain.presets import PRESETS
    from dinoeval.training.finetune.recipes import PRESETS as FINETUNING

    def fields(name: str, config: Any) -> None:
        for field, value in dataclasses.asdict(config).items():
            book.add(f"{name}/{CENTERED.get(field, field)}", _plain(value))

    for name in ("knn", "logistic", "linear", "finetune", "retrieval", "copydays", "davis", "segment"):
        module = protocols.get_protocol(name)
        fields(f"default/{name}", module.Config())
        book.add(f"version/{name}", module.VERSION)
    for row in ZOO.values():
        book.add_all(f"weights/{row.name}", {"arch": row.arch, "kind": row.kind, "sha256": row.sha256, "bytes": row.size})
    for name, recipe in PRESETS.items():
        fields(f"recipe/pretraining/{name}", recipe)
    for name, recipe in FINETUNING.items():
        fields(f"recipe/finetuning/{name}", recipe)
        book.add(f"recipe/finetuning/{name}/peak_lr", recipe.peak_lr)
    for arch in ("vit_s16", "vit_b8", "resnet50"):
        book.add(f"throughput/multiply_adds/{arch}", count_macs(arch))


def math(book: Book, folder: Path) -> None:
    """Neighbors, votes, ranks, precision, whitening, bootstrap, segmentation measures."""
    from dinoeval.maths.average_precision import average_precision, mean_average_precision
    from dinoeval.maths.bootstrap import bootstrap_mean
    from dinoeval.maths.neighbors import l2_normalize, multilabel_scores, nearest, vote
    from dinoeval.maths.ranks import (
        count_closer_distractors,
        positive_ranks,
        precision_at,
        rank_by_similarity,
        score_ranks,
        trapezoid_precision,
    )
    from dinoeval.maths.whitening import learn_whitening
    from dinoeval.results import proportion_error

    random = np.random.default_rng(1)
    bank, queries = random.standard_normal((240, 24), dtype=np.float32), random.standard_normal((33, 24), dtype=np.float32)
    bank[100:104] = bank[7]  # equal cosines
    labels, marks = random.integers(0, 7, 240), random.choice([-1, 0, 0, 1], (240, 6))
    cosines, rows = nearest(queries, [bank[:90], bank[90:]], 40)
    book.add_all("nearest", {"normalized": l2_normalize(queries), "cosines": cosines, "rows": rows})
    book.add("nearest/unit_rows", nearest(queries, [l2_normalize(bank)], 12, normalized=True)[1])
    many = random.standard_normal((4_200, 8), dtype=np.float32)  # more queries than are searched at a time
    book.add_all("nearest/many", dict(zip(("cosines", "rows"), nearest(many, [many[:300]], 9), strict=True)))
    short = np.array([[0, 0, 0], [1e-13, 0, 0], [3e-3, -4e-3, 0]], np.float32)
    book.add("nearest/short_rows", l2_normalize(short))
    book.add("nearest/one_query", nearest(queries[:1], [bank], 5)[0])
    for temperature in (0.07, 0.01, 1.0):
        votes = vote(cosines, labels[rows], ks=(1, 10, 40), temperature=temperature, num_classes=7)
        book.add(f"vote/{temperature}", votes)
        book.add(f"shares/{temperature}", multilabel_scores(cosines, marks, rows, ks=(1, 10, 40), temperature=temperature))

    strangers = random.standard_normal((60, 24), dtype=np.float32)
    similarities = l2_normalize(queries) @ l2_normalize(bank).T
    closer = count_closer_distractors(l2_normalize(queries), similarities, [l2_normalize(strangers[:20]), l2_normalize(strangers[20:])])
    order = rank_by_similarity(similarities)
    positives = [np.flatnonzero(labels == query % 8) for query in range(len(queries))]  # of every eighth query there are none
    junk = np.flatnonzero(marks[:, 0] == -1)
    ranks = [positive_ranks(order[query], positives[query], junk, closer[query]) for query in range(len(queries))]
    precisions, at = score_ranks(ranks, [len(right) for right in positives], (1, 5, 10))
    book.add_all("ranks", {"order": order, "closer_distractors": closer, "positives": np.concatenate(ranks)})
    book.add_all("ranks", {"average_precision": precisions, "precision_at": at, "by_trapezoids": trapezoid_precision(ranks[0], 50)})
    book.add("ranks/precision_at_7", precision_at(ranks[1], 7))

    scores = random.standard_normal((33, 6)).round(1)  # with equal scores
    truth = random.choice([-1, 0, 1, 1], (33, 6))
    for area in ("exact", "11-point"):
        found = mean_average_precision(scores, truth, area)
        book.add_all(f"precision/{area}", {"of_classes": found.per_class, "mean": found.mean, "error": found.error})
        book.add(f"precision/{area}/of_one_class", average_precision(scores[:, 1], truth[:, 1] == 1, area))
    for centered in (False, True):
        whitening = learn_whitening([bank[:50], bank[50:]], centered)
        name = f"whitening/{'centered' if centered else 'uncentered'}"
        book.add_all(name, {"mean": whitening.mean, "projection": whitening.projection, "rows": whitening(queries)})
    spread = bootstrap_mean(precisions[~np.isnan(precisions)])
    book.add_all("bootstrap", dataclasses.asdict(spread))
    book.add("bootstrap/of_one", dataclasses.asdict(bootstrap_mean(precisions[:1]))["low"])
    book.add("proportion_error", [proportion_error(percent, 1234) for percent in (0.0, 12.5, 74.5, 100.0)])
    _masks(book)
    _propagation(book)


def _masks(book: Book) -> None:
    from dinoeval.maths.attention import mass_masks
    from dinoeval.maths.segmentation import boundary, contour_accuracy, dilate, jaccard_indices, region_similarity, sequence_statistics

    random = np.random.default_rng(2)
    blobs = np.stack([dilate(random.random((60, 82)) < 0.004, radius) for radius in (3, 5, 7, 9)])
    empty = np.zeros_like(blobs[0])
    book.add_all("masks", {"dilated": blobs, "boundary": boundary(blobs[2]), "jaccards": jaccard_indices(blobs[:2], blobs[1:])})
    book.add("masks/jaccards_of_counted", jaccard_indices(blobs[:2], blobs[1:], ~blobs[3]))
    pairs = [(blobs[0], blobs[1]), (blobs[2], blobs[3]), (blobs[0], empty), (empty, empty), (blobs[1], blobs[1])]
    book.add("masks/J", [region_similarity(*pair) for pair in pairs])
    book.add("masks/F", [contour_accuracy(*pair) for pair in pairs])
    book.add("masks/F_tolerance", [contour_accuracy(*pair, 0.03) for pair in pairs])
    large = np.stack([dilate(random.random((150, 200)) < 0.002, 9) for _ in range(2)])  # 0.008 of its diagonal are 2 pixels
    book.add("masks/F_large", contour_accuracy(*large))
    for count in (1, 5, 21):
        values = random.random(count)
        values[2:3] = np.nan
        book.add(f"masks/statistics/{count}", list(sequence_statistics(values)))
    attention = torch.from_numpy(random.random((3, 7, 9), dtype=np.float32))
    for mass in (0.2, 0.6, 0.8, 1.0):
        book.add(f"masks/attention_mass/{mass}", mass_masks(attention, mass))


def _propagation(book: Book) -> None:
    from dinoeval.maths.propagation import propagate

    random = np.random.default_rng(3)
    tokens = torch.nn.functional.normalize(torch.from_numpy(random.standard_normal((4, 13, 17, 12), dtype=np.float32)), dim=-1)
    tokens[1, 2:5, 3:8] = tokens[1, 2, 3].clone()  # equal cosines
    maps = [torch.from_numpy(random.random((3, 13, 17), dtype=np.float32)) for _ in range(3)]
    book.add("propagation/default", propagate(tokens[3], list(tokens[:3]), maps))
    book.add("propagation/near", propagate(tokens[3], list(tokens[:3]), maps, radius=2, top_k=1, temperature=0.05))
    book.add("propagation/few", propagate(tokens[3, :2, :2], [tokens[1, :2, :2]], [maps[0][:, :2, :2]], radius=1, top_k=9))
    wide = torch.nn.functional.normalize(torch.from_numpy(random.standard_normal((3, 27, 34, 200), dtype=np.float32)), dim=-1)
    labels = [torch.from_numpy(random.random((2, 27, 34), dtype=np.float32)) for _ in range(2)]
    book.add("propagation/wide", propagate(wide[2], list(wide[:2]), labels))


def solvers(book: Book, folder: Path) -> None:
    """Linear heads trained side by side, and logistic regression by scikit-learn."""
    from dinoeval.maths.heads import Heads
    from dinoeval.maths.logistic import duality_gap, fit_logistic, fit_one_vs_rest, memory_needed

    random = np.random.default_rng(4)
    features, labels = random.standard_normal((120, 10), dtype=np.float32), random.integers(0, 4, 120)
    features[:, :4] += np.eye(4, dtype=np.float32)[labels]
    rows, truth = torch.from_numpy(features), torch.from_numpy(labels)
    heads = Heads([0.1, 1.0, 3e38, 0.5], [0.0, 0.0, 0.0, 0.01], 10, 4, seed=0, device=torch.device("cpu"))
    losses = [heads.step(rows[first : first + 24], truth[first : first + 24], 1 - first / 240) for first in range(0, 120, 24)]
    heads.stop_diverged()
    book.add_all("heads", {"losses": torch.stack(losses), "ranks": heads.ranks(rows, truth), "logits": heads.logits(rows[:3])})
    book.add_all("heads/state", heads.state())

    marks = random.choice([-1, 0, 1, 1], (120, 5))
    marks[:, 3] = 1  # nothing to learn
    for name, solve, targets in (("classes", fit_logistic, labels), ("two_classes", fit_logistic, labels // 2), ("each", fit_one_vs_rest, marks)):
        for strength in (0.1, 2.0):
            model = solve(features, targets, strength=strength, solver="sklearn")
            book.add_all(f"logistic/{name}/{strength}", {"weights": model.weights, "objective": model.objective, "gap": model.gap})
            book.add_all(f"logistic/{name}/{strength}", {"passes": model.passes, "ranked": model.rank(features[:20])})
    book.add("logistic/stopped", fit_logistic(features, labels, strength=0.1, solver="sklearn", max_iter=3).gap)
    book.add("logistic/certificate", list(duality_gap(features.astype(np.float64), labels, np.full((10, 4), 0.1), 0.5)))
    book.add("logistic/bytes", [memory_needed(1_281_167, 384, 1000), memory_needed(5011, 2048, 2)])
