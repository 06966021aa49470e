"""Contact sheets: sections of thumbnails, as one HTML page or one PNG image."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from dinoeval.data.image_files import read_file
from dinoeval.data.loading import DEFAULT_RULE, ImageRule
from dinoeval.display import find_ambiguous, split_codes
from dinoeval.errors import BadImage, ConfigError
from dinoeval.files import check_writable, expand, write_whole
from dinoeval.search.png_sheet import draw_sheet

_THUMBNAIL = 160  # pixels: side of a thumbnail
_MAX_TILES = {".html": 5_000, ".png": 600}  # browsers and image viewers fail on much larger sheets
_QUALITY = 85  # of JPEG


@dataclasses.dataclass(frozen=True)
class Tile:
    """One thumbnail with its texts."""

    path: str
    """Path of the image."""
    name: str
    """Name below the caption."""
    caption: str
    """Text below the thumbnail, such as a cosine."""
    details: Sequence[str] = ()
    """Texts below the name, such as the size of the file."""


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading with its thumbnails."""

    heading: str
    """Text above the thumbnails."""
    tiles: Sequence[Tile]
    """Thumbnails, in order."""


def check_sheet(path: str | Path) -> None:
    """Check before the work starts that a sheet can be written.

    Args:
        path: File to write, .html or .png.

    Raises:
        DinoevalError: If the ending is another one or the file cannot be written.
    """
    if expand(path).suffix.lower() not in _MAX_TILES:
        raise ConfigError(f"--sheet must end in .html or .png, got {path}")
    check_writable(path)


def write_sheet(path: str | Path, title: str, sections: Sequence[Section], rule: ImageRule = DEFAULT_RULE) -> None:
    """Write thumbnails to a self-contained .html page or a .png image.

    The first 5,000 (.html) or 600 (.png) images are shown. The sheet states if some are left out.

    Args:
        path: File to write.
        title: Title of the sheet.
        sections: What to show.
        rule: The rule by which images are decoded, that of their features.

    Raises:
        DinoevalError: If the file cannot be written.
    """
    check_sheet(path)
    suffix = expand(path).suffix.lower()
    shown, remaining = [], _MAX_TILES[suffix]
    for section in sections:
        if not remaining:
            break
        shown.append(Section(section.heading, section.tiles[:remaining]))
        remaining -= len(shown[-1].tiles)
    is_cut = sum(len(section.tiles) for section in shown) < sum(len(section.tiles) for section in sections)
    note = f"Only the first {_MAX_TILES[suffix]:,} images are shown." if is_cut else ""
    if suffix == ".html":
        page = _render_page(title, note, shown, rule)
        write_whole(path, lambda target: target.write_text(page, encoding="utf-8", errors="backslashreplace"))
    else:
        image = draw_sheet(title, note, shown, lambda path: _read_thumbnail(path, rule), _THUMBNAIL)
        write_whole(path, lambda target: image.save(target, "PNG"))


def _read_thumbnail(path: str, rule: ImageRule) -> Image.Image | None:
    """Scale an image to fit the thumbnail; small ones by a whole factor. None if it is unreadable."""
    try:
        image = rule.decode(read_file(path), draft=2 * _THUMBNAIL)
    except (BadImage, OSError):
        return None
    factor = _THUMBNAIL // max(image.size)
    if factor > 1:
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    image.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)
    return image


_STYLE = f"""
:root {{ color-scheme: light dark; }}
body {{ font: 14px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 1500px; padding: 0 1rem; }}
h1 {{ font-size: 1.3rem; overflow-wrap: anywhere; }}
h2 {{ font-size: 1rem; margin: 0 0 .6rem; overflow-wrap: anywhere; }}
main {{ display: flex; flex-wrap: wrap; gap: 1.2rem; }}
section {{ border-top: 1px solid #8886; padding: .8rem 0; min-width: min(100%, {2 * _THUMBNAIL + 16}px); }}
ul {{ display: flex; flex-wrap: wrap; gap: 1rem; list-style: none; margin: 0; padding: 0; }}
li {{ width: {_THUMBNAIL}px; }}
li a, li span.none {{ display: flex; align-items: center; justify-content: center; height: {_THUMBNAIL}px; background: #8882; }}
li strong {{ display: block; margin-top: .3rem; }}
li small {{ display: block; overflow-wrap: anywhere; opacity: .75; }}
bdi {{ white-space: pre-wrap; }}
code {{ color: #b5431a; font-size: inherit; }}
"""


def _render_page(title: str, note: str, sections: Sequence[Section], rule: ImageRule) -> str:
    parts = []
    ambiguous = find_ambiguous({tile.name for section in sections for tile in section.tiles})
    for section in sections:
        tiles = "\n".join(_render_tile(tile, ambiguous, rule) for tile in section.tiles)
        parts.append(f"<section>\n<h2>{_render_text(section.heading)}</h2>\n<ul>\n{tiles}\n</ul>\n</section>")
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'
    head += f"<style>{_STYLE}</style>"
    foot = f"<p>{html.escape(note)}</p>\n" if note else ""
    main = "\n".join(parts)
    body = f"<h1>{_render_text(title)}</h1>\n<main>\n{main}\n</main>\n{foot}"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n'


def _render_text(text: str, ambiguous: frozenset[str] = frozenset()) -> str:
    """Escape a text; its direction does not affect what surrounds it, and invisible characters are shown as codes."""
    parts = (f"<code>{piece.text}</code>" if piece.is_code else html.escape(piece.text) for piece in split_codes(text, ambiguous))
    return f'<bdi dir="ltr">{"".join(parts)}</bdi>'


def _render_tile(tile: Tile, ambiguous: frozenset[str], rule: ImageRule) -> str:
    thumbnail = _read_thumbnail(tile.path, rule)
    if thumbnail is None:
        content = '<span class="none">unreadable</span>'
    else:
        stream = io.BytesIO()
        thumbnail.save(stream, "JPEG", quality=_QUALITY)
        source = base64.b64encode(stream.getvalue()).decode()
        link = html.escape(Path(tile.path).absolute().as_uri())
        content = f'<a href="{link}"><img src="data:image/jpeg;base64,{source}" alt="{html.escape(tile.name)}"></a>'
    # Shown when the pointer rests on the name, for a browser without the font.
    codes = "" if tile.name.isascii() else f' title="{html.escape(ascii(tile.name)[1:-1])}"'
    details = "".join(f"<small>{_render_text(text, ambiguous)}</small>" for text in tile.details)
    return (
        f"<li>{content}<strong>{html.escape(tile.caption)}</strong><small{codes}>{_render_text(tile.name, ambiguous)}</small>{details}</li>"
    )
