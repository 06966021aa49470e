"""Text tables in the dialects that programs write: encodings, separators, headings and names of columns.

What cannot be read without guessing is an error that names what is unusual.
"""

from __future__ import annotations

import codecs
import csv
import dataclasses
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from dinoeval.data.loading import EXTENSIONS
from dinoeval.errors import DataError, join_names

TABLE_EXTENSIONS = (".csv", ".tsv", ".tab")
"""Endings of tables."""
Role = Literal["path", "label", "labels", "split"]
COLUMNS: dict[Role, tuple[str, ...]] = {
    "path": (
        *("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "imagepath", "image_file"),
        *("image_name", "imagename", "img", "img_path", "img_name", "img_file", "relative_path", "relpath"),
    ),
    "label": (
        *("label", "class", "target", "category", "class_name", "classname", "class_label", "class_id", "label_name", "label_id"),
        *("category_name", "category_id", "target_name"),
    ),
    "labels": ("labels",),
    "split": ("split", "set", "subset", "partition"),
}
"""Names of columns, the preferred one first. Upper and lower case are equal, and so are blanks, hyphens and underscores."""
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins with the mark of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclasses.dataclass(frozen=True)
class Table:
    """The rows of a table of images."""

    path: Path
    """The file."""
    heading: tuple[str, ...]
    """Names of the columns, as they are in the file."""
    lines: tuple[int, ...]
    """Line of each row in the file, from 1."""
    rows: tuple[tuple[str, ...], ...]
    """Cells without surrounding blanks; rows may be shorter or longer than the heading."""

    def __len__(self) -> int:
        return len(self.rows)

    def has(self, role: Role) -> bool:
        """Return whether there is a column for a role.

        Args:
            role: What the column holds.
        """
        return bool(_find_columns(self.heading, role))

    def column(self, role: Role) -> list[str | None]:
        """Return the cells of a column.

        Args:
            role: What the column holds.

        Returns:
            One cell per row; None in rows that end before the column.

        Raises:
            DataError: If there is no such column, or several that could be meant.
        """
        found = _find_columns(self.heading, role)
        if len(found) != 1:
            several = f"several columns that could be the {role}, {_quote(self.heading[number] for number in found)}"
            count = several if found else f"no column '{role}'"
            others = join_names(COLUMNS[role][1:]) or "no other name"
            raise DataError(f"{self.path} has {count}; its columns are {_quote(self.heading)}. Name one '{role}' (also read: {others})")
        position = found[0]
        return [row[position] if position < len(row) else None for row in self.rows]

    def select(self, numbers: Sequence[int]) -> Table:
        """Select rows.

        Args:
            numbers: Numbers of the rows to keep, from 0.

        Returns:
            A table of these rows.
        """
        return dataclasses.replace(
            self, lines=tuple(self.lines[number] for number in numbers), rows=tuple(self.rows[number] for number in numbers)
        )

    def name_lines(self, numbers: Sequence[int]) -> str:
        """Name rows by their lines in the file, for messages.

        Args:
            numbers: Numbers of rows, from 0.

        Returns:
            Such as "line 2" or "lines 2, 5".
        """
        return f"line{'s' * (len(numbers) > 1)} {join_names(str(self.lines[number]) for number in numbers)}"


def read_table(path: Path) -> Table:
    """Read a table of images.

    Args:
        path: A text file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark. Its first line names the columns. Cells are
            separated by commas, semicolons, tabs or vertical bars. Blank lines are ignored.

    Returns:
        The table. It has at least one row, and a column of paths without empty cells.

    Raises:
        DataError: If the file is not such a table.
        OSError: If the file cannot be read.
    """
    text = _decode(path, path.read_bytes())
    delimiter, skip = _choose_delimiter(path, text)
    lines: list[int] = []
    rows: list[tuple[str, ...]] = []
    before = 0
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
        for cells in reader:
            stripped = tuple(map(str.strip, cells))
            if before >= skip and any(stripped):
                lines.append(before + 1)
                rows.append(stripped)
            before = reader.line_num
    except csv.Error as error:
        raise DataError(f"{path}, line {before + 1}, cannot be read as a table: {error}. Is a quote not closed?") from error
    heading = rows[0]
    while not heading[-1]:  # separators at the end of the line
        heading = heading[:-1]
    width = len(heading)
    table = Table(path, heading, tuple(lines[1:]), tuple(rows[1:]))
    if not table.rows:
        raise DataError(f"{path} has column names but no rows")
    if long := [number for number, row in enumerate(table.rows) if len(row) > width and any(row[width:])]:
        raise DataError(
            f"{path} has more cells than columns in {table.name_lines(long)}: the first line names {width} columns, separated by "
            f"{DELIMITERS[delimiter]}. Put cells that contain the separator in double quotes, and separate several labels by ';'"
        )
    quoted = table.rows if '"' in text else ()
    if broken := [number for number, row in enumerate(quoted) if any("\n" in cell or "\r" in cell for cell in row)]:
        raise DataError(f"{path} has a line break inside a cell in {table.name_lines(broken)}: is a quote not closed?")
    if empty := [number for number, cell in enumerate(table.column("path")) if not cell]:
        raise DataError(f"{path} has no path in {table.name_lines(empty)}")
    return table


def _decode(path: Path, content: bytes) -> str:
    encoding = next((name for bom, name in _BOMS if content.startswith(bom)), "utf-8")
    if encoding == "utf-8" and b"\0" in content:  # no text, or UTF-16 without its mark: every other byte of ASCII text is zero
        halves = content[1::2], content[::2]
        zeros = [half.count(0) > 0.6 * len(half) for half in halves]
        encoding = "utf-16-le" if zeros == [True, False] else "utf-16-be" if zeros == [False, True] else encoding
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path} is not {encoding.upper()} text: line {line} has the byte 0x{content[error.start]:02x}. Save the table "
            "in the encoding UTF-8"
        ) from error
    if "\0" in text:
        raise DataError(f"{path} is not a table: it contains zero bytes")
    if not text.strip():
        raise DataError(f"{path} is empty")
    return text


