"""Matching is optimal, one to one, prefers equal classes in ties, and loses no instance."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from diffugen.comparison.matching import Match, match
from diffugen.errors import DiffugenError
from diffugen.labels import shapes
from diffugen.records import Instances
from tests.support.boxes import HEIGHT, WIDTH, approx, box_mask, instances

LEFT, RIGHT = (2, 3, 12, 13), (26, 8, 38, 22)

CASES = {
    "both empty": (instances(), instances(), []),
    "second empty": (instances(("car", LEFT)), instances(), [Match(0, None, 0.0)]),
    "first empty": (instances(), instances(("car", LEFT)), [Match(None, 0, 0.0)]),
    "order does not matter": (
        instances(("car", LEFT), ("car", RIGHT)),
        instances(("car", RIGHT), ("car", LEFT)),
        [Match(0, 1, 1.0), Match(1, 0, 1.0)],
    ),
    "apart": (
        instances(("car", LEFT)),
        instances(("car", RIGHT)),
        [Match(0, None, 0.0), Match(None, 0, 0.0)],
    ),
    "another class, same place: one pair": (
        instances(("car", LEFT)),
        instances(("piano", LEFT)),
        [Match(0, 0, 1.0)],
    ),
    # 10 x 10 against its upper 4 rows: IoU .4 is too low for two classes, but enough within a class.
    "another class, weak overlap: two objects": (
        instances(("car", LEFT)),
        instances(("piano", (2, 3, 12, 7))),
        [Match(0, None, 0.4), Match(None, 0, 0.4)],
    ),
    "same class, weak overlap: one pair": (
        instances(("car", LEFT)),
        instances(("car", (2, 3, 12, 7))),
        [Match(0, 0, 0.4)],
    ),
    "same class, hardly any overlap: two objects": (
        instances(("car", LEFT)),
        instances(("car", (2, 3, 7, 4))),
        [Match(0, None, 0.05), Match(None, 0, 0.05)],
    ),
    "a tie goes to the same class": (
        instances(("car", LEFT)),
        instances(("truck", LEFT, 0.9), ("car", LEFT, 0.2)),
        [Match(0, 1, 1.0), Match(None, 0, 1.0)],
    ),
    "so does a near tie": (
        instances(("car", LEFT)),
        instances(("truck", LEFT), ("car", box_mask(LEFT, holes=((2, 3, 6, 4),)))),
        [Match(0, 1, 0.96), Match(None, 0, 1.0)],
    ),
    "a clearly better overlap wins over the class": (
        instances(("car", LEFT)),
        instances(("truck", LEFT), ("car", (2, 3, 12, 12))),
        [Match(0, 0, 1.0), Match(None, 1, 0.9)],
    ),
    "a tie among other classes goes to the higher score": (
        instances(("bus", LEFT)),
        instances(("truck", LEFT, 0.4), ("car", LEFT, 0.9)),
        [Match(0, 1, 1.0), Match(None, 0, 1.0)],
    ),
    # The squares have equal outlines but different masks.
    "a hole counts": (
        instances(("car", box_mask(LEFT, holes=((4, 5, 10, 11),)))),
        instances(("car", LEFT)),
        [Match(0, 0, 0.64)],
    ),
    "an object in the hole does not overlap the ring": (
        instances(("car", box_mask(LEFT, holes=((4, 5, 10, 11),)))),
        instances(("car", (4, 5, 10, 11))),
        [Match(0, None, 0.0), Match(None, 0, 0.0)],
    ),
    "an empty mask pairs with nothing": (
        instances(("car", box_mask())),
        instances(("car", box_mask())),
        [Match(0, None, 0.0), Match(None, 0, 0.0)],
    ),
}


@pytest.mark.parametrize(("first", "second", "expected"), CASES.values(), ids=CASES.keys())
def test_match(first: Instances, second: Instances, expected: list[Match]) -> None:
    assert match(first, second) == [Match(m.first, m.second, approx(m.iou)) for m in expected]


def test_the_sum_is_maximal_where_a_greedy_choice_fails() -> None:
    # IoUs: a-x .8, a-y .625, b-x .6, b-y .1. A greedy choice takes a-x and is left with b-y: .9 instead of
    # 1.225.
    first = instances(("car", (0, 0, 8, 10)), ("car", (4, 0, 10, 10)))
    second = instances(("car", (0, 0, 10, 10)), ("car", (0, 0, 5, 10)))
    assert [(m.first, m.second) for m in match(first, second)] == [(0, 1), (1, 0)]


def test_none_never_pairs_different_classes_and_zero_accepts_any_overlap() -> None:
    first, second = instances(("car", LEFT)), instances(("truck", LEFT), ("car", (2, 3, 7, 4)))
    pairs = match(first, second, min_iou=0.0, min_iou_swapped=None)
    assert [(m.first, m.second) for m in pairs] == [(0, 1), (None, 0)]


def test_masks_that_share_no_pixel_are_never_paired() -> None:
    pairs = match(instances(("car", LEFT)), instances(("car", RIGHT)), min_iou=0.0, min_iou_swapped=0.0)
    assert [(m.first, m.second) for m in pairs] == [(0, None), (None, 0)]


def random_instances(rng: np.random.Generator) -> Instances:
    corners = rng.integers((0, 0), (WIDTH // 3, HEIGHT // 3), (rng.integers(0, 4), 2)).tolist()
    sizes = rng.integers(4, 16, (len(corners), 2)).tolist()
    boxes = [(x, y, x + w, y + h) for (x, y), (w, h) in zip(corners, sizes, strict=True)]
    return instances(*((str(rng.choice(["car", "piano"])), box, float(rng.random())) for box in boxes))


def best_sum(ious: NDArray[np.float64]) -> float:
    """The largest sum over all assignments of a padded square, by brute force."""
    side = max(ious.shape)
    padded = np.zeros((side, side))
    padded[: ious.shape[0], : ious.shape[1]] = ious
    return max(padded[range(side), list(order)].sum() for order in itertools.permutations(range(side)))


@pytest.mark.parametrize("seed", range(30))
def test_matching_is_optimal_complete_and_symmetric(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = random_instances(rng), random_instances(rng)
    matches = match(first, second)
    assert sorted(m.first for m in matches if m.first is not None) == list(range(len(first)))
    assert sorted(m.second for m in matches if m.second is not None) == list(range(len(second)))
    pairs = [m for m in matches if m.first is not None and m.second is not None]
    same = np.equal.outer(np.array(first.class_names, object), np.array(second.class_names, object)).astype(
        bool
    )
    ious = shapes.iou_matrix(first.rles, second.rles)
    gains = np.where(ious >= np.where(same, 0.1, 0.5), ious + 0.05 * same, 0)
    assert (
        sum(gains[m.first, m.second] for m in pairs) == approx(best_sum(gains), abs=1e-4)
        if gains.size
        else not pairs
    )
    mirrored = {(m.second, m.first, m.iou) for m in match(second, first)}
    assert mirrored == {(m.first, m.second, m.iou) for m in matches}


def test_errors_name_the_mistake() -> None:
    turned = Instances((HEIGHT, WIDTH), (), (), np.zeros(0))
    with pytest.raises(DiffugenError, match="40 x 24 and 24 x 40"):
        match(instances(("car", LEFT)), turned)
    with pytest.raises(DiffugenError, match=r"min_iou is 1\.5"):
        match(instances(), instances(), min_iou=1.5)
    with pytest.raises(DiffugenError, match="min_iou_swapped is nan"):
        match(instances(), instances(), min_iou_swapped=float("nan"))
    with pytest.raises(ValueError, match="at least one side"):
        Match(None, None, 0.0)
