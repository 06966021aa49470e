"""Datasets in the layouts of revisited Oxford and Copydays, made from any images, for tests and benchmarks."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from factories import synthetic_images
from PIL import Image, ImageEnhance, ImageFilter

JPEG_QUALITIES = (3, 5, 8, 10, 15, 20, 30, 50, 75)
CROPS = (10, 15, 20, 30, 40, 50, 60, 70, 80)


def synthetic_videos(root: Path, *, videos: int = 4, frames: int = 12, size: tuple[int, int] = (96, 72)) -> dict[str, list[Path]]:
    """Write videos in which a window moves over a synthetic image; every second video is in portrait format.

    Args:
        root: Folder to create.
        videos: Number of videos.
        frames: Frames per video.
        size: Width and height in pixels of landscape frames.

    Returns:
        The frames by the name of the video.
    """
    found = {}
    for video, scene in enumerate(synthetic_images(videos, (3 * size[0], 3 * size[1]), seed=7)):
        width, height = size if video % 2 == 0 else size[::-1]
        for frame in range(frames):
            left, top = 6 * frame, 4 * frame
            path = root / f"video{video}" / f"{frame:05}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            scene.crop((left, top, left + width, top + height)).save(path, quality=92)
            found.setdefault(path.parent.name, []).append(path)
    return found


def frames_below(folder: Path) -> dict[str, list[Path]]:
    """List the frames of all videos in a folder such as JPEGImages/480p of DAVIS.

    Args:
        folder: A folder with one subfolder per video.

    Returns:
        The frames by the name of the video.
    """
    return {video.name: sorted(video.glob("*.jpg")) for video in sorted(folder.iterdir()) if video.is_dir()}


def revisited_set(
    root: Path,
    videos: Mapping[str, Sequence[Path]],
    *,
    queries: int = 70,
    database: int | None = None,
    others: Sequence[Path] = (),
    near: int = 3,
    far: int = 6,
) -> Path:
    """Write ROOT/roxford5k/jpg and its ground truth.

    Queries are frames, taken from the videos in turn, and are not in the database. Frames of the same video are easy for a
    query up to a distance of `near` frames, hard beyond `far`, and junk in between.

    Args:
        root: Folder to create.
        videos: Frames by the name of the video.
        queries: Number of queries.
        database: Number of database images; frames that are not queries are filled up with crops of `others`.
        others: Image files.
        near: Largest distance of easy frames.
        far: Largest distance of junk frames.

    Returns:
        `root`.
    """
    folder = root / "roxford5k" / "jpg"
    folder.mkdir(parents=True)
    turns = -(-queries // len(videos))
    chosen: list[tuple[str, int]] = []
    for turn, video in itertools.product(range(turns), videos):
        if len(chosen) < queries:
            chosen.append((video, (2 * turn + 1) * len(videos[video]) // (2 * turns)))
    names: dict[tuple[str, int], str] = {}
    for video, frames in videos.items():
        for number, frame in enumerate(frames):
            names[video, number] = f"{video}_{number:05}"
            (folder / f"{video}_{number:05}.jpg").symlink_to(frame.resolve())
    kept = [key for key in names if key not in set(chosen)]
    place = {key: row for row, key in enumerate(kept)}
    imlist = [names[key] for key in kept]
    for number in range((database or 0) - len(imlist)):
        imlist.append(f"other_{number:05}")
        _random_crop(others[number % len(others)], number).save(folder / f"{imlist[-1]}.jpg", quality=90)
    ground_truth = []
    for video, center in chosen:
        distances = {place[key]: abs(key[1] - center) for key in kept if key[0] == video}
        with Image.open(videos[video][center]) as image:
            width, height = image.size
        ground_truth.append(
            {
                "bbx": [0.2 * width, 0.2 * height, 0.8 * width, 0.8 * height],
                "easy": np.array([row for row, distance in distances.items() if distance <= near], np.int64),
                "junk": np.array([row for row, distance in distances.items() if near < distance <= far], np.int64),
                "hard": np.array([row for row, distance in distances.items() if distance > far], np.int64),
            }
        )
    content = {"imlist": imlist, "qimlist": [names[key] for key in chosen], "gnd": ground_truth}
    (root / "roxford5k/gnd_roxford5k.pkl").write_bytes(pickle.dumps(content, protocol=2))
    return root


def _random_crop(path: Path, seed: int) -> Image.Image:
    """Crop an image at random; crops of photos (at least 200 pixels wide) are resized to 1024 x 768 or 768 x 1024."""
    random = np.random.default_rng(seed)
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    fraction = random.uniform(0.6, 1.0)
    width, height = round(image.width * fraction), round(image.height * fraction)
    left, top = random.integers(0, image.width - width + 1), random.integers(0, image.height - height + 1)
    part = image.crop((left, top, left + width, top + height))
    if image.width < 200:
        return part
    return part.resize((1024, 768) if width >= height else (768, 1024), Image.Resampling.BILINEAR)


def copydays_tree(root: Path, images: Sequence[Path], *, scenes: int = 157, strong: int = 229, blocks: bool = True) -> Path:
    """Write the blocks of Copydays.

    Scene i is 2000 + i, and its original is <scene>00.jpg. A strong copy is blurred, pasted into another image, rotated,
    compressed or recolored; the scenes are used in turn.

    Args:
        root: Folder to create.
        images: Image files. If there are fewer than scenes, random crops of them are used too.
        scenes: Number of originals.
        strong: Number of strong copies.
        blocks: Whether to write the nine blocks jpegqual/ and the nine blocks crops/.

    Returns:
        `root`.
    """
    for scene in range(scenes):
        name = f"{2000 + scene}00.jpg"
        original = _original(images, scene)
        _save(original, root / "original" / name, 95)
        small = original.resize((max(1, original.width // 4), max(1, original.height // 4)), Image.Resampling.LANCZOS)
        for quality in JPEG_QUALITIES if blocks else ():
            _save(small, root / f"jpegqual/{quality}" / name, quality)
        for percent in CROPS if blocks else ():
            side = (1 - percent / 100) ** 0.5
            width, height = round(original.width * side), round(original.height * side)
            left, top = (original.width - width) // 2, (original.height - height) // 2
            _save(original.crop((left, top, left + width, top + height)), root / f"crops/{percent}" / name, 90)
    for copy in range(strong):
        scene = copy % scenes
        copied, quality = _strong_copy(_original(images, scene), _original(images, scene + 1), copy)
        _save(copied, root / "strong" / f"{2000 + scene}{1 + copy // scenes:02}.jpg", quality)
    return root


def _original(images: Sequence[Path], scene: int) -> Image.Image:
    if scene >= len(images):
        return _random_crop(images[scene % len(images)], scene)
    with Image.open(images[scene]) as opened:
        return opened.convert("RGB")


def _strong_copy(image: Image.Image, other: Image.Image, copy: int) -> tuple[Image.Image, int]:
    """Make one of five strong copies; returns it and its JPEG quality."""
    match copy % 5:
        case 0:
            return image.filter(ImageFilter.GaussianBlur(max(image.size) / 60)), 80
        case 1:
            frame = other.resize(image.size)
            frame.paste(image.resize((image.width * 2 // 3, image.height * 2 // 3)), (image.width // 6, image.height // 6))
            return frame, 80
        case 2:
            return image.rotate(15 + copy % 30, expand=True, fillcolor=(127, 127, 127)), 80
        case 3:
            return image.resize((max(1, image.width // 3), max(1, image.height // 3))), 5
        case _:
            return ImageEnhance.Color(ImageEnhance.Contrast(image).enhance(1.6)).enhance(0.2), 80


def _save(image: Image.Image, path: Path, quality: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=quality)
