"""What the App's plugin does, on a real database, with the run taking votes over at chosen moments."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffugen.review import verdicts
from diffugen.review.schema import dataset_name
from diffugen.review.session import Takeover, push
from diffugen.run.store import RunStore
from tests.support import run_for_review as made
from tests.support.children import WAIT_SECONDS


@pytest.fixture(params=[1, 2], ids=["newest counts", "two must agree"])
def run(request: pytest.FixtureRequest, tmp_path: Path, connected: str) -> Iterator[RunStore]:
    import fiftyone as fo

    config = {**made.CONFIG, "review": {"consensus": request.param}}
    with made.make_run(tmp_path / "piano run", config=config) as store:
        yield store
        if fo.dataset_exists(dataset_name(store.folder)):
            fo.delete_dataset(dataset_name(store.folder))


class Session:
    """A dataset whose votes are taken over when asked to."""

    def __init__(self, run: RunStore) -> None:
        self.run, self.dataset = run, push(run)
        self.told: list[str] = []
        self.take_over = Takeover(run, self.dataset, reviewer="nobody", round=0, notify=self.told.append)
        self.take_over()

    def sample(self, rank: int) -> Any:
        return self.dataset.match({"rank": rank}).first()

    def decide(self, rank: int, verdict: str, reviewer: str, labels: tuple[str, ...] = ()) -> None:
        verdicts.decide(self.dataset, [self.sample(rank).id], verdict, reviewer, labels, patience=0)
        self.take_over()

    def votes(self) -> list[tuple[str, str]]:
        return [(one.verdict, one.reviewer) for one in self.run.votes()]


def test_votes_are_in_the_run_and_on_the_sample(run: RunStore) -> None:
    session = Session(run)
    session.decide(2, "attention", "ann")
    two = run.consensus == 2
    assert session.votes() == [("attention", "ann")]
    assert session.sample(2)["decision"] == ("1 of 2" if two else "attention")
    assert session.sample(2).tags == ([] if two else ["accept_attention"])
    assert len(list(run.decisions())) == (0 if two else 1)
    session.decide(2, "attention", "ben")
    assert session.votes() == [("attention", "ann"), ("attention", "ben")]
    assert session.sample(2)["decision"] == "attention"
    assert [one.verdict for one in run.decisions()] == ["attention"]
    assert verdicts.counts(session.dataset) == (1, 5)
    session.take_over()
    assert len(session.votes()) == 2, "its own marks are no news"


def test_taking_back_takes_back(run: RunStore) -> None:
    session = Session(run)
    session.decide(1, "reject", "ann")
    taken = verdicts.take_back(session.dataset, "ann", patience=0)
    assert taken == session.sample(1).id
    session.take_over()
    session.take_over()
    assert session.votes() == [("reject", "ann"), ("open", "ann")]
    assert (session.sample(1)["decision"], session.sample(1).tags) == (None, [])
    assert list(run.decisions()) == []
    assert verdicts.take_back(session.dataset, "ann", patience=0) is None


def test_what_cannot_be_used_is_answered_and_stays_undecided(run: RunStore) -> None:
    """The same object from both sides."""
    session = Session(run)
    sample = session.sample(3)
    both = [sample.attention.detections[0].id, sample.model.detections[0].id]
    session.decide(3, "edited", "ann", tuple(both))
    assert session.votes() == [] and session.sample(3)["decision"] is None
    (key,) = (one for one in verdicts.votes_of(session.dataset).list_keys() if one.startswith("answer-"))
    assert "kept twice" in verdicts.votes_of(session.dataset).get(key)
    verdicts.votes_of(session.dataset).delete(key)
    session.decide(3, "edited", "ann", (both[0],))
    assert session.votes() == [("edited", "ann")]
    (vote,) = run.votes()
    assert [(one.source, one.kept) for one in vote.judged] == [("attention", True), ("model", False)]


def test_the_plugin_waits_for_the_run(run: RunStore) -> None:
    session, stop = Session(run), threading.Event()
    answers: list[str] = []

    def review() -> None:
        answers.extend(verdicts.decide(session.dataset, [session.sample(1).id], "empty", "ann"))
        stop.set()

    reviewer = threading.Thread(target=review)
    reviewer.start()
    while not stop.is_set():
        session.take_over()
    reviewer.join(timeout=WAIT_SECONDS)
    assert answers == [] and session.votes() == [("empty", "ann")]


def test_a_changed_label_makes_an_edited_decision(run: RunStore) -> None:
    session = Session(run)
    sample = session.sample(3)
    sample.model.detections[0].label = "person"
    sample.save()
    session.decide(3, "model", "ann")
    session.take_over()
    (vote,) = run.votes()
    assert (vote.verdict, made.sure(vote.instances).class_names) == ("edited", ("person",))
    assert session.told == []


def test_a_label_of_which_nothing_is_left_is_dropped(run: RunStore) -> None:
    """Two labels, of which one is erased, then both; by a verdict on the model, and on the labels kept."""
    session = Session(run)
    left: list[tuple[str, int]] = []
    for erased in (1, 2):
        sample = session.dataset.match({"image_id": made.image_id(0)}).first()
        for one in sample.model.detections[:erased]:
            one.mask = np.zeros_like(one.mask)
        sample.save()
        kept = tuple(one.id for one in sample.model.detections)
        for verdict, labels in (("model", ()), ("edited", kept)):
            session.decide(sample["rank"], verdict, f"ann {erased} {verdict}", labels)
            session.take_over()
            vote = [*run.votes()][-1]
            left.append((vote.verdict, len(made.sure(vote.instances))))
        judged = {one.index: one.kept for one in vote.judged if one.source == "model"}
        assert list(judged.values()).count(False) == erased
    assert left == [("edited", 1)] * 2 + [("empty", 0)] * 2
    assert len([*run.votes()]) == 4 and session.told == []


def test_a_label_changed_after_the_verdict_changes_the_decision(tmp_path: Path, connected: str) -> None:
    """It is the decision of who gave the verdict, and the App shows it."""
    import fiftyone as fo

    with made.make_run(tmp_path / "piano run") as store:
        session = Session(store)
        session.decide(3, "model", "ann")
        sample = session.sample(3)
        sample.model.detections[0].label = "person"
        sample.save()
        session.take_over()
        session.take_over()
        assert session.votes() == [("model", "ann"), ("edited", "ann")]
        assert session.sample(3)["decision"] == "edited"
        session.take_over(often=True)
        assert len(session.votes()) == 2
        fo.delete_dataset(dataset_name(store.folder))


def test_tags_of_the_last_moment_are_taken_over(run: RunStore) -> None:
    session = Session(run)
    session.take_over(often=True)
    sample = session.sample(1)
    sample.tags = ["reject"]
    sample.save()
    session.take_over(often=True)
    assert session.votes() == [], "tags are looked at now and then"
    session.take_over()
    assert session.votes() == [("reject", "nobody")]


def test_an_earlier_end_does_not_end_the_next_session(run: RunStore) -> None:
    session = Session(run)
    verdicts.votes_of(session.dataset).set(verdicts.FINISH, True)
    again = Session(run)
    assert not again.take_over.was_finished()
    verdicts.votes_of(session.dataset).set(verdicts.FINISH, True)
    assert again.take_over.was_finished() and not again.take_over.was_finished()


def test_next_and_previous_go_round(run: RunStore) -> None:
    dataset = Session(run).dataset
    ids = verdicts.undecided(dataset).values("id")
    assert verdicts.following(dataset, None) == ids[0]
    assert verdicts.following(dataset, ids[1]) == ids[2]
    assert verdicts.following(dataset, ids[-1]) == ids[0]
    assert verdicts.following(dataset, ids[0], back=True) == ids[-1]


def test_the_label_to_edit_is_the_selected_or_the_only_disputed_one(run: RunStore) -> None:
    session = Session(run)
    by_image = {one["image_id"]: one for one in session.dataset}
    overlooked, swapped = by_image[made.image_id(0)], by_image[made.image_id(2)]
    piano, car = (one.id for one in overlooked["model"].detections)

    def chosen(sample: Any, *selected: str) -> str | None:
        return verdicts.to_edit(session.dataset, sample.id, selected)

    assert chosen(overlooked) == piano, "attention and model agree about the car"
    assert chosen(overlooked, piano, car, "of another image") == car
    assert chosen(swapped) is None, "both labels are disputed"
    assert verdicts.to_edit(session.dataset, None, []) is None
