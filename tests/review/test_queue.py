"""The queue shows the labels that were compared, worst first, rounds merged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from diffugen.records import Decision, LabelSet
from diffugen.review.queue import read_queue, same_outcome
from diffugen.run.store import RunStore


def test_images_stand_where_their_first_disagreement_stands(store: RunStore, made: SimpleNamespace) -> None:
    queue = read_queue(store, 0)
    assert list(queue.disagreements) == [made.image_id(number) for number in (5, 1, 2, 3, 0)]
    entry = queue.entry(made.image_id(2))
    assert (entry.kinds, entry.severity) == (["swapped"], 0.7)
    assert entry.attention.instances.class_names == ("piano",)
    assert entry.model.instances.class_names == ("car",)
    assert entry.decision is None


def test_an_image_outside_the_queue_can_be_shown(store: RunStore, made: SimpleNamespace) -> None:
    queue = read_queue(store)
    entry = queue.entry(made.image_id(4))
    assert made.image_id(4) not in queue.disagreements
    assert (entry.kinds, entry.severity, entry.disagreements) == ([], None, ())


def test_queues_of_rounds_are_merged_newest_first(tmp_path: Path, made: SimpleNamespace) -> None:
    with made.make_run(tmp_path / "run", range(6)):
        pass
    with made.make_run(tmp_path / "run", (6, 7), round=1) as store:
        found = list(read_queue(store).disagreements)
        assert list(read_queue(store, 1).disagreements) == [made.image_id(number, 1) for number in (7, 6)]
    expected = [(7, 1), (5, 0), (6, 1), (1, 0), (2, 0), (3, 0), (0, 0)]
    assert found == [made.image_id(number, round) for number, round in expected]


def test_the_labels_that_were_compared_are_shown_not_newer_ones(
    store: RunStore, made: SimpleNamespace
) -> None:
    record = made.child.make_record(2, round=0)
    newer = LabelSet(record.id, "attention", made.instances_of(made.AGREED), "attention-2")
    store.put_labels([newer])
    assert read_queue(store).entry(record.id).attention.method == "attention-1"
    assert read_queue(store, method="attention-2").entry(record.id).attention == newer


def test_labels_of_classes_that_do_not_count_are_left_out(store: RunStore, made: SimpleNamespace) -> None:
    entry = read_queue(store, class_names=["piano"]).entry(made.image_id(0))
    assert entry.model.instances.class_names == ("piano",)
    assert read_queue(store).entry(made.image_id(0)).model.instances.class_names == ("piano", "car")


def test_a_run_without_configuration_and_stages_shows_the_newest_labels(
    tmp_path: Path, made: SimpleNamespace
) -> None:
    with RunStore.create_or_open(tmp_path / "run", config=None) as store:
        record = made.child.make_record(0, round=0)
        store.add_image(record, made.child.make_rgb(record), made.child.make_heat_maps(record), 1.0)
        for method in ("first", "second"):
            store.put_labels([LabelSet(record.id, "attention", made.instances_of(made.AGREED), method)])
        entry = read_queue(store).entry(record.id)
    assert (entry.attention.method, entry.model) == ("second", None)


def test_same_outcome(made: SimpleNamespace) -> None:
    labels = made.instances_of(made.AGREED)
    first = Decision("image", "attention", labels, "anna")
    assert same_outcome(first, Decision("image", "edited", replace(labels, terms=({},)), "ben", 3))
    assert not same_outcome(first, Decision("image", "attention", made.instances_of(), "anna"))
    assert not same_outcome(first, Decision("image", "reject", None, "anna"))
    assert same_outcome(Decision("image", "reject", None, "ben"), Decision("image", "reject", None, "anna"))
