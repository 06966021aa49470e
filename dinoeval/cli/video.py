"""`dinoeval propagate`."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from dinoeval.distributed import world_size
from dinoeval.errors import ConfigError, DataError, join_names
from dinoeval.files import expand
from dinoeval.session import SessionConfig

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from dinoeval.video import Propagation

_log = logging.getLogger("dinoeval.video")


def propagate(
    frames: Annotated[str, tyro.conf.Positional],
    first_mask: Annotated[str, tyro.conf.Positional],
    /,
    out: str,
    overlay: str | None = None,
    image_size: int = 480,
    resize_backend: Literal["opencv", "pil", "torchvision"] = "opencv",
    context: int = 7,
    radius: int = 12,
    top: int = 5,
    temperature: float = 0.1,
    edge_cases: Literal["released", "fixed"] = "released",
    session: Annotated[SessionConfig, tyro.conf.arg(name="")] = SessionConfig(),  # noqa: B008  frozen
) -> int:
    """Carry the objects of a first mask through a video, as DINO does on DAVIS; a mask a frame, as indexed PNG files.

    Args:
        frames: A folder of frames in the order of the numbers in their names, or an animated picture such as a GIF.
        first_mask: Of the first frame and of its size: an indexed or grey PNG, 0 for background and a number an object; or black and white.
        out: Folder of the masks, one by each frame's name; absent or empty.
        overlay: Folder for an animated GIF and a contact sheet of the masks over the frames.
        image_size: Pixels of the short side in the network; a smaller one is faster and sees less.
        resize_backend: Library whose bilinear filter resizes frames; the released code uses OpenCV.
        context: Frames looked at besides the first.
        radius: Rows and columns of tokens that a token looks away.
        top: Tokens that count.
        temperature: They count with weight exp(cosine / temperature).
        edge_cases: As released, objects that are lost when the first mask is shrunk to tokens are in no mask; fixed keeps them.
        session: Which network.
    """
    import numpy as np

    from dinoeval.data.frame_transforms import frame_transform
    from dinoeval.data.frames import list_frames, missing_frames, read_frames
    from dinoeval.data.mask_folders import read_record, write_masks
    from dinoeval.data.masks import VOID, read_mask
    from dinoeval.figures.overlay import make_folder, overlay_paths
    from dinoeval.session import Session
    from dinoeval.video import Propagation, PropagationConfig

    if world_size() > 1:
        raise ConfigError("one process propagates one video: start it without torchrun")
    rule = PropagationConfig(context=context, radius=radius, top=top, temperature=temperature, edge_cases=edge_cases)
    folder, source = expand(out), expand(first_mask)
    where = expand(frames)
    names, pictures = read_frames(where)
    if left_out := missing_frames(list_frames(where)) if where.is_dir() else []:
        _log.warning("the numbers of the frames leave out %s: labels go from one frame to the next", join_names(left_out))
    first = read_mask(source)
    first[first == VOID] = 0
    if not first.any():
        raise DataError(f"the first mask, {source}, holds no object: there is nothing to propagate")
    if where.is_dir() and source.resolve() in {path.resolve() for path in list_frames(where)}:
        raise ConfigError(f"the first mask, {source}, lies among the frames and would be taken for one: move it elsewhere")
    if overlay is not None:
        make_folder(expand(overlay))
        if taken := {path.resolve() for path in overlay_paths(expand(overlay), _name(where))} & {where.resolve(), source.resolve()}:
            raise ConfigError(f"--overlay would overwrite {taken.pop()}: name another folder")
    loaded = Session(session)
    if session.bad_images == "skip":
        raise ConfigError("no frame of a video can be skipped: leave out --bad-images skip")
    backbone = loaded.backbone
    backbone.check_offers(patches=True)
    transform = frame_transform(image_size, resize_backend, backbone.patch_size or 1, *loaded.normalization())
    recipe = {
        "backbone": backbone.digest, "network": dataclasses.asdict(backbone.config), "precision": backbone.precision,
        "transform": transform.id, **dataclasses.asdict(rule), "frames": _stamp(where, names),
        "first mask": hashlib.sha256(first.tobytes()).hexdigest()[:16],
    }  # fmt: skip
    objects = np.count_nonzero(np.unique(first))
    _log.info("%d frames, %d objects", len(names), objects)
    if record := read_record(folder, recipe):
        print(f"{folder} has all {len(record['masks'])} masks already")
    else:
        propagation = Propagation(backbone, first, transform, rule)
        record = write_masks(
            folder,
            recipe,
            _made(propagation, names, pictures),
            lambda: {"lost": propagation.lost, "constant": propagation.constant},
        )
        print(f"{len(names)} masks of {objects} objects written to {folder}")
    _say(record, edge_cases)
    if overlay is not None:
        _draw(expand(overlay), folder, where)
    return 0


def _made(propagation: Propagation, names: list[str], pictures) -> Iterator[tuple[str, np.ndarray]]:
    from tqdm import tqdm

    shown = tqdm(pictures, "frames", len(names), unit="frame", disable=None, leave=False)
    return zip((f"{name}.png" for name in names), propagation.masks(names, shown), strict=True)


def _name(frames: Path) -> str:
    """What a video is called: by its folder, or by its file without the ending."""
    return frames.resolve().name if frames.is_dir() else frames.stem


def _stamp(frames: Path, names: list[str]) -> str:
    """A digest of the contents of all frames."""
    from dinoeval.data.frames import list_frames

    digest = hashlib.sha256("\0".join(names).encode(errors="surrogateescape"))
    for path in list_frames(frames) if frames.is_dir() else [frames]:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _say(record: dict, edge_cases: str) -> None:
    lost = join_names(map(str, record["lost"]))
    if lost and edge_cases == "released":
        print(f"note: no token has the objects {lost}, which are too small: no mask has them. --edge-cases fixed keeps them")
    elif lost:
        print(f"note: the objects {lost} are smaller than a token, and were given the token that holds most of them")
    if record["constant"]:
        print(f"note: a soft map is the same everywhere in {len(record['constant'])} frames: {join_names(record['constant'])}")


def _draw(overlay: Path, masks: Path, frames: Path) -> None:
    from dinoeval.data.frames import read_frames
    from dinoeval.data.masks import read_mask
    from dinoeval.figures.overlay import draw_video

    names, pictures = read_frames(frames)
    written = draw_video(overlay, _name(frames), names, pictures, (read_mask(masks / f"{name}.png") for name in names))
    print(f"written to {' and '.join(map(str, written))}")
