"""Where the boxes and arrows of a layered drawing go: rows, few crossings, straight arrows.

The method is that of Sugiyama, Tagawa and Toda (1981): rows by longest path, waypoints for long arrows, the
order by the mean place of the neighbours. Knows names only, not what they stand for or how they look.
Sums with `math.fsum`, so every version of Python gives the same numbers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from itertools import pairwise
from math import fsum
from zlib import crc32

Graph = dict[str, set[str]]
"""The names that each name points at."""

STARTS = 30
SWEEPS = 12


def levels(graph: Graph) -> dict[str, int]:
    """Return the row of each name: 0 if no arrow points at it, otherwise one below the lowest that does."""
    sources: dict[str, set[str]] = {name: set() for name in graph}
    for name, targets in graph.items():
        for target in targets:
            sources[target].add(name)
    rows: dict[str, int] = {}

    def row(name: str) -> int:
        if name not in rows:
            rows[name] = 1 + max((row(source) for source in sources[name]), default=-1)
        return rows[name]

    return {name: row(name) for name in sorted(graph)}


class Layers:
    """Rows of a layered drawing: names, and waypoints where a long arrow passes a row.

    Attributes:
        rows: The names and waypoints of each row, from left to right.
        arrows: The points of each arrow, downwards: a name, waypoints, a name.
        x: The centre of each name and waypoint.
    """

    def __init__(self, graph: Graph, width_of_box: float, width_of_waypoint: float, gap: float) -> None:
        self._widths = (width_of_box, width_of_waypoint)
        self._gap = gap
        row_of = levels(graph)
        self.rows: list[list[str]] = [[] for _ in range(1 + max(row_of.values()))]
        for name in sorted(graph):
            self.rows[row_of[name]].append(name)
        self.arrows: list[list[str]] = []
        self._above: dict[str, list[str]] = defaultdict(list)
        self._below: dict[str, list[str]] = defaultdict(list)
        for name in sorted(graph):
            for target in sorted(graph[name]):
                self._add_arrow(name, target, row_of)
        self._order()
        self.x = self._place()
        self._straighten()

    def _add_arrow(self, name: str, target: str, row_of: Mapping[str, int]) -> None:
        points = [name]
        for row in range(row_of[name] + 1, row_of[target]):
            points.append(f"{name}>{target}@{row}")
            self.rows[row].append(points[-1])
        points.append(target)
        self.arrows.append(points)
        for upper, lower in pairwise(points):
            self._below[upper].append(lower)
            self._above[lower].append(upper)

    def crossings(self) -> int:
        """Return how many pairs of arrows cross."""
        return sum(self._crossings_under(row) for row in range(len(self.rows) - 1))

    def _crossings_under(self, row: int) -> int:
        if not 0 <= row < len(self.rows) - 1:
            return 0
        at = {name: place for place, name in enumerate(self.rows[row + 1])}
        arrows = [
            (start, at[lower]) for start, upper in enumerate(self.rows[row]) for lower in self._below[upper]
        ]
        return sum(
            start < other_start and end > other_end
            for start, end in arrows
            for other_start, other_end in arrows
        )

    def _order(self) -> None:
        """Sort the rows by the mean place of their neighbours, from many first orders; keep the best result.

        That is the one with the fewest crossings, then with the shortest arrows.
        """
        found: dict[tuple[tuple[str, ...], ...], int] = {}
        for start in range(STARTS):
            for names in self.rows:
                names.sort(key=lambda name: crc32(f"{start} {name}".encode()))
            for sweep in range(SWEEPS):
                down = sweep % 2 == 0
                for row in range(len(self.rows)) if down else reversed(range(len(self.rows))):
                    self._sort_row(row, self._above if down else self._below)
                self._swap_neighbours()
                found[tuple(map(tuple, self.rows))] = self.crossings()
        fewest = min(found.values())
        best: list[tuple[int, list[list[str]]]] = []
        for order in sorted(order for order, crossings in found.items() if crossings == fewest):
            self.rows = [list(names) for names in order]
            best.append((self._length(), self.rows))
        self.rows = min(best)[1]

    def _length(self) -> int:
        """Return how far the arrows run sideways, about."""
        x = self._place()
        return round(fsum(abs(x[upper] - x[lower]) for upper in self._below for lower in self._below[upper]))

    def _sort_row(self, row: int, neighbours: Mapping[str, list[str]]) -> None:
        place = {name: (at + 0.5) / len(names) for names in self.rows for at, name in enumerate(names)}

        def mean(name: str) -> float:
            near = neighbours.get(name) or [name]
            return fsum(place[other] for other in near) / len(near)

        self.rows[row].sort(key=mean)

    def _swap_neighbours(self) -> None:
        """Swap names that stand side by side for as long as a swap removes a crossing."""
        better = True
        while better:
            better = False
            for row, names in enumerate(self.rows):
                for at in range(len(names) - 1):
                    before = self._crossings_under(row - 1) + self._crossings_under(row)
                    names[at], names[at + 1] = names[at + 1], names[at]
                    if self._crossings_under(row - 1) + self._crossings_under(row) < before:
                        better = True
                    else:
                        names[at], names[at + 1] = names[at + 1], names[at]

    def _width(self, name: str) -> float:
        return self._widths["@" in name]

    def _place(self) -> dict[str, float]:
        """Move each name towards its neighbours, keeping the order and the gaps of its row."""
        x = {name: 0.0 for row in self.rows for name in row}
        for sweep in range(200):
            rows = self.rows if sweep % 2 == 0 else self.rows[::-1]
            for names in rows:
                x.update(
                    zip(names, self._spread(names, [self._wanted(name, x) for name in names]), strict=True)
                )
        left = min(x[name] - self._width(name) / 2 for name in x)
        self._right = max(x[name] + self._width(name) / 2 for name in x) - left
        return {name: round(at - left, 1) for name, at in x.items()}

    def _wanted(self, name: str, x: Mapping[str, float]) -> float:
        """Return the mean place of the neighbours; waypoints follow each other rather than the boxes."""
        near = [*self._above[name], *self._below[name]] or [name]
        weights = [8 if "@" in name and "@" in other else 1 for other in near]
        return fsum(x[other] * weight for other, weight in zip(near, weights, strict=True)) / sum(weights)

    def _straighten(self) -> None:
        """Let each long arrow run straight down for as many rows as it has room for."""
        row_of = {name: row for row, names in enumerate(self.rows) for name in names}
        for points in self.arrows:
            run: list[str] = []
            low, high, x = float("-inf"), float("inf"), self.x[points[0]]
            for point in points[1:-1]:
                left, right = self._room(point, self.rows[row_of[point]])
                if max(low, left) > min(high, right):
                    x = min(max(x, low), high)
                    self.x.update(dict.fromkeys(run, x))
                    run, low, high = [], left, right
                run.append(point)
                low, high = max(low, left), min(high, right)
            self.x.update(dict.fromkeys(run, min(max(x, low), high)))

    def _room(self, point: str, names: list[str]) -> tuple[float, float]:
        """Return the least and the greatest x that a waypoint can have between its neighbours in a row."""
        at = names.index(point)
        half = self._width(point) / 2 + self._gap
        left = max((self.x[name] + self._width(name) / 2 + half for name in names[:at]), default=half)
        right = min(
            (self.x[name] - self._width(name) / 2 - half for name in names[at + 1 :]), default=self._right
        )
        return min(left, self.x[point]), max(right, self.x[point])

    def _spread(self, names: list[str], wanted: list[float]) -> list[float]:
        """Return the places closest to the wanted ones (least squares) at which nothing overlaps."""
        offsets = [0.0]
        for left, right in pairwise(names):
            offsets.append(offsets[-1] + (self._width(left) + self._width(right)) / 2 + self._gap)
        blocks: list[tuple[float, int]] = []
        for at, offset in zip(wanted, offsets, strict=True):
            mean, count = at - offset, 1
            while blocks and blocks[-1][0] > mean:
                earlier, size = blocks.pop()
                mean, count = (earlier * size + mean * count) / (size + count), size + count
            blocks.append((mean, count))
        means = [mean for mean, count in blocks for _ in range(count)]
        return [mean + offset for mean, offset in zip(means, offsets, strict=True)]
