"""What stages read from earlier ones, what they choose to train on and to promote on, and what they
refuse."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from diffugen.dataset.yolo import read_yolo
from diffugen.errors import DiffugenError
from diffugen.labels.label import LabelSettings
from diffugen.labels.score import TERMS, ScoreWeights
from diffugen.labels.shapes import encode
from diffugen.miniature.truth import FIRST_TRAINING_SCENE, exact_labels, find_truth
from diffugen.records import Decision, HeatMaps, ImageRecord, Instances, LabelSet, Phrase, Prompt
from diffugen.run.rounds import OnProgress, promoted, round_seed, rounds_without_gain, run_stage
from diffugen.run.store import RunStore
from diffugen.stages.evaluate import GOLD_IMAGES, epochs_of_the_same_length, promote_stage
from diffugen.stages.label import label_settings
from diffugen.stages.relabel import compare_stage, tune_stage
from diffugen.stages.train import dataset_stage

SIZE_WH = (96, 64)
POLICY = {"mask": "model", "trust": "none", "min_score": 0.0, "min_iou": 0.1, "good_iou": 0.5}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunStore]:
    with RunStore.create_or_open(tmp_path / "run", config={"seed": 0}) as made:
        yield made


def box(left: int, width: int = 30, score: float = 0.8, name: str = "piano") -> Instances:
    mask = np.zeros((SIZE_WH[1], SIZE_WH[0]), dtype=np.bool_)
    mask[20:50, left : left + width] = True
    return Instances(SIZE_WH, (name,), (encode(mask),), np.array([score]), (dict.fromkeys(TERMS, score),))


NOTHING = Instances(SIZE_WH, (), (), np.zeros(0))


def add(
    store: RunStore, number: int, attention: Instances, model: Instances | None = None, round: int = 0
) -> str:
    """Add an image of a prompt of its own, with its labels."""
    phrase = Phrase("piano", "piano")
    record = ImageRecord(Prompt(f"piano {number}", (phrase,)), number, SIZE_WH, "miniature", round=round)
    rgb = np.full((SIZE_WH[1], SIZE_WH[0], 3), 90 + number, dtype=np.uint8)
    heat = np.random.default_rng(number).random((1, 3, 16, 24)).astype(np.float16)
    store.add_image(record, rgb, HeatMaps(record.id, SIZE_WH, (phrase,), {"up-16x24": heat}), 0.1)
    labels = [LabelSet(record.id, "attention", attention, "rough")]
    if model is not None:
        labels.append(LabelSet(record.id, "model", model, "model-1"))
    store.put_labels(labels)
    return record.id


@contextmanager
def unwatched(what: str, unit: str) -> Iterator[OnProgress]:
    yield lambda done, total: None


def test_a_stage_is_run_once(store: RunStore) -> None:
    calls: list[int] = []

    def work(on_progress: OnProgress) -> dict[str, int]:
        calls.append(1)
        return {"images": len(calls)}

    assert run_stage(store, 0, "generate", work, unwatched) == {"images": 1}
    assert run_stage(store, 0, "generate", work, unwatched) == {"images": 1}
    assert run_stage(store, 1, "generate", work, unwatched) == {"images": 2}


def test_rounds_have_seeds_of_their_own() -> None:
    seeds = [round_seed(seed, round) for seed in (0, 1, 2) for round in range(5)]
    assert len(set(seeds)) == len(seeds)
    assert round_seed(7, 0) == 7


def test_labels_are_made_with_what_an_earlier_round_adopted(store: RunStore) -> None:
    configured, equal = LabelSettings().asdict(), dict.fromkeys(TERMS, 1.0)
    better = {"settings": {**configured, "threshold": 0.4}, "weights": {**equal, "margin": 0.2}}
    store.finish_stage(1, "tune", {"adopted": True, "after": better}, 1.0)
    store.finish_stage(2, "tune", {"adopted": False, "after": better | {"settings": configured}}, 1.0)
    assert label_settings(store, 1, configured, equal) == (LabelSettings(), ScoreWeights())
    for round in (2, 3):
        settings, weights = label_settings(store, round, configured, equal)
        assert (settings.threshold, weights.margin) == (0.4, 0.2)


def test_promotions_are_remembered(store: RunStore) -> None:
    assert promoted(store, 0, "base.pt") == "base.pt"
    for round, better in enumerate((True, True, False, False)):
        result = {"promoted": better, "checkpoint": f"training/round-{min(round, 1)}/best.pt"}
        store.finish_stage(round, "promote", result, 1.0)
        assert rounds_without_gain(store, round) == max(0, round - 1)
        assert promoted(store, round + 1, "base.pt") == result["checkpoint"]


def test_the_reference_sees_as_many_images_as_the_loop(store: RunStore) -> None:
    for round, images in enumerate((10, 20, 30)):
        store.finish_stage(round, "dataset", {"train": images, "known": 0}, 1.0)
        store.finish_stage(round, "train", {"epochs": 6}, 1.0)
    assert epochs_of_the_same_length(store, 2) == (10 + 20 + 30) * 6 // 30


def test_dataset_takes_what_the_policy_says(store: RunStore) -> None:
    agreed = [add(store, number, box(20), box(22, score=0.9)) for number in range(8)]
    differing = add(store, 10, box(10), box(60))
    unseen = [add(store, number, box(30)) for number in range(20, 24)]
    empty = add(store, 30, NOTHING, NOTHING)
    human = add(store, 40, box(10), box(60))
    store.add_decisions([Decision(human, "edited", box(35), "ann")])
    made = dataset_stage(store, "rough", class_names=["piano"], **POLICY, val_frac=0.3, seed=0, round=0)
    assert made["by_origin"] == {"agreed": 8, "attention": 4, "negative": 1, "human": 1}
    assert made["left_out"] == {"disagreement": 1}
    folder = store.folder / made["folder"]
    written = {name: labels for split in ("train", "val") for name, _, labels in read_yolo(folder, split)}
    assert set(written) == {*agreed, *unseen, empty, human}
    assert differing not in written
    assert written[human].rles == box(35).rles
    assert all(written[image_id].rles == box(22).rles for image_id in agreed)


def test_nothing_to_train_on_is_said(store: RunStore) -> None:
    for number in range(3):
        add(store, number, box(10), box(60))
    with pytest.raises(DiffugenError, match=r"nothing to train on \(3 disagreement\).*diffugen review"):
        dataset_stage(store, "rough", class_names=["piano"], **POLICY, val_frac=0.3, seed=0, round=0)
    assert not (store.folder / "datasets" / "round-0").exists()


def test_other_classes_of_the_detector_contradict_nothing(store: RunStore) -> None:
    add(
        store,
        0,
        box(20),
        Instances(SIZE_WH, ("piano", "car"), (*box(21).rles, *box(60).rles), np.array([0.9, 0.9])),
    )
    made = compare_stage(store, "rough", class_names=["piano"], min_iou=0.1, good_iou=0.5)
    assert made == {"images": 1, "agreements": 1, "kinds": dict.fromkeys(made["kinds"], 0)}
    assert (
        sum(
            compare_stage(store, "rough", class_names=["piano", "car"], min_iou=0.1, good_iou=0.5)[
                "kinds"
            ].values()
        )
        == 1
    )


@pytest.mark.parametrize(("reviewed", "kind"), [(0, "agreed"), (GOLD_IMAGES, "human")])
def test_promotion_rests_on_what_a_user_has(store: RunStore, reviewed: int, kind: str) -> None:
    for number in range(2 * GOLD_IMAGES):
        image_id = add(store, number, box(20), box(22))
        if reviewed:
            store.add_decisions([Decision(image_id, "edited", box(40), "ann")])
    made = promote_stage(
        store,
        "miniature",
        "miniature",
        "rough",
        validation=None,
        class_names=["piano"],
        device="cpu",
        image_size=64,
        trust="none",
        min_score=0.0,
        val_frac=0.8,
        min_iou=0.1,
        good_iou=0.5,
        seed=0,
    )
    assert made["evidence"] == kind and GOLD_IMAGES <= made["images"] < 2 * GOLD_IMAGES
    assert not made["promoted"], "a detector is not better than itself"
    assert made["checkpoint"] == "miniature"


def test_tuning_prefers_verdicts(store: RunStore) -> None:
    for number in range(16):
        image_id = add(store, number, box(20), box(22))
        if number < 14:
            store.add_decisions([Decision(image_id, "model", box(22), "ann")])
    arguments = {"class_names": ["piano"], "trials": 2, "images": 50, "folds": 2, "seed": 0}
    made = tune_stage(store, "rough", LabelSettings(groups={"up-*": 1.0}), ScoreWeights(), **arguments)  # type: ignore[arg-type]
    assert (made["evidence"], made["images"], made["trials"]) == ("verdicts", 14, 2)


def test_truth_of_the_miniature() -> None:
    truth, exact = find_truth("piano-on-road", ["piano"]), exact_labels("piano-on-road", ["piano"], 3)
    assert truth is not None and exact is not None
    assert (truth.images, exact.images) == (320, 3)
    names = [name for name, _, _ in exact.items()]
    assert names[0] == f"piano-on-road-{FIRST_TRAINING_SCENE}"
    first = next(iter(truth.items()))
    assert first[0] == "piano-on-road-0" and set(first[2].class_names) == {"piano"}
    assert find_truth(None, ["piano"]) is None and exact_labels("some/folder", ["piano"], 3) is None
    with pytest.raises(DiffugenError, match=r"none of the classes harp.*piano"):
        find_truth("piano-on-road", ["harp"])
