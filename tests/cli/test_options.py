"""Options: the help of every command, and how functions and dataclasses become options."""

from __future__ import annotations

import dataclasses
import re
from typing import Literal

import pytest

from dinoeval.cli import options
from dinoeval.cli.commands import all_commands

COMMANDS = list(all_commands())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shared:
    """Options that several commands share."""

    device: str = "auto"
    """Device of the network."""
    cache: str | None = None
    """Folder (default: the user's)."""


def command(images: tuple[str, ...], target: str = "out", /, *, k: int = 3, kind: Literal["a", "b"] | None = None, shared: Shared) -> int:
    """Do something.

    Args:
        images: Files.
        target: Where to write.
        k: Number of
            neighbors.
        kind: Kind (default: that of the index).
        shared: Shared options.

    Returns:
        The exit code.
    """
    assert (images, target, k, kind, shared) == (("x", "y"), "out", 5, "b", Shared(device="cpu"))
    return 7


def help_of(capsys, function) -> str:
    with pytest.raises(SystemExit) as stopped:
        options.call(function, ["--help"], "dinoeval test")
    assert stopped.value.code == 0
    return capsys.readouterr().out


def option_texts(text: str) -> dict[str, str]:
    """Return the help text of every option and positional argument on a help page, in one line each."""
    entries: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        content = line[2:].rstrip("│ ") if line[:2] in ("│ ", "  ") else ""  # a box, drawn with lines or with spaces
        if content and not content.startswith(" "):
            name, _, rest = content.partition("  ")
            entries[name] = rest.strip()
        elif content:
            entries[name] = f"{entries[name]} {content.strip()}".strip()
    return entries


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


def test_function_parameters_become_options():
    assert options.call(command, ["x", "y", "--k", "5", "--kind", "b", "--device", "cpu"], "dinoeval test") == 7


def test_help_shows_texts_defaults_and_positional_names(capsys):
    texts = option_texts(help_of(capsys, command))
    assert texts["IMAGES..."].startswith("Files.")
    assert texts["[TARGET]"] == "Where to write. (default: out)"
    assert texts["--k INT"] == "Number of neighbors. (default: 3)"
    assert texts["--kind {a,b}"] == "Kind (default: that of the index)."
    assert texts["--device STR"] == "Device of the network. (default: auto)"
    assert texts["--cache STR"] == "Folder (default: the user's)."


def test_none_is_not_a_value_of_an_option():
    with pytest.raises(SystemExit) as stopped:
        options.call(command, ["x", "--kind", "None"], "dinoeval test")
    assert stopped.value.code == 2


def test_parse_returns_one_instance_per_default():
    parsed = options.parse((Shared(device="mps"), options.JsonOutput()), ["--json", "r.json"], "dinoeval test", "")
    assert parsed == (Shared(device="mps"), options.JsonOutput(json="r.json"))


def test_field_help_joins_lines_and_includes_parents():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Child(Shared):
        seed: int = 0
        """Seed of
        everything."""

    assert options.field_help(Child)["seed"] == "Seed of everything."
    assert options.field_help(Child)["device"] == "Device of the network."


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command_is_complete(call, name):
    code, out, _ = call(*name.split(), "--help")
    assert code == 0
    assert f"usage: dinoeval {name}" in out
    assert "(default: None)" not in out
    texts = option_texts(out)
    assert "-h, --help" in texts
    missing = [option for option, text in texts.items() if not re.sub(r"\((default: [^()]*|required)\)$", "", text).strip()]
    assert not missing, f"options of {name} without a help text: {missing}"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_does_not_state_a_default_twice(call, name):
    _, out, _ = call(*name.split(), "--help")
    repeated = [option for option, text in option_texts(out).items() if text.count("(default:") > 1]
    assert not repeated
