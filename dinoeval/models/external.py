"""Networks that are not DINO's own ViT: ResNet-50 (torchvision's), XCiT and everything else by name (timm's).

Each is the library's module as it is, with its own state-dict keys and without a classifier: called with images it gives
the pooled feature or [CLS], (N, D). N images, h x w patches, D dims.
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dinoeval.environment import offline
from dinoeval.errors import CheckpointError, ConfigError

TIMM = "timm/"
_NO_DROP_PATH = "{} has no stochastic depth: say --drop-path 0"
_log = logging.getLogger(__name__)
# The released code takes these from torch.hub's facebookresearch/xcit; timm has them as <name>_224.
_XCIT = ("xcit_small_12_p16", "xcit_small_12_p8", "xcit_medium_24_p16", "xcit_medium_24_p8")
_POOLED, _PATCHES = ("cls",), ("clsavg", "gem", "patches")
RELEASED = {"resnet50": _POOLED, **{name: (*_POOLED, *_PATCHES) for name in _XCIT}}
"""Networks with released weights, and their readouts."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How the pictures a network was trained on were prepared."""

    resize: int
    crop: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    squash: bool
    """Resize to a square, without regard to the aspect."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExternalConfig:
    """Describe a network of a library: its name there, and what can be read from it."""

    library: str
    name: str
    dim: int
    patch_size: int | None
    """None where the network has no patches."""
    image_size: int
    depth: int
    """Blocks whose tokens can be read; 1 where only the last one's."""
    readouts: tuple[str, ...]
    preprocessing: Preprocessing | None = None
    """None for the paper's."""


def is_external(arch: str) -> bool:
    return arch in RELEASED or arch.startswith(TIMM)


def build(arch: str, *, drop_path: float = 0.0) -> nn.Module:
    """Build `resnet50`, a released XCiT or `timm/<name>`, untrained, with its LibraryConfig as `config`."""
    if arch == "resnet50":
        import torchvision

        if drop_path:
            raise ConfigError(_NO_DROP_PATH.format(arch))
        network: Any = torchvision.models.resnet50()
        network.fc = nn.Identity()
        network.config = ExternalConfig(
            library="torchvision", name=arch, dim=2048, patch_size=None, image_size=224, depth=1, readouts=_POOLED
        )  # fmt: skip
        return network
    import timm
    from timm.data.config import resolve_model_data_config

    name = f"{arch}_224" if arch in _XCIT else arch.removeprefix(TIMM)
    options: dict[str, Any] = {"num_classes": 0} | ({"drop_path_rate": drop_path} if drop_path else {})
    try:
        try:  # other sizes than the trained one, where the network can resample its positions
            network = timm.create_model(name, dynamic_img_size=True, **options)
        except TypeError:
            network = timm.create_model(name, **options)
    except (RuntimeError, ValueError, TypeError) as error:
        if "drop_path_rate" in str(error):
            raise ConfigError(_NO_DROP_PATH.format(arch)) from error
        if not timm.is_model(name):
            similar = difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0.4)
            raise ConfigError(f"timm {timm.__version__} knows no '{name}'. Similar: {', '.join(similar) or 'none'}.") from error
        raise ConfigError(f"timm cannot build '{name}' without a classifier: {str(error).strip()}") from error
    network.config = _describe(network, name, resolve_model_data_config(network), own=arch.startswith(TIMM))
    return network


def _describe(network: Any, name: str, data: dict[str, Any], own: bool) -> ExternalConfig:
    import timm

    embed = getattr(network, "patch_embed", None)
    patch = getattr(embed, "patch_size", None)
    patch = patch[0] if isinstance(patch, tuple) else patch
    if embed is not None and hasattr(embed, "feat_ratio"):
        patch = embed.feat_ratio()  # pixels, also where patches are cut out of what a convolutional stem makes
    prefix = getattr(network, "num_prefix_tokens", None)
    # Networks of one resolution from end to end; of others, the stages differ and "patches" would mean several things.
    plain = isinstance(network, (timm.models.vision_transformer.VisionTransformer, timm.models.eva.Eva))
    readouts: tuple[str, ...] = _POOLED
    if plain and prefix and getattr(network, "cls_token", None) is not None:
        readouts = ("cls", "lastN", *_PATCHES)
    elif plain or isinstance(network, timm.models.xcit.Xcit):
        readouts = ("cls", *_PATCHES)
    size = data["input_size"][-1]
    preprocessing = Preprocessing(
        resize=math.floor(size / data["crop_pct"]), crop=size, interpolation=data["interpolation"],
        mean=tuple(data["mean"]), std=tuple(data["std"]), squash=data["crop_mode"] == "squash",
    )  # fmt: skip
    return ExternalConfig(
        library="timm",
        name=name,
        dim=getattr(network, "head_hidden_size", None) or network.num_features,
        patch_size=patch if len(readouts) > 1 else None,
        image_size=size,
        depth=len(network.blocks) if "lastN" in readouts else 1,
        readouts=readouts,
        preprocessing=preprocessing if own else None,
    )


