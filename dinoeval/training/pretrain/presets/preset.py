"""Preset: a named recipe, written as its difference from another one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from dinoeval.training.pretrain.recipe import Recipe

# A small base keeps its own values of these, unless they are what a row is about.
_SIZE_FIELDS = frozenset(
    {
        *("epochs", "batch_size", "optimizer", "lr", "min_lr", "warmup_epochs", "weight_decay", "weight_decay_end", "clip_grad"),
        *("drop_path", "queue_size", "hidden_dim", "momentum_teacher", "momentum_teacher_end", "warmup_teacher_temp_epochs"),
        *("global_scale", "local_scale"),
    }
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """A training that the paper, its appendices or the released README report, or a base of such trainings."""

    id: str
    """Its name, such as `table7-row3`."""
    base: Preset | None = None
    """What it changes; None for the defaults of `Recipe`."""
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of `Recipe` with the values that differ from the base."""
    own_arch: str = ""
    """Architecture, if it is not that of the base."""
    published: Mapping[str, float | str] = dataclasses.field(default_factory=dict)
    """Published numbers: `knn` and `linear` are top-1 in percent on ImageNet."""
    own_choices: tuple[str, ...] = ()
    """Values that are published nowhere."""
    note: str = ""
    """What cannot be expressed by a recipe, such as the dataset."""

    @property
    def arch(self) -> str:
        """Architecture of the backbone."""
        return self.own_arch or (self.base.arch if self.base else "vit_s16")

    @property
    def choices(self) -> tuple[str, ...]:
        """Values that are published nowhere, those of the bases included."""
        return (*(self.base.choices if self.base else ()), *self.own_choices)

    @property
    def recipe(self) -> Recipe:
        """The recipe.

        Examples:
            >>> Preset(id="longer", changes={"epochs": 800}).recipe.epochs
            800
        """
        return dataclasses.replace(self.base.recipe if self.base else Recipe(), **self.changes)

    def on(self, small: Preset) -> Preset:
        """Apply what this preset changes to another base.

        Args:
            small: A preset for little data. It keeps its sizes, rates and crop scales, unless this preset itself, and not one
                of its bases, changes them.

        Returns:
            A preset without published numbers, with the architecture of `small`.

        Examples:
            >>> small = Preset(id="small", changes={"epochs": 5, "warmup_epochs": 1}, own_arch="vit_xs4_32")
            >>> base = Preset(id="base", base=Preset(id="root"), changes={"epochs": 300, "teacher": "copy"})
            >>> Preset(id="row", base=base, changes={"objective": "mse"}).on(small).changes
            {'teacher': 'copy', 'objective': 'mse'}
        """
        changes: dict[str, Any] = {}
        ancestor = self.base
        while ancestor is not None and ancestor.base is not None:  # The root is what `small` replaces.
            changes = {name: value for name, value in ancestor.changes.items() if name not in _SIZE_FIELDS} | changes
            ancestor = ancestor.base
        changes |= self.changes if self.base else {}
        return Preset(id=f"{self.id} on {small.id}", base=small, changes=changes, own_choices=self.choices, note=self.note)
