"""The rules of the layout, checked by reading the source."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dinoeval import protocols
from dinoeval.paper import rows

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "dinoeval"
FILES = sorted(PACKAGE.rglob("*.py"))
ALL_FILES = [*FILES, *(path for folder in ("tests", "benchmarks", "examples") for path in sorted((ROOT / folder).rglob("*.py")))]
MAX_LINES = 400
MAX_PARAMETERS = 7
MAX_FORMAT_SKIPS = 8
MAX_SUMMARY = 80
BASE = ("errors", "files", "pickles", "decoding", "environment", "distributed", "display", "progress", "guard", "coercion", "maths")
# The modules that a module may import, by the beginning of its name; the longest entry applies.
ALLOWED: dict[str, tuple[str, ...]] = {
    "errors": (),
    "files": ("errors",),
    "decoding": ("errors", "files"),
    "pickles": ("pickles",),
    "environment": ("errors", "files"),
    "distributed": ("errors", "guard"),
    "guard": ("errors",),
    "coercion": ("display", "errors"),
    "display": (),
    "progress": ("distributed",),
    "maths": ("errors", "maths"),
    "results": ("errors", "files", "decoding", "display"),
    "paper": ("errors", "files", "results", "paper"),
    "verdicts": ("errors", "results", "paper"),
    "models": (*BASE, "models"),
    "data": (*BASE, "data"),
    "features": (*BASE, "models", "data", "features"),
    "run_record": (*BASE, "data", "features", "results", "session"),
    "session": (*BASE, "models", "data", "features", "results", "run_record"),
    "training": (*BASE, "models", "data", "training", "features.readout"),
    "search": (*BASE, "models", "data", "features", "session", "search"),
    "figures": (*BASE, "models", "data", "features", "session", "figures"),
    "video_config": (*BASE, "data", "session"),
    "video": (*BASE, "models", "data", "session", "video_config"),
    "throughput": (*BASE, "models", "data", "features", "paper"),
    "protocols": (
        *BASE,
        "models",
        "data",
        "features",
        "session",
        "run_record",
        "results",
        "training",
        "figures",
        "video",
        "video_config",
        "protocols",
    ),
    "api": (*BASE, "models", "data", "features", "session", "results", "protocols"),
    "reports": (*BASE, "models", "data", "features", "session", "results", "paper", "verdicts", "protocols", "reports"),
    "testing": ("",),
    "cli": ("",),
}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES if path.parent != PACKAGE or path.stem not in ("__init__", "__main__")}


def is_part_of(module: str, package: str) -> bool:
    return package == "" or module == package or module.startswith(f"{package}.")


def imports_of(path: Path, *, with_types: bool = True) -> set[str]:
    """Return the modules of the package that a file imports anywhere, without the leading `dinoeval.`."""
    tree = ast.parse(path.read_text())
    if not with_types:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
                node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "dinoeval":
            base = node.module.removeprefix("dinoeval").removeprefix(".")
            for alias in node.names:
                name = f"{base}.{alias.name}" if base else alias.name
                found.add(name if name in MODULES else base)
        if isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("dinoeval.") for alias in node.names if alias.name.startswith("dinoeval.")}
    return found - {""}


def functions_of(path: Path) -> Iterator[tuple[str, ast.FunctionDef, bool]]:
    """Yield the functions and methods of a file: the qualified name, the definition, and whether it is public.

    A function is public if no part of its name starts with an underscore; functions inside functions are not public.
    """

    def visit(node: ast.AST, prefix: str, public: bool) -> Iterator[tuple[str, ast.FunctionDef, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef):
                name = f"{prefix}{child.name}"
                yield name, child, public and not child.name.startswith("_")
                yield from visit(child, f"{name}.", False)
            elif isinstance(child, ast.ClassDef):
                yield from visit(child, f"{prefix}{child.name}.", public and not child.name.startswith("_"))
            else:
                yield from visit(child, prefix, public)

    yield from visit(ast.parse(path.read_text()), "", not path.stem.startswith("_") or path.stem == "__init__")


def parameters_of(function: ast.FunctionDef) -> list[str]:
    arguments = function.args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    names += [argument.arg for argument in (arguments.vararg, arguments.kwarg) if argument is not None]
    return [name for name in names if name not in ("self", "cls")]


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_only_lower_layers(module):
    layer = max((name for name in ALLOWED if is_part_of(module, name)), key=len)
    for imported in imports_of(MODULES[module]):
        assert any(is_part_of(imported, allowed) for allowed in ALLOWED[layer]), f"{module} imports {imported}"
        if layer == "protocols":
            assert not imported.startswith("protocols.") or imported.startswith("protocols._"), f"{module} imports {imported}"


def test_no_import_cycle():
    graph = {module: imports_of(path, with_types=False) & set(MODULES) for module, path in MODULES.items()}

    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        pending = [start]
        while pending:
            for imported in graph[pending.pop()] - seen:
                seen.add(imported)
                pending.append(imported)
        return seen

    below = {module: reachable(module) for module in graph}
    cycles = {frozenset(other for other in below[module] if module in below[other]) for module in graph if module in below[module]}
    assert not cycles, [sorted(cycle) for cycle in cycles]


def test_files_are_short():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in ALL_FILES}
    long = {path: length for path, length in lengths.items() if length > MAX_LINES}
    assert not long


def test_few_places_switch_the_formatter_off():
    marker = "# fmt: " + "skip"  # in two parts, so that this file does not count
    places = [f"{path.relative_to(ROOT)}:{number}" for path in ALL_FILES for number, line in lines_of(path) if marker in line]
    assert len(places) <= MAX_FORMAT_SKIPS, places


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    yield from enumerate(path.read_text().splitlines(), 1)


def test_no_function_has_many_parameters():
    many = {
        f"{module}.{name}": count
        for module, path in MODULES.items()
        for name, function, _ in functions_of(path)
        if (count := len(parameters_of(function))) > MAX_PARAMETERS
    }
    assert not many


def missing_documentation(function: ast.FunctionDef, module: str) -> str:
    """Return what the docstring of a public function lacks: `docstring`, `Args`, `Returns`, a short summary, or nothing.

    `Returns:` may be left out if the summary states it ("Return the ..."), and for commands, which return an exit code.
    """
    text = ast.get_docstring(function) or ""
    decorators = {node.id if isinstance(node, ast.Name) else getattr(node, "attr", "") for node in function.decorator_list}
    if not text:
        return "docstring"
    if len(text.splitlines()[0]) > MAX_SUMMARY:
        return f"summary of at most {MAX_SUMMARY} characters"
    if {"property", "cached_property"} & decorators:
        return ""
    if parameters_of(function) and not re.search(r"^Args:$", text, re.MULTILINE):
        return "Args"
    returns = ast.unparse(function.returns) if function.returns is not None else "None"
    stated = text.startswith(("Return ", "Yield ")) or re.search(r"^(Returns|Yields):$", text, re.MULTILINE)
    if returns not in ("None", "NoReturn") and not stated and not module.startswith("cli."):
        return "Returns"
    return ""


def test_public_functions_are_documented():
    missing = {
        f"{module}.{name}": lacks
        for module, path in MODULES.items()
        for name, function, public in functions_of(path)
        if public and (lacks := missing_documentation(function, module))
    }
    assert not missing, f"{len(missing)} public functions are not documented: {missing}"


@pytest.mark.parametrize("module", MODULES)
def test_only_the_command_line_prints(module):
    if not module.startswith("cli"):
        calls = [node for node in ast.walk(ast.parse(MODULES[module].read_text())) if isinstance(node, ast.Call)]
        assert not [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]


def test_no_utils_modules():
    assert not {"utils", "common", "helpers", "misc"} & {path.stem for path in FILES}


def test_no_test_imports_benchmarks():
    for path in sorted((ROOT / "tests").rglob("*.py")):
        assert not re.search(r"^\s*(from|import) benchmarks\b", path.read_text(), re.MULTILINE), path


def test_protocols_and_paper_read_the_same_entry_points():
    assert protocols.ENTRY_POINTS == rows.ENTRY_POINTS


@pytest.mark.parametrize("statement", ["import dinoeval", "import dinoeval.cli", "import dinoeval.results", "import dinoeval.models.zoo"])
def test_light_modules_do_not_import_torch(statement):
    code = f"{statement}; import sys; assert not {{'torch', 'faiss', 'tyro'}} & set(sys.modules), sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_training_needs_neither_faiss_nor_the_command_line():
    """A machine with PyTorch alone can train."""
    code = "import sys; sys.modules.update(faiss=None, tyro=None, cyanure=None); import dinoeval.training.pretrain.loop"
    subprocess.run([sys.executable, "-c", code], check=True)
