"""Attention of the last block by the released code and by dinoeval, on real photographs.

    python benchmarks/parity_attention.py CHECKOUT IMAGES [--weights FILE --arch NAME]

CHECKOUT is a checkout of facebookresearch/dino, IMAGES a folder of photographs, of which the first four are used. The weights
of every network are written in the layout of the released full checkpoint. The released code loads them by its own rules,
dinoeval by dinoeval.load. Images are resized to 480 x 480 pixels without keeping the aspect ratio, or keep their size and
are cropped to whole patches. Compared are the pixels after the transform, the attention of all queries on one image, the
attention of [CLS] on all images, and the masks that keep 60 % of the mass.

Random weights have a large standard deviation, so that attention is far from uniform. Sharper attention amplifies the
rounding of both sides beyond 1e-5, so it is also compared with the released code in double precision.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import inputs
import numpy as np
import released
import torch
from measurement import Options, write_record
from PIL import Image

import dinoeval
from dinoeval.figures import attention
from dinoeval.testing import TINY_ARCH, tiny_state

COMMAND = "python benchmarks/parity_attention.py CHECKOUT IMAGES --weights CHECKPOINT --arch vit_xs8_32"
MASS, SPREAD, SHARP = 0.6, 0.08, 0.12


@dataclasses.dataclass(frozen=True)
class Network:
    """One network on both sides, with the same tensors."""

    weights: Literal["random", "sharp", "checkpoint"]
    backbone: dinoeval.Backbone
    released: Any
    """The network of the released code, or None."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is compared."""

    random: tuple[str, ...] = ("vit_s16", "vit_s8")
    """Architectures with random weights."""
    sharp: str = "vit_s16"
    """Architecture with random weights of a larger standard deviation."""
    images: int = 4
    side: int = 480
    """Pixels."""


TINY = Sizes((TINY_ARCH,), TINY_ARCH, 2, 32)


def networks(folder: Path, sizes: Sizes, args) -> Iterator[Network]:
    """Write weights as a released full checkpoint and load them on both sides."""
    drawn = [(arch, "random", SPREAD) for arch in sizes.random] + [(sizes.sharp, "sharp", SHARP)]
    states: list[tuple] = [(arch, kind, tiny_state(arch, spread=spread)) for arch, kind, spread in drawn]
    if args.weights:
        states.append((args.arch, "checkpoint", dinoeval.load(args.arch, weights=args.weights, device="cpu").network.state_dict()))
    for arch, kind, state in states:
        path = inputs.save_full_checkpoint(folder / "full.pth", state)
        backbone = dinoeval.load(arch, weights=path, device="cpu")
        yield Network(kind, backbone, load_released(path, backbone) if args.checkout else None)


def load_released(path: Path, backbone: dinoeval.Backbone) -> torch.nn.Module:
    """Load a full checkpoint as the released code does, with the values of the released factories."""
    import vision_transformer

    config = backbone.config
    network = vision_transformer.VisionTransformer(
        img_size=[config.image_size],
        patch_size=config.patch_size,
        embed_dim=config.dim,
        depth=config.depth,
        num_heads=config.num_heads,
        mlp_ratio=config.mlp_ratio,
        qkv_bias=True,
        norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6),
    )
    content = torch.load(path, map_location="cpu")["teacher"]
    network.load_state_dict({key.replace("module.", "").replace("backbone.", ""): tensor for key, tensor in content.items()}, strict=True)
    return network.eval()


def released_masks(attentions: torch.Tensor, mass: float) -> torch.Tensor:
    """Repeat the steps of visualize_attention.py, which has no function for them: (heads, tokens) -> bool."""
    values, order = torch.sort(attentions)
    values = values / torch.sum(values, dim=1, keepdim=True)
    kept = torch.cumsum(values, dim=1) > (1 - mass)
    back = torch.argsort(order)
    return torch.stack([kept[head][back[head]] for head in range(len(kept))])


def released_input(path: Path, side: int | None, patch: int) -> torch.Tensor:
    """Return the input of the released network: resized to a square, or cropped to whole patches."""
    from torchvision import transforms

    steps = [transforms.Resize((side, side))] if side else []
    with Image.open(path) as opened:
        compose = transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(released.MEAN, released.STD)])
        image = compose(opened.convert("RGB"))
    height, width = image.shape[1] - image.shape[1] % patch, image.shape[2] - image.shape[2] % patch
    return image[None, :, :height, :width]


