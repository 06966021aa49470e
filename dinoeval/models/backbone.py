"""Backbone: architecture, weights, device and precision, frozen; and Tokens, what it says of a batch."""

from __future__ import annotations

import dataclasses
import logging
import os
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from dinoeval.errors import CheckpointError, ConfigError
from dinoeval.files import expand
from dinoeval.models.checkpoints import Checkpoint, check_fits, open_checkpoint, tensor_digest
from dinoeval.models.shelf import obtain
from dinoeval.models.vit import VisionTransformer, VitConfig, parse_architecture
from dinoeval.models.zoo import BUNDLED, ZOO, find

Precision = Literal["fp32", "bf16", "fp16"]
Key = Literal["teacher", "student"]
RANDOM = "random"
_DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The final-norm tokens of a batch of N images with h x w patches and D dims, float32."""

    cls: Tensor
    """(N, D), of the last block."""
    patches: Tensor | None
    """(N, h, w, D), of the last block; None where only [CLS] was asked for."""
    layers: tuple[Tensor, ...] = ()
    """The last blocks asked for, earliest first, each (N, 1 + h*w, D): [CLS] first, then patches row by row."""


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Where weights came from; recorded in every Result."""

    name: str
    """A name of the zoo, a path, or `random`."""
    layout: str
    key: str | None = None

    @property
    def random(self) -> bool:
        return self.name == RANDOM


