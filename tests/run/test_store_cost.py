"""What queries cost as a run grows."""

from __future__ import annotations

import dataclasses
import sqlite3
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from diffugen.records import Disagreement
from diffugen.run import codec
from diffugen.run.rows import now
from diffugen.run.spool import Ranking, Spool
from diffugen.run.store import RunStore
from tests.support.stores import make_labels, make_record


def plant(store: RunStore, count: int) -> None:
    """Add ``count`` images without files to a run, with two label sets each, and more about every fourth."""
    row = {
        "t": codec.record_to_json(make_record(0)),
        "i": codec.instances_to_json(make_labels(make_record(0)).instances),
        "now": now(),
    }
    rows = [{**row, "id": f"{number:016x}", "round": number % 4} for number in range(count)]
    with store._ledger.transaction():
        store._ledger.write("INSERT INTO images VALUES (NULL, :id, :round, :t, 1, 10, :now, :id)", rows)
        for method in ("'a'", "'b'"):
            columns = f"NULL, :id, 'attention', {method}, :round, :i, 2, :now"
            store._ledger.write(f"INSERT INTO labels VALUES ({columns})", rows)
        columns = "NULL, :id, 'model', 'c', :round, :i, 2, :now"
        store._ledger.write(
            f"INSERT INTO labels VALUES ({columns})", [one for one in rows if not one["round"]]
        )
        columns = "NULL, :id, :round, 'spurious', 0.5, 0, NULL, 0.1"
        contested = [one for one in rows if one["round"] == 1]
        store._ledger.write(f"INSERT INTO disagreements VALUES ({columns})", contested)
        columns = "NULL, :id, 'reject', NULL, 'ann', 2, :now, NULL"
        decided = [one for one in rows if one["round"] in (1, 2)]
        store._ledger.write(f"INSERT INTO decisions VALUES ({columns})", decided[::2])


QUERIES: dict[str, tuple[Callable[[RunStore], int], float]] = {
    "records": (lambda store: sum(1 for _ in store.records()), 1),
    "image_ids": (lambda store: sum(1 for _ in store.image_ids(round=3)), 1 / 4),
    "labels": (lambda store: sum(1 for _ in store.labels(source="attention")), 2),
    "latest_labels": (lambda store: sum(1 for _ in store.latest_labels("attention")), 1),
    "latest_labels of a round": (
        lambda store: sum(1 for _ in store.latest_labels("attention", round=1)),
        1 / 4,
    ),
    "superseded": (lambda store: sum(1 for _ in store.superseded("attention", "a")), 1),
    "label_ids_missing": (lambda store: sum(1 for _ in store.label_ids_missing("model", "a")), 1),
    "summary": (lambda store: store.summary().images, 1),
    "disagreements of a round": (lambda store: sum(1 for _ in store.disagreements(round=1)), 1 / 4),
    "contested images": (lambda store: len(store.contested_ids(1)), 1 / 4),
    "draw_agreed": (lambda store: len(store.draw_agreed(0, 10**9)), 1 / 4),
    "decisions of a round": (lambda store: sum(1 for _ in store.decisions(round=2)), 1 / 4),
}

SINGLE: dict[str, Callable[[RunStore, str], int]] = {
    "labels": lambda store, one: sum(1 for _ in store.labels("attention", image_id=one)),
    "latest_labels": lambda store, one: sum(1 for _ in store.latest_labels("attention", image_id=one)),
    "disagreements": lambda store, one: sum(1 for _ in store.disagreements(image_id=one)),
    "decision": lambda store, one: len([store.decision(one)]),
    "audits": lambda store, one: len(store.draw_agreed(0, 5)),
    "count_labels": lambda store, one: store.count_labels("model", "c")[0],
}
"""Queries whose cost does not depend on the number of images."""


def counting(counter: list[int]) -> Callable[[], None]:
    def count() -> None:
        counter[0] += 1

    return count


def test_query_cost_grows_linearly_with_rows(tmp_path: Path) -> None:
    """Count SQLite's own steps: no query may grow faster than the rows it reads."""
    steps: dict[int, dict[str, int]] = {}
    for count in (1_000, 10_000):
        with RunStore.create_or_open(tmp_path / str(count), config=None) as store:
            plant(store, count)
            counter = [0]
            store._ledger._connection.set_progress_handler(counting(counter), 100)
            steps[count] = {}
            for name, (query, share) in QUERIES.items():
                counter[0] = 0
                assert query(store) == count * share, name
                steps[count][name] = counter[0]
            for name, single in SINGLE.items():
                counter[0] = 0
                assert single(store, f"{count // 2 + 1:016x}"), name
                steps[count][f"one: {name}"] = counter[0]
            store._ledger._connection.set_progress_handler(None, 0)
    for name, few in steps[1_000].items():
        most = few + 5 if name.startswith("one: ") else 12 * few + 10
        assert steps[10_000][name] <= most, name