def compare(network: Network, paths: list[Path], side: int | None) -> dict:
    """Return the largest differences over the images."""
    backbone = network.backbone
    largest = dict.fromkeys(("pixels", "cls_rows", "largest_attention"), 0.0)
    counts = {"differing_mask_patches": 0, "patches": 0}
    seconds = {"dinoeval": 0.0, "released": 0.0}
    rows: dict[str, float] = {}
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (released.MEAN, released.STD))
    for number, path in enumerate(paths):
        started = time.perf_counter()
        maps = attention(backbone, path, image_size=side or "native", mass=MASS, exif_transpose=False)
        seconds["dinoeval"] += time.perf_counter() - started
        found: dict[str, float] = {"largest_attention": float(maps.maps.max())}
        if network.released is not None:
            started = time.perf_counter()
            batch = released_input(path, side, backbone.patch_size or 1)
            with torch.inference_mode():
                all_rows = network.released.get_last_selfattention(batch)[0]
            seconds["released"] += time.perf_counter() - started
            expected = all_rows[:, 0, 1:]
            pixels = (torch.from_numpy(maps.image.copy()).permute(2, 0, 1) / 255 - mean) / std
            found["pixels"] = float((pixels - batch[0]).abs().max())
            found["cls_rows"] = float(np.abs(maps.maps.reshape(len(expected), -1) - expected.numpy()).max())
            found["largest_attention"] = float(expected.max())
            masks = released_masks(expected, MASS)
            counts["differing_mask_patches"] += int((masks.numpy() != maps.masks.reshape(len(masks), -1)).sum())
            counts["patches"] += masks.numel()
            if number == 0:
                rows["all_rows"] = float((backbone.attention(batch)[0] - all_rows).abs().max())
                rows["selected_rows"] = float((backbone.attention(batch, queries=(0, 5, 17))[0] - all_rows[:, [0, 5, 17]]).abs().max())
        largest = {name: max(value, found.get(name, 0.0)) for name, value in largest.items()}
    return {
        "arch": backbone.arch,
        "weights": network.weights,
        "image_size": str(side or "native"),
        **({**largest, **counts, **rows} if rows else {"largest_attention": largest["largest_attention"]}),
        "seconds": {name: round(value / len(paths), 2) for name, value in seconds.items()},
    }


def compare_sharp(network: Network, batch: torch.Tensor) -> dict:
    """Compare all rows of both sides with the released code in double precision."""
    found = network.backbone.attention(batch)
    if network.released is None:
        return {"largest_attention": float(found.max())}
    with torch.inference_mode():
        single = network.released.get_last_selfattention(batch)
        double = network.released.double().get_last_selfattention(batch.double())
    differences = {"dinoeval_released": found - single, "dinoeval_double": found - double, "released_double": single - double}
    return {"largest_attention": float(double.max()), **{name: float(one.abs().max()) for name, one in differences.items()}}


def main() -> None:
    options = Options(__file__, "parity_attention", __doc__)
    options.add_input("checkout", "a checkout of facebookresearch/dino")
    options.add_input("images", "a folder of photographs")
    options.add_argument("--weights", help="a checkpoint to compare besides random weights")
    options.add_argument("--arch", help="its architecture")
    args = options.parse()
    sizes, reason = TINY if args.tiny else Sizes(), released.why_left_out(args.checkout)
    if not reason:
        released.use(args.checkout)
    rows, sharp = [], {}
    with tempfile.TemporaryDirectory() as folder:
        files = inputs.save_images(Path(folder) / "images", sizes.images) if args.tiny else inputs.image_files(args.images)
        paths = files[: sizes.images]
        for network in networks(Path(folder), sizes, args):
            if network.weights == "sharp":
                sharp = compare_sharp(network, released_input(paths[0], sizes.side, network.backbone.patch_size or 1))
                continue
            for side in (sizes.side, None):
                rows.append(compare(network, paths, side))
                print(rows[-1], flush=True)
    write_record(args, COMMAND, {"images": len(paths), "mass": MASS, "rows": rows, "sharp": sharp}, [reason])


if __name__ == "__main__":
    main()
