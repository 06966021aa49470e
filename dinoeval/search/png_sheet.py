"""Contact sheets as one PNG image. A tile is a thumbnail over a caption, a name and details, each on as many lines as it needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from dinoeval.display import find_ambiguous
from dinoeval.search.labels import Lettering, Line

if TYPE_CHECKING:
    from dinoeval.search.sheet import Section, Tile

ReadThumbnail = Callable[[str], Image.Image | None]
_GAP, _LINE = 12, 18  # pixels: space between tiles, height of a text line
_COLUMNS = 8  # tiles per line
_LINE_COLOR, _MAT_COLOR, _PAPER_COLOR = (225, 225, 225), (240, 240, 240), (255, 255, 255)
_TEXT_COLOR, _FAINT_TEXT_COLOR = (20, 20, 20), (110, 110, 110)
_SIZE, _TITLE_SIZE = 11, 15  # of letters, in pixels


def draw_sheet(title: str, note: str, sections: Sequence[Section], read_thumbnail: ReadThumbnail, side: int) -> Image.Image:
    """Draw sections next to each other if they fit.

    Each section is a heading over lines of up to 8 tiles.

    Args:
        title: Title of the sheet.
        note: Text below the sections; may be empty.
        sections: What to show.
        read_thumbnail: Returns the thumbnail of a path, at most `side` x `side` pixels; None if the file is not readable.
        side: Side of the square of a thumbnail, in pixels.

    Returns:
        The sheet, RGB.
    """
    return _Drawing(title, note, sections, read_thumbnail, side).draw()


class _Drawing:
    def __init__(self, title: str, note: str, sections: Sequence[Section], read_thumbnail: ReadThumbnail, side: int) -> None:
        self.sections, self.read_thumbnail, self.side, self.cell = sections, read_thumbnail, side, side + _GAP
        tiles = [tile for section in sections for tile in section.tiles]
        ambiguous = find_ambiguous({tile.name for tile in tiles})
        texts = [note, "unreadable", *(section.heading for section in sections)]
        texts += [text for tile in tiles for text in (tile.caption, tile.name, *tile.details)]
        self.lettering = Lettering(texts, _SIZE, ambiguous)
        self.title = Lettering([title], _TITLE_SIZE).wrap(title, _COLUMNS * self.cell - _GAP, max_lines=1)
        self.note = self.lettering.wrap(note, _COLUMNS * self.cell)
        self.places = _lay_out(sections)

    def draw(self) -> Image.Image:
        """Draw the sheet."""
        blocks = [[self._text_lines(tile) for tile in section.tiles] for section in self.sections]
        heights = self._line_heights(blocks)  # of each line of tiles, per row of sections
        tops = [3 * _LINE]
        for lines in heights:
            tops.append(tops[-1] + 2 * _LINE + sum(lines))
        sheet = Image.new("RGB", (_COLUMNS * self.cell + _GAP, tops[-1] + 2 * _LINE * len(self.note)), _PAPER_COLOR)
        draw = ImageDraw.Draw(sheet)
        for line in self.title:
            self.lettering.draw(draw, (_GAP, _LINE), line, _TEXT_COLOR)
        for number, (section, (column, row)) in enumerate(zip(self.sections, self.places, strict=True)):
            left, width = _GAP + column * self.cell, _num_columns(section) * self.cell - _GAP
            is_last_of_row = number + 1 == len(self.sections) or self.places[number + 1][1] > row
            draw.line((left, tops[row], sheet.width - _GAP if is_last_of_row else left + width, tops[row]), _LINE_COLOR)
            for line in self.lettering.wrap(section.heading, width, max_lines=1):
                self.lettering.draw(draw, (left, tops[row] + _LINE // 2), line, _TEXT_COLOR)
            for position, tile in enumerate(section.tiles):
                top = tops[row] + 2 * _LINE + sum(heights[row][: position // _COLUMNS])
                corner = left + position % _COLUMNS * self.cell, top
                self._draw_tile(sheet, draw, tile, corner, blocks[number][position])
        for number, line in enumerate(self.note):
            self.lettering.draw(draw, (_GAP, tops[-1] + _LINE // 2 + number * _LINE), line, _FAINT_TEXT_COLOR)
        return sheet

    def _text_lines(self, tile: Tile) -> list[Line]:
        """The lines below a thumbnail; the first is the caption."""
        lines = self.lettering.wrap(tile.caption, self.side, max_lines=1) or [[]]
        for text in (tile.name, *tile.details):
            lines += self.lettering.wrap(text, self.side)
        return lines

    def _line_heights(self, blocks: list[list[list[Line]]]) -> list[list[int]]:
        most: list[list[int]] = []  # text lines
        for (_, row), block in zip(self.places, blocks, strict=True):
            if row == len(most):
                most.append([])
            for line, start in enumerate(range(0, len(block), _COLUMNS)):
                if line == len(most[row]):
                    most[row].append(0)
                most[row][line] = max(most[row][line], *map(len, block[start : start + _COLUMNS]))
        return [[self.side + _LINE * count + _GAP for count in lines] for lines in most]

    def _draw_tile(self, sheet: Image.Image, draw: ImageDraw.ImageDraw, tile: Tile, corner: tuple[int, int], lines: list[Line]) -> None:
        left, top = corner
        thumbnail = self.read_thumbnail(tile.path)
        draw.rectangle((left, top, left + self.side - 1, top + self.side - 1), _MAT_COLOR)
        if thumbnail is None:
            (line,) = self.lettering.wrap("unreadable", self.side)
            self.lettering.draw(draw, (left + 8, top + self.side // 2 - 8), line, _FAINT_TEXT_COLOR)
        else:
            sheet.paste(thumbnail, (left + (self.side - thumbnail.width) // 2, top + (self.side - thumbnail.height) // 2))
        for number, line in enumerate(lines):
            color = _FAINT_TEXT_COLOR if number else _TEXT_COLOR
            self.lettering.draw(draw, (left, top + self.side + 2 + number * _LINE), line, color)


def _num_columns(section: Section) -> int:
    return min(_COLUMNS, max(2, len(section.tiles)))


def _lay_out(sections: Sequence[Section]) -> list[tuple[int, int]]:
    """Column and row of each section, in order."""
    places: list[tuple[int, int]] = []
    column, row = _COLUMNS, -1
    for section in sections:
        if column + _num_columns(section) > _COLUMNS:
            column, row = 0, row + 1
        places.append((column, row))
        column += _num_columns(section)
    return places
