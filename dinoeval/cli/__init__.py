"""The command line. Only this folder prints; `main` is the console script, and importing it imports neither torch nor tyro."""

from dinoeval.cli.main import main

__all__ = ["main"]
