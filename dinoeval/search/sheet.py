"""Contact sheets: sections of thumbnails, as one HTML page or one PNG image."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from dinoeval.data.loading import DEFAULT_RULE, ImageRule, read_file
from dinoeval.errors import BadImage, ConfigError
from dinoeval.files import check_writable, expand, write_whole

_THUMBNAIL, _GAP, _LINE = 160, 12, 18  # pixels: side of a thumbnail, space between tiles, height of a text line
_COLUMNS = 8  # tiles per line of a PNG
_MAX_TILES = {".html": 5_000, ".png": 600}  # browsers and image viewers fail on much larger sheets
_QUALITY = 85  # of JPEG
_LINE_COLOR, _MAT_COLOR, _PAPER_COLOR = (225, 225, 225), (240, 240, 240), (255, 255, 255)
_TEXT_COLOR, _FAINT_TEXT_COLOR = (20, 20, 20), (110, 110, 110)


@dataclasses.dataclass(frozen=True)
class Tile:
    """One thumbnail with two lines of text."""

    path: str
    """Path of the image."""
    name: str
    """Name below the caption."""
    caption: str
    """Text below the thumbnail, such as a cosine."""


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
        image = _draw_sheet(title, note, shown, rule)
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
"""


def _render_page(title: str, note: str, sections: Sequence[Section], rule: ImageRule) -> str:
    parts = []
    for section in sections:
        tiles = "\n".join(_render_tile(tile, rule) for tile in section.tiles)
        parts.append(f"<section>\n<h2>{html.escape(section.heading)}</h2>\n<ul>\n{tiles}\n</ul>\n</section>")
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'
    head += f"<style>{_STYLE}</style>"
    foot = f"<p>{html.escape(note)}</p>\n" if note else ""
    main = "\n".join(parts)
    body = f"<h1>{html.escape(title)}</h1>\n<main>\n{main}\n</main>\n{foot}"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n'


def _render_tile(tile: Tile, rule: ImageRule) -> str:
    thumbnail = _read_thumbnail(tile.path, rule)
    name = html.escape(tile.name)
    if thumbnail is None:
        content = '<span class="none">unreadable</span>'
    else:
        stream = io.BytesIO()
        thumbnail.save(stream, "JPEG", quality=_QUALITY)
        source = base64.b64encode(stream.getvalue()).decode()
        link = html.escape(Path(tile.path).absolute().as_uri())
        content = f'<a href="{link}"><img src="data:image/jpeg;base64,{source}" alt="{name}"></a>'
    return f"<li>{content}<strong>{html.escape(tile.caption)}</strong><small>{name}</small></li>"


def _draw_sheet(title: str, note: str, sections: Sequence[Section], rule: ImageRule) -> Image.Image:
    """Draw sections next to each other if they fit; each is a heading over lines of up to _COLUMNS tiles."""
    font, title_font = ImageFont.load_default(12), ImageFont.load_default(15)
    places, lines = _lay_out(sections)
    cell, line_height = _THUMBNAIL + _GAP, _THUMBNAIL + 2 * _LINE + _GAP
    tops = [3 * _LINE + 2 * _LINE * row + line_height * sum(lines[:row]) for row in range(len(lines) + 1)]
    sheet = Image.new("RGB", (_COLUMNS * cell + _GAP, tops[-1] + 2 * _LINE * bool(note)), _PAPER_COLOR)
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, _LINE), _fit_text(title, title_font, _COLUMNS * cell - _GAP), _TEXT_COLOR, title_font)
    for number, (section, (column, row)) in enumerate(zip(sections, places, strict=True)):
        left, top, width = _GAP + column * cell, tops[row], _num_columns(section) * cell - _GAP
        is_last_of_row = number + 1 == len(sections) or places[number + 1][1] > row
        draw.line((left, top, sheet.width - _GAP if is_last_of_row else left + width, top), _LINE_COLOR)
        draw.text((left, top + _LINE // 2), _fit_text(section.heading, font, width), _TEXT_COLOR, font)
        for position, tile in enumerate(section.tiles):
            corner = left + position % _COLUMNS * cell, top + 2 * _LINE + position // _COLUMNS * line_height
            _draw_tile(sheet, tile, _read_thumbnail(tile.path, rule), corner, font)
    draw.text((_GAP, tops[-1] + _LINE // 2), note, _FAINT_TEXT_COLOR, font)
    return sheet


def _num_columns(section: Section) -> int:
    return min(_COLUMNS, max(2, len(section.tiles)))


def _lay_out(sections: Sequence[Section]) -> tuple[list[tuple[int, int]], list[int]]:
    """Column and row of each section, in order, and the number of tile lines of each row."""
    places: list[tuple[int, int]] = []
    lines: list[int] = []
    column = _COLUMNS
    for section in sections:
        if column + _num_columns(section) > _COLUMNS:
            column = 0
            lines.append(0)
        places.append((column, len(lines) - 1))
        column += _num_columns(section)
        lines[-1] = max(lines[-1], -(-len(section.tiles) // _COLUMNS))
    return places, lines


def _draw_tile(sheet: Image.Image, tile: Tile, thumbnail: Image.Image | None, corner: tuple[int, int], font) -> None:
    draw, (left, top) = ImageDraw.Draw(sheet), corner
    draw.rectangle((left, top, left + _THUMBNAIL - 1, top + _THUMBNAIL - 1), _MAT_COLOR)
    if thumbnail is None:
        draw.text((left + 8, top + _THUMBNAIL // 2 - 8), "unreadable", _FAINT_TEXT_COLOR, font)
    else:
        sheet.paste(thumbnail, (left + (_THUMBNAIL - thumbnail.width) // 2, top + (_THUMBNAIL - thumbnail.height) // 2))
    draw.text((left, top + _THUMBNAIL + 2), _fit_text(tile.caption, font, _THUMBNAIL), _TEXT_COLOR, font)
    draw.text((left, top + _THUMBNAIL + 2 + _LINE), _fit_text(tile.name, font, _THUMBNAIL), _FAINT_TEXT_COLOR, font)


def _fit_text(text: str, font, width: int) -> str:
    """Cut the beginning of a text that is wider than `width` pixels, because paths differ at their ends."""
    text = text.encode("utf-8", "replace").decode()
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"…{text}") > width:
        text = text[max(1, len(text) // 16) :]
    return f"…{text}"