def test_the_cost_of_a_summary_depends_on_decisions_only(tmp_path: Path) -> None:
    steps = []
    for count in (1_000, 10_000):
        with RunStore.create_or_open(tmp_path / str(count), config=None) as store:
            plant(store, count)
            store._ledger._connection.execute("DELETE FROM decisions")
            counter = [0]
            store._ledger._connection.set_progress_handler(counting(counter), 100)
            summary, contested = store.summary(), store.count_contested()
            store._ledger._connection.set_progress_handler(None, 0)
            assert sum(one.label_sets["attention"] for one in summary.rounds.values()) == 2 * count
            assert contested == {1: count // 4}
            steps.append(counter[0])
    assert steps[1] <= steps[0] + 1


def peak(work: Callable[[], object]) -> int:
    """Return the most bytes that Python held during some work."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def found(count: int) -> Iterator[Disagreement]:
    return (Disagreement(f"{number:016x}", "badly_located", 0.5, 0, 0, 0.3) for number in range(count))


def ranked(count: int) -> None:
    ranking: Ranking[Disagreement] = Ranking()
    for one in found(count):
        ranking.add(0, one.image_id, one.severity, one.image_id[-1:], one.image_id, one)
    for order in (ranking.by_worth, ranking.at_random, ranking.by_turns):
        assert sum(1 for _ in order(0)) == count


def spooled(count: int) -> None:
    spool = Spool((one.image_id, one) for one in found(count))
    assert len(spool) == count and all(spool[image_id].image_id == image_id for image_id in spool)


def noted(count: int) -> None:
    spool = Spool[Disagreement]()
    for severity in (0.1, 0.2):
        for one in found(count):
            spool.put(one.image_id, dataclasses.replace(one, severity=severity))
    assert len(spool) == count
    for (image_id, kept), one in zip(spool.items(), found(count), strict=True):
        assert image_id == one.image_id and kept == dataclasses.replace(one, severity=0.2)


@pytest.mark.parametrize("work", [ranked, spooled, noted])
def test_what_is_spooled_takes_no_memory(work: Callable[[int], None]) -> None:
    work(10)
    assert peak(lambda: work(10_000)) < 1.5 * peak(lambda: work(2_000))


def put(store: RunStore, count: int) -> None:
    store.put_disagreements(0, found(count))


def test_a_queue_is_stored_as_it_comes_and_replaced_as_a_whole(tmp_path: Path) -> None:
    peaks = []
    for count in (2_000, 10_000):
        with RunStore.create_or_open(tmp_path / str(count), config=None) as store:
            plant(store, count)
            peaks.append(peak(partial(put, store, count)))
            # An iterator may read what it replaces.
            store.put_disagreements(0, (one for one in store.disagreements(0) if one.image_id[-1] != "0"))
            kept = [one for one in found(count) if one.image_id[-1] != "0"]
            assert list(store.disagreements(0)) == kept
            stranger = Disagreement("f" * 16, "spurious", 0.9, 0, None, 0.0)
            with pytest.raises(sqlite3.IntegrityError):
                store.put_disagreements(0, [*found(5), stranger])
            assert list(store.disagreements(0)) == kept
    assert peaks[1] < 1.5 * peaks[0] + 50_000  # a few kB are chance; 8,000 more rows would be megabytes


def test_missing_labels_are_found_without_looking_for_each_image(tmp_path: Path) -> None:
    with RunStore.create_or_open(tmp_path, config=None) as store:
        plant(store, 10_000)
        statements: list[str] = []
        store._ledger._connection.set_trace_callback(statements.append)
        assert not list(store.label_ids_missing("attention", "a"))
        assert len(statements) == 1
        store._ledger._connection.set_trace_callback(None)
        holes = [f"{number:016x}" for number in (7_001, 7_002, 9_999)]
        for one in holes:
            store._ledger._connection.execute("DELETE FROM labels WHERE image_id = ? AND method = 'a'", [one])
        assert list(store.label_ids_missing("attention", "a")) == holes
        assert list(store.label_ids_missing("attention", "a", round=3)) == holes[2:]
        assert list(store.label_ids_missing("attention", "a", round=0)) == []
