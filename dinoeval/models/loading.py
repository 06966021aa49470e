"""Load a frozen Backbone: find the architecture and the weights that were named, read them, and choose the device."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from dinoeval.coercion import coerce
from dinoeval.errors import CheckpointError, ConfigError, join_names
from dinoeval.files import expand
from dinoeval.guard import entry_point
from dinoeval.models import external
from dinoeval.models.architectures import parse_architecture
from dinoeval.models.backbone import RANDOM, Backbone, Precision, Provenance
from dinoeval.models.build import build_network, is_architecture, same_architecture
from dinoeval.models.checkpoints import Choice, match_state_dict, open_checkpoint
from dinoeval.models.download import ensure_weights
from dinoeval.models.positions import match_positions
from dinoeval.models.timm_weights import published_weights
from dinoeval.models.vit import VisionTransformer
from dinoeval.models.zoo import BUNDLED, ZOO, Weights, get_weights

Key = Literal["teacher", "student"]
_PUBLISHED = "published"  # the weights that timm publishes for an architecture
_log = logging.getLogger(__name__)


@entry_point
def load(
    arch: str | Path | None = None,
    *,
    weights: str | Path | None = None,
    key: Key = "teacher",
    ema: bool | None = None,
    device: str | torch.device = "auto",
    precision: Precision = "fp32",
) -> Backbone:
    """Load a frozen Backbone.

    Args:
        arch: An architecture such as `vit_s8` or `timm/NAME`, or a model name. By default the one that the weights name. A file
            in this place is taken as `weights`.
        weights: A file, a model name, or `random`. By default the released weights of `arch`, or the bundled
            demonstration weights if `arch` is not given either.
        key: The network to load from a full checkpoint.
        ema: Whether to load the moving average of the weights, from a file that contains it and the raw weights.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`, or a device of PyTorch.
        precision: `fp32`, `bf16` or `fp16`, of the forward pass.

    Returns:
        A Backbone with all of its tensors loaded.

    Raises:
        CheckpointError: If the weights cannot be found or read, or if a tensor is missing or unexpected.
        ConfigError: If there is no such architecture, model name, device or precision.

    Examples:
        >>> import dinoeval
        >>> backbone = dinoeval.load(device="cpu")  # the bundled demonstration weights
        >>> backbone.arch, backbone.dim, backbone.patch_size
        ('vit_xs8_16', 96, 8)
        >>> dinoeval.load("vit_ti16", weights="random", device="cpu").provenance.random
        True
    """
    key, ema = coerce(key, Key, "key"), coerce(ema, bool | None, "ema")
    precision = coerce(precision, Precision, "precision")
    arch, source = resolve_names(arch, weights)
    chosen, reason = choose_device(coerce(str(device) if isinstance(device, torch.device) else device, str, "device"))
    if not isinstance(source, str):
        arch, network, provenance = _load_file(arch, source, Choice(key, ema))
    else:
        assert arch is not None
        network, provenance = _build_random(arch), Provenance(RANDOM, "drawn with seed 0, untrained")
        if source == _PUBLISHED:
            state, address = published_weights(network)
            network.load_state_dict(state, strict=True)
            provenance = Provenance(arch, f"published by timm at {address}")
    backbone = Backbone(network, arch=arch, provenance=provenance, device=chosen, precision=precision)
    _log.info("%s from %s (%s), digest %s", arch, provenance.name, provenance.layout, backbone.digest[:12])
    _log.info("device %s (%s), precision %s", chosen, reason, precision)
    return backbone


def as_backbone(backbone: Backbone | str | Path) -> Backbone:
    """Load a backbone that is named instead of given.

    Args:
        backbone: A backbone, or what `load` takes first: an architecture, a model name, or a file.

    Returns:
        The backbone.

    Raises:
        DinoevalError: If it cannot be loaded, or something else was passed.

    Examples:
        >>> as_backbone("vit_digits").dim
        96
    """
    if isinstance(backbone, Backbone):
        return backbone
    arch, weights = split_source(backbone)
    return load(arch, weights=weights)


def split_source(source: object) -> tuple[str | None, str | None]:
    """Tell a file of weights from the name of an architecture or a model.

    Args:
        source: A name or a path.

    Returns:
        The name and None, or None and the path.

    Raises:
        ConfigError: If it is neither.
    """
    if isinstance(source, nn.Module):
        raise ConfigError(
            f"a {type(source).__name__} cannot be used as a backbone: save its state dict, and load the file with "
            "dinoeval.load(arch, weights=FILE)"
        )
    if not isinstance(source, (str, os.PathLike)):
        raise ConfigError(f"a backbone is loaded by a name or a path, got {source!r:.60}: pass dinoeval.load(...)")
    name = os.fsdecode(source)
    if isinstance(source, str) and (name in ZOO or external.is_external(name)):
        return name, None
    is_file = not isinstance(source, str) or len(Path(name).parts) > 1 or Path(name).suffix or Path(name).exists()
    return (None, name) if is_file else (name, None)


def choose_device(device: str = "auto") -> tuple[torch.device, str]:
    """Choose a device.

    Args:
        device: A device of PyTorch, or `auto` for CUDA, Apple's GPU or the CPU, whichever is available first.
            Under torchrun, `auto` gives each process a CUDA device of its own.

    Returns:
        The device, and the reason for the choice.

    Raises:
        ConfigError: If the device cannot be used.

    Examples:
        >>> choose_device("cpu")
        (device(type='cpu'), 'as requested')
    """
    if device != "auto":
        try:
            chosen = torch.device(device)
            torch.zeros(1, device=chosen).item()
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise ConfigError(f"--device {device} cannot be used: {str(error).splitlines()[0]}. Try --device auto.") from error
        return chosen, "as requested"
    if torch.cuda.is_available():
        number = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
        return torch.device("cuda", number), f"found {torch.cuda.get_device_name(number)}"
    if torch.backends.mps.is_available():
        return torch.device("mps"), "found Apple's GPU"
    return torch.device("cpu"), "no CUDA device and no Apple GPU found"


def resolve_names(arch: str | Path | None, weights: str | Path | None) -> tuple[str | None, Weights | Path | str]:
    """Resolve the names of an architecture and of weights; no file is read.

    Args:
        arch: As for `load`.
        weights: As for `load`.

    Returns:
        The architecture, if it is known yet, and the weights: an entry of the zoo, a file, `random` or `published`.

    Raises:
        DinoevalError: If a name is unknown, or the two do not fit together.
    """
    if arch is not None:
        arch, file = split_source(arch)
        if file is not None and weights is not None:
            raise ConfigError(f"{file} is a file, not an architecture: pass it as weights, in place of {weights}")
        weights = weights if file is None else file
    if weights is not None and not isinstance(weights, (str, os.PathLike)):
        raise ConfigError(f"weights must be a path, a model name or 'random', got {weights!r:.60}")
    named = ZOO.get(arch or BUNDLED)
    if weights is None and named is None:
        assert arch is not None
        if arch.startswith(external.TIMM):
            return arch, _PUBLISHED
        if not external.is_external(arch):
            parse_architecture(arch)
        released = ", ".join(entry.name for entry in ZOO.values() if entry.kind == "backbone")
        raise CheckpointError(
            f"no weights are released for '{arch}'. Pass --weights FILE, or --weights random for an untrained network. "
            f"Released: {released}."
        )
    if weights is None:
        assert named is not None
        weights = named.name
    if arch is not None and named is not None:
        arch = named.arch
    if weights == RANDOM:
        if arch is None:
            raise ConfigError("--weights random requires --arch")
        return arch, RANDOM
    name = str(weights)
    entry = ZOO.get(name)
    if entry is None and "/" not in name and not Path(name).suffix and not Path(name).exists():
        entry = get_weights(name)  # raises, with a suggestion
    if entry is not None and entry.kind == "linear head":
        raise CheckpointError(f"'{entry.name}' is a linear head, not a backbone: pass it to `dinoeval linear --head`")
    return arch, entry or expand(name)


def _build_random(arch: str) -> nn.Module:
    """Build an untrained network without using the caller's random numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # torch.manual_seed would seed the GPUs as well
        return build_network(arch)


def _file_name(path: Path) -> str:
    """Return the path as a Result records it. A file is never mistaken for a model name or for weights of timm."""
    name = str(path)
    return f"./{name}" if name in ZOO or name == RANDOM or name.startswith(external.TIMM) else name


def _load_file(arch: str | None, source: Weights | Path, choice: Choice) -> tuple[str, nn.Module, Provenance]:
    """Load the network of a file; its architecture is `arch`, or the one that the zoo or the file names."""
    if isinstance(source, Weights):
        path, name = ensure_weights(source), source.name
        checkpoint = open_checkpoint(path, choice.key, choice.ema)
        stated: str | None = source.arch
    else:
        path, name = source, _file_name(source)
        checkpoint = open_checkpoint(path, choice.key, choice.ema)
        stated = checkpoint.arch if is_architecture(checkpoint.arch) else None
    if stated is not None and arch is not None and not same_architecture(stated, arch):
        raise ConfigError(f"{name} contains a {stated}, but --arch is {arch}: leave --arch out")
    if arch is None and stated is None:
        other = f" It names {join_names([checkpoint.arch])}, which is not an architecture." if isinstance(checkpoint.arch, str) else ""
        raise ConfigError(f"{path} does not name its architecture: pass --arch.{other}")
    arch = arch or stated
    assert arch is not None
    try:
        with torch.device("meta"):  # Nothing is drawn that is replaced at once, and a file cannot ask for a large network.
            network = build_network(arch)
    except (ConfigError, RuntimeError, NotImplementedError):  # a model of timm that computes with its initial weights
        network = _build_random(arch)
    layout = [checkpoint.layout]
    state = external.to_external_names(network, checkpoint.state) if external.is_external(arch) else checkpoint.state
    state, resampled = match_positions(state, network)
    if resampled:
        _log.warning("%s: %s for %s", name, resampled, arch)
        layout.append(resampled)
    if stated is None and isinstance(network, VisionTransformer):  # The tensors are the same for any number of heads.
        layout.append(f"{network.config.num_heads} heads of {arch}")
    state = match_state_dict(state, checkpoint.ignored, network.state_dict(), arch=arch, source=name)
    if external.is_external(arch):  # It may have buffers that are not in files.
        network = _build_random(arch)
    network.load_state_dict(state, strict=True, assign=True)
    return arch, network, Provenance(name, ", ".join(layout), checkpoint.key, checkpoint.ema)
