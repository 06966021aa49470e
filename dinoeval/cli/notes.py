"""Notes that several commands print."""

from __future__ import annotations

from dinoeval import distributed
from dinoeval.data.remarks import Remarks, describe_remarks


def print_remarks(remarks: Remarks, exif_transpose: bool) -> None:
    """Print the remarks about images, in the first process only.

    Args:
        remarks: Names of images by remark.
        exif_transpose: Whether the EXIF orientation was applied.
    """
    for note in describe_remarks(remarks, exif_transpose) if distributed.rank() == 0 else ():
        print(f"note: {note}", flush=True)
