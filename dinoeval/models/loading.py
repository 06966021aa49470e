"""Load a frozen Backbone: find the architecture and the weights that were named, read them, and choose the device."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from dinoeval.errors import CheckpointError, ConfigError, join_names
from dinoeval.files import expand
from dinoeval.models import external
from dinoeval.models.architectures import parse_architecture
from dinoeval.models.backbone import DTYPES, RANDOM, Backbone, Precision, Provenance
from dinoeval.models.build import build_network, is_architecture, same_architecture
from dinoeval.models.checkpoints import Choice, match_state_dict, open_checkpoint
from dinoeval.models.download import ensure_weights
from dinoeval.models.positions import match_positions
from dinoeval.models.vit import VisionTransformer
from dinoeval.models.zoo import BUNDLED, ZOO, Weights, get_weights

Key = Literal["teacher", "student"]
_PUBLISHED = "published"  # the weights that timm publishes for an architecture
_log = logging.getLogger(__name__)


def load(
    arch: str | None = None,
    *,
    weights: str | Path | None = None,
    key: Key = "teacher",
    ema: bool | None = None,
    device: str = "auto",
    precision: Precision = "fp32",
) -> Backbone:
    """Load a frozen Backbone.

    Args:
        arch: An architecture such as `vit_s8` or `timm/NAME`, or a model name. By default the one that the weights name.
        weights: A file, a model name, or `random`. By default the released weights of `arch`, or the bundled
            demonstration weights if `arch` is not given either.
        key: The network to load from a full checkpoint.
        ema: Whether to load the moving average of the weights, from a file that contains it and the raw weights.
        device: `auto`, `cpu`, `cuda`, `cuda:1` or `mps`.
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
    if precision not in DTYPES:
        raise ConfigError(f"unknown precision '{precision}'. Available: {', '.join(DTYPES)}.")
    chosen, reason = choose_device(device)
    arch, source = _resolve(arch, weights)
    if not isinstance(source, str):
        arch, network, provenance = _load_file(arch, source, Choice(key, ema))
    else:
        assert arch is not None
        network, provenance = _build_random(arch), Provenance(RANDOM, "drawn with seed 0, untrained")
        if source == _PUBLISHED:
            state, address = external.published_weights(network)
            network.load_state_dict(state, strict=True)
            provenance = Provenance(arch, f"published by timm at {address}")
    backbone = Backbone(network, arch=arch, provenance=provenance, device=chosen, precision=precision)
    _log.info("%s from %s (%s), digest %s", arch, provenance.name, provenance.layout, backbone.digest[:12])
    _log.info("device %s (%s), precision %s", chosen, reason, precision)
    return backbone


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


def _resolve(arch: str | None, weights: str | Path | None) -> tuple[str | None, Weights | Path | str]:
    """Return the architecture, if it is known yet, and the weights: an entry of the zoo, a file, `random` or `published`."""
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
