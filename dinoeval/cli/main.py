"""The entry point of the command line: argv -> command -> print."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Iterator
from typing import NoReturn

from dinoeval import __version__
from dinoeval.cli import commands
from dinoeval.distributed import rank
from dinoeval.errors import DinoevalError
from dinoeval.guard import Guard


def main(argv: list[str] | None = None) -> None:
    """Run one command and exit.

    Args:
        argv: The words after `dinoeval` (default: those of the process).

    Raises:
        SystemExit: Always. Exit code 0 on success, 1 if a comparison or a check failed, 2 if an option or a file cannot be
            used, 130 after Ctrl-C.
    """
    with _reporting():
        _run(list(sys.argv[1:] if argv is None else argv))


def _run(args: list[str]) -> NoReturn:
    command = None
    try:
        if args[:1] == ["--version"]:
            print(__version__)
            sys.exit(0)
        if text := commands.help_text(args, __version__):
            print(text)
            sys.exit(0)
        command, rest = commands.find(args)
        with Guard():
            sys.exit(command.run(rest))
    except DinoevalError as error:
        print(f"dinoeval: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        saved = " Progress is saved. Rerun the same command to resume." if command and command.resumable else ""
        print(f"\ndinoeval: interrupted.{saved}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The process that reads the output has exited. Python would report the error again when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


@contextlib.contextmanager
def _reporting() -> Iterator[None]:
    """Send log messages to the current stderr, so that stdout contains only results; put back what a caller had set."""
    logger, handler = logging.getLogger("dinoeval"), logging.StreamHandler()
    level, handlers = logger.level, list(logger.handlers)
    streams = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, io.TextIOWrapper)]
    errors = [stream.errors for stream in streams]
    for stream in streams:
        stream.reconfigure(errors="replace")  # A terminal that cannot show a character gets "?" instead of a traceback.
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO if rank() == 0 else logging.WARNING)
    try:
        yield
    finally:
        logger.handlers[:] = handlers
        logger.setLevel(level)
        for stream, before in zip(streams, errors, strict=True):
            with contextlib.suppress(OSError, ValueError):  # It may have been closed.
                stream.reconfigure(errors=before)
