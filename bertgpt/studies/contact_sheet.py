"""Contact sheets: pictures in a grid with what was predicted for them, as one PNG."""

import functools
import logging
import unicodedata
import warnings
from collections.abc import Iterator
from typing import NamedTuple

from bertgpt.studies.plots import GREY, figure_type, png
from bertgpt.types import Sheet

log = logging.getLogger(__name__)

COLUMNS = 6
CELL = 1.9  # inches that a picture is wide
LINE = 0.145  # inches that a line of a caption is high
WIDTH = 30  # columns of text that fit under a picture; a Chinese character takes two
LINES = 6  # of a caption at most
UPRIGHT = ("Regular", "Book", "Roman", "Normal", "Medium")  # styles of fonts, as their files name them
GREEN, RED = "#2a7f3f", "#c0392b"
MARKS = {True: ("✓ ", GREEN), False: ("✗ ", RED), None: ("", GREY)}


def draw_sheet(sheet: Sheet) -> bytes:
    """The pictures of a sheet as a PNG, each above its caption.

    A frame and a mark, ✓ green or ✗ red, tell right predictions from wrong ones. Small pictures are enlarged without
    smoothing. A caption is wrapped, and cut after `LINES` lines.

    Raises:
      UserError: matplotlib is missing.
    """
    figure_class = figure_type()
    correct = sheet.correct or (None,) * len(sheet.images)
    captions = [wrap(MARKS[right][0] + caption) for caption, right in zip(sheet.captions, correct, strict=True)]
    columns = min(COLUMNS, len(sheet.images))
    rows = -(-len(sheet.images) // columns)
    tallest = max(image.shape[0] / image.shape[1] for image in sheet.images)
    picture, text = CELL * min(tallest, 1.5), 0.12 + LINE * max(map(len, captions))
    height = rows * (picture + text + 0.12)
    figure = figure_class(figsize=(columns * (CELL + 0.12), height), dpi=130)
    fonts = fonts_for("".join(sheet.captions))
    for number, (image, lines, right) in enumerate(zip(sheet.images, captions, correct, strict=True)):
        row, column = divmod(number, columns)
        top = 1.0 - (row * (picture + text + 0.12) + 0.06) / height
        left, width = (column + 0.03) / columns, 0.94 / columns
        axis = figure.add_axes((left, top - picture / height, width, picture / height))
        small = max(image.shape[:2]) < 200
        axis.imshow(image, interpolation="nearest" if small else "antialiased")
        axis.set(xticks=[], yticks=[], anchor="S")
        color = MARKS[right][1]
        for spine in axis.spines.values():
            spine.set(color=color, linewidth=1.0 if right is None else 2.5)
        # parse_math=False: a dollar sign of a caption is no formula.
        figure.text(
            left,
            top - (picture + 0.06) / height,
            "\n".join(lines),
            fontsize=7.5,
            family=fonts,
            va="top",
            linespacing=1.25,
            color="black" if right is None else color,
            parse_math=False,
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # `fonts_for` has counted them
        return png(figure)


def wrap(caption: str, width: int = WIDTH) -> list[str]:
    """The lines of a caption, each at most `width` columns wide; “…” stands for lines after the first `LINES`."""
    lines = [line for part in caption.split("\n") for line in _wrapped(part, width)]
    return lines if len(lines) <= LINES else [*lines[: LINES - 1], "…"]


def _wrapped(text: str, width: int) -> Iterator[str]:
    """Lines of one paragraph: broken at spaces, beside wide characters, or where a word is longer than a line."""
    line, used, last = "", 0, -1  # `last`: where the line may be broken
    for character in text:
        size = columns_of(character)
        if used + size > width:
            if last > 0:
                yield line[:last].rstrip()
                line = line[last:].lstrip()
            else:
                yield line
                line = ""
            used, last = sum(map(columns_of, line)), -1
        line += character
        used += size
        if character.isspace() or character == "-" or size == 2:
            last = len(line)
    yield line.rstrip()


def columns_of(character: str) -> int:
    """Columns that a character takes: 0, 1, or 2 as Chinese ones do."""
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def fonts_for(text: str) -> list[str]:
    """Font families for a text: matplotlib's own, and installed ones that have the characters that it lacks.

    A warning counts the characters that no installed font has; they are drawn as boxes.
    """
    from matplotlib import font_manager

    families = list(font_manager.FontProperties().get_family())
    default = _font(font_manager.findfont(font_manager.FontProperties()))
    missing = {ord(c) for c in text if not c.isspace()} - default.characters
    # Those of the system: a list that matplotlib keeps may be older than a font.
    fonts = [_font(file) for file in sorted(font_manager.findSystemFonts())] if missing else []
    fonts = [font for font in fonts if font.upright]
    while fonts:
        best = max(fonts, key=lambda font: len(missing & font.characters))  # the first of equally good ones
        if not missing & best.characters:
            break
        font_manager.fontManager.addfont(best.file)
        families.append(best.family)
        missing -= best.characters
    if missing:
        log.warning("no font has %d characters of the captions, such as %s", len(missing), chr(min(missing)))
    return families


class _Font(NamedTuple):
    file: str
    family: str = ""
    upright: bool = False
    """neither bold nor italic"""
    characters: frozenset[int] = frozenset()
    """code points that it has outlines for"""


@functools.cache
def _font(file: str) -> _Font:
    """What is in a font file; nothing if matplotlib cannot read it, as fonts of bitmaps."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(file)
        return _Font(file, font.family_name, font.style_name in UPRIGHT, frozenset(font.get_charmap()))
    except (OSError, RuntimeError):
        return _Font(file)
