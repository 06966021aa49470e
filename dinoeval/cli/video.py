"""`dinoeval propagate`."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dinoeval.cli.notes import print_remarks
from dinoeval.data.loading import ImageRule
from dinoeval.data.remarks import SEVERAL_FRAMES
from dinoeval.distributed import world_size
from dinoeval.errors import ConfigError, DataError, join_names
from dinoeval.files import expand
from dinoeval.session import Session, SessionConfig
from dinoeval.video import Propagation
from dinoeval.video_config import EdgeCases, VideoConfig

if TYPE_CHECKING:
    from PIL import Image

_log = logging.getLogger("dinoeval.video")


def propagate(frames: str, first_mask: str, /, *, out: str, overlay: str | None = None, video: VideoConfig, session: SessionConfig) -> int:
    """Propagate the objects of a first-frame mask through a video.

    Uses the method of `dinoeval davis`. Writes one indexed PNG per frame. If the mask is named after a later frame, such as 00010.png,
    propagation starts at that frame.

    Args:
        frames: Folder of frames, in the order of the numbers in their names, or an animated image such as a GIF.
        first_mask: Mask of the first frame, of the same size. An indexed or gray PNG with 0 for the background and one number per
            object (1, 2, 3), or a black and white image.
        out: Folder for the masks, which are named like the frames. It must be new or empty, or contain the masks of the same command.
        overlay: Folder for an animated GIF and a contact sheet that show the masks over the frames (default: not drawn).
        video: Options of label propagation, shared with `dinoeval davis`.
        session: The network.
    """
    from dinoeval.data.mask_folders import read_record, write_masks

    if world_size() > 1:
        raise ConfigError("propagate uses a single process: run it without torchrun")
    folder, source = expand(out), _Source(expand(frames), expand(first_mask), ImageRule(session.exif_transpose))
    mask = source.read_mask()
    names = source.frame_names()
    if overlay is not None:
        source.prepare_overlay(expand(overlay))
    remarks = source.check_frames(mask)
    loaded = Session(session)
    transform = video.frame_transform(loaded)
    spec = {
        "backbone": loaded.backbone.digest,
        "network": dataclasses.asdict(loaded.backbone.config),
        "precision": loaded.backbone.precision,
        "transform": transform.id,
        "image": loaded.rule.id,
        **video.propagation_options(),
        "frames": source.fingerprint(names),
        "first mask": hashlib.sha256(mask.tobytes()).hexdigest()[:16],
    }
    objects = len(set(mask[mask > 0].tolist()))
    _log.info("%d frames, %d objects", len(names), objects)
    if record := read_record(folder, spec):
        print(f"{folder} already has all {len(record['masks'])} masks")
    else:
        propagation = Propagation(loaded.backbone, mask, transform, video)
        masks = ((f"{name}.png", predicted) for name, predicted in zip(names, source.propagate(propagation), strict=True))
        record = write_masks(folder, spec, masks, lambda: {"lost": propagation.lost, "constant": propagation.constant})
        print(f"{len(names)} masks of {objects} objects written to {folder}")
    _print_notes(record, video.edge_cases)
    print_remarks(remarks, session.exif_transpose)
    if overlay is not None:
        source.draw(expand(overlay), folder)
    return 0


@dataclasses.dataclass(frozen=True)
class _Source:
    """The video and the mask that the user passed."""

    frames: Path
    """A folder, or an animated image."""
    first_mask: Path
    rule: ImageRule

    @property
    def name(self) -> str:
        """Name of the folder, or of the file without its extension."""
        return self.frames.resolve().name if self.frames.is_dir() else self.frames.stem

    def frame_names(self) -> list[str]:
        """Return the names of the frames from the first with a mask; log a warning if their numbers have gaps."""
        from dinoeval.data.frames import missing_frames

        names, _ = self.read_frames()
        if self.frames.is_dir() and (missing := missing_frames([Path(name) for name in names])):
            _log.warning("the frame numbers have gaps; labels are propagated across them. Missing: %s", join_names(missing))
        return names

    @functools.cached_property
    def start(self) -> int:
        """Number of the frame that the first mask is named after; 0 if it has another name."""
        from dinoeval.data.frames import read_frames

        start = find_first_frame(read_frames(self.frames, self.rule)[0], self.first_mask)
        if start:
            _log.info("propagation starts at the frame of %s; the %d frames before it get no mask", self.first_mask.name, start)
        return start

    @functools.cached_property
    def paths(self) -> list[Path]:
        """Files of the frames from the first with a mask; an animated image is one file."""
        from dinoeval.data.frames import list_frames

        return list_frames(self.frames)[self.start :] if self.frames.is_dir() else [self.frames]

    def read_frames(self) -> tuple[list[str], Iterator[Image.Image]]:
        """Return the names of the frames from the first with a mask, and an iterator that decodes them."""
        from dinoeval.data.frames import read_frame, read_frames

        if self.frames.is_dir():
            return [path.stem for path in self.paths], (read_frame(path, self.rule) for path in self.paths)
        names, images = read_frames(self.frames, self.rule)
        return names[self.start :], itertools.islice(images, self.start, None)

    def check_frames(self, mask: np.ndarray) -> dict[str, list[str]]:
        """Check that the frames have the size of the first mask; return their names by remark.

        All frames of an animated image are used, and they share its EXIF data.
        """
        from dinoeval.data.frames import frame_header

        found: dict[str, list[str]] = {}
        height, width = mask.shape
        for path in self.paths:
            size, remarks = frame_header(path, self.rule)
            if size != (width, height):
                raise DataError(f"frame {path} has {size[0]} x {size[1]} pixels, but the first mask has {width} x {height}")
            for remark in remarks - ({SEVERAL_FRAMES} if path == self.frames else set()):
                found.setdefault(remark, []).append(path.name)
        return found

    def read_mask(self) -> np.ndarray:
        """Read the first mask, (H, W) uint8, with void as background."""
        from dinoeval.data.davis import void_to_background
        from dinoeval.data.frames import list_frames
        from dinoeval.data.masks import VOID, read_mask

        mask = read_mask(self.first_mask)
        if void := np.count_nonzero(mask == VOID):
            _log.warning("%d pixels of the first mask have label 255 and count as background", void)
            mask = void_to_background(mask)
        if not mask.any():
            raise DataError(f"the first mask {self.first_mask} contains no object: every pixel is background or void")
        if self.frames.is_dir() and self.first_mask.resolve() in {path.resolve() for path in list_frames(self.frames)}:
            raise ConfigError(f"the first mask {self.first_mask} is in the folder of the frames and would be read as a frame: move it")
        if mask.all():
            _log.warning("the first mask %s has no background: every pixel belongs to an object", self.first_mask)
        return mask

    def prepare_overlay(self, folder: Path) -> None:
        """Create the folder of --overlay, which must not overwrite the video or the mask."""
        from dinoeval.figures.overlay import make_folder, overlay_paths

        make_folder(folder)
        for path in overlay_paths(folder, self.name):
            if path.resolve() in (self.frames.resolve(), self.first_mask.resolve()):
                raise ConfigError(f"--overlay {folder} would overwrite {path}: pass another folder")

    def fingerprint(self, names: list[str]) -> str:
        """Hash the names and the contents of all frames."""
        from dinoeval.data.frames import read_frame_file

        digest = hashlib.sha256("\0".join(names).encode(errors="surrogateescape"))
        for path in self.paths:
            digest.update(hashlib.sha256(read_frame_file(path)).digest())
        return digest.hexdigest()[:16]

    def propagate(self, propagation: Propagation) -> Iterator[np.ndarray]:
        """Yield the masks of all frames, and show the progress."""
        from dinoeval.progress import track

        names, images = self.read_frames()
        return propagation.masks(names, track(images, "frames", len(names), "frames"))

    def draw(self, overlay: Path, masks: Path) -> None:
        """Draw the masks over the frames and print the paths."""
        from dinoeval.data.masks import read_mask
        from dinoeval.figures.overlay import draw_video

        names, images = self.read_frames()
        written = draw_video(overlay, self.name, names, images, lambda: (read_mask(masks / f"{name}.png") for name in names))
        print(f"written to {' and '.join(map(str, written))}")


def find_first_frame(names: Sequence[str], mask: Path) -> int:
    """Find the frame that a mask is named after.

    Args:
        names: Names of the frames, without endings.
        mask: Path of the mask. Its name may have other words next to the name of the frame.

    Returns:
        Number of the frame. 0 if the mask is not named after a frame.

    Raises:
        ConfigError: If the mask is named after several frames, or has a number that no frame has.

    Examples:
        >>> names = ["00000", "00005", "00010"]
        >>> [find_first_frame(names, Path(mask)) for mask in ("00005.png", "5.png", "00010_mask.png", "first.png")]
        [1, 1, 2, 0]
    """
    stem = mask.stem
    if stem in names:
        return names.index(stem)
    found = [number for number, name in enumerate(names) if re.search(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])", stem)]
    if stem.isdecimal() and all(name.isdecimal() for name in names):
        found = [number for number, name in enumerate(names) if int(name) == int(stem)]
        if not found:
            raise ConfigError(f"the mask {mask} is named after a frame that does not exist ({names[0]} to {names[-1]} do): rename the mask")
    if len(found) > 1:
        raise ConfigError(
            f"the mask {mask} is named after several frames ({join_names(names[number] for number in found)}): rename the mask"
        )
    return found[0] if found else 0


def _print_notes(record: Mapping[str, Any], edge_cases: EdgeCases) -> None:
    """Print the edge cases in the record of the masks."""
    if lost := join_names(map(str, record["lost"])):
        if edge_cases == "released":
            print(f"note: objects {lost} are too small for any token and are in no later mask; --edge-cases fixed keeps them")
        else:
            print(f"note: objects {lost} are smaller than a token; each got the token that holds most of it")
    if frames := record["constant"]:
        print(f"note: a soft map is constant in {len(frames)} frames: {join_names(frames)}")
