"""Each kind of disagreement is recognised, severity is monotone, and the queue has one possible order."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import asdict

import numpy as np
import pytest

from diffugen.comparison.disagreement import compare, severity
from diffugen.comparison.matching import Match
from diffugen.errors import DiffugenError
from diffugen.records import KINDS, Disagreement, Instances
from tests.support.boxes import approx, instances

LEFT, UPPER_LEFT, RIGHT = (2, 3, 12, 13), (2, 3, 12, 7), (26, 8, 38, 22)

# Attention labels, model labels, number of agreements, and (kind, severity, attention, model, iou) of each
# disagreement.
CASES = {
    "no labels on either side": (instances(), instances(), 0, []),
    "agreement": (instances(("car", LEFT, 0.4)), instances(("car", LEFT, 0.7)), 1, []),
    "overlooked": (instances(), instances(("car", RIGHT, 0.8)), 0, [("overlooked", 0.8, None, 0, 0.0)]),
    "spurious": (instances(("car", RIGHT, 0.7)), instances(), 0, [("spurious", 0.3, 0, None, 0.0)]),
    "swapped": (
        instances(("car", LEFT, 0.6)),
        instances(("piano", LEFT, 0.9)),
        0,
        [("swapped", 0.9 + 0.1 * 0.4, 0, 0, 1.0)],
    ),
    "badly located": (
        instances(("car", LEFT, 0.6)),
        instances(("car", UPPER_LEFT, 0.9)),
        0,
        [("badly_located", 0.9 * 0.5 + 0.1 * 0.4, 0, 0, 0.4)],
    ),
    "two classes with little overlap": (
        instances(("car", LEFT, 0.6)),
        instances(("piano", UPPER_LEFT, 0.9)),
        0,
        [("spurious", 0.4, 0, None, 0.4), ("overlooked", 0.9 * 0.6, None, 0, 0.4)],
    ),
    "a second name for a labelled object has no severity": (
        instances(("car", LEFT, 0.6)),
        instances(("truck", LEFT, 0.9), ("car", LEFT, 0.5)),
        1,
        [("overlooked", 0.0, None, 0, 1.0)],
    ),
}


@pytest.mark.parametrize(("attention", "model", "agreements", "expected"), CASES.values(), ids=CASES.keys())
def test_compare(
    attention: Instances,
    model: Instances,
    agreements: int,
    expected: list[tuple[str, float, int | None, int | None, float]],
) -> None:
    found = compare("image", attention, model)
    assert len(found.agreements) == agreements
    assert [(d.kind, d.severity, d.attention, d.model, d.iou) for d in found.disagreements] == [
        (kind, approx(worst), first, second, approx(iou)) for kind, worst, first, second, iou in expected
    ]


def test_every_instance_occurs_once() -> None:
    attention = instances(("car", LEFT, 0.6), ("piano", RIGHT, 0.5), ("car", (14, 2, 22, 10), 0.4))
    model = instances(("car", RIGHT, 0.3), ("car", UPPER_LEFT, 0.9), ("cone", (14, 14, 20, 20), 0.8))
    found = compare("image", attention, model)
    assert sorted(d.attention for d in found.disagreements if d.attention is not None) == [0, 1, 2]
    assert sorted(d.model for d in found.disagreements if d.model is not None) == [0, 1, 2]
    assert {d.kind for d in found.disagreements} == set(KINDS)
    assert json.loads(json.dumps([asdict(d) for d in found.disagreements]))[0]["image_id"] == "image"


def test_agreement_begins_at_good_iou() -> None:
    attention, model = instances(("car", LEFT, 0.6)), instances(("car", UPPER_LEFT, 0.9))
    assert compare("image", attention, model, good_iou=0.4).agreements == (Match(0, 0, approx(0.4)),)
    assert [d.kind for d in compare("image", attention, model, min_iou=0.41).disagreements] == [
        "spurious",
        "overlooked",
    ]


def test_agreements_have_doubts_on_the_same_scale() -> None:
    attention = instances(("car", LEFT, 0.6), ("piano", RIGHT, 0.2))
    model = instances(("car", LEFT, 0.9), ("piano", RIGHT, 0.5))
    found = compare("image", attention, model)
    assert found.doubts == (approx(0.1 * 0.4), approx(0.5 * 0.8)) and found.worst == approx(0.4)
    assert compare("image", instances(), instances()).worst == 0


def test_what_the_model_suspects_speaks_for_or_against_a_label_without_a_match() -> None:
    attention = instances(("car", LEFT, 0.6))
    lonely = compare("image", attention, instances()).worst
    cases = {
        "same place": (("car", LEFT, 0.2), 0.8 * 0.4),
        "part of it": (("car", UPPER_LEFT, 0.2), 0.2 * 0.5 + 0.8 * 0.4),
        "another class": (("piano", LEFT, 0.2), lonely),
        "another place": (("car", RIGHT, 0.2), lonely),
    }
    for name, (candidate, expected) in cases.items():
        [one] = compare("image", attention, instances(), instances(candidate)).disagreements
        assert (one.kind, one.model, one.severity) == ("spurious", None, approx(expected)), name


def test_a_model_that_nearly_agrees_on_the_class_says_little() -> None:
    attention = instances(("piano", LEFT, 0.6))
    sure, torn = instances(("truck", LEFT, 0.8)), instances(("truck", LEFT, 0.8))
    torn = dataclasses.replace(torn, rivals=({"piano": 0.7, "car": 0.1},))
    worst = [compare("image", attention, model).disagreements[0].severity for model in (sure, torn)]
    assert worst == [approx(0.8 + 0.2 * 0.4), approx(0.1 + 0.9 * 0.4)]


STEPS = np.linspace(0, 1, 6).tolist()


@pytest.mark.parametrize("kind", [*KINDS, None])
def test_severity_is_in_range_and_monotone(kind: str | None) -> None:
    scores = [None] if kind == "overlooked" else STEPS
    confidences = [None] if kind == "spurious" else STEPS
    tables = [
        np.array([[severity(kind, score, confidence, iou) for confidence in confidences] for score in scores])
        for iou in STEPS
    ]
    for table in tables:
        assert table.min() >= 0 and table.max() <= 1
        assert (np.diff(table, axis=0) <= 0).all(), "a higher score must not raise the severity"
    assert (np.diff(tables, axis=0) <= 0).all(), "masks that are closer must not raise the severity"
    assert (np.diff(tables[0], axis=1) >= 0).all(), "a model that is surer of another object raises it"
    assert all(np.ptp(tables[0], axis=axis).any() for axis in (0, 1) if tables[0].shape[axis] > 1), (
        "each score must matter"
    )
    if kind in ("badly_located", None):
        assert (np.diff(tables[-1], axis=1) <= 0).all(), "a model that is surer of the same mask lowers it"


def test_errors_name_the_mistake() -> None:
    with pytest.raises(DiffugenError, match=r"min_iou \(0\.6\) is above good_iou \(0\.5\)"):
        compare("image", instances(), instances(), min_iou=0.6)
    with pytest.raises(DiffugenError, match="good_iou is 2"):
        compare("image", instances(), instances(), good_iou=2)
    with pytest.raises(ValueError, match="unknown kind"):
        Disagreement("a", "missed", 0.5, None, 0, 0.0)
    with pytest.raises(ValueError, match="must lie in"):
        Disagreement("a", "overlooked", 1.5, None, 0, 0.0)
    with pytest.raises(ValueError, match="cannot have attention=0"):
        Disagreement("a", "overlooked", 0.5, 0, 0, 0.0)
