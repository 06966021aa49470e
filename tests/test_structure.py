"""The rules of the layout, kept true by reading the source."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from dinoeval import protocols
from dinoeval.results import Reference

PACKAGE = Path(__file__).parent.parent / "dinoeval"
FILES = sorted(PACKAGE.rglob("*.py"))
OPEN_TO_ALL = ("errors", "files", "environment", "maths")
# Who may import whom besides, by the beginning of the module's name.
ALLOWED = {
    "errors": (),
    "files": (),
    "environment": (),
    "distributed": (),
    "maths": (),
    "results": (),
    "models": ("models",),
    "data": ("data",),
    "features.readout": ("models.backbone",),
    "features": ("models", "data", "features", "distributed"),
    "session": ("models", "data", "features", "distributed"),
    "figures": ("figures", "models", "data", "features", "session", "distributed"),
    "video": ("models", "data", "session"),
    "protocols": (
        "protocols._classification",
        "protocols._instances",
        "video",
        "figures",
        "models",
        "data",
        "features",
        "results",
        "session",
        "distributed",
        "training",
    ),
    "training": ("models", "data", "training", "distributed", "features.readout"),
    "throughput": ("models", "data", "features", "distributed"),
    "api": ("models", "data", "features", "protocols", "results", "session"),
    "search": ("search", "models", "data", "features", "session", "distributed"),
    "cli": ("",),
}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path) -> set[str]:
    """Modules of ours that a file imports, anywhere in it, without the leading `dinoeval.`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "dinoeval":
            if node.module == "dinoeval":
                found |= {alias.name for alias in node.names if not alias.name.startswith("__")}
            else:
                found.add(node.module.removeprefix("dinoeval."))
        if isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("dinoeval.") for alias in node.names if alias.name.startswith("dinoeval.")}
    return found


@pytest.mark.parametrize("path", [f for f in FILES if f.parent != PACKAGE or f.stem not in ("__init__", "__main__")], ids=module_of)
def test_a_module_imports_only_what_its_layer_may(path):
    module = module_of(path)
    layer = max((name for name in ALLOWED if module == name or module.startswith(f"{name}.")), key=len)
    allowed = ALLOWED[layer] + (() if layer in ("errors", "maths") else OPEN_TO_ALL)
    for imported in imports_of(path):
        assert any(imported == one or imported.startswith(f"{one}.") or one == "" for one in allowed), f"{module} imports {imported}"
        assert not (layer == "protocols" and imported.startswith("protocols.") and not imported.startswith("protocols._"))


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_only_the_command_line_prints_and_files_stay_short(path):
    source = path.read_text()
    assert len(source.splitlines()) <= 400
    if not module_of(path).startswith("cli"):
        calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
        assert not [call.lineno for call in calls if call.func.id == "print"]


def test_there_is_no_dumping_ground():
    assert not {"utils", "common", "helpers", "misc"} & {path.stem for path in FILES}


@pytest.mark.parametrize("name", protocols.names())
def test_every_protocol_keeps_the_contract(name):
    module = protocols.get_protocol(name)
    assert module.__doc__
    assert isinstance(module.VERSION, int)
    assert all(isinstance(reference, Reference) for reference in module.PAPER.values())
    config = module.Config
    assert dataclasses.is_dataclass(config)
    assert config.__dataclass_params__.frozen
    assert all(field.kw_only for field in dataclasses.fields(config))
    assert len(dataclasses.fields(config)) <= 12
    config()  # the paper's values are the defaults
    source = inspect.getsource(config)
    for field in dataclasses.fields(config):  # a docstring under each field, which is its help text
        assert f"    {field.name}:" in source
    docs = [node for node in ast.parse(source).body[0].body[1:] if isinstance(node, ast.Expr)]
    assert len(docs) == len(dataclasses.fields(config))
    assert list(inspect.signature(module.run).parameters) == ["config", "session"]


@pytest.mark.parametrize("statement", ["import dinoeval", "import dinoeval.cli", "import dinoeval.results", "import dinoeval.models.zoo"])
def test_what_must_answer_at_once_does_not_import_torch(statement):
    code = f"{statement}; import sys; assert 'torch' not in sys.modules, 'torch'; assert 'faiss' not in sys.modules, 'faiss'"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_training_needs_neither_faiss_nor_the_command_line():
    """So that a bare PyTorch machine can train."""
    code = "import sys; sys.modules.update(faiss=None, tyro=None, cyanure=None); import dinoeval.training.pretrain.loop"
    subprocess.run([sys.executable, "-c", code], check=True)
