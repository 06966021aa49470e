"""Change one constant, comparison, sign or order at a time and see whether the tests notice.

    python benchmarks/mutations.py [--count 100] [--jobs 2] [--only maths/ranks] [--again]

For development. Each mutation is made in a copy of the checkout, in which the fast tests of the file run, then those of
its area, then all fast tests, then the slow ones of the file, until one fails. Without a mutation all of them must pass.
Mutations are drawn with a fixed seed, in equal numbers from each file, so that the same command on the same code gives
the same list. What cannot change a number is not mutated: messages, annotations, decorators, the types of isinstance,
the strictness of zip.

Writes benchmarks/results/mutations.json: every mutation with the tests that caught it, or `survived`, and why a survivor
changes no number (benchmarks/mutations_explained.json). It is written after every mutation. `--again` does what is not done, and
repeats the survivors that are not explained.
"""

from __future__ import annotations

import argparse
import ast
import concurrent.futures
import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "dinoeval"
TARGETS = ("maths", "protocols", "training", "paper", "data/transforms.py", "features/readout.py")
ALL = "tests --ignore=tests/benchmarks --ignore=tests/test_structure.py"
"""All tests of what the code computes."""
CPU_SECONDS, SECONDS = 900, 3600
"""A test run that takes more processor time or time counts as caught: the mutation made it hang."""
SURVIVED = "survived"
EXPLAINED = ROOT / "benchmarks/mutations_explained.json"
"""Why a survivor changes no number, by file and source line."""
_COMPARISONS = {ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "=="}
_OPERATORS = {ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"), ast.FloorDiv: ("//", "*")}
_BOOLEANS = {ast.And: ("and", "or"), ast.Or: ("or", "and")}


@dataclasses.dataclass(frozen=True)
class Mutation:
    """One edit of a source file."""

    path: str
    line: int
    start: int
    """Offset in bytes from the beginning of the file."""
    old: str
    new: str
    kind: str

    @property
    def text(self) -> str:
        """The source line, without its indentation."""
        return (ROOT / self.path).read_text().splitlines()[self.line - 1].strip()

    @property
    def name(self) -> str:
        """Path, line and edit, as the report prints them."""
        return f"{self.path}:{self.line} {self.kind}: {self.old} -> {self.new}"


def main() -> None:
    """Run the mutations and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", default="", help="Mutate only files whose path contains this text.")
    parser.add_argument("--again", action="store_true", help="Do only what is missing in --out, and repeat unexplained survivors.")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/mutations.json")
    args = parser.parse_args()
    mutations = choose(args.count, args.only)
    explained = json.loads(EXPLAINED.read_text())
    reasons = {mutation.name: explained.get(f"{mutation.path}: {mutation.text}") for mutation in mutations}
    outcomes: dict[str, str] = json.loads(args.out.read_text())["outcomes"] if args.again else {}
    if unknown := outcomes.keys() - {mutation.name for mutation in mutations}:
        raise SystemExit(f"the code has changed since {args.out.name} was written: {len(unknown)} of its mutations are no longer drawn")
    decided = {name for name, outcome in outcomes.items() if outcome != SURVIVED or reasons[name]}
    todo = [mutation for mutation in mutations if mutation.name not in decided]
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        copies = [copy_checkout(Path(folder) / str(number)) for number in range(args.jobs)]
        runs = [(copies[0], f"-m not_slow {ALL}"), (copies[-1], f"-m slow {ALL}")]
        for failure in filter(None, pool.map(lambda run: _failure(run[0], run[1].split()), runs)):
            raise SystemExit(f"the tests fail without a mutation:\n{failure}")
        for mutation, caught in zip(todo, pool.map(lambda mutation: run_in(copies, mutation), todo), strict=True):
            outcomes[mutation.name] = caught or SURVIVED
            write_report(args, len(mutations), outcomes, reasons)


def write_report(args: argparse.Namespace, count: int, outcomes: dict[str, str], reasons: dict[str, str | None]) -> None:
    """Write what is known so far, so that an interrupted run can continue with `--again`."""
    survived = [name for name, outcome in outcomes.items() if outcome == SURVIVED]
    report = {
        "command": f"python benchmarks/mutations.py --count {args.count}",
        "mutations": count,
        "done": len(outcomes),
        "caught": len(outcomes) - len(survived),
        "survived": {name: reasons[name] or "not explained: a test is missing" for name in survived},
        "outcomes": outcomes,
    }
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{report['caught']} of {len(outcomes)} caught, {count - len(outcomes)} to do", flush=True)


def choose(count: int, only: str) -> list[Mutation]:
    """Draw mutations of different names with a fixed seed, one file after the other, until there are `count`."""
    dice = random.Random(0)
    paths = [
        path for target in TARGETS for path in sorted((ROOT / PACKAGE).glob(target if target.endswith(".py") else f"{target}/**/*.py"))
    ]
    paths += [ROOT / PACKAGE / "paper/rows.toml"]
    waiting = []
    for path in paths:
        found = list(mutations_of(path))
        dice.shuffle(found)
        if found and only in str(path.relative_to(ROOT)):
            waiting.append(found)
    chosen: dict[str, Mutation] = {}
    while waiting and len(chosen) < count:
        for found in waiting[: count - len(chosen)]:
            mutation = found.pop()
            chosen.setdefault(mutation.name, mutation)
        waiting = [found for found in waiting if found]
    return list(chosen.values())


def mutations_of(path: Path) -> Iterator[Mutation]:
    """Yield all mutations of a file."""
    source = path.read_bytes()
    name = path.relative_to(ROOT).as_posix()
    if path.suffix == ".toml":
        yield from _printed_numbers(name, source)
        return
    tree = ast.parse(source)
    starts = [0]
    for line in source.split(b"\n"):
        starts.append(starts[-1] + len(line) + 1)

    def offset(line: int, column: int) -> int:
        return starts[line - 1] + column

    for node in _code(tree):
        begin, end = offset(node.lineno, node.col_offset), offset(node.end_lineno or 0, node.end_col_offset or 0)
        text = source[begin:end].decode()
        match node:
            case ast.Compare(ops=[operator], left=left, comparators=[right]) if type(operator) in _COMPARISONS:
                between = slice(offset(left.end_lineno or 0, left.end_col_offset or 0), offset(right.lineno, right.col_offset))
                yield from _edit(name, source, node.lineno, between, _symbol(operator), _COMPARISONS[type(operator)], "comparison")
            case ast.BinOp(op=operator, left=left, right=right) if type(operator) in _OPERATORS:
                between = slice(offset(left.end_lineno or 0, left.end_col_offset or 0), offset(right.lineno, right.col_offset))
                yield from _edit(name, source, node.lineno, between, *_OPERATORS[type(operator)], "operator")
            case ast.BoolOp(op=operator, values=[left, right, *_]):
                between = slice(offset(left.end_lineno or 0, left.end_col_offset or 0), offset(right.lineno, right.col_offset))
                yield from _edit(name, source, node.lineno, between, *_BOOLEANS[type(operator)], "boolean")
            case ast.UnaryOp(op=ast.USub()):
                yield Mutation(name, node.lineno, begin, text, f"(+{text[1:]})", "sign")
            case ast.Constant(value=bool(value)):
                yield Mutation(name, node.lineno, begin, text, str(not value), "constant")
            case ast.Constant(value=int(value)):
                yield Mutation(name, node.lineno, begin, text, str(value + 1), "constant")
            case ast.Constant(value=float(value)):
                yield Mutation(name, node.lineno, begin, text, repr(value * 1.5 if value else 1.0), "constant")
            case ast.Tuple(elts=[first, second], ctx=ast.Load()):
                one, two = (
                    source[offset(e.lineno, e.col_offset) : offset(e.end_lineno or 0, e.end_col_offset or 0)] for e in (first, second)
                )
                if one != two and text.startswith("("):
                    yield Mutation(name, node.lineno, begin, text, f"({two.decode()}, {one.decode()})", "order")


def _code(tree: ast.Module) -> Iterator[ast.expr]:
    """Yield expressions that can change a number: neither annotations nor part of a message, a decorator or a type test."""
    skipped: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.JoinedStr, ast.Raise, ast.Assert)):
            skipped |= {id(inner) for inner in ast.walk(node)}
        parts = [getattr(node, "annotation", None), getattr(node, "returns", None), *getattr(node, "decorator_list", ())]
        if isinstance(node, ast.Call):
            parts += [keyword for keyword in node.keywords if keyword.arg == "strict"]
            if ast.unparse(node.func).startswith(("_log.", "Progress", "track", "logging.", "isinstance")):
                parts.append(node)
        skipped |= {id(inner) for part in parts if part is not None for inner in ast.walk(part)}
    for node in ast.walk(tree):
        if isinstance(node, ast.expr) and id(node) not in skipped:
            yield node


def _symbol(operator: ast.cmpop) -> str:
    return {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!="}[type(operator)]


def _edit(name: str, source: bytes, line: int, between: slice, old: str, new: str, kind: str) -> Iterator[Mutation]:
    place = source[between].find(old.encode())
    if place >= 0:
        yield Mutation(name, line, between.start + place, old, new, kind)


def _printed_numbers(name: str, source: bytes) -> Iterator[Mutation]:
    """Yield a mutation of each line of a table of numbers: its last number plus one tenth."""
    start = 0
    for number, line in enumerate(source.split(b"\n"), 1):
        if b"=" in line and not line.lstrip().startswith(b"#"):
            left, _, right = line.rpartition(b"= ")
            digits = right.rstrip(b" }],")
            if digits.replace(b".", b"", 1).isdigit():
                new = f"{float(digits) + 0.1:.1f}" if b"." in digits else str(int(digits) + 1)
                yield Mutation(name, number, start + len(left) + 2, digits.decode(), new, "printed number")
        start += len(line) + 1


def copy_checkout(target: Path) -> Path:
    """Copy what git tracks or would track to a folder of its own."""
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True
    ).stdout
    for name in filter(None, names.decode().split("\0")):
        if (ROOT / name).is_file() and not name.startswith("benchmarks/results"):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


def run_in(copies: list[Path], mutation: Mutation) -> str | None:
    """Apply a mutation in a free copy, run the tests, and take it back.

    Returns:
        Which tests caught it, or None if all passed.
    """
    copy = copies.pop()
    path = copy / mutation.path
    source = path.read_bytes()
    try:
        old = mutation.old.encode()
        assert source[mutation.start : mutation.start + len(old)] == old
        path.write_bytes(source[: mutation.start] + mutation.new.encode() + source[mutation.start + len(old) :])
        caught = next((run for run in runs_of(copy, mutation.path) if _failure(copy, run.split())), None)
        print(f"{'caught' if caught else 'SURVIVED'} {mutation.name}", flush=True)
        return caught
    finally:
        path.write_bytes(source)
        copies.append(copy)


def runs_of(copy: Path, path: str) -> list[str]:
    """List the test runs for a source file as arguments of pytest, the most direct and fastest first."""
    inside = Path(path).relative_to(PACKAGE)
    stem = inside.stem.removeprefix("_")
    direct = " ".join(str(test.relative_to(copy)) for test in sorted((copy / "tests").glob(f"**/test_{stem}*.py"))) if len(stem) > 3 else ""
    area = f"tests/{inside.parts[0]}"
    area = area if (copy / area).is_dir() else "tests"
    fast = "-m not_slow"
    runs = [f"{fast} {direct}"] if direct else []
    return [*runs, f"{fast} {area} {PACKAGE}/{inside.parts[0]}", f"{fast} {ALL}", f"-m slow {direct or area}"]


def _failure(copy: Path, arguments: list[str]) -> str | None:
    """Run tests and return the end of the output if one fails."""
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    words = ["not slow" if word == "not_slow" else word for word in arguments]
    command = ["prlimit", f"--cpu={CPU_SECONDS}", sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *words]
    try:
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"not finished after {SECONDS} s"
    return None if done.returncode in (0, 5) else done.stdout[-4000:]


if __name__ == "__main__":
    main()
