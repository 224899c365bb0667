"""Tiles of an image, and what becomes of objects that several of them show, show in part, or mistake."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray

from diffugen.labels.shapes import decode, encode, iou_matrix, placed, union
from diffugen.labels.tiles import OVERLAP_FRAC, Window, merged, scaled_down, tile_windows
from diffugen.records import Instances

SIZE_WH = WIDTH, HEIGHT = 150, 90
SIDE = 50
Mask = NDArray[np.bool_]
Found = list[tuple[str, Mask, float]]


def instances(found: Found, size_wh: tuple[int, int]) -> Instances:
    return Instances(
        size_wh,
        tuple(name for name, _, _ in found),
        tuple(encode(mask) for _, mask, _ in found),
        np.array([score for _, _, score in found]),
    )


def ellipse(x: float, y: float, width: float, height: float) -> Mask:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    inside = ((columns - x) / width) ** 2 + ((rows - y) / height) ** 2 <= 0.25
    return np.asarray(inside, dtype=np.bool_)


def box(left: int, upper: int, right: int, lower: int) -> Mask:
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.bool_)
    mask[upper:lower, left:right] = True
    return mask


@st.composite
def worlds(draw: st.DrawFn, least: int = 3) -> Found:
    """Return up to six ellipses of two classes that share no pixel, from small ones to larger than a tile."""
    taken, world = np.zeros((HEIGHT, WIDTH), dtype=np.bool_), []
    for _ in range(draw(st.integers(1, 6))):
        sides = draw(st.integers(least, 120)), draw(st.integers(least, 70))
        mask = ellipse(draw(st.integers(0, WIDTH)), draw(st.integers(0, HEIGHT)), *sides)
        if mask.any() and not (mask & taken).any():
            taken |= mask
            world.append((draw(st.sampled_from(["car", "truck"])), mask, 0.9))
    return world


def seen_in(world: Found, window: Window, least: int = 1, shift: tuple[int, int] = (0, 0)) -> Instances:
    """Return what a detector without faults sees of a world, or one that shifts all by a pixel."""
    left, upper, right, lower = window
    parts = [(name, np.roll(mask, shift, (0, 1))[upper:lower, left:right], one) for name, mask, one in world]
    parts = [
        (name, part, one)
        for name, part, one in parts
        if min(part.any(axis=0).sum(), part.any(axis=1).sum()) >= least
    ]
    return instances(parts, (right - left, lower - upper))


def as_texts(found: Instances) -> list[tuple[str, str]]:
    return sorted((name, str(rle["counts"])) for name, rle in zip(found.class_names, found.rles, strict=True))


WINDOWS = tile_windows(SIZE_WH, SIDE)
NOTHING = instances([], SIZE_WH)


@given(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), st.integers(64, 1000))
def test_tiles_cover_the_image_and_overlap(size_wh: tuple[int, int], side: int) -> None:
    windows = tile_windows(size_wh, side)
    for axis in (0, 1):
        starts = sorted({window[axis] for window in windows})
        length = min(side, size_wh[axis])
        assert {window[axis + 2] - window[axis] for window in windows} == {length}
        assert starts[0] == 0 and starts[-1] + length == size_wh[axis]
        assert all(two - one <= side * (1 - OVERLAP_FRAC) + 1 for one, two in itertools.pairwise(starts))
    assert len(windows) == len({window[:2] for window in windows})


@given(worlds(), st.booleans(), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_every_object_is_there_once_and_whole(world: Found, with_whole: bool, random: object) -> None:
    """However small or large, cut by whichever borders, with the whole image or from tiles alone."""
    tiles = [(window, seen_in(world, window)) for window in WINDOWS]
    whole = seen_in(world, (0, 0, *SIZE_WH)) if with_whole else NOTHING
    expected = as_texts(instances(world, SIZE_WH))
    assert as_texts(merged(SIZE_WH, whole, tiles)) == expected
    assert as_texts(merged(SIZE_WH, whole, tiles[::-1])) == expected


@given(worlds(least=12), st.lists(st.tuples(*[st.integers(-1, 1)] * 2), min_size=20, max_size=20))
@settings(max_examples=60, deadline=None)
def test_views_that_differ_by_a_pixel_are_one_object(world: Found, shifts: list[tuple[int, int]]) -> None:
    tiles = [
        (window, seen_in(world, window, least=8, shift=shift))
        for window, shift in zip(WINDOWS, shifts, strict=False)
    ]
    found = merged(SIZE_WH, seen_in(world, (0, 0, *SIZE_WH)), tiles)
    ious = iou_matrix(found.rles, instances(world, SIZE_WH).rles)
    assert len(found) == len(world)
    assert (ious.max(axis=0) > 0.5).all()


@given(worlds(), st.sets(st.integers(0, len(WINDOWS) - 1)))
@settings(max_examples=60, deadline=None)
def test_what_tiles_miss_the_whole_image_shows(world: Found, blind: set[int]) -> None:
    tiles = [
        (window, seen_in([] if number in blind else world, window)) for number, window in enumerate(WINDOWS)
    ]
    found = merged(SIZE_WH, seen_in(world, (0, 0, *SIZE_WH)), tiles)
    assert as_texts(found) == as_texts(instances(world, SIZE_WH))


def found_in(whole: Found, *tiles: tuple[int, Found]) -> Instances:
    """Return the objects of an image, some of whose tiles, by number, show something, cut to the tile."""
    return merged(
        SIZE_WH,
        instances(whole, SIZE_WH),
        [(WINDOWS[number], seen_in(parts, WINDOWS[number])) for number, parts in tiles],
    )


def masks(found: Instances) -> list[Mask]:
    return [decode(rle) for rle in found.rles]


FIRST, SECOND = WINDOWS[0], WINDOWS[1]


def test_halves_are_joined_and_the_surest_view_counts() -> None:
    assert SECOND[0] < 45 < FIRST[2]
    car = box(5, 10, 80, 30)
    found = found_in([], (0, [("car", car, 0.6)]), (1, [("car", car, 0.8)]))
    assert np.array_equal(masks(found)[0], car) and found.scores.tolist() == [0.8]


def test_the_tile_that_shows_all_gives_the_mask() -> None:
    inside, cut, blurred = box(5, 10, 40, 30), box(5, 9, 40, 31), box(3, 8, 44, 32)
    found = found_in([("car", blurred, 0.9)], (0, [("car", inside, 0.6)]), (1, [("car", cut, 0.8)]))
    assert np.array_equal(masks(found)[0], inside) and len(found) == 1


def test_beyond_the_tiles_the_whole_image_gives_the_mask() -> None:
    blurred, sharp = box(5, 10, 130, 32), box(5, 12, 130, 30)
    found = found_in([("car", blurred, 0.9)], (0, [("car", sharp, 0.6)]))
    expected = blurred.copy()
    expected[: FIRST[3], : FIRST[2]] = sharp[: FIRST[3], : FIRST[2]]
    assert np.array_equal(masks(found)[0], expected) and len(found) == 1


@pytest.mark.parametrize(
    ("whole", "tile", "kept"),
    {
        "neighbours that are one in the whole image": (
            [box(4, 10, 40, 30)],
            [box(5, 11, 20, 29), box(23, 11, 39, 29)],
            [1, 2],
        ),
        "a larger view of the same, too coarse to agree": ([box(0, 4, 30, 34)], [box(8, 10, 24, 26)], [1]),
        "a part of an object that is larger than a tile": ([box(5, 5, 140, 80)], [box(10, 10, 20, 20)], [0]),
        "a part at an edge": ([box(5, 5, 140, 40)], [box(44, 20, 50, 26)], [0]),
        "a queue that is one in the whole image": (
            [box(0, 10, 60, 30)],
            [box(1, 10, 14, 30), box(16, 10, 29, 30), box(31, 10, 44, 30)],
            [1, 2, 3],
        ),
        "an object elsewhere": ([box(100, 50, 110, 60)], [box(10, 10, 20, 20)], [0, 1]),
    }.values(),
)
def test_views_that_contradict_each_other(whole: list[Mask], tile: list[Mask], kept: list[int]) -> None:
    found = found_in([("car", one, 0.9) for one in whole], (0, [("car", one, 0.5) for one in tile]))
    expected = {encode((whole + tile)[number])["counts"] for number in kept}
    assert {rle["counts"] for rle in found.rles} == expected


def test_classes_and_the_views_of_one_window_stay_apart() -> None:
    car, part = box(5, 10, 40, 30), box(6, 12, 20, 28)
    found = found_in([("truck", car, 0.5)], (0, [("car", car, 0.9), ("car", part, 0.7)]))
    assert found.class_names == ("car", "car", "truck")


def test_rivals_of_all_views_are_remembered() -> None:
    one = instances([("car", box(5, 10, 40, 30), 0.6)], SIZE_WH)
    whole = Instances(
        one.size_wh, one.class_names, one.rles, one.scores, rivals=({"truck": 0.4, "bus": 0.1},)
    )
    tile = seen_in([("car", box(5, 10, 40, 30), 0.6)], FIRST)
    tile = Instances(tile.size_wh, tile.class_names, tile.rles, tile.scores, rivals=({"truck": 0.5},))
    assert merged(SIZE_WH, whole, [(FIRST, tile)]).rivals == ({"truck": 0.5, "bus": 0.1},)


@given(worlds())
@settings(max_examples=20, deadline=None)
def test_without_tiles_nothing_changes(world: Found) -> None:
    whole = instances(world, SIZE_WH)
    assert as_texts(merged(SIZE_WH, whole, [])) == as_texts(whole)


def test_a_view_of_the_image_scaled_down_is_scaled_up() -> None:
    small = instances([("car", np.ones((9, 15), dtype=np.bool_), 0.9)], (15, 9))
    found = merged(SIZE_WH, small, [])
    assert found.size_wh == SIZE_WH and masks(found)[0].all()
    assert scaled_down(np.zeros((90, 150, 3), np.uint8), 30).shape == (18, 30, 3)
    assert scaled_down(np.zeros((2, 900, 3), np.uint8), 30).shape == (1, 30, 3)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_a_mask_is_placed_as_if_it_were_pasted(data: st.DataObject) -> None:
    left, right = sorted(data.draw(st.lists(st.integers(0, 13), min_size=2, max_size=2, unique=True)))
    upper, lower = sorted(data.draw(st.lists(st.integers(0, 8), min_size=2, max_size=2, unique=True)))
    bits = data.draw(st.lists(st.booleans(), min_size=(right - left) * (lower - upper), max_size=13 * 8))
    part = np.array(bits[: (right - left) * (lower - upper)]).reshape(lower - upper, right - left)
    whole = np.zeros((8, 13), dtype=np.bool_)
    whole[upper:lower, left:right] = part
    rle = placed(encode(part), (left, upper, right, lower), (13, 8))
    assert rle == encode(whole)
    assert union([rle, encode(~whole)]) == encode(np.ones_like(whole))


def test_a_mask_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="a mask of size"):
        placed(encode(np.ones((3, 4), dtype=np.bool_)), (0, 0, 3, 4), (9, 9))
    with pytest.raises(ValueError, match="of an image of"):
        placed(encode(np.ones((3, 4), dtype=np.bool_)), (6, 0, 10, 3), (9, 9))
