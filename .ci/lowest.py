"""Print the lowest version of each dependency that pyproject.toml allows, as constraints for pip."""

import re
import sys
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).resolve().parent.parent / "pyproject.toml").read_text())["project"]
for requirement in project["dependencies"]:
    name, version = re.fullmatch(r"([\w.-]+)>=([\w.]+)(?:;.*)?", requirement.replace(" ", "")).groups()
    print(f"{name}=={version}")
print(f"# Python {sys.version_info.major}.{sys.version_info.minor}", file=sys.stderr)
