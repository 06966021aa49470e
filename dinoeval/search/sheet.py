"""Contact sheets: rows of thumbnails that people look at, as one HTML page or one PNG picture."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from dinoeval.errors import ConfigError
from dinoeval.files import check_writable, expand, write_whole

_THUMB, _GAP, _LINE, _ACROSS = 160, 12, 18, 8  # pixels; tiles a line of a PNG
_MOST_TILES = {".html": 5_000, ".png": 600}  # beyond, nobody looks, and pages and pictures no longer open
_QUALITY = 85
_GREY, _MAT, _INK, _FAINT, _PAPER = (225, 225, 225), (240, 240, 240), (20, 20, 20), (110, 110, 110), (255, 255, 255)


@dataclasses.dataclass(frozen=True)
class Tile:
    """One thumbnail with the words below it."""

    path: str
    name: str
    caption: str


@dataclasses.dataclass(frozen=True)
class Section:
    """Thumbnails that belong together, under one heading."""

    heading: str
    tiles: Sequence[Tile]


def check_sheet(path: str | Path) -> None:
    """Find out before the work whether a sheet can be written there. Raises a DinoevalError."""
    if expand(path).suffix.lower() not in _MOST_TILES:
        raise ConfigError(f"sheet {path}: the name must end in .html or .png")
    check_writable(path)


def write_sheet(path: str | Path, title: str, strips: Sequence[Section]) -> None:
    """Write strips of thumbnails to a .html page, which holds all it shows, or to a .png picture.

    Of very many tiles the first are shown, and the sheet says how many groups it leaves out. Raises a DinoevalError.
    """
    check_sheet(path)
    ending = expand(path).suffix.lower()
    shown, left = [], _MOST_TILES[ending]
    for strip in strips:
        if not left:
            break
        shown.append(Section(strip.heading, strip.tiles[:left]))
        left -= len(shown[-1].tiles)
    cut = len(shown) < len(strips) or any(len(one.tiles) < len(whole.tiles) for one, whole in zip(shown, strips, strict=False))
    note = f"Only the first {_MOST_TILES[ending]:,} images are shown." if cut else ""
    if ending == ".html":
        page = _page(title, note, shown)
        write_whole(path, lambda target: target.write_text(page, encoding="utf-8", errors="backslashreplace"))
    else:
        picture = _picture(title, note, shown)
        write_whole(path, lambda target: picture.save(target, "PNG"))


def _thumbnail(path: str) -> Image.Image | None:
    """The picture within _THUMB x _THUMB pixels, upright; small ones enlarged by a whole number; None where it cannot be read."""
    try:
        with Image.open(path) as file:
            file.draft("RGB", (2 * _THUMB, 2 * _THUMB))
            picture = ImageOps.exif_transpose(file)
            assert picture is not None
            if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
                paper = Image.new("RGBA", picture.size, "white")
                picture = Image.alpha_composite(paper, picture.convert("RGBA"))
            picture = picture.convert("RGB")
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError):
        return None
    factor = _THUMB // max(picture.size)
    if factor > 1:
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    picture.thumbnail((_THUMB, _THUMB), Image.Resampling.LANCZOS)
    return picture


_STYLE = f"""
:root {{ color-scheme: light dark; }}
body {{ font: 14px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 1500px; padding: 0 1rem; }}
h1 {{ font-size: 1.3rem; overflow-wrap: anywhere; }}
h2 {{ font-size: 1rem; margin: 0 0 .6rem; overflow-wrap: anywhere; }}
main {{ display: flex; flex-wrap: wrap; gap: 1.2rem; }}
section {{ border-top: 1px solid #8886; padding: .8rem 0; min-width: min(100%, {2 * _THUMB + 16}px); }}
ul {{ display: flex; flex-wrap: wrap; gap: 1rem; list-style: none; margin: 0; padding: 0; }}
li {{ width: {_THUMB}px; }}
li a, li span.none {{ display: flex; align-items: center; justify-content: center; height: {_THUMB}px; background: #8882; }}
li strong {{ display: block; margin-top: .3rem; }}
li small {{ display: block; overflow-wrap: anywhere; opacity: .75; }}
"""


def _page(title: str, note: str, strips: Sequence[Section]) -> str:
    sections = []
    for strip in strips:
        tiles = "\n".join(_tile(tile) for tile in strip.tiles)
        sections.append(f"<section>\n<h2>{html.escape(strip.heading)}</h2>\n<ul>\n{tiles}\n</ul>\n</section>")
    foot = f"<p>{html.escape(note)}</p>\n" if note else ""
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'
    body = "\n".join(sections)
    head += f"<style>{_STYLE}</style>"
    body = f"<h1>{html.escape(title)}</h1>\n<main>\n{body}\n</main>\n{foot}"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n'


def _tile(tile: Tile) -> str:
    picture = _thumbnail(tile.path)
    name = html.escape(tile.name)
    if picture is None:
        shown = '<span class="none">cannot be read</span>'
    else:
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=_QUALITY)
        source = base64.b64encode(stream.getvalue()).decode()
        link = html.escape(Path(tile.path).absolute().as_uri())
        shown = f'<a href="{link}"><img src="data:image/jpeg;base64,{source}" alt="{name}"></a>'
    return f"<li>{shown}<strong>{html.escape(tile.caption)}</strong><small>{name}</small></li>"


def _picture(title: str, note: str, strips: Sequence[Section]) -> Image.Image:
    """Strips side by side where they fit, each a heading over lines of up to _ACROSS tiles."""
    font, bold = ImageFont.load_default(12), ImageFont.load_default(15)
    placed, lines = _laid_out(strips)
    cell, line_height = _THUMB + _GAP, _THUMB + 2 * _LINE + _GAP
    top = 3 * _LINE
    tops = [top + 2 * _LINE * shelf + line_height * sum(lines[:shelf]) for shelf in range(len(lines) + 1)]
    sheet = Image.new("RGB", (_ACROSS * cell + _GAP, tops[-1] + 2 * _LINE * bool(note)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, _LINE), _fitting(title, bold, _ACROSS * cell - _GAP), _INK, bold)
    for order, (strip, (column, shelf)) in enumerate(zip(strips, placed, strict=True)):
        left, top, width = _GAP + column * cell, tops[shelf], _width(strip) * cell - _GAP
        last = order + 1 == len(strips) or placed[order + 1][1] > shelf
        draw.line((left, top, sheet.width - _GAP if last else left + width, top), _GREY)
        draw.text((left, top + _LINE // 2), _fitting(strip.heading, font, width), _INK, font)
        for number, tile in enumerate(strip.tiles):
            corner = left + number % _ACROSS * cell, top + 2 * _LINE + number // _ACROSS * line_height
            _draw_tile(sheet, draw, tile, corner, font)
    draw.text((_GAP, tops[-1] + _LINE // 2), note, _FAINT, font)
    return sheet


def _width(strip: Section) -> int:
    return min(_ACROSS, max(2, len(strip.tiles)))


def _laid_out(strips: Sequence[Section]) -> tuple[list[tuple[int, int]], list[int]]:
    """Column and shelf of each strip, in order, and how many lines of tiles each shelf has."""
    placed: list[tuple[int, int]] = []
    lines: list[int] = []
    column = _ACROSS
    for strip in strips:
        if column + _width(strip) > _ACROSS:
            column = 0
            lines.append(0)
        placed.append((column, len(lines) - 1))
        column += _width(strip)
        lines[-1] = max(lines[-1], -(-len(strip.tiles) // _ACROSS))
    return placed, lines


def _draw_tile(sheet: Image.Image, draw: ImageDraw.ImageDraw, tile: Tile, corner: tuple[int, int], font) -> None:
    left, top = corner
    picture = _thumbnail(tile.path)
    draw.rectangle((left, top, left + _THUMB - 1, top + _THUMB - 1), _MAT)
    if picture is None:
        draw.text((left + 8, top + _THUMB // 2 - 8), "cannot be read", _FAINT, font)
    else:
        sheet.paste(picture, (left + (_THUMB - picture.width) // 2, top + (_THUMB - picture.height) // 2))
    draw.text((left, top + _THUMB + 2), _fitting(tile.caption, font, _THUMB), _INK, font)
    draw.text((left, top + _THUMB + 2 + _LINE), _fitting(tile.name, font, _THUMB), _FAINT, font)


def _fitting(text: str, font, width: int) -> str:
    """Cut a text at its beginning until it is no wider than this: paths differ at their ends."""
    text = text.encode("utf-8", "replace").decode()
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"…{text}") > width:
        text = text[max(1, len(text) // 16) :]
    return f"…{text}"
