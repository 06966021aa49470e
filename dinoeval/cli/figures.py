"""`dinoeval attention`, `dinoeval pca` and `dinoeval tsne`."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from dinoeval.cli import output_folders
from dinoeval.cli.notes import print_remarks
from dinoeval.data.remarks import add_remarks, merge_remarks
from dinoeval.errors import BadImage, ConfigError, DataError
from dinoeval.figures.attention_maps import MASS, THRESHOLD
from dinoeval.figures.class_map import MIN_POINTS, TsneConfig
from dinoeval.figures.feature_maps import PcaConfig
from dinoeval.files import expand
from dinoeval.session import Session, SessionConfig

if TYPE_CHECKING:
    import numpy as np

    from dinoeval.data.images import ImageSet
    from dinoeval.figures.preprocessing import FigureTransform

_log = logging.getLogger("dinoeval.figures")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FigureOptions:
    """Options that attention and pca share: input size and output."""

    out: str
    """Folder for the figures, outside the folders of the images. It gets one subfolder per image."""
    image_size: str | None = None
    """480 (pixels; resized to a square without keeping the aspect ratio, as released), 640x480 (width x height), or native (the size of
    the image, cropped to whole patches). (default: 480; native with --video)"""
    format: Literal["png", "pdf", "svg"] = "png"
    """File format of the figures that combine several images."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionOptions:
    """Options of attention figures."""

    mass: float = MASS
    """Fraction of the attention that a mask keeps, above 0 and at most 1."""
    heads: tuple[int, ...] | None = None
    """Heads of the overlay (at most seven) and of the averaged maps of points, from 0 (default: all, or the first seven)."""
    threshold: float = THRESHOLD
    """Lowest attention in the overlay, from 0 (the minimum of a head) to 1 (its maximum)."""
    points: tuple[str, ...] = ()
    """Points whose attention is drawn, each as X,Y in pixels of the image (default: none)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TsneInput:
    """Options that select the points of a t-SNE figure."""

    data: str | None = None
    """Labeled dataset, as for `dinoeval knn` (default: $DINOEVAL_DATA/imagenet, else the built-in digits)."""
    split: Literal["val", "train"] = "val"
    """Split of the dataset. The paper draws the validation images."""
    readout: str = "cls"
    """Feature vector of an image: cls, lastN such as last4, clsavg or gem."""
    per_image: bool = False
    """Draw every image of the dataset, with the color and marker of its class, instead of the class means."""
    max_images: int = 2000
    """Maximum number of images that are drawn; more are sampled by --seed."""

    def __post_init__(self) -> None:
        if self.max_images < MIN_POINTS:
            raise ConfigError(f"--max-images must be at least {MIN_POINTS}, got {self.max_images}")


_OUT_REQUIRED = FigureOptions(out=tyro.MISSING)


def attention(
    images: tuple[str, ...],
    /,
    *,
    video: bool = False,
    fps: float | None = None,
    options: AttentionOptions,
    figure: FigureOptions = _OUT_REQUIRED,
    session: SessionConfig,
) -> int:
    """Draw the attention of the last block of a vision transformer.

    Writes maps and masks of all heads, the overlay of Figure 3, and the maps of chosen points.

    Args:
        images: Files or folders; with --video one folder of frames or one animated image.
        video: Draw the attention averaged over heads for every frame, with one color scale, as images and as an animated GIF.
        fps: Frames per second of the GIF (default: those of the animated image, 24 for a folder).
        options: Options of attention figures.
        figure: How images are read and where figures are written.
        session: The network. --transform selects the mean and standard deviation only.
    """
    _require_images("attention", images)
    if fps is not None and not video:
        raise ConfigError("--fps applies to videos only: add --video or remove --fps")
    if video:
        return _attention_video(images, fps, options, figure, session)
    from dinoeval import distributed, figures
    from dinoeval.figures.attention_maps import compute_attention
    from dinoeval.figures.preprocessing import figure_transform

    points = [_parse_point(text) for text in options.points]
    opened, _, targets = _open_images_and_targets(images, figure, figures_of_all=False)
    loaded = Session(session)
    transform = figure_transform(loaded.backbone, figure.image_size or "480", loaded.rule, session.transform)
    if points:
        _check_points(points, opened, transform)
    _print_session(loaded, transform)
    drawn, remarks = 0, dict[str, list[str]]()
    for row in distributed.shard(len(opened)):
        path, target = opened.paths[row], targets[row]
        try:
            image = transform.open(opened, row)
            maps = compute_attention(loaded.backbone, path, image, transform, mass=options.mass, points=points)
        except BadImage as error:
            _raise_or_skip(path, error, session)
            continue
        drawn_images = maps.images(options.heads, options.threshold)
        output_folders.delete_old_heads_and_points(target, drawn_images)
        output_folders.write_images(target, drawn_images)
        figures.save(maps.figure(options.heads, options.threshold), target / f"figure.{figure.format}")
        if points:
            figures.save(maps.points_figure(options.heads), target / f"points.{figure.format}")
        add_remarks(remarks, image, path)
        _, h, w = maps.maps.shape
        print(f"{path}: {maps.num_heads} heads, {h} x {w} patches, written to {target}", flush=True)
        drawn += 1
    print_remarks(merge_remarks(distributed.all_gather(remarks)), session.exif_transpose)
    if not sum(distributed.all_gather(drawn)):
        raise DataError("none of the images can be used")
    return 0


def _attention_video(
    images: Sequence[str], fps: float | None, options: AttentionOptions, figure: FigureOptions, session: SessionConfig
) -> int:
    from PIL import Image

    from dinoeval import distributed
    from dinoeval.data.opening import open_images
    from dinoeval.figures.video import attention_video

    if len(images) != 1 or options != AttentionOptions() or figure.format != "png":
        excluded = "--points, --heads, --mass, --threshold and --format"
        raise ConfigError(f"--video accepts one folder of frames or one animated image, and does not use {excluded}: remove them")
    if session.bad_images == "skip":
        raise ConfigError("--bad-images skip does not apply to videos, because every frame is needed: remove it")
    folder = output_folders.create_output_folder(figure.out, images)
    source = expand(images[0])
    inputs = output_folders.input_paths(open_images(source), images) if source.is_dir() else [source]
    output_folders.check_targets(inputs, [folder / "attention.gif"], [folder / "frames"])
    loaded = Session(session)
    if distributed.rank() > 0:
        return 0
    video = attention_video(
        loaded.backbone,
        source,
        image_size=figure.image_size or "native",
        fps=fps,
        exif_transpose=session.exif_transpose,
        transform=session.transform,
    )
    _print_session(loaded, video.transform)
    low, high = video.limits
    output_folders.delete_old_frames(folder, len(video.maps))
    video.save(folder / "attention.gif")
    for number in range(len(video.maps)):
        output_folders.write_images(folder / "frames", {f"{number:05d}": video.attention_image(number)})
    with Image.open(folder / "attention.gif") as written:
        size = f"{written.width} x {written.height}"
    print(f"{len(video.maps)} frames of {images[0]}: attention averaged over heads, color scale from {low:.3g} to {high:.3g}")
    print_remarks(video.remarks, session.exif_transpose)
    print(f"written to {folder}/frames and {folder}/attention.gif ({size} pixels, {video.milliseconds} ms per frame)")
    return 0


def pca(
    images: tuple[str, ...],
    /,
    *,
    config: PcaConfig,
    figure: FigureOptions = _OUT_REQUIRED,
    session: SessionConfig,
) -> int:
    """Draw the first three principal components of patch features as colors.

    The components are fitted to the patches of all images together.

    Args:
        images: Files or folders.
        config: Options of principal components.
        figure: How images are read and where figures are written.
        session: The network. --transform selects the mean and standard deviation only.
    """
    from dinoeval import distributed, figures
    from dinoeval.figures.feature_maps import compute_components
    from dinoeval.figures.preprocessing import figure_transform

    _require_images("pca", images)
    opened, folder, targets = _open_images_and_targets(images, figure, figures_of_all=True)
    loaded = Session(session)
    if distributed.rank() > 0:
        return 0
    transform = figure_transform(loaded.backbone, figure.image_size or "480", loaded.rule, session.transform)
    pixels: dict[int, np.ndarray] = {}
    remarks: dict[str, list[str]] = {}
    for row in range(len(opened)):
        try:
            image = transform.open(opened, row)
            pixels[row] = transform(image)
            add_remarks(remarks, image, opened.paths[row])
        except BadImage as error:
            _raise_or_skip(opened.paths[row], error, session)
    if not pixels:
        raise DataError("none of the images can be used")
    _print_session(loaded, transform)
    usable = opened.subset(list(pixels))
    maps = compute_components(loaded.backbone, usable, list(pixels.values()), transform, config, batch_size=session.batch_size)
    for number, row in enumerate(pixels):
        drawn = {"image": maps.images[number], "components": maps.components_image(number), "foreground": maps.foreground_image(number)}
        output_folders.write_images(targets[row], drawn)
    combined = folder / f"figure.{figure.format}"
    figures.save(maps.figure(), combined)
    variance = ", ".join(f"{ratio:.1%}" for ratio in maps.explained_variance_ratio)
    patches = f"{sum(mask.size for mask in maps.foreground):,} patches"
    if config.only_foreground:
        patches = f"{sum(int(mask.sum()) for mask in maps.foreground):,} of {patches} in the foreground"
    print(f"{len(pixels):,} images, {patches}; the components explain {variance} of the variance")
    print_remarks(remarks, session.exif_transpose)
    print(f"written to {folder}; {combined.name} combines the first twelve images")
    return 0


def tsne(
    images: tuple[str, ...] = (),
    /,
    *,
    out: str,
    show: Literal["names", "images"] = "names",
    source: TsneInput,
    config: TsneConfig,
    session: SessionConfig,
) -> int:
    """Plot a t-SNE embedding of the classes of a dataset, or of images.

    Args:
        images: Files or folders of unlabeled images, all of which are drawn. Omit them to draw --data.
        out: File of the figure: NAME.png, NAME.pdf or NAME.svg.
        show: Draw names, or an image at each point (for a class its first image).
        source: Options that select the points.
        config: Options of t-SNE.
        session: The network, and how images are read.
    """
    import numpy as np

    from dinoeval import distributed, figures
    from dinoeval.features.readout import parse_readout
    from dinoeval.figures.style import check_figure

    if images and source.data:
        raise ConfigError("IMAGES... and --data exclude each other: pass one of them")
    check_figure(out)
    output_folders.check_apart(out, images)
    readout = parse_readout(source.readout)
    if len(readout.feature_shape(1, (2, 2))) > 1:
        raise ConfigError(f"--readout {source.readout} gives a map per image, and t-SNE needs a vector: use cls, lastN, clsavg or gem")
    loaded = Session(session)
    opened = _open_unlabeled(images) if images else _open_labeled(source, loaded)
    per_image = source.per_image or bool(images)
    rows = np.arange(len(opened))
    if per_image and len(opened) > source.max_images:
        rows = np.sort(np.random.default_rng(config.seed).choice(len(opened), source.max_images, replace=False))
        _log.warning("drawing %s of %s images: pass a larger --max-images to draw more", f"{source.max_images:,}", f"{len(opened):,}")
    extracted = loaded.features(opened, readout, rows if len(rows) < len(opened) else None)
    if distributed.rank() > 0:
        return 0
    features, shown = extracted.numpy(), extracted.images
    labels, groups = shown.labels, None
    if per_image:
        names, examples = tuple(Path(path).stem for path in shown.paths), np.arange(len(shown))
        groups = labels if labels is not None and labels.ndim == 1 else None
    else:
        assert labels is not None
        features, names = figures.class_means(features, labels, shown.classes)
        examples = _first_of_each_class(labels, shown.classes)
    class_map = figures.tsne(features, names, config, groups=groups, group_names=shown.classes)
    thumbnails = [shown.open(int(row)) for row in examples] if show == "images" else None
    figures.save(class_map.figure(thumbnails), out)
    drawn = f"{len(names):,} images" if per_image else f"{len(names):,} classes, means of {len(shown):,} images"
    print(f"{drawn}; {loaded.backbone.arch}, readout {readout.id}, {loaded.transform.id}")
    print(
        f"PCA to {class_map.pca_dims} dimensions; t-SNE with perplexity {class_map.perplexity:.3g}, "
        f"learning rate {config.learning_rate:g}, {config.iterations:,} iterations, seed {config.seed}; "
        f"KL divergence {f'{class_map.divergence:.3f}' if class_map.divergence < 1e300 else 'not computed'}"
    )
    print_remarks(extracted.remarks, session.exif_transpose)
    print(f"written to {out}")
    return 0


def _require_images(command: str, images: Sequence[str]) -> None:
    if not images:
        raise ConfigError(f"no images given: dinoeval {command} IMAGES... --out DIR")


def _open_images_and_targets(images: Sequence[str], figure: FigureOptions, *, figures_of_all: bool) -> tuple[ImageSet, Path, list[Path]]:
    """Open the images, create the output folder, and return both with the subfolder of each image."""
    from dinoeval.figures.preprocessing import folder_names

    folder = output_folders.create_output_folder(figure.out, images)
    opened = _open_unlabeled(images)
    targets = [folder / name for name in folder_names(opened.paths)]
    files = [folder / f"figure.{figure.format}"] if figures_of_all else []
    output_folders.check_targets(output_folders.input_paths(opened, images), files, targets)
    return opened, folder, targets


def _open_unlabeled(images: Sequence[str]) -> ImageSet:
    from dinoeval.data.opening import open_images

    return open_images(images[0] if len(images) == 1 else images)


def _open_labeled(source: TsneInput, session: Session) -> ImageSet:
    from dinoeval.protocols._classification import dataset_notes, open_labeled, resolve_dataset

    train, val = open_labeled(resolve_dataset(source.data))
    images = train if source.split == "train" else val
    for note in (*images.notes, *dataset_notes(source.data, session.backbone.arch)):
        _log.info("%s", note)
    return images


def _first_of_each_class(labels: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Return the row of the first image of each class that has images."""
    import numpy as np

    members = labels[:, None] == np.arange(len(classes)) if labels.ndim == 1 else labels == 1
    return members[:, members.any(0)].argmax(0)


def _parse_point(text: str) -> tuple[float, float]:
    try:
        x, y = map(float, text.split(","))
    except ValueError as error:
        raise ConfigError(f"invalid --points value '{text}': expected X,Y in pixels, such as 120,80") from error
    return x, y


def _check_points(points: Sequence[tuple[float, float]], images: ImageSet, transform: FigureTransform) -> None:
    """Check the points on every readable image, before the work starts."""
    from dinoeval.figures.queries import check_points

    for row, path in enumerate(images.paths):
        try:
            check_points(points, path, transform.open(images, row).size)
        except BadImage:  # Reported when it is drawn.
            continue


def _raise_or_skip(path: str, error: BadImage, session: SessionConfig) -> None:
    """Raise a DataError for an image that cannot be used, or log that it is skipped."""
    if session.bad_images == "error":
        raise DataError(f"{path} cannot be used: {error}. Fix or remove it, or pass --bad-images skip") from error
    _log.warning("skipped %s: %s", path, error)


def _print_session(session: Session, transform: FigureTransform) -> None:
    backbone = session.backbone
    print(f"{backbone.arch}, weights {backbone.provenance.name}, {transform.id}, {session.rule.id}, {backbone.precision}", flush=True)
