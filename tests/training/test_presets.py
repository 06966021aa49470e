"""Every number of the named recipes, against a copy: a preset that changes trains another network."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from dinoeval.training.finetune.recipes import PRESETS as FINETUNING
from dinoeval.training.pretrain.presets import PRESETS as PRETRAINING

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/presets.json").read_text())


@pytest.mark.parametrize(("kind", "presets"), [("pretraining", PRETRAINING), ("fine-tuning", FINETUNING)])
def test_presets_equal_the_golden_copy(kind, presets):
    assert {name: json.loads(json.dumps(dataclasses.asdict(recipe))) for name, recipe in presets.items()} == GOLDEN[kind]
