"""The queue shows the labels that were compared, worst first, rounds merged."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from diffugen.records import Decision, LabelSet
from diffugen.review.queue import read_queue, same_outcome
from diffugen.run.store import RunStore
from tests.support import run_for_review as made, store_child as child


def test_images_stand_where_their_first_disagreement_stands(store: RunStore) -> None:
    queue = read_queue(store)
    assert list(queue.disagreements) == [made.image_id(number) for number in (5, 1, 2, 3, 0)]
    entry = queue.entry(made.image_id(2))
    assert entry.kinds == ["swapped"] and entry.severity == pytest.approx(0.76)
    assert made.sure(entry.attention).instances.class_names == ("piano",)
    assert made.sure(entry.model).instances.class_names == ("car",)
    assert entry.decision is None


def test_an_image_outside_the_queue_can_be_shown(store: RunStore) -> None:
    queue = read_queue(store)
    entry = queue.entry(made.image_id(4))
    assert made.image_id(4) not in queue.disagreements
    assert (entry.kinds, entry.severity, entry.disagreements) == ([], None, ())


def test_audits_are_spread_among_the_images_in_disagreement(tmp_path: Path) -> None:
    config = {**made.CONFIG, "review": {"audits": 0.3}}
    agreed = {made.image_id(number) for number in (4, 10, 16, 22)}
    with made.make_run(tmp_path / "run", range(24), config=config) as store:
        queue = read_queue(store)
        order = list(queue.disagreements)
        audits = [name for name in order if not queue.disagreements[name]]
        assert set(audits) == agreed, "0.3 of 20 are 6, but there are only four"
        places = [order.index(name) for name in audits]
        assert all(4 <= second - first <= 8 for first, second in pairwise(places))
        assert read_queue(store).disagreements == queue.disagreements
        left = [name for name in order if name not in agreed]
    with made.make_run(tmp_path / "none", range(24), config=made.CONFIG) as store:
        assert list(read_queue(store).disagreements) == left, "a run of a version without audits"


def test_as_many_audits_as_configured(tmp_path: Path) -> None:
    config = {**made.CONFIG, "review": {"audits": 0.1}}
    with made.make_run(tmp_path / "run", range(24), config=config) as store:
        found = [name for name, here in read_queue(store).disagreements.items() if not here]
    assert len(found) == 2, "0.1 of 20 images in disagreement"


def test_queues_of_rounds_are_merged_newest_first(tmp_path: Path) -> None:
    with made.make_run(tmp_path / "run", range(6)):
        pass
    with made.make_run(tmp_path / "run", (6, 7), round=1) as store:
        found = list(read_queue(store).disagreements)
    expected = [(7, 1), (5, 0), (6, 1), (1, 0), (2, 0), (3, 0), (0, 0)]
    assert found == [made.image_id(number, round) for number, round in expected]


def test_the_labels_that_were_compared_are_shown_not_newer_ones(store: RunStore) -> None:
    record = child.make_record(2, round=0)
    newer = LabelSet(record.id, "attention", made.instances_of(made.AGREED), "attention-2")
    store.put_labels([newer])
    assert made.sure(read_queue(store).entry(record.id).attention).method == "attention-1"
    store.finish_stage(0, "label", made.labelled("attention-2"), 1.0)
    assert read_queue(store).entry(record.id).attention == newer


@pytest.mark.parametrize(
    ("prompts", "class_names"),
    [
        ({"classes": {"piano": ["grand piano"]}}, ("piano",)),
        (made.CONFIG["prompts"], ("piano", "car")),
        ({"classes": ["another", "version"]}, ("piano", "car")),
        (None, ("piano", "car")),
    ],
)
def test_labels_of_classes_that_do_not_count_are_left_out(
    tmp_path: Path, prompts: Any, class_names: tuple[str, ...]
) -> None:
    with made.make_run(tmp_path / "run", config={"prompts": prompts}) as store:
        entry = read_queue(store).entry(made.image_id(0))
    assert made.sure(entry.model).instances.class_names == class_names


def test_a_run_without_configuration_and_stages_shows_the_newest_labels(tmp_path: Path) -> None:
    with RunStore.create_or_open(tmp_path / "run", config=None) as store:
        record = child.make_record(0, round=0)
        store.add_image(record, child.make_rgb(record), child.make_heat_maps(record), 1.0)
        for method in ("first", "second"):
            store.put_labels([LabelSet(record.id, "attention", made.instances_of(made.AGREED), method)])
        entry = read_queue(store).entry(record.id)
    assert (made.sure(entry.attention).method, entry.model) == ("second", None)


def test_same_outcome() -> None:
    labels = made.instances_of(made.AGREED)
    first = Decision("image", "attention", labels, "anna")
    assert same_outcome(first, Decision("image", "edited", replace(labels, terms=({},)), "ben", 3))
    assert not same_outcome(first, Decision("image", "attention", made.instances_of(), "anna"))
    assert not same_outcome(first, Decision("image", "reject", None, "anna"))
    assert same_outcome(Decision("image", "reject", None, "ben"), Decision("image", "reject", None, "anna"))
