"""Areas of the protocols on instances and masks: retrieval, copy detection, label propagation, segmentation by attention."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from regression_areas.inputs import command, flat_folder, network, save
from regression_areas.recording import Book
from regression_areas.scenes import (
    copydays_set,
    davis_set,
    filled,
    masked_folder,
    read_masks,
    revisited_set,
    save_mask,
    video,
    voc_set,
    with_speck,
)

PATCH16, PATCH8 = "vit_xs16", "vit_xs8"


def retrieval(book: Book, folder: Path) -> None:
    """Both revisited sets: one scale and several, distractors, whitening, cropped queries."""
    import dinoeval
    from dinoeval.session import SessionConfig

    root = revisited_set(revisited_set(folder / "sets", "roxford5k"), "rparis6k", scenes=3, queries=6)
    distractors = str(flat_folder(folder / "distractors", 12, (60, 50), seed=21))
    whitening = str(flat_folder(folder / "whitening", 130, (40, 40), seed=22))
    backbone, data = network(folder, PATCH16), str(root)
    oxford = {"data": data, "dataset": "roxford5k"}
    book.result("roxford/size80", dinoeval.evaluate("retrieval", backbone, image_size=80, **oxford))
    book.result("roxford/default", dinoeval.evaluate("retrieval", backbone, **oxford))
    book.result("roxford/several_scales", dinoeval.evaluate("retrieval", backbone, image_size=80, multiscale=True, **oxford))
    book.result("roxford/cropped", dinoeval.evaluate("retrieval", backbone, query_crop=True, **oxford))
    book.result("roxford/distractors", dinoeval.evaluate("retrieval", backbone, distractors=distractors, **oxford))
    for centered in (False, True):
        options = {"whitening": whitening, "center_whitening": centered, "distractors": distractors}
        name = f"roxford/whitened_{'centered' if centered else 'uncentered'}"
        book.result(name, dinoeval.evaluate("retrieval", backbone, **options, **oxford))
    paris = {"data": data, "dataset": "rparis6k"}
    book.result("rparis/default", dinoeval.evaluate("retrieval", backbone, **paris))
    book.result("rparis/one_scale", dinoeval.evaluate("retrieval", backbone, image_size=64, **paris))
    images = root / "rparis6k/jpg"
    (images / "scene0_05.jpg").write_bytes(b"no picture")
    skip = SessionConfig(bad_images="skip")
    book.result("rparis/bad_image", dinoeval.evaluate("retrieval", backbone, session=skip, image_size=64, **paris))


def copydays(book: Book, folder: Path) -> None:
    """Copy detection, plain and with distractors and whitening."""
    import dinoeval

    data = str(copydays_set(folder / "copydays"))
    distractors = str(flat_folder(folder / "distractors", 60, (60, 50), seed=23))
    whitening = str(flat_folder(folder / "whitening", 220, (32, 32), seed=24))
    backbone = network(folder, PATCH16)
    book.result("default", dinoeval.evaluate("copydays", backbone, data=data))
    book.result("size96", dinoeval.evaluate("copydays", backbone, data=data, image_size=96))
    book.result("options", dinoeval.evaluate("copydays", backbone, data=data, image_size=96, gem_p=3.0, ap_cutoff=2))
    both = {"data": data, "image_size": 96, "distractors": distractors, "whitening": whitening}
    book.result("distractors", dinoeval.evaluate("copydays", backbone, data=data, image_size=96, distractors=distractors))
    book.result("whitened", dinoeval.evaluate("copydays", backbone, **both))
    book.result("whitened_centered", dinoeval.evaluate("copydays", backbone, center_whitening=True, **both))
    book.result("patch8", dinoeval.evaluate("copydays", network(folder, "vit_xs8_h6", seed=1), data=data, image_size=64))


def davis(book: Book, folder: Path) -> None:
    """Label propagation on a set of DAVIS: masks and scores, failures as released and mended, masks made elsewhere."""
    import dinoeval

    videos = {
        "wide": video(6, (128, 72), 2, seed=1),
        "tall": video(5, (70, 110), 3, seed=2),
        "speck": with_speck(video(4, (140, 90), 2, seed=3), 3),
        "filled": filled(video(3, (96, 72), 1, seed=4)),
        "short": video(2, (96, 72), 1, seed=5),
    }
    data = str(davis_set(folder / "davis", videos))
    backbone = network(folder, PATCH8)
    runs = {
        "released": {"image_size": 96},
        "mended": {"image_size": 96, "edge_cases": "fixed"},
        "pil": {"image_size": 72, "resize_backend": "pil"},
        "torchvision": {"image_size": 72, "resize_backend": "torchvision"},
        "options": {"image_size": 80, "context_frames": 2, "radius": 3, "top_k": 2, "temperature": 0.3},
    }
    for name, options in runs.items():
        out = folder / name
        book.result(name, dinoeval.evaluate("davis", backbone, data=data, out=str(out), **options))
        for sequence in videos:
            book.add(f"{name}/masks/{sequence}", np.stack(read_masks(out / sequence)))
    again = dinoeval.evaluate("davis", backbone, data=data, out=str(folder / "mended"), **runs["mended"])
    book.result("found_finished", again)
    coarse = network(folder, PATCH16)
    book.result("default", dinoeval.evaluate("davis", coarse, data=data, sequences=("wide",), out=str(folder / "default")))
    book.add("default/masks/wide", np.stack(read_masks(folder / "default/wide")))
    book.result("scored_masks", dinoeval.evaluate("davis", backbone, data=data, masks=str(folder / "mended")))
    book.result("some", dinoeval.evaluate("davis", backbone, data=data, sequences=("tall", "wide"), image_size=64))
    older = str(davis_set(folder / "davis2016", {"wide": video(5, (128, 72), 1, seed=6)}, year=2016))
    book.result("year2016", dinoeval.evaluate("davis", backbone, data=older, image_size=64, out=str(folder / "masks2016")))
    alone = str(davis_set(folder / "alone", {"wide": videos["wide"]}, first_alone=True))
    result = dinoeval.evaluate("davis", backbone, data=alone, image_size=64, out=str(folder / "of_alone"), overlay=str(folder / "drawn"))
    book.result("first_masks_alone", result)
    book.add("first_masks_alone/masks", np.stack(read_masks(folder / "of_alone/wide")))
    with Image.open(folder / "drawn/wide_overlay.gif") as drawn:
        drawn.seek(2)
        book.add("first_masks_alone/overlay", np.array(drawn.convert("RGB")))


def propagate(book: Book, folder: Path) -> None:
    """Masks that are carried through a video of one's own, a folder of frames and an animated picture."""
    from dinoeval.data.frame_transforms import FrameTransform
    from dinoeval.figures.overlay import overlay
    from dinoeval.video import Propagation, PropagationConfig

    frames = with_speck(video(6, (120, 80), 2, seed=8), 3)
    for number, (image, _) in enumerate(frames):
        save(image, folder / f"frames/{number:05d}.png")
    images = [image for image, _ in frames]
    images[0].save(folder / "film.gif", save_all=True, append_images=images[1:], duration=80)
    save_mask(frames[0][1], folder / "first.png")
    torch.save(network(folder, PATCH8).network.state_dict(), folder / "weights.pth")
    for name, source in (("folder", folder / "frames"), ("animation", folder / "film.gif")):
        for failures, edge_cases in (("released", "released"), ("mended", "fixed")):
            out = folder / f"{name}_{failures}"
            words = ["--image-size", 96, "--edge-cases", edge_cases, "--arch", PATCH8, "--weights", folder / "weights.pth", "--device", "cpu"]
            command("propagate", source, folder / "first.png", "--out", out, *words)
            book.add(f"{name}/{failures}", np.stack(read_masks(out)))
    transform = FrameTransform(side=64, patch=8)
    carried = Propagation(network(folder, PATCH8), frames[0][1], transform, PropagationConfig(context_frames=1, radius=4, edge_cases="fixed"))
    masks = list(carried.masks([str(number) for number in range(len(images))], images))
    book.add_all("rule", {"masks": np.stack(masks), "lost": carried.lost, "constant": sorted(carried.constant)})
    book.add("overlay", overlay(np.asarray(images[2]), masks[2]))


def segment(book: Book, folder: Path) -> None:
    """Segmentation by attention: both layouts, instances and classes, sizes, shares of attention."""
    import dinoeval

    voc, plain = str(voc_set(folder / "voc")), str(masked_folder(folder / "plain"))
    backbone = network(folder, PATCH16)
    book.result("voc/instance", dinoeval.evaluate("segment", backbone, data=voc))
    book.result("voc/class", dinoeval.evaluate("segment", backbone, data=voc, objects="class", image_size=96))
    book.result("voc/background", dinoeval.evaluate("segment", backbone, data=voc, void="background", image_size=96))
    book.result("folder/default", dinoeval.evaluate("segment", backbone, data=plain))
    book.result("folder/native", dinoeval.evaluate("segment", network(folder, PATCH8), data=plain, image_size="native"))
    book.result("folder/mass80", dinoeval.evaluate("segment", backbone, data=plain, mass=0.8, image_size=64))
    book.result("folder/bf16", dinoeval.evaluate("segment", network(folder, PATCH16, "bf16"), data=plain, image_size=96))
    library = dinoeval.load("timm/vit_tiny_patch16_224", weights="random", device="cpu")
    book.result("folder/timm", dinoeval.evaluate("segment", library, data=plain, image_size=96))
