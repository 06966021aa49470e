"""Areas of the protocols on instances and masks: retrieval, copy detection, label propagation, segmentation by attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import dinoeval
from dinoeval.data.frame_transforms import FrameTransform
from dinoeval.figures.overlay import overlay
from dinoeval.session import SessionConfig
from dinoeval.video import Propagation, PropagationConfig
from regression_areas.datasets import (
    copydays_set,
    davis_set,
    masked_folder,
    read_masks,
    revisited_set,
    save_mask,
    video,
    voc_set,
    with_speck,
)
from regression_areas.inputs import PATCH8, PATCH16, command, image_folder, network, save
from regression_areas.recording import Recorder


def retrieval(record: Recorder, folder: Path) -> None:
    """Both revisited datasets: one scale and several, distractors, whitening, cropped queries."""
    root = revisited_set(revisited_set(folder / "sets", "roxford5k"), "rparis6k", scenes=3, queries=6)
    distractors = {"distractors": str(image_folder(folder / "distractors", 12, (60, 50), seed=21))}
    whitened = {**distractors, "whitening": str(image_folder(folder / "whitening", 130, (40, 40), seed=22))}
    common: dict[str, Any] = {"backbone": network(folder, PATCH16), "data": str(root)}
    oxford = {
        "roxford/size80": {"image_size": 80},
        "roxford/default": {},
        "roxford/several_scales": {"image_size": 80, "multiscale": True},
        "roxford/cropped": {"query_crop": True},
        "roxford/distractors": distractors,
        "roxford/whitened_uncentered": {**whitened, "center_whitening": False},
        "roxford/whitened_centered": {**whitened, "center_whitening": True},
    }
    record.run("retrieval", oxford, dataset="roxford5k", **common)
    record.run("retrieval", {"rparis/default": {}, "rparis/one_scale": {"image_size": 64}}, dataset="rparis6k", **common)
    (root / "rparis6k/jpg/scene0_05.jpg").write_bytes(b"unreadable")
    skip = {"session": SessionConfig(bad_images="skip"), "image_size": 64}
    record.run("retrieval", {"rparis/bad_image": skip}, dataset="rparis6k", **common)


def copydays(record: Recorder, folder: Path) -> None:
    """Copy detection, with and without distractors and whitening."""
    distractors = {"image_size": 96, "distractors": str(image_folder(folder / "distractors", 60, (60, 50), seed=23))}
    whitened = {**distractors, "whitening": str(image_folder(folder / "whitening", 220, (32, 32), seed=24))}
    runs = {
        "default": {},
        "size96": {"image_size": 96},
        "options": {"image_size": 96, "gem_p": 3.0, "ap_cutoff": 2},
        "distractors": distractors,
        "whitened": whitened,
        "whitened_centered": {**whitened, "center_whitening": True},
        "patch8": {"backbone": network(folder, "vit_xs8_h6", seed=1), "image_size": 64},
    }
    record.run("copydays", runs, backbone=network(folder, PATCH16), data=str(copydays_set(folder / "copydays")))


def davis(record: Recorder, folder: Path) -> None:
    """Label propagation on DAVIS: masks and scores, edge cases as released and fixed, existing masks."""
    videos = {
        "wide": video(6, (128, 72), 2, seed=1),
        "tall": video(5, (70, 110), 3, seed=2),
        "speck": with_speck(video(4, (140, 90), 2, seed=3), 3),
        "filled": [(image, np.ones_like(mask)) for image, mask in video(3, (96, 72), 1, seed=4)],
        "short": video(2, (96, 72), 1, seed=5),
    }
    runs = {
        "released": {"image_size": 96},
        "mended": {"image_size": 96, "edge_cases": "fixed"},
        "pil": {"image_size": 72, "resize_backend": "pil"},
        "torchvision": {"image_size": 72, "resize_backend": "torchvision"},
        "options": {"image_size": 80, "context_frames": 2, "radius": 3, "top_k": 2, "temperature": 0.3},
    }
    common: dict[str, Any] = {"backbone": network(folder, PATCH8), "data": str(davis_set(folder / "davis", videos))}
    for name, options in runs.items():
        record.run("davis", {name: options}, out=str(folder / name), **common)
        record.add_all(f"{name}/masks", {sequence: read_masks(folder / name / sequence) for sequence in videos})
    older = str(davis_set(folder / "davis2016", {"wide": video(5, (128, 72), 1, seed=6)}, year=2016))
    alone = str(davis_set(folder / "alone", {"wide": videos["wide"]}, first_alone=True))
    others = {
        "found_finished": {**runs["mended"], "out": str(folder / "mended")},
        "default": {"backbone": network(folder, PATCH16), "sequences": ("wide",), "out": str(folder / "default")},
        "scored_masks": {"masks": str(folder / "mended")},
        "some": {"sequences": ("tall", "wide"), "image_size": 64},
        "year2016": {"data": older, "image_size": 64, "out": str(folder / "masks2016")},
        "first_masks_alone": {"data": alone, "image_size": 64, "out": str(folder / "of_alone"), "overlay": str(folder / "drawn")},
    }
    record.run("davis", others, **common)
    record.add("default/masks/wide", read_masks(folder / "default/wide"))
    record.add("first_masks_alone/masks", read_masks(folder / "of_alone/wide"))
    with Image.open(folder / "drawn/wide_overlay.gif") as drawn:
        drawn.seek(2)
        record.add("first_masks_alone/overlay", np.array(drawn.convert("RGB")))


def propagate(record: Recorder, folder: Path) -> None:
    """Masks propagated through a folder of frames and an animated image."""
    frames = with_speck(video(6, (120, 80), 2, seed=8), 3)
    images, first_mask = [image for image, _ in frames], frames[0][1]
    for number, image in enumerate(images):
        save(image, folder / f"frames/{number:05d}.png")
    images[0].save(folder / "film.gif", save_all=True, append_images=images[1:], duration=80)
    save_mask(first_mask, folder / "first.png")
    backbone = network(folder, PATCH8)
    torch.save(backbone.network.state_dict(), folder / "weights.pth")
    words = ["--image-size", 96, "--arch", PATCH8, "--weights", folder / "weights.pth", "--device", "cpu"]
    for source, frame_source in {"folder": folder / "frames", "animation": folder / "film.gif"}.items():
        for name, edge_cases in (("released", "released"), ("mended", "fixed")):
            out = folder / f"{source}_{name}"
            command("propagate", frame_source, folder / "first.png", "--out", out, "--edge-cases", edge_cases, *words)
            record.add(f"{source}/{name}", read_masks(out))
    config = PropagationConfig(context_frames=1, radius=4, edge_cases="fixed")
    propagation = Propagation(backbone, first_mask, FrameTransform(side=64, patch=8), config)
    masks = list(propagation.masks([str(number) for number in range(len(images))], images))
    record.add_all("rule", {"masks": np.stack(masks), "lost": propagation.lost, "constant": sorted(propagation.constant)})
    record.add("overlay", overlay(np.asarray(images[2]), masks[2]))


def segment(record: Recorder, folder: Path) -> None:
    """Segmentation by attention: both layouts, instances and classes, sizes, attention mass."""
    backbone, library = network(folder, PATCH16), dinoeval.load("timm/vit_tiny_patch16_224", weights="random", device="cpu")
    voc = {
        "voc/instance": {},
        "voc/class": {"objects": "class", "image_size": 96},
        "voc/background": {"void": "background", "image_size": 96},
    }
    plain = {
        "folder/default": {},
        "folder/native": {"backbone": network(folder, PATCH8), "image_size": "native"},
        "folder/mass80": {"mass": 0.8, "image_size": 64},
        "folder/bf16": {"backbone": network(folder, PATCH16, "bf16"), "image_size": 96},
        "folder/timm": {"backbone": library, "image_size": 96},
    }
    record.run("segment", voc, backbone=backbone, data=str(voc_set(folder / "voc")))
    record.run("segment", plain, backbone=backbone, data=str(masked_folder(folder / "plain")))
