"""Areas without images: defaults and training recipes; the functions of dinoeval.maths on random arrays."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

from dinoeval import protocols
from dinoeval.maths import attention, propagation, ranks, segmentation
from dinoeval.maths.average_precision import average_precision, mean_average_precision
from dinoeval.maths.bootstrap import bootstrap_mean
from dinoeval.maths.heads import Heads
from dinoeval.maths.logistic import duality_gap, fit_logistic, fit_one_vs_rest, memory_needed
from dinoeval.maths.neighbors import l2_normalize, multilabel_scores, nearest, vote
from dinoeval.maths.whitening import learn_whitening
from dinoeval.models.zoo import ZOO
from dinoeval.results import proportion_error
from dinoeval.throughput import count_macs
from dinoeval.training.finetune.recipes import PRESETS as FINETUNE_PRESETS
from dinoeval.training.pretrain.presets import get_recipe
from regression_areas.recording import Recorder


def constants(record: Recorder, folder: Path) -> None:
    """Defaults and versions of the protocols, training recipes, known weights, MACs of networks."""

    def add_fields(name: str, config: Any) -> None:
        for field, value in dataclasses.asdict(config).items():
            record.add(f"{name}/{field}", (json.dumps(value) if value else None) if isinstance(value, tuple) else value)

    for name in protocols.builtin_names():
        module = protocols.get_protocol(name)
        add_fields(f"default/{name}", module.Config())
        record.add(f"version/{name}", module.VERSION)
    for weights in ZOO.values():
        values = {"arch": weights.arch, "kind": weights.kind, "sha256": weights.sha256, "bytes": weights.size}
        record.add_all(f"weights/{weights.name}", values)
    for name in ("released", "boosted", "cifar10", "digits"):
        add_fields(f"recipe/pretraining/{name}", get_recipe(name))
    for name, recipe in FINETUNE_PRESETS.items():
        add_fields(f"recipe/finetuning/{name}", recipe)
        record.add(f"recipe/finetuning/{name}/peak_lr", recipe.peak_lr)
    record.add_all("throughput/multiply_adds", {arch: count_macs(arch) for arch in ("vit_s16", "vit_b8", "resnet50")})


def math(record: Recorder, folder: Path) -> None:
    """Neighbors, votes, ranks, average precision, whitening, bootstrap, segmentation measures."""
    random = np.random.default_rng(1)
    bank, queries = random.standard_normal((240, 24), dtype=np.float32), random.standard_normal((33, 24), dtype=np.float32)
    bank[100:104] = bank[7]  # equal cosines
    labels, marks = random.integers(0, 7, 240), random.choice([-1, 0, 0, 1], (240, 6))
    cosines, rows = nearest(queries, [bank[:90], bank[90:]], 40)
    record.add_all("nearest", {"normalized": l2_normalize(queries), "cosines": cosines, "rows": rows})
    record.add("nearest/unit_rows", nearest(queries, [l2_normalize(bank)], 12, normalized=True)[1])
    many = random.standard_normal((4_200, 8), dtype=np.float32)  # more queries than are searched at a time
    record.add_all("nearest/many", dict(zip(("cosines", "rows"), nearest(many, [many[:300]], 9), strict=True)))
    record.add("nearest/short_rows", l2_normalize(np.array([[0, 0, 0], [1e-13, 0, 0], [3e-3, -4e-3, 0]], np.float32)))
    record.add("nearest/one_query", nearest(queries[:1], [bank], 5)[0])
    ks = (1, 10, 40)
    for temperature in (0.07, 0.01, 1.0):
        record.add(f"vote/{temperature}", vote(cosines, labels[rows], ks=ks, temperature=temperature, num_classes=7))
        record.add(f"shares/{temperature}", multilabel_scores(cosines, marks, rows, ks=ks, temperature=temperature))
    precisions = _ranks(record, random, queries, bank, labels, marks)
    scores = random.standard_normal((33, 6)).round(1)  # with equal scores
    present = random.choice([-1, 0, 1, 1], (33, 6))
    for area in ("exact", "11-point"):
        found = mean_average_precision(scores, present, area)
        record.add_all(f"precision/{area}", {"of_classes": found.per_class, "mean": found.mean, "error": found.error})
        record.add(f"precision/{area}/of_one_class", average_precision(scores[:, 1], present[:, 1] == 1, area))
    for name, center in (("uncentered", False), ("centered", True)):
        whitening = learn_whitening([bank[:50], bank[50:]], center)
        values = {"mean": whitening.mean, "projection": whitening.projection, "rows": whitening(queries)}
        record.add_all(f"whitening/{name}", values)
    record.add_all("bootstrap", dataclasses.asdict(bootstrap_mean(precisions[~np.isnan(precisions)])))
    record.add("bootstrap/of_one", bootstrap_mean(precisions[:1]).low)
    record.add("proportion_error", [proportion_error(percent, 1234) for percent in (0.0, 12.5, 74.5, 100.0)])
    _masks(record)
    _propagation(record)


def _ranks(record: Recorder, random: np.random.Generator, queries: Any, bank: Any, labels: Any, marks: Any) -> np.ndarray:
    """Record ranks and return the average precision of each query."""
    distractors, similarities = random.standard_normal((60, 24), dtype=np.float32), l2_normalize(queries) @ l2_normalize(bank).T
    blocks = [l2_normalize(distractors[:20]), l2_normalize(distractors[20:])]
    closer = ranks.count_closer_distractors(l2_normalize(queries), similarities, blocks)
    order = ranks.rank_by_similarity(similarities)
    positives = [np.flatnonzero(labels == query % 8) for query in range(len(queries))]  # none for every eighth query
    junk = np.flatnonzero(marks[:, 0] == -1)
    found = [ranks.positive_ranks(order[query], positives[query], junk, closer[query]) for query in range(len(queries))]
    precisions, at = ranks.score_ranks(found, [len(right) for right in positives], (1, 5, 10))
    record.add_all("ranks", {"order": order, "closer_distractors": closer, "positives": np.concatenate(found)})
    trapezoids, at_7 = ranks.trapezoid_precision(found[0], 50), ranks.precision_at(found[1], 7)
    values = {"average_precision": precisions, "precision_at": at, "by_trapezoids": trapezoids, "precision_at_7": at_7}
    record.add_all("ranks", values)
    return precisions


def _masks(record: Recorder) -> None:
    random, dilate = np.random.default_rng(2), segmentation.dilate
    blobs = np.stack([dilate(random.random((60, 82)) < 0.004, radius) for radius in (3, 5, 7, 9)])
    indices = segmentation.jaccard_indices(blobs[:2], blobs[1:])
    record.add_all("masks", {"dilated": blobs, "boundary": segmentation.boundary(blobs[2]), "jaccards": indices})
    record.add("masks/jaccards_of_counted", segmentation.jaccard_indices(blobs[:2], blobs[1:], ~blobs[3]))
    empty = np.zeros_like(blobs[0])
    pairs = [(blobs[0], blobs[1]), (blobs[2], blobs[3]), (blobs[0], empty), (empty, empty), (blobs[1], blobs[1])]
    record.add("masks/J", [segmentation.region_similarity(*pair) for pair in pairs])
    record.add("masks/F", [segmentation.contour_accuracy(*pair) for pair in pairs])
    record.add("masks/F_tolerance", [segmentation.contour_accuracy(*pair, 0.03) for pair in pairs])
    large = np.stack([dilate(random.random((150, 200)) < 0.002, 9) for _ in range(2)])  # 0.008 of its diagonal are 2 pixels
    record.add("masks/F_large", segmentation.contour_accuracy(*large))
    for count in (1, 5, 21):
        values = random.random(count)
        values[2:3] = np.nan
        record.add(f"masks/statistics/{count}", segmentation.sequence_statistics(values))
    maps = torch.from_numpy(random.random((3, 7, 9), dtype=np.float32))
    record.add_all("masks/attention_mass", {f"{mass}": attention.mass_masks(maps, mass) for mass in (0.2, 0.6, 0.8, 1.0)})


def _propagation(record: Recorder) -> None:
    random, propagate = np.random.default_rng(3), propagation.propagate
    tokens = normalize(torch.from_numpy(random.standard_normal((4, 13, 17, 12), dtype=np.float32)), dim=-1)
    tokens[1, 2:5, 3:8] = tokens[1, 2, 3].clone()  # equal cosines
    maps = [torch.from_numpy(random.random((3, 13, 17), dtype=np.float32)) for _ in range(3)]
    default = {"radius": 12, "top_k": 5, "temperature": 0.1}
    record.add("propagation/default", propagate(tokens[3], list(tokens[:3]), maps, **default))
    record.add("propagation/near", propagate(tokens[3], list(tokens[:3]), maps, radius=2, top_k=1, temperature=0.05))
    few = {**default, "radius": 1, "top_k": 9}
    record.add("propagation/few", propagate(tokens[3, :2, :2], [tokens[1, :2, :2]], [maps[0][:, :2, :2]], **few))
    wide = normalize(torch.from_numpy(random.standard_normal((3, 27, 34, 200), dtype=np.float32)), dim=-1)
    labels = [torch.from_numpy(random.random((2, 27, 34), dtype=np.float32)) for _ in range(2)]
    record.add("propagation/wide", propagate(wide[2], list(wide[:2]), labels, **default))


def solvers(record: Recorder, folder: Path) -> None:
    """Linear heads trained together, and logistic regression by scikit-learn."""
    random = np.random.default_rng(4)
    features, labels = random.standard_normal((120, 10), dtype=np.float32), random.integers(0, 4, 120)
    features[:, :4] += np.eye(4, dtype=np.float32)[labels]
    inputs, targets = torch.from_numpy(features), torch.from_numpy(labels)
    heads = Heads([0.1, 1.0, 3e38, 0.5], [0.0, 0.0, 0.0, 0.01], 10, 4, seed=0, device=torch.device("cpu"))
    losses = [heads.step(inputs[first : first + 24], targets[first : first + 24], 1 - first / 240) for first in range(0, 120, 24)]
    heads.stop_diverged()
    record.add_all("heads", {"losses": torch.stack(losses), "ranks": heads.ranks(inputs, targets), "logits": heads.logits(inputs[:3])})
    record.add_all("heads/state", heads.state())

    marks = random.choice([-1, 0, 1, 1], (120, 5))
    marks[:, 3] = 1  # a class without negative images
    cases = (("classes", fit_logistic, labels), ("two_classes", fit_logistic, labels // 2), ("each", fit_one_vs_rest, marks))
    for name, fit, targets in cases:
        for strength in (0.1, 2.0):
            model = fit(features, targets, strength=strength, solver="sklearn")
            values = {"weights": model.weights, "objective": model.objective, "gap": model.gap, "passes": model.passes}
            record.add_all(f"logistic/{name}/{strength}", {**values, "ranked": model.rank(features[:20])})
    record.add("logistic/stopped", fit_logistic(features, labels, strength=0.1, solver="sklearn", max_iter=3).gap)
    record.add("logistic/certificate", duality_gap(features.astype(np.float64), labels, np.full((10, 4), 0.1), 0.5))
    record.add("logistic/bytes", [memory_needed(1_281_167, 384, 1000), memory_needed(5011, 2048, 2)])
