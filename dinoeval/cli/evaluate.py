"""`dinoeval PROTOCOL` and `dinoeval check`."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import tyro

from dinoeval.errors import ConfigError, DinoevalError
from dinoeval.files import check_writable
from dinoeval.results import Result


def protocol_options(name: str) -> type:
    """Return a dataclass of all options of a protocol: its Config, the session's, and where to write the Result."""
    from dinoeval import protocols
    from dinoeval.session import SessionConfig

    config = protocols.get_protocol(name).Config
    fields = [
        ("config", Annotated[config, tyro.conf.arg(name="")], dataclasses.field(default_factory=config)),
        ("session", Annotated[SessionConfig, tyro.conf.arg(name="")], dataclasses.field(default_factory=SessionConfig)),
        ("json", Annotated[str | None, tyro.conf.arg(help="Write the whole Result to this file (default: not written).")], None),
    ]
    return dataclasses.make_dataclass(name, fields, frozen=True, namespace={"__doc__": config.__doc__})


def run_protocol(name: str, args: list[str], program: str) -> int:
    """Run a protocol, print its Result, and write it if --json is passed."""
    from dinoeval import distributed, protocols
    from dinoeval.reports.table import format_result
    from dinoeval.session import Session

    options = tyro.cli(protocol_options(name), args=args, prog=program)
    if options.json:
        check_writable(options.json)
    try:
        result = protocols.get_protocol(name).run(options.config, Session(options.session))
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's class, without importing torch
            raise
        raise DinoevalError("out of GPU memory: reduce --batch-size or pass --precision bf16") from error
    if distributed.rank() == 0:
        if options.json:
            result.save(options.json)  # before anything that could fail
        print(format_result(result))
        if options.json:
            print(f"written to {options.json}")
    return 0


def check(results: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RESULT...")], /, against: str = "paper") -> int:
    """Compare Results with published scores or with another Result.

    Exits with 0 if none is worse, 1 if one is worse, 2 if one cannot be compared.

    Args:
        results: Files that --json wrote.
        against: `paper`, or the file of another Result.
    """
    from dinoeval.reports.table import VERDICT_HEADING, format_verdicts
    from dinoeval.verdicts import compare_results, compare_with_paper

    if not results:
        raise ConfigError("RESULT is missing: pass at least one file that --json wrote")
    reference = None if against == "paper" else Result.load(against)
    outcomes = set()
    print(VERDICT_HEADING)
    for path in results:
        result = Result.load(path)
        if reference is None:
            verdicts, reasons = compare_with_paper(result)
        else:
            verdicts, reason = compare_results(result, reference)
            reasons = (reason,) if reason else ()
        outcomes |= {verdict.outcome for verdict in verdicts} | ({"not comparable"} if reasons else set())
        print(format_verdicts(path, verdicts, reasons))
    return 1 if "worse" in outcomes else 2 if "not comparable" in outcomes else 0
