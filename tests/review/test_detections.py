"""Masks and labels survive the App's form: cropped to boxes, pixel for pixel."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from diffugen.labels.shapes import decode, encode
from diffugen.records import Disagreement, Instances, LabelSet
from diffugen.review import detections
from diffugen.review.detections import crop, paste, to_detections, to_instances
from diffugen.review.judged import Unclear
from tests.support import run_for_review as made

SIZE_HW = (24, 40)


def detection(**changes: Any) -> SimpleNamespace:
    """What FiftyOne hands over: an object with a detection's attributes."""
    mask = np.ones((12, 20), dtype=bool)
    values = {
        "label": "piano",
        "bounding_box": [0.0, 0.0, 0.5, 0.5],
        "confidence": 0.5,
        "mask": mask,
        "mask_path": None,
    }
    return SimpleNamespace(**{**values, **changes})


@settings(max_examples=200, deadline=None)
@given(st.tuples(st.integers(1, 97), st.integers(1, 61)).flatmap(lambda hw: hnp.arrays(bool, hw)))
def test_crop_and_paste_are_exact(mask: np.ndarray) -> None:
    box, inside = crop(encode(mask))
    assert all(0 <= edge <= 1 for edge in box)
    assert box[0] + box[2] <= 1 + 1e-12
    np.testing.assert_array_equal(decode(paste(box, inside, mask.shape[::-1])), mask)


@pytest.mark.parametrize(
    "corner", [(slice(None), slice(0, 1)), (slice(23, 24), slice(None)), (slice(None), slice(None))]
)
def test_masks_on_the_border_are_exact(corner: tuple[slice, slice]) -> None:
    mask = np.zeros(SIZE_HW, dtype=bool)
    mask[corner] = True
    assert paste(*crop(encode(mask)), SIZE_HW[::-1]) == encode(mask)


def test_a_resized_box_scales_its_mask() -> None:
    mask = np.array([[True, False], [False, True]])
    found = decode(paste([0.1, 0.25, 0.2, 0.5], mask, (40, 24)))
    expected = np.zeros((24, 40), dtype=bool)
    expected[6:12, 4:8] = expected[12:18, 8:12] = True
    np.testing.assert_array_equal(found, expected)


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(bool, (12, 20)), st.floats(2, 30), st.tuples(st.integers(0, 9), st.integers(0, 9)))
def test_a_mask_at_the_resolution_of_a_screen_comes_back_exactly(
    part: np.ndarray, zoom: float, margin: tuple[int, int]
) -> None:
    """It begins at a pixel of the screen, which need not be one of the image: the App paints such masks."""
    mask = np.zeros(SIZE_HW, dtype=bool)
    mask[10:22, 10:30] = part
    # Each pixel of the screen shows the pixel of the image below its middle.
    rows, columns = ((np.arange(int(zoom * size)) + 0.5) / zoom for size in SIZE_HW)
    shown = mask[rows.astype(int)][:, columns.astype(int)]
    top, left = margin
    height, width = shown[top:, left:].shape
    box = [left / zoom / 40, top / zoom / 24, width / zoom / 40, height / zoom / 24]
    np.testing.assert_array_equal(decode(paste(box, shown[top:, left:], (40, 24))), mask)


@pytest.mark.parametrize(
    ("box", "pixels"),
    [
        ([-0.25, -0.5, 0.5, 1.0], (slice(0, 12), slice(0, 10))),
        ([0.75, 0.5, 0.5, 1.0], (slice(12, 24), slice(30, 40))),
        ([1.5, 0.5, 0.5, 1.0], (slice(0, 0), slice(0, 0))),
        ([0.0, -2.0, 0.5, 1.0], (slice(0, 0), slice(0, 0))),
        ([-1.0, -1.0, 3.0, 3.0], (slice(0, 24), slice(0, 40))),
    ],
)
def test_a_box_beyond_the_image_is_cut_off(box: list[float], pixels: tuple[slice, slice]) -> None:
    expected = np.zeros(SIZE_HW, dtype=bool)
    expected[pixels] = True
    np.testing.assert_array_equal(decode(paste(box, np.ones((3, 5)), (40, 24))), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "pianno"}, "the run has no class 'pianno', did you mean 'piano'"),
        ({"label": None}, "no class None"),
        ({"mask": None}, "a box but no mask"),
        ({"mask": None, "mask_path": "/nowhere/mask.png"}, "/nowhere/mask.png cannot be read"),
        ({"mask": np.zeros((0, 0), dtype=bool)}, "at least one pixel"),
        ({"mask": np.zeros((2, 3, 4))}, "two axes"),
        ({"bounding_box": []}, "x, y, width, height"),
        ({"bounding_box": [0, 0, 0, 0.5]}, "positive width and height"),
        ({"bounding_box": [0, float("nan"), 1, 0.5]}, "x, y, width, height"),
        ({"confidence": 1.5}, "1.5, not in"),
        ({"confidence": float("nan")}, "nan, not in"),
    ],
)
def test_invalid_labels_are_reported(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Unclear, match=message):
        to_instances([detection(), detection(**changes)], (40, 24), {"piano", "car"})


def test_a_label_drawn_by_hand_has_score_1() -> None:
    found = to_instances([detection(confidence=None)], (40, 24), {"piano"})
    assert found.scores.tolist() == [1.0]
    assert decode(found.rles[0]).sum() == 12 * 20


@pytest.mark.parametrize("limit", [10**6, 100], ids=["database", "files"])
def test_labels_come_back_the_same(limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detections, "IN_DATABASE_BYTES", limit)
    masks = [np.random.default_rng(seed).random(SIZE_HW) < 0.3 for seed in range(3)] + [
        np.zeros(SIZE_HW, dtype=bool)
    ]
    names, scores = ("piano", "car", "car", "piano"), np.array([1 / 3, 0.0, 1.0, 0.7])
    terms = tuple({"contrast": value / 3} for value in scores)
    instances = Instances((40, 24), names, tuple(map(encode, masks)), scores, terms)
    point = Disagreement("image", "swapped", 0.7, 2, 0, 0.6)
    made = to_detections(LabelSet("image", "attention", instances, "otsu"), [point], tmp_path / "masks")
    assert [one.get("kind") for one in made] == [None, None, "swapped", None]
    assert [one["index"] for one in made] == [0, 1, 2, 3]
    assert [one["contrast"] for one in made] == [one["contrast"] for one in terms]
    assert len(list(tmp_path.glob("masks/*.png"))) == (0 if limit > 100 else 4)
    found = to_instances(
        [detection(**{"mask": None, "mask_path": None, **one}) for one in made], (40, 24), {"piano", "car"}
    )
    assert (found.class_names, found.rles) == (names, instances.rles)
    assert found.scores.tobytes() == scores.tobytes()


def test_a_disagreement_marks_its_own_side_alone(tmp_path: Path) -> None:
    attention, model = made.LABELS[0]
    point = Disagreement("image", "overlooked", 0.3, None, 0, 0.0)
    one = to_detections(LabelSet("image", "attention", attention, "m"), [point], tmp_path)
    other = to_detections(LabelSet("image", "model", model, "m"), [point], tmp_path)
    assert ["kind" in each for each in (*one, *other)] == [False, True, False]
