"""How a detector is measured on labelled images."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diffugen import stages
from diffugen.config import DetectorSettings
from diffugen.detectors.yolo import YoloDetector
from diffugen.miniature.sets import exact_instances, scene_set
from diffugen.miniature.truth import find_truth
from diffugen.records import Instances
from diffugen.run.store import RunStore
from diffugen.stages.detector import OpenDetector, open_detector
from diffugen.stages.evaluate import measure
from tests.support.planted import box
from tests.support.rounds import round_of

WIDTH, HEIGHT = box(20).size_wh
BLACK = np.zeros((HEIGHT, WIDTH, 3), np.uint8)


class Guessing(YoloDetector):
    """Takes whatever lies in the box for a car, and half believes that it is a piano."""

    def predict(self, images: Sequence[NDArray[np.uint8]], **settings: Any) -> list[Instances]:
        car, piano = (
            replace(box(20, name=name), scores=np.array([score]))
            for name, score in (("car", 0.9), ("piano", 0.4))
        )
        return [car.joined(piano) for _ in images]


def test_the_second_guess_about_an_object_counts_in_average_precision_only() -> None:
    """Also where the first guess is of a class that does not count."""
    settings = DetectorSettings(device="cpu")
    detector = OpenDetector(Guessing("miniature"), 64, settings, frozenset({"piano", "car"}))
    for names in (["piano"], ["piano", "car"]):
        assert measure(detector, [("image", BLACK, box(20))], names).by_class["piano"].ap50 == pytest.approx(
            1
        )
        finds = measure(detector, [("image", BLACK, box(20, name="car"))], names).false_finds["piano"]
        assert (finds.images, finds.found) == (1, 0), "surer of a car, it finds no piano"


def test_a_class_that_the_detector_knows_by_another_name_is_measured(tmp_path: Path) -> None:
    """By the class map, where only one class of the run has that name, or spelt differently."""
    scenes = scene_set("piano-among", 12, (96, 64), start=500)
    items = [(str(n), one.rgb, exact_instances(one).of_classes(["car"])) for n, one in enumerate(scenes)]
    measured = {}
    for name, class_map in (("car", {}), ("sedan", {"sedan": "car"}), ("CAR", {}), ("van", {})):
        settings = DetectorSettings(device="cpu", class_map=class_map)
        with RunStore.create_or_open(tmp_path / name, config=None) as store:
            detector = open_detector(round_of(store, [name]).run, "miniature", settings)
        renamed = [(n, rgb, truth.renamed({"car": name})) for n, rgb, truth in items]
        measured[name] = measure(detector, renamed, [name]).mask.ap50
    assert measured["car"] and measured["car"] == measured["sedan"] == measured["CAR"]
    assert not measured["van"]


def test_measuring_another_detector_does_not_change_what_the_report_shows(tmp_path: Path) -> None:
    """Nor is its result kept as that of the round."""
    with RunStore.create_or_open(tmp_path / "run", config=None) as store:
        run = round_of(store, ["car"]).run
        truth = find_truth("piano-among", ["car"])
        assert truth is not None
        few = replace(truth, images=4, source=lambda on_mistake: itertools.islice(truth.items(), 4))
        stages.evaluate(run.round(0), "miniature", few, DetectorSettings(device="cpu"))
        kept = {path: path.read_bytes() for path in (tmp_path / "run" / "measured").rglob("*.*")}
        assert kept and store.results(0).evaluate
        other = DetectorSettings(device="cpu", confidence=0.9, prediction_size=64)
        stages.evaluate(run.newest_round(redo=True, keep=False), "miniature", few, other)
        assert {path: path.read_bytes() for path in (tmp_path / "run" / "measured").rglob("*.*")} == kept
