"""Backbone, a frozen network with its weights, and Tokens, its output for a batch.

N images of H x W pixels, h x w patches, T = 1 + h*w tokens, D dims.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dinoeval.display import short_repr
from dinoeval.errors import ConfigError, DataError, join_names
from dinoeval.guard import Guard
from dinoeval.models import external
from dinoeval.models.build import Config, read_tokens
from dinoeval.models.checkpoints import tensor_digest
from dinoeval.models.code_path import describe_code, find_foreign_code
from dinoeval.models.vit import VisionTransformer

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
RANDOM = "random"
"""Name of weights that are drawn, not trained."""
# Tokens per forward pass; 6,400 are 32 images of 197 tokens.
_CPU_TOKENS, _GPU_TOKENS, _TRAINING_TOKENS = 6_400, 65_536, 25_600
_LARGEST_FEATURE = 1e17  # The norm of larger features would overflow in float32.
_LARGE_ATTENTION_BYTES = 2**30
_CONVNET_STRIDE = 16  # a network without patches gets the batch size of a ViT with patches of this size
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Final-norm tokens of a batch, float32."""

    cls: Tensor
    """(N, D), [CLS] of the last block, or the pooled feature of a network without [CLS]."""
    patches: Tensor | None
    """(N, h, w, D), patch tokens of the last block; None if only [CLS] was computed."""
    layers: tuple[Tensor, ...] = ()
    """The last blocks that were requested, earliest first, each (N, T, D): [CLS] first, then patches row by row."""

    __repr__ = short_repr


@dataclasses.dataclass(frozen=True)
class Provenance:
    """The origin of weights, as every Result records it."""

    name: str
    """A model name, a path, or `random`."""
    layout: str
    """Description of the layout of the file."""
    key: str | None = None
    """`teacher` or `student`, if the file contains both."""
    ema: bool | None = None
    """Whether the weights are a moving average, if the file contains it and the raw weights."""

    @property
    def random(self) -> bool:
        """Whether the weights were drawn, not trained."""
        return self.name == RANDOM


