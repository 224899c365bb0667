"""The picture of the packages in docs/ shows the imports as they are."""

from __future__ import annotations

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from docs.draw_packages import CAPTIONS, PICTURE, draw
from docs.layered_layout import Graph, Layers
from docs.package_graph import ROOT, read_imports, reduced

ARCHITECTURE = ROOT / "docs" / "architecture.md"
SVG = "{http://www.w3.org/2000/svg}"
DIAMOND: Graph = {"top": {"left", "right", "base"}, "left": {"base"}, "right": {"base"}, "base": set()}


def test_committed_picture_shows_the_imports_of_today() -> None:
    assert PICTURE.read_text(encoding="utf-8") == draw(), (
        "the picture is out of date: run docs/draw_packages.py"
    )


def test_every_package_has_a_box_that_names_its_imports() -> None:
    graph, _ = read_imports()
    assert set(CAPTIONS) == set(graph)
    titles = [title.text or "" for title in ElementTree.fromstring(draw()).iter(f"{SVG}title")]
    assert len(titles) == len(graph)
    for name, targets in graph.items():
        imports = ", ".join(sorted(targets)) or "nothing"
        assert any(
            title in (f"{name}/ imports {imports}", f"{name}.py imports {imports}") for title in titles
        )


def test_every_package_has_a_row_in_the_architecture() -> None:
    graph, _ = read_imports()
    rows = re.findall(
        r"^\| `([a-z]+)(?:/|\.py)` \|", ARCHITECTURE.read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    assert sorted(rows) == sorted(graph.keys() - {"loops"})
    for at, name in enumerate(rows):
        assert graph[name] <= set(rows[:at]), f"the row of {name} must come after those of what it imports"


def test_arrows_that_follow_from_others_are_left_out() -> None:
    assert reduced(DIAMOND) == {**DIAMOND, "top": {"left", "right"}}


def test_circles_are_named() -> None:
    with pytest.raises(ValueError, match="circle: left, right"):
        reduced({"top": {"left"}, "left": {"right"}, "right": {"left"}})


def test_boxes_of_a_row_do_not_overlap_and_arrows_point_down() -> None:
    layers = Layers({**DIAMOND, "top": {"left", "right"}, "aside": {"base"}}, 100, 10, 20)
    row_of = {name: row for row, names in enumerate(layers.rows) for name in names}
    for names in layers.rows:
        boxes = [layers.x[name] for name in names if "@" not in name]
        assert all(right - left >= 120 - 0.2 for left, right in pairwise(boxes))
    assert len(layers.arrows) == 5
    for points in layers.arrows:
        assert [row_of[point] - row_of[points[0]] for point in points] == list(range(len(points)))
    assert layers.crossings() == 0
