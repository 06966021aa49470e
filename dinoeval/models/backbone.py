"""Backbone: architecture, weights, device and precision, frozen; and Tokens, what it says of a batch."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dinoeval.errors import CheckpointError, ConfigError, DataError
from dinoeval.files import expand
from dinoeval.models import external
from dinoeval.models.build import Config, build_network, read_tokens, same_architecture
from dinoeval.models.checkpoints import match_state_dict, open_checkpoint, tensor_digest
from dinoeval.models.download import ensure_weights
from dinoeval.models.vit import VisionTransformer, parse_architecture
from dinoeval.models.zoo import BUNDLED, ZOO, Weights, get_weights

Precision = Literal["fp32", "bf16", "fp16"]
Key = Literal["teacher", "student"]
RANDOM, _PUBLISHED = "random", "published"
_DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_CPU_TOKENS, _GPU_TOKENS, _TRAINING_TOKENS = 6_400, 65_536, 25_600  # a forward pass; 32 images of 197 tokens on a CPU
_MUCH_ATTENTION = 2**30  # bytes of which a warning tells
_CONVNET_STRIDE = 16  # a network without patches is batched like a ViT of such patches
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The final-norm tokens of a batch of N images with h x w patches and D dims, float32."""

    cls: Tensor
    """(N, D), [CLS] of the last block; of a network without [CLS] the pooled feature."""
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
        network: nn.Module,
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
        self.network: Any = network.eval().requires_grad_(False).to(device)
        if precision != "fp32" and isinstance(network, VisionTransformer):
            for module in self.network.modules():  # norms, positions and the residual stream stay in float32
                if isinstance(module, (nn.Linear, nn.Conv2d)):
                    module.to(_DTYPES[precision])
        self._as_built = tensor_digest(self.network.state_dict())

    def check_unchanged(self) -> None:
        """Raise ConfigError where the tensors are no longer those of `digest`: features would be kept under a wrong name."""
        if self.network.training or tensor_digest(self.network.state_dict()) != self._as_built:
            raise ConfigError(f"the network of {self!r} was changed after it was loaded: load it anew, or build a new Backbone of it")

    @property
    def config(self) -> Config:
        return self.network.config

    @property
    def dim(self) -> int:
        return self.config.dim

    @property
    def depth(self) -> int:
        return self.config.depth

    @property
    def patch_size(self) -> int | None:
        """Pixels; None for a network without patches."""
        return self.config.patch_size

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches in an image; (0, 0) where the network has none."""
        return (height // self.patch_size, width // self.patch_size) if self.patch_size else (0, 0)

    def check_finite(self, rows: Tensor, paths: Sequence[str]) -> None:
        """Raise DataError, with the first image, where features (N, ...) of images are NaN or infinite."""
        finite = torch.isfinite(rows).flatten(1).all(1)
        if not finite.all():
            first = paths[int(finite.logical_not().nonzero()[0])]
            advice = "--precision fp32 has the range that fp16 lacks" if self.precision == "fp16" else "its weights may be broken"
            raise DataError(f"the features of {first} by {self.arch} are NaN or infinite: {advice}. Nothing can be scored with them.")

    def fast_batch(self, size: int, training: bool = False) -> int:
        """Images of size x size pixels a forward pass that were fast on a CPU, or fill a GPU; fewer where gradients are kept."""
        stride = self.patch_size or _CONVNET_STRIDE
        tokens = 1 + (size // stride) ** 2
        fitting = _CPU_TOKENS if self.device.type == "cpu" else _TRAINING_TOKENS if training else _GPU_TOKENS
        return max(1, min(512, fitting // tokens))

    def __repr__(self) -> str:
        return f"Backbone({self.arch}, {self.provenance.name}, {self.device}, {self.precision}, digest {self.digest[:12]})"

    @torch.inference_mode()
    def __call__(self, images: Tensor, *, layers: int = 1, patches: bool = True) -> Tokens:
        """Map normalised images (N, 3, H, W) to Tokens.

        `layers` asks for the last blocks; `patches=False` with one layer computes [CLS] alone, which is faster. Sizes
        that are no multiple of the patch lose their right and bottom rest. Raises ConfigError where an image is smaller
        than a patch, or the network has not the blocks that are asked for.
        """
        images = self._checked(images)
        self.check_offers(layers, patches and self.patch_size is not None)
        images = images.to(self.device, non_blocking=True)
        with self._precisely(images):
            if layers == 1 and not (patches and self.patch_size):
                return Tokens(cls=self.network(images).float(), patches=None)
            cls, patch_tokens, blocks = read_tokens(self.network, images, layers)
        return Tokens(cls=cls.float(), patches=patch_tokens.float(), layers=tuple(block.float() for block in blocks))

    @torch.inference_mode()
    def attention(self, images: Tensor, queries: Sequence[int] | None = None) -> Tensor:
        """Return the last block's softmax attention, (N, heads, T, T) with T = 1 + h*w tokens, [CLS] first; rows sum to 1.

        `queries` asks for the rows of some tokens only, (N, heads, Q, T): 0 is [CLS], 1 + r*w + c the patch in row r and
        column c. Registers and distillation tokens of timm's networks are left out, so that rows of those sum to less.
        Raises ConfigError where there is no such token, or the network's attention cannot be read.
        """
        images = self._checked(images)
        own = isinstance(self.network, VisionTransformer)
        if not own and not external.has_attention(self.network):
            raise ConfigError(
                f"the attention of {self.arch} cannot be read; that of DINO's own vision transformers can, and that of timm's "
                "plain ones with a [CLS] token, such as timm/deit_small_patch16_224"
            )
        rows, columns = self.grid(*images.shape[-2:])
        tokens = 1 + rows * columns
        if queries is None:
            heads = self.network.config.num_heads if own else self.network.blocks[-1].attn.num_heads
            size = 4 * len(images) * heads * tokens**2
            if size > _MUCH_ATTENTION:
                _log.warning("the attention of all %s tokens takes %.1f GB, and as much again on the way: ask for the tokens you need "
                             "by queries, as in queries=(0,) for [CLS]", f"{tokens:,}", size / 1e9)  # fmt: skip
        elif wrong := [query for query in queries if not 0 <= query < tokens]:
            raise ConfigError(f"no token {wrong[0]}: the image has {tokens}, of which 0 is [CLS] and 1 to {tokens - 1} are patches")
        images = images.to(self.device)
        if own:
            return self.network.last_attention(images, queries)
        with self._precisely(images):
            return external.attention(self.network, images, queries)

    def check_offers(self, layers: int = 1, patches: bool = False) -> None:
        """Raise ConfigError where this network has no patch tokens, or fewer blocks than `layers`."""
        offers = self.config.readouts
        if (patches and "patches" not in offers) or (layers > 1 and "lastN" not in offers):
            lacks = "patch tokens" if patches and "patches" not in offers else "tokens of earlier blocks"
            raise ConfigError(f"{self.arch} has no {lacks} to read. Its readouts: {', '.join(offers)}.")
        if not 1 <= layers <= self.depth:
            raise ConfigError(f"the last {layers} blocks were asked for; {self.arch} has {self.depth}")

    def _checked(self, images: Tensor) -> Tensor:
        """Images of which a network of timm, too, sees whole patches only."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ConfigError(f"a backbone takes a batch of RGB images (N, 3, H, W), not {tuple(images.shape)}")
        if self.patch_size and min(images.shape[-2:]) < self.patch_size:
            raise ConfigError(f"images of {images.shape[-2]} x {images.shape[-1]} pixels are smaller than a patch of {self.patch_size}")
        return images if isinstance(self.network, VisionTransformer) else external.whole_patches(self.network, images)

    @contextlib.contextmanager
    def _precisely(self, images: Tensor):
        """Run a library's network in the precision asked for, and say kindly what sizes it cannot take."""
        if isinstance(self.network, VisionTransformer):
            yield
            return
        # cuDNN convolutions use TF32 unless told not to.
        with torch.autocast(self.device.type, _DTYPES[self.precision], enabled=self.precision != "fp32"), \
             torch.backends.cudnn.flags(enabled=True, allow_tf32=self.precision != "fp32"):  # fmt: skip
            try:
                yield
            except (AssertionError, RuntimeError) as error:
                if isinstance(error, RuntimeError) and "size of tensor" not in str(error):
                    raise
                size = f"{images.shape[-2]} x {images.shape[-1]}"
                raise ConfigError(f"{self.arch} cannot take images of {size} pixels: {str(error).strip() or 'wrong size'}") from error


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
    arch, source = _resolve(arch, weights)
    if not isinstance(source, str):
        arch, network, provenance = _from_file(arch, source, key)
    else:
        assert arch is not None
        network, provenance = _untrained(arch), Provenance(RANDOM, "drawn with seed 0, untrained")
        if source == _PUBLISHED:
            state, address = external.published_weights(network)
            network.load_state_dict(state, strict=True)
            provenance = Provenance(arch, f"published by timm at {address}")
    backbone = Backbone(network, arch=arch, provenance=provenance, device=where, precision=precision)
    _log.info("%s from %s (%s), digest %s", arch, provenance.name, provenance.layout, backbone.digest[:12])
    _log.info("device %s (%s), precision %s", where, reason, precision)
    return backbone


