"""`dinoeval PROTOCOL` and `dinoeval check`."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import tyro

from dinoeval.errors import ConfigError
from dinoeval.files import check_writable
from dinoeval.results import Result


def _protocol_options(name: str) -> type:
    """One flat set of options made of the protocol's Config, the session's, and where to write the Result."""
    import tyro

    from dinoeval import protocols
    from dinoeval.session import SessionConfig

    config = protocols.find(name).Config
    fields = [
        ("config", Annotated[config, tyro.conf.arg(name="")], dataclasses.field(default_factory=config)),
        ("session", Annotated[SessionConfig, tyro.conf.arg(name="")], dataclasses.field(default_factory=SessionConfig)),
        ("json", Annotated[str | None, tyro.conf.arg(help="Write the whole Result to this file.")], None),
    ]
    return dataclasses.make_dataclass(name, fields, frozen=True, namespace={"__doc__": config.__doc__})


def score(name: str, args: list[str], program: str) -> int:
    """Run a protocol, print its table, write its Result."""
    import tyro

    from dinoeval import distributed, protocols
    from dinoeval.session import Session

    options = tyro.cli(_protocol_options(name), args=args, prog=program)
    if options.json:
        check_writable(options.json)
    result = protocols.find(name).run(options.config, Session(options.session))
    if distributed.rank() == 0:
        if options.json:
            result.save(options.json)  # before anything that could fail
        print(_table(result))
        if options.json:
            print(f"written to {options.json}")
    return 0


def _table(result: Result) -> str:
    """A Result for people: rows of k-like suffixes, one column a metric, the published number beside."""
    halves = {half: facts for half, facts in result.data.items() if isinstance(facts, dict)}
    sizes = ", ".join(f"{facts['images']:,} {facts['split']}" for facts in halves.values())
    classes = next(iter(halves.values()))["classes"]
    where = result.backbone
    lines = [
        f"{result.protocol}@{result.version} on {result.data['name']} ({sizes}, {classes} classes)",
        f"{where['arch']}, weights {where['weights']}, {result.transform}, {where['precision']}",
        "",
    ]
    references = {reference.metric: reference for reference in result.references}
    rows: dict[str, dict[str, str]] = {}
    for metric, value in result.metrics.items():
        column, _, row = metric.partition("@")
        error = result.standard_errors.get(metric)
        rows.setdefault(row, {})[column] = f"{value:6.2f}" + (f" ± {error:.2f}" if error is not None else "")
        if reference := references.get(metric):
            rows[row]["published"] = f"{reference.value} ({value - reference.value:+.2f})"
    columns = list(dict.fromkeys(column for cells in rows.values() for column in cells))
    lines.append("   k  " + "".join(f"{column:<18}" for column in columns))
    lines += [f"{row:>4}  " + "".join(f"{cells.get(column, ''):<18}" for column in columns) for row, cells in rows.items()]
    lines.append("")
    lines.append("percent ± standard error")
    if result.not_comparable:
        lines.append(f"no published number: {result.not_comparable}")
    lines += [f"note: {note}" for note in result.notes]
    for half, facts in halves.items():
        if facts["bad_images"]:
            lines.append(f"left out of {half}, could not be read: {len(facts['bad_images'])} images")
    lines.append("seconds: " + ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in result.seconds.items()))
    return "\n".join(line.rstrip() for line in lines)


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
