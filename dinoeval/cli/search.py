"""`dinoeval search build | query | duplicates`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from dinoeval.cli.notes import print_remarks
from dinoeval.cli.options import JsonOutput
from dinoeval.data.loading import ImageRule
from dinoeval.display import split_codes
from dinoeval.errors import ConfigError, join_names
from dinoeval.session import SessionConfig

if TYPE_CHECKING:
    from dinoeval.search import DuplicateGroup, ImageIndex, Matches, Threshold
    from dinoeval.search.sheet import Section, Tile

_MANIFEST_KEYS = (
    "folder",
    "images",
    "fingerprint",
    "session",
    "digest",
    "readout",
    "transform",
    "image",
    "precision",
    "kind",
    "parameters",
    "recall",
)
"""Metadata of the index that --json also holds."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchOutput(JsonOutput):
    """The files that a search can write."""

    sheet: str | None = None
    """Write a contact sheet to this file, .html or .png (default: not written)."""

    def check(self) -> None:
        """Fail before the work starts if a file cannot be written.

        Raises:
            DinoevalError: If --json or --sheet cannot be written.
        """
        super().check()
        if self.sheet:
            from dinoeval.search.sheet import check_sheet

            check_sheet(self.sheet)

    def write_index_result(self, path: str, index: ImageIndex, content: dict[str, Any]) -> None:
        """Write --json: metadata of the index and the result of the search.

        Args:
            path: Folder of the index, as typed.
            index: The index.
            content: The result.
        """
        self.write({"index": path, **{key: index.manifest[key] for key in _MANIFEST_KEYS}, **content})

    def write_sheet(self, title: str, sections: Sequence[Section], index: ImageIndex) -> None:
        """Write --sheet.

        Args:
            title: Title of the sheet.
            sections: What to show.
            index: The index, which determines how images are read.
        """
        if self.sheet:
            from dinoeval.search.sheet import write_sheet

            write_sheet(self.sheet, title, sections, ImageRule(index.manifest["session"]["exif_transpose"]))

    def print_written(self) -> None:
        """Print which files were written."""
        if written := [path for path in (self.json, self.sheet) if path]:
            print(f"wrote {' and '.join(written)}")


def build(
    folder: str,
    /,
    out: str,
    readout: str | None = None,
    index: Literal["exact", "ivf", "hnsw", "pq"] | None = None,
    session: SessionConfig = SessionConfig(),  # noqa: B008  frozen
) -> int:
    """Create or update an index of a folder of images.

    An update extracts the features of new and changed images only. It uses the weights, precision and transform of the index.

    Args:
        folder: Folder of images, searched recursively.
        out: Folder of the index.
        readout: cls, lastN such as last4, clsavg or gem (default: that of the existing index, else cls).
        index: exact, or for large datasets ivf, hnsw or pq (product quantization), whose recall is measured (default: that of
            the existing index, else exact).
        session: Options for the backbone and for reading images.

    Returns:
        The exit code.
    """
    from dinoeval import distributed, search

    built = search.build(folder, out, session=session, readout=readout, index=index)
    if distributed.rank() > 0:
        return 0
    spec = built.manifest
    print(f"{out}: {len(built):,} images of {spec['folder']}, {spec['dim']} dimensions")
    if skipped := built.unreadable:
        print(f"{len(skipped):,} files are not readable images and are not in the index: {_printable(join_names(skipped))}")
    settings = f"readout {spec['readout']}, {spec['transform']}, {spec['image']}, {spec['precision']}"
    print(f"{spec['session']['arch']}, digest {spec['digest'][:12]}, {settings}")
    print_remarks(spec["remarks"], spec["session"]["exif_transpose"])
    if recall := spec["recall"]:
        parameters = ", ".join(f"{name} {value}" for name, value in spec["parameters"].items())
        measured = f"recall@{recall['at']} {recall['recall']:.3f} against exact search on {recall['sample']:,} of its images"
        print(f"{spec['kind']} ({parameters}): {measured}")
        if recall["recall"] < 0.95:
            print("note: recall is below 0.95 at the largest search effort; pass --index exact to find all neighbors")
    return 0


