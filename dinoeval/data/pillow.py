"""The readers of Pillow without its process-wide settings: a list of formats, one limit of pixels, no truncated files.

`PIL.ImageFile.LOAD_TRUNCATED_IMAGES`, `PIL.Image.MAX_IMAGE_PIXELS` and the filters of `warnings` belong to the calling program,
and another thread may rely on them. Here they are neither obeyed nor changed. Each reader of Pillow gets a subclass. In it, the
methods that use such a setting run in a namespace of their own, in which the setting has the value of this module.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import re
import struct
import types
import warnings
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from PIL import Image, ImageFile, features

from dinoeval.errors import BadImage

MAX_PIXELS = 250_000_000
"""Largest number of pixels of an image that is decoded; an image of 200 megapixels passes. Decoding takes up to 8 bytes per pixel."""
MAX_SIDE = 100_000
"""Longest side of an image that is decoded, in pixels. Pillow allocates memory per line, so a long thin image needs gigabytes."""


class _Format(NamedTuple):
    """A format that Pillow can open."""

    plugin: str
    """Module below PIL that registers it."""
    suffixes: tuple[str, ...]
    library: str | None = None
    """The optional library of Pillow that decodes it."""


# Formats without a signature, such as TGA, are left out: any bytes could pass for one. EPS starts Ghostscript.
_FORMATS = {
    "JPEG": _Format("JpegImagePlugin", (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo")),
    "PNG": _Format("PngImagePlugin", (".png", ".apng")),
    "WEBP": _Format("WebPImagePlugin", (".webp",), "webp"),
    "GIF": _Format("GifImagePlugin", (".gif",)),
    "TIFF": _Format("TiffImagePlugin", (".tif", ".tiff")),
    "BMP": _Format("BmpImagePlugin", (".bmp",)),
    "DIB": _Format("BmpImagePlugin", (".dib",)),
    "PPM": _Format("PpmImagePlugin", (".ppm", ".pgm", ".pbm", ".pnm", ".pfm")),
    "JPEG2000": _Format("Jpeg2KImagePlugin", (".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"), "jpg_2000"),
    "AVIF": _Format("AvifImagePlugin", (".avif", ".avifs"), "avif"),
    "ICO": _Format("IcoImagePlugin", (".ico",)),
    "QOI": _Format("QoiImagePlugin", (".qoi",)),
    "SGI": _Format("SgiImagePlugin", (".sgi",)),
    "HEIF": _Format("", (".heic", ".heif", ".hif"), "pillow_heif"),
}
_HEIF = "pillow_heif"
_OPENING_ERRORS = (SyntaxError, IndexError, TypeError, struct.error)  # Image.open tries the next format after these.


def _is_available(name: str) -> bool:
    """Whether this installation can decode a format."""
    kind = _FORMATS[name]
    if kind.library == _HEIF:
        return name in Image.OPEN or importlib.util.find_spec(_HEIF) is not None
    known = kind.library is None or kind.library in (*features.modules, *features.codecs, *features.features)
    present = importlib.util.find_spec(f"PIL.{kind.plugin}") is not None
    return present and known and (kind.library is None or bool(features.check(kind.library)))


FORMATS = tuple(name for name in _FORMATS if _is_available(name))
"""The formats that are read, by their names in Pillow. HEIF needs the package pillow-heif."""
EXTENSIONS = tuple(suffix for name in FORMATS for suffix in _FORMATS[name].suffixes)
"""Endings of image files: those of FORMATS, in lower case."""


def is_known(prefix: bytes) -> bool:
    """Return whether the content of a file begins like one of FORMATS.

    Args:
        prefix: The first 16 bytes.
    """
    return bool(_candidates(prefix))


def open_image(file: BinaryIO) -> ImageFile.ImageFile:
    """Open an image without decoding its pixels.

    Args:
        file: The content, which can seek.

    Returns:
        The opened image, whose class ignores the settings of Pillow. Its size is within the limits.

    Raises:
        BadImage: If the content is in none of FORMATS, or exceeds MAX_PIXELS or MAX_SIDE.
    """
    file.seek(0)
    for reader in _candidates(file.read(16)):
        file.seek(0)
        try:
            image = reader(file)  # type: ignore[call-arg]
        except _OPENING_ERRORS:
            continue
        check_size(image.size)
        return image
    raise BadImage("unsupported or corrupted image file")


def load_pixels(image: Image.Image) -> None:
    """Decode the pixels of an opened image, unless it is decoded already.

    Args:
        image: An image that `open_image` or the calling program opened.

    Raises:
        BadImage: If the calling program opened an EPS file, which Pillow decodes with Ghostscript.
        Exception: What Pillow raises for a corrupted or truncated file.
    """
    own: Any = type(image)
    if not isinstance(image, ImageFile.ImageFile) or (loader := _without_settings(own)) is own:
        image.load()
        return
    if image.format == "EPS" and getattr(image, "tile", None):
        raise BadImage("EPS files are not read: call load() on the image, or save it as PNG")
    image.__class__ = loader  # type: ignore[assignment]
    try:
        image.load()
    finally:
        image.__class__ = own


def check_size(size: tuple[int, int], error_only: bool = False) -> None:
    """Check the size of an image before memory is allocated for it.

    Args:
        size: Width and height in pixels.
        error_only: Not used; the readers of Pillow pass it.

    Raises:
        BadImage: If it exceeds MAX_PIXELS or MAX_SIDE.

    Examples:
        >>> check_size((16_000, 12_000))
    """
    width, height = size
    if width * height > MAX_PIXELS:
        raise BadImage(f"{width} x {height} pixels exceed the limit of {MAX_PIXELS:,} pixels")
    if max(width, height) > MAX_SIDE:
        raise BadImage(f"{width} x {height} pixels exceed the limit of {MAX_SIDE:,} pixels per side")


# The file of the caller of warnings.warn is one of Pillow, or of this package if Pillow attributes the warning to its caller.
_IGNORED = ("ignore", None, Warning, re.compile(r"PIL\b|dinoeval\.data\."), 0)


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Ignore the warnings of Pillow inside a `with` block.

    This holds also if the calling program turns warnings into errors. `warnings.catch_warnings` would replace the filters of
    all threads, and forget which warnings were already shown.

    Yields:
        None.
    """
    filters: list[Any] = warnings.filters  # type: ignore[assignment]
    filters.insert(0, _IGNORED)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the calling program reset its filters meanwhile
            filters.remove(_IGNORED)


