"""Small datasets in the layouts of the protocols on instances and masks: retrieval, Copydays, DAVIS, segmentation."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from regression_areas.inputs import make_image, save

VOID = 255
MASK_SIZES = ((75, 50), (50, 66), (64, 64))  # width and height
Frames = list[tuple[Image.Image, np.ndarray]]


def revisited_set(root: Path, name: str, *, scenes: int = 4, frames: int = 11, queries: int = 8) -> Path:
    """Make `<root>/<name>` with its ground truth and return the root.

    An image is a window that moves over a scene. Images of the same scene are easy for a query up to 2 steps away, junk up to 4,
    hard beyond. One query has no hard image.

    Args:
        root: Folder of the dataset.
        name: roxford5k or rparis6k.
        scenes: Number of scenes.
        frames: Windows per scene.
        queries: Number of queries, taken from the scenes in turn; they are not in the database.
    """
    folder = root / name / "jpg"
    asked = {(number % scenes, 1 + 3 * (number // scenes)) for number in range(queries)}
    kept = [(scene, frame) for scene in range(scenes) for frame in range(frames) if (scene, frame) not in asked]
    for scene in range(scenes):
        whole = make_image(scene, (220, 170), seed=31)
        width, height = (96, 72) if scene % 2 == 0 else (72, 96)
        for frame in range(frames):
            window = whole.crop((9 * frame, 6 * frame, 9 * frame + width, 6 * frame + height))
            save(window, folder / f"scene{scene}_{frame:02d}.jpg", quality=92)
    ground_truth: list[dict[str, object]] = []
    for scene, frame in sorted(asked):
        steps = {row: abs(other - frame) for row, (place, other) in enumerate(kept) if place == scene}
        easy, junk, hard = ([row for row, away in steps.items() if low < away <= high] for low, high in ((-1, 2), (2, 4), (4, 99)))
        lists = {"easy": easy, "junk": junk, "hard": hard if ground_truth else []}
        ground_truth.append({"bbx": [12.0, 9.0, 64.0, 60.0], **{key: np.array(rows, np.int64) for key, rows in lists.items()}})
    content = {
        "imlist": [f"scene{scene}_{frame:02d}" for scene, frame in kept],
        "qimlist": [f"scene{scene}_{frame:02d}" for scene, frame in sorted(asked)],
        "gnd": ground_truth,
    }
    (root / name / f"gnd_{name}.pkl").write_bytes(pickle.dumps(content, protocol=2))
    return root


def copydays_set(root: Path, scenes: int = 6, strong: int = 10) -> Path:
    """Make originals, strong copies, and two blocks each of compressed and of cropped copies."""
    originals = [make_image(scene, (120, 90) if scene % 3 else (90, 120), seed=41) for scene in range(scenes)]
    for scene, original in enumerate(originals):
        name = f"{2000 + scene}00.jpg"
        save(original, root / "original" / name, quality=95)
        small = original.resize((original.width // 2, original.height // 2), Image.Resampling.LANCZOS)
        for quality in (3, 75):
            save(small, root / f"jpegqual/{quality}" / name, quality=quality)
        for percent in (10, 80):
            side = (1 - percent / 100) ** 0.5
            left, top = round(original.width * (1 - side) / 2), round(original.height * (1 - side) / 2)
            save(original.crop((left, top, original.width - left, original.height - top)), root / f"crops/{percent}" / name, quality=90)
    for copy in range(strong):
        scene = copy % scenes
        attacked = _attack(originals[scene], originals[(scene + 1) % scenes], copy)
        save(attacked, root / "strong" / f"{2000 + scene}{1 + copy // scenes:02d}.jpg", quality=5 if copy % 5 == 3 else 80)
    return root


def _attack(image: Image.Image, other: Image.Image, copy: int) -> Image.Image:
    match copy % 5:
        case 0:
            return image.filter(ImageFilter.GaussianBlur(4))
        case 1:
            frame = other.resize(image.size)
            frame.paste(image.resize((image.width * 2 // 3, image.height * 2 // 3)), (image.width // 6, image.height // 6))
            return frame
        case 2:
            return image.rotate(15 + copy, expand=True, fillcolor=(127, 127, 127))
        case 3:
            return image.resize((image.width // 3, image.height // 3))
        case _:
            return ImageEnhance.Color(ImageEnhance.Contrast(image).enhance(1.6)).enhance(0.2)


def video(frames: int = 5, size: tuple[int, int] = (128, 64), objects: int = 2, seed: int = 0) -> Frames:
    """Make frames, each with its mask: squares of one color that move a few pixels per frame over an image."""
    (width, height), side = size, min(size) // 3
    ground, random = np.asarray(make_image(0, size, seed=seed)), np.random.default_rng(seed)
    starts = random.integers(0, np.maximum(1, np.array(size) - side), (objects, 2))
    steps, colors = random.integers(-3, 4, (objects, 2)), random.integers(0, 256, (objects, 3))
    made = []
    for frame in range(frames):
        pixels, mask = ground.copy(), np.zeros((height, width), np.uint8)
        for label in range(objects):
            left, top = (starts[label] + frame * steps[label]).clip(0, np.array(size) - side)
            pixels[top : top + side, left : left + side] = colors[label]
            mask[top : top + side, left : left + side] = label + 1
        made.append((Image.fromarray(pixels), mask))
    return made


def with_speck(frames: Frames, label: int) -> Frames:
    """Add an object of 3 x 3 pixels, which is lost when a mask is reduced to patches."""
    for number, (_, mask) in enumerate(frames):
        mask[1:4, 1 + number : 4 + number] = label
    return frames


def save_mask(mask: np.ndarray, path: Path) -> None:
    """Write a mask as an indexed PNG."""
    image = Image.fromarray(mask)
    image.putpalette(bytes(value % 256 for label in range(256) for value in (label * 37, label * 91, label * 53)))
    save(image, path)


def davis_set(root: Path, videos: dict[str, Frames], year: int = 2017, first_alone: bool = False) -> Path:
    """Write frames, annotations and the list of sequences; annotations of 2016 are black and white."""
    for name, frames in videos.items():
        for number, (image, mask) in enumerate(frames):
            save(image, root / f"JPEGImages/480p/{name}/{number:05d}.jpg", quality=95)
            path = root / f"Annotations/480p/{name}/{number:05d}.png"
            if year == 2016:
                save(Image.fromarray(np.where(mask > 0, 255, 0).astype(np.uint8)), path)
            elif number == 0 or not first_alone:
                save_mask(mask, path)
    listed = root / f"ImageSets/{year}/val.txt"
    listed.parent.mkdir(parents=True)
    listed.write_text("".join(f"{name}\n" for name in videos))
    return root


def read_masks(folder: Path) -> np.ndarray:
    """Read the masks of a folder in the order of their names, (frames, H, W)."""
    return np.stack([np.array(Image.open(path)) for path in sorted(folder.glob("*.png"))])


def boxes_mask(size: tuple[int, int], objects: Sequence[int], seed: int) -> np.ndarray:
    """Draw a box per object, with a border of void."""
    random, (width, height) = np.random.default_rng(seed), size
    mask, step = np.zeros((height, width), np.uint8), width // len(objects)
    for number, label in enumerate(objects):
        top, left = int(random.integers(2, height // 3)), number * step + int(random.integers(1, step // 3))
        bottom, right = int(random.integers(height // 2, height - 2)), left + step // 2
        mask[top - 1 : bottom + 1, left - 1 : right + 1] = VOID
        mask[top:bottom, left:right] = label
    return mask


def voc_set(root: Path, images: int = 4) -> Path:
    """Make `VOCdevkit/VOC2012` with two instances of one class in each image."""
    voc = root / "VOCdevkit/VOC2012"
    names = [f"2007_{number:06d}" for number in range(images, 0, -1)]
    for number, name in enumerate(names):
        size = MASK_SIZES[number % len(MASK_SIZES)]
        save(make_image(number, size, seed=61), voc / f"JPEGImages/{name}.jpg", quality=95)
        mask = boxes_mask(size, (1, 2), number)
        save_mask(mask, voc / f"SegmentationObject/{name}.png")
        save_mask(np.where((mask > 0) & (mask < VOID), 15, mask).astype(np.uint8), voc / f"SegmentationClass/{name}.png")
    listed = voc / "ImageSets/Segmentation/val.txt"
    listed.parent.mkdir(parents=True)
    listed.write_text("\n".join(names) + "\n")
    return root


def masked_folder(root: Path, images: int = 4) -> Path:
    """Make `images/<n>.jpg` and `masks/<n>.png`."""
    for number in range(images):
        size = MASK_SIZES[number % len(MASK_SIZES)]
        save(make_image(number, size, seed=67), root / f"images/{number}.jpg", quality=95)
        save(Image.fromarray(boxes_mask(size, (1, 2, 4), number)), root / f"masks/{number}.png")
    return root
