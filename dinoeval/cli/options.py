"""The one way to turn functions and dataclasses into command-line options, and the options that commands share.

A command is a function: its parameters are options, its positional-only parameters are positional arguments, and the
`Args:` section of its docstring is their help. A parameter whose type is a dataclass stands for the fields of the
dataclass, and the string under each field is its help. tyro parses; the rule below gives it names, help and hints.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import json as json_format
import re
import textwrap
import typing
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import tyro

from dinoeval.files import check_writable, write_whole

_REGISTRY = tyro.constructors.ConstructorRegistry()


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheFolder:
    """The option of commands that work on the feature cache alone."""

    cache: str | None = None
    """Feature cache (default: $DINOEVAL_CACHE, else the user cache directory)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class JsonOutput:
    """The option of commands that also write their result to a file."""

    json: str | None = None
    """Write the result to this file as JSON (default: not written)."""

    def check(self) -> None:
        """Fail before the work starts if the file cannot be written.

        Raises:
            DinoevalError: If --json names a folder, or a file that cannot be written.
        """
        if self.json:
            check_writable(self.json)

    def write(self, content: Any) -> None:
        """Write the file, complete or not at all; do nothing without --json.

        Args:
            content: What `json.dumps` accepts.

        Raises:
            DinoevalError: If the file cannot be written.
        """
        if self.json:
            text = json_format.dumps(content, indent=1) + "\n"
            write_whole(self.json, lambda target: target.write_text(text, encoding="utf-8"))


def call(function: Callable[..., int], args: Sequence[str], program: str) -> int:
    """Parse the command line of a function and call it.

    Args:
        function: A command. Its parameters are the options.
        args: The words after the name of the command.
        program: What the user typed before them, such as `dinoeval embed`.

    Returns:
        The exit code that the function returns.

    Raises:
        SystemExit: After --help, and with exit code 2 if the words cannot be parsed.
    """
    return tyro.cli(function, args=args, prog=program, registry=_REGISTRY)


def parse(defaults: Sequence[Any], args: Sequence[str], program: str, description: str) -> tuple[Any, ...]:
    """Parse one command line into several dataclasses.

    Args:
        defaults: Instances of dataclasses, whose values are the defaults. Fields may be `tyro.MISSING`: they are required.
        args: The words after the name of the command.
        program: What the user typed before them, such as `dinoeval knn`.
        description: The first paragraph of the help.

    Returns:
        One instance per element of `defaults`, of the same classes.

    Raises:
        SystemExit: After --help, and with exit code 2 if the words cannot be parsed.
    """
    fields = [(f"part{number}", type(default), dataclasses.field(default=default)) for number, default in enumerate(defaults)]
    combined = dataclasses.make_dataclass("Options", fields, frozen=True)
    parsed = tyro.cli(combined, args=args, prog=program, description=inspect.cleandoc(description), registry=_REGISTRY)
    return tuple(getattr(parsed, name) for name, *_ in fields)


def field_help(dataclass: type) -> dict[str, str]:
    """Return the strings under the fields of a dataclass.

    Args:
        dataclass: A dataclass whose source can be read.

    Returns:
        Help text by field, in one line each; fields without a string are left out.
    """
    found: dict[str, str] = {}
    for parent in reversed(inspect.getmro(dataclass)):
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(parent))).body[0]
        except (OSError, TypeError, SyntaxError):  # made at run time, or built in
            continue
        assert isinstance(body, ast.ClassDef)
        for field, below in itertools.pairwise(body.body):
            match field, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = " ".join(text.split())
    return found


def parameter_help(function: Callable[..., Any]) -> dict[str, str]:
    """Return the texts of the `Args:` section of a docstring.

    Args:
        function: A function with a Google style docstring.

    Returns:
        Help text by parameter, in one line each.

    Examples:
        >>> def query(index, /, k=10):
        ...     '''Find images.
        ...
        ...     Args:
        ...         index: Folder of the index.
        ...         k: Number of answers
        ...             per image.
        ...     '''
        >>> parameter_help(query)
        {'index': 'Folder of the index.', 'k': 'Number of answers per image.'}
    """
    section = re.split(r"\n(?=\S)", (inspect.getdoc(function) or "").partition("\nArgs:\n")[2])[0]
    entries = re.findall(r"^    (\w+): (.*?)(?=^    \w|\Z)", section, re.MULTILINE | re.DOTALL)
    return {name: " ".join(text.split()) for name, text in entries}


@_REGISTRY.struct_rule
def _fields_of(info: tyro.constructors.StructTypeInfo) -> tyro.constructors.StructConstructorSpec | None:
    """List the options of a dataclass or a function; None leaves other types to tyro."""
    if dataclasses.is_dataclass(info.type):
        return _fields_of_dataclass(info.type, info.default)
    if inspect.isfunction(info.type):
        return _fields_of_function(info.type)
    return None


def _fields_of_dataclass(dataclass: Any, instance: Any) -> tyro.constructors.StructConstructorSpec:
    hints, texts = typing.get_type_hints(dataclass, include_extras=True), field_help(dataclass)
    specs = []
    for field in dataclasses.fields(dataclass):
        if isinstance(instance, dataclass):
            default = getattr(instance, field.name)
        elif field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        else:
            default = tyro.MISSING if field.default is dataclasses.MISSING else field.default
        specs.append(_spec(field.name, hints[field.name], default, texts.get(field.name)))
    return tyro.constructors.StructConstructorSpec(instantiate=dataclass, fields=tuple(specs))


def _fields_of_function(function: Callable[..., int]) -> tyro.constructors.StructConstructorSpec:
    hints, texts = typing.get_type_hints(function, include_extras=True), parameter_help(function)
    specs, positional = [], []
    for parameter in inspect.signature(function).parameters.values():
        default = tyro.MISSING if parameter.default is inspect.Parameter.empty else parameter.default
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            positional.append(parameter.name)
        specs.append(_spec(parameter.name, hints[parameter.name], default, texts.get(parameter.name), parameter.name in positional))

    @functools.wraps(function)
    def instantiate(**values: Any) -> int:
        arguments = [values.pop(name) for name in positional]
        return function(*arguments, **values)

    return tyro.constructors.StructConstructorSpec(instantiate=instantiate, fields=tuple(specs))


def _spec(name: str, hint: Any, default: Any, text: str | None, positional: bool = False) -> tyro.constructors.StructFieldSpec:
    """Describe one option to tyro: fields of a nested dataclass without a prefix, positional arguments by name."""
    annotated = typing.get_origin(hint) is Annotated
    plain: Any
    plain, *own = typing.get_args(hint) if annotated else (hint,)
    markers: list[Any] = [tyro.conf.DisallowNone, tyro.conf.arg(help_behavior_hint=_hint)]
    if isinstance(plain, type) and dataclasses.is_dataclass(plain):
        markers = [tyro.conf.arg(name="")]
        default = plain() if default is tyro.MISSING else default
    elif positional:
        metavar = name.upper() + ("..." if typing.get_origin(plain) is tuple else "")
        metavar = metavar if default is tyro.MISSING else f"[{metavar}]"
        markers += [tyro.conf.Positional, tyro.conf.arg(metavar=metavar)]
    annotation: Any = Annotated[(plain, *markers, *own)]
    return tyro.constructors.StructFieldSpec(name=name, type=annotation, default=default, helptext=text)


def _hint(default: str) -> str:
    """Show the default. If it is None or empty, the help text itself states the effective default."""
    return "" if default in ("None", "") else f"(default: {default})"
