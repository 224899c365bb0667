"""What a decisions file says of single objects, of open images and of times; a mistake imports nothing."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffugen.errors import DiffugenError
from diffugen.labels.shapes import decode
from diffugen.records import Decision, LabelSet
from diffugen.review.decisions import read_decisions
from diffugen.review.queue import read_queue, same_outcome
from diffugen.run.store import RunStore
from tests.support import run_for_review as made, store_child as child

IMAGE = made.image_id(1)
MASK = {"size": [24, 40], "counts": [0, 24, 936]}
"""The left column."""


def read(store: RunStore, folder: Path, *items: dict[str, Any]) -> list[Decision]:
    file = folder / "decisions.json"
    file.write_text(json.dumps({"run": "piano run", "decisions": items}))
    return read_decisions(store, file, reviewer="anna", round=1)


def edited(*objects: Any, **changes: Any) -> dict[str, Any]:
    return {"image_id": IMAGE, "verdict": "edited", "objects": list(objects), **changes}


def test_objects_are_kept_renamed_redrawn_and_drawn(store: RunStore, tmp_path: Path) -> None:
    (found,) = read(
        store,
        tmp_path,
        edited(
            {"source": "attention", "index": 0, "class": "person"},
            {"source": "model", "index": 0, "keep": False},
            {"source": "attention", "index": 1, "mask": MASK},
            {"source": "human", "class": "piano", "mask": {**MASK, "counts": [936, 24]}},
        ),
    )
    labels = made.sure(found.instances)
    assert labels.class_names == ("person", "car", "piano")
    assert labels.rles[0] == made.LABELS[1][0].rles[0]
    assert np.flatnonzero(decode(labels.rles[1]).any(axis=0)).tolist() == [0]
    assert np.flatnonzero(decode(labels.rles[2]).any(axis=0)).tolist() == [39]
    assert labels.scores.tolist() == [0.2, 1.0, 1.0]
    assert [(one.source, one.index, one.kept) for one in found.judged] == [
        ("attention", 0, True),
        ("model", 0, False),
        ("attention", 1, True),
        ("human", 0, True),
    ]
    assert found.judged[0].method == "attention-1" and found.judged[3].method == ""
    store.add_decisions([found])
    (vote,) = store.votes(IMAGE)
    assert vote.judged == found.judged and same_outcome(vote, found)


def test_what_keeps_nothing_is_empty(store: RunStore, tmp_path: Path) -> None:
    for objects in ([], [{"source": "attention", "index": 0, "keep": False}]):
        (found,) = read(store, tmp_path, edited(*objects))
        assert found.verdict == "empty" and len(made.sure(found.instances)) == 0


def test_an_open_image_is_not_decided_and_takes_a_decision_back(store: RunStore, tmp_path: Path) -> None:
    store.add_decisions([Decision(IMAGE, "reject", None, "anna")])
    half = {"image_id": IMAGE, "verdict": "open", "objects": [{"source": "model", "index": 0}]}
    found = read(store, tmp_path, half)
    assert [(one.verdict, one.instances, len(one.judged)) for one in found] == [("open", None, 1)]
    store.add_decisions(found)
    assert list(store.decisions()) == []
    assert read(store, tmp_path, half) == [], "it says nothing new"
    assert len(read(store, tmp_path, {"image_id": IMAGE, "verdict": "open"})) == 1


def test_objects_mean_the_labels_that_were_shown(store: RunStore, tmp_path: Path) -> None:
    shown = edited({"source": "model", "index": 0, "method": "model-1"})
    newer = made.instances_of(("piano", made.box_mask(1, 2, 3, 4), 0.5))
    store.put_labels([LabelSet(IMAGE, "model", newer, "model-2")])
    (found,) = read(store, tmp_path, shown)
    assert made.sure(found.instances).class_names == ("car",)
    (found,) = read(store, tmp_path, edited({"source": "model", "index": 0}))
    assert made.sure(found.instances).class_names == ("piano",)


def test_the_time_of_a_decision_is_kept_and_never_lies_ahead(store: RunStore, tmp_path: Path) -> None:
    item = {"image_id": IMAGE, "verdict": "reject"}
    (found,) = read(store, tmp_path, {**item, "at": "2026-01-31T13:00:00.5+01:00"})
    assert found.made_at == "2026-01-31T12:00:00.500+00:00"
    (found,) = read(store, tmp_path, {**item, "at": "2999-01-01T00:00:00Z"})
    assert datetime.fromisoformat(found.made_at) <= datetime.now(timezone.utc)
    (found,) = read(store, tmp_path, item)
    assert found.made_at == ""


def test_a_file_read_again_does_not_outvote_a_later_reviewer(store: RunStore, tmp_path: Path) -> None:
    mine = {"image_id": IMAGE, "verdict": "reject", "at": "2026-01-01T12:00:00Z"}
    store.add_decisions(read(store, tmp_path, mine))
    store.add_decisions(read(store, tmp_path, {"image_id": IMAGE, "verdict": "empty", "reviewer": "ben"}))
    assert read(store, tmp_path, mine) == []
    (again,) = read(store, tmp_path, {**mine, "at": "2999-01-01T00:00:00Z"})
    assert again.verdict == "reject"


FIRST = {"source": "attention", "index": 0}


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"image_id": IMAGE, "verdict": "model", "objects": []}, "'model' cannot have objects"),
        ({"image_id": IMAGE, "verdict": "edited"}, "'edited' needs objects"),
        (edited(objects=3), "objects is 3; expected a list"),
        (edited(3), "an object is 3"),
        (edited({**FIRST, "note": 1}), "unknown key 'note'"),
        (edited({**FIRST, "index": 2}), "no attention label 2"),
        (edited({**FIRST, "index": -1}), "place -1"),
        (edited({**FIRST, "index": True}), "a whole index"),
        (edited({**FIRST, "keep": 1}), "true or false as keep"),
        (edited({"source": "candidate"}), "expected attention, model or human"),
        (edited({**FIRST, "class": "pianno"}), "did you mean 'piano'"),
        (edited({**FIRST, "class": 3}), "class of an object is 3"),
        (edited({**FIRST, "mask": {**MASK, "size": [40, 24]}}), "in an image of [24, 40]"),
        (edited({**FIRST, "mask": {**MASK, "counts": [1, 2]}}), IMAGE),
        (edited({**FIRST, "mask": 3}), "not a run-length encoding"),
        (edited({**FIRST, "method": "gone"}), "no longer has the attention labels 'gone'"),
        (edited({"source": "human", "class": "piano"}), "needs a class and a mask"),
        (edited({"source": "attention", "index": 1}, {"source": "model", "index": 0}), "kept twice"),
        (edited(FIRST, at="yesterday"), "expected a time such as"),
        (edited(FIRST, at="2026-01-31T12:00:00"), "expected a time such as"),
        (edited(FIRST, at=5), "at is 5"),
    ],
)
def test_every_mistake_about_an_object_is_named(
    store: RunStore, tmp_path: Path, item: dict[str, Any], message: str
) -> None:
    good = {"image_id": made.image_id(2), "verdict": "empty"}
    with pytest.raises(DiffugenError) as caught:
        read(store, tmp_path, good, item)
    assert message in str(caught.value)
    assert "nothing was imported" in str(caught.value) and "decision 2: " in str(caught.value)
    assert list(store.votes()) == []


# -------------------------------------------------------------------- whole images


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def saved_by_page(store: RunStore, verdicts: dict[int, str], reviewer: str = "") -> dict[str, Any]:
    """What the page saves for verdicts by rank."""
    queue = read_queue(store)
    items = []
    for rank, verdict in verdicts.items():
        entry = queue.entry(list(queue.disagreements)[rank - 1])
        labels = {"attention": entry.attention, "model": entry.model}.get(verdict)
        item = {"image_id": entry.record.id, "verdict": verdict, "reviewer": reviewer or "page"}
        items.append(item if labels is None else {**item, "method": labels.method})
    return {"run": "piano run", "decisions": items}


def test_decisions_of_the_page_come_back(store: RunStore, tmp_path: Path) -> None:
    file = write(
        tmp_path / "decisions.json",
        saved_by_page(store, {1: "model", 2: "attention", 3: "empty", 4: "reject"}, "ben"),
    )
    found = read_decisions(store, file, reviewer="anna", round=2)
    ids = [made.image_id(number) for number in (5, 1, 2, 3)]
    assert [(one.image_id, one.verdict) for one in found] == list(
        zip(ids, ["model", "attention", "empty", "reject"], strict=True)
    )
    assert {(one.reviewer, one.round) for one in found} == {("ben", 2)}
    assert made.sure(found[0].instances).rles == made.LABELS[5][1].rles
    assert made.sure(found[1].instances).terms == made.LABELS[1][0].terms
    assert len(made.sure(found[2].instances)) == 0
    store.add_decisions(found)
    assert read_decisions(store, file, reviewer="anna", round=3) == []
    assert [labels.image_id for labels in store.labels("human")] == ids[:3]


def test_a_decision_means_the_labels_that_were_on_the_page(store: RunStore, tmp_path: Path) -> None:
    file = write(tmp_path / "d.json", saved_by_page(store, {1: "model"}))
    newer = made.instances_of(("car", made.box_mask(1, 2, 3, 4), 0.5))
    store.put_labels([LabelSet(made.image_id(5), "model", newer, "model-2")])
    (found,) = read_decisions(store, file, reviewer="anna", round=0)
    assert made.sure(found.instances).class_names == ("person",)
    by_hand = {"run": "piano run", "decisions": [{"image_id": made.image_id(5), "verdict": "model"}]}
    (found,) = read_decisions(store, write(file, by_hand), reviewer="anna", round=0)
    assert (made.sure(found.instances).class_names, found.reviewer) == (("car",), "anna")


def decisions(*items: Any, **changes: Any) -> dict[str, Any]:
    return {"run": "piano run", "decisions": list(items), **changes}


GOOD = {"image_id": "IMAGE-1", "verdict": "empty"}


@pytest.mark.parametrize(
    ("content", "messages"),
    [
        ("{", ["invalid JSON in line 1"]),
        ("", ["invalid JSON in line 1"]),
        ([], ["expected {"]),
        ({"run": "piano run"}, ["expected {"]),
        (decisions(run="other"), ["it belongs to run 'other'; this run is 'piano run'"]),
        ({"decisions": []}, ["does not name its run"]),
        (decisions(extra=1), ["unknown key 'extra'"]),
        (decisions(3), ["decision 1: expected an object with image_id and verdict, not 3"]),
        (decisions({"image_id": "nothing", "verdict": "empty"}), ["the run has no image 'nothing'"]),
        (decisions({"image_id": "IMAGE-1"}), ["verdict is None"]),
        (decisions({"image_id": 7, "verdict": "empty"}), ["image_id is 7"]),
        (decisions({"image_id": "IMAGE-1", "verdict": "atention"}), ["did you mean 'attention'"]),
        (decisions({"image_id": "IMAGE-1", "verdict": "edited"}), ["'edited' needs objects"]),
        (decisions({**GOOD, "reviewer": ""}), ["reviewer is ''"]),
        (decisions({**GOOD, "note": "x"}), ["unknown key 'note'"]),
        (decisions({"image_id": "IMAGE-BARE", "verdict": "model"}), ["has no model labels to accept"]),
        (
            decisions({**GOOD, "verdict": "model", "method": "gone"}),
            ["no longer has the model labels 'gone'", "write the page again"],
        ),
        (decisions(GOOD, GOOD), ["is decided 2 times"]),
        (
            decisions(
                GOOD, {"image_id": "nothing", "verdict": "empty"}, {**GOOD, "verdict": "x"}, run="other"
            ),
            [
                "3 mistakes",
                "to run 'other'",
                "decision 2: the run has no image",
                "decision 3: unknown verdict 'x'",
            ],
        ),
    ],
)
def test_every_mistake_is_named_and_nothing_is_imported(
    store: RunStore, tmp_path: Path, content: Any, messages: list[str]
) -> None:
    bare = child.make_record(77, round=0)
    store.add_image(bare, child.make_rgb(bare), child.make_heat_maps(bare), 1.0)
    text = content if isinstance(content, str) else json.dumps(content)
    file = write(
        tmp_path / "d.json", text.replace("IMAGE-1", made.image_id(1)).replace("IMAGE-BARE", bare.id)
    )
    with pytest.raises(DiffugenError) as caught:
        read_decisions(store, file, reviewer="anna", round=0)
    for message in [*messages, "nothing was imported", str(file)]:
        assert message in str(caught.value)
    assert list(store.decisions()) == []


def test_a_missing_file_is_named(store: RunStore, tmp_path: Path) -> None:
    with pytest.raises(DiffugenError, match=r"cannot read the decisions file .*none\.json: No such file"):
        read_decisions(store, tmp_path / "none.json", reviewer="anna", round=0)
