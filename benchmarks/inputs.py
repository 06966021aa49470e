"""Inputs of the scripts: synthetic weights, images and datasets, and links to parts of real ones.

Everything is drawn from seeded generators. The small datasets are those of the tests.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import numpy as np
import torch
from measurement import ROOT

from dinoeval.data.masks import write_mask
from dinoeval.models.checkpoints import save_backbone
from dinoeval.testing import tiny_images, tiny_state

sys.path.append(str(ROOT / "tests"))
from segmentation_factories import voc_tree
from set_factories import copydays_tree, frames_below, revisited_set, synthetic_videos
from video_factories import davis_tree, synthetic_video

__all__ = [
    "IMAGE_SUFFIXES",
    "copydays_tree",
    "davis_tree",
    "frames_below",
    "image_files",
    "link_class_folders",
    "link_images",
    "random_state",
    "revisited_set",
    "save_full_checkpoint",
    "save_images",
    "save_weights",
    "synthetic_video",
    "synthetic_videos",
    "tiny_davis",
    "voc_tree",
]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
EVALUATION_SPLITS = ("val", "test")


def save_weights(path: Path, arch: str, spread: float = 0.05) -> Path:
    """Write random weights of an architecture as safetensors.

    Args:
        path: File to write.
        arch: Architecture.
        spread: Standard deviation of the weights.

    Returns:
        `path`.
    """
    save_backbone(path, tiny_state(arch, spread=spread), arch=arch)
    return path


def save_full_checkpoint(path: Path, state: dict[str, torch.Tensor], prefix: str = "module.backbone.") -> Path:
    """Write weights in the layout of the released full checkpoints.

    Args:
        path: File to write.
        state: Tensors by name.
        prefix: Prefix of the names.

    Returns:
        `path`.
    """
    torch.save({"teacher": {f"{prefix}{name}": tensor for name, tensor in state.items()}}, path)
    return path


def random_state(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Draw weights for any network: positive variances of BatchNorm, everything else small.

    Args:
        network: A network.

    Returns:
        Tensors by name.
    """
    random = np.random.default_rng(0)
    state = {}
    for name, tensor in sorted(network.state_dict().items()):
        values = torch.from_numpy(random.standard_normal(tuple(tensor.shape), dtype=np.float32)) * 0.05
        if name.endswith(("running_var", "norm1.weight", "norm2.weight", "norm.weight", "bn1.weight", "bn2.weight", "bn3.weight")):
            values = 1 + values.abs()
        state[name] = values if tensor.is_floating_point() else tensor
    return state


def save_images(folder: Path, count: int, size: tuple[int, int] = (48, 40), *, first: int = 0, suffix: str = ".jpg") -> list[Path]:
    """Write synthetic images, 000.jpg and so on.

    Args:
        folder: Folder to write to.
        count: Number of images.
        size: Width and height in pixels.
        first: Number of the first image.
        suffix: File name suffix.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:03}{suffix}" for number in range(first, first + count)]
    for path, image in zip(paths, tiny_images(first + count, size)[first:], strict=True):
        image.save(path)
    return paths


def image_files(folder: Path) -> list[Path]:
    """List the images of a folder, in the order of their names."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)


def link_images(paths: list[Path], folder: Path, suffix: str | None = None) -> Path:
    """Link images into a folder.

    Args:
        paths: The images.
        folder: Folder to create.
        suffix: Suffix of the links (default: that of the image).

    Returns:
        `folder`.
    """
    folder.mkdir(parents=True)
    for path in paths:
        (folder / f"{path.stem}{suffix or path.suffix}").symlink_to(path.resolve())
    return folder


def link_class_folders(data: Path, target: Path, *, train: int | None = None, val: int | None = None) -> Path:
    """Link a dataset of class folders into the layout that the released code reads: train/ and val/.

    Args:
        data: Folder with train/ and val/ or test/.
        target: Folder to create.
        train: Largest number of training images per class.
        val: Largest number of evaluation images per class.

    Returns:
        `target`.
    """
    evaluation = next(data / name for name in EVALUATION_SPLITS if (data / name).is_dir())
    for split, source, limit in (("train", data / "train", train), ("val", evaluation, val)):
        for folder in sorted(source.iterdir()):
            link_images(sorted(folder.iterdir())[:limit], target / split / folder.name)
    return target


def tiny_davis(root: Path, names: tuple[str, ...], *, frames: int = 4, size: tuple[int, int] = (160, 96), year: int = 2017) -> Path:
    """Write synthetic sequences of DAVIS with two moving objects, and FirstFrames2017.

    Args:
        root: Folder to create.
        names: Names of the sequences.
        frames: Frames per sequence.
        size: Width and height in pixels.
        year: 2017 for masks with a label per object, 2016 for one object.

    Returns:
        `root`.
    """
    make = functools.partial(synthetic_video, frames, size)
    videos = {name: make(seed=seed) for seed, name in enumerate(names)}
    davis_tree(root, videos, year=year)
    for name, video in videos.items():
        first = root / "FirstFrames2017/480p" / name / "00000.png"
        first.parent.mkdir(parents=True)
        write_mask(first, video[0][1])
    return root
