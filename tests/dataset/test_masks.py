"""Shapes that leave the image are cut off at its border; no vertex is moved to it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st
from numpy.typing import NDArray
from pycocotools import mask as coco

from diffugen.dataset.masks import rle_from_box, rle_from_rings
from diffugen.labels.shapes import decode

SIZE_WH = (100, 60)
MARGIN = 200
"""The reference is drawn on a canvas with this margin, on which nothing has to be cut off."""


def ring(*points: tuple[float, float]) -> NDArray[np.float64]:
    return np.array(points, dtype=np.float64)


def reference(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    width, height = SIZE_WH
    rle = coco.frPyObjects([(points + MARGIN).ravel().tolist()], height + 2 * MARGIN, width + 2 * MARGIN)
    whole = coco.decode(coco.merge(rle))
    return np.asarray(whole[MARGIN : MARGIN + height, MARGIN : MARGIN + width] > 0)


@pytest.mark.parametrize(
    ("points", "area"),
    [
        (ring((-50, 0), (50, 30), (-50, 60)), 750),  # moving its vertices to the border: 1500
        (ring((-50, -30), (50, -30), (50, 30)), 750),
        (ring((50, -60), (150, 60), (-50, 60)), 6000),
        (ring((-10, -10), (110, -10), (110, 70), (-10, 70)), 6000),
        (ring((-1e9, 30), (50, -1e9), (1e9, 1e9)), 6000),
        (ring((80, 10), (120, 10), (120, 20), (90, 20), (90, 40), (120, 40), (120, 50), (80, 50)), 600),
    ],
)
def test_the_part_in_the_image_is_kept(points: NDArray[np.float64], area: int) -> None:
    for start in range(len(points)):
        for turned in (np.roll(points, start, axis=0), np.roll(points, start, axis=0)[::-1]):
            assert decode(rle_from_rings([turned], SIZE_WH)).sum() == pytest.approx(area, rel=0.03)


coordinates = st.tuples(st.integers(-150, 250), st.integers(-150, 210))


@settings(max_examples=200, deadline=None)
@given(st.lists(coordinates, min_size=3, max_size=9, unique=True))
@example([(-50, 0), (50, 50), (-50, 100)])
def test_masks_are_those_of_a_larger_image_cut_out(points: list[tuple[int, int]]) -> None:
    expected = reference(ring(*points))
    try:
        found = decode(rle_from_rings([ring(*points)], SIZE_WH))
    except ValueError:
        assert not expected.any()
        return
    edges = np.zeros(expected.shape, np.uint8)
    cv2.polylines(edges, [np.array(points, np.int32)], True, 1, thickness=3)
    if expected.any():  # or else it is too thin for a pixel's centre, and the mask has the pixels it crosses
        assert not ((found != expected) & (edges == 0)).any()


@pytest.mark.parametrize(
    "points", [ring((101, 5), (120, 5), (110, 9)), ring((-60, 50), (50, 160), (-60, 160))]
)
def test_a_shape_outside_is_refused(points: NDArray[np.float64]) -> None:
    """The box around the second one overlaps the image, the shape itself does not."""
    with pytest.raises(ValueError, match="lies outside the image of 100 x 60 px"):
        rle_from_rings([points], SIZE_WH)


def test_a_thin_shape_that_leaves_the_image_keeps_the_pixels_it_crosses() -> None:
    mask = decode(rle_from_rings([ring((-20, 10.2), (20, 10.2), (20, 10.3))], SIZE_WH))
    assert np.flatnonzero(mask.any(axis=1)).tolist() == [10]
    assert 19 <= mask.sum() <= 21
    assert decode(rle_from_box((95, 10, 140, 20), SIZE_WH)).sum() == 50
