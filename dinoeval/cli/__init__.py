"""The command line: argv -> one function -> print. Nothing outside this folder prints.

A command is a function; its parameters and their docstrings are its options. Its module is imported when it is called,
so that `dinoeval --help` answers at once.
"""

from __future__ import annotations

import importlib
import io
import logging
import os
import sys

from dinoeval import __version__
from dinoeval.distributed import rank
from dinoeval.errors import ConfigError, DinoevalError, unknown

COMMANDS = {
    "knn": "weighted k-NN classification on frozen features",
    "logistic": "logistic regression on frozen features, by cyanure",
    "linear": "linear probe: a sweep of heads on frozen features, as the paper trains them",
    "finetune": "fine-tune the whole network on a labelled data set by the paper's recipes",
    "retrieval": "retrieval on the revisited Oxford and Paris sets",
    "copydays": "copy detection on Copydays",
    "davis": "label propagation on DAVIS",
    "propagate": "carry the objects of a first mask through a video of yours",
    "segment": "segmentation by the attention of the last block",
    "embed": "write the features of images to a file",
    "attention": "draw what the last block attends to, in images and videos",
    "pca": "draw the patch features of images as colours",
    "tsne": "draw a map of classes or images by their features",
    "speed": "measure backbones: images a second, multiply-adds, memory",
    "check": "compare Results with the paper or with each other; exit 1 where worse",
    "train": "train a backbone with DINO",
    "models": "list the released weights, where they lie, what they score",
    "models fetch": "download weights and verify them",
    "models convert": "turn any checkpoint into a safetensors backbone",
    "search build": "make an index of a folder of images, or bring it up to date",
    "search query": "find the images of an index that are most like these",
    "search duplicates": "find the images of an index that are nearly the same",
    "cache list": "list the feature cache",
    "cache verify": "check every byte of the feature cache",
    "cache prune": "delete unfinished, damaged or chosen entries",
    "cache path": "print where the feature cache lies",
}

# A second run of these finds what an interrupted one computed, if only the features; the others begin anew.
_GO_ON = {
    "knn", "logistic", "linear", "finetune", "retrieval", "copydays", "davis", "embed", "tsne", "train", "search build"
}  # fmt: skip

_FUNCTIONS = {
    "embed": "features.embed",
    "attention": "figures.attention",
    "pca": "figures.pca",
    "tsne": "figures.tsne",
    "propagate": "video.propagate",
    "speed": "speed.speed",
    "check": "evaluate.check",
    "models": "weights.models",
    "models fetch": "weights.fetch",
    "models convert": "weights.convert",
    "search build": "search.build",
    "search query": "search.query",
    "search duplicates": "search.duplicates",
    "cache list": "features.cache_list",
    "cache verify": "features.cache_verify",
    "cache prune": "features.cache_prune",
    "cache path": "features.cache_path",
}


def main(argv: list[str] | None = None) -> None:
    """Run the command line; exits 0, 1 (worse), 2 (a mistake in what was asked) or 130 (interrupted)."""
    args = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a sign gets a question mark, not a traceback
    try:
        sys.exit(_dispatch(args))
    except DinoevalError as error:
        print(f"dinoeval: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        kept = (
            " What was computed is kept; the same command goes on from there."
            if _GO_ON.intersection((*args[:1], " ".join(args[:2])))
            else ""
        )
        print(f"\ndinoeval: stopped.{kept}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader of our output went away
        sys.exit(0)


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if args[0] == "--version":
        print(__version__)
        return 0
    length = 2 if " ".join(args[:2]) in COMMANDS else 1
    name = " ".join(args[:length])
    if name not in COMMANDS:
        inside = [command for command in COMMANDS if command.startswith(f"{args[0]} ")]
        if inside and (len(args) == 1 or args[1] in ("-h", "--help")):
            print("\n".join(f"  dinoeval {command:<16} {COMMANDS[command]}" for command in inside))
            return 0
        raise ConfigError(unknown("command", name, COMMANDS))
    _show_log()
    return _run(name, args[length:])


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        [
            f"dinoeval {__version__}: features of DINO vision transformers, and the paper's evaluation protocols",
            "",
            "usage: dinoeval COMMAND [OPTIONS]     dinoeval COMMAND --help tells the options",
            "",
            *lines,
            "",
            "  dinoeval knn                                     the bundled demonstration, offline, in seconds",
            "  dinoeval knn --arch vit_s8 --data imagenet/      the released ViT-S/8, beside the published number",
            "  dinoeval knn --weights mine.pth --arch vit_s16 --data photos/",
        ]
    )


def _show_log() -> None:
    logger = logging.getLogger("dinoeval")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    logger.addHandler(logging.StreamHandler())  # to stderr as it is now; stdout holds the answer alone
    logger.setLevel(logging.INFO if rank() == 0 else logging.WARNING)


def _run(name: str, args: list[str]) -> int:
    import tyro

    from dinoeval import protocols

    program = f"dinoeval {name}"
    if name == "train":
        from dinoeval.cli.training import train

        return train(args, program)
    if name in protocols.names():
        from dinoeval.cli.evaluate import run_protocol

        return run_protocol(name, args, program)
    module, function = _FUNCTIONS[name].split(".")
    return tyro.cli(getattr(importlib.import_module(f"dinoeval.cli.{module}"), function), args=args, prog=program)
