"""Charts as inline SVG: lines and bars, drawn by hand and coloured by the page.

Series differ in colour, in marker and in dash, so that no reader depends on one of them. Colours are classes
that the page's style sheet fills in (``c0``, ``c1`` ...), so that a chart suits a light page, a dark one and
paper. Knows no run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from diffugen.report.blocks import Chart, as_rate

WIDTH = 460
COLOURS = 4
_LEFT, _RIGHT, _TOP, _BOTTOM, _PLOT_HEIGHT = 50, 18, 18, 44, 215
_CHARACTER_PX = 6.6
_MARKERS = ("circle", "square", "diamond", "triangle")
_MOST_VALUES_SHOWN = 8

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """A series of points; ``plain`` draws it thin and without markers, as a thing to compare with."""

    name: str
    points: tuple[Point, ...]
    plain: bool = False


@dataclass(frozen=True)
class Bars:
    """A series of bars, one value for each group; None draws nothing."""

    name: str
    values: tuple[float | None, ...]


def line_chart(
    title: str,
    *,
    x_label: str,
    y_label: str,
    x_ticks: Sequence[tuple[float, str]],
    lines: Sequence[Line],
    levels: Sequence[tuple[str, float]] = (),
    y_top: float | None = None,
    inset_px: float = 0.0,
    with_values: bool = False,
    written: Callable[[float], str] = as_rate,
) -> Chart:
    """Draw lines over a common axis that begins at 0.

    Args:
        title: Title of the chart.
        x_label: What the horizontal axis is.
        y_label: What the vertical axis is.
        x_ticks: Place and name of each tick; the first and the last bound the axis.
        lines: The series.
        levels: Name and height of horizontal lines to compare with.
        y_top: Upper end of the vertical axis; None for a round number above everything.
        inset_px: Room at both ends of the horizontal axis.
        with_values: Whether the values of the first series stand beside its points, where they are few.
        written: How to write a value.
    """
    heights = [y for line in lines for _, y in line.points] + [level for _, level in levels]
    ticks = _ticks(y_top or max(heights, default=1.0) * 1.08 or 1.0)
    top = y_top or ticks[-1]
    first, last = x_ticks[0][0], x_ticks[-1][0]
    span = (last - first) or 1.0
    middle = 0.0 if len(x_ticks) > 1 else 0.5

    def at(x: float, y: float) -> Point:
        width = WIDTH - _LEFT - _RIGHT - 2 * inset_px
        return _LEFT + inset_px + width * ((x - first) / span + middle), _TOP + _PLOT_HEIGHT * (
            1 - min(y, top) / top
        )

    floor = _TOP + _PLOT_HEIGHT
    parts = [_grid(tick, at(first, tick)[1]) for tick in ticks if tick <= top]
    parts += [_words(at(x, 0)[0], floor + 16, name, "middle") for x, name in x_ticks]
    parts += [_words((WIDTH + _LEFT - _RIGHT) / 2, floor + 35, x_label, "middle", "axis")]
    for index, (name, height) in enumerate(levels):
        y = at(first, height)[1]
        parts.append(
            f'<path class="level c{len(lines) + index} d{index}" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/>'
        )
        parts.append(_words(WIDTH - _RIGHT - 2, y - 5, f"{name} {written(height)}", "end", "halo"))
    for index, line in enumerate(lines):
        places = [at(x, y) for x, y in line.points]
        parts.append(_drawn(line, index, places))
        if with_values and index == 0 and len(places) <= _MOST_VALUES_SHOWN:
            pairs = zip(places, line.points, strict=True)
            parts += [
                _words(x, y - 10, written(value), "middle", "halo value") for (x, y), (_, value) in pairs
            ]
    said = [f"{line.name}: {_listed_points(line, x_ticks, written)}" for line in lines if not line.plain]
    said += [f"{name}: {written(height)}" for name, height in levels]
    legend = [(_line_swatch(index, line.plain), line.name) for index, line in enumerate(lines)]
    legend += [(_level_swatch(len(lines) + index, index), name) for index, (name, _) in enumerate(levels)]
    return _chart(
        title, f"{y_label} over {x_label}. {'; '.join(said)}.", y_label, parts, floor + _BOTTOM, legend
    )


def bar_chart(
    title: str,
    *,
    x_label: str,
    groups: Sequence[str],
    bars: Sequence[Bars],
    stacked: bool = False,
    written: Callable[[float], str] = as_rate,
) -> Chart:
    """Draw horizontal bars: one row for each group, its series stacked or one below the other.

    Args:
        title: Title of the chart.
        x_label: What the length of a bar is.
        groups: Names of the rows.
        bars: The series, each with a value for each group.
        stacked: Whether series add up.
        written: How to write a value.
    """
    sums = [sum(one.values[row] or 0.0 for one in bars) for row in range(len(groups))]
    longest = max(
        [*sums, 0.0] if stacked else [value or 0.0 for one in bars for value in one.values], default=0.0
    )
    ticks = _ticks(longest or 1.0)
    left = min(150.0, 14 + _CHARACTER_PX * max((len(name) for name in groups), default=0))
    right = 14 + _CHARACTER_PX * max(len(written(longest)), 3)
    scale = (WIDTH - left - right) / max(ticks[-1], longest)
    thick = 22.0 if stacked or len(bars) == 1 else 15.0
    pitch = (thick if stacked else thick * len(bars)) + 11
    floor = _TOP + pitch * len(groups)
    parts = [
        f'<path class="grid" d="M{left + tick * scale:.1f} {_TOP - 6}V{floor:.1f}"/>'
        + _words(left + tick * scale, floor + 15, _tick_text(tick), "middle")
        for tick in ticks
    ]
    for row, name in enumerate(groups):
        y = _TOP + pitch * row
        parts.append(_words(left - 8, y + (pitch - 11) / 2 + 4, name, "end"))
        parts += (
            _stack(row, y, bars, left, scale, thick, written)
            if stacked
            else _beside(row, y, bars, left, scale, thick, written)
        )
    parts.append(_words((WIDTH + left - right) / 2, floor + 34, x_label, "middle", "axis"))
    said = [
        f"{name}: " + ", ".join(f"{one.name} {_maybe(one.values[row], written)}" for one in bars)
        for row, name in enumerate(groups)
    ]
    legend = [(_bar_swatch(index), one.name) for index, one in enumerate(bars)] if len(bars) > 1 else []
    return _chart(title, f"{x_label}. {'; '.join(said)}.", "", parts, floor + _BOTTOM, legend)


def _stack(
    row: int,
    y: float,
    bars: Sequence[Bars],
    left: float,
    scale: float,
    thick: float,
    written: Callable[[float], str],
) -> list[str]:
    parts, x = [], left
    for index, one in enumerate(bars):
        value = one.values[row]
        if not value:
            continue
        width = value * scale
        parts.append(_bar(x, y, max(width - 1, 0.5), thick, index))
        if width > 12 + _CHARACTER_PX * len(written(value)):
            parts.append(_words(x + width / 2, y + thick / 2 + 4, written(value), "middle", "inside"))
        x += width
    total = sum(one.values[row] or 0.0 for one in bars)
    return [*parts, _words(x + 5, y + thick / 2 + 4, written(total), "start", "value")]


def _beside(
    row: int,
    y: float,
    bars: Sequence[Bars],
    left: float,
    scale: float,
    thick: float,
    written: Callable[[float], str],
) -> list[str]:
    parts = []
    for index, one in enumerate(bars):
        value = one.values[row]
        below = y + thick * index
        if value is not None:
            parts.append(_bar(left, below, max(value * scale, 0.5), thick - 2, index))
        parts.append(
            _words(
                left + (value or 0.0) * scale + 5,
                below + thick / 2 + 3,
                _maybe(value, written),
                "start",
                "value",
            )
        )
    return parts


def _drawn(line: Line, index: int, places: Sequence[Point]) -> str:
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    parts = (
        [f'<path class="{"plain" if line.plain else f"line c{index} d{index}"}" d="{path}"/>']
        if places
        else []
    )
    if not line.plain:
        parts += [_marker(x, y, index) for x, y in places]
    return "".join(parts)


def _marker(x: float, y: float, index: int) -> str:
    kind = _MARKERS[index % len(_MARKERS)]
    if kind == "circle":
        return f'<circle class="mark c{index}" cx="{x:.1f}" cy="{y:.1f}" r="4.2"/>'
    corners = {
        "square": ((-3.8, -3.8), (3.8, -3.8), (3.8, 3.8), (-3.8, 3.8)),
        "diamond": ((0, -5.2), (5.2, 0), (0, 5.2), (-5.2, 0)),
        "triangle": ((0, -5), (4.8, 3.6), (-4.8, 3.6)),
    }[kind]
    points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)
    return f'<polygon class="mark c{index}" points="{points}"/>'


def _bar(x: float, y: float, width: float, height: float, index: int) -> str:
    return (
        f'<rect class="bar c{index % COLOURS}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" '
        f'height="{height:.1f}" rx="1.5"/>'
    )


def _grid(tick: float, y: float) -> str:
    return f'<path class="grid" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/>' + _words(
        _LEFT - 7, y + 4, _tick_text(tick), "end"
    )


def _words(x: float, y: float, text: str, anchor: str, style: str = "tick") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _line_swatch(index: int, plain: bool) -> str:
    drawn = (
        '<path class="plain" d="M1 7H27"/>'
        if plain
        else f'<path class="line c{index} d{index}" d="M1 7H27"/>'
    )
    return _swatch(drawn + ("" if plain else _marker(14, 7, index)))


def _level_swatch(colour: int, dash: int) -> str:
    return _swatch(f'<path class="level c{colour} d{dash}" d="M1 7H27"/>')


def _bar_swatch(index: int) -> str:
    return _swatch(_bar(6, 1, 16, 12, index))


def _swatch(drawn: str) -> str:
    return f'<svg class="swatch" viewBox="0 0 28 14" width="28" height="14" aria-hidden="true">{drawn}</svg>'


def _chart(
    title: str,
    description: str,
    y_label: str,
    parts: Sequence[str],
    height: float,
    legend: Sequence[tuple[str, str]],
) -> Chart:
    turned = ""
    if y_label:
        middle = _TOP + _PLOT_HEIGHT / 2
        turned = (
            f'<text class="axis" transform="translate(12 {middle:.1f}) rotate(-90)" text-anchor="middle">'
            f"{escape(y_label)}</text>"
        )
    svg = (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        f'aria-label="{escape(f"{title}. {description}")}">'
        f"{turned}{''.join(parts)}</svg>"
    )
    return Chart(title, description, svg, tuple(legend))


def _ticks(top: float) -> list[float]:
    """Return about four round numbers from 0 on, the last at or above ``top``."""
    rough = top / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    return [index * step for index in range(math.ceil(top / step - 1e-6) + 1)]


def _tick_text(tick: float) -> str:
    return f"{tick:,.0f}" if tick >= 1000 else f"{tick:.3g}"


def _maybe(value: float | None, written: Callable[[float], str]) -> str:
    return "-" if value is None else written(value)


def _listed_points(line: Line, x_ticks: Sequence[tuple[float, str]], written: Callable[[float], str]) -> str:
    names = dict(x_ticks)
    return ", ".join(f"{written(y)} at {names.get(x) or written(x)}" for x, y in line.points) or "no value"
