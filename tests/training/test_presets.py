"""Every number of the named recipes, against a copy: a preset that changes trains another network."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from dinoeval.training.finetune.recipes import PRESETS as FINETUNING
from dinoeval.training.pretrain.presets import BASES, PAPER, PRESETS, Preset, get_preset
from dinoeval.training.pretrain.recipe import Recipe

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/presets.json").read_text())


def plain(values: Any) -> Any:
    return json.loads(json.dumps(values))


def test_fine_tuning_presets_equal_the_golden_copy():
    assert plain({name: dataclasses.asdict(recipe) for name, recipe in FINETUNING.items()}) == GOLDEN["fine-tuning"]


def test_pretraining_presets_equal_the_golden_copy():
    """The copy has the architecture and what differs from the defaults, which tests/paper pins."""
    defaults = dataclasses.asdict(Recipe())
    found = {
        name: {"arch": preset.arch}
        | {field: value for field, value in dataclasses.asdict(preset.recipe).items() if value != defaults[field]}
        for name, preset in PRESETS.items()
    }
    assert plain(found) == GOLDEN["pretraining"]


def test_page_of_presets_is_up_to_date():
    """`python docs/presets.py` writes it."""
    docs = Path(__file__).parents[2] / "docs"
    spec = importlib.util.spec_from_file_location("presets_page", docs / "presets.py")
    assert spec
    assert spec.loader
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    assert (docs / "presets.md").read_text() == page.render()


def test_all_trainings_of_the_paper_have_a_preset():
    """Tables 7, 13, 14, 15: 33; Tables 8, 9, Figures 5, 6, 7: 28; appendices C, D, E: 52; Tables 2, 3 and README: 16."""
    assert len(PAPER) == 129
    assert all(preset.id == name for name, preset in PRESETS.items())
    assert not set(PAPER) & set(BASES)


@pytest.mark.parametrize("small", ["digits", "cifar10"])
def test_differences_apply_to_small_bases(small):
    base = get_preset(small).recipe
    for name, preset in PAPER.items():
        applied = get_preset(name, small)
        assert applied.arch == get_preset(small).arch
        assert not applied.published
        for field, value in preset.changes.items():
            assert getattr(applied.recipe, field) == value, (name, field)
        kept = {"global_crop", "local_crop", "jitter", "blur_radius", "flip"}
        assert all(getattr(applied.recipe, field) == getattr(base, field) for field in kept)
    assert get_preset("table7-row8", small).recipe.objective == "infonce"  # of its base
    assert get_preset("table7-row8", small).recipe.queue_size == base.queue_size < 65536
    assert get_preset("table7-row1", small).recipe == base


def test_choices_of_the_bases_count():
    assert len(get_preset("table13-rn50-byol").choices) == 4
    assert get_preset("table13-rn50-byol", "digits").choices == get_preset("table13-rn50-byol").choices
    assert isinstance(get_preset("byol"), Preset)