def query(
    index: str,
    images: Annotated[tuple[str, ...], tyro.conf.arg(metavar="IMAGE...")],
    /,
    k: int = 10,
    readout: str | None = None,
    output: SearchOutput = SearchOutput(),
    session: SessionConfig = SessionConfig(),  # noqa: B008  frozen
) -> int:
    """Find the nearest images in an index.

    Query features are extracted with the weights, precision and transform of the index.

    Args:
        index: Folder of an index, made by `dinoeval search build`.
        images: Files or folders (searched recursively), or a CSV table with a `path` column. An image of the index is left
            out of its own result.
        k: Number of images to find per query.
        readout: Expected readout; must match the index (default: that of the index).
        output: Files to write.
        session: Options for the backbone and for reading images.

    Returns:
        The exit code.
    """
    from dinoeval import search

    if not images:
        raise ConfigError("no query images: run `dinoeval search query INDEX IMAGE...`")
    output.check()
    opened = search.open(index, session=session, readout=readout)
    results = opened.query(images[0] if len(images) == 1 else images, k)
    queries = [
        {"path": matches.query, "neighbors": [{"rank": rank, **entry} for rank, entry in enumerate(_entries(matches), 1)]}
        for matches in results
    ]
    output.write_index_result(index, opened, {"k": k, "queries": queries})
    for found in queries:
        print(f"{_printable(found['path'])}\n{'rank':>6}{'cosine':>9}  path")
        for entry in found["neighbors"]:
            print(f"{entry['rank']:>6}{entry['cosine']:>9.5f}  {_printable(entry['path'])}")
        print()
    folder = opened.manifest["folder"]
    output.write_sheet(f"Nearest of {len(opened):,} images in {folder}", [_query_section(matches, folder) for matches in results], opened)
    output.print_written()
    return 0


def duplicates(
    index: str,
    /,
    threshold: float | None = None,
    output: SearchOutput = SearchOutput(),
    session: SessionConfig = SessionConfig(),  # noqa: B008  frozen
) -> int:
    """Find near-duplicate images in an index.

    All pairs are compared. The default threshold is calibrated with the weights, precision and transform of the index.
    Deleted and changed images are left out and named. Several paths of one file (links) are one image.

    Args:
        index: Folder of an index, made by `dinoeval search build`.
        threshold: Smallest cosine of two duplicates, from -1 to 1 (default: calibrated on re-encoded, downscaled and cropped
            copies of some images).
        output: Files to write.
        session: Options for the backbone, which calibrates the threshold.

    Returns:
        The exit code.
    """
    from dinoeval import search
    from dinoeval.search.sheet import Section

    output.check()
    opened = search.open(index, session=session)
    files = opened.check_files()
    measured = opened.measure_threshold(files) if threshold is None else None
    cosine = measured.cosine if measured else threshold
    groups = opened.duplicates(cosine, files)
    content = {
        "threshold": cosine,
        "measured": measured and _describe_threshold(measured),
        "deleted": files.deleted,
        "changed": files.changed,
        "links": [{"path": opened.paths[row], "links": paths} for row, paths in files.links.items()],
        "groups": [_describe_group(group) for group in groups],
    }
    output.write_index_result(index, opened, content)
    headings = [_heading(number, group) for number, group in enumerate(groups, 1)]
    for heading, group in zip(headings, groups, strict=True):
        print(heading)
        for entry, notes in zip(_entries(group), _notes(group), strict=True):
            print("  ".join([f"{entry['cosine']:>9.5f}", *_details(entry["path"]), *map(_printable, [entry["path"], *notes])]))
    num_images = sum(len(group.paths) for group in groups)
    print(f"{len(groups):,} groups, {num_images:,} of {len(opened):,} images, with a cosine of at least {cosine:g}")
    if measured:
        _print_threshold(measured)
    folder = opened.manifest["folder"]
    sections = [Section(heading, _tiles(group, folder, _notes(group, folder))) for heading, group in zip(headings, groups, strict=True)]
    title = f"{len(groups):,} groups of duplicates among {len(opened):,} images in {folder}, cosine >= {cosine:g}"
    output.write_sheet(title, sections, opened)
    output.print_written()
    return 0


