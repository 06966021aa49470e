"""Sets of the true shape of revisited Oxford and of Copydays, made from any pictures; for tests and benchmarks."""

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
    """Videos in which a window glides over one made-up picture; every second one is upright."""
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
    """The frames of every video in a folder of folders, such as DAVIS's JPEGImages/480p."""
    return {video.name: sorted(video.glob("*.jpg")) for video in sorted(folder.iterdir()) if video.is_dir()}


def revisited_set(
    root: Path,
    videos: Mapping[str, Sequence[Path]],
    *,
    name: str = "roxford5k",
    queries: int = 70,
    database: int | None = None,
    others: Sequence[Path] = (),
    near: int = 3,
    far: int = 6,
) -> Path:
    """Make ROOT/<name>/jpg and its ground truth; returns ROOT.

    Queries are frames, taken from the videos in turn, and are not in the database. The frames of its video up to `near`
    away are easy for a query, those beyond `far` hard, those in between junk. The database is all other frames, filled up
    to `database` with parts of the `others`.
    """
    folder = root / name / "jpg"
    folder.mkdir(parents=True)
    rounds = -(-queries // len(videos))
    asked: list[tuple[str, int]] = []
    for turn, video in itertools.product(range(rounds), videos):
        if len(asked) < queries:
            asked.append((video, (2 * turn + 1) * len(videos[video]) // (2 * rounds)))
    names: dict[tuple[str, int], str] = {}
    for video, frames in videos.items():
        for number, frame in enumerate(frames):
            names[video, number] = f"{video}_{number:05}"
            (folder / f"{video}_{number:05}.jpg").symlink_to(frame.resolve())
    kept = [key for key in names if key not in set(asked)]
    place = {key: row for row, key in enumerate(kept)}
    imlist = [names[key] for key in kept]
    fill = itertools.count()
    while database is not None and len(imlist) < database:
        number = next(fill)
        imlist.append(f"other_{number:05}")
        _part(others[number % len(others)], number).save(folder / f"{imlist[-1]}.jpg", quality=90)
    truth = []
    for video, centre in asked:
        apart = {place[key]: abs(key[1] - centre) for key in kept if key[0] == video}
        with Image.open(videos[video][centre]) as picture:
            width, height = picture.size
        truth.append(
            {
                "bbx": [0.2 * width, 0.2 * height, 0.8 * width, 0.8 * height],
                "easy": np.array([row for row, away in apart.items() if away <= near], np.int64),
                "junk": np.array([row for row, away in apart.items() if near < away <= far], np.int64),
                "hard": np.array([row for row, away in apart.items() if away > far], np.int64),
            }
        )
    content = {"imlist": imlist, "qimlist": [names[key] for key in asked], "gnd": truth}
    (root / name / f"gnd_{name}.pkl").write_bytes(pickle.dumps(content, protocol=2))
    return root


def _part(path: Path, seed: int) -> Image.Image:
    """A part of a picture, of 1024 x 768 or 768 x 1024 where it is large enough to be one of a tourist's camera."""
    random = np.random.default_rng(seed)
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    share = random.uniform(0.6, 1.0)
    width, height = round(picture.width * share), round(picture.height * share)
    left, top = random.integers(0, picture.width - width + 1), random.integers(0, picture.height - height + 1)
    part = picture.crop((left, top, left + width, top + height))
    if picture.width < 200:
        return part
    return part.resize((1024, 768) if width >= height else (768, 1024), Image.Resampling.BILINEAR)


def copydays_tree(root: Path, pictures: Sequence[Path], *, scenes: int = 157, strong: int = 229, blocks: bool = True) -> Path:
    """Make original/, strong/ and, with `blocks`, the nine jpegqual/ and the nine crops/ blocks; returns ROOT.

    Scene i is 2000 + i, its original <scene>00.jpg. A strong copy is blurred, pasted into another picture, turned,
    re-encoded or recoloured; the scenes come in turn. Fewer pictures than scenes are used more than once, in parts.
    """
    for scene in range(scenes):
        name = f"{2000 + scene}00.jpg"
        original = _original(pictures, scene)
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
        attacked, quality = _attacked(_original(pictures, scene), _original(pictures, scene + 1), copy)
        _save(attacked, root / "strong" / f"{2000 + scene}{1 + copy // scenes:02}.jpg", quality)
    return root


def _original(pictures: Sequence[Path], scene: int) -> Image.Image:
    if scene >= len(pictures):
        return _part(pictures[scene % len(pictures)], scene)
    with Image.open(pictures[scene]) as opened:
        return opened.convert("RGB")


def _attacked(picture: Image.Image, other: Image.Image, copy: int) -> tuple[Image.Image, int]:
    """One of five strong attacks, and the JPEG quality it is saved with."""
    match copy % 5:
        case 0:
            return picture.filter(ImageFilter.GaussianBlur(max(picture.size) / 60)), 80
        case 1:
            frame = other.resize(picture.size)
            frame.paste(picture.resize((picture.width * 2 // 3, picture.height * 2 // 3)), (picture.width // 6, picture.height // 6))
            return frame, 80
        case 2:
            return picture.rotate(15 + copy % 30, expand=True, fillcolor=(127, 127, 127)), 80
        case 3:
            return picture.resize((max(1, picture.width // 3), max(1, picture.height // 3))), 5
        case _:
            return ImageEnhance.Color(ImageEnhance.Contrast(picture).enhance(1.6)).enhance(0.2), 80


def _save(picture: Image.Image, path: Path, quality: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, quality=quality)
