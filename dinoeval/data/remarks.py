"""Remarks about images that a reader of the results should know: how many are rotated by EXIF or have several frames."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from PIL import Image

from dinoeval.errors import join_names

ORIENTED, SEVERAL_FRAMES = "oriented", "several_frames"
"""The EXIF orientation of an image is not 1; its file has several frames or pages, of which the first is used."""
REMARKS = (ORIENTED, SEVERAL_FRAMES)
"""All remarks, which are keys in `info` of a decoded image."""
Remarks = Mapping[str, Sequence[str]]
"""Names of images by remark."""


def remarks_of(image: Image.Image) -> list[str]:
    """Return the remarks about a decoded image.

    Args:
        image: An image that `ImageRule.decode` returned, or a crop of it.
    """
    return [remark for remark in REMARKS if image.info.get(remark)]


def add_remarks(remarks: dict[str, list[str]], image: Image.Image, name: str) -> None:
    """Add the remarks about a decoded image to those about others.

    Args:
        remarks: Names of images by remark, which is changed.
        image: A decoded image.
        name: Its name.
    """
    for remark in remarks_of(image):
        remarks.setdefault(remark, []).append(name)


def merge_remarks(parts: Iterable[Remarks]) -> dict[str, list[str]]:
    """Join the remarks about several image sets.

    Args:
        parts: Names of images by remark.

    Returns:
        All names by remark, each once; remarks about no image are left out.

    Examples:
        >>> merge_remarks([{"oriented": ["a.jpg"]}, {"oriented": ["b.jpg", "a.jpg"]}])
        {'oriented': ['a.jpg', 'b.jpg']}
    """
    parts = list(parts)
    merged = {remark: list(dict.fromkeys(name for part in parts for name in part.get(remark, ()))) for remark in REMARKS}
    return {remark: names for remark, names in merged.items() if names}


def describe_remarks(remarks: Remarks, exif_transpose: bool) -> list[str]:
    """Write the notes about images that are rotated by EXIF or have several frames.

    Args:
        remarks: Names of images by remark.
        exif_transpose: Whether the EXIF orientation was applied.

    Returns:
        At most one sentence per remark.

    Examples:
        >>> describe_remarks({"oriented": ["a.jpg"]}, exif_transpose=False)
        ['images with an EXIF orientation, which is not applied: 1 (a.jpg)']
    """
    texts = {
        ORIENTED: f"images with an EXIF orientation, which is {'' if exif_transpose else 'not '}applied",
        SEVERAL_FRAMES: "images with several frames or pages, of which the first is used",
    }
    return [f"{text}: {len(remarks[remark])} ({join_names(remarks[remark])})" for remark, text in texts.items() if remarks.get(remark)]
