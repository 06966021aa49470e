"""`dinoeval train --list-presets`."""

from __future__ import annotations

import dataclasses
import json
import shutil
import textwrap
from typing import Any

from dinoeval.files import expand, write_whole
from dinoeval.training.pretrain.presets import PRESETS, Preset


def format_option(name: str, value: Any) -> str:
    """Write an option as it is typed.

    Args:
        name: Field of a recipe.
        value: A number, a word, a flag or a tuple of numbers.

    Examples:
        >>> format_option("local_scale", (0.05, 0.25)), format_option("norm_last_layer", False)
        ('--local-scale 0.05 0.25', '--no-norm-last-layer')
    """
    option = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{option}" if value else f"--no-{option}"
    values = value if isinstance(value, tuple) else (value,)
    return f"--{option} {' '.join(f'{one:g}' if isinstance(one, float) else str(one) for one in values)}"


def list_presets(path: str | None = None) -> int:
    """Print all presets, and write them to a file.

    Args:
        path: File for a JSON list, or None.

    Returns:
        The exit code.

    Raises:
        DinoevalError: If the file cannot be written.
    """
    width = min(120, shutil.get_terminal_size((120, 0)).columns)
    for preset in PRESETS.values():
        print(preset.id)
        for line in _lines(preset):
            print(textwrap.fill(line, width, initial_indent="    ", subsequent_indent="      "))
    if path:
        content = json.dumps([describe_preset(preset) for preset in PRESETS.values()], indent=1) + "\n"
        write_whole(expand(path), lambda file: file.write_text(content))
    return 0


def describe_preset(preset: Preset) -> dict[str, Any]:
    """Describe a preset by plain values.

    Args:
        preset: The preset.

    Returns:
        Its name, base, architecture, changes, published numbers, choices, note and complete recipe.
    """
    return {
        "id": preset.id,
        "base": preset.base.id if preset.base else None,
        "arch": preset.arch,
        "changes": dict(preset.changes),
        "published": dict(preset.published),
        "choices": list(preset.choices),
        "note": preset.note,
        "recipe": dataclasses.asdict(preset.recipe),
    }


def _lines(preset: Preset) -> list[str]:
    changes = [format_option(name, value) for name, value in preset.changes.items()]
    arch = [f"--arch {preset.arch}"] if preset.own_arch or not preset.base else []
    lines = [f"{preset.base.id if preset.base else 'defaults'}: {', '.join(arch + changes) or 'unchanged'}"]
    if preset.published:
        lines.append("published: " + ", ".join(f"{name} {value}" for name, value in preset.published.items()))
    lines += [f"chosen: {choice}" for choice in preset.choices]
    return lines + ([preset.note] if preset.note else [])
