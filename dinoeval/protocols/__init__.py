"""One module a protocol, found by its file name; each has VERSION, PAPER, Config and run(config, session) -> Result.

None imports another, and none imports torch while it is imported.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from dinoeval.errors import ConfigError, unknown


def names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def get_protocol(name: str) -> ModuleType:
    """Import a protocol by name; raises ConfigError with a suggestion."""
    if name not in names():
        raise ConfigError(unknown("protocol", name, names()))
    return importlib.import_module(f"{__name__}.{name}")
