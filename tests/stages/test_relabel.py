"""Relabelling: the class each detection gets when detector and run name classes differently; provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from diffugen import stages
from diffugen.comparison.metrics import average_precision
from diffugen.config import DetectorSettings
from diffugen.detectors.yolo import YoloDetector
from diffugen.labels.shapes import encode
from diffugen.miniature.sets import exact_instances, scene_set
from diffugen.records import Disagreement, HeatMaps, ImageRecord, Instances, Phrase, Prompt
from diffugen.run import RunStore
from diffugen.run.results import Relabelled
from diffugen.stages.detector import mapped_classes, open_detector, open_for_training, unknown_classes
from tests.support.rounds import round_of

SIZE_WH = (144, 96)
SETTINGS = DetectorSettings(device="cpu", prediction_size=160, confidence=0.25)
SCENES = [drawn.rgb for drawn in scene_set("known", 12, SIZE_WH, start=40)]


@pytest.fixture(scope="module")
def known() -> tuple[str, ...]:
    return YoloDetector("miniature", device="cpu").class_names


def add_scenes(store: RunStore, named: Sequence[str]) -> None:
    """Add scenes with prompts that name these classes."""
    phrases = (*(Phrase(name, name) for name in named), Phrase("road", None))
    for number, rgb in enumerate(SCENES):
        prompt = Prompt(f"{' and '.join(named)} on a road {number}", phrases)
        record = ImageRecord(prompt, number, SIZE_WH, "miniature")
        heat = np.zeros((len(phrases), 3, 4, 6), dtype=np.float16)
        store.add_image(record, rgb, HeatMaps(record.id, SIZE_WH, phrases, {"up-4x6": heat}), 0.1)


def relabel(
    store: RunStore, class_names: Sequence[str], class_map: Mapping[str, str], **changes: Any
) -> Relabelled:
    settings = SETTINGS.changed(class_map=dict(class_map), **changes)
    return stages.relabel(round_of(store, class_names), "miniature", settings)


def found(store: RunStore, method: str) -> dict[str, int]:
    names = [name for labels in store.labels("model", method) for name in labels.instances.class_names]
    return {name: names.count(name) for name in sorted(set(names))}


def test_the_miniature_detector_meets_the_assumptions_of_this_file(
    known: tuple[str, ...], store: RunStore
) -> None:
    assert {"car", "truck"} <= set(known) and not {"sedan", "suv", "lorry"} & set(known)
    add_scenes(store, ["car"])
    counts = found(store, relabel(store, ["car"], {}).method)
    assert counts["car"] >= 3 and counts["truck"] >= 2


# the run's classes, the class map, the classes in the prompt, the classes that cars and trucks get
CASES: dict[str, tuple[list[str], dict[str, str], list[str], tuple[str, str]]] = {
    "one class": (["sedan"], {"sedan": "car"}, ["sedan"], ("sedan", "truck")),
    "the class in the prompt": (["sedan", "suv"], {"sedan": "car", "suv": "car"}, ["suv"], ("suv", "truck")),
    "two targets": (
        ["sedan", "lorry"],
        {"sedan": "car", "lorry": "truck"},
        ["sedan", "lorry"],
        ("sedan", "lorry"),
    ),
    "only the mapped class in the prompt": (
        ["car", "sedan"],
        {"sedan": "car"},
        ["sedan"],
        ("sedan", "truck"),
    ),
    "mapped class and target in the prompt": (
        ["car", "sedan"],
        {"sedan": "car"},
        ["car", "sedan"],
        ("car", "truck"),
    ),
    "several in the prompt, car is a class of the run": (
        ["car", "suv", "sedan"],
        {"sedan": "car", "suv": "car"},
        ["suv", "sedan"],
        ("car", "truck"),
    ),
    "several in the prompt, car is not a class of the run: first of the map": (
        ["suv", "sedan"],
        {"sedan": "car", "suv": "car"},
        ["suv", "sedan"],
        ("sedan", "truck"),
    ),
    "no mapped class in the prompt": (["sedan", "piano"], {"sedan": "car"}, ["piano"], ("car", "truck")),
    "only the target in the prompt": (["car", "sedan"], {"sedan": "car"}, ["car"], ("car", "truck")),
    "mapped class is a class of the detector": (
        ["truck", "sedan"],
        {"truck": "car", "sedan": "car"},
        ["truck"],
        ("car", "truck"),
    ),
    "target is not a class of the detector": (["sedan"], {"sedan": "limousine"}, ["sedan"], ("car", "truck")),
    "names that differ in spelling only": (["Car", "TRUCK"], {}, ["piano"], ("Car", "TRUCK")),
    "a target that differs in spelling only": (["sedan"], {"sedan": "CAR"}, ["sedan"], ("sedan", "truck")),
    "mapped class is not a class of the run": (
        ["piano"],
        {"sedan": "car"},
        ["piano", "sedan"],
        ("car", "truck"),
    ),
}


@pytest.mark.parametrize(("class_names", "class_map", "named", "expected"), CASES.values(), ids=CASES)
def test_the_class_that_a_detection_gets(
    store: RunStore,
    class_names: list[str],
    class_map: dict[str, str],
    named: list[str],
    expected: tuple[str, str],
) -> None:
    add_scenes(store, named)
    plain = found(store, relabel(store, ["piano"], {}).method)
    made = relabel(store, class_names, class_map)
    renamed = found(store, made.method)
    assert made.images == len(SCENES) and sum(renamed.values()) == sum(plain.values()) == made.objects
    wanted = dict(zip(("car", "truck"), expected, strict=True))
    assert renamed == {wanted.get(name, name): count for name, count in plain.items()}


def test_only_the_names_change(store: RunStore) -> None:
    add_scenes(store, ["sedan"])
    methods = [relabel(store, ["sedan"], class_map).method for class_map in ({}, {"sedan": "car"})]
    for image_id in store.image_ids():
        plain, renamed = (
            next(store.labels("model", method, image_id=image_id)).instances for method in methods
        )
        assert renamed.rles == plain.rles and np.array_equal(renamed.scores, plain.scores)


def test_a_class_map_changes_the_method_only_if_it_has_an_effect(
    known: tuple[str, ...], store: RunStore
) -> None:
    detector = open_detector(round_of(store, ["sedan"]).run, "miniature", SETTINGS)

    def method(class_map: dict[str, str], class_names: Sequence[str] = ("sedan", "suv", "car")) -> str:
        return detector.method(mapped_classes(known, class_names, class_map), 0.25)

    plain = detector.method({}, 0.25)
    for without_effect in ({}, {"car": "truck"}, {"sedan": "limousine"}, {"lorry": "truck"}):
        assert method(without_effect) == plain
    maps = (
        {"sedan": "car"},
        {"sedan": "truck"},
        {"suv": "car", "sedan": "car"},
        {"sedan": "car", "suv": "car"},
    )
    assert len({plain, *map(method, maps)}) == 1 + len(maps), "the order matters too"
    assert method({"sedan": "car", "car": "truck"}) == method({"sedan": "car"})


def test_labels_of_different_class_maps_are_kept_apart(store: RunStore) -> None:
    add_scenes(store, ["sedan"])
    first = relabel(store, ["sedan"], {"sedan": "truck"})
    second = relabel(store, ["sedan"], {"sedan": "car"})
    assert first.method != second.method
    newest = [name for labels in store.latest_labels("model") for name in labels.instances.class_names]
    assert newest.count("sedan") == found(store, second.method)["sedan"]


@pytest.mark.parametrize(
    ("class_names", "class_map", "unknown"),
    [
        (["piano"], {}, ["piano"]),
        (["piano", "car"], {}, ["piano"]),
        (["sedan"], {"sedan": "car"}, []),
        (["sedan"], {"sedan": "limousine"}, ["sedan"]),
        (["piano"], {"sedan": "car"}, ["piano"]),
    ],
)
def test_a_mapped_class_counts_as_known(
    store: RunStore, class_names: list[str], class_map: dict[str, str], unknown: list[str]
) -> None:
    settings = DetectorSettings(device="cpu", class_map=class_map)
    assert unknown_classes(round_of(store, class_names).run, "miniature", settings) == unknown


CHANGES: dict[str, dict[str, Any]] = {
    "prediction size": {"prediction_size": 192},
    "confidence": {"confidence": 0.9},
    "postprocessing": {"postprocess": False},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_every_setting_that_affects_the_labels_makes_new_ones(
    store: RunStore, change: dict[str, Any]
) -> None:
    """Regression: the provenance was only checkpoint and class map, so relabelling silently did nothing."""
    add_scenes(store, ["car"])
    first = relabel(store, ["car"], {})
    before = {labels.image_id: labels.instances for labels in store.latest_labels("model")}
    second = relabel(store, ["car"], {}, **change)
    after = {labels.image_id: labels.instances for labels in store.latest_labels("model")}
    assert second.method != first.method and second.images == first.images == len(SCENES)
    assert any(before[image_id].rles != after[image_id].rles for image_id in before)
    assert relabel(store, ["car"], {}).method == first.method, "the same settings give the same labels"


def test_a_class_that_the_run_does_not_have_takes_no_objects_place(store: RunStore) -> None:
    """A detector that is surer of a bench than of the piano in the same place has still seen a piano."""
    whole, nearly = np.zeros((2, *SIZE_WH[::-1]), dtype=np.bool_)
    whole[20:60, 20:60] = nearly[22:60, 20:60] = True
    raw = Instances(
        SIZE_WH,
        ("truck", "car", "person"),
        tuple(map(encode, (whole, nearly, nearly))),
        np.array([0.9, 0.6, 0.3]),
    )
    cases: dict[tuple[str, ...], list[str]] = {
        ("car",): ["truck", "car"],
        ("car", "truck"): ["truck", "person"],
        ("piano",): ["truck"],
        ("sedan",): ["truck", "car"],
    }
    for names, expected in cases.items():
        settings = SETTINGS.changed(class_map={"sedan": "car"})
        detector = open_detector(round_of(store, names).run, "miniature", settings)
        assert list(detector.postprocess(raw, SCENES[0]).class_names) == expected, names


def test_what_the_detector_is_not_sure_of_is_kept_apart(store: RunStore) -> None:
    """Candidates speak for or against attention labels, but are labels nowhere."""
    add_scenes(store, ["car"])
    made = relabel(store, ["car"], {}, confidence=0.9)
    scores = {
        source: [
            float(score) for labels in store.labels(source, made.method) for score in labels.instances.scores
        ]
        for source in ("model", "candidate")
    }
    assert scores["model"] and min(scores["model"]) >= 0.9
    assert scores["candidate"] and min(scores["candidate"]) >= 0.05 and max(scores["candidate"]) < 0.9
    assert made.objects == len(scores["model"])
    lowest = relabel(store, ["car"], {}, confidence=0.01)
    assert not any(len(labels.instances) for labels in store.labels("candidate", lowest.method))


def test_labels_by_earlier_settings_are_the_newest_again(store: RunStore) -> None:
    """Regression: returning to earlier settings silently did nothing, so the other labels were compared."""
    add_scenes(store, ["car"])
    for confidence in (0.25, 0.9, 0.25, 0.9):
        made = relabel(store, ["car"], {}, confidence=confidence)
        assert {labels.method for labels in store.latest_labels("model")} == {made.method}
        assert made.images == len(SCENES)


def test_disagreements_with_labels_that_are_not_the_newest_are_dropped(store: RunStore) -> None:
    """A disagreement names an object by its number, which means another object among other labels."""
    add_scenes(store, ["car"])
    first, second, *_ = store.image_ids()
    relabel(store, ["car"], {})
    queue = [Disagreement(image_id, "overlooked", 0.5, None, 0, 0.0) for image_id in (second, first)]
    store.put_disagreements(0, queue)
    relabel(store, ["car"], {})
    assert list(store.disagreements()) == queue, "the same labels: nothing is stale"
    store.put_labels([replace(next(store.labels("model", image_id=first)), method="another")])
    relabel(store, ["car"], {})
    assert list(store.disagreements()) == queue[:1], "only the first image got other labels"
    relabel(store, ["car"], {}, confidence=0.9)
    assert list(store.disagreements()) == []


def test_images_are_relabelled_at_the_size_that_the_detector_was_trained_at(store: RunStore) -> None:
    """Regressions: predicting at 640 px, or at the next training's size, silently gave useless labels."""
    phrases, exact = (Phrase("car", "car"),), {}
    for number, drawn in enumerate(scene_set("known", 12, (64, 48), start=40)):
        record = ImageRecord(Prompt(f"a car {number}", phrases), number, (64, 48), "miniature")
        heat = np.zeros((1, 3, 4, 6), dtype=np.float16)
        store.add_image(record, drawn.rgb, HeatMaps(record.id, (64, 48), phrases, {"up-4x6": heat}), 0.1)
        exact[record.id] = exact_instances(drawn)
    round = round_of(store, ["car"])
    precision = {}
    for size in (None, 128, 640):
        method = stages.relabel(
            round, "miniature", SETTINGS.changed(prediction_size=size, image_size=640)
        ).method
        found = {labels.image_id: labels.instances for labels in store.labels("model", method)}
        precision[size] = average_precision(
            [(truth, found[image_id]) for image_id, truth in exact.items()]
        ).ap50
    assert precision[None] == precision[128] and (precision[None] or 0) > 2 * (precision[640] or 0)


def test_an_empty_run_chooses_the_training_size_by_the_images_at_hand(store: RunStore) -> None:
    said: list[str] = []
    run = round_of(store, ["car"], notify=said.append).run
    settings = SETTINGS.changed(image_size=None)
    small = [("a", np.zeros((60, 80, 3), np.uint8), Instances((80, 60), (), (), np.zeros(0)))]
    for items, expected in ((small, 128), ([], 128)):
        assert open_for_training(run, "miniature", settings, items)[1] == expected
    assert open_for_training(run, "yolov8n-seg.yaml", settings, small)[1] == 160, "twice the longer side"
    assert open_for_training(run, "yolov8n-seg.yaml", settings)[1] == 640
    assert said[0] == (
        "detector.image_size: 128 px, chosen for images of 80 px and a detector trained at 128 px"
    )