def _choose_delimiter(path: Path, text: str) -> tuple[str, int]:
    """Return the separator whose columns include one of paths, and the number of lines before the heading."""
    lines = io.StringIO(text, newline=None).read().split("\n")
    first = next(number for number, line in enumerate(lines) if line.strip())
    if declared := re.fullmatch(r'"?sep=(.)"?\s*', lines[first], re.IGNORECASE):  # written by Excel
        first = next((number for number in range(first + 1, len(lines)) if lines[number].strip()), first)
    order = sorted(DELIMITERS, key=lambda one: (one != (declared[1] if declared else None), path.suffix.lower() != ".csv" and one != "\t"))
    headings = {one: next(csv.reader([lines[first]], delimiter=one, skipinitialspace=True)) for one in order}
    delimiter = next((one for one in order if _find_columns(headings[one], "path")), None)
    if delimiter is not None:
        return delimiter, first
    likely = max(order, key=lambda one: len(headings[one]))
    cells = [cell.strip() for cell in headings[likely]]
    if any(cell.lower().endswith(EXTENSIONS) for cell in cells):
        raise DataError(f"{path} has no heading: its first line must name the columns, such as path,label,split, but is {_quote(cells)}")
    raise DataError(
        f"{path} has no column 'path': its first line must name the columns, such as path,label,split, separated by "
        f"{', '.join(DELIMITERS.values())}. Found, separated by {DELIMITERS[likely]}: {_quote(cells)}. Also read as the path: "
        f"{join_names(COLUMNS['path'][1:])}"
    )


def _find_columns(heading: Sequence[str], role: Role) -> list[int]:
    """Return the positions of the columns for a role; the preferred name excludes the others."""
    names = [re.sub(r"[\s-]+", "_", cell.strip()).casefold() for cell in heading]
    preferred = [number for number, name in enumerate(names) if name == role]
    return preferred or [number for number, name in enumerate(names) if name in COLUMNS[role]]


def _quote(names: object) -> str:
    return join_names((repr(name) for name in names), 12)  # type: ignore[attr-defined]
