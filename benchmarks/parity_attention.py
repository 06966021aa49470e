"""Attention of the last block, side by side with the released code.

    python benchmarks/parity_attention.py CHECKOUT IMAGES [--weights FILE --arch NAME]

IMAGES is a folder of real photographs, of which the first four are used. Every network is written in the layout of the
released full checkpoint, read by the released loader's rules into the released network, and by dinoeval.load. Images: 480
x 480 pixels (squashed), and their own size cropped to whole patches, through the released transform on one side and
dinoeval.figures on the other. Compared: the transform's pixels, all rows of the last block's attention on one image,
[CLS]'s rows on all, and the masks that keep 60 % of the mass. Made-up weights are drawn with a large spread, so that
attention is far from uniform. Sharper networks amplify the rounding of both sides beyond 1e-5: how far each then is from
the released code in double precision is measured, too. Writes benchmarks/results/parity_attention.json.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]
import released  # noqa: E402
from factories import synthetic_state  # noqa: E402

import dinoeval  # noqa: E402
from dinoeval.environment import describe_machine  # noqa: E402
from dinoeval.figures import attention  # noqa: E402

MASS, IMAGES, SPREAD, SHARP = 0.6, 4, 0.08, 0.12


def networks(folder: Path, weights: str | None, arch: str | None):
    """Backbones of ours and of the released code, with the same tensors."""
    import vision_transformer

    chosen = [("vit_s16", None, SPREAD), ("vit_s8", None, SPREAD), ("vit_s16", None, SHARP), *([(arch, weights, None)] if weights else [])]
    for name, file, spread in chosen:
        state = dinoeval.load(name, weights=file, device="cpu").network.state_dict() if file else synthetic_state(name, spread=spread)
        torch.save({"teacher": {f"module.backbone.{key}": tensor for key, tensor in state.items()}}, folder / "full.pth")
        ours = dinoeval.load(name, weights=folder / "full.pth", device="cpu")
        config = ours.config
        theirs = vision_transformer.VisionTransformer(
            img_size=[config.image_size], patch_size=config.patch_size, embed_dim=config.dim, depth=config.depth,
            num_heads=config.num_heads, mlp_ratio=config.mlp_ratio, qkv_bias=True,
            norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6),  # as the released factories say
        )  # fmt: skip
        content = torch.load(folder / "full.pth", map_location="cpu")["teacher"]
        content = {key.replace("module.", "").replace("backbone.", ""): tensor for key, tensor in content.items()}
        theirs.load_state_dict(content, strict=True)
        yield name, file, spread, ours, theirs.eval()


def released_masks(attentions: torch.Tensor, mass: float) -> torch.Tensor:
    """The steps of visualize_attention.py, which has no function for them: (heads, tokens) -> bool."""
    values, order = torch.sort(attentions)
    values = values / torch.sum(values, dim=1, keepdim=True)
    kept = torch.cumsum(values, dim=1) > (1 - mass)
    back = torch.argsort(order)
    return torch.stack([kept[head][back[head]] for head in range(len(kept))])


def released_input(path: Path, size: str, patch: int) -> torch.Tensor:
    from PIL import Image
    from torchvision import transforms

    steps = [transforms.Resize((480, 480))] if size == "480" else []
    normalise = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with Image.open(path) as picture:
        image = transforms.Compose([*steps, transforms.ToTensor(), normalise])(picture.convert("RGB"))
    height, width = image.shape[1] - image.shape[1] % patch, image.shape[2] - image.shape[2] % patch
    return image[None, :, :height, :width]


def compare(ours, theirs, paths: list[Path], size: str) -> dict:
    patch = ours.patch_size
    row = {"image size": size, "pixels": 0.0, "rows of [CLS]": 0.0, "masks that differ": 0, "patches": 0, "seconds": [0.0, 0.0]}
    for number, path in enumerate(paths):
        began = time.perf_counter()
        maps = attention(ours, path, image_size=480 if size == "480" else "native", mass=MASS, exif_transpose=False)
        middle = time.perf_counter()
        batch = released_input(path, size, patch)
        with torch.inference_mode():
            rows = theirs.get_last_selfattention(batch)[0]
        row["seconds"] = [row["seconds"][0] + middle - began, row["seconds"][1] + time.perf_counter() - middle]
        expected = rows[:, 0, 1:]
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        pixels = (torch.from_numpy(maps.image.copy()).permute(2, 0, 1) / 255 - mean) / std
        row["pixels"] = max(row["pixels"], float((pixels - batch[0]).abs().max()))
        row["rows of [CLS]"] = max(row["rows of [CLS]"], float(np.abs(maps.maps.reshape(len(expected), -1) - expected.numpy()).max()))
        masks = released_masks(expected, MASS)
        row["masks that differ"] += int((masks.numpy() != maps.masks.reshape(len(masks), -1)).sum())
        row["patches"] += masks.numel()
        row["largest attention"] = max(row.get("largest attention", 0.0), float(expected.max()))
        if number == 0:
            row["all rows"] = float((ours.attention(batch)[0] - rows).abs().max())
            row["chosen rows"] = float((ours.attention(batch, queries=(0, 5, 17))[0] - rows[:, [0, 5, 17]]).abs().max())
        del rows
    row["seconds"] = [round(seconds / len(paths), 2) for seconds in row["seconds"]]
    return row


def sharpened(ours, theirs, batch: torch.Tensor) -> dict:
    """All rows of both sides beside the released code in double precision."""
    with torch.inference_mode():
        single, double = theirs.get_last_selfattention(batch), theirs.double().get_last_selfattention(batch.double())
    own = ours.attention(batch)
    differences = {"ours and released": own - single, "ours and double": own - double, "released and double": single - double}
    return {"largest attention": float(double.max()), **{what: float(one.abs().max()) for what, one in differences.items()}}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkout", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--weights")
    parser.add_argument("--arch")
    options = parser.parse_args()
    released.use(options.checkout)
    paths = sorted(path for path in options.images.iterdir() if path.is_file())[:IMAGES]
    rows, sharp = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for name, file, spread, ours, theirs in networks(Path(folder), options.weights, options.arch):
            if spread == SHARP:
                sharp = sharpened(ours, theirs, released_input(paths[0], "480", ours.patch_size))
                print(sharp, flush=True)
                continue
            for size in ("480", "native"):
                about = {"arch": name, "weights": "a checkpoint of the bundled trainer" if file else "made up"}
                rows.append(about | compare(ours, theirs, paths, size))
                print(rows[-1], flush=True)
    facts = {
        "images": len(paths), "mass": MASS, "rows": rows, "sharp": sharp, "machine": describe_machine(),
        "command": "python benchmarks/parity_attention.py DINO IMAGES --weights CHECKPOINT --arch vit_xs8_32",
    }  # fmt: skip
    (ROOT / "benchmarks/results/parity_attention.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
