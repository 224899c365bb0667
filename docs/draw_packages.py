"""Draw the packages of ``diffugen/`` and their imports: ``python docs/draw_packages.py``.

Writes ``docs/pictures/packages.svg``. Everything but the captions is read from the source.
``tests/test_package_picture.py`` fails if the committed file is out of date. The same source gives the same
bytes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import pairwise
from xml.sax.saxutils import escape

from docs.layered_layout import Graph, Layers
from docs.package_graph import ROOT, read_imports, reduced

PICTURE = ROOT / "docs" / "pictures" / "packages.svg"

CAPTIONS = {
    "loops": "recipes: the order of stages",
    "cli": "the commands",
    "stages": "the steps of a round",
    "miniature": "a small world, exact masks",
    "report": "a run as a page",
    "review": "a person decides",
    "tune": "searches label settings",
    "detectors": "fit and predict",
    "dataset": "training sets, YOLO, COCO",
    "comparison": "matches two label sets",
    "labels": "heat maps to scored masks",
    "diffusion": "images and heat maps",
    "prompts": "templates to prompts",
    "run": "folder, ledger, rounds",
    "config": "declares every setting",
    "records": "the data that packages exchange",
    "errors": "what the user can fix",
}

LIBRARIES = (
    "cv2",
    "diffusers",
    "fiftyone",
    "jinja2",
    "optuna",
    "pydantic",
    "sqlite3",
    "typer",
    "ultralytics",
)
"""The libraries to show. Each appears in every package that imports it."""

BOX_W, BOX_H, GROUND_H, WAYPOINT_W, GAP_X, GAP_Y = 194, 70, 52, 8, 14, 38
MARGIN, HEADER_H, ARROW_H = 28, 78, 7

STYLE = """
    .page { fill: #ffffff; stroke: #d1d9e0 } .box { fill: #f6f8fa; stroke: #818b98 }
    .outside { fill: none; stroke: #818b98; stroke-dasharray: 5 4 } .ground { fill: #ddf4ff; stroke: #54aeff }
    .name { font: 600 15px ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace; fill: #1f2328 }
    .text { font: 12px system-ui, 'Segoe UI', Helvetica, Arial, 'DejaVu Sans', sans-serif; fill: #59636e }
    .arrow { fill: none; stroke: #6e7781; stroke-width: 1.3 } .head { fill: #6e7781 }
    .pill { fill: #fff8c5; stroke: #d4a72c } .library { font-size: 11px; font-weight: 400; fill: #6b4700 }
    @media (prefers-color-scheme: dark) {
      .page { fill: #0d1117; stroke: #3d444d } .box { fill: #1c2128; stroke: #768390 }
      .outside { stroke: #768390 } .ground { fill: #0c2d4a; stroke: #316dca }
      .name { fill: #e6edf3 } .text { fill: #adbac7 } .arrow { stroke: #8b949e } .head { fill: #8b949e }
      .pill { fill: #3b2a00; stroke: #9e6a03 } .library { fill: #f2cc60 }
    }"""


class Picture:
    """The drawing: a layered graph with a bar at the bottom for what imports nothing."""

    def __init__(self, graph: Graph, users: Mapping[str, set[str]]) -> None:
        self._graph = graph
        self._users = users
        self._ground = sorted(name for name, targets in graph.items() if not targets)
        arrows = reduced(graph)
        self._layers = Layers(
            {name: arrows[name] - set(self._ground) for name in arrows if name not in self._ground},
            BOX_W,
            WAYPOINT_W,
            GAP_X,
        )
        x = self._layers.x
        self._w = round(max(x[name] + (BOX_W / 2 if "@" not in name else 0) for name in x)) + 2 * MARGIN
        self._h = self._top(len(self._layers.rows)) + GROUND_H + MARGIN

    def svg(self) -> str:
        """Return the picture as an SVG document."""
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self._w} {self._h}" width="{self._w}" '
            f'height="{self._h}" role="img" aria-label="The packages of DiffuGen and their imports">',
            f"  <style>{STYLE}\n  </style>",
            f'  <rect class="page" x="0.5" y="0.5" width="{self._w - 1}" height="{self._h - 1}" rx="10"/>',
            *self._header(),
            *self._arrows(),
        ]
        for row, names in enumerate(self._layers.rows):
            for name in names:
                if "@" not in name:
                    parts += self._box(name, MARGIN + self._layers.x[name] - BOX_W / 2, self._top(row))
        width = (self._w - 2 * MARGIN - GAP_X * (len(self._ground) - 1)) / len(self._ground)
        for at, name in enumerate(self._ground):
            left, top = MARGIN + at * (width + GAP_X), self._top(len(self._layers.rows))
            parts += self._box(name, left, top, width, GROUND_H)
        return "\n".join([*parts, "</svg>", ""])

    def _top(self, row: int) -> int:
        return MARGIN + HEADER_H + row * (BOX_H + GAP_Y)

    def _header(self) -> Iterator[str]:
        arrows = (
            "Arrows are imports; those that follow from a chain are left out. "
            "Any file may import the bottom row."
        )
        library = "A library is imported by the packages that show it and by no other."
        beside = MARGIN + pill_width("library") + 8
        yield f'  <text class="name" x="{MARGIN}" y="{MARGIN + 14}">diffugen/</text>'
        yield f'  <text class="text" x="{MARGIN}" y="{MARGIN + 38}">{arrows}</text>'
        yield from pill("library", MARGIN, MARGIN + 48)
        yield f'  <text class="text" x="{beside}" y="{MARGIN + 61}">{library}</text>'

    def _box(
        self, name: str, x: float, y: float, width: float = BOX_W, height: float = BOX_H
    ) -> Iterator[str]:
        libraries = [library for library in LIBRARIES if name in self._users.get(library, ())]
        kind = "outside" if name == "loops" else "ground" if name in self._ground else "box"
        imports = ", ".join(sorted(self._graph[name])) or "nothing"
        label = name + (".py" if name in self._ground else "/")
        middle = x + width / 2
        text_y = y + (22 if libraries else height / 2 - 3)
        yield f"  <g><title>{label} imports {imports}</title>"
        yield f'    <rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height}" rx="7"/>'
        yield f'    <text class="name" x="{middle:g}" y="{text_y:g}" text-anchor="middle">{label}</text>'
        yield (
            f'    <text class="text" x="{middle:g}" y="{text_y + 17:g}" text-anchor="middle">'
            f"{escape(CAPTIONS[name])}</text>"
        )
        at = middle - (sum(map(pill_width, libraries)) + 6 * (len(libraries) - 1)) / 2
        for library in libraries:
            yield from (f"  {line}" for line in pill(library, at, y + BOX_H - 24))
            at += pill_width(library) + 6
        yield "  </g>"

    def _arrows(self) -> Iterator[str]:
        row_of = {name: row for row, names in enumerate(self._layers.rows) for name in names}
        leaving, entering = self._ports()
        for points in self._layers.arrows:
            x, y = leaving[points[0], points[1]], self._top(row_of[points[0]]) + BOX_H
            path = f"M{x:g} {y}"
            for upper, point in pairwise(points):
                last = point == points[-1]
                to_x = entering[point, upper] if last else MARGIN + self._layers.x[point]
                to_y = self._top(row_of[point]) - (ARROW_H if last else 0)
                bend = (to_y - y) / 2
                path += f" C{x:g} {y + bend:g} {to_x:g} {to_y - bend:g} {to_x:g} {to_y}"
                x, y = to_x, to_y
                if not last:
                    y += BOX_H
                    path += f" V{y}"
            yield f'  <path class="arrow" d="{path}"/>'
            yield f'  <path class="head" d="M{x:g} {y + ARROW_H} l-4 -{ARROW_H} h8 z"/>'

    def _ports(self) -> tuple[dict[tuple[str, str], float], dict[tuple[str, str], float]]:
        """Return where on a box each arrow leaves and enters, in the order of the other ends."""
        leaving: dict[str, list[str]] = defaultdict(list)
        entering: dict[str, list[str]] = defaultdict(list)
        for points in self._layers.arrows:
            leaving[points[0]].append(points[1])
            entering[points[-1]].append(points[-2])
        return self._spread(leaving), self._spread(entering)

    def _spread(self, ends: Mapping[str, list[str]]) -> dict[tuple[str, str], float]:
        ports = {}
        for name, others in ends.items():
            step = min(34.0, 0.8 * BOX_W / len(others))
            for at, other in enumerate(sorted(others, key=lambda other: self._layers.x[other])):
                shift = (at - (len(others) - 1) / 2) * step
                ports[name, other] = round(MARGIN + self._layers.x[name] + shift, 1)
        return ports


def pill_width(text: str) -> float:
    """Return the width of a library's pill; its letters are 0.6 em wide."""
    return round(6.6 * len(text) + 14, 1)


def pill(text: str, x: float, y: float) -> Iterator[str]:
    """Yield the elements of a library's pill."""
    width = pill_width(text)
    yield f'  <rect class="pill" x="{x:g}" y="{y:g}" width="{width:g}" height="17" rx="8.5"/>'
    yield f'  <text class="name library" x="{x + 7:g}" y="{y + 12.5:g}">{text}</text>'


def draw() -> str:
    """Return the picture of the packages as they are now, as an SVG document."""
    return Picture(*read_imports()).svg()


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
    print(f"wrote {PICTURE.relative_to(ROOT)}")
