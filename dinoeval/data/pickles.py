"""Open pickles of plain data, such as ground-truth files, without running code."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from dinoeval.errors import DataError
from dinoeval.files import report_disk_errors
from dinoeval.pickles import NotData, PickleError, load_data

_MAX_BYTES = 256 << 20  # far more than any ground-truth file


def open_pickle(path: Path) -> Any:
    """Read a pickle of lists, tuples, sets, dicts, strings, numbers and arrays.

    Args:
        path: A pickle of any protocol, also of Python 2.

    Returns:
        The content.

    Raises:
        DataError: If the file cannot be read, is not a pickle, or refers to anything other than data.

    Examples:
        >>> import pickle, tempfile
        >>> import numpy as np
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.pkl").write_bytes(pickle.dumps({"rows": np.arange(3)}))
        ...     open_pickle(Path(folder, "a.pkl"))
        {'rows': array([0, 1, 2])}
    """
    with report_disk_errors(f"{path} cannot be read", DataError):
        if not path.is_file():
            raise DataError(f"{path} cannot be read: it is not a file")
        if path.stat().st_size > _MAX_BYTES:
            raise DataError(f"{path} is too large: a pickle of data may have at most {_MAX_BYTES >> 20} MiB")
        content = path.read_bytes()
    try:
        return load_data(io.BytesIO(content), len(content))
    except NotData as rejection:
        raise DataError(f"{path} was not opened: it refers to {rejection}, which is not data. Nothing in it was run.") from rejection
    except PickleError as error:
        raise DataError(f"{path} is not a pickle of plain data: {error}") from error
