"""Names of files and folders: which are images, and which belong to the system."""

from __future__ import annotations

from dinoeval.data.loading import EXTENSIONS

_SYSTEM_NAMES = frozenset(
    (
        "__macosx",  # ZIP archives made on a Mac
        "@eadir",  # Synology
        "#recycle",
        "#snapshot",
        "@recycle",  # QNAP
        "@recently-snapshot",
        "$recycle.bin",  # Windows
        "recycler",
        "system volume information",
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "lost+found",  # Linux
        "__pycache__",
        "icon\r",  # macOS
        "network trash folder",
        "temporary items",
    )
)


def is_hidden(name: str) -> bool:
    """Return whether a name is that of a hidden file or a folder of the system.

    Such files are never images, and such folders are never classes.

    Args:
        name: The name without its folder.

    Returns:
        True for names that begin with a dot, such as `._1.jpg` and `.ipynb_checkpoints`, and for names such as `__MACOSX`.

    Examples:
        >>> [is_hidden(name) for name in ("._1.jpg", "@eaDir", "Thumbs.db", "1.jpg")]
        [True, True, True, False]
    """
    return name.startswith(".") or name.casefold() in _SYSTEM_NAMES


def is_image_name(name: str) -> bool:
    """Return whether a name has the ending of an image.

    Args:
        name: The name of a file, or its path.

    Returns:
        True if the ending is one of EXTENSIONS, in upper or lower case.
    """
    return name.lower().endswith(EXTENSIONS)
