"""Line and bar charts as inline SVG, coloured by the style sheet of the page.

Series differ in colour, in marker and in dash, so that no reader depends on one of them. Colours are classes
(``c0``, ``c1`` ...) that the style sheet fills in, so that a chart suits a light page, a dark one and paper.
Knows no run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from diffugen.report.blocks import NOTHING, Chart, as_rate

WIDTH = 460
COLOURS = 4
_LEFT, _RIGHT, _TOP, _BOTTOM, _PLOT_HEIGHT = 50, 18, 18, 44, 215
_FLOOR = _TOP + _PLOT_HEIGHT
_CHARACTER_PX, _TEXT_PX = 6.6, 13
_MARKERS = ("circle", "square", "diamond", "triangle")
_CORNERS = {
    "square": ((-3.8, -3.8), (3.8, -3.8), (3.8, 3.8), (-3.8, 3.8)),
    "diamond": ((0, -5.2), (5.2, 0), (0, 5.2), (-5.2, 0)),
    "triangle": ((0, -5), (4.8, 3.6), (-4.8, 3.6)),
}
_MOST_VALUES_SHOWN = 8
_ROW_GAP = 11

Point = tuple[float, float]
Format = Callable[[float], str]


@dataclass(frozen=True)
class Line:
    """A series of points; ``plain`` draws it thin and without markers, as a reference line."""

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
    written: Format = as_rate,
) -> Chart:
    """Draw lines over a vertical axis that begins at 0.

    Args:
        title: Title of the chart.
        x_label: Name of the horizontal axis.
        y_label: Name of the vertical axis.
        x_ticks: Place and name of each tick; the first and the last bound the axis.
        lines: The series.
        levels: Name and height of horizontal reference lines.
        y_top: Upper end of the vertical axis; None for a round number above all values.
        inset_px: Free space at both ends of the horizontal axis.
        with_values: Whether to print the values of the first series beside its points, if they are few.
        written: Formats a value.
    """
    heights = [y for line in lines for _, y in line.points] + [level for _, level in levels]
    ticks = _ticks(y_top or max(heights, default=1.0) * 1.08 or 1.0)
    top = y_top or ticks[-1]
    first, last = x_ticks[0][0], x_ticks[-1][0]
    middle = 0.0 if len(x_ticks) > 1 else 0.5

    def at(x: float, y: float) -> Point:
        width = WIDTH - _LEFT - _RIGHT - 2 * inset_px
        across = (x - first) / ((last - first) or 1.0) + middle
        return _LEFT + inset_px + width * across, _TOP + _PLOT_HEIGHT * (1 - min(y, top) / top)

    parts = [_grid_line(tick, at(first, tick)[1]) for tick in ticks if tick <= top]
    parts += [_text(at(x, 0)[0], _FLOOR + 16, name, "middle") for x, name in x_ticks]
    parts += [_text((WIDTH + _LEFT - _RIGHT) / 2, _FLOOR + 35, x_label, "middle", "axis"), _y_label(y_label)]
    starts = [at(*line.points[0])[1] for line in lines if line.points]
    ends = [at(*line.points[-1])[1] for line in lines if line.points]
    for index, (name, height) in enumerate(levels):
        y, text = at(first, height)[1], f"{name} {written(height)}"
        parts += _level(index, len(lines) + index, text, y, starts, ends)
    for index, line in enumerate(lines):
        places = [at(x, y) for x, y in line.points]
        parts.append(_line(line, index, places))
        if with_values and index == 0 and len(places) <= _MOST_VALUES_SHOWN:
            parts += [
                _text(x, y - 10, written(value), "middle", "halo value")
                for (x, y), (_, value) in zip(places, line.points, strict=True)
            ]
    said = [f"{line.name}: {_points_in_words(line, x_ticks, written)}" for line in lines if not line.plain]
    said += [f"{name}: {written(height)}" for name, height in levels]
    legend = [(_line_swatch(index, line.plain), line.name) for index, line in enumerate(lines)]
    legend += [(_level_swatch(index, len(lines) + index), name) for index, (name, _) in enumerate(levels)]
    return _chart(title, f"{y_label} over {x_label}. {'; '.join(said)}.", parts, _FLOOR + _BOTTOM, legend)


def bar_chart(
    title: str,
    *,
    x_label: str,
    groups: Sequence[str],
    bars: Sequence[Bars],
    stacked: bool = False,
    written: Format = as_rate,
) -> Chart:
    """Draw horizontal bars: one row for each group, its series stacked or one below the other.

    Args:
        title: Title of the chart.
        x_label: What the length of a bar means.
        groups: Names of the rows.
        bars: The series, each with a value for each group.
        stacked: Whether the series of a row are stacked.
        written: Formats a value.
    """
    sums = [sum(one.values[row] or 0.0 for one in bars) for row in range(len(groups))]
    singles = [value or 0.0 for one in bars for value in one.values]
    longest = max(sums if stacked else singles, default=0.0)
    ticks = _ticks(longest or 1.0)
    left = min(150.0, 14 + _CHARACTER_PX * max((len(name) for name in groups), default=0))
    right = 14 + _CHARACTER_PX * max(len(written(longest)), 3)
    scale = (WIDTH - left - right) / max(ticks[-1], longest)
    thick = 22.0 if stacked or len(bars) == 1 else 15.0
    pitch = (thick if stacked else thick * len(bars)) + _ROW_GAP
    floor = _TOP + pitch * len(groups)
    parts: list[Markup] = []
    for tick in ticks:
        x = left + tick * scale
        parts.append(Markup('<path class="grid" d="M{:.1f} {}V{:.1f}"/>').format(x, _TOP - 6, floor))
        parts.append(_text(x, floor + 15, _tick_text(tick), "middle"))
    for row, name in enumerate(groups):
        y = _TOP + pitch * row
        parts.append(_text(left - 8, y + (pitch - _ROW_GAP) / 2 + 4, name, "end"))
        values = [one.values[row] for one in bars]
        parts += (_stack if stacked else _beside)(y, values, left, scale, thick, written)
    parts.append(_text((WIDTH + left - right) / 2, floor + 34, x_label, "middle", "axis"))
    said = [
        f"{name}: " + ", ".join(f"{one.name} {_maybe(one.values[row], written)}" for one in bars)
        for row, name in enumerate(groups)
    ]
    legend = [(_bar_swatch(index), one.name) for index, one in enumerate(bars)] if len(bars) > 1 else []
    return _chart(title, f"{x_label}. {'; '.join(said)}.", parts, floor + _BOTTOM, legend)


def _stack(
    y: float, values: Sequence[float | None], left: float, scale: float, thick: float, written: Format
) -> list[Markup]:
    parts, x = [], left
    for index, value in enumerate(values):
        if not value:
            continue
        width = value * scale
        parts.append(_bar(x, y, max(width - 1, 0.5), thick, index))
        if width > 12 + _CHARACTER_PX * len(written(value)):
            parts.append(_text(x + width / 2, y + thick / 2 + 4, written(value), "middle", "inside"))
        x += width
    total = sum(value or 0.0 for value in values)
    return [*parts, _text(x + 5, y + thick / 2 + 4, written(total), "start", "value")]


def _beside(
    y: float, values: Sequence[float | None], left: float, scale: float, thick: float, written: Format
) -> list[Markup]:
    parts = []
    for index, value in enumerate(values):
        below, width = y + thick * index, (value or 0.0) * scale
        if value is not None:
            parts.append(_bar(left, below, max(width, 0.5), thick - 2, index))
        parts.append(_text(left + width + 5, below + thick / 2 + 3, _maybe(value, written), "start", "value"))
    return parts


def _line(line: Line, index: int, places: Sequence[Point]) -> Markup:
    if not places:
        return Markup("")
    style = "plain" if line.plain else f"line c{index} d{index}"
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    markers = [] if line.plain else [_marker(x, y, index) for x, y in places]
    return _joined([Markup('<path class="{}" d="{}"/>').format(style, path), *markers])


def _level(
    dash: int, colour: int, text: str, y: float, starts: Sequence[float], ends: Sequence[float]
) -> list[Markup]:
    """Draw a reference line, its text above or below it, at the end or the start: wherever it is free.

    A series takes the height of its first or last point, and that of the value printed above the point.
    """
    places = [(x, baseline) for x in ("end", "start") for baseline in (y - 5, y + _TEXT_PX)]

    def free(place: tuple[str, float]) -> bool:
        anchor, baseline = place
        points = ends if anchor == "end" else starts
        return not any(point - 10 - _TEXT_PX < baseline < point + 5 + _TEXT_PX for point in points)

    anchor, baseline = next(filter(free, places), places[0])
    x = WIDTH - _RIGHT - 2 if anchor == "end" else _LEFT + 4
    path = Markup('<path class="level c{} d{}" d="M{} {:.1f}H{}"/>')
    return [path.format(colour, dash, _LEFT, y, WIDTH - _RIGHT), _text(x, baseline, text, anchor, "halo")]


def _marker(x: float, y: float, index: int) -> Markup:
    kind = _MARKERS[index % len(_MARKERS)]
    if kind == "circle":
        return Markup('<circle class="mark c{}" cx="{:.1f}" cy="{:.1f}" r="4.2"/>').format(index, x, y)
    points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in _CORNERS[kind])
    return Markup('<polygon class="mark c{}" points="{}"/>').format(index, points)


def _bar(x: float, y: float, width: float, height: float, index: int) -> Markup:
    bar = Markup('<rect class="bar c{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" rx="1.5"/>')
    return bar.format(index % COLOURS, x, y, width, height)


def _grid_line(tick: float, y: float) -> Markup:
    line = Markup('<path class="grid" d="M{} {:.1f}H{}"/>').format(_LEFT, y, WIDTH - _RIGHT)
    return line + _text(_LEFT - 7, y + 4, _tick_text(tick), "end")


def _y_label(text: str) -> Markup:
    label = Markup(
        '<text class="axis" transform="translate(12 {:.1f}) rotate(-90)" text-anchor="middle">{}</text>'
    )
    return label.format(_TOP + _PLOT_HEIGHT / 2, text)


def _text(x: float, y: float, text: str, anchor: str, style: str = "tick") -> Markup:
    element = Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>')
    return element.format(style, x, y, anchor, text)


def _line_swatch(index: int, plain: bool) -> Markup:
    if plain:
        return _swatch(Markup('<path class="plain" d="M1 7H27"/>'))
    line = Markup('<path class="line c{0} d{0}" d="M1 7H27"/>').format(index)
    return _swatch(line + _marker(14, 7, index))


def _level_swatch(dash: int, colour: int) -> Markup:
    return _swatch(Markup('<path class="level c{} d{}" d="M1 7H27"/>').format(colour, dash))


def _bar_swatch(index: int) -> Markup:
    return _swatch(_bar(6, 1, 16, 12, index))


def _swatch(drawn: Markup) -> Markup:
    element = '<svg class="swatch" viewBox="0 0 28 14" width="28" height="14" aria-hidden="true">{}</svg>'
    return Markup(element).format(drawn)


def _chart(
    title: str, description: str, parts: Iterable[Markup], height: float, legend: Sequence[tuple[Markup, str]]
) -> Chart:
    svg = Markup('<svg viewBox="0 0 {} {:.0f}" role="img" aria-label="{}">{}</svg>')
    drawn = svg.format(WIDTH, height, f"{title}. {description}", _joined(parts))
    return Chart(title, description, drawn, tuple(legend))


def _joined(parts: Iterable[Markup]) -> Markup:
    return Markup("").join(parts)


def _ticks(top: float) -> list[float]:
    """Return about four round numbers from 0 on, the last at or above ``top``."""
    rough = top / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    return [index * step for index in range(math.ceil(top / step - 1e-6) + 1)]


def _tick_text(tick: float) -> str:
    return f"{tick:,.0f}" if tick >= 1000 else f"{tick:.3g}"


def _maybe(value: float | None, written: Format) -> str:
    return NOTHING if value is None else written(value)


def _points_in_words(line: Line, x_ticks: Sequence[tuple[float, str]], written: Format) -> str:
    names = dict(x_ticks)
    return ", ".join(f"{written(y)} at {names.get(x) or written(x)}" for x, y in line.points) or "no value"
