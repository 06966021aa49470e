"""Every number that is claimed to be printed, against an independent copy."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from dinoeval.models.build import build_network
from dinoeval.models.zoo import ZOO
from dinoeval.paper.rows import PaperRow, builtin_rows, frozen, printed_values, rows_for
from dinoeval.training.finetune.recipes import PRESETS

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/paper_rows.json").read_text())


def test_rows_equal_the_golden_copy():
    """The copy was checked against the tables of the paper; a printed number never changes."""
    rows = [[row.source, row.protocol, row.network, row.metric, row.value, row.decimals] for row in builtin_rows()]
    assert rows == GOLDEN["rows"]


def test_requirements_equal_the_golden_copy():
    found = {}
    for row in builtin_rows():
        key = f"{row.source}/{row.protocol}/{row.network}/{row.metric}"
        fields = {one.field: one.expected for one in row.requires}
        found.setdefault(key, []).append({**fields, "incomparable": row.incomparable})
    assert found == GOLDEN["requirements"]


def test_networks_of_rows_are_known_models():
    for name in {row.network.removeprefix("random/") for row in builtin_rows()}:
        with torch.device("meta"):
            assert name in ZOO or build_network(name) is not None


def test_finetune_rows_require_the_values_of_their_preset():
    for row in rows_for("finetune"):
        fields = {one.field: one.allowed[0] for one in row.requires if one.allowed}
        recipe = PRESETS[fields["config.preset"]].record()
        assert {name: fields[f"config.{name}"] for name in recipe} == {name: frozen(value) for name, value in recipe.items()}


def test_rows_have_requirements_and_values_in_percent():
    for row in builtin_rows():
        assert row.requires or row.protocol == "speed"
        assert 0 < row.value < 100 or row.protocol == "speed"
        assert row.value == round(row.value, row.decimals)


def test_rows_are_frozen_and_take_keywords_only():
    row = builtin_rows()[0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        row.value = 1.0
    with pytest.raises(TypeError):
        PaperRow("Table 2", "knn", "vit_s16", "top1@20", 74.5, 1)


def test_printed_values_are_looked_up_by_network():
    assert printed_values("knn", "top1@20")["vit_s8"] == 78.3
    assert printed_values("linear", "top1_best_on_val")["vit_b8"] == 80.1
    assert printed_values("speed", "images_per_second")["vit_s5"] == 44
