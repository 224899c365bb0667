"""Relabelling by a detector that knows the run's classes by other names: what each find becomes, and under
which provenance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffugen.detectors.yolo import YoloDetector
from diffugen.miniature.scenes import scene_set
from diffugen.records import HeatMaps, ImageRecord, Phrase, Prompt
from diffugen.run.store import RunStore
from diffugen.stages.relabel import checkpoint_method, knows_any, mapped_classes, relabel_stage

SIZE_WH = (144, 96)
LOOK = {"device": "cpu", "image_size": 160, "confidence": 0.25, "refine": "none", "round": 0}
SCENES = [drawn.rgb for drawn in scene_set("known", 12, SIZE_WH, start=40)]


@pytest.fixture(scope="module")
def known() -> tuple[str, ...]:
    return YoloDetector("miniature", device="cpu").class_names


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunStore]:
    with RunStore.create_or_open(tmp_path / "run", config={"seed": 0}) as made:
        yield made


def add_scenes(store: RunStore, named: Sequence[str]) -> None:
    """Add scenes with prompts that name these classes."""
    phrases = (*(Phrase(name, name) for name in named), Phrase("road", None))
    for number, rgb in enumerate(SCENES):
        prompt = Prompt(f"{' and '.join(named)} on a road {number}", phrases)
        record = ImageRecord(prompt, number, SIZE_WH, "miniature")
        heat = np.zeros((len(phrases), 3, 4, 6), dtype=np.float16)
        store.add_image(record, rgb, HeatMaps(record.id, SIZE_WH, phrases, {"up-4x6": heat}), 0.1)


def relabel(store: RunStore, class_names: Sequence[str], class_map: Mapping[str, str]) -> dict[str, Any]:
    return relabel_stage(store, "miniature", class_names=class_names, class_map=class_map, **LOOK)  # type: ignore[arg-type]


def found(store: RunStore, method: str) -> dict[str, int]:
    names = [name for labels in store.labels("model", method) for name in labels.instances.class_names]
    return {name: names.count(name) for name in sorted(set(names))}


def test_the_miniature_knows_what_these_tests_take_for_granted(
    known: tuple[str, ...], store: RunStore
) -> None:
    assert {"car", "truck"} <= set(known) and not {"sedan", "suv", "lorry"} & set(known)
    add_scenes(store, ["car"])
    counts = found(store, relabel(store, ["car"], {})["method"])
    assert counts["car"] >= 3 and counts["truck"] >= 2


# the run's classes, the class map, what the prompt names, what cars and trucks become
CASES: dict[str, tuple[list[str], dict[str, str], list[str], tuple[str, str]]] = {
    "one class": (["sedan"], {"sedan": "car"}, ["sedan"], ("sedan", "truck")),
    "the one that the prompt names": (
        ["sedan", "suv"],
        {"sedan": "car", "suv": "car"},
        ["suv"],
        ("suv", "truck"),
    ),
    "two targets": (
        ["sedan", "lorry"],
        {"sedan": "car", "lorry": "truck"},
        ["sedan", "lorry"],
        ("sedan", "lorry"),
    ),
    "named, and so is not the car": (["car", "sedan"], {"sedan": "car"}, ["sedan"], ("sedan", "truck")),
    "named, and so is the car": (["car", "sedan"], {"sedan": "car"}, ["car", "sedan"], ("car", "truck")),
    "several named, a car is a class": (
        ["car", "suv", "sedan"],
        {"sedan": "car", "suv": "car"},
        ["suv", "sedan"],
        ("car", "truck"),
    ),
    "several named, a car is none: the map's first": (
        ["suv", "sedan"],
        {"sedan": "car", "suv": "car"},
        ["suv", "sedan"],
        ("sedan", "truck"),
    ),
    "none named": (["sedan", "piano"], {"sedan": "car"}, ["piano"], ("car", "truck")),
    "the car itself named": (["car", "sedan"], {"sedan": "car"}, ["car"], ("car", "truck")),
    "a class that the detector knows": (
        ["truck", "sedan"],
        {"truck": "car", "sedan": "car"},
        ["truck"],
        ("car", "truck"),
    ),
    "a class that the detector does not know": (
        ["sedan"],
        {"sedan": "limousine"},
        ["sedan"],
        ("car", "truck"),
    ),
    "no class of the run": (["piano"], {"sedan": "car"}, ["piano", "sedan"], ("car", "truck")),
}


@pytest.mark.parametrize(("class_names", "class_map", "named", "expected"), CASES.values(), ids=CASES)
def test_what_a_find_becomes(
    store: RunStore,
    class_names: list[str],
    class_map: dict[str, str],
    named: list[str],
    expected: tuple[str, str],
) -> None:
    add_scenes(store, named)
    plain = found(store, relabel(store, class_names, {})["method"])
    made = relabel(store, class_names, class_map)
    renamed = found(store, made["method"])
    assert made["images"] == len(SCENES) and sum(renamed.values()) == sum(plain.values()) == made["objects"]
    wanted = dict(zip(("car", "truck"), expected, strict=True))
    assert renamed == {wanted.get(name, name): count for name, count in plain.items()}


def test_only_the_names_change(store: RunStore) -> None:
    add_scenes(store, ["sedan"])
    methods = [relabel(store, ["sedan"], class_map)["method"] for class_map in ({}, {"sedan": "car"})]
    for image_id in store.image_ids():
        plain, renamed = (
            next(store.labels("model", method, image_id=image_id)).instances for method in methods
        )
        assert renamed.rles == plain.rles and np.array_equal(renamed.scores, plain.scores)


def test_another_class_map_is_another_method_only_where_it_applies(known: tuple[str, ...]) -> None:
    def method(class_map: dict[str, str], class_names: Sequence[str] = ("sedan", "suv", "car")) -> str:
        return checkpoint_method("miniature", mapped_classes(known, class_names, class_map))

    plain = checkpoint_method("miniature")
    for without_effect in ({}, {"car": "truck"}, {"sedan": "limousine"}, {"lorry": "truck"}):
        assert method(without_effect) == plain
    maps = (
        {"sedan": "car"},
        {"sedan": "truck"},
        {"suv": "car", "sedan": "car"},
        {"sedan": "car", "suv": "car"},
    )
    assert len({plain, *map(method, maps)}) == 1 + len(maps), "the order decides too"
    assert method({"sedan": "car", "car": "truck"}) == method({"sedan": "car"})


def test_labels_made_with_one_map_are_not_taken_for_those_of_another(store: RunStore) -> None:
    add_scenes(store, ["sedan"])
    first = relabel(store, ["sedan"], {"sedan": "truck"})
    second = relabel(store, ["sedan"], {"sedan": "car"})
    assert first["method"] != second["method"]
    newest = [name for labels in store.latest_labels("model") for name in labels.instances.class_names]
    assert newest.count("sedan") == found(store, second["method"])["sedan"]


@pytest.mark.parametrize(
    ("class_names", "class_map", "expected"),
    [
        (["piano"], {}, False),
        (["piano", "car"], {}, True),
        (["sedan"], {"sedan": "car"}, True),
        (["sedan"], {"sedan": "limousine"}, False),
        (["piano"], {"sedan": "car"}, False),
    ],
)
def test_a_mapped_class_is_a_known_one(
    store: RunStore, class_names: list[str], class_map: dict[str, str], expected: bool
) -> None:
    assert knows_any(store, "miniature", class_names, "cpu", class_map) is expected
