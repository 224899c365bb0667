"""Which detector is better: the evidence that decides, and the classes that are compared."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import pytest

from diffugen import stages
from diffugen.comparison.metrics import Pair
from diffugen.config import DatasetSettings, DetectorSettings, DisagreementSettings, TrainingPolicy
from diffugen.dataset.truth import Truth
from diffugen.miniature.truth import find_truth
from diffugen.records import Decision
from diffugen.run import RunStore
from diffugen.run.results import Promoted, Trained
from diffugen.stages.detector import OpenDetector
from diffugen.stages.evaluate import guesses
from diffugen.stages.promote import GOLD_IMAGES
from tests.support.planted import METHOD, box, plant
from tests.support.rounds import round_of

POLICY = TrainingPolicy(DatasetSettings(val_frac=0.8), DisagreementSettings())


def promoted_or_not(
    store: RunStore, class_names: Sequence[str] = ("piano",), validation: Truth | None = None
) -> Promoted:
    """Compare the embedded detector with itself, or with what a test makes of it."""
    return stages.promote(
        round_of(store, class_names),
        Trained("miniature", "miniature", 1, 64),
        "miniature",
        METHOD,
        POLICY,
        DetectorSettings(device="cpu", image_size=64),
        validation,
    )


@pytest.mark.parametrize(("reviewed", "kind"), [(0, "agreed"), (GOLD_IMAGES, "human")])
def test_promotion_uses_human_labels_if_there_are_enough(store: RunStore, reviewed: int, kind: str) -> None:
    for number in range(2 * GOLD_IMAGES):
        image_id = plant(store, number, box(20), box(22))
        if reviewed:
            store.add_decisions([Decision(image_id, "edited", box(40), "ann")])
    made = promoted_or_not(store)
    assert made.evidence == kind and GOLD_IMAGES <= made.images < 2 * GOLD_IMAGES
    assert not made.promoted, "a detector is not better than itself"
    assert made.checkpoint == "miniature"


@pytest.mark.parametrize(
    ("class_names", "reviewed", "compared"),
    [
        (["piano", "car"], 0, ["piano"]),
        (["car", "truck"], 0, ["car", "truck"]),
        (["piano"], 0, ["piano"]),
        (["piano", "car"], GOLD_IMAGES, ["piano", "car"]),
    ],
)
def test_a_detector_that_lacks_classes_is_compared_on_those(
    store: RunStore,
    monkeypatch: pytest.MonkeyPatch,
    class_names: list[str],
    reviewed: int,
    compared: list[str],
) -> None:
    """As a witness it may have drawn the labels of the others; what a person drew judges all classes."""
    asked: list[list[str]] = []

    def spy(detector: OpenDetector, items: Any, names: Sequence[str]) -> list[Pair]:
        asked.append(list(names))
        return guesses(detector, items, names)

    monkeypatch.setattr(sys.modules["diffugen.stages.promote"], "guesses", spy)
    for number in range(2 * reviewed or 6):
        image_id = plant(store, number, box(20, name=class_names[0]), box(22, name=class_names[0]))
        if reviewed:
            store.add_decisions([Decision(image_id, "edited", box(40, name=class_names[0]), "ann")])
    promoted_or_not(store, class_names)
    assert asked == [compared, compared]


@pytest.mark.parametrize(
    ("reviewed", "missed", "promoted"),
    [
        (0, 4, True),  # the detector before misses 3 others; one more can be chance
        (0, 15, False),
        (GOLD_IMAGES, 4, False),  # a person vouches for these labels
    ],
)
def test_only_a_clear_lag_on_the_runs_own_labels_costs_the_promotion(
    store: RunStore, monkeypatch: pytest.MonkeyPatch, reviewed: int, missed: int, promoted: bool
) -> None:
    for number in range(2 * GOLD_IMAGES):
        image_id = plant(store, number, box(20), box(22))
        if reviewed:
            store.add_decisions([Decision(image_id, "edited", box(20), "ann")])
    calls: list[int] = []

    def simulated(detector: OpenDetector, items: Any, names: Sequence[str]) -> list[Pair]:
        labels = [instances for _, _, instances in items]
        lost = range(len(labels) - 3, len(labels)) if calls else range(missed)
        calls.append(len(lost))
        return [(truth, truth.take([]) if number in lost else truth) for number, truth in enumerate(labels)]

    monkeypatch.setattr(sys.modules["diffugen.stages.promote"], "guesses", simulated)
    made = promoted_or_not(store)
    assert calls == [missed, 3]
    assert made.promoted == promoted
    assert (made.tolerance > 0) == (not reviewed)
    lag = (made.incumbent.ap50_95 or 0.0) - (made.candidate.ap50_95 or 0.0)
    assert lag > 0 and (lag < made.tolerance) == (promoted and not reviewed)


def test_the_result_names_the_validation_set(store: RunStore) -> None:
    validation = find_truth("piano-photos", ["piano"], "decide")
    assert promoted_or_not(store, validation=validation).validation == "piano-photos, scenes to decide with"
