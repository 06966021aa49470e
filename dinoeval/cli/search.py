"""`dinoeval search`."""

from __future__ import annotations

import dataclasses
import json as json_format
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from dinoeval.errors import ConfigError
from dinoeval.files import check_writable, write_whole
from dinoeval.session import SessionConfig

if TYPE_CHECKING:
    from dinoeval.search import Group, ImageIndex, Matches

_Session = Annotated[SessionConfig, tyro.conf.arg(name="")]


def build(
    folder: Annotated[str, tyro.conf.Positional],
    /,
    out: str,
    readout: str | None = None,
    index: Literal["exact", "ivf", "hnsw", "pq"] | None = None,
    session: _Session = SessionConfig(),  # noqa: B008  frozen
) -> int:
    """Make an index of the images below a folder; where there is one already, bring it up to date.

    Args:
        folder: Searched deeply.
        out: Folder of the index.
        readout: cls, lastN (as last4), clsavg or gem; by default that of the index that is there, else cls.
        index: exact; or for large sets ivf, hnsw or pq (product quantisation), whose recall is measured. By default that of the
            index that is there, else exact.
        session: Of an index that is there by default its weights, precision and transform.
    """
    from dinoeval import distributed, search

    library = search.build(folder, out, session=session, readout=readout, index=index)
    if distributed.rank() > 0:
        return 0
    about = library.manifest
    print(f"{out}: {len(library):,} images of {about['folder']}, {about['dim']} dims")
    print(
        f"{about['session']['arch']}, digest {about['digest'][:12]}, readout {about['readout']}, {about['transform']}, {about['precision']}"
    )
    if recall := about["recall"]:
        parameters = ", ".join(f"{name} {value}" for name, value in about["parameters"].items())
        print(f"{about['kind']} ({parameters}): recall@{recall['at']} {recall['recall']:.3f} against exact search, on {recall['sample']:,}"
              " of its images")  # fmt: skip
        if recall["recall"] < 0.95:
            print("note: 0.95 was not reached, however hard it looks; --index exact finds all")
    return 0


def query(
    index: Annotated[str, tyro.conf.Positional],
    images: Annotated[tuple[str, ...], tyro.conf.Positional],
    /,
    k: int = 10,
    readout: str | None = None,
    json: str | None = None,
    sheet: str | None = None,
    session: _Session = SessionConfig(),  # noqa: B008  frozen
) -> int:
    """Find the images of an index that are most like each of these.

    Args:
        index: What `dinoeval search build` made.
        images: Files or folders; one that is in the index is not among its own answers.
        k: Answers for each image.
        readout: Only to be sure: another than the index's is refused.
        json: Write the answers to this file.
        sheet: Write a contact sheet to this file, .html or .png.
        session: By default the weights, precision and transform of the index.
    """
    from dinoeval import search

    if not images:
        raise ConfigError("name the images to look for: dinoeval search query INDEX IMAGE...")
    _check_outputs(json, sheet)
    library = search.open(index, session=session, readout=readout)
    found = library.query(images[0] if len(images) == 1 else images, k)
    content = {
        "k": k,
        "queries": [
            {"path": matches.query, "neighbours": [{"rank": rank, **one} for rank, one in enumerate(_listed(matches), 1)]}
            for matches in found
        ],
    }
    _write(library, index, content, json)
    for matches in found:
        print(f"{matches.query}\n{'rank':>6}{'cosine':>9}  path")
        for rank, one in enumerate(_listed(matches), 1):
            print(f"{rank:>6}{one['cosine']:>9.5f}  {one['path']}")
        print()
    if sheet:
        from dinoeval.search.sheet import Section, Tile, write_sheet

        folder = library.manifest["folder"]
        strips = [
            Section(matches.query, [Tile(matches.query, _name(matches.query, folder), "query"), *_tiles(matches, folder)])
            for matches in found
        ]
        write_sheet(sheet, f"The nearest of {len(library):,} images in {folder}", strips)
    _say_written(json, sheet)
    return 0


def duplicates(
    index: Annotated[str, tyro.conf.Positional],
    /,
    threshold: float | None = None,
    json: str | None = None,
    sheet: str | None = None,
    session: _Session = SessionConfig(),  # noqa: B008  frozen
) -> int:
    """Find groups of images that are nearly the same; every image is compared with every other one.

    Args:
        index: What `dinoeval search build` made.
        threshold: The least cosine of two duplicates; by default measured: copies of some images are made, re-encoded, halved
            and cropped by 5 %, and told from images that are merely alike.
        json: Write the groups to this file.
        sheet: Write a contact sheet to this file, .html or .png.
        session: To measure the threshold; by default the weights, precision and transform of the index.
    """
    from dinoeval import search

    _check_outputs(json, sheet)
    library = search.open(index, session=session)
    measured = library.threshold() if threshold is None else None
    least = measured.cosine if measured else threshold
    groups = library.duplicates(least)
    about = {"threshold": least, "measured": measured and dataclasses.asdict(measured)}
    _write(library, index, {**about, "groups": [{"images": _listed(group)} for group in groups]}, json)
    headings = [f"group {number}: {len(group.paths)} images" for number, group in enumerate(groups, 1)]
    for heading, group in zip(headings, groups, strict=True):
        print(heading)
        for one in _listed(group):
            print(f"{one['cosine']:>9.5f}  {one['path']}")
    images = sum(len(group.paths) for group in groups)
    print(f"{len(groups):,} groups, {images:,} of {len(library):,} images, at a cosine of {least:g} or more")
    if measured:
        print(
            f"measured on copies of {measured.images} of the images, re-encoded, halved or cropped by 5 %: {measured.recall:.0%} are that"
        )
        print(f"near to their original, and {measured.alike:.1%} of the images have another that near. For larger crops, lower --threshold")
    if sheet:
        from dinoeval.search.sheet import Section, write_sheet

        folder = library.manifest["folder"]
        strips = [Section(heading, _tiles(group, folder)) for heading, group in zip(headings, groups, strict=True)]
        title = f"{len(groups):,} groups of duplicates among {len(library):,} images in {folder}, at a cosine of {least:g} or more"
        write_sheet(sheet, title, strips)
    _say_written(json, sheet)
    return 0


def _listed(found: Matches | Group) -> list[dict[str, Any]]:
    return [{"cosine": round(float(cosine), 6), "path": path} for cosine, path in zip(found.cosines, found.paths, strict=True)]


def _tiles(found: Matches | Group, folder: str) -> Sequence[Any]:
    from dinoeval.search.sheet import Tile

    return [Tile(one["path"], _name(one["path"], folder), f"{one['cosine']:.5f}") for one in _listed(found)]


def _name(path: str, folder: str) -> str:
    """The path below the folder of the index, where it lies there."""
    return path.removeprefix(os.path.join(folder, ""))  # noqa: PTH118


def _check_outputs(json: str | None, sheet: str | None) -> None:
    if json:
        check_writable(json)
    if sheet:
        from dinoeval.search.sheet import check_sheet

        check_sheet(sheet)


def _write(library: ImageIndex, index: str, content: dict[str, Any], json: str | None) -> None:
    if not json:
        return
    names = ("folder", "images", "fingerprint", "session", "digest", "readout", "transform", "precision", "kind", "parameters", "recall")
    about = {"index": index, **{name: library.manifest[name] for name in names}}
    write_whole(json, lambda target: target.write_text(json_format.dumps({**about, **content}, indent=1) + "\n"))


def _say_written(json: str | None, sheet: str | None) -> None:
    if written := [path for path in (json, sheet) if path]:
        print(f"written to {' and '.join(written)}")
