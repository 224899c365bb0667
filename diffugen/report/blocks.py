"""What a report is made of: sections of blocks, and numbers written the same way in every form of it.

Knows no run and no HTML: `report_html` and `report_markdown` write the same blocks in their own way.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

NOTHING = "-"
"""Stands for what was not or cannot be measured."""

_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True)
class Code:
    """Words set as code: a command, a key, a path."""

    text: str


@dataclass(frozen=True)
class Bar:
    """A table cell with a bar behind its text; ``frac`` in [0, 1]."""

    text: str
    frac: float


Inline = str | Code
Cell = str | Code | Bar


@dataclass(frozen=True)
class Paragraph:
    """Words, some of them as code; ``tone`` is ``plain``, ``lead`` (the sentence to read first) or ``note``
    (small).
    """

    parts: tuple[Inline, ...]
    tone: str = "plain"


@dataclass(frozen=True)
class Missing:
    """Says what a run does not have yet, and the command that makes it."""

    what: str
    command: str


@dataclass(frozen=True)
class Tiles:
    """Numbers to see first: label, value, and a line of detail each."""

    tiles: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Table:
    """A titled table; ``folded`` shows it on demand, for numbers behind a chart."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    folded: bool = False


@dataclass(frozen=True)
class Chart:
    """A drawn chart; `report_charts` makes them. Its numbers stand in a table beside it.

    Attributes:
        title: Its title.
        description: The same in words, for those who do not see it.
        svg: An ``<svg>`` element that takes its colours from the page.
        legend: Swatch (an ``<svg>`` element) and name of each series; empty where one series needs no name.
    """

    title: str
    description: str
    svg: str
    legend: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Picture:
    """One picture of a shown image: what it shows, a JPEG (None where a file of the run is missing), and its
    text alternative.
    """

    label: str
    jpeg: bytes | None
    alt: str


@dataclass(frozen=True)
class Shown:
    """One image of the gallery.

    Attributes:
        title: Prompt.
        lines: Captions: scores, kind of disagreement.
        pictures: Image, heat map, attention label, model label.
        strip_png: The same pictures side by side, for pages that cannot hold pictures themselves.
    """

    title: str
    lines: tuple[str, ...]
    pictures: tuple[Picture, ...]
    strip_png: bytes


@dataclass(frozen=True)
class Gallery:
    """Images with their labels."""

    title: str
    about: str
    shown: tuple[Shown, ...]


@dataclass(frozen=True)
class Details:
    """Long text that opens on demand."""

    summary: str
    text: str


Block = Paragraph | Missing | Tiles | Table | Chart | Gallery | Details


@dataclass(frozen=True)
class Section:
    """A part of the page; ``key`` names its anchor."""

    key: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Page:
    """A whole report; ``subtitle`` stands under the title."""

    title: str
    subtitle: tuple[Inline, ...]
    sections: tuple[Section, ...]


def printable(text: str) -> str:
    """Replace what no page can hold: control characters, and halves of characters that JSON lets through."""
    return _UNPRINTABLE.sub("\ufffd", text)


def number(value: Any) -> float | None:
    """Return a JSON value as a number; None for what is no finite number."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None


def as_rate(value: Any, signed: bool = False) -> str:
    """Write a number such as an AP, an IoU or a score: three decimals."""
    known = number(value)
    return NOTHING if known is None else f"{known:+.3f}" if signed else f"{known:.3f}"


def as_count(value: Any) -> str:
    """Write a whole number, thousands apart."""
    known = number(value)
    return NOTHING if known is None else f"{known:,.0f}"


def as_percent(part: float | None, whole: float | None = 1.0) -> str:
    """Write a share; ``-`` for a share of nothing."""
    return NOTHING if part is None or not whole else f"{100 * part / whole:.0f}%"


def as_seconds(value: Any) -> str:
    """Write a duration with about three digits, in the unit that suits it."""
    known = number(value)
    if known is None:
        return NOTHING
    for unit, size, least in (("h", 3600, 5400), ("min", 60, 90), ("s", 1, 0.1)):
        if known >= least:
            amount = known / size
            return f"{amount:.0f} {unit}" if amount >= 99.5 else f"{amount:.3g} {unit}"
    return f"{known * 1000:.3g} ms"


def as_value(value: Any) -> str:
    """Write a setting as it stands in a configuration, numbers with four digits at most."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {as_value(one)}" for key, one in value.items()) or NOTHING
    if isinstance(value, (list, tuple)):
        return ", ".join(map(as_value, value)) or NOTHING
    return NOTHING if value is None else str(value)


def listed(words: Sequence[str]) -> str:
    """Join words as in a sentence: ``a, b and c``."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def counted(count: int, noun: str) -> str:
    """Return ``1 image``, ``2 images``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
