"""Protocols of other packages: found by entry point, never in place of a built-in one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dinoeval import protocols
from dinoeval.cli.commands import MAX_SUMMARY, all_commands, find
from dinoeval.errors import ConfigError


def install(folder: Path, monkeypatch, *, package: str, entry: str, source: str = '"""Do something."""\nVERSION = 3\n') -> str:
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


def test_installed_protocol_is_a_command(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, package="acme-texture", entry="texture", source=f'"""Score {"very " * 20}well.\n\nMore."""\n')
    command, rest = find(["texture", "--data", "x"])
    assert (command.name, rest) == ("texture", ["--data", "x"])
    assert command.resumable
    assert all_commands()["texture"].summary.startswith("Score very")
    assert len(command.summary) <= MAX_SUMMARY


def test_broken_protocol_does_not_break_the_help(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, package="acme-broken", entry="broken", source="raise RuntimeError('reason')\n")
    commands = all_commands()
    assert "knn" in commands
    assert "not usable" in commands["broken"].summary
