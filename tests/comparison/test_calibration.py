"""Severities learn from decisions: slowly, by kind, and without changing their order."""

from __future__ import annotations

import numpy as np
import pytest

from diffugen.comparison.calibration import ALL_KINDS, UNCALIBRATED, Outcome, calibrate, reliability
from diffugen.comparison.disagreement import compare
from diffugen.comparison.verdicts import outcomes
from diffugen.records import Instances
from tests.support.boxes import approx, instances

LEFT, NEARLY, RIGHT, FAR = (2, 3, 12, 13), (2, 3, 12, 12), (26, 8, 38, 22), (14, 2, 22, 10)


def planted(kind: str, count: int, offset: float, seed: int = 0) -> list[Outcome]:
    """Return outcomes whose true odds are higher than the severity's by a factor ``exp(offset)``."""
    rng = np.random.default_rng(seed)
    severity = rng.uniform(0.05, 0.95, count)
    odds = severity / (1 - severity) * np.exp(offset)
    return [
        Outcome(kind, float(one), bool(rng.random() < chance))
        for one, chance in zip(severity, odds / (1 + odds), strict=True)
    ]


def test_without_outcomes_nothing_changes() -> None:
    for calibration in (UNCALIBRATED, calibrate([])):
        assert all(calibration.probability(kind, 0.37) == 0.37 for kind in ALL_KINDS)


def test_many_outcomes_are_learned_by_kind() -> None:
    learned = calibrate([*planted("spurious", 2000, 1.5), *planted("overlooked", 2000, -1.5, seed=1)])
    for kind, offset in (("spurious", 1.5), ("overlooked", -1.5)):
        for severity in (0.2, 0.5, 0.8):
            odds = severity / (1 - severity) * np.exp(offset)
            assert learned.probability(kind, severity) == pytest.approx(odds / (1 + odds), abs=0.06)
    assert learned.probability("swapped", 0.5) == 0.5, "of this kind nothing is known"
    assert learned.outcomes == {"spurious": 2000, "overlooked": 2000}


def test_a_few_outcomes_change_little() -> None:
    learned = calibrate([Outcome("spurious", 0.5, True), Outcome("spurious", 0.5, True)])
    assert 0.5 < learned.probability("spurious", 0.5) < 0.75


def test_a_calibration_never_reverses_the_order() -> None:
    contrary = [Outcome("spurious", severity, severity < 0.5) for severity in np.linspace(0.05, 0.95, 200)]
    values = [calibrate(contrary).probability("spurious", one) for one in np.linspace(0, 1, 30)]
    assert (np.diff(values) >= -1e-9).all() and 0 < min(values) <= max(values) < 1


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown kind 'missing'"):
        calibrate([Outcome("missing", 0.5, True)])


def test_reliability_counts_what_turned_out_in_each_range() -> None:
    made = planted("spurious", 3000, 1.0)
    bins = reliability([made[first : first + 3] for first in range(0, 3000, 3)])
    assert sum(one.labels for one in bins) == 3000 and sum(one.wrong for one in bins) == sum(
        one.wrong for one in made
    )
    assert [(one.low, one.high) for one in bins] == [(place / 5, (place + 1) / 5) for place in range(5)]
    for one in bins:
        assert one.low <= one.severity <= one.high
        assert one.wrong / one.labels == pytest.approx(one.severity, abs=0.06), "calibrated by other images"


def test_reliability_does_not_learn_from_the_image_itself() -> None:
    """One image alone says nothing about its own severities."""
    bins = reliability([[Outcome("spurious", 0.3, True)] * 50])
    assert [(round(one.severity, 6), one.labels, one.wrong) for one in bins] == [(0.3, 50, 50)]
    assert reliability([]) == []


def told(attention: Instances, model: Instances, human: Instances) -> list[tuple[str, bool]]:
    found = outcomes(compare("image", attention, model), attention, model, human)
    return [(one.kind, one.wrong) for one in found]


CASES = {
    "agreed and right": (
        instances(("car", LEFT, 0.5)), instances(("car", LEFT, 0.9)), instances(("car", NEARLY, 1)),
        [("agreed", False)],
    ),
    "agreed, and wrong both": (
        instances(("car", LEFT, 0.5)), instances(("car", LEFT, 0.9)), instances(("car", RIGHT, 1)),
        [("agreed", True)],
    ),
    "spurious": (instances(("car", LEFT, 0.5)), instances(), instances(), [("spurious", True)]),
    "not spurious, the model missed it": (
        instances(("car", LEFT, 0.5)), instances(), instances(("car", LEFT, 1)), [("spurious", False)],
    ),
    "overlooked": (
        instances(), instances(("car", LEFT, 0.9)), instances(("car", LEFT, 1)), [("overlooked", True)],
    ),
    "not overlooked, the model imagines it": (
        instances(), instances(("car", LEFT, 0.9)), instances(), [("overlooked", False)],
    ),
    "swapped": (
        instances(("car", LEFT, 0.5)), instances(("truck", LEFT, 0.9)), instances(("truck", LEFT, 1)),
        [("swapped", True)],
    ),
    "two objects, one of them right": (
        instances(("car", LEFT, 0.5), ("car", RIGHT, 0.4)),
        instances(("car", LEFT, 0.9), ("car", FAR, 0.8)),
        instances(("car", LEFT, 1), ("car", FAR, 1)),
        [("agreed", False), ("spurious", True), ("overlooked", True)],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("attention", "model", "human", "expected"), CASES.values(), ids=CASES)
def test_what_a_decision_says(
    attention: Instances, model: Instances, human: Instances, expected: list[tuple[str, bool]]
) -> None:
    assert told(attention, model, human) == expected


def test_a_calibrated_comparison_ranks_on_the_learned_scale() -> None:
    learned = calibrate(planted("spurious", 500, 2.0))
    attention = instances(("car", LEFT, 0.6))
    [plain] = compare("image", attention, instances()).disagreements
    [one] = compare("image", attention, instances(), calibration=learned).disagreements
    assert plain.severity == approx(0.4) and one.severity > 0.7
