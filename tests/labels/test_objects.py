"""One mask per object: which of a detector's overlapping masks stays, and what it remembers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from diffugen.labels import objects
from diffugen.labels.objects import finished, one_mask_per_object, with_rivals
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


def test_masks_that_come_together_when_refined_are_one_object(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever moves the edges: here both masks become the same square."""
    rgb = np.full((HEIGHT, WIDTH, 3), 120, np.uint8)
    [square] = instances(("car", (4, 4, 16, 14), 0.9)).rles
    given = instances(("car", (4, 4, 16, 11), 0.9), ("car", (4, 7, 16, 14), 0.8))
    assert len(one_mask_per_object(given)) == len(finished(given, rgb)) == 2
    monkeypatch.setattr(objects, "refined", lambda found, rgb: replace(found, rles=(square,) * len(found)))
    kept = finished(given, rgb)
    assert kept.rles == (square,) and kept.scores.tolist() == [approx(0.9)]


def test_second_guesses_count_with_the_same_mask() -> None:
    given = instances(
        ("car", (4, 4, 16, 11), 0.9), ("truck", (4, 4, 16, 12), 0.3), ("car", (20, 4, 30, 9), 0.5)
    )
    settled = one_mask_per_object(given)
    assert settled.class_names == ("car", "car")
    guessed = with_rivals(settled)
    assert guessed.class_names == ("car", "car", "truck") and guessed.rles[2] == guessed.rles[0]
    assert guessed.scores.tolist() == [approx(0.9), approx(0.5), approx(0.3)]
    assert len(with_rivals(instances(("car", (4, 4, 16, 11), 0.9)))) == 1