@functools.lru_cache(1024)  # Many files of a folder begin with the same bytes.
def _candidates(prefix: bytes) -> tuple[type, ...]:
    """Return the readers of the formats that the first bytes of a file may belong to."""
    found = []
    for name in FORMATS:
        reader, accept = _reader(name)
        try:
            accepted = accept(prefix)
        except _OPENING_ERRORS:  # The file is shorter than what the format begins with.
            continue
        if isinstance(accepted, str):  # the reason why this installation cannot decode the format
            raise BadImage(accepted)
        if accepted:
            found.append(reader)
    return tuple(found)


@functools.cache
def _reader(name: str) -> tuple[type, Any]:
    """Return the class that reads a format, and the function that recognizes its first bytes."""
    if name == "HEIF" and name not in Image.OPEN:
        plugin = importlib.import_module(f"{_HEIF}.as_plugin")
        return _without_settings(plugin.HeifImageFile), plugin._is_supported_heif
    if _FORMATS[name].plugin:
        module = importlib.import_module(f"PIL.{_FORMATS[name].plugin}")
    factory, accept = Image.OPEN[name]
    if name == "JPEG":  # The factory makes an MpoImageFile of a file with several images; its first image is the same.
        factory = module.JpegImageFile
    return _without_settings(factory), accept  # type: ignore[arg-type]


_SUBCLASSES: dict[type, type] = {}


def _without_settings(kind: type, pending: tuple[type, ...] = ()) -> type:
    """Return a subclass whose methods ignore the settings of Pillow, or the class itself if none of them uses any.

    Args:
        kind: A class that reads images, or one that its methods use.
        pending: The classes whose methods are examined, which may refer to each other.
    """
    if kind in _SUBCLASSES:
        return _SUBCLASSES[kind]
    if kind in pending or kind.__module__ == "builtins":
        return kind
    pending = (*pending, kind)
    bases = [(base, _without_settings(base, pending)) for base in kind.__bases__]
    changed_bases = [changed for base, changed in bases if changed is not base]
    methods = {
        name: changed
        for name, method in vars(kind).items()
        if isinstance(method, types.FunctionType) and (changed := _with_own_settings(method, pending)) is not method
    }
    found = type(kind.__name__, (kind, *changed_bases), {"__module__": kind.__module__, **methods}) if methods or changed_bases else kind
    if len(pending) == 1:
        _SUBCLASSES[kind] = _SUBCLASSES[found] = found
    return found


_SETTINGS: dict[str, Any] = {"LOAD_TRUNCATED_IMAGES": False, "_decompression_bomb_check": check_size}


def _with_own_settings(method: types.FunctionType, pending: tuple[type, ...]) -> types.FunctionType:
    """Return a copy of a method in whose namespace the settings have our values, or the method itself if it uses none."""
    used, names = method.__code__.co_names, method.__globals__
    own = {name: value for name, value in _SETTINGS.items() if name in used and name in names}
    for name in used:
        value = names.get(name)
        if isinstance(value, types.ModuleType) and value.__name__.startswith("PIL."):
            changes = {setting: new for setting, new in _SETTINGS.items() if setting in used and hasattr(value, setting)}
            for attribute in used:
                kind = getattr(value, attribute, None)
                if isinstance(kind, type) and (changed := _without_settings(kind, pending)) is not kind:
                    changes[attribute] = changed
            if changes:
                own[name] = types.ModuleType(value.__name__)
                vars(own[name]).update({**vars(value), **changes})
        # Helpers that read parts of a file, such as PngStream. Image classes are left alone, because methods test for them.
        elif isinstance(value, type) and value.__module__.startswith("PIL.") and not issubclass(value, Image.Image):
            changed = _without_settings(value, pending)
            own |= {} if changed is value else {name: changed}
    if not own:
        return method
    copied = types.FunctionType(method.__code__, {**names, **own}, method.__name__, method.__defaults__, method.__closure__)
    copied.__kwdefaults__ = method.__kwdefaults__
    return copied
