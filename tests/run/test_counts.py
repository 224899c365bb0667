"""The counts that the ledger keeps are those of its rows, whatever is written."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from diffugen.records import Disagreement
from diffugen.run import schema
from diffugen.run.ledger import Ledger
from diffugen.run.store import RunStore
from tests.support.stores import add, make_labels, make_record

MODEL = {"spurious": None, "badly_located": 0}
IMAGES, SOURCES, METHODS = 2, ("attention", "model"), ("a", "b")


def label(store: RunStore, number: int, source: str, method: str, objects: int, round: int) -> None:
    if store.knows_image(make_record(number).id):
        labels = make_labels(make_record(number), source=source, method=method, objects=objects)
        store.put_labels([replace(labels, round=round)])


def delete(store: RunStore, number: int) -> None:
    for table in ("labels", "disagreements"):
        store._ledger._connection.execute(f"DELETE FROM {table} WHERE image_id = ?", [make_record(number).id])
    store._ledger._connection.execute("DELETE FROM images WHERE id = ?", [make_record(number).id])


def change(store: RunStore, number: int, seconds: float, round: int) -> None:
    store._ledger._connection.execute(
        "UPDATE images SET seconds = ?, round = ? WHERE id = ?", [seconds, round, make_record(number).id]
    )


def contest(store: RunStore, numbers: list[int], round: int, kind: str) -> None:
    known = [number for number in numbers if store.knows_image(make_record(number).id)]
    store.put_disagreements(
        round, [Disagreement(make_record(number).id, kind, 0.5, 0, MODEL[kind], 0.1) for number in known]
    )


def settle(store: RunStore, number: int) -> None:
    store.drop_disagreements([make_record(number).id])


def move(store: RunStore, number: int, other: int, round: int, severity: float) -> None:
    if store.knows_image(make_record(other).id):
        store._ledger._connection.execute(
            "UPDATE disagreements SET image_id = ?, round = ?, severity = ? WHERE image_id = ?",
            [make_record(other).id, round, severity, make_record(number).id],
        )


NUMBERS, ROUNDS = st.integers(0, IMAGES - 1), st.integers(0, 2)
STEPS: st.SearchStrategy[tuple[Callable[..., None], tuple[Any, ...]]] = st.one_of(
    st.tuples(st.just(add), st.tuples(NUMBERS)),
    st.tuples(
        st.just(label),
        st.tuples(NUMBERS, st.sampled_from(SOURCES), st.sampled_from(METHODS), st.integers(0, 3), ROUNDS),
    ),
    st.tuples(
        st.just(lambda store, *of: store.renew_labels(*of)),
        st.tuples(st.sampled_from(SOURCES), st.sampled_from(METHODS)),
    ),
    st.tuples(st.just(delete), st.tuples(NUMBERS)),
    st.tuples(
        st.just(contest), st.tuples(st.lists(NUMBERS, max_size=4), ROUNDS, st.sampled_from(sorted(MODEL)))
    ),
    st.tuples(st.just(settle), st.tuples(NUMBERS)),
    st.tuples(st.just(move), st.tuples(NUMBERS, NUMBERS, ROUNDS, st.floats(0, 1))),
    st.tuples(st.just(change), st.tuples(NUMBERS, st.floats(0, 100), ROUNDS)),
)


def check(store: RunStore) -> None:
    for table in ("image_counts", "label_counts", "disagreement_counts", "contested_counts"):
        kept = store.ledger.all(f"SELECT * FROM {table}")
        counted = store.ledger.all(f"SELECT * FROM {schema.counts(table, schema.WITH_COUNTS - 1)}")
        assert len(kept) == len(counted), (kept, counted)
        for one, other in zip(sorted(kept), sorted(counted), strict=True):
            assert one == pytest.approx(other, abs=1e-9) if table == "image_counts" else one == other


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(steps=st.lists(STEPS, min_size=5, max_size=30))
def test_counts_are_those_of_the_rows(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[Callable[..., None], tuple[Any, ...]]]
) -> None:
    with RunStore.create_or_open(tmp_path_factory.mktemp("run"), config=None) as store:
        store._ledger._connection.execute("PRAGMA synchronous = OFF")
        for step, arguments in steps:
            step(store, *arguments)
            check(store)


def test_a_label_set_that_is_replaced_counts_once(store: RunStore) -> None:
    add(store, 0, 1)
    for objects in (1, 3):
        store.put_labels(make_labels(make_record(number), objects=objects) for number in range(2))
    labels = make_labels(make_record(0))
    assert store.count_labels(labels.source, labels.method) == (2, 6)
    assert sum(one.objects[labels.source] for one in store.summary().rounds.values()) == 6


def test_what_is_rolled_back_does_not_count(store: RunStore) -> None:
    add(store, 0)
    with pytest.raises(RuntimeError), store.ledger.transaction():
        store.ledger.write(
            "UPDATE images SET bytes = :bytes, seconds = :seconds", [{"bytes": 1, "seconds": 100.0}]
        )
        raise RuntimeError
    check(store)
    assert store.summary().rounds[0].seconds == 1.5


def test_another_program_that_writes_keeps_them_too(store: RunStore) -> None:
    add(store, *range(4))
    store.put_labels([make_labels(make_record(0))])
    with sqlite3.connect(store.folder / "ledger.sqlite") as other:
        other.execute("DELETE FROM labels")
        other.execute("DELETE FROM images WHERE round = 1")
    other.close()
    check(store)
    assert 1 not in store.summary().rounds


def test_a_run_without_them_is_counted_and_upgraded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as older:
        older.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[: schema.WITH_COUNTS - 1])
        with RunStore.create_or_open(tmp_path / "run", config=None) as store:
            add(store, *range(4))
            store.put_labels(make_labels(make_record(number), objects=number) for number in range(4))
            contest(store, [0, 1, 0, 3], 1, "spurious")
            before, labels = store.summary(), store.count_labels("attention", "otsu")
            assert store.ledger.version == schema.WITH_COUNTS - 1 and store.count_contested() == {1: 3}
    with RunStore.open(tmp_path / "run", readonly=True) as reader:
        assert reader.summary().rounds == before.rounds
        assert reader.count_labels("attention", "otsu") == labels
        assert reader.count_contested() == {1: 3}
        with RunStore.open(tmp_path / "run") as store:
            check(store)
            assert store.summary().rounds == before.rounds
            assert store.count_labels("attention", "otsu") == labels
            assert store.count_contested() == {1: 3}
            add(store, 7)
            check(store)
        assert reader.summary().images == 5, "a reader of before goes on"


def test_a_run_may_be_upgraded_while_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression: the reader took the version of before, and the triggers of after, which it did not know."""
    with monkeypatch.context() as older:
        older.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[: schema.WITH_COUNTS - 1])
        with RunStore.create_or_open(tmp_path / "run", config=None) as store:
            add(store, *range(4))
    version = Ledger._version

    def upgraded_meanwhile(ledger: Ledger) -> int:
        monkeypatch.setattr(Ledger, "_version", version)
        found = version(ledger)
        RunStore.open(tmp_path / "run").close()
        return found

    monkeypatch.setattr(Ledger, "_version", upgraded_meanwhile)
    with RunStore.open(tmp_path / "run", readonly=True) as reader:
        assert reader.ledger.version == schema.WITH_COUNTS - 1
        assert reader.summary().images == 4
    with RunStore.open(tmp_path / "run", readonly=True) as reader:
        assert reader.ledger.version == len(schema.MIGRATIONS)