class Backbone:
    """A frozen network in eval mode. Calling it returns Tokens, ordinary tensors without gradients.

    Args:
        network: The network with its weights. It is moved to `device`, frozen and, except for fp32, converted.
        arch: The architecture.
        provenance: The origin of the weights.
        device: Where the network runs.
        precision: Precision of the forward pass. Norms, positions and the residual stream of DINO's ViT stay float32.

    Attributes:
        digest: `tensor_digest` of the weights as loaded.

    Examples:
        >>> import dinoeval, torch
        >>> backbone = dinoeval.load(device="cpu")  # the bundled demonstration weights, patches of 8 pixels
        >>> tokens = backbone(torch.zeros(2, 3, 16, 24), layers=4)
        >>> tokens.cls.shape, tokens.patches.shape
        (torch.Size([2, 96]), torch.Size([2, 2, 3, 96]))
        >>> [tuple(layer.shape) for layer in tokens.layers]
        [(2, 7, 96), (2, 7, 96), (2, 7, 96), (2, 7, 96)]
    """

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
        self._digest_as_built = self.digest
        if precision != "fp32" and isinstance(network, VisionTransformer):
            for module in self.network.modules():
                if isinstance(module, (nn.Linear, nn.Conv2d)):
                    module.to(DTYPES[precision])
            self._digest_as_built = tensor_digest(self.network.state_dict())
        self._code_as_built = describe_code(self.network)
        if isinstance(network, VisionTransformer):  # What its digest stands for: the network that is built by this name.
            with torch.device("meta"):
                built = describe_code(VisionTransformer(network.config))
            self._code_as_built |= {name: value for name, value in built.items() if not name.endswith("drop_path.rate")}

    def check_unchanged(self) -> None:
        """Check that the network computes what `digest` stands for.

        Otherwise features would be cached, and scores recorded, under a wrong name.

        Raises:
            ConfigError: If tensors, attributes, methods or modes were changed after it was loaded, or if there are hooks.
        """
        changes = find_foreign_code(self.network)
        changes += [f"{path or 'the network'} is in training mode" for path, module in self.network.named_modules() if module.training]
        if not changes and (code := describe_code(self.network)) != self._code_as_built:
            names = sorted({*code, *self._code_as_built})
            changes = [name for name in names if code.get(name) != self._code_as_built.get(name)]
        if not changes and tensor_digest(self.network.state_dict()) != self._digest_as_built:
            changes = ["tensors"]
        if changes:
            raise ConfigError(
                f"the network of {self!r} was changed after it was loaded: {join_names(changes, 3)}. Its results would be stored "
                "under the name of the unchanged network. Undo the change, or load the network again. embed(..., cache=False) "
                "and backbone(batch) accept a changed network."
            )

    @property
    def config(self) -> Config:
        """The configuration of the network."""
        return self.network.config

    @property
    def dim(self) -> int:
        """D, the width of its tokens."""
        return self.config.dim

    @property
    def depth(self) -> int:
        """Number of blocks whose tokens can be read."""
        return self.config.depth

    @property
    def patch_size(self) -> int | None:
        """Side of a patch in pixels; None for a network without patches."""
        return self.config.patch_size

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the numbers of rows and columns of patches.

        Args:
            height: Height of the image, in pixels.
            width: Width of the image, in pixels.

        Returns:
            (h, w), or (0, 0) for a network without patches.
        """
        return (height // self.patch_size, width // self.patch_size) if self.patch_size else (0, 0)

    def check_finite(self, features: Tensor, paths: Sequence[str]) -> None:
        """Check that features contain no NaN, infinite or extremely large values.

        Args:
            features: (N, ...) float.
            paths: N paths, for the error message.

        Raises:
            DataError: If they do. The message names the first such image.
        """
        finite = (features.abs() < _LARGEST_FEATURE).flatten(1).all(1)
        if not finite.all():
            first = paths[int(finite.logical_not().nonzero()[0])]
            advice = "pass --precision fp32" if self.precision == "fp16" else f"check the weights {self.provenance.name}"
            raise DataError(
                f"the features of {first} by {self.arch} contain NaN or infinite values, or values too large for a norm: {advice}"
            )

    def fast_batch(self, size: int, training: bool = False) -> int:
        """Return a fast number of images per forward pass.

        Args:
            size: Side of the square images, in pixels.
            training: Whether gradients are kept, which takes more memory.

        Returns:
            Number of images, 1 to 512.
        """
        stride = self.patch_size or _CONVNET_STRIDE
        tokens = 1 + (size // stride) ** 2
        fitting = _CPU_TOKENS if self.device.type == "cpu" else _TRAINING_TOKENS if training else _GPU_TOKENS
        return max(1, min(512, fitting // tokens))

    def __repr__(self) -> str:
        return f"Backbone({self.arch}, {self.provenance.name}, {self.device}, {self.precision}, digest {self.digest[:12]})"

    def __call__(self, images: Tensor, *, layers: int = 1, patches: bool = True) -> Tokens:
        """Compute the tokens of a batch.

        Args:
            images: Normalized images, (N, 3, H, W) float32, on any device. If a side is not a multiple of the patch
                size, the remainder on the right and at the bottom is cut off.
            layers: Number of last blocks to return.
            patches: Whether to return patch tokens. With one layer, [CLS] alone is faster.

        Returns:
            The tokens, float32, on the device of the network.

        Raises:
            ConfigError: If an image is smaller than a patch, or the network does not have these blocks or tokens.
        """
        images = self._prepare(images)
        self.check_offers(layers, patches and self.patch_size is not None)
        with self._computing(images):
            images = images.to(self.device, non_blocking=True)
            if layers == 1 and not (patches and self.patch_size):
                return Tokens(cls=self.network(images).float(), patches=None)
            cls, patch_tokens, blocks = read_tokens(self.network, images, layers)
            return Tokens(cls=cls.float(), patches=patch_tokens.float(), layers=tuple(block.float() for block in blocks))

    def attention(self, images: Tensor, queries: Sequence[int] | None = None) -> Tensor:
        """Compute the softmax attention of the last block.

        Args:
            images: Normalized images, (N, 3, H, W) float32.
            queries: Q tokens whose attention is returned; by default all T. 0 is [CLS], 1 + r*w + c is the patch in
                row r and column c.

        Returns:
            Attention, (N, heads, Q, T) float32, [CLS] first. Each query sums to 1. Registers and distillation tokens
            of timm models are left out; queries of such models sum to less than 1.

        Raises:
            ConfigError: If there is no such token, or the attention of the network cannot be read.
        """
        images = self._prepare(images)
        native = isinstance(self.network, VisionTransformer)
        if not native and not external.has_attention(self.network):
            raise ConfigError(
                f"the attention of {self.arch} cannot be read. Use a vision transformer of DINO, or a plain one of timm "
                "with a [CLS] token, such as timm/deit_small_patch16_224."
            )
        rows, columns = self.grid(*images.shape[-2:])
        tokens = 1 + rows * columns
        if queries is None:
            heads = self.network.config.num_heads if native else self.network.blocks[-1].attn.num_heads
            size = 4 * len(images) * heads * tokens**2
            if size > _LARGE_ATTENTION_BYTES:
                _log.warning(
                    "the attention of all %s tokens takes %.1f GB, and its computation as much again: select tokens, "
                    "such as queries=(0,) for [CLS]",
                    f"{tokens:,}",
                    size / 1e9,
                )
        elif wrong := [query for query in queries if not 0 <= query < tokens]:
            raise ConfigError(f"no token {wrong[0]}: the image has {tokens} tokens, 0 for [CLS] and 1 to {tokens - 1} for patches")
        with self._computing(images):
            images = images.to(self.device)
            return self.network.last_attention(images, queries) if native else external.attention(self.network, images, queries)

    def check_offers(self, layers: int = 1, patches: bool = False) -> None:
        """Check that the network has the tokens that a readout needs.

        Args:
            layers: Number of last blocks.
            patches: Whether patch tokens are needed.

        Raises:
            ConfigError: If it does not have them. The message lists the readouts that it has.
        """
        offers = self.config.readouts
        if (patches and "patches" not in offers) or (layers > 1 and "lastN" not in offers):
            lacks = "patch tokens" if patches and "patches" not in offers else "tokens of earlier blocks"
            raise ConfigError(f"{self.arch} has no {lacks}. Available readouts: {', '.join(offers)}.")
        if not 1 <= layers <= self.depth:
            raise ConfigError(f"the last {layers} blocks were requested, but {self.arch} has {self.depth}: use at most last{self.depth}")

    def _prepare(self, images: Tensor) -> Tensor:
        """Check the shape of images; cut off the remainders that timm models do not accept."""
        if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != 3:
            found = tuple(images.shape) if isinstance(images, Tensor) else f"a {type(images).__name__}"
            raise ConfigError(f"a backbone takes a batch of RGB images, a tensor (N, 3, H, W), got {found}")
        if not images.is_floating_point():
            raise ConfigError(f"a backbone takes normalized images, got {images.dtype}: use dinoeval.data.transforms.normalize_images")
        if self.patch_size and min(images.shape[-2:]) < self.patch_size:
            raise ConfigError(f"images of {images.shape[-2]} x {images.shape[-1]} pixels are smaller than a patch of {self.patch_size}")
        return images if isinstance(self.network, VisionTransformer) else external.whole_patches(self.network, images)

    @contextlib.contextmanager
    def _computing(self, images: Tensor) -> Iterator[None]:
        """Compute without gradients, in the precision of the backbone, independent of the modes of the calling program.

        The results are ordinary tensors, on which a head can be trained; those of inference mode are not.
        """
        with Guard(numbers_only=True), torch.no_grad():
            if isinstance(self.network, VisionTransformer):
                yield
                return
            reduced = self.precision != "fp32"
            with (
                torch.autocast(self.device.type, DTYPES[self.precision], enabled=reduced),
                torch.backends.cudnn.flags(enabled=True, allow_tf32=reduced),  # the default is TF32 for float32 convolutions
            ):
                try:
                    yield
                except (AssertionError, RuntimeError) as error:
                    if isinstance(error, RuntimeError) and "size of tensor" not in str(error):
                        raise
                    size = f"{images.shape[-2]} x {images.shape[-1]}"
                    raise ConfigError(f"{self.arch} cannot take images of {size} pixels: {str(error).strip() or 'wrong size'}") from error
