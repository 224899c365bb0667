"""Which detector is better: the evidence that decides, and the classes that are compared."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import pytest

from diffugen import stages
from diffugen.config import DatasetSettings, DetectorSettings, DisagreementSettings, TrainingPolicy
from diffugen.records import Decision
from diffugen.run import RunStore
from diffugen.run.results import Measured, Trained
from diffugen.stages.detector import OpenDetector
from diffugen.stages.evaluate import measure
from diffugen.stages.promote import GOLD_IMAGES
from tests.support.planted import METHOD, box, plant
from tests.support.rounds import round_of

POLICY = TrainingPolicy(DatasetSettings(val_frac=0.8), DisagreementSettings())


@pytest.mark.parametrize(("reviewed", "kind"), [(0, "agreed"), (GOLD_IMAGES, "human")])
def test_promotion_uses_human_labels_if_there_are_enough(store: RunStore, reviewed: int, kind: str) -> None:
    for number in range(2 * GOLD_IMAGES):
        image_id = plant(store, number, box(20), box(22))
        if reviewed:
            store.add_decisions([Decision(image_id, "edited", box(40), "ann")])
    made = stages.promote(
        round_of(store),
        Trained("miniature", "miniature", 1, 64),
        "miniature",
        METHOD,
        POLICY,
        DetectorSettings(device="cpu", image_size=64),
    )
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

    def spy(detector: OpenDetector, items: Any, names: Sequence[str]) -> Measured:
        asked.append(list(names))
        return measure(detector, items, names)

    monkeypatch.setattr(sys.modules["diffugen.stages.promote"], "measure", spy)
    for number in range(2 * reviewed or 6):
        image_id = plant(store, number, box(20, name=class_names[0]), box(22, name=class_names[0]))
        if reviewed:
            store.add_decisions([Decision(image_id, "edited", box(40, name=class_names[0]), "ann")])
    stages.promote(
        round_of(store, class_names),
        Trained("miniature", "miniature", 1, 64),
        "miniature",
        METHOD,
        POLICY,
        DetectorSettings(device="cpu", image_size=64),
    )
    assert asked == [compared, compared]
