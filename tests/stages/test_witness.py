"""The witness: asked once about each image, kept in the run, and heard by the labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from diffugen import stages
from diffugen.config import (
    DetectorSettings,
    Labelling,
    LabelSettings,
    ScoreWeights,
    TuneSettings,
    load_config,
)
from diffugen.config.labelling import by_detector
from diffugen.config.sections import TeachSettings
from diffugen.detectors.yolo import YoloDetector
from diffugen.errors import DiffugenError
from diffugen.labels.shapes import decode, encode
from diffugen.miniature.sets import exact_instances, scene_set
from diffugen.records import Decision, HeatMaps, ImageRecord, Instances, LabelSet, Phrase, Prompt
from diffugen.run import RunStore
from diffugen.run.results import Trained
from diffugen.stages.witness import witnesses
from tests.support.rounds import round_of

SIZE_WH = (96, 64)
BASE = DetectorSettings(checkpoint="miniature", device="cpu")
SETTINGS = LabelSettings(method="paper", source="both", groups={"up-*": 1.0})
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
    alone = stages.label(round, labelling(source="attention"))
    assert alone.method != made.method and alone.objects == 8


def test_a_detector_alone_labels_what_it_finds_whatever_the_heat_maps_say(store: RunStore) -> None:
    known = CLASSES[1:]
    add_scenes(store, 6, [Phrase("car", "car")])
    for image_id in store.image_ids():
        store.heat_maps_path(image_id).unlink()
    made = stages.label(round_of(store, known), labelling(source="detector", accept=1.0))
    assert by_detector(made.method) and made.images == 6 and made.objects > 6
    for labels in store.labels("attention", made.method):
        [seen] = store.labels("witness", image_id=labels.image_id)
        assert labels.instances.rles == seen.instances.of_classes(known).rles
        assert (labels.instances.scores >= 0.5).all() and not any(labels.instances.terms)
        assert labels.instances.scores.tolist() == seen.instances.of_classes(known).scores.tolist()
    again = stages.label(round_of(store, ("car", "truck")), labelling(source="detector"))
    names = {
        name for labels in store.labels("attention", again.method) for name in labels.instances.class_names
    }
    assert names <= set(known)


def test_a_detector_alone_must_know_all_classes(store: RunStore) -> None:
    add_scenes(store, 1, [Phrase("car", "car")])
    with pytest.raises(DiffugenError, match=r"does not know piano; .* set labels.source to both"):
        stages.label(round_of(store, CLASSES), labelling(source="detector"))


def test_outside_a_painted_region_the_labels_of_the_source_are_kept(store: RunStore) -> None:
    """Inside, the detector labels; where the source has no labels, it labels the whole image."""
    [drawn] = scene_set("known", 1, SIZE_WH, start=43)  # a car on the left, a truck and a person
    left = np.zeros((64, 96), dtype=np.bool_)
    left[:, :48] = True
    prompt = Prompt("a car", (Phrase("car", "car"),))
    kept = Instances(SIZE_WH, ("car",), (encode(~left),), np.array([0.875]))
    for number, carried in enumerate((None, kept)):
        record = ImageRecord(
            prompt, number, SIZE_WH, "miniature", "inpaint", parent=f"p{number}", region=encode(left)
        )
        maps = HeatMaps(record.id, SIZE_WH, prompt.phrases, {}, record.region)
        store.add_image(record, drawn.rgb, maps, 0.1)
        if carried is not None:
            store.put_labels([LabelSet(record.id, "carried", carried, "carried")])
    made = stages.label(round_of(store, CLASSES[1:]), labelling(source="detector"))
    everywhere, [first, *inside] = (
        list(zip(labels.instances.rles, labels.instances.scores, strict=True))
        for labels in store.labels("attention", made.method)
    )
    assert first == (kept.rles[0], 0.875)
    assert len(inside) == 1 and len(everywhere) == 3
    assert not any((decode(rle) & ~left).any() for rle, _ in inside)


def test_nothing_is_tuned_or_taught_where_a_detector_labels_alone(store: RunStore) -> None:
    add_scenes(store, 4, [Phrase("car", "car")])
    round, alone = round_of(store, CLASSES[1:]), labelling(source="detector")
    made = stages.label(round, alone)
    store.add_decisions(
        Decision(one.image_id, "attention", one.instances, "ann")
        for one in store.labels("attention", made.method)
    )
    found = stages.tune(round, made.method, alone, TuneSettings(min_decisions=0))
    assert not found.adopted and found.trials == 0 and "no heat map" in found.reason
    assert not (store.folder / "tune.sqlite").exists()
    taught = stages.teach(round, alone, TeachSettings(min_decisions=1))
    assert not taught.adopted and "labels.source is detector" in taught.reason


def test_a_detector_that_made_the_labels_does_not_confirm_them(store: RunStore) -> None:
    add_scenes(store, 8, [Phrase("car", "car")])
    told: list[str] = []
    round = round_of(store, CLASSES[1:], notify=told.append)
    made = stages.label(round, labelling(source="detector"))
    policy = load_config("miniature").training_policy
    trained = Trained("miniature", "miniature", 1, 128)
    found = stages.promote(round, trained, "miniature", made.method, policy, BASE)
    assert (found.evidence, found.images, found.candidate.ap50) == ("none", 0, None)
    assert any("the labels are those of miniature itself" in text for text in told)
    stages.relabel(round, "miniature", BASE)
    assert any("nothing is confirmed" in text for text in told)
    started = BASE.changed(checkpoint="other.pt")
    other = stages.promote(round, trained, "miniature", made.method, policy, started)
    assert other.evidence == "agreed"


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
    first = dict(witnesses(round, labelling(), ids[:2]))
    every = dict(witnesses(round, labelling(), ids))
    assert asked == [2, 3] and list(every) == ids
    assert all(every[image_id].instances.rles == one.instances.rles for image_id, one in first.items())
    assert every[ids[0]].class_names == set(CLASSES[1:])
    dict(witnesses(round, labelling(detector_confidence=0.9), ids))
    assert asked == [2, 3, 5], "another confidence is another question"


def test_a_witness_that_knows_none_of_the_classes_is_refused(store: RunStore) -> None:
    add_scenes(store, 1, [Phrase("piano", "piano")])
    with pytest.raises(
        DiffugenError, match="source is both, but the detector miniature knows none of the classes piano"
    ):
        stages.label(round_of(store), labelling())


def test_a_class_map_gives_its_finds_the_runs_names(store: RunStore) -> None:
    add_scenes(store, 8, [Phrase("sedan", "sedan")])
    mapped = replace(labelling(), base=BASE.changed(class_map={"sedan": "car"}))
    seen = dict(witnesses(round_of(store, ("sedan",)), mapped, store.image_ids()))
    names = {name for one in seen.values() for name in one.instances.class_names}
    assert "sedan" in names and "car" not in names
    assert {one.class_names for one in seen.values()} == {frozenset({"sedan"})}
