"""Masks, RLE, polygons and boxes: round trips on random masks, and the half-pixel convention."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from diffugen.labels.shapes import (
    areas,
    boxes,
    decode,
    encode,
    iou_matrix,
    mask_from_outlines,
    mask_from_polygons,
    outlines,
    polygons,
    rescale,
)

sides = st.integers(1, 21)
masks = hnp.arrays(np.bool_, st.tuples(sides, sides))


@st.composite
def grown_masks(draw):
    """Masks with large pieces, holes and pieces in holes, which are rare among independent pixels."""
    mask = draw(
        hnp.arrays(np.bool_, st.tuples(st.integers(5, 24), st.integers(5, 24)), elements=st.booleans())
    )
    grown = ndimage.binary_closing(np.pad(mask, 2), iterations=draw(st.integers(0, 2)))
    return np.logical_xor(grown, ndimage.binary_erosion(grown, iterations=draw(st.integers(2, 3))))


def ring_with_island():
    mask = np.zeros((64, 96), dtype=bool)
    mask[10:50, 20:80] = True
    mask[16:44, 26:74] = False
    mask[25:35, 40:60] = True
    mask[2:5, 90:93] = True
    return mask


@given(masks)
def test_rle_round_trip(mask):
    rle = encode(mask)
    assert rle["size"] == list(mask.shape) and isinstance(rle["counts"], str)
    decoded = decode(json.loads(json.dumps(rle)))
    assert decoded.dtype == np.bool_ and decoded.flags.c_contiguous and np.array_equal(decoded, mask)


def test_encode_accepts_views_and_refuses_stacks():
    mask = ring_with_island()
    assert encode(mask[::2, ::-3]) == encode(np.array(mask[::2, ::-3]))
    with pytest.raises(ValueError, match="two axes"):
        encode(np.zeros((2, 4, 5), dtype=bool))


@given(st.one_of(masks, grown_masks()))
def test_outlines_round_trip_with_holes_and_islands(mask):
    pieces = outlines(encode(mask))
    assert len(pieces) == ndimage.label(mask, np.ones((3, 3)))[1]
    assert np.array_equal(mask_from_outlines(pieces, mask.shape[::-1]), mask)


@given(st.one_of(masks, grown_masks()))
def test_polygons_round_trip_with_holes_filled(mask):
    filled = ndimage.binary_fill_holes(mask)
    assert np.array_equal(mask_from_polygons(polygons(encode(mask)), mask.shape[::-1]), filled)


def test_pieces_and_holes_stay_together():
    mask = ring_with_island()
    pieces = outlines(encode(mask))
    assert sorted(len(piece.holes) for piece in pieces) == [0, 0, 1]
    assert len(polygons(encode(mask))) == 2, "the island lies inside the outer ring"
    assert np.array_equal(mask_from_outlines(pieces[::-1], (96, 64)), mask)
    assert areas([encode(mask)])[0] == mask.sum()


def test_polygons_run_through_pixel_centres_and_boxes_around_pixels():
    mask = np.zeros((8, 12), dtype=bool)
    mask[2:4, 3:6] = True
    rle = encode(mask)
    assert boxes([rle]).tolist() == [[3, 2, 6, 4]]
    (ring,) = polygons(rle)
    assert ring.shape == (4, 2)
    assert ring.min(axis=0).tolist() == [3.5, 2.5] and ring.max(axis=0).tolist() == [5.5, 3.5]


@given(st.lists(hnp.arrays(np.bool_, (9, 14)), max_size=4))
def test_boxes_and_areas_equal_those_of_numpy(stack):
    rles = [encode(mask) for mask in stack]
    expected = []
    for mask in stack:
        rows, columns = np.nonzero(mask)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else [0, 0, 0, 0]
        expected.append(box)
    assert np.array_equal(boxes(rles), np.reshape(expected, (-1, 4)))
    assert areas(rles).tolist() == [mask.sum() for mask in stack] and areas(rles).dtype == np.int64


@given(
    st.lists(hnp.arrays(np.bool_, (9, 14)), max_size=3), st.lists(hnp.arrays(np.bool_, (9, 14)), max_size=4)
)
def test_iou_equals_that_of_numpy(first, second):
    ious = iou_matrix([encode(mask) for mask in first], [encode(mask) for mask in second])
    assert ious.shape == (len(first), len(second))
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            union = (a | b).sum()
            assert ious[i, j] == pytest.approx((a & b).sum() / union if union else 0.0)


def test_iou_refuses_masks_of_different_sizes():
    with pytest.raises(ValueError, match="rescale"):
        iou_matrix([encode(np.ones((4, 5), dtype=bool))], [encode(np.ones((5, 4), dtype=bool))])


@given(masks, st.integers(1, 4), st.integers(1, 4))
def test_rescale_by_whole_factors_is_lossless(mask, across, down):
    height, width = mask.shape
    large = rescale(encode(mask), (width * across, height * down))
    assert np.array_equal(decode(large), np.kron(mask, np.ones((down, across), dtype=bool)))
    assert np.array_equal(decode(rescale(large, (width, height))), mask)


@settings(max_examples=30)
@given(st.integers(40, 200), st.integers(40, 200))
def test_rescale_keeps_place_and_area(width, height):
    mask = ring_with_island()
    scaled = decode(rescale(encode(mask), (width, height)))
    assert scaled.shape == (height, width)
    assert scaled.mean() == pytest.approx(mask.mean(), rel=0.2)
    relative = boxes([encode(scaled)])[0] / [width, height, width, height]
    np.testing.assert_allclose(relative, boxes([encode(mask)])[0] / [96, 64, 96, 64], atol=0.02)


def test_no_masks_and_empty_masks():
    assert boxes([]).shape == (0, 4) and areas([]).shape == (0,) and iou_matrix([], []).shape == (0, 0)
    empty = encode(np.zeros((3, 4), dtype=bool))
    assert polygons(empty) == [] and outlines(empty) == [] and not mask_from_polygons([], (4, 3)).any()
