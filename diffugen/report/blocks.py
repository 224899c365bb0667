"""The parts of a report: sections of blocks, and numbers formatted the same way in HTML and Markdown.

Knows no run and no HTML; `diffugen.report.html` and `diffugen.report.markdown` render the same blocks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

FEW = 30
"""Means and ratios over fewer images or objects are withheld, for they would be noise."""

NOTHING = "-"
"""Shown for a value that was not measured or is undefined."""

_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True)
class Code:
    """Text set as code: a command, a key, a path."""

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
    """Text with some code in it.

    Attributes:
        parts: Text and code, joined without spaces.
        tone: ``plain``, ``lead`` (large, to be read first), ``note`` (small) or ``warning``.
    """

    parts: tuple[Inline, ...]
    tone: str = "plain"


@dataclass(frozen=True)
class Missing:
    """A statement of what the run does not have yet, and how to get it.

    Attributes:
        what: A sentence without its period.
        next: The command to run next, or a phrase with it.
    """

    what: str
    next: tuple[Inline, ...]


@dataclass(frozen=True)
class Tile:
    """A number to see first, with a label above it and a line of detail below it."""

    label: str
    value: str
    detail: str


@dataclass(frozen=True)
class Tiles:
    """Tiles in a row; Markdown leaves them out, so a table must hold their numbers too."""

    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Table:
    """A titled table; ``folded`` hides it until it is opened, for the numbers behind a chart."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    folded: bool = False


@dataclass(frozen=True)
class Chart:
    """A chart of `diffugen.report.charts`; Markdown leaves it out, so a table must hold its numbers too.

    Attributes:
        title: Its title.
        description: Its values in words, for screen readers.
        svg: An ``<svg>`` element that takes its colours from the style sheet of the page.
        legend: Swatch (an ``<svg>`` element) and name of each series; empty for a single unnamed series.
    """

    title: str
    description: str
    svg: Markup
    legend: tuple[tuple[Markup, str], ...] = ()


@dataclass(frozen=True)
class Picture:
    """One picture of a gallery entry.

    Attributes:
        label: What it shows.
        jpeg: The encoded picture; None where a file of the run is missing.
        alt: Its text alternative.
    """

    label: str
    jpeg: bytes | None
    alt: str


@dataclass(frozen=True)
class Shown:
    """One image of a gallery.

    Attributes:
        title: Its prompt.
        lines: Captions: scores, kind of disagreement.
        pictures: Image, heat map, attention labels, model labels.
        strip_png: The same pictures side by side, for Markdown, which cannot embed them.
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
    """Long text that is hidden until it is opened."""

    summary: str
    text: str


Block = Paragraph | Missing | Tiles | Table | Chart | Gallery | Details


@dataclass(frozen=True)
class Section:
    """A section of the page; ``key`` is its anchor."""

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
    """Replace control characters and lone surrogates, which no page can hold."""
    return _UNPRINTABLE.sub("\ufffd", text)


def finite(value: float | None) -> float | None:
    """Return the number, or None for NaN and infinity."""
    return value if value is not None and math.isfinite(value) else None


def as_rate(value: float | None) -> str:
    """Format an AP, an IoU or a score with three decimals."""
    known = finite(value)
    return NOTHING if known is None else f"{known:.3f}"


def as_count(value: float | None) -> str:
    """Format a whole number with thousands separators."""
    known = finite(value)
    return NOTHING if known is None else f"{known:,.0f}"


def as_percent(part: float | None, whole: float | None = 1.0) -> str:
    """Format a share in percent; ``-`` for a share of nothing."""
    known, base = finite(part), finite(whole)
    return NOTHING if known is None or not base else f"{100 * known / base:.0f}%"


def as_seconds(value: float | None) -> str:
    """Format a duration with about three digits, in a suitable unit."""
    known = finite(value)
    if known is None:
        return NOTHING
    for unit, size, least in (("h", 3600, 5400), ("min", 60, 90), ("s", 1, 0.1)):
        if known >= least:
            amount = known / size
            return f"{amount:.0f} {unit}" if amount >= 99.5 else f"{amount:.3g} {unit}"
    return f"{known * 1000:.3g} ms"


def as_value(value: object) -> str:
    """Format a setting as in a configuration file, with at most four digits."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {as_value(one)}" for key, one in value.items()) or NOTHING
    if isinstance(value, (list, tuple)):
        return ", ".join(map(as_value, value)) or NOTHING
    return NOTHING if value is None else str(value)


def listed(words: Sequence[str]) -> str:
    """Join words as in a sentence: ``a, b and c``."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