def _heading(number: int, group: DuplicateGroup) -> str:
    heading = f"group {number}: {len(group.paths)} images, lowest cosine {group.lowest:.5f}"
    return f"{heading}, below the threshold: a chain, whose ends may not be duplicates" if group.is_chain else heading


def _notes(group: DuplicateGroup, folder: str = "") -> list[list[str]]:
    """What is known of the files of a group, one list per image; paths are relative to `folder`."""
    notes = []
    for original, links in zip(group.identical_to, group.links, strict=True):
        notes.append([f"same bytes as {_relative(original, folder)}"] if original else [])
        notes[-1] += [f"linked as {_relative(path, folder)}" for path in links]
    return notes


def _describe_group(group: DuplicateGroup) -> dict[str, Any]:
    from dinoeval.search.files import FileDetails

    images = _entries(group)
    for entry, original, links in zip(images, group.identical_to, group.links, strict=True):
        entry |= dataclasses.asdict(details) if (details := FileDetails.of(entry["path"])) else {}
        entry |= {"identical_to": original, "links": links}
    return {"lowest_cosine": round(group.lowest, 6), "is_chain": group.is_chain, "images": images}


def _describe_threshold(measured: Threshold) -> dict[str, Any]:
    recalls = [
        {**dataclasses.asdict(one), "recall": one.recall, "interval": [round(bound, 4) for bound in one.interval]}
        for one in measured.recalls
    ]
    return {**dataclasses.asdict(measured), "recalls": recalls}


def _print_threshold(measured: Threshold) -> None:
    print(f"threshold calibrated on copies of {measured.images} images. Of copies of other images, it finds:")
    width = max(len(one.kind) for one in measured.recalls)
    for one in measured.recalls:
        low, high = one.interval
        print(f"  {one.kind:<{width}}  {one.found:>3} of {one.copies} ({one.recall:.0%}; 95% interval {low:.0%} to {high:.0%})")
    print(
        f"{round(measured.alike * measured.compared)} of {measured.compared} images have another picture at least that similar. "
        "To find larger crops, pass a lower --threshold"
    )


def _entries(found: Matches | DuplicateGroup) -> list[dict[str, Any]]:
    return [{"cosine": round(float(cosine), 6), "path": path} for cosine, path in zip(found.cosines, found.paths, strict=True)]


def _query_section(matches: Matches, folder: str) -> Section:
    from dinoeval.search.sheet import Section, Tile

    query = Tile(matches.query, _relative(matches.query, folder), "query", _details(matches.query))
    return Section(matches.query, [query, *_tiles(matches, folder, [[] for _ in matches.paths])])


def _tiles(found: Matches | DuplicateGroup, folder: str, notes: list[list[str]]) -> list[Tile]:
    from dinoeval.search.sheet import Tile

    tiles = []
    for entry, more in zip(_entries(found), notes, strict=True):
        path = entry["path"]
        tiles.append(Tile(path, _relative(path, folder), f"{entry['cosine']:.5f}", [*_details(path), *more]))
    return tiles


def _details(path: str) -> list[str]:
    from dinoeval.search.files import FileDetails

    details = FileDetails.of(path)
    return details.lines() if details else []


def _printable(path: str) -> str:
    """Path for the terminal: a name cannot move the cursor, change colors or reverse the text that follows."""
    return "".join(piece.text for piece in split_codes(path))


def _relative(path: str, folder: str) -> str:
    """Path below the folder of images, if it is there."""
    return path if not folder else path.removeprefix(os.path.join(folder, ""))  # noqa: PTH118
