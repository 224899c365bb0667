"""Small labelled images for dataset tests; none is square."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from diffugen.dataset.files import Item
from diffugen.labels import shapes
from diffugen.records import Instances

WIDTH, HEIGHT = 40, 24

Box = tuple[int, int, int, int]
"""x0, y0, x1, y1 in px."""


def box_mask(
    *boxes: Box, holes: tuple[Box, ...] = (), size_wh: tuple[int, int] = (WIDTH, HEIGHT)
) -> NDArray[np.bool_]:
    mask = np.zeros(size_wh[::-1], dtype=bool)
    for x0, y0, x1, y1 in boxes:
        mask[y0:y1, x0:x1] = True
    for x0, y0, x1, y1 in holes:
        mask[y0:y1, x0:x1] = False
    return mask


def item(
    name: str, *labelled: tuple[str, NDArray[np.bool_], float], size_wh: tuple[int, int] = (WIDTH, HEIGHT)
) -> Item:
    image = np.random.default_rng(len(name)).integers(0, 256, (*size_wh[::-1], 3), dtype=np.uint8)
    names, masks, scores = zip(*labelled, strict=True) if labelled else ((), (), ())
    return name, image, Instances(size_wh, names, tuple(map(shapes.encode, masks)), np.array(scores))


def varied() -> list[Item]:
    """Holes, several pieces, two equal masks, a single pixel, score terms, no objects, three image sizes."""
    ring = box_mask((3, 2, 30, 20), holes=((6, 5, 10, 9), (15, 8, 25, 17)))
    pieces = box_mask((2, 3, 8, 9), (20, 4, 26, 10), (30, 18, 38, 22))
    dot = box_mask((7, 5, 8, 6))
    wide, tall = (97, 31), (29, 83)
    name, image, one = item("b.terms", ("car", ring, 0.1 + 0.2))
    terms = Instances(
        one.size_wh, one.class_names, one.rles, one.scores, ({"contrast": 1 / 3, "margin": 0.0},)
    )
    return [
        item("a-ring", ("car", ring, 0.75), ("traffic cone", pieces, 1 / 3), ("car", dot, 0.0)),
        (name, image, terms),
        item("c-twins", ("car", dot, 0.25), ("car", dot, 0.5)),
        item("d-empty"),
        item(
            "e-wide",
            ("traffic cone", box_mask((0, 0, 97, 31), holes=((1, 1, 96, 30),), size_wh=wide), 1.0),
            size_wh=wide,
        ),
        item("f-tall", ("car", box_mask((0, 70, 29, 83), size_wh=tall), 0.125), size_wh=tall),
    ]


def assert_equal_items(found: Sequence[Item], expected: Sequence[Item]) -> None:
    assert [name for name, _, _ in found] == [name for name, _, _ in expected]
    for (_, rgb, ours), (_, pixels, theirs) in zip(found, expected, strict=True):
        assert rgb.dtype == np.uint8
        assert np.array_equal(rgb, pixels)
        assert_equal_instances(ours, theirs)


def assert_equal_instances(ours: Instances, theirs: Instances) -> None:
    assert ours.size_wh == theirs.size_wh
    assert ours.class_names == theirs.class_names
    assert ours.rles == theirs.rles
    assert ours.scores.tolist() == theirs.scores.tolist()
    assert [dict(terms) for terms in ours.terms] == [dict(terms) for terms in theirs.terms]
