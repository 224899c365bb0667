"""Sets of a few images, or of one, can be trained on; no split of them is left empty unless it must be."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffugen import stages
from diffugen.config import DatasetSettings, DisagreementSettings, TrainingPolicy
from diffugen.dataset.truth import Truth, read_truth
from diffugen.dataset.yolo import find_yolo, read_yolo, write_yolo
from diffugen.run import RunStore
from diffugen.stages.train import write_known
from tests.support.dataset_samples import box_mask, item
from tests.support.planted import METHOD, NOTHING, box, plant
from tests.support.rounds import round_of


def known_images(folder: Path, labelled: int, empty: int) -> Truth:
    shapes = [("piano", box_mask((2, 2, 9, 9)), 1.0)]
    made = [item(f"empty{'-' * number}") for number in range(empty)]
    made += [item(f"piano{'-' * number}", *shapes) for number in range(labelled)]
    write_yolo(folder, {"train": made}, ["piano"])
    return read_truth(f"{folder}:train", ["piano"], purpose="train")


@pytest.mark.parametrize("empty", [0, 1, 3])
@pytest.mark.parametrize("labelled", [1, 2, 3, 5, 12])
def test_both_splits_have_an_object_if_two_images_have_one(tmp_path: Path, labelled: int, empty: int) -> None:
    known, said = known_images(tmp_path / "known", labelled, empty), list[str]()
    with RunStore.create_or_open(tmp_path / "run", config={}) as store:
        for seed in range(8):
            said.clear()
            made = write_known(round_of(store, seed=seed, notify=said.append), known, 0.15)
            find_yolo(store.folder / made.folder)  # the trainer's own check
            assert made.train + made.val == labelled + empty
            objects = {
                split: sum(len(found) for _, _, found in read_yolo(store.folder / made.folder, split))
                for split in ("train", "val")
            }
            if labelled > 1:
                assert objects["train"] and objects["val"]
            assert bool(said) == (made.val == 0)
            if said:
                assert "too small to hold images out" in said[0] and labelled == 1


def test_known_images_are_trained_on_although_nothing_of_the_run_can_be(tmp_path: Path) -> None:
    known = known_images(tmp_path / "known", 2, 0)
    policy = TrainingPolicy(DatasetSettings(), DisagreementSettings())
    with RunStore.create_or_open(tmp_path / "run", config={}) as store:
        for number in range(3):
            plant(store, number, box(20), NOTHING)  # every label is disputed
        made = stages.choose(round_of(store), METHOD, policy, known)
        assert (made.train, made.known) == (0, 2)
        find_yolo(store.folder / made.folder)