def whole_patches(network: Any, images: Tensor) -> Tensor:
    """Cut off the right and bottom rest that is no whole patch, as DINO's own network does; timm's ViTs refuse such sizes.

    Networks whose patches overlap keep it.
    """
    import timm

    patch = network.config.patch_size
    if not patch or not isinstance(network, (timm.models.vision_transformer.VisionTransformer, timm.models.eva.Eva)):
        return images
    height, width = images.shape[-2:]
    return images[..., : height - height % patch, : width - width % patch]


def tokens(network: Any, images: Tensor, layers: int) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Return the pooled feature (N, D), the patch tokens (N, h, w, D), and the last blocks' tokens where there are several.

    The blocks come earliest first, each (N, 1 + h*w, D) through the final norm: [CLS], then patches; registers and
    distillation tokens are left out.
    """
    patch = network.config.patch_size
    grid = [side // patch for side in images.shape[-2:]]
    if "lastN" not in network.config.readouts:
        features = network.forward_features(images)  # (N, T, D)
        return network.forward_head(features), features[:, network.num_prefix_tokens :].unflatten(1, grid), ()
    features, blocks = network.forward_intermediates(
        images, indices=layers, norm=True, return_prefix_tokens=True, output_fmt="NLC", intermediates_only=False
    )
    blocks = tuple(torch.cat((prefix[:, :1], patches), dim=1) for patches, prefix in blocks)
    return network.forward_head(features), blocks[-1][:, 1:].unflatten(1, grid), blocks


def has_attention(network: Any) -> bool:
    """Whether `attention` can read this network: a ViT of timm with [CLS] and plain softmax attention in its last block."""
    import timm
    from timm.layers.attention import Attention

    if not isinstance(network, timm.models.vision_transformer.VisionTransformer) or network.cls_token is None:
        return False
    # Its children (differential attention, rotary positions, ...) compute other things from the same parts.
    return type(getattr(network.blocks[-1], "attn", None)) is Attention


def attention(network: Any, images: Tensor, queries: Sequence[int] | None) -> Tensor:
    """Return the last block's softmax attention, (N, heads, Q, 1 + h*w) float32; queries are 0 for [CLS], then patches row by row.

    All tokens share the softmax, but the columns of registers and distillation tokens are left out.
    """
    last = network.blocks[-1].attn
    seen: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        network.forward_features(images)
    finally:
        hook.remove()
    (x,) = seen
    q, k, _ = last.qkv(x).unflatten(-1, (3, last.num_heads, -1)).permute(2, 0, 3, 1, 4)  # each (N, heads, tokens, d)
    kept = [0, *range(network.num_prefix_tokens, x.shape[1])]
    asked = kept if queries is None else [kept[query] for query in queries]
    q, k = last.q_norm(q[:, :, asked]), last.k_norm(k)
    logits = (q * last.scale) @ k.transpose(-2, -1)
    return logits.float().softmax(dim=-1)[..., kept]


def published_weights(network: Any) -> tuple[dict[str, Tensor], str]:
    """Return the weights that timm publishes for a network built by name, and where they come from.

    Raises CheckpointError where there are none, or they cannot be had.
    """
    import timm

    name = network.config.name
    facts = timm.get_pretrained_cfg(name)
    source = f"https://huggingface.co/{facts.hf_hub_id}" if facts and facts.hf_hub_id else str(facts.url or "") if facts else ""
    if not source:
        raise CheckpointError(f"timm publishes no weights for '{name}'. Give a file with --weights, or say --weights random.")
    by_hand = f"Get the file from {source} where there is a network and name it with --weights"
    if offline():
        raise CheckpointError(f"the weights of 'timm/{name}' would be fetched from {source} and DINOEVAL_OFFLINE is set. {by_hand}.")
    _log.info("fetching the weights of timm/%s from %s, unless they are in the cache of huggingface_hub or torch", name, source)
    try:
        return timm.create_model(name, pretrained=True, num_classes=0).state_dict(), source
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise CheckpointError(f"the weights of 'timm/{name}' could not be fetched from {source}: {reason}. {by_hand}.") from error


def to_external_names(network: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Turn the released XCiT files' names into timm's, by timm's own rule; other files come back as they are."""
    import timm

    if isinstance(network, timm.models.xcit.Xcit):
        return timm.models.xcit.checkpoint_filter_fn(dict(state), network)
    return state
