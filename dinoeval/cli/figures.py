"""`dinoeval attention`, `dinoeval pca` and `dinoeval tsne`."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from dinoeval.cli import output_folders
from dinoeval.errors import BadImage, ConfigError, DataError
from dinoeval.files import expand
from dinoeval.session import Session, SessionConfig

if TYPE_CHECKING:
    import numpy as np

    from dinoeval.data.images import ImageSet
    from dinoeval.figures.preprocessing import FigureTransform

_Session = Annotated[SessionConfig, tyro.conf.arg(name="")]
_Format = Literal["png", "pdf", "svg"]
_MASS, _THRESHOLD = 0.6, 0.2  # figures.attention_maps has their sources
_log = logging.getLogger("dinoeval.figures")


def attention(
    images: Annotated[tuple[str, ...], tyro.conf.Positional],
    /,
    out: str,
    image_size: str | None = None,
    mass: float = _MASS,
    heads: tuple[int, ...] | None = None,
    threshold: float = _THRESHOLD,
    points: tuple[str, ...] = (),
    video: bool = False,
    fps: float | None = None,
    format: _Format = "png",
    exif_transpose: bool = True,
    session: _Session = SessionConfig(),  # noqa: B008  frozen
) -> int:
    """Draw what the last block of a vision transformer attends to: maps and masks of all heads, Figure 3's overlay, chosen points.

    Args:
        images: Files or folders; with --video one folder of frames or one animated picture.
        out: Folder for the pictures, outside those that are read; those of each image lie in a folder of its name.
        image_size: 480 (squashed to a square, as released), 640x480 (width and height), or native (kept, less what is no whole patch);
            by default 480, and native for a video.
        mass: Share of the attention that a mask keeps.
        heads: Heads of the overlay, and of the mean that a point's map is, from 0; by default all, in the overlay at most seven.
        threshold: Least attention in the overlay, between a head's least (0) and largest (1).
        points: Points as X,Y in pixels of the picture, whose own attention is drawn.
        video: Draw the mean over heads for every frame, on one scale of colours: pictures, and an animated GIF.
        fps: Frames a second of the GIF; by default the source's, or 24.
        format: Of the figures that put the pictures of an image together.
        exif_transpose: Turn photographs by their EXIF tag; the released code does not. TIFF files are always turned, by Pillow.
        session: Which network; --transform decides the colours only.
    """
    if not images:
        raise ConfigError("name the images to look at: dinoeval attention IMAGE... --out DIR")
    if fps is not None and not video:
        raise ConfigError("--fps goes with --video")
    if video and (len(images) != 1 or points or heads or (mass, threshold, format) != (_MASS, _THRESHOLD, "png")):
        ignored = "neither --points nor --heads, --mass, --threshold or --format"
        raise ConfigError(f"--video takes one folder of frames or one animated picture, and {ignored}")
    if video and session.bad_images == "skip":
        raise ConfigError("no frame of a video can be skipped: leave out --bad-images skip")
    folder = output_folders.create_output_folder(out, images)
    if video:
        return _video(images[0], folder, image_size or "native", fps, exif_transpose, session)
    from dinoeval import distributed, figures
    from dinoeval.data.opening import open_images
    from dinoeval.figures.attention_maps import read_attention
    from dinoeval.figures.preprocessing import figure_transform, folder_names

    asked = [_point(words) for words in points]
    opened = open_images(images[0] if len(images) == 1 else images)
    targets = [folder / name for name in folder_names(opened.paths)]
    output_folders.check_targets(output_folders.files_of(opened, images), (), targets)
    loaded = Session(session)
    reading = figure_transform(loaded.backbone, image_size or "480", exif_transpose, session.transform)
    if asked:
        _check_points(asked, opened, reading)
    _tell(loaded, reading)
    drawn = 0
    for row in distributed.shard(len(opened)):
        path, target = opened.paths[row], targets[row]
        try:
            maps = read_attention(loaded.backbone, path, reading.picture(opened, row), reading, mass=mass, points=asked)
        except BadImage as fault:
            _refuse(path, fault, session.bad_images)
            continue
        pictures = maps.pictures(heads, threshold)
        output_folders.drop_heads_and_points(target, pictures)
        output_folders.write_pictures(target, pictures)
        figures.save(maps.figure(heads, threshold), target / f"figure.{format}")
        if asked:
            figures.save(maps.pointing_figure(heads), target / f"points.{format}")
        print(f"{path}: {maps.num_heads} heads, {maps.maps.shape[1]} x {maps.maps.shape[2]} patches, in {target}", flush=True)
        drawn += 1
    if not sum(distributed.all_gather(drawn)):
        raise DataError("none of the images can be read")
    return 0


def _video(frames: str, folder: Path, image_size: str, fps: float | None, exif_transpose: bool, session: SessionConfig) -> int:
    from PIL import Image

    from dinoeval import distributed
    from dinoeval.data.opening import open_images
    from dinoeval.figures.video import attention_video

    source = expand(frames)
    inputs = output_folders.files_of(open_images(frames), [frames]) if source.is_dir() else [source]
    output_folders.check_targets(inputs, [folder / "attention.gif"], [folder / "frames"])
    loaded = Session(session)
    if distributed.rank() > 0:
        return 0
    film = attention_video(
        loaded.backbone, frames, image_size=image_size, fps=fps, exif_transpose=exif_transpose, transform=session.transform
    )
    _tell(loaded, film.reading)
    low, high = film.limits
    output_folders.drop_frames(folder, len(film.maps))
    film.save(folder / "attention.gif")
    for number in range(len(film.maps)):
        output_folders.write_pictures(folder / "frames", {f"{number:05d}": film.picture(number)})
    with Image.open(folder / "attention.gif") as written:
        size = f"{written.width} x {written.height}"
    print(f"{len(film.maps)} frames of {frames}, mean over heads, colours from {low:.3g} to {high:.3g}, in {folder}/frames")
    print(f"{folder}/attention.gif: {size} pixels, {film.milliseconds} ms a frame")
    return 0


def pca(
    images: Annotated[tuple[str, ...], tyro.conf.Positional],
    /,
    out: str,
    image_size: str = "480",
    only_foreground: bool = False,
    percentiles: tuple[float, float] = (1.0, 99.0),
    format: _Format = "png",
    exif_transpose: bool = True,
    session: _Session = SessionConfig(),  # noqa: B008  frozen
) -> int:
    """Draw the first three principal components of the patch tokens as colours, fitted to all images together.

    Args:
        images: Files or folders.
        out: Folder for the pictures, outside those that are read; those of each image lie in a folder of its name.
        image_size: 480 (squashed to a square), 640x480 (width and height), or native (kept, less what is no whole patch).
        only_foreground: Fit the components anew, to the patches whose first component is above its mean; the rest is white.
        percentiles: Of a component's values over all images, that become black and full colour.
        format: Of the figure that puts images side by side.
        exif_transpose: Turn photographs by their EXIF tag; the released code does not. TIFF files are always turned, by Pillow.
        session: Which network; --transform decides the colours only.
    """
    if not images:
        raise ConfigError("name the images to look at: dinoeval pca IMAGE... --out DIR")
    from dinoeval import distributed, figures
    from dinoeval.data.opening import open_images
    from dinoeval.figures.feature_maps import read_features
    from dinoeval.figures.preprocessing import figure_transform, folder_names

    folder = output_folders.create_output_folder(out, images)
    opened = open_images(images[0] if len(images) == 1 else images)
    targets = [folder / name for name in folder_names(opened.paths)]
    output_folders.check_targets(output_folders.files_of(opened, images), [folder / f"figure.{format}"], targets)
    loaded = Session(session)
    if distributed.rank() > 0:
        return 0
    reading = figure_transform(loaded.backbone, image_size, exif_transpose, session.transform)
    pixels: dict[int, np.ndarray] = {}
    for row in range(len(opened)):
        try:
            pixels[row] = reading(reading.picture(opened, row))
        except BadImage as fault:
            _refuse(opened.paths[row], fault, session.bad_images)
    if not pixels:
        raise DataError("none of the images can be read")
    _tell(loaded, reading)
    maps = read_features(
        loaded.backbone, opened.subset(list(pixels)), list(pixels.values()), reading,
        only_foreground=only_foreground, percentiles=percentiles, batch_size=session.batch_size,
    )  # fmt: skip
    for number, row in enumerate(pixels):
        parts = {"image": maps.images[number], "components": maps.picture(number), "foreground": maps.cut_out(number)}
        output_folders.write_pictures(targets[row], parts)
    figures.save(maps.figure(), folder / f"figure.{format}")
    shares = ", ".join(f"{share:.1%}" for share in maps.explained_variance_ratio)
    patches = f"{sum(mask.size for mask in maps.foreground):,} patches"
    if only_foreground:
        patches = f"{sum(int(mask.sum()) for mask in maps.foreground):,} of {patches} in the foreground"
    print(f"{len(pixels):,} images, {patches}; three components hold {shares} of the variance")
    print(f"written to {folder}, the first twelve together to {folder}/figure.{format}")
    return 0


def tsne(
    images: Annotated[tuple[str, ...], tyro.conf.Positional] = (),
    /,
    *,
    out: str,
    data: str | None = None,
    split: Literal["val", "train"] = "val",
    readout: str = "cls",
    each: bool = False,
    most: int = 2000,
    show: Literal["names", "pictures"] = "names",
    dims: int = 30,
    perplexity: float = 20.0,
    learning_rate: float = 200.0,
    steps: int = 5000,
    seed: int = 0,
    session: _Session = SessionConfig(),  # noqa: B008  frozen
) -> int:
    """Draw a map of classes: the mean feature of each, principal components, t-SNE. Or of images.

    Args:
        images: Files or folders without classes, to draw each image; or none, and --data.
        out: The figure: F.png, F.pdf or F.svg.
        data: A labelled set as for `dinoeval knn`.
        split: Which half of the set; the paper's figure is of the validation images.
        readout: cls, lastN (as last4), clsavg or gem.
        each: Draw each image of the set, in the colour and sign of its class, instead of the classes.
        most: Images at most that are drawn each; of more, as many are drawn by the seed.
        show: Write the names, or show a picture at each point (of a class its first).
        dims: Principal components that are kept.
        perplexity: Of t-SNE; becomes less where there are few points.
        learning_rate: Of t-SNE.
        steps: Of t-SNE.
        seed: Of what is drawn, and of t-SNE.
        session: Which network, and how images are read.
    """
    import numpy as np

    from dinoeval import distributed, figures
    from dinoeval.features.readout import parse_readout
    from dinoeval.figures.style import check_figure

    if images and data:
        raise ConfigError("name images or --data, not both")
    _check_numbers(most, dims, perplexity, learning_rate, steps, seed)
    check_figure(out)
    output_folders.check_apart(out, images)
    chosen = parse_readout(readout)
    if len(chosen.feature_shape(1, (2, 2))) > 1:
        raise ConfigError("t-SNE wants one vector an image; the readout patches gives a map")
    loaded = Session(session)
    opened = _labelled(data, split, loaded) if not images else _unlabelled(images)
    each = each or bool(images)
    rows_of = np.arange(len(opened))
    if each and len(opened) > most:
        rows_of = np.sort(np.random.default_rng(seed).choice(len(opened), most, replace=False))
        _log.warning("%s of %s images are drawn; --most draws more", f"{most:,}", f"{len(opened):,}")
    features = loaded.features(opened, chosen, rows_of if len(rows_of) < len(opened) else None)
    if distributed.rank() > 0:
        return 0
    rows, shown = features.numpy(), features.images
    labels = shown.labels
    if each:
        names, pictured = tuple(Path(path).stem for path in shown.paths), np.arange(len(shown))
        groups = labels if labels is not None and labels.ndim == 1 else None
    else:
        assert labels is not None
        (rows, names), groups = figures.class_means(rows, labels, shown.classes), None
        pictured = _first_of_each(labels, shown.classes)
    points = figures.tsne(
        rows, names, groups=groups, group_names=shown.classes, dims=dims, perplexity=perplexity, learning_rate=learning_rate, steps=steps,
        seed=seed,
    )  # fmt: skip
    thumbnails = [shown.open(int(row)) for row in pictured] if show == "pictures" else None
    figures.save(points.figure(thumbnails), out)
    what = f"{len(names):,} images" if each else f"{len(names):,} classes, means of {len(shown):,} images"
    print(f"{what}; {loaded.backbone.arch}, readout {chosen.id}, {loaded.transform.id}")
    machine = f"perplexity {points.perplexity:.3g}, learning rate {learning_rate:g}, {steps:,} steps, seed {seed}"
    print(f"PCA to {points.dims} dims; t-SNE with {machine}; divergence {points.divergence:.3f}; written to {out}")
    return 0


def _check_numbers(most: int, dims: int, perplexity: float, learning_rate: float, steps: int, seed: int) -> None:
    wanted = {
        f"--most {most}: a map wants 4 images or more": most >= 4,
        f"--dims {dims}: a plane wants 2 or more": dims >= 2,
        f"--perplexity {perplexity:g}: a number above 0 is wanted": 0 < perplexity < math.inf,
        # Points that leave the range of float32 end scikit-learn's process without a word.
        f"--learning-rate {learning_rate:g}: a number above 0, at most 1e9, is wanted": 0 < learning_rate <= 1e9,
        f"--steps {steps}: t-SNE wants 250 or more": steps >= 250,
        f"--seed {seed}: a whole number from 0 to 4294967295 is wanted": 0 <= seed < 2**32,
    }
    if wrong := [said for said, fine in wanted.items() if not fine]:
        raise ConfigError("; ".join(wrong))


def _labelled(data: str | None, split: str, session: Session) -> ImageSet:
    from dinoeval.protocols._classification import open_labeled, resolve_dataset

    name, notes = resolve_dataset(data, session.backbone.arch)
    for note in notes:
        _log.info("%s", note)
    train, val = open_labeled(name)
    return train if split == "train" else val


def _unlabelled(images: Sequence[str]) -> ImageSet:
    from dinoeval.data.opening import open_images

    return open_images(images[0] if len(images) == 1 else images)


def _first_of_each(labels: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """The first image of each class that has one."""
    import numpy as np

    belongs = labels[:, None] == np.arange(len(classes)) if labels.ndim == 1 else labels == 1
    return belongs[:, belongs.any(0)].argmax(0)


def _point(words: str) -> tuple[float, float]:
    try:
        x, y = map(float, words.split(","))
    except ValueError as error:
        raise ConfigError(f"'{words}' is no point: --points 120,80 300,200, each X,Y in pixels of the picture") from error
    return x, y


def _check_points(points: Sequence[tuple[float, float]], images: ImageSet, reading: FigureTransform) -> None:
    """Before the work, on every image that can be read; the others are named in their turn."""
    from dinoeval.figures.attention_maps import check_points

    for row, path in enumerate(images.paths):
        try:
            check_points(points, path, reading.picture(images, row).size)
        except BadImage:
            continue


def _refuse(path: str, fault: BadImage, bad_images: str) -> None:
    if bad_images == "error":
        raise DataError(f"{path} cannot be used: {fault}. Mend it or leave it out, or say --bad-images skip.") from fault
    _log.warning("%s is left out: %s", path, fault)


def _tell(session: Session, reading: FigureTransform) -> None:
    backbone = session.backbone
    print(f"{backbone.arch}, weights {backbone.provenance.name}, {reading.id}, {backbone.precision}", flush=True)
