"""Protocols of other packages: found by entry point, never in place of a built-in one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dinoeval import protocols
from dinoeval.api import evaluate
from dinoeval.cli.commands import MAX_SUMMARY, all_commands, find
from dinoeval.errors import ConfigError
from dinoeval.paper.rows import rows_for
from dinoeval.reports.table import format_result
from dinoeval.results import Result
from dinoeval.testing import tiny_backbone

WHOLE = '''"""Do something."""
import dataclasses
VERSION = 3
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options."""
def run(config, session):
    """Run."""
'''


def install(folder: Path, monkeypatch, *, package: str, entry: str, source: str = WHOLE) -> str:
    """Write an installed distribution `package` with one module and the entry point `entry`, and return the module's name."""
    module = package.replace("-", "_")
    metadata = folder / f"{module}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[dinoeval.protocols]\n{entry} = {module}\n")
    (folder / f"{module}.py").write_text(source)
    if str(folder) not in sys.path:
        monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, module, raising=False)
    return module


def test_names_include_installed_protocols(tmp_path, monkeypatch):
    module = install(tmp_path, monkeypatch, package="acme-texture", entry="texture")
    assert "texture" in protocols.names()
    assert "texture" not in protocols.builtin_names()
    assert protocols.packages_of("texture") == ["acme-texture"]
    assert protocols.get_protocol("texture").__name__ == module
    assert protocols.get_protocol("texture").VERSION == 3


def test_unknown_protocol_suggests_the_nearest():
    with pytest.raises(ConfigError, match="knn"):
        protocols.get_protocol("knm")


def test_built_in_protocol_cannot_be_shadowed(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, package="acme-knn", entry="knn")
    with pytest.raises(ConfigError, match=r"dinoeval and acme-knn.*'knn'"):
        protocols.get_protocol("knn")


def test_two_packages_cannot_share_a_name(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, package="acme-one", entry="texture")
    install(tmp_path, monkeypatch, package="acme-two", entry="texture")
    with pytest.raises(ConfigError, match=r"acme-(one|two) and acme-(one|two)"):
        protocols.get_protocol("texture")


def test_broken_protocol_error_names_package_and_reason(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, package="acme-broken", entry="broken", source="import not_installed_anywhere\n")
    with pytest.raises(ConfigError, match=r"acme-broken.*not_installed_anywhere"):
        protocols.get_protocol("broken")


def test_entry_point_must_name_a_module(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, package="acme-value", entry="value")
    (tmp_path / "acme_value-1.0.dist-info/entry_points.txt").write_text("[dinoeval.protocols]\nvalue = acme_value:VERSION\n")
    with pytest.raises(ConfigError, match="acme_value:VERSION"):
        protocols.get_protocol("value")


@pytest.mark.parametrize(
    ("source", "mentioned"),
    [
        ('"""Nothing."""\n', "VERSION and no Config and no run"),
        ("VERSION, Config, run = 1, dict, print\n", "dataclass"),
        (WHOLE + "@dataclasses.dataclass(frozen=True, kw_only=True)\nclass Config:\n    folder: str\n", "folder"),
    ],
)
def test_incomplete_protocol_is_an_error_that_names_what_is_missing(tmp_path, monkeypatch, source, mentioned):
    install(tmp_path, monkeypatch, package="acme-part", entry="part", source=source)
    with pytest.raises(ConfigError, match=rf"acme-part.*{mentioned}.*check_protocol"):
        protocols.get_protocol("part")


def test_installed_protocol_is_a_command(tmp_path, monkeypatch):
    source = WHOLE.replace("Do something.", f"Score {'very ' * 20}well.\n\nMore.")
    install(tmp_path, monkeypatch, package="acme-texture", entry="texture", source=source)
    command, rest = find(["texture", "--data", "x"])
    assert (command.name, rest) == ("texture", ["--data", "x"])
    assert command.resumable
    assert all_commands()["texture"].summary.startswith("Score very")
    assert len(command.summary) <= MAX_SUMMARY


@pytest.mark.parametrize("name", ["speed", "search", "knn"])
def test_protocol_named_like_a_command_is_listed_as_unusable(tmp_path, monkeypatch, name):
    install(tmp_path, monkeypatch, package="acme", entry=name)
    assert "not usable" in all_commands()[f"{name} of acme"].summary


def test_broken_protocol_does_not_break_the_help(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, package="acme-broken", entry="broken", source="raise RuntimeError('reason')\n")
    commands = all_commands()
    assert "knn" in commands
    assert "not usable" in commands["broken"].summary


def test_rows_of_a_built_in_protocol_do_not_come_from_other_packages(tmp_path, monkeypatch):
    """A package that takes the name of a built-in protocol does not change or break how saved Results are judged."""
    known = rows_for("knn")
    install(tmp_path, monkeypatch, package="acme-knn", entry="knn", source="raise RuntimeError('reason')\n")
    assert rows_for("knn") == known


@pytest.mark.parametrize(
    ("source", "mentioned"), [("raise RuntimeError('reason')\n", "reason"), ("PAPER_ROWS = ['x']\n", "PaperRow, got str")]
)
def test_broken_rows_are_an_error_that_names_the_module(tmp_path, monkeypatch, source, mentioned):
    install(tmp_path, monkeypatch, package="acme-rows", entry="rows", source=source)
    with pytest.raises(ConfigError, match=f"acme_rows.*{mentioned}"):
        rows_for("rows")


def test_odd_options_are_recorded_as_json_holds_them(tmp_path, monkeypatch):
    source = '''"""Odd options."""
import dataclasses, enum, pathlib
from dinoeval.results import Scores
VERSION = 1
class Color(enum.Enum):
    RED = 1
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options."""
    path: pathlib.Path = pathlib.Path("folder")
    color: Color = Color.RED
    several: frozenset[int] = frozenset((2, 1))
    pair: tuple[int, Color] = (1, Color.RED)
def run(config, session):
    """Run."""
    return session.record("odd", VERSION, config).result(Scores(metrics={"x": 1.0}, standard_errors={}))
'''
    install(tmp_path, monkeypatch, package="acme-odd", entry="odd", source=source)
    result = evaluate("odd", tiny_backbone())
    assert result.config == {"path": "folder", "color": "RED", "several": [1, 2], "pair": (1, "RED")}
    assert result.data == {"name": ""}
    result.save(tmp_path / "r.json")
    assert format_result(Result.load(tmp_path / "r.json")).startswith("odd@1 on unnamed data")
