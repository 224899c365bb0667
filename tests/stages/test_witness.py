"""The witness: asked once about each image, kept in the run, and heard by the labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from diffugen import stages
from diffugen.config import DetectorSettings, Labelling, LabelSettings, ScoreWeights
from diffugen.detectors.yolo import YoloDetector
from diffugen.errors import DiffugenError
from diffugen.miniature.sets import exact_instances, scene_set
from diffugen.records import HeatMaps, ImageRecord, Phrase, Prompt
from diffugen.run import RunStore
from diffugen.stages.witness import witnesses
from tests.support.rounds import round_of

SIZE_WH = (96, 64)
BASE = DetectorSettings(checkpoint="miniature", device="cpu")
SETTINGS = LabelSettings(method="paper", witness="base", groups={"up-*": 1.0})
CLASSES = ("piano", "car", "truck", "person", "traffic cone")


def add_scenes(store: RunStore, count: int, phrases: Sequence[Phrase]) -> None:
    """Add streets whose heat maps have one hot corner, far from every object."""
    for number, drawn in enumerate(scene_set("known", count, SIZE_WH, start=40)):
        record = ImageRecord(Prompt(f"a piano {number}", tuple(phrases)), number, SIZE_WH, "miniature")
        heat = np.zeros((len(phrases), 3, 8, 12), np.float16)
        heat[:, :, :2, :3] = 0.5
        store.add_image(
            record, drawn.rgb, HeatMaps(record.id, SIZE_WH, record.prompt.phrases, {"up-8x12": heat}), 0.1
        )


def labelling(**changes: object) -> Labelling:
    return Labelling(SETTINGS.changed(**changes), ScoreWeights(), frozenset(), BASE)


def test_what_it_knows_is_labelled_although_no_prompt_names_it(store: RunStore) -> None:
    add_scenes(store, 8, [Phrase("piano", "piano")])
    round = round_of(store, CLASSES)
    made = stages.label(round, labelling())
    assert made.images == 8
    names: list[str] = []
    exact: list[str] = []
    for labels in store.labels("attention", made.method):
        names += labels.instances.class_names
    for drawn in scene_set("known", 8, SIZE_WH, start=40):
        exact += exact_instances(drawn).class_names
    assert names.count("piano") == 8
    assert len(names) - 8 >= 0.7 * len(exact), "most cars, trucks, people and cones are labelled"
    alone = stages.label(round, labelling(witness="none"))
    assert alone.method != made.method and alone.objects == 8


def test_only_the_runs_classes_are_labelled(store: RunStore) -> None:
    add_scenes(store, 8, [Phrase("piano", "piano")])
    made = stages.label(round_of(store, ("piano", "car")), labelling())
    names = {
        name for labels in store.labels("attention", made.method) for name in labels.instances.class_names
    }
    assert names == {"piano", "car"}


def test_it_is_asked_once(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    add_scenes(store, 5, [Phrase("piano", "piano")])
    round, asked = round_of(store, CLASSES), []
    predict = YoloDetector.predict

    def counted(self: YoloDetector, images: Sequence[NDArray[np.uint8]], **options: object) -> object:
        asked.append(len(images))
        return predict(self, images, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(YoloDetector, "predict", counted)
    ids = list(store.image_ids())
    first = dict(witnesses(round, BASE, 0.5, ids[:2]))
    every = dict(witnesses(round, BASE, 0.5, ids))
    assert asked == [2, 3] and list(every) == ids
    assert all(every[image_id].instances.rles == one.instances.rles for image_id, one in first.items())
    assert every[ids[0]].class_names == set(CLASSES[1:])
    dict(witnesses(round, BASE, 0.9, ids))
    assert asked == [2, 3, 5], "another confidence is another question"


def test_a_witness_that_knows_none_of_the_classes_is_refused(store: RunStore) -> None:
    add_scenes(store, 1, [Phrase("piano", "piano")])
    with pytest.raises(
        DiffugenError, match="witness is base, but the detector miniature knows none of the classes piano"
    ):
        stages.label(round_of(store), labelling())


def test_a_class_map_gives_its_finds_the_runs_names(store: RunStore) -> None:
    add_scenes(store, 8, [Phrase("sedan", "sedan")])
    base = BASE.changed(class_map={"sedan": "car"})
    seen = dict(witnesses(round_of(store, ("sedan",)), base, 0.5, store.image_ids()))
    names = {name for one in seen.values() for name in one.instances.class_names}
    assert "sedan" in names and "car" not in names
    assert {one.class_names for one in seen.values()} == {frozenset({"sedan"})}
