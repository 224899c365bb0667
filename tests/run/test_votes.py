"""Which decision counts: the newest, or the newest that enough reviewers agree on."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import diffugen as dg
from diffugen.config import load_config
from diffugen.errors import ConfigError, StoreError
from diffugen.records import Decision, Instances, Judged
from diffugen.run import codec
from diffugen.run.store import RunStore
from diffugen.run.votes import agree, newest_votes, settled
from diffugen.stages.verbs import resolve_config
from tests.support import run_for_review as made, store_child as child

OLD = Path(__file__).parents[1] / "fixtures" / "run-schema-3"
CAR = made.instances_of(("car", made.box_mask(0, 0, 20, 20), 1.0))
NEAR_CAR = made.instances_of(("car", made.box_mask(1, 0, 20, 20), 1.0))
FAR_CAR = made.instances_of(("car", made.box_mask(8, 0, 28, 20), 1.0))
PIANO = made.instances_of(("piano", made.box_mask(0, 0, 20, 20), 1.0))
TWO_CARS = CAR.joined(FAR_CAR)


def vote(reviewer: str, labels: Instances | None = None, verdict: str = "edited", at: str = "") -> Decision:
    return Decision("x", verdict, labels, reviewer, made_at=at)


REJECT, OPEN = vote("cleo", verdict="reject"), vote("cleo", verdict="open")


# -------------------------------------------------------------------- what counts


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        (vote("ann", CAR), vote("ben", NEAR_CAR, "attention"), True),
        (vote("ann", CAR), vote("ben", FAR_CAR), False),
        (vote("ann", CAR), vote("ben", PIANO), False),
        (vote("ann", CAR), vote("ben", TWO_CARS), False),
        (vote("ann", TWO_CARS), vote("ben", FAR_CAR.joined(NEAR_CAR)), True),
        (vote("ann", CAR.joined(NEAR_CAR)), vote("ben", TWO_CARS), False),
        (vote("ann", made.instances_of(), "empty"), vote("ben", made.instances_of(), "empty"), True),
        (vote("ann", made.instances_of(), "empty"), REJECT, False),
        (vote("ann", verdict="reject"), REJECT, True),
        (vote("ann", verdict="open"), OPEN, False),
        (REJECT, OPEN, False),
    ],
)
def test_agree(first: Decision, second: Decision, same: bool) -> None:
    assert agree(first, second) is same and agree(second, first) is same


def test_the_newest_vote_of_each_reviewer_oldest_first() -> None:
    votes = [vote("ann", CAR), vote("ben", CAR), vote("ann", PIANO)]
    assert newest_votes(votes) == {"x": (votes[1], votes[2])}


def test_without_consensus_the_newest_vote_counts() -> None:
    votes = [vote("ann", CAR), vote("ben", PIANO)]
    assert settled(votes) == {"x": votes[1]}
    assert settled([*votes, OPEN]) == {}, "taken back"
    assert settled([*votes, OPEN, REJECT]) == {"x": REJECT}


def test_a_consensus_of_two() -> None:
    ann, ben = vote("ann", CAR), vote("ben", NEAR_CAR)
    assert settled([ann], 2) == {}
    assert settled([ann, ann], 2) == {}, "one person is not two"
    assert settled([ann, ben], 2) == {"x": ben}
    assert settled([ann, ben, REJECT], 2) == {"x": ben}, "a third opinion changes nothing"
    assert settled([ann, ben, OPEN], 2) == {"x": ben}
    assert settled([ann, ben, vote("ben", PIANO)], 2) == {}, "ben has changed his mind"
    assert settled([ann, ben, REJECT, vote("dan", verdict="reject")], 2)["x"].verdict == "reject"
    assert settled([ann, ben, REJECT], 3) == {}


def test_images_come_in_the_order_in_which_they_were_decided() -> None:
    votes = [Decision(name, "reject", None, "ann", made_at=at) for name, at in (("b", "1"), ("a", "2"))]
    assert list(settled([*votes, Decision("b", "reject", None, "ben", made_at="3")])) == ["a", "b"]


# -------------------------------------------------------------------- in the ledger


@pytest.fixture(params=[1, 2])
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[RunStore]:
    config = {**made.CONFIG, "review": {"consensus": request.param}}
    with made.make_run(tmp_path / "run", config=config) as opened:
        yield opened


def test_votes_decisions_labels_and_summary_say_the_same(store: RunStore) -> None:
    image_id, needed = made.image_id(0), store.consensus
    first, second = (
        Decision(image_id, "edited", labels, name) for name, labels in (("ann", CAR), ("ben", CAR))
    )
    for votes, counts in (([first], needed == 1), ([second], True)):
        store.add_decisions(votes)
        assert [one.reviewer for one in store.decisions()] == ([votes[0].reviewer] if counts else [])
        assert [one.image_id for one in store.labels("human")] == ([image_id] if counts else [])
        assert store.summary().rounds[0].decisions == ({"edited": 1} if counts else {})
    assert list(store.votes()) == list(store.votes(image_id)) == [first, second]
    assert all(one.made_at for one in store.votes())
    store.add_decisions([Decision(image_id, "open", None, name) for name in ("ann", "ben")])
    assert not list(store.decisions()) and not list(store.labels("human"))
    assert store.summary().rounds[0].decisions == {}
    assert len(list(store.votes())) == 4, "nothing is forgotten"


def test_what_was_said_about_objects_is_kept(store: RunStore) -> None:
    judged = (
        Judged("attention", 0, False, None, None, "attention-1"),
        Judged("model", 1, True, "car", None, "model-1"),
        Judged("human", 0, True, "piano", made.box_mask(0, 0, 4, 4)),
    )
    store.add_decisions([Decision(made.image_id(0), "open", None, "ann", 0, judged)])
    assert [one.judged for one in store.votes()] == [judged]
    odd = (Judged("human", 0, True, "piano", {"size": [4, 4], "counts": "`0"}),)
    with pytest.raises(ValueError, match="a decision of size"):
        store.add_decisions([Decision(made.image_id(0), "open", None, "ann", 0, odd)])


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "3",
        "[3]",
        '[{"source": "attention"}]',
        '[{"source": "nobody", "index": 0, "kept": true}]',
        '[{"source": "attention", "index": "0", "kept": true}]',
        '[{"source": "attention", "index": 0, "kept": 1}]',
        '[{"source": "attention", "index": 0, "kept": true, "more": 1}]',
        '[{"source": "human", "index": 0, "kept": true}]',
        '[{"source": "human", "index": 0, "kept": true, "class_name": "car", "mask": {"size": [24, 40]}}]',
        '[{"source": "human", "index": 0, "kept": true, "class_name": "car", '
        '"mask": {"size": [24, 40], "counts": "zz"}}]',
        '[{"source": "human", "index": 0, "kept": true, "class_name": 7, '
        '"mask": {"size": [24, 40], "counts": "Pn0"}}]',
    ],
)
def test_damaged_judgements_are_one_error(store: RunStore, text: str) -> None:
    with pytest.raises(ValueError):
        codec.judged_from_json(text, made.SIZE_WH)
    store.add_decisions([Decision(made.image_id(0), "reject", None, "ann")])
    store._ledger._connection.execute("UPDATE decisions SET judged = ?", (text,))
    with pytest.raises(StoreError, match="of the table decisions cannot be read"):
        list(store.votes())


# -------------------------------------------------------------------- older runs and configurations


@pytest.fixture
def old(tmp_path: Path) -> tuple[Path, list[tuple[Any, ...]]]:
    """A run of schema 3 with decisions, and their rows."""
    folder = Path(shutil.copytree(OLD, tmp_path / "old"))
    ledger = sqlite3.connect(folder / "ledger.sqlite")
    assert ledger.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone() == ("3",)
    ids = [row[0] for row in ledger.execute("SELECT id FROM images ORDER BY id LIMIT 2")]
    empty = codec.instances_to_json(Instances((64, 64), (), (), np.zeros(0)))
    rows = [
        (ids[0], "reject", None, "ann", 0, "2026-01-01T00:00:00+00:00"),
        (ids[1], "empty", empty, "ben", 1, "2026-01-02T00:00:00+00:00"),
        (ids[0], "empty", empty, "ann", 1, "2026-01-03T00:00:00+00:00"),
    ]
    ledger.executemany(
        "INSERT INTO decisions (image_id, verdict, instances, reviewer, round, created_at) "
        "VALUES (?, ?, ?, ?, ?, ?)",
        rows,
    )
    ledger.commit()
    ledger.close()
    return folder, rows


def test_decisions_of_an_older_run_are_read_without_changing_it(
    old: tuple[Path, list[tuple[Any, ...]]],
) -> None:
    folder, rows = old
    before = (folder / "ledger.sqlite").read_bytes()
    with RunStore.open(folder, readonly=True) as store:
        check(store, rows)
    assert (folder / "ledger.sqlite").read_bytes() == before


def test_decisions_of_an_older_run_survive_the_migration(old: tuple[Path, list[tuple[Any, ...]]]) -> None:
    folder, rows = old
    with RunStore.open(folder) as store:
        check(store, rows)
        judged = (Judged("attention", 0, True, None, None, "m"),)
        store.add_decisions([Decision(rows[1][0], "open", None, "ben", 1, judged)])
        assert [one.judged for one in store.votes()] == [(), (), (), judged]
    ledger = sqlite3.connect(folder / "ledger.sqlite")
    assert ledger.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone() == ("6",)
    ledger.close()


def check(store: RunStore, rows: list[tuple[Any, ...]]) -> None:
    found = list(store.votes())
    assert [(one.image_id, one.verdict, one.reviewer, one.round, one.made_at) for one in found] == [
        (row[0], row[1], *row[3:]) for row in rows
    ]
    assert all(one.judged == () for one in found)
    assert store.consensus == 1
    assert [(one.image_id, one.verdict) for one in store.decisions()] == [
        (row[0], row[1]) for row in rows[1:]
    ]


@pytest.mark.parametrize(("given", "kept"), [("1", 1), ("3", 3)])
def test_consensus_is_configured(given: str, kept: int) -> None:
    assert load_config("miniature", [f"review.consensus={given}"]).review.consensus == kept


@pytest.mark.parametrize("given", ["0", "-1", "1.5", "two"])
def test_a_consensus_is_a_whole_number_of_people(given: str) -> None:
    with pytest.raises(ConfigError, match=r"review\.consensus"):
        load_config("miniature", [f"review.consensus={given}"])


@pytest.mark.parametrize("review", [None, {}, {"consensus": "many"}, {"consensus": 0}, 7])
def test_a_run_without_a_usable_consensus_needs_one_reviewer(tmp_path: Path, review: Any) -> None:
    with RunStore.create_or_open(tmp_path / "run", config={**child.CONFIG, "review": review}) as store:
        assert store.consensus == 1


def test_what_is_said_later_about_a_consensus_counts(tmp_path: Path) -> None:
    """For all that read the run: a decision may stop to count, and count again."""
    folder = tmp_path / "run"
    dg.open_run(folder, load_config("miniature")).close()
    with made.make_run(folder, range(1), config=None) as store:
        image_id = next(iter(store.image_ids()))
        store.add_decisions([Decision(image_id, "edited", CAR, "ann")])
    for number, decided in ((2, 0), (None, 0), (1, 1)):
        given = [] if number is None else [f"review.consensus={number}", "review.audits=0.3"]
        config, _ = resolve_config(None, given, folder)
        with dg.open_run(folder, config):
            pass
        with RunStore.open(folder, readonly=True) as store:
            assert len(list(store.decisions())) == len(list(store.labels("human"))) == decided
            assert sum(store.summary().rounds[0].decisions.values()) == decided
            assert store.config and store.config["review"]["audits"] == 0.3
    assert dg.open_run(folder).config.review.consensus == 1