def _resolve(arch: str | None, weights: str | Path | None) -> tuple[str | None, Weights | Path | str]:
    """Settle which architecture, where that is known, and which weights: a row of the zoo, a file, `random` or timm's own."""
    named = ZOO.get(arch or BUNDLED)
    if weights is None and named is None:
        assert arch is not None
        if arch.startswith(external.TIMM):
            return arch, _PUBLISHED
        if not external.is_external(arch):
            parse_architecture(arch)
        raise CheckpointError(
            f"no weights are released for '{arch}'. Give your own with --weights FILE, or say --weights random "
            f"for an untrained network. Released: {', '.join(r.name for r in ZOO.values() if r.kind == 'backbone')}."
        )
    if weights is None:
        assert named is not None
        weights = named.name
    if arch is not None and named is not None:
        arch = named.arch
    if weights == RANDOM:
        if arch is None:
            raise ConfigError("--weights random needs an --arch")
        return arch, RANDOM
    name = str(weights)
    row = ZOO.get(name)
    if row is None and "/" not in name and not Path(name).suffix and not Path(name).exists():
        row = get_weights(name)  # raises, with a suggestion
    if row is not None and row.kind == "linear head":
        raise CheckpointError(f"'{row.name}' is a linear head, not a backbone")
    return arch, row or expand(name)


