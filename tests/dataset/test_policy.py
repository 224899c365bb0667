"""The labels an image is trained with, row by row, and which families are used for validation."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from diffugen.dataset.policy import (
    LEFT_OUT,
    ORIGINS,
    TrainingLabels,
    in_validation,
    split_by_family,
    training_labels,
)
from diffugen.errors import DiffugenError
from diffugen.labels import shapes
from diffugen.labels.refine import ColourTies
from diffugen.records import Decision, Instances
from tests.support.dataset_samples import HEIGHT, WIDTH, assert_equal_instances, box_mask

LEFT, RIGHT = (2, 2, 14, 20), (22, 2, 36, 20)
LEFT_SHIFTED = (4, 2, 16, 20)
LEFT_FAR = (8, 2, 24, 20)


def labels(*objects: tuple[str, tuple[int, int, int, int], float]) -> Instances:
    names, boxes, scores = zip(*objects, strict=True) if objects else ((), (), ())
    rles = tuple(shapes.encode(box_mask(box)) for box in boxes)
    return Instances(
        (WIDTH, HEIGHT), names, rles, np.array(scores), tuple({"contrast": score} for score in scores)
    )


NOTHING = labels()
CAR = labels(("car", LEFT, 0.6))
CAR_AND_CONE = labels(("car", LEFT, 0.6), ("cone", RIGHT, 0.7))
SEEN_CAR = labels(("car", LEFT_SHIFTED, 0.9))
SEEN_BOTH = labels(("cone", RIGHT, 0.95), ("car", LEFT_SHIFTED, 0.9))
UNSURE = labels(("car", LEFT_SHIFTED, 0.2))
EDITED = Decision("image", "edited", labels(("truck", RIGHT, 1.0)), "ann")
EMPTY = Decision("image", "empty", NOTHING, "ann")
REJECT = Decision("image", "reject", None, "ann")


@pytest.mark.parametrize(
    ("attention", "model", "decision", "options", "origin", "objects"),
    [
        # A person decided, so nothing else matters.
        (CAR, SEEN_CAR, EDITED, {}, "human", ["truck"]),
        (CAR, None, EDITED, {"min_score": 1.0}, "human", ["truck"]),
        (CAR, SEEN_CAR, EMPTY, {"trust": "model"}, "human", []),
        (CAR, SEEN_CAR, REJECT, {"trust": "model"}, "rejected", None),
        # A single attention label below the minimum score excludes the image.
        (CAR_AND_CONE, SEEN_BOTH, None, {"min_score": 0.65}, "low_score", None),
        (CAR_AND_CONE, None, None, {"min_score": 0.65}, "low_score", None),
        (CAR_AND_CONE, NOTHING, None, {"min_score": 0.65, "trust": "model"}, "low_score", None),
        (CAR_AND_CONE, SEEN_BOTH, None, {"min_score": 0.6}, "agreed", ["car", "cone"]),
        # No detector has predicted on the image.
        (CAR_AND_CONE, None, None, {}, "attention", ["car", "cone"]),
        (NOTHING, None, None, {}, "unlabelled", None),
        (NOTHING, None, None, {"trust": "attention"}, "unlabelled", None),
        # Neither side has labels.
        (NOTHING, NOTHING, None, {}, "negative", []),
        # Both sides agree on everything.
        (CAR_AND_CONE, SEEN_BOTH, None, {}, "agreed", ["car", "cone"]),
        (CAR, UNSURE, None, {}, "agreed", ["car"]),
        # The sides disagree: overlooked, spurious, swapped, badly located.
        (CAR, SEEN_BOTH, None, {}, "disagreement", None),
        (CAR_AND_CONE, SEEN_CAR, None, {}, "disagreement", None),
        (CAR, labels(("truck", LEFT, 0.9)), None, {}, "disagreement", None),
        (CAR, labels(("car", LEFT_FAR, 0.9)), None, {}, "disagreement", None),
        (CAR, labels(("car", LEFT_FAR, 0.9)), None, {"good_iou": 0.2}, "agreed", ["car"]),
        (CAR, labels(("car", LEFT_SHIFTED, 0.9), ("cone", RIGHT, 0.1)), None, {}, "disagreement", None),
        (NOTHING, SEEN_CAR, None, {}, "disagreement", None),
        (NOTHING, UNSURE, None, {}, "disagreement", None),
        # The sides disagree and one is trusted: all of its labels are used, and none of the other side's.
        (CAR_AND_CONE, SEEN_CAR, None, {"trust": "attention"}, "attention", ["car", "cone"]),
        (CAR_AND_CONE, SEEN_CAR, None, {"trust": "model"}, "model", ["car"]),
        (CAR, SEEN_BOTH, None, {"trust": "model"}, "model", ["cone", "car"]),
        (CAR, NOTHING, None, {"trust": "model"}, "model", []),
        (CAR_AND_CONE, UNSURE, None, {"trust": "model"}, "model", ["car"]),
        (NOTHING, SEEN_CAR, None, {"trust": "attention"}, "attention", []),
    ],
)
def test_training_labels_follow_the_table(
    attention: Instances,
    model: Instances | None,
    decision: Decision | None,
    options: dict[str, Any],
    origin: str,
    objects: list[str] | None,
) -> None:
    found = training_labels("image", attention, model, decision, **options)
    if objects is None:
        assert found == TrainingLabels(None, None, origin)
    else:
        assert (found.origin, found.reason) == (origin, None)
        assert found.instances is not None
        assert list(found.instances.class_names) == objects


@pytest.mark.parametrize(
    ("mask", "box"),
    [
        ("attention", (2, 2, 14, 20)),
        ("model", (4, 2, 16, 20)),
        ("union", (2, 2, 16, 20)),
        ("intersection", (4, 2, 14, 20)),
    ],
)
def test_agreed_labels_have_the_chosen_mask_and_the_attention_score(
    mask: Any, box: tuple[int, int, int, int]
) -> None:
    found = training_labels("image", CAR_AND_CONE, SEEN_BOTH, None, mask=mask)
    assert found.instances is not None
    assert_equal_instances(found.instances, labels(("car", box, 0.6), ("cone", RIGHT, 0.7)))


def test_a_consensus_ends_where_the_colours_change() -> None:
    """Attention's car begins 2 pixels to the left of the model's and ends 2 pixels before it."""
    calls = []

    def ties() -> ColourTies:
        calls.append(1)
        coloured = np.where(box_mask((4, 2, 14, 20)) | box_mask(RIGHT), 200, 40)
        return ColourTies(np.repeat(coloured[..., None], 3, axis=2).astype(np.uint8))

    found = training_labels("image", CAR_AND_CONE, SEEN_BOTH, None, mask="consensus", ties=ties)
    assert found.instances is not None
    expected = labels(("car", (4, 2, 14, 20), 0.6), ("cone", RIGHT, 0.7))
    assert_equal_instances(found.instances, expected)
    assert calls == [1]
    with pytest.raises(ValueError, match="ties"):
        training_labels("image", CAR, SEEN_CAR, None, mask="consensus")


def test_labels_of_one_side_are_used_unchanged() -> None:
    assert training_labels("image", CAR, None, None).instances is CAR
    trusted = training_labels("image", CAR, SEEN_BOTH, None, trust="model", mask="attention").instances
    assert trusted is not None
    assert_equal_instances(trusted, SEEN_BOTH)


def test_no_image_is_half_labelled() -> None:
    """For all pairs of label sets: all objects of one side, all pairs if they agree, or none."""
    sides = [
        NOTHING,
        CAR,
        CAR_AND_CONE,
        SEEN_CAR,
        SEEN_BOTH,
        labels(("truck", LEFT, 0.9)),
        labels(("car", LEFT_FAR, 0.4)),
    ]
    seen = set()
    for attention, model, trust, mask in itertools.product(
        sides, [None, *sides], ("none", "attention", "model"), ("model", "attention", "union", "intersection")
    ):
        options: dict[str, Any] = {"trust": trust, "mask": mask}
        found = training_labels("image", attention, model, None, **options)
        seen.add(found.origin or found.reason)
        if found.origin == "agreed":
            assert model is not None
            assert found.instances is not None
            assert len(found.instances) == len(attention) == len(model) > 0
            assert sorted(found.instances.class_names) == sorted(model.class_names)
        elif found.origin is not None:
            assert found.instances is not None
            expected = attention if found.origin in ("attention", "negative") else model
            assert expected is not None
            assert_equal_instances(found.instances, expected)
        if trust == "none" and found.origin == "model":
            pytest.fail("model labels are used although the model is not trusted")
    assert seen == {"agreed", "attention", "model", "negative", "unlabelled", "disagreement"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": "both"}, "mask is 'both'; expected one of consensus, model, attention, union"),
        ({"trust": "all"}, "trust is 'all'; expected one of none, attention, model"),
        ({"min_score": 1.5}, r"min_score is 1\.5; it must be in \[0, 1\]"),
        ({"min_score": -0.1}, r"min_score is -0\.1"),
        ({"min_iou": 0.6}, r"min_iou \(0\.6\) is above good_iou"),
        ({"model": Instances((HEIGHT, WIDTH), (), (), np.zeros(0))}, "40 x 24 and 24 x 40"),
    ],
)
def test_errors_name_an_invalid_option(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DiffugenError, match=message):
        training_labels("image", **{"attention": CAR, "model": SEEN_CAR, "decision": None, **options})


@pytest.mark.parametrize(
    ("origin", "instances", "reason"),
    [
        ("agreed", None, None),
        (None, CAR, "rejected"),
        ("agreed", CAR, "rejected"),
        (None, None, None),
        ("guess", CAR, None),
    ],
)
def test_training_labels_are_either_used_or_left_out(
    origin: str | None, instances: Instances | None, reason: str | None
) -> None:
    assert all(TrainingLabels(known, CAR) for known in ORIGINS)
    assert all(TrainingLabels(None, None, known) for known in LEFT_OUT)
    with pytest.raises(ValueError, match="either used or left out"):
        TrainingLabels(origin, instances, reason)


FAMILIES = [f"prompt-{number}" for number in range(2000)]


def test_validation_gets_about_the_requested_fraction() -> None:
    for val_frac in (0.1, 0.2, 0.5):
        assert len(split_by_family(FAMILIES, val_frac, 0)) / len(FAMILIES) == pytest.approx(
            val_frac, abs=0.03
        )
    first, second = split_by_family(FAMILIES, 0.2, 0), split_by_family(FAMILIES, 0.2, 1)
    assert len(first & second) / len(FAMILIES) == pytest.approx(0.04, abs=0.02)


def test_the_split_is_the_same_on_every_machine() -> None:
    assert [number for number in range(30) if in_validation(FAMILIES[number], 0.2, 7)] == [
        1,
        6,
        8,
        12,
        16,
        25,
        28,
    ]


def test_a_larger_fraction_keeps_the_validation_families_of_a_smaller_one() -> None:
    assert split_by_family(FAMILIES, 0.1, 3) < split_by_family(FAMILIES, 0.3, 3)


@given(
    st.lists(st.text(max_size=3), max_size=12),
    st.integers(0, 12),
    st.floats(0.001, 0.999),
    st.integers(0, 2**63 - 1),
)
def test_families_never_change_splits(ids: list[str], earlier: int, val_frac: float, seed: int) -> None:
    before, after = split_by_family(ids[:earlier], val_frac, seed), split_by_family(ids, val_frac, seed)
    assert before == after & set(ids[:earlier])
    assert after <= set(ids)
    if len(set(ids)) >= 2:
        assert after
        assert set(ids) - after


def test_there_is_no_validation_without_a_fraction_or_a_second_family() -> None:
    assert split_by_family(FAMILIES, 0, 0) == set()
    assert split_by_family(FAMILIES[:1], 0.5, 0) == set()
    assert split_by_family([], 0.5, 0) == set()


@pytest.mark.parametrize("val_frac", [-0.1, 1, 1.5, float("nan")])
def test_an_invalid_fraction_is_named(val_frac: float) -> None:
    with pytest.raises(DiffugenError, match=r"val_frac is .*it must be in \[0, 1\)"):
        in_validation("prompt", val_frac, 0)
    with pytest.raises(DiffugenError, match=r"val_frac is .*it must be in \[0, 1\)"):
        split_by_family([], val_frac, 0)


def test_by_evidence_sure_labels_stay_and_doubtful_ones_are_hidden() -> None:
    attention = labels(("car", LEFT, 0.9), ("cone", RIGHT, 0.2))
    seen_none, seen_cone = NOTHING, labels(("cone", RIGHT, 0.9))
    alone = training_labels("image", attention, seen_none, None, trust="evidence")
    assert alone.origin == "evidence" and alone.instances is not None
    assert alone.instances.class_names == ("car",) and alone.hidden == (attention.rles[1],)
    agreed = training_labels("image", attention, seen_cone, None, trust="evidence")
    assert agreed.instances is not None and agreed.instances.class_names == ("car", "cone")
    assert agreed.hidden == ()


def test_by_evidence_what_was_probably_overlooked_is_hidden() -> None:
    attention = labels(("car", LEFT, 0.9))
    for confidence, hidden in ((0.9, 1), (0.3, 0)):
        model = labels(("car", LEFT, 0.9), ("cone", RIGHT, confidence))
        found = training_labels("image", attention, model, None, trust="evidence")
        assert found.instances is not None and found.instances.class_names == ("car",)
        assert len(found.hidden) == hidden


def test_by_evidence_an_image_without_a_sure_label_is_left_out() -> None:
    found = training_labels("image", labels(("car", LEFT, 0.2)), NOTHING, None, trust="evidence")
    assert (found.instances, found.reason) == (None, "disagreement")
