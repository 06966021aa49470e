"""`dinoeval PROTOCOL` and `dinoeval check`."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Annotated, Any

import tyro

from dinoeval.errors import ConfigError, DinoevalError
from dinoeval.files import check_writable
from dinoeval.results import Result

_MOST_ROWS = 50  # of a Result's table that are printed


def _protocol_options(name: str) -> type:
    """One flat set of options made of the protocol's Config, the session's, and where to write the Result."""
    import tyro

    from dinoeval import protocols
    from dinoeval.session import SessionConfig

    config = protocols.get_protocol(name).Config
    fields = [
        ("config", Annotated[config, tyro.conf.arg(name="")], dataclasses.field(default_factory=config)),
        ("session", Annotated[SessionConfig, tyro.conf.arg(name="")], dataclasses.field(default_factory=SessionConfig)),
        ("json", Annotated[str | None, tyro.conf.arg(help="Write the whole Result to this file.")], None),
    ]
    return dataclasses.make_dataclass(name, fields, frozen=True, namespace={"__doc__": config.__doc__})


def run_protocol(name: str, args: list[str], program: str) -> int:
    """Run a protocol, print its table, write its Result."""
    import tyro

    from dinoeval import distributed, protocols
    from dinoeval.session import Session

    options = tyro.cli(_protocol_options(name), args=args, prog=program)
    if options.json:
        check_writable(options.json)
    try:
        result = protocols.get_protocol(name).run(options.config, Session(options.session))
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, without importing torch
            raise
        raise DinoevalError("the GPU's memory is too small for a forward pass: lower --batch-size, or say --precision bf16") from error
    if distributed.rank() == 0:
        if options.json:
            result.save(options.json)  # before anything that could fail
        print(_table(result))
        if options.json:
            print(f"written to {options.json}")
    return 0


def _table(result: Result) -> str:
    """A Result for people: what was scored, the metrics, the rows of its table, what there is to note."""
    halves = {half: facts for half, facts in result.data.items() if isinstance(facts, dict)}
    sizes = ", ".join(f"{facts['images']:,} {facts['split']}" for facts in halves.values())
    classes = next(iter(halves.values()))["classes"]
    sizes += f", {classes} classes" if classes else ""
    where = result.backbone
    lines = [
        f"{result.protocol}@{result.version} on {result.data['name']} ({sizes})",
        f"{where['arch']}, weights {where['weights']}, {result.transform}, {where['precision']}",
        "",
        *_metrics(result),
        "",
        "percent ± standard error" + (" (deviation between the runs)" if result.deviations else ""),
        *_rows(result.table),
    ]
    if result.not_comparable:
        lines.append(f"no published number: {result.not_comparable}")
    lines += [f"note: {note}" for note in result.notes]
    for half, facts in halves.items():
        if facts["bad_images"]:
            lines.append(f"left out of {half}, could not be read: {len(facts['bad_images'])} images")
    lines.append("seconds: " + ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in result.seconds.items()))
    return "\n".join(line.rstrip() for line in lines)


def _metrics(result: Result) -> list[str]:
    """One line a metric; or, where they are named like `top1@20`, one line a k and one column a metric."""
    references = {reference.metric: reference for reference in result.references}
    by_k = all(metric.partition("@")[2].isdigit() for metric in result.metrics)
    rows: dict[str, dict[str, str]] = {}
    for metric, value in result.metrics.items():
        column, _, k = metric.partition("@") if by_k else ("percent", "", metric)
        error, deviation = result.standard_errors.get(metric), result.deviations.get(metric)
        cells = rows.setdefault(k, {"k" if by_k else "": k})
        cells[column] = (
            f"{value:6.2f}" + (f" ± {error:.2f}" if error is not None else "") + (f" ({deviation:.2f})" if deviation is not None else "")
        )
        if reference := references.get(metric):
            cells["published"] = f"{reference.value} ({value - reference.value:+.2f})"
    return _aligned(list(rows.values()))


def _rows(table: list[dict[str, Any]]) -> list[str]:
    """The rows of a Result's table, those of the same columns together; of many the first ones."""
    groups = [list(rows) for _, rows in itertools.groupby(table, key=lambda row: tuple(row))]
    lines = []
    for rows in groups:
        lines += ["", *_aligned([{name: _cell(value) for name, value in row.items()} for row in rows[:_MOST_ROWS]])]
        if len(rows) > _MOST_ROWS:
            lines.append(f"  and {len(rows) - _MOST_ROWS:,} more; --json writes all")
    return [*lines, ""] if lines else []


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else ""
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _aligned(rows: list[dict[str, str]]) -> list[str]:
    """A line of headings, then one for each row; numbers to the right, as long as all of a column begin with one."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = ["", *([""] * len(rows))]
    for column in columns:
        cells = [row.get(column, "") for row in rows]
        number = all(cell.replace(".", "", 1).replace("e-", "", 1).isdigit() for cell in cells if cell)
        width = max(map(len, [column, *cells]))
        for line, cell in enumerate([column, *cells]):
            lines[line] += "  " + (cell.rjust(width) if number else cell.ljust(width))
    return lines


def check(results: Annotated[tuple[str, ...], tyro.conf.Positional], /, against: str = "paper") -> int:
    """Compare Results with published numbers or with another Result.

    Exits 0 where none is worse, 1 where one is, 2 where one cannot be compared.

    Args:
        results: Files that --json wrote.
        against: `paper`, or the file of a Result.
    """
    from dinoeval.results import Result, compare

    if not results:
        raise ConfigError("name at least one Result: a file that --json wrote")
    other = None if against == "paper" else Result.load(against)
    outcomes = set()
    print(f"{'':<24}{'measured':>10}{'reference':>11}{'difference':>12}{'tolerance':>11}")
    for path in results:
        verdicts, reason = compare(Result.load(path), other)
        print(path)
        if reason:
            outcomes.add("not comparable")
            print(f"  not comparable: {reason}")
        for verdict in verdicts:
            outcomes.add(verdict.outcome)
            print(
                f"  {verdict.metric:<22}{verdict.measured:>10.2f}{verdict.reference:>11.2f}{verdict.difference:>+12.2f}"
                f"{verdict.tolerance:>11.2f}  {verdict.outcome}: {verdict.method}"
            )
    return 1 if "worse" in outcomes else 2 if "not comparable" in outcomes else 0
