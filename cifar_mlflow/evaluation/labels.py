"""Class names in figures: any name becomes text that matplotlib can draw, in the fonts that are installed.

matplotlib's own font lacks emoji and most scripts of Asia, and replaces missing characters by boxes, with a
warning for each.
"""

import unicodedata
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

from cifar_mlflow.names import printable

FAMILY = "DejaVu Sans"  # comes with matplotlib
MAX_LENGTH = 60


def label(name: str, limit: int = MAX_LENGTH) -> str:
    r"""Return `name` as a single line of at most `limit` characters that can all be drawn.

    A symbol that no font has is replaced by its name (`[dog face]`), any other such character, and a control
    character, by its escape (`\n`, `\u732b`). A long name loses its middle.
    """
    text = "".join(_drawable(char) for char in printable(name))
    if len(text) <= limit:
        return text
    head = 2 * limit // 3
    return f"{text[:head]}…{text[head + 1 - limit :]}"


def text_style(texts: Iterable[str]) -> dict[str, Any]:
    """Return the text properties for these labels: the fonts that they need, and no formula after a `$`."""
    families = {_family_with(char) for char in set("".join(texts)) if not char.isascii()}
    others = sorted(family for family in families if family not in (None, FAMILY))
    return {"fontfamily": [FAMILY, *others], "parse_math": False}


def _drawable(char: str) -> str:
    category = unicodedata.category(char)
    if category == "Cf":  # joins emoji or changes the direction of text: nothing to see
        return ""
    if char.isprintable() and _family_with(char):
        return char
    if category == "So":
        return f"[{unicodedata.name(char).lower()}]"
    return char.encode("unicode_escape").decode()


@cache
def _family_with(char: str) -> str | None:
    """Return the family of an installed font that can draw a character."""
    for family, path in _fonts():
        if ord(char) in _characters(path):
            return family
    return None


@cache
def _fonts() -> list[tuple[str, str]]:
    """Return family and file of the upright fonts; matplotlib's others are for formulas or draw boxes."""
    fonts = font_manager.fontManager.ttflist
    own = Path(matplotlib.get_data_path())
    regular = {
        (font.name, font.fname)
        for font in fonts
        if font.style == "normal" and font.weight in (400, "normal", "regular")
    }
    found = sorted(font for font in regular if own not in Path(font[1]).parents)
    return [(FAMILY, str(own / "fonts/ttf/DejaVuSans.ttf")), *found]


@cache
def _characters(path: str) -> frozenset[int]:
    try:
        font = FT2Font(path)
        # Bitmap fonts, such as those of coloured emoji, have no outlines to draw.
        return frozenset(font.get_charmap()) if font.scalable else frozenset()
    except (OSError, RuntimeError):  # damaged, or removed since matplotlib listed it
        return frozenset()
