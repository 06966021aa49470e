"""Networks other than DINO's own ViT: ResNet-50 of torchvision, XCiT and any other model of timm.

Each is the unchanged torchvision or timm module, with its own state-dict keys and without a classifier. Called with
images, it returns the pooled feature or [CLS], (N, D). N images, h x w patches, D dims, T tokens.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dinoeval.errors import ConfigError

TIMM = "timm/"
"""Prefix of the architectures that timm builds by name."""
_PLAIN_NAME = re.compile(r"\w+(\.\w+)?", re.ASCII)  # with a tag of published weights after the dot
# The released code takes these from torch.hub's facebookresearch/xcit; timm has them as <name>_224.
_XCIT = ("xcit_small_12_p16", "xcit_small_12_p8", "xcit_medium_24_p16", "xcit_medium_24_p8")
_POOLED, _PATCHES = ("cls",), ("clsavg", "gem", "patches")
RELEASED = {"resnet50": _POOLED, **{name: (*_POOLED, *_PATCHES) for name in _XCIT}}
"""Architectures with released DINO weights, and their readouts."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How the training images of a model were prepared."""

    resize: int
    """Size of the short side, in pixels."""
    crop: int
    """Side of the center crop, in pixels."""
    interpolation: str
    """Name of a PIL filter."""
    mean: tuple[float, ...]
    """Mean per channel, of pixels in [0, 1]."""
    std: tuple[float, ...]
    """Standard deviation per channel, of pixels in [0, 1]."""
    squash: bool
    """Whether images are resized to a square without keeping the aspect ratio."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExternalConfig:
    """Description of a torchvision or timm model."""

    library: str
    """`torchvision` or `timm`."""
    name: str
    """Name of the model in that library."""
    dim: int
    """D, the width of its features."""
    patch_size: int | None
    """Side of a patch in pixels; None for a network without patches."""
    image_size: int
    """Side of its training images, in pixels."""
    depth: int
    """Number of blocks whose tokens can be read; 1 if only the last one can be read."""
    readouts: tuple[str, ...]
    """Readouts that it offers; `lastN` stands for any number."""
    preprocessing: Preprocessing | None = None
    """Its own preprocessing; None if images are prepared as in the paper."""


def is_external(arch: str) -> bool:
    """Return whether torchvision or timm builds an architecture.

    Args:
        arch: Name of an architecture.

    Returns:
        False for DINO's own vision transformers and for unknown names.
    """
    return arch in RELEASED or arch.startswith(TIMM)


def is_known(arch: str) -> bool:
    """Return whether torchvision or timm has a model of a name.

    timm also takes names such as `hf-hub:user/model` and `local-dir:folder`, for which it would contact a server or read
    that folder. These are not names of architectures.

    Args:
        arch: Name of an architecture.

    Returns:
        True for a released architecture, and for the name of a model in timm's own list, with or without a tag.
    """
    import timm

    name = arch.removeprefix(TIMM)
    return arch in RELEASED or (arch.startswith(TIMM) and _PLAIN_NAME.fullmatch(name) is not None and timm.is_model(name))


def build(arch: str, *, drop_path: float = 0.0) -> nn.Module:
    """Build an untrained torchvision or timm model.

    Args:
        arch: `resnet50`, a released XCiT, or `timm/NAME`.
        drop_path: Rate of stochastic depth in training.

    Returns:
        The model without a classifier. Its attribute `config` is an ExternalConfig.

    Raises:
        ConfigError: If there is no such model, it cannot be built without a classifier, or it has no stochastic depth.
    """
    if arch == "resnet50":
        return _build_resnet50(drop_path)
    import timm
    from timm.data.config import resolve_model_data_config

    name = f"{arch}_224" if arch in _XCIT else arch.removeprefix(TIMM)
    if not _PLAIN_NAME.fullmatch(name):
        raise ConfigError(
            f"'{arch}' is not an architecture: timm/NAME takes a name of timm's list, not a place. Download the weights, and pass "
            "the file with --weights and the name with --arch, such as timm/vit_small_patch16_224."
        )
    network: Any
    options: dict[str, Any] = {"num_classes": 0} | ({"drop_path_rate": drop_path} if drop_path else {})
    try:
        try:  # Models that resample their positions accept other image sizes.
            network = timm.create_model(name, dynamic_img_size=True, **options)
        except TypeError:
            network = timm.create_model(name, **options)
    except (RuntimeError, ValueError, TypeError) as error:
        if "drop_path_rate" in str(error):
            raise _no_drop_path(arch) from error
        if not timm.is_model(name):
            similar = difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0.4)
            raise ConfigError(f"timm {timm.__version__} has no model '{name}'. Similar: {', '.join(similar) or 'none'}.") from error
        raise ConfigError(f"timm cannot build '{name}' without a classifier: {str(error).strip()}") from error
    network.config = _describe(network, name, resolve_model_data_config(network), own_preprocessing=arch.startswith(TIMM))
    return network


def _build_resnet50(drop_path: float) -> nn.Module:
    import torchvision

    if drop_path:
        raise _no_drop_path("resnet50")
    network: Any = torchvision.models.resnet50()
    network.fc = nn.Identity()
    network.config = ExternalConfig(
        library="torchvision", name="resnet50", dim=2048, patch_size=None, image_size=224, depth=1, readouts=_POOLED
    )
    return network


def _no_drop_path(arch: str) -> ConfigError:
    return ConfigError(f"{arch} has no stochastic depth: pass --drop-path 0")


def _describe(network: Any, name: str, data: dict[str, Any], own_preprocessing: bool) -> ExternalConfig:
    """Describe a timm model; `data` is its data config, as timm resolves it."""
    import timm

    embed = getattr(network, "patch_embed", None)
    patch = getattr(embed, "patch_size", None)
    patch = patch[0] if isinstance(patch, tuple) else patch
    if embed is not None and hasattr(embed, "feat_ratio"):
        patch = embed.feat_ratio()  # in pixels, also if patches are cut from the output of a convolutional stem
    prefix = getattr(network, "num_prefix_tokens", None)
    # These have one resolution from end to end. In other models the stages differ, and "patches" would mean several things.
    plain = isinstance(network, (timm.models.vision_transformer.VisionTransformer, timm.models.eva.Eva))
    readouts: tuple[str, ...] = _POOLED
    if plain and prefix and getattr(network, "cls_token", None) is not None:
        readouts = ("cls", "lastN", *_PATCHES)
    elif plain or isinstance(network, timm.models.xcit.Xcit):
        readouts = ("cls", *_PATCHES)
    size = data["input_size"][-1]
    preprocessing = Preprocessing(
        resize=math.floor(size / data["crop_pct"]),
        crop=size,
        interpolation=data["interpolation"],
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        squash=data["crop_mode"] == "squash",
    )
    return ExternalConfig(
        library="timm",
        name=name,
        dim=getattr(network, "head_hidden_size", None) or network.num_features,
        patch_size=patch if len(readouts) > 1 else None,
        image_size=size,
        depth=len(network.blocks) if "lastN" in readouts else 1,
        readouts=readouts,
        preprocessing=preprocessing if own_preprocessing else None,
    )


def whole_patches(network: Any, images: Tensor) -> Tensor:
    """Cut images to whole patches, as DINO's own network does.

    The remainder on the right and at the bottom is lost.

    Args:
        network: A model from `build`. Images for models whose patches overlap are not cut.
        images: (N, 3, H, W). The ViTs of timm reject sizes that are not multiples of the patch size.

    Returns:
        Images of whole patches, a view of `images`.
    """
    import timm

    patch = network.config.patch_size
    if not patch or not isinstance(network, (timm.models.vision_transformer.VisionTransformer, timm.models.eva.Eva)):
        return images
    height, width = images.shape[-2:]
    return images[..., : height - height % patch, : width - width % patch]


def tokens(network: Any, images: Tensor, layers: int) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Compute the tokens of a batch.

    Args:
        network: A model from `build` that has patches.
        images: Normalized images of whole patches, (N, 3, H, W).
        layers: Number of last blocks to return.

    Returns:
        The pooled feature (N, D), the patch tokens (N, h, w, D), and the last blocks through the final norm, earliest
        first. Each block is (N, 1 + h*w, D): [CLS], then patches. Registers and distillation tokens are left out. The
        blocks are empty if the model does not offer `lastN`.

    Raises:
        ConfigError: If a side is not a multiple of the patch size, and the patches of the model overlap.
    """
    patch = network.config.patch_size
    height, width = images.shape[-2:]
    if height % patch or width % patch:
        raise ConfigError(
            f"the patch tokens of {network.config.name} require image sides that are multiples of its patch size, {patch} pixels, got "
            f"{width} x {height} pixels: pass another --transform or --image-size"
        )
    grid = (height // patch, width // patch)
    if "lastN" not in network.config.readouts:
        features = network.forward_features(images)  # (N, T, D)
        return network.forward_head(features), features[:, network.num_prefix_tokens :].unflatten(1, grid), ()
    features, blocks = network.forward_intermediates(
        images, indices=layers, norm=True, return_prefix_tokens=True, output_fmt="NLC", intermediates_only=False
    )
    blocks = tuple(torch.cat((prefix[:, :1], patches), dim=1) for patches, prefix in blocks)
    return network.forward_head(features), blocks[-1][:, 1:].unflatten(1, grid), blocks


def has_attention(network: Any) -> bool:
    """Return whether `attention` can read a model.

    Args:
        network: A model from `build`.

    Returns:
        True for a ViT of timm with [CLS] and plain softmax attention in its last block.
    """
    import timm
    from timm.layers.attention import Attention

    if not isinstance(network, timm.models.vision_transformer.VisionTransformer) or network.cls_token is None:
        return False
    # Subclasses (differential attention, rotary positions, ...) compute other things from the same parts.
    return type(getattr(network.blocks[-1], "attn", None)) is Attention


def attention(network: Any, images: Tensor, queries: Sequence[int] | None) -> Tensor:
    """Compute the softmax attention of the last block.

    Args:
        network: A model that `has_attention`.
        images: Normalized images of whole patches, (N, 3, H, W).
        queries: Q tokens, 0 for [CLS], then patches row by row; None for all.

    Returns:
        Attention, (N, heads, Q, 1 + h*w) float32. All tokens take part in the softmax, but the columns of registers
        and distillation tokens are left out.
    """
    last = network.blocks[-1].attn
    seen: list[Tensor] = []
    thread = threading.get_ident()

    def keep_input(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if threading.get_ident() == thread:
            seen.append(inputs[0])

    hook = last.register_forward_pre_hook(keep_input)
    try:
        network.forward_features(images)
    finally:
        hook.remove()
    (x,) = seen  # (N, T, D)
    q, k, _ = last.qkv(x).unflatten(-1, (3, last.num_heads, -1)).permute(2, 0, 3, 1, 4)  # each (N, heads, T, d)
    kept = [0, *range(network.num_prefix_tokens, x.shape[1])]
    chosen = kept if queries is None else [kept[query] for query in queries]
    q, k = last.q_norm(q[:, :, chosen]), last.k_norm(k)
    logits = (q * last.scale) @ k.transpose(-2, -1)
    return logits.float().softmax(dim=-1)[..., kept]


def to_external_names(network: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Map the tensor names of the released XCiT files to those of timm.

    The rule is timm's own.

    Args:
        network: A model from `build`.
        state: Tensors of a file.

    Returns:
        The renamed tensors for an XCiT; `state` itself for other models.
    """
    import timm

    if isinstance(network, timm.models.xcit.Xcit):
        return timm.models.xcit.checkpoint_filter_fn(dict(state), network)
    return state
