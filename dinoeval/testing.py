"""Test helpers for packages that add a protocol: a check of the whole contract, a small network and small images.

N images. Everything is drawn from seeded NumPy generators: values are the same on every machine.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import inspect
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from dinoeval import protocols
from dinoeval.errors import DinoevalError
from dinoeval.guard import entry_point
from dinoeval.paper.rows import PaperRow
from dinoeval.results import Result

if TYPE_CHECKING:
    import torch

    from dinoeval.models.architectures import VitConfig
    from dinoeval.models.backbone import Backbone

TINY_ARCH = "vit_xs4_16"
"""Architecture of 17 tokens of 96 dims for images of 16 x 16 pixels: the smallest network that is useful."""
MAX_FIELDS = 12
"""Largest number of options of a protocol."""


@entry_point
def tiny_state(arch: VitConfig | str = TINY_ARCH, seed: int = 0, spread: float = 0.05) -> dict[str, torch.Tensor]:
    """Return random weights with the tensor names of a released backbone.

    Args:
        arch: Architecture of DINO's vision transformer or its name, such as vit_xs4_16.
        seed: Seed of the generator.
        spread: Standard deviation of the weights. It is larger than at the start of a training, so that attention is far
            from uniform and an error in any detail changes the output.

    Returns:
        Tensors by name, float32.
    """
    import torch

    from dinoeval.models.architectures import parse_architecture
    from dinoeval.models.vit import VisionTransformer

    config = parse_architecture(arch) if isinstance(arch, str) else arch
    random = np.random.default_rng(seed)
    state = {}
    for name, tensor in sorted(VisionTransformer(config).state_dict().items()):
        values = random.standard_normal(tuple(tensor.shape), dtype=np.float32) * spread
        if name.endswith(("norm1.weight", "norm2.weight", "norm.weight")):
            values += 1
        state[name] = torch.from_numpy(values)
    return state


@entry_point
def tiny_backbone(arch: str = TINY_ARCH, seed: int = 0) -> Backbone:
    """Return a small backbone with random weights, on the CPU.

    Args:
        arch: Architecture of DINO's vision transformer.
        seed: Seed of the weights.

    Returns:
        A backbone that Results describe as random, so that no score of it is compared with a published one.

    Examples:
        >>> tiny_backbone().dim
        96
    """
    import torch

    from dinoeval.models.backbone import RANDOM, Backbone, Provenance
    from dinoeval.models.build import build_network

    network = build_network(arch)
    network.load_state_dict(tiny_state(arch, seed))
    return Backbone(network, arch=arch, provenance=Provenance(RANDOM, f"tiny_backbone, seed {seed}"), device=torch.device("cpu"))


def tiny_images(count: int, size: tuple[int, int] = (20, 24), seed: int = 0) -> list[Image.Image]:
    """Return color gradients with noise.

    Args:
        count: Number of images N. Image i is the same for every `count`.
        size: Width and height in pixels.
        seed: Seed of the generator.

    Returns:
        N RGB images.

    Examples:
        >>> tiny_images(2)[0].size
        (20, 24)
    """
    images = []
    for number in range(count):
        random = np.random.default_rng((seed, number))
        across = np.linspace(0, 1, size[0])[None, :, None] * random.uniform(0, 160, 3)
        down = np.linspace(0, 1, size[1])[:, None, None] * random.uniform(0, 80, 3)
        images.append(Image.fromarray((across + down + random.uniform(0, 15, (size[1], size[0], 3))).astype(np.uint8)))
    return images


def tiny_image_folder(
    path: str | Path, *, classes: int = 3, train: int = 8, val: int = 3, val_name: str = "val", extension: str = "png"
) -> Path:
    """Write a labeled dataset of class folders, `train/class0/0.png` and so on.

    Args:
        path: Folder to write to; it is created.
        classes: Number of classes. Images of a class share a tint.
        train: Training images per class.
        val: Evaluation images per class.
        val_name: Name of the evaluation split, `val` or `test`.
        extension: Image format, such as `png` or `jpg`.

    Returns:
        The folder, for --data.

    Examples:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sorted(found.name for found in tiny_image_folder(folder).iterdir())
        ['train', 'val']
    """
    for split, count in (("train", train), (val_name, val)):
        for label in range(classes):
            folder = Path(path) / split / f"class{label}"
            folder.mkdir(parents=True, exist_ok=True)
            for number, image in enumerate(tiny_images(count, seed=1 + label + 100 * (split == "train"))):
                tint = np.zeros(3)
                tint[label % 3] = 80
                pixels = np.clip(np.asarray(image, np.float32) * 0.5 + tint, 0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.{extension}")
    return Path(path)


def check_protocol(module: ModuleType, data: str | Path | None = None, *, run: bool = True, **options: Any) -> list[str]:
    """List everything that a protocol lacks.

    Args:
        module: The module of the protocol.
        data: Dataset of a trial run, passed as the option `data` (default: a synthetic labeled dataset of 3 classes).
        run: Whether the protocol is run on `tiny_backbone`, if nothing else is wrong.
        **options: Further options of the trial run, such as `k=(5,)`.

    Returns:
        One sentence per problem; empty if the protocol is complete.

    Examples:
        >>> from dinoeval.protocols import knn
        >>> check_protocol(knn, k=(5,))
        []
    """
    problems = [*_check_name(module), *_check_parts(module), *_check_import(module)]
    if hasattr(module, "Config"):
        problems += _check_config(module.Config)
    problems += _check_rows(module)
    if run and not problems:
        problems += _check_run(module, data, options)
    return problems


def _registered_name(module: ModuleType) -> str | None:
    package, _, name = module.__name__.rpartition(".")
    if package == protocols.__name__:
        return name
    entries = importlib.metadata.entry_points(group=protocols.ENTRY_POINTS)
    return next((entry.name for entry in entries if entry.value == module.__name__), None)


def _check_name(module: ModuleType) -> list[str]:
    from dinoeval.cli.commands import PROTOCOL, all_commands

    name = _registered_name(module)
    if name is None:
        table = f'[project.entry-points."{protocols.ENTRY_POINTS}"]'
        return [
            f'no entry point names the module: add NAME = "{module.__name__}" below {table} in pyproject.toml, then install the package'
        ]
    problems = []
    if len(packages := protocols.packages_of(name)) > 1:
        problems.append(f"the name '{name}' is taken: {' and '.join(packages)} provide it")
    command = all_commands().get(name)
    if command is None or command.target != PROTOCOL or not name.replace("-", "").isalnum() or name != name.lower():
        problems.append(f"the name '{name}' cannot be used: choose lower-case letters, digits and hyphens, and not the name of a command")
    return problems


def _check_parts(module: ModuleType) -> list[str]:
    """Check the docstring, VERSION and `run`; that Config exists."""
    problems = []
    if not (module.__doc__ or "").strip():
        problems.append("the module has no docstring: its first line is the summary in `dinoeval --help`")
    version = getattr(module, "VERSION", None)
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        problems.append(f"VERSION must be an integer of at least 1, got {version!r}")
    if not hasattr(module, "Config"):
        problems.append("Config is missing: a frozen, keyword-only dataclass of the options")
    function = getattr(module, "run", None)
    if not callable(function) or list(inspect.signature(function).parameters) != ["config", "session"]:
        problems.append("run(config, session) -> Result is missing or has other parameters")
    elif not (function.__doc__ or "").strip():
        problems.append("run has no docstring")
    return problems


def _check_import(module: ModuleType) -> list[str]:
    """Import the module in a new process, as `dinoeval --help` does for protocols of other packages."""
    code = "import importlib, sys; importlib.import_module(sys.argv[1]); print('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, module.__name__]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, stdin=subprocess.DEVNULL)
    if done.returncode:
        return [f"the module cannot be imported in a new process: {(done.stderr.splitlines() or ['no message'])[-1]}"]
    if done.stdout.splitlines() == ["True"]:
        return ["importing the module imports torch, which makes `dinoeval --help` slow: import torch inside functions"]
    return [] if done.stdout == "False\n" else ["importing the module prints"]


def _check_config(config: Any) -> list[str]:
    if not dataclasses.is_dataclass(config) or not isinstance(config, type):
        return ["Config must be a dataclass"]
    from dinoeval.cli import options
    from dinoeval.session import SessionConfig

    problems = []
    fields, texts = dataclasses.fields(config), options.field_help(config)
    if not getattr(config, "__dataclass_params__").frozen:  # noqa: B009  pyright does not see the attribute
        problems.append("Config must be frozen: @dataclasses.dataclass(frozen=True, kw_only=True)")
    if not all(field.kw_only for field in fields):
        problems.append("Config must be keyword-only: @dataclasses.dataclass(frozen=True, kw_only=True)")
    if not config.__doc__ or config.__doc__.startswith(f"{config.__name__}("):
        problems.append("Config has no docstring: it is the first paragraph of the help")
    if len(fields) > MAX_FIELDS:
        problems.append(f"Config has {len(fields)} fields: at most {MAX_FIELDS} are allowed")
    taken = {field.name for shared in (SessionConfig, options.JsonOutput) for field in dataclasses.fields(shared)}
    for field in fields:
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            problems.append(f"Config.{field.name} has no default")
        if field.name not in texts:
            problems.append(f"Config.{field.name} has no docstring under it: it is the help of the option")
        elif field.default is None and "(default:" not in texts[field.name]:
            problems.append(f"the docstring under Config.{field.name} must state what None means: (default: ...)")
        if field.name in taken:
            problems.append(f"Config.{field.name} is an option of every protocol already: rename it")
    if not problems:
        problems += _check_command_line(config)
    return problems


def _check_command_line(config: type) -> list[str]:
    from dinoeval.cli import options

    try:
        parsed = options.parse((config(),), [], "dinoeval", "")
    except (SystemExit, Exception) as error:  # noqa: BLE001  Config can raise anything, tyro exits
        return [f"the command line cannot parse Config without options: {type(error).__name__}: {error}"]
    return [] if parsed == (config(),) else ["Config() and the command line without options differ"]


def _check_rows(module: ModuleType) -> list[str]:
    rows, name = getattr(module, "PAPER_ROWS", ()), _registered_name(module)
    if not isinstance(rows, (tuple, list)):
        return ["PAPER_ROWS must be a tuple of dinoeval.paper.rows.PaperRow"]
    problems = []
    for number, row in enumerate(rows):
        if not isinstance(row, PaperRow):
            problems.append(f"PAPER_ROWS[{number}] must be a dinoeval.paper.rows.PaperRow, got {type(row).__name__}")
            continue
        if name is not None and row.protocol != name:
            problems.append(f"PAPER_ROWS[{number}].protocol must be '{name}', got '{row.protocol}'")
        if not row.source or not math.isfinite(row.value) or row.decimals < 0:
            problems.append(f"PAPER_ROWS[{number}] must have a source, a finite value and decimals of at least 0")
    return problems


def _check_run(module: ModuleType, data: str | Path | None, options: dict[str, Any]) -> list[str]:
    from dinoeval.session import Session, SessionConfig

    with tempfile.TemporaryDirectory() as folder:
        if "data" in {field.name for field in dataclasses.fields(module.Config)}:
            options = {"data": str(data or tiny_image_folder(Path(folder) / "images")), **options}
        session = Session(SessionConfig(cache=str(Path(folder) / "cache"), workers=0), tiny_backbone())
        try:
            result = module.run(module.Config(**options), session)
        except Exception as error:  # noqa: BLE001  a protocol can raise anything
            return [f"run raised {type(error).__name__}: {error}"]
        if not isinstance(result, Result):
            return [f"run must return a dinoeval.Result, got {type(result).__name__}: end with session.record(...).result(...)"]
        return [*_check_result(module, result), *_check_saved(result, Path(folder) / "result.json")]


def _check_result(module: ModuleType, result: Result) -> list[str]:
    problems = []
    if result.protocol != _registered_name(module):
        problems.append(f"Result.protocol must be '{_registered_name(module)}', got '{result.protocol}'")
    if result.version != module.VERSION:
        problems.append(f"Result.version must be VERSION = {module.VERSION}, got {result.version}")
    if not result.metrics:
        problems.append("Result.metrics is empty")
    for field in ("metrics", "standard_errors", "deviations"):
        for name, value in getattr(result, field).items():
            if not isinstance(value, float) or not math.isfinite(value) or abs(value) > 100:
                problems.append(f"Result.{field} must be floats in percent, got {name} = {value!r}")
    if unknown := set(result.standard_errors) - set(result.metrics):
        problems.append(f"Result.standard_errors has no metric for {', '.join(sorted(unknown))}")
    lengths = {name: len(column) for name, column in result.samples.items()}
    if len(set(lengths.values())) > 1:
        problems.append(f"the columns of Result.samples must have equal lengths, got {lengths}")
    return problems


def _check_saved(result: Result, path: Path) -> list[str]:
    try:
        result.save(path)
        loaded = Result.load(path)
    except (DinoevalError, TypeError, ValueError) as error:
        return [f"the Result cannot be saved and loaded as JSON: {error}"]
    same = loaded.metrics == result.metrics and loaded.samples == result.samples
    return [] if same else ["the Result changes when it is saved and loaded: use Python floats, integers, strings and lists"]