def _untrained(arch: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):  # a user's own random numbers stay as they are, on a GPU too
        torch.default_generator.manual_seed(0)
        return build_network(arch)


def _from_file(arch: str | None, source: Weights | Path, key: Key) -> tuple[str, nn.Module, Provenance]:
    row = source if isinstance(source, Weights) else None
    path = ensure_weights(source) if isinstance(source, Weights) else source
    name = row.name if row else str(path)
    checkpoint = open_checkpoint(path, key)
    says = row.arch if row else checkpoint.arch
    if says is not None and arch is not None and not same_architecture(says, arch):
        raise ConfigError(f"{name} says that it is a {says}, and --arch says {arch}; tensors do not show heads, so leave --arch out")
    arch = arch or says
    if arch is None:
        raise ConfigError(f"{path} does not say its architecture: name it with --arch")
    if external.is_external(arch):
        network = _untrained(arch)
        state = external.to_external_names(network, checkpoint.state)
    else:
        with torch.device("meta"):  # no time is lost on drawing weights that are replaced at once
            network = build_network(arch)
        state = checkpoint.state
    state = match_state_dict(state, checkpoint.ignored, network.state_dict(), arch=arch, source=name)
    network.load_state_dict(state, strict=True, assign=True)
    return arch, network, Provenance(name, checkpoint.layout, checkpoint.key)
