"""The table of all commands, built in and from other packages. Their modules are imported when they run."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import textwrap
from collections.abc import Mapping, Sequence

from dinoeval import protocols
from dinoeval.errors import ConfigError, unknown

PROTOCOL = "protocol"
MAX_SUMMARY = 60
"""Characters of a summary, so that a line of the help fits in a terminal of 80 columns."""
EVALUATE, FEATURES, SEARCH, TRAIN, WEIGHTS, CACHE = "Evaluate", "Features and figures", "Search", "Train", "Weights", "Cache"
OTHER_PACKAGES = "Protocols of other packages"


@dataclasses.dataclass(frozen=True)
class Command:
    """One command of the command line."""

    name: str
    """One or two words, such as `search build`."""
    summary: str
    """What it does: an imperative of at most MAX_SUMMARY characters."""
    target: str
    """`module:function` in dinoeval.cli, or PROTOCOL. The parameters of the function are the options of the command; a
    function of `(args, program)` parses the command line itself."""
    group: str
    """Heading in the help."""
    resumable: bool = False
    """Whether a rerun resumes from what an interrupted run saved, at least its features."""

    def run(self, args: Sequence[str]) -> int:
        """Parse the options and run the command.

        Args:
            args: The words after the name of the command.

        Returns:
            The exit code.

        Raises:
            DinoevalError: If an option or a file cannot be used.
            SystemExit: After --help, and with exit code 2 if the words cannot be parsed.
        """
        program = f"dinoeval {self.name}"
        if self.target == PROTOCOL:
            from dinoeval.cli.evaluate import run_protocol

            return run_protocol(self.name, list(args), program)
        module, _, name = self.target.partition(":")
        function = getattr(importlib.import_module(f"dinoeval.cli.{module}"), name)
        if list(inspect.signature(function).parameters) == ["args", "program"]:
            return function(args, program)
        from dinoeval.cli import options

        return options.call(function, args, program)


_TABLE = (
    Command("knn", "classify by weighted nearest neighbors", PROTOCOL, EVALUATE, resumable=True),
    Command("linear", "train linear probes on frozen features", PROTOCOL, EVALUATE, resumable=True),
    Command("logistic", "fit logistic regression on frozen features", PROTOCOL, EVALUATE, resumable=True),
    Command("finetune", "fine-tune the whole network on a labeled dataset", PROTOCOL, EVALUATE, resumable=True),
    Command("retrieval", "retrieve landmarks on revisited Oxford and Paris", PROTOCOL, EVALUATE, resumable=True),
    Command("copydays", "detect image copies on Copydays", PROTOCOL, EVALUATE, resumable=True),
    Command("davis", "propagate labels through the videos of DAVIS", PROTOCOL, EVALUATE, resumable=True),
    Command("segment", "segment objects by the attention of the last block", PROTOCOL, EVALUATE),
    Command("check", "compare with the paper or a baseline; exit 1 if worse", "evaluate:check", EVALUATE),
    Command("speed", "measure throughput (images/s), MACs and peak memory", "speed:speed", EVALUATE),
    Command("embed", "write the features of images to a file", "features:embed", FEATURES, resumable=True),
    Command("attention", "draw the attention of the last block", "figures:attention", FEATURES),
    Command("pca", "draw principal components of patch features as colors", "figures:pca", FEATURES),
    Command("tsne", "plot a t-SNE embedding of classes or images", "figures:tsne", FEATURES, resumable=True),
    Command("propagate", "propagate a first-frame mask through a video", "video:propagate", FEATURES),
    Command("search build", "create or update an index of a folder of images", "search:build", SEARCH, resumable=True),
    Command("search query", "find the nearest images in an index", "search:query", SEARCH),
    Command("search duplicates", "find near-duplicate images in an index", "search:duplicates", SEARCH),
    Command("train", "train a backbone with DINO", "training:train", TRAIN, resumable=True),
    Command("models", "list released weights, local paths and published scores", "weights:models", WEIGHTS),
    Command("models fetch", "download weights and verify their hash", "weights:fetch", WEIGHTS),
    Command("models convert", "convert a checkpoint to a safetensors backbone", "weights:convert", WEIGHTS),
    Command("cache list", "list the entries of the feature cache", "features:cache_list", CACHE),
    Command("cache verify", "verify every byte; exit 1 if an entry is corrupted", "features:cache_verify", CACHE),
    Command("cache prune", "delete unfinished, corrupted or named entries", "features:cache_prune", CACHE),
    Command("cache path", "print the folder of the feature cache", "features:cache_path", CACHE),
)


def all_commands() -> dict[str, Command]:
    """Return all commands by name: the table, then protocols that it does not list.

    A protocol of another package with the name of a command cannot be run; its summary states this.

    Returns:
        Commands in the order of the help.

    Examples:
        >>> all_commands()["knn"].summary
        'classify by weighted nearest neighbors'
    """
    table = {command.name: command for command in _TABLE}
    taken = {name.split()[0] for name in table}
    for name in protocols.names():
        if name not in taken:
            table[name] = _protocol_command(name)
        elif name in protocols.installed_names():
            package = protocols.packages_of(name)[-1]
            label = f"{name} of {package}"
            table[label] = Command(label, "not usable: a command has this name; rename the entry point", PROTOCOL, OTHER_PACKAGES)
    return table


def _protocol_command(name: str) -> Command:
    """Describe a protocol that the table does not list by the first line of its docstring."""
    try:
        summary = (protocols.get_protocol(name).__doc__ or "no docstring").partition("\n")[0].strip().rstrip(".")
    except ConfigError as error:
        summary = f"not usable: {error}"
    return Command(name, textwrap.shorten(summary, MAX_SUMMARY, placeholder=" ..."), PROTOCOL, OTHER_PACKAGES, resumable=True)


def find(args: Sequence[str]) -> tuple[Command, list[str]]:
    """Find the command that a command line names.

    Args:
        args: The words of the command line, at least one.

    Returns:
        The command and the words after its name.

    Raises:
        ConfigError: If no command has that name; the message suggests the nearest.
    """
    table = {command.name: command for command in _TABLE}
    for length in (2, 1):
        name = " ".join(args[:length])
        if len(args) >= length and name in table:
            return table[name], list(args[length:])
    if args[0] in protocols.names():
        return _protocol_command(args[0]), list(args[1:])
    words = 2 if _members(args[0]) else 1
    raise ConfigError(unknown("command", " ".join(args[:words]), all_commands()))


def help_text(args: Sequence[str], version: str) -> str | None:
    """Return the help of all commands, or of a group such as `search`.

    Args:
        args: The words of the command line.
        version: Version of dinoeval.

    Returns:
        The text, or None if the words do not request such help.
    """
    if not args or args[0] in ("-h", "--help", "help"):
        return _general_help(all_commands(), version)
    members = _members(args[0])
    if members and args[0] not in members and (len(args) == 1 or args[1] in ("-h", "--help")):
        lines = _aligned({f"dinoeval {name}": command for name, command in members.items()})
        return "\n".join([*lines, "", f"Run `dinoeval {args[0]} COMMAND --help` for options."])
    return None


def _members(group: str) -> dict[str, Command]:
    """List the commands whose first word is `group`; empty if there is only one."""
    members = {command.name: command for command in _TABLE if command.name.split()[0] == group}
    return members if len(members) > 1 else {}


def _aligned(named: Mapping[str, Command]) -> list[str]:
    width = max(map(len, named))
    return [f"  {name:<{width}}  {command.summary}" for name, command in named.items()]


def _general_help(table: Mapping[str, Command], version: str) -> str:
    lines = [
        f"dinoeval {version}: features of DINO vision transformers, and the evaluation protocols of the paper",
        "",
        "usage: dinoeval COMMAND [OPTIONS]",
        "Run `dinoeval COMMAND --help` for options.",
    ]
    width = max(map(len, table))
    for group in dict.fromkeys(command.group for command in table.values()):
        lines += ["", f"{group}:"]
        lines += [f"  {command.name:<{width}}  {command.summary}" for command in table.values() if command.group == group]
    return "\n".join(
        [
            *lines,
            "",
            "Examples:",
            "  dinoeval knn                                    the bundled demonstration: offline, in seconds",
            "  dinoeval knn --arch vit_s8 --data imagenet/     the released ViT-S/8, next to the published score",
            "  dinoeval knn --weights mine.pth --arch vit_s16 --data photos/",
        ]
    )
