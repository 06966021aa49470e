"""Write docs/presets.md, the table of all presets of `dinoeval train`.

python docs/presets.py
"""

from __future__ import annotations

from pathlib import Path

from dinoeval.cli.presets import format_option
from dinoeval.training.pretrain.presets import BASES, PAPER, Preset

PAGE = Path(__file__).with_suffix(".md")
HEAD = """# Presets

All trainings of the paper and of the README of the released code, as `dinoeval train --list-presets` prints them.
[Training](training.md) explains how to use them. A row lists the differences from its base, which can itself have a base. Unless
stated otherwise, published numbers are k-NN (`knn`) and linear top-1 on ImageNet in percent. *Chosen* values are not published.

Sources: the paper (arXiv 2104.14294) with its appendices; [C] facebookresearch/dino at 7c446df and its README; [I n] issue n of
that repository, with an answer of the authors; [V] the configurations of facebookresearch/vissl at 09270ed.
"""


def describe(preset: Preset) -> str:
    """Return the row of a preset."""
    arch = [f"`--arch {preset.arch}`"] if preset.own_arch or not preset.base else []
    changes = [f"`{format_option(name, value)}`" for name, value in preset.changes.items()]
    published = ", ".join(f"{name} {value}" for name, value in preset.published.items())
    notes = [f"Chosen: {'; '.join(preset.own_choices)}."] if preset.own_choices else []
    notes += [preset.note] if preset.note else []
    base = f"`{preset.base.id}`" if preset.base else "the defaults"
    return f"| `{preset.id}` | {base} | {', '.join(arch + changes)} | {published} | {' '.join(notes)} |"


def render() -> str:
    """Return the page."""
    lines = [HEAD]
    for title, presets in (("Bases", BASES), ("Trainings of the paper", PAPER)):
        lines += [f"## {title}", "", "| preset | base | changes | published | notes |", "|---|---|---|---|---|"]
        lines += [*map(describe, presets.values()), ""]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(render())
