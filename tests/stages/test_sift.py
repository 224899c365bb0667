"""The noise filter: of labels that nobody confirmed, those that a detector contradicts most do not train."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffugen import stages
from diffugen.config import DatasetSettings, DetectorSettings, DisagreementSettings, TrainingPolicy
from diffugen.dataset.policy import UNCONFIRMED_ORIGINS
from diffugen.errors import Interrupted
from diffugen.labels.shapes import decode, encode
from diffugen.miniature.sets import exact_instances, scene_set
from diffugen.records import Decision, HeatMaps, ImageRecord, Instances, LabelSet, Phrase, Prompt
from diffugen.run import RunStore
from diffugen.run.results import Chosen, Sifted
from diffugen.stages.dataset import chosen_labels, split_images
from diffugen.stages.export import export_dataset
from tests.support.planted import METHOD, box, plant
from tests.support.rounds import round_of

SIZE_WH = (96, 64)
CLASSES = ("car", "truck", "person", "traffic cone")
QUICK = DetectorSettings(
    checkpoint="miniature", device="cpu", image_size=96, epochs=1, batch_size=8, lr0=0.0005
)


def policy(share: float) -> TrainingPolicy:
    return TrainingPolicy(DatasetSettings(val_frac=0.1, noise_filter=share), DisagreementSettings())


def spoilt(labels: Instances) -> Instances:
    """Return labels that lack an object or, if there is only one, have it in the wrong place."""
    if len(labels) > 1:
        return labels.take(range(1, len(labels)))
    moved = tuple(encode(np.roll(decode(rle), SIZE_WH[0] // 2, axis=1)) for rle in labels.rles)
    return dataclasses.replace(labels, rles=moved)


def plant_scenes(store: RunStore, count: int) -> list[str]:
    """Add road scenes with equally scored labels, every fourth with wrong ones; return all ids in order."""
    phrases = tuple(Phrase(name, name) for name in CLASSES)
    ids = []
    for number, drawn in enumerate(scene_set("known", count, SIZE_WH)):
        exact = exact_instances(drawn).of_classes(CLASSES)
        labels = dataclasses.replace(exact, scores=np.full(len(exact), 0.8))
        record = ImageRecord(Prompt(f"scene {number}", phrases), number, SIZE_WH, "miniature")
        maps = {"up-4x6": np.zeros((len(phrases), 3, 4, 6), dtype=np.float16)}
        store.add_image(record, drawn.rgb, HeatMaps(record.id, SIZE_WH, phrases, maps), 0.1)
        given = spoilt(labels) if number % 4 == 0 else labels
        store.put_labels([LabelSet(record.id, "attention", given, METHOD)])
        ids.append(record.id)
    return ids


@pytest.mark.slow
def test_wrong_labels_are_held_back_and_a_killed_sifting_continues(store: RunStore) -> None:
    ids = plant_scenes(store, 44)
    wrong = set(ids[::4])
    labels = {one.image_id: one.instances for one in store.labels("attention")}
    accepted = [image_id for image_id in ids if image_id in wrong][:3]
    store.add_decisions([Decision(one, "attention", labels[one], "ann") for one in accepted])

    def killed(done: float, total: int, note: str = "") -> None:
        if done > 1.2:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="round 0: sift"):
        stages.sift(round_of(store, CLASSES, on_progress=killed), METHOD, policy(0.2), QUICK)

    steps: list[tuple[float, int]] = []
    round = round_of(store, CLASSES, on_progress=lambda done, total, note="": steps.append((done, total)))
    made = stages.sift(round, METHOD, policy(0.2), QUICK)
    assert steps[0] == (1, 3), "the first fold was judged before the kill"
    assert steps[-1] == (3, 3) and steps == sorted(steps)

    chosen = dict(chosen_labels(round.run, METHOD, policy(0.2)))
    train = split_images(round.run, chosen, policy(0.2))["train"]
    unsure = {image_id for image_id in train if chosen[image_id].origin in UNCONFIRMED_ORIGINS}
    assert made.judged == len(unsure) > 30
    assert len(made.held_back) == int(0.2 * made.judged + 0.5)
    assert set(made.held_back) <= unsure, "neither what a person accepted nor what is held out"
    assert len(wrong & unsure) / len(unsure) < 0.25
    assert len(wrong & set(made.held_back)) / len(made.held_back) >= 0.6
    assert sum(made.by_class.values()) == sum(len(set(labels[one].class_names)) for one in made.held_back)

    sets = stages.choose(round, METHOD, policy(0.2), held_back=made.held_back)
    assert sets.left_out == {"noisy": len(made.held_back)} and sets.by_origin["human"] == 3
    assert sets.train == len(train) - len(made.held_back)
    assert not (store.folder / "sifting" / "dataset").exists()
    assert not (store.folder / "training" / "sift").exists()

    for file in (store.folder / "sifting").glob("*.json"):
        file.write_text("{damaged")
    with pytest.raises(Interrupted):  # so it begins to judge again
        stages.sift(round_of(store, CLASSES, on_progress=_stop_within_a_fold), METHOD, policy(0.2), QUICK)


def _stop_within_a_fold(done: float, total: int, note: str = "") -> None:
    if 0 < done < 1:
        raise KeyboardInterrupt


def no_training(*_: Any, **__: Any) -> None:
    raise AssertionError("nothing is trained here")


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffugen.detectors.yolo.YoloDetector.fit", no_training)


def chosen_set(store: RunStore, held_back: Sequence[str] = (), share: float = 0.0) -> tuple[Chosen, set[str]]:
    made = stages.choose(round_of(store), METHOD, policy(share), held_back=held_back)
    return made, {path.stem for path in (store.folder / made.folder).glob("images/*/*")}


@pytest.mark.usefixtures("untrained")
def test_without_a_share_everything_is_as_it_was(store: RunStore) -> None:
    ids = [plant(store, number, box(20)) for number in range(8)]
    made = stages.sift(round_of(store), METHOD, policy(0.0), QUICK)
    assert made == Sifted()
    chosen, written = chosen_set(store, made.held_back)
    assert (chosen.left_out, written) == ({}, set(ids))


@pytest.mark.usefixtures("untrained")
def test_confirmed_images_are_neither_judged_nor_held_back(store: RunStore) -> None:
    agreed = [plant(store, number, box(20), box(22, score=0.9)) for number in range(6)]
    human = plant(store, 10, box(10), box(60))
    store.add_decisions([Decision(human, "edited", box(35), "ann")])
    assert stages.sift(round_of(store), METHOD, policy(0.5), QUICK) == Sifted()
    chosen, written = chosen_set(store, [*agreed, human], 0.5)
    assert written == {*agreed, human} and chosen.left_out == {}


@pytest.mark.usefixtures("untrained")
def test_without_other_labels_to_learn_from_nothing_is_judged(store: RunStore) -> None:
    plant(store, 0, box(20))
    assert stages.sift(round_of(store), METHOD, policy(0.5), QUICK) == Sifted()


@pytest.mark.usefixtures("untrained")
def test_a_training_set_that_is_kept_is_not_sifted_again(store: RunStore) -> None:
    """A run of an earlier version, continued with the filter on."""
    for number in range(6):
        plant(store, number, box(20))
    store.finish_stage(0, "dataset", Chosen("datasets/round-0", 6, 0), 1.0)
    assert stages.sift(round_of(store).run.round(0), METHOD, policy(0.5), QUICK) == Sifted()


def test_an_export_lacks_what_the_newest_training_lacked(store: RunStore, tmp_path: Path) -> None:
    ids = [plant(store, number, box(20)) for number in range(8)]
    told: list[str] = []
    run = round_of(store, notify=told.append).run
    train = split_images(run, dict(chosen_labels(run, METHOD, policy(0.1))), policy(0.1))["train"]
    store.finish_stage(0, "sift", Sifted(len(train), (train[-1],), {"piano": 1}), 1.0)
    for share, expected in ((0.0, set(ids)), (0.1, set(ids) - {train[-1]})):
        out = tmp_path / f"out-{share}"
        export_dataset(run, METHOD, policy(share), out, "yolo-seg")
        assert {path.stem for path in out.glob("images/*/*")} == expected
    assert len(told) == 1 and "dataset.noise_filter=0" in told[0]
