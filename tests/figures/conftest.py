from __future__ import annotations

from collections.abc import Callable

import pytest

from dinoeval.cli import main


@pytest.fixture
def call(capsys) -> Callable[..., tuple[int, str, str]]:
    """Run a command line; returns the exit code, stdout and stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main([str(word) for word in words])
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return run