class Backbone:
    """A frozen network in eval mode; calling it gives Tokens, and no gradient is ever recorded."""

    def __init__(
        self,
        network: VisionTransformer,
        *,
        arch: str,
        provenance: Provenance,
        device: torch.device,
        precision: Precision = "fp32",
    ) -> None:
        self.arch = arch
        self.provenance = provenance
        self.precision: Precision = precision
        self.digest = tensor_digest(network.state_dict())
        self.device = device
        self.network = network.eval().requires_grad_(False).to(device)
        if precision != "fp32":
            for module in self.network.modules():  # norms, positions and the residual stream stay in float32
                if isinstance(module, (nn.Linear, nn.Conv2d)):
                    module.to(_DTYPES[precision])
        self._as_built = tensor_digest(self.network.state_dict())

    def check_unchanged(self) -> None:
        """Raise ConfigError where the tensors are no longer those of `digest`: features would be kept under a wrong name."""
        if self.network.training or tensor_digest(self.network.state_dict()) != self._as_built:
            raise ConfigError(f"the network of {self!r} was changed after it was loaded: load it anew, or build a new Backbone of it")

    @property
    def config(self) -> VitConfig:
        return self.network.config

    @property
    def dim(self) -> int:
        return self.config.dim

    @property
    def depth(self) -> int:
        return self.config.depth

    @property
    def patch_size(self) -> int:
        return self.config.patch_size

    def __repr__(self) -> str:
        return f"Backbone({self.arch}, {self.provenance.name}, {self.device}, {self.precision}, digest {self.digest[:12]})"

    @torch.inference_mode()
    def __call__(self, images: Tensor, *, layers: int = 1, patches: bool = True) -> Tokens:
        """Map normalised images (N, 3, H, W) to Tokens.

        `layers` asks for the last blocks; `patches=False` with one layer computes [CLS] alone, which is faster. Sizes
        that are no multiple of the patch lose their right and bottom rest. Raises ConfigError where an image is smaller
        than a patch or `layers` exceeds the depth.
        """
        self._check(images, layers)
        images = images.to(self.device, non_blocking=True)
        if layers == 1 and not patches:
            return Tokens(cls=self.network(images).float(), patches=None)
        outputs = tuple(output.float() for output in self.network.tokens(images, layers))
        rows, columns = (side // self.patch_size for side in images.shape[-2:])
        return Tokens(cls=outputs[-1][:, 0], patches=outputs[-1][:, 1:].unflatten(1, (rows, columns)), layers=outputs)

    @torch.inference_mode()
    def attention(self, images: Tensor) -> Tensor:
        """Return the last block's softmax attention, (N, heads, T, T) with T = 1 + h*w tokens, [CLS] first."""
        self._check(images, 1)
        return self.network.last_attention(images.to(self.device))

    def _check(self, images: Tensor, layers: int) -> None:
        if images.ndim != 4 or images.shape[1] != 3:
            raise ConfigError(f"a backbone takes a batch of RGB images (N, 3, H, W), not {tuple(images.shape)}")
        if min(images.shape[-2:]) < self.patch_size:
            raise ConfigError(f"images of {images.shape[-2]} x {images.shape[-1]} pixels are smaller than a patch of {self.patch_size}")
        if not 1 <= layers <= self.depth:
            raise ConfigError(f"the last {layers} blocks were asked for; {self.arch} has {self.depth}")


def choose_device(device: str = "auto") -> tuple[torch.device, str]:
    """Resolve `auto` to cuda, mps or cpu and say why."""
    if device != "auto":
        try:
            chosen = torch.device(device)
            torch.zeros(1, device=chosen).item()
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise ConfigError(f"device '{device}' cannot be used: {str(error).splitlines()[0]}. Try --device auto.") from error
        return chosen, "as asked"
    if torch.cuda.is_available():
        own = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()  # under torchrun each process has its own
        return torch.device("cuda", own), f"found {torch.cuda.get_device_name(own)}"
    if torch.backends.mps.is_available():
        return torch.device("mps"), "found Apple's GPU"
    return torch.device("cpu"), "no CUDA device and no Apple GPU found"


def load(
    arch: str | None = None,
    *,
    weights: str | Path | None = None,
    key: Key = "teacher",
    device: str = "auto",
    precision: Precision = "fp32",
) -> Backbone:
    """Load a frozen Backbone.

    `arch` is an architecture such as `vit_s8`, or a name of the zoo. `weights` is a path, a name of the zoo, or
    `random`; by default the released weights of `arch`, or the bundled demonstration where neither is given. `key`
    chooses the network of a full checkpoint. Raises CheckpointError unless every tensor of the network was loaded.
    """
    if precision not in _DTYPES:
        raise ConfigError(f"precision '{precision}' is none of {', '.join(_DTYPES)}")
    where, reason = choose_device(device)
    arch, checkpoint, provenance = _resolve(arch, weights, key)
    config = parse_architecture(arch)
    if checkpoint is None:
        with torch.random.fork_rng(devices=[]):  # a user's own random numbers stay as they are, on a GPU too
            torch.default_generator.manual_seed(0)
            network = VisionTransformer(config)
    else:
        with torch.device("meta"):  # no time is lost on drawing weights that are replaced at once
            network = VisionTransformer(config)
        check_fits(checkpoint.state, network.state_dict(), arch=arch, source=provenance.name)
        network.load_state_dict(checkpoint.state, strict=True, assign=True)
    backbone = Backbone(network, arch=arch, provenance=provenance, device=where, precision=precision)
    _log.info("%s from %s (%s), digest %s", arch, provenance.name, provenance.layout, backbone.digest[:12])
    _log.info("device %s (%s), precision %s", where, reason, precision)
    return backbone


def _resolve(arch: str | None, weights: str | Path | None, key: Key) -> tuple[str, Checkpoint | None, Provenance]:
    """Settle which architecture and which file; read the file."""
    named = ZOO.get(arch or BUNDLED)
    if weights is None:
        if named is None:
            assert arch is not None
            parse_architecture(arch)
            raise CheckpointError(
                f"no weights are released for '{arch}'. Give your own with --weights FILE, or say --weights random "
                f"for an untrained network. Released: {', '.join(r.name for r in ZOO.values() if r.kind == 'backbone')}."
            )
        weights = named.name
    if arch is not None and named is not None:
        arch = named.arch
    if weights == RANDOM:
        if arch is None:
            raise ConfigError("--weights random needs an --arch")
        return arch, None, Provenance(RANDOM, "drawn with seed 0, untrained")
    name = str(weights)
    row = ZOO.get(name)
    if row is None and "/" not in name and not Path(name).suffix and not Path(name).exists():
        row = find(name)  # raises, with a suggestion
    if row is not None:
        if row.kind == "linear head":
            raise CheckpointError(f"'{row.name}' is a linear head, not a backbone")
        if not row.arch.startswith("vit"):
            raise CheckpointError(f"'{row.name}' is a {row.arch}; this version scores vision transformers only")
    path = obtain(row) if row else expand(name)
    checkpoint = open_checkpoint(path, key)
    says = row.arch if row else checkpoint.arch
    if says is not None and arch is not None and parse_architecture(says) != parse_architecture(arch):
        raise ConfigError(f"{name} says that it is a {says}, and --arch says {arch}; tensors do not show heads, so leave --arch out")
    arch = arch or says
    if arch is None:
        raise ConfigError(f"{path} does not say its architecture: name it with --arch")
    return arch, checkpoint, Provenance(row.name if row else str(path), checkpoint.layout, checkpoint.key)
