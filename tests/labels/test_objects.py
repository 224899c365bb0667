"""One mask per object: which of a detector's overlapping masks stays, and what it remembers."""

from __future__ import annotations

import numpy as np
import pytest

from diffugen.labels.objects import finished, one_mask_per_object
from diffugen.labels.shapes import decode
from diffugen.records import Instances
from tests.support.boxes import HEIGHT, WIDTH, approx, instances

WHOLE, NEARLY, HALF, AWAY = (2, 3, 12, 13), (2, 3, 12, 12), (2, 3, 12, 8), (26, 8, 38, 22)
TOUCHING = (11, 3, 21, 13)  # shares one column of ten with WHOLE

# What the detector returns, and the (class, confidence) of what stays.
CASES = {
    "nothing": (instances(), []),
    "a duplicate": (instances(("car", NEARLY, 0.6), ("car", WHOLE, 0.9)), [("car", 0.9)]),
    "a part of the same object": (instances(("car", WHOLE, 0.9), ("car", (3, 4, 6, 7), 0.8)), [("car", 0.9)]),
    "the whole, found after its part": (
        instances(("car", (3, 4, 6, 7), 0.9), ("car", WHOLE, 0.8)),
        [("car", 0.9)],
    ),
    "half of it, at an IoU of exactly one half": (
        instances(("car", WHOLE, 0.9), ("car", HALF, 0.8)),
        [("car", 0.9)],
    ),
    "two objects": (instances(("car", AWAY, 0.6), ("car", WHOLE, 0.9)), [("car", 0.9), ("car", 0.6)]),
    "neighbours": (instances(("car", WHOLE, 0.9), ("car", TOUCHING, 0.6)), [("car", 0.9), ("car", 0.6)]),
    "two classes on one place": (instances(("piano", NEARLY, 0.6), ("truck", WHOLE, 0.7)), [("truck", 0.7)]),
    "a person in a car": (
        instances(("car", WHOLE, 0.9), ("person", (3, 4, 6, 7), 0.8)),
        [("car", 0.9), ("person", 0.8)],
    ),
}


@pytest.mark.parametrize(("given", "expected"), CASES.values(), ids=CASES)
def test_what_stays(given: Instances, expected: list[tuple[str, float]]) -> None:
    kept = one_mask_per_object(given)
    assert list(zip(kept.class_names, kept.scores.tolist(), strict=True)) == expected
    assert one_mask_per_object(kept).rles == kept.rles


def test_other_classes_of_an_object_are_remembered() -> None:
    given = instances(
        ("truck", WHOLE, 0.7), ("piano", NEARLY, 0.6), ("piano", WHOLE, 0.3), ("car", NEARLY, 0.2)
    )
    kept = one_mask_per_object(given)
    assert kept.rivals == ({"piano": 0.6, "car": 0.2},)
    assert one_mask_per_object(kept).rivals == kept.rivals, "nothing is forgotten the second time"
    assert kept.take([0]).joined(instances(("car", AWAY, 0.5))).rivals == ({"piano": 0.6, "car": 0.2}, {})


def test_masks_that_come_together_when_refined_are_one_object() -> None:
    """Two masks of a red square on grey, each lacking a part: refined, each becomes the square."""
    rgb = np.full((HEIGHT, WIDTH, 3), 120, np.uint8)
    rgb[4:14, 4:16] = (200, 30, 30)
    square = np.zeros((HEIGHT, WIDTH), bool)
    square[4:14, 4:16] = True
    given = instances(("car", (4, 4, 16, 11), 0.9), ("car", (4, 7, 16, 14), 0.8))
    assert len(one_mask_per_object(given)) == 2
    kept = finished(given, rgb)
    assert len(kept) == 1 and kept.scores.tolist() == [approx(0.9)]
    found = decode(kept.rles[0])
    assert (found & square).sum() / (found | square).sum() > 0.85
