"""`dinoeval PROTOCOL` and `dinoeval check`."""

from __future__ import annotations

from typing import Annotated

import tyro

from dinoeval.errors import ConfigError, DinoevalError
from dinoeval.results import Result


def run_protocol(name: str, args: list[str], program: str) -> int:
    """Run a protocol, print its Result, and write it if --json is passed.

    Args:
        name: Name of the protocol.
        args: The words after the name.
        program: What the user typed before them, such as `dinoeval knn`.

    Returns:
        The exit code.

    Raises:
        DinoevalError: If an option, the weights or the data cannot be used.
    """
    from dinoeval import distributed, protocols
    from dinoeval.cli.options import JsonOutput, parse
    from dinoeval.paper.rows import rows_for
    from dinoeval.reports.table import format_result
    from dinoeval.session import Session, SessionConfig

    protocol = protocols.get_protocol(name)
    config, session, output = parse((protocol.Config(), SessionConfig(), JsonOutput()), args, program, protocol.Config.__doc__)
    output.check()
    rows_for(name)  # fails before the work if the rows of another package cannot be read
    try:
        result = protocol.run(config, Session(session))
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's class, without importing torch
            raise
        raise DinoevalError("out of GPU memory: reduce --batch-size or pass --precision bf16") from error
    if distributed.rank() == 0:
        if output.json:
            result.save(output.json)  # before anything that could fail
        print(format_result(result))
        if output.json:
            print(f"written to {output.json}")
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
