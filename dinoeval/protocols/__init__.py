"""The protocols: built in, one module each, and those that other installed packages register by entry point.

A protocol is a module with a docstring, VERSION, Config and run(config, session) -> Result. Importing it must not import
torch. A built-in protocol is a file of this folder whose name does not start with an underscore. Another package adds one with

    [project.entry-points."dinoeval.protocols"]
    texture = "dinoeval_texture"

in its pyproject.toml; `dinoeval.testing.check_protocol` lists what such a module lacks.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import pkgutil
from types import ModuleType

from dinoeval.errors import ConfigError, unknown

ENTRY_POINTS = "dinoeval.protocols"
"""Entry-point group of protocols from other packages: name of the protocol -> module."""


def builtin_names() -> list[str]:
    """Return the names of the built-in protocols, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def installed_names() -> list[str]:
    """Return the names of protocols from other installed packages, sorted."""
    return sorted({entry.name for entry in importlib.metadata.entry_points(group=ENTRY_POINTS)})


def names() -> list[str]:
    """Return the names of all protocols, sorted.

    Examples:
        >>> {"davis", "knn", "linear"} <= set(names())
        True
    """
    return sorted({*builtin_names(), *installed_names()})


def packages_of(name: str) -> list[str]:
    """Return the packages that provide a protocol; more than one is a conflict.

    Args:
        name: Name of a protocol.

    Returns:
        Names of distributions, `dinoeval` first if the protocol is built in.
    """
    entries = importlib.metadata.entry_points(group=ENTRY_POINTS, name=name)
    return [*(["dinoeval"] if name in builtin_names() else []), *(_package(entry) for entry in entries)]


def get_protocol(name: str) -> ModuleType:
    """Import a protocol by name.

    Args:
        name: Name of a built-in protocol, or of an entry point of the group `dinoeval.protocols`.

    Returns:
        The module.

    Raises:
        ConfigError: If no package or more than one provides the name, or if the module cannot be imported or
            lacks a part.

    Examples:
        >>> get_protocol("knn").VERSION
        1
    """
    packages = packages_of(name)
    if not packages:
        raise ConfigError(unknown("protocol", name, names()))
    if len(packages) > 1:
        raise ConfigError(
            f"the packages {' and '.join(packages)} both provide a protocol '{name}': rename the entry point of {packages[-1]}, "
            f"or uninstall it (pip uninstall {packages[-1]})"
        )
    if name in builtin_names():
        return importlib.import_module(f"{__name__}.{name}")
    (entry,) = importlib.metadata.entry_points(group=ENTRY_POINTS, name=name)
    try:
        module = entry.load()
    except Exception as error:  # A module of another package can raise anything while it is imported.
        raise ConfigError(f"the protocol '{name}' of {_package(entry)} cannot be imported: {type(error).__name__}: {error}") from error
    if not isinstance(module, ModuleType):
        raise ConfigError(f"the entry point '{name}' of {_package(entry)} must name a module, got {entry.value}")
    if problem := _problem(module):
        raise ConfigError(f"the protocol '{name}' of {_package(entry)} {problem}; dinoeval.testing.check_protocol lists all that it lacks")
    return module


def _problem(module: ModuleType) -> str | None:
    """Describe what keeps a module from being run at all."""
    if missing := [part for part in ("VERSION", "Config", "run") if not hasattr(module, part)]:
        return f"has no {' and no '.join(missing)}"
    if not dataclasses.is_dataclass(module.Config):
        return "has a Config that is not a dataclass"
    required = [
        field.name
        for field in dataclasses.fields(module.Config)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    return f"has options without a default: {', '.join(required)}" if required else None


def _package(entry: importlib.metadata.EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else entry.module
