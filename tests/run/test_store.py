"""The run directory: lossless storage; safe under kills, full disks, damage and concurrent processes."""

from __future__ import annotations

import os
import random
import runpy
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from diffugen.errors import StoreError
from diffugen.records import Decision, Disagreement, HeatMaps, Instances, LabelSet
from diffugen.run import codec, ledger as ledger_module, schema
from diffugen.run.places import ImageFiles
from diffugen.run.results import TaskImages
from diffugen.run.rounds import Round, Run
from diffugen.run.rows import now
from diffugen.run.store import RunStore
from diffugen.run.summary import RoundSummary
from tests.support.children import WAIT_SECONDS

CHILD = Path(__file__).parents[1] / "support" / "store_child.py"
child = SimpleNamespace(**runpy.run_path(str(CHILD)))
make_record, make_rgb, make_heat_maps, make_labels = (
    child.make_record,
    child.make_rgb,
    child.make_heat_maps,
    child.make_labels,
)


def start(job: str, folder: Path, *numbers: float) -> subprocess.Popen[str]:
    """Start ``store_child.py`` as a child process."""
    return subprocess.Popen(
        [sys.executable, str(CHILD), job, str(folder), *map(str, numbers)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(CHILD.parents[2])},
    )


def add(store: RunStore, *numbers: int, **changes: Any) -> None:
    records = [make_record(number, **changes) for number in numbers]
    store.add_images((record, make_rgb(record), make_heat_maps(record), 1.5) for record in records)


def files(folder: Path) -> dict[str, bytes]:
    """Return all files of images and heat maps by name, including temporary ones."""
    return {
        path.name: path.read_bytes()
        for part in ("images", "heatmaps")
        for path in (folder / part).rglob("*")
        if path.is_file()
    }


def assert_equal_heat_maps(found: HeatMaps, expected: HeatMaps) -> None:
    assert (found.image_id, found.size_wh, found.phrases) == (
        expected.image_id,
        expected.size_wh,
        expected.phrases,
    )
    assert found.maps.keys() == expected.maps.keys()
    for group, array in expected.maps.items():
        assert found.maps[group].dtype == np.float16
        np.testing.assert_array_equal(found.maps[group], array)
    if expected.self_attention is None:
        assert found.self_attention is None
    else:
        assert found.self_attention is not None and found.self_attention.dtype == np.float16
        np.testing.assert_array_equal(found.self_attention, expected.self_attention)


def assert_equal_labels(found: LabelSet, expected: LabelSet) -> None:
    keys = ("image_id", "source", "method", "round")
    assert [getattr(found, key) for key in keys] == [getattr(expected, key) for key in keys]
    keys = ("size_wh", "class_names", "rles", "terms")
    assert [getattr(found.instances, key) for key in keys] == [
        getattr(expected.instances, key) for key in keys
    ]
    assert found.instances.scores.tobytes() == expected.instances.scores.tobytes()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunStore]:
    with RunStore.create_or_open(tmp_path / "run", config=child.CONFIG) as opened:
        yield opened


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a disk of one megabyte; mounting it needs root."""
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)]
    if (
        shutil.which("mount") is None
        or subprocess.run(command, capture_output=True, timeout=WAIT_SECONDS).returncode
    ):
        pytest.skip("no permission to mount a disk")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True, timeout=WAIT_SECONDS)


# -------------------------------------------------------------------- round trips


def test_image_and_heat_maps_round_trip(store: RunStore) -> None:
    record = make_record(
        5, task="img2img", parent="photo-1", origin="photo-1", source="a.png", seed=2**63 - 1
    )
    region = {"size": [24, 40], "counts": "abc"}
    rgb, heat_maps = (
        make_rgb(record),
        replace(make_heat_maps(record), region=region, window_xyxy=(1, 2, 30, 20)),
    )
    assert not store.has_image(record.id)
    store.add_image(record, rgb, heat_maps, seconds=2.5)
    assert store.has_image(record.id)
    assert store.record(record.id) == record
    assert list(store.records()) == [record]
    found = store.image(record.id)
    assert found.dtype == np.uint8
    assert found.shape == (24, 40, 3)
    np.testing.assert_array_equal(found, rgb)
    assert_equal_heat_maps(store.heat_maps(record.id), heat_maps)
    kept = store.heat_maps(record.id)
    assert (kept.region, kept.window_xyxy) == (region, (1, 2, 30, 20))


def test_self_attention_round_trips(store: RunStore) -> None:
    """A file without it is one of an earlier version, byte for byte."""
    without, kept = make_record(0), make_record(1)
    store.add_image(without, make_rgb(without), make_heat_maps(without), seconds=0)
    assert set(np.load(store.heat_maps_path(without.id)).files) == {"up-3x5", "mid-2x3", "about"}
    random = np.random.default_rng(0).random((3, 5, 3, 5)).astype(np.float16)
    heat_maps = replace(make_heat_maps(kept), self_attention=random)
    store.add_image(kept, make_rgb(kept), heat_maps, seconds=0)
    assert_equal_heat_maps(store.heat_maps(without.id), make_heat_maps(without))
    assert_equal_heat_maps(store.heat_maps(kept.id), heat_maps)
    assert heat_maps.nbytes == make_heat_maps(kept).nbytes + 2 * 15**2
    for shape in ((15, 15), (3, 5, 5, 3)):
        with pytest.raises(ValueError, match=r"expected \(h, w, h, w\)"):
            replace(heat_maps, self_attention=np.zeros(shape, np.float16))


def test_image_without_heat_maps(store: RunStore) -> None:
    record = make_record(0)
    empty = HeatMaps(record.id, record.size_wh, (), {})
    store.add_image(record, make_rgb(record), empty, seconds=0)
    assert_equal_heat_maps(store.heat_maps(record.id), empty)


def test_equal_records_give_equal_bytes(store: RunStore, tmp_path: Path) -> None:
    add(store, 0, 1)
    with RunStore.create_or_open(tmp_path / "other", config=None) as other:
        add(other, 1, 0)
    assert files(store.folder) == files(tmp_path / "other")


@pytest.mark.parametrize("objects", [0, 1, 3])
@pytest.mark.parametrize("source", ["attention", "model", "human"])
def test_labels_round_trip(store: RunStore, source: str, objects: int) -> None:
    add(store, 1)
    expected = make_labels(make_record(1), source=source, objects=objects)
    store.put_labels([expected])
    (found,) = store.labels()
    assert_equal_labels(found, expected)


def test_an_image_is_stored_once_in_its_first_round(store: RunStore) -> None:
    add(store, 0, 0)
    add(store, 0, round=2)
    add(store, 1)
    assert list(store.image_ids()) == [make_record(0).id, make_record(1).id]
    assert store.record(make_record(0).id).round == 0
    assert store.summary().images == 2


def test_a_deleted_file_is_written_again(store: RunStore) -> None:
    add(store, 0, 1)
    before = files(store.folder)
    store.image_path(make_record(0).id).unlink()
    assert not store.has_image(make_record(0).id)
    add(store, 0, 1)
    assert files(store.folder) == before
    assert list(store.image_ids()) == [make_record(0).id, make_record(1).id]


# -------------------------------------------------------------------- queries


def test_images_by_round(store: RunStore) -> None:
    add(store, *range(7))
    assert [record.seed for record in store.records()] == list(range(7))
    assert [record.seed for record in store.records(round=1)] == [1, 4]
    assert list(store.image_ids(round=2)) == [make_record(2).id, make_record(5).id]
    assert list(store.image_ids(round=9)) == []


def test_latest_method(store: RunStore) -> None:
    add(store, 0)
    assert store.latest_method("attention") is None
    store.put_labels(
        [make_labels(make_record(0), method="first"), make_labels(make_record(0), method="second")]
    )
    store.put_labels([make_labels(make_record(0), source="model", method="other")])
    assert store.latest_method("attention") == "second"
    store.put_labels([make_labels(make_record(0), method="first")])
    assert store.latest_method("attention") == "first"


def test_label_sets_of_a_method_are_renewed_where_there_are_newer_ones(store: RunStore) -> None:
    add(store, 0, 1, 2)
    first, second, third = (make_record(number) for number in range(3))
    store.put_labels([make_labels(one, method="old") for one in (first, second)])
    store.put_labels([make_labels(one, method="new") for one in (first, third)])
    store.put_labels([make_labels(second, source="model", method="new")])
    assert list(store.superseded("attention", "old")) == [first.id]
    assert list(store.superseded("attention", "new")) == list(store.superseded("model", "new")) == []
    kept = sorted(map(str, store.labels("attention")))
    store.renew_labels("attention", "old")
    latest = {one.image_id: one.method for one in store.latest_labels("attention")}
    assert latest == {first.id: "old", second.id: "old", third.id: "new"}
    assert sorted(map(str, store.labels("attention"))) == kept
    assert list(store.superseded("attention", "new")) == [first.id]


def test_label_sets_of_all_methods_are_kept_and_the_latest_is_found(store: RunStore) -> None:
    add(store, 0, 1, 2)
    first, second, third = (make_record(number) for number in range(3))
    store.put_labels([make_labels(first, method="otsu"), make_labels(second, method="otsu")])
    store.put_labels(
        [make_labels(first, method="tuned", objects=1), make_labels(first, source="model", method="a1")]
    )
    assert [label.method for label in store.labels(image_id=first.id)] == ["otsu", "tuned", "a1"]
    assert [label.method for label in store.labels(source="attention", image_id=first.id)] == [
        "otsu",
        "tuned",
    ]
    assert [label.image_id for label in store.labels(method="otsu")] == [first.id, second.id]
    assert [label.image_id for label in store.labels(round=1)] == [second.id]
    latest = {label.image_id: label.method for label in store.latest_labels("attention")}
    assert latest == {first.id: "tuned", second.id: "otsu"}
    assert [label.image_id for label in store.latest_labels("attention", round=1)] == [second.id]
    assert list(store.label_ids_missing("attention", "tuned")) == [second.id, third.id]
    assert list(store.label_ids_missing("attention", "tuned", round=2)) == [third.id]

    store.put_labels([make_labels(first, method="otsu", objects=3)])  # replaced, so it is the latest again
    latest_sets = {label.image_id: label for label in store.latest_labels("attention")}
    assert latest_sets[first.id].method == "otsu"
    assert len(latest_sets[first.id].instances) == 3
    assert len(list(store.labels(image_id=first.id))) == 3


def test_writing_while_iterating_terminates_and_yields_each_once(store: RunStore) -> None:
    add(store, *range(4))
    store.put_labels(make_labels(record) for record in store.records())
    seen = []
    for label in store.labels(source="attention"):
        seen.append(label.image_id)
        store.put_labels([label])
        add(store, 4)
    assert seen == [make_record(number).id for number in range(4)]


@dataclass(frozen=True)
class Measured:
    map50: float = 0.0
    kept: tuple[int, ...] = ()


def test_stages(store: RunStore) -> None:
    assert store.result(1, "train", Measured) is None
    store.finish_stage(1, "train", Measured(0.5, (1, 2)), seconds=3.0)
    assert store.result(1, "train", Measured) == Measured(0.5, (1, 2))
    assert store.result(0, "train", Measured) is None
    store.finish_stage(1, "train", Measured(), seconds=1.0)
    assert store.result(1, "train", Measured) == Measured()


def test_stages_are_listed_in_the_order_in_which_they_finished(store: RunStore) -> None:
    names = ["train", "dataset", "promote", "generate", "a", "z", "b"]
    for name in names:
        store.finish_stage(0, name, Measured(), seconds=1.0)
    assert list(store.summary().rounds[0].stages) == names


def test_the_ledger_stores_the_loop(store: RunStore) -> None:
    assert store.loop is None
    store.keep_loop("improve")
    store.keep_loop("mine.py")
    assert store.loop == "mine.py"


def test_disagreements_of_a_round_are_replaced_and_keep_their_order(store: RunStore) -> None:
    add(store, 0, 1)
    ids = list(store.image_ids())
    first = [
        Disagreement(ids[1], "spurious", 0.9, 0, None, 0.0),
        Disagreement(ids[0], "overlooked", 0.4, None, 1, 0.2),
    ]
    store.put_disagreements(0, first)
    store.put_disagreements(1, [Disagreement(ids[0], "swapped", 0.5, 1, 0, 0.7)])
    assert list(store.disagreements(0)) == first
    assert len(list(store.disagreements(image_id=ids[0]))) == 2
    store.put_disagreements(0, reversed(first))
    assert list(store.disagreements(0)) == first[::-1]
    assert store.summary().rounds[0].disagreements == {"spurious": 1, "overlooked": 1}
    with pytest.raises(sqlite3.IntegrityError):
        store.put_disagreements(0, [Disagreement("nobody", "spurious", 0.9, 0, None, 0.0)])
    assert list(store.disagreements(0)) == first[::-1]


def test_the_newest_decision_counts_and_becomes_the_human_label(store: RunStore) -> None:
    add(store, 0, 1)
    first, second = store.image_ids()
    right, nothing = make_labels(make_record(0)).instances, make_labels(make_record(1), objects=0).instances
    store.add_decisions(
        [Decision(first, "attention", right, "ann"), Decision(second, "empty", nothing, "ann", 1)]
    )
    assert [(one.image_id, one.verdict) for one in store.decisions()] == [
        (first, "attention"),
        (second, "empty"),
    ]
    assert [(labels.image_id, labels.method) for labels in store.labels("human")] == [
        (first, "ann"),
        (second, "ann"),
    ]
    store.add_decisions([Decision(first, "reject", None, "bob", 1)])
    assert [(one.image_id, one.verdict) for one in store.decisions()] == [
        (second, "empty"),
        (first, "reject"),
    ]
    assert [one.image_id for one in store.decisions(round=1)] == [second, first]
    assert [labels.image_id for labels in store.labels("human")] == [second]
    assert store.summary().rounds[1].decisions == {"empty": 1, "reject": 1}
    with pytest.raises(StoreError, match="nobody"):
        store.add_decisions(
            [Decision(first, "empty", nothing, "ann"), Decision("nobody", "empty", nothing, "ann")]
        )
    assert len(list(store.decisions())) == 2


def test_summary(store: RunStore) -> None:
    assert store.summary().last_activity is None
    add(store, *range(4))
    store.put_labels(make_labels(record) for record in store.records(round=0))
    store.put_labels([make_labels(make_record(1), source="human", objects=1)])
    store.finish_stage(3, "train", Measured(), seconds=8.0)
    summary = store.summary()
    assert summary.images == 4
    assert summary.rounds == {
        0: RoundSummary(images=2, seconds=3.0, label_sets={"attention": 2}, objects={"attention": 4}),
        1: RoundSummary(images=1, seconds=1.5, label_sets={"human": 1}, objects={"human": 1}),
        2: RoundSummary(images=1, seconds=1.5),
        3: RoundSummary(stages={"train": 8.0}),
    }
    on_disk = sum(map(len, files(store.folder).values())) + (store.folder / "ledger.sqlite").stat().st_size
    assert summary.bytes == on_disk
    assert summary.last_activity and summary.created_at <= summary.last_activity


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


# -------------------------------------------------------------------- configuration, versions, locks


def test_config_is_stored_and_checked(store: RunStore) -> None:
    folder = store.folder
    store.finish_stage(0, "generate", TaskImages(1), 1.0)
    store.close()
    with RunStore.create_or_open(
        folder, config={"generate": {"steps": 20, "batch_size": 4}, "prompts": {"seed": 3}}
    ) as same:
        assert same.config == child.CONFIG
    changed = {"prompts": {"seed": 4}, "generate": {"batch_size": 8, "steps": 20}, "model": "sd15"}
    with pytest.raises(StoreError) as raised:
        RunStore.create_or_open(folder, config=changed)
    for part in (
        "prompts.seed: 3 in the run, 4 now",
        "model: not set in the run",
        "another run folder",
        str(folder),
    ):
        assert part in str(raised.value)
    assert "steps" not in str(raised.value)
    with pytest.raises(StoreError, match="batch_size"):
        RunStore.create_or_open(folder, config=changed, ignore_keys=["prompts", "model"])
    with RunStore.create_or_open(
        folder, config=changed, ignore_keys=["prompts", "model", "generate.batch_size"]
    ) as again:
        assert again.config == child.CONFIG


def test_the_order_of_the_kept_configuration_is_that_of_the_given_one(tmp_path: Path) -> None:
    """The order of the classes decides their numbers, and which phrase of a prompt comes first."""
    config = {"prompts": {"classes": {"piano": ["piano"], "car": ["car"], "bus": ["bus"]}}, "name": "a"}
    with RunStore.create_or_open(tmp_path / "run", config=config) as store:
        assert list((store.config or {})["prompts"]["classes"]) == ["piano", "car", "bus"]
    with RunStore.open(tmp_path / "run", readonly=True) as store:
        assert list((store.config or {})["prompts"]["classes"]) == ["piano", "car", "bus"]


def test_config_may_be_given_later_and_changed_until_something_is_made(tmp_path: Path) -> None:
    with RunStore.create_or_open(tmp_path, config=None) as store:
        assert store.config is None
    with RunStore.create_or_open(tmp_path, config={"a": (1, 2)}) as store:
        assert store.config == {"a": [1, 2]} and store.is_empty
    with RunStore.create_or_open(tmp_path, config={"a": [1, 3]}) as store:
        assert store.config == {"a": [1, 3]}
        store.finish_stage(0, "generate", TaskImages(1), 1.0)
        assert not store.is_empty
    with pytest.raises(StoreError, match=r"a: \[1,3\] in the run, \[1,2\] now"):
        RunStore.create_or_open(tmp_path, config={"a": [1, 2]})


def test_a_second_writer_is_refused_but_readers_are_not(store: RunStore) -> None:
    with pytest.raises(StoreError) as raised:
        RunStore.open(store.folder)
    assert f"process {os.getpid()}" in str(raised.value)
    assert str(store.folder) in str(raised.value)
    add(store, 0)
    with RunStore.open(store.folder, readonly=True) as reader:
        assert reader.has_image(make_record(0).id)
    store.close()
    store.close()
    RunStore.open(store.folder).close()


def test_the_lock_of_a_killed_process_is_released(tmp_path: Path) -> None:
    process = start("hold", tmp_path / "run")
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with pytest.raises(StoreError, match=f"being written by process {process.pid}"):
            RunStore.create_or_open(tmp_path / "run", config=None)
    finally:
        process.kill()
        process.communicate(timeout=WAIT_SECONDS)
    RunStore.create_or_open(tmp_path / "run", config=child.CONFIG).close()


def test_a_reader_cannot_write(store: RunStore) -> None:
    add(store, 0)
    record = make_record(1)
    with RunStore.open(store.folder, readonly=True) as reader:
        before = files(store.folder)
        actions: list[Callable[[], None]] = [
            lambda: reader.add_image(record, make_rgb(record), make_heat_maps(record), 1.0),
            lambda: reader.put_labels([make_labels(make_record(0))]),
            lambda: reader.finish_stage(0, "label", Measured(), 1.0),
        ]
        for action in actions:
            with pytest.raises(StoreError, match="is open read-only"):
                action()
        assert files(store.folder) == before


def test_an_older_schema_is_upgraded_and_a_newer_one_refused(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(store, 0)
    folder = store.folder
    store.close()
    with monkeypatch.context() as newer:
        newer.setattr(
            schema, "MIGRATIONS", (*schema.MIGRATIONS, "CREATE TABLE later (id TEXT); CREATE TABLE x (y)")
        )
        newer.setattr(schema, "READABLE", 6)
        with pytest.raises(StoreError, match="has schema 5, which is older than 6"):
            RunStore.open(folder, readonly=True)
        with RunStore.open(folder) as upgraded:
            assert upgraded.has_image(make_record(0).id)
            assert upgraded._ledger.all("SELECT * FROM later") == []
    for readonly in (True, False):
        with pytest.raises(StoreError, match="newer DiffuGen: its ledger has schema 6"):
            RunStore.open(folder, readonly=readonly)


def test_a_failed_upgrade_changes_nothing(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    add(store, 0)
    folder = store.folder
    store.close()
    with monkeypatch.context() as newer:
        newer.setattr(
            schema, "MIGRATIONS", (*schema.MIGRATIONS, "CREATE TABLE fine (id TEXT); CREATE TABLE images (x)")
        )
        with pytest.raises(StoreError):
            RunStore.open(folder)
    with RunStore.open(folder) as store:
        assert store._ledger.all("SELECT name FROM sqlite_master WHERE name = 'fine'") == []
        assert store.has_image(make_record(0).id)


def test_a_new_ledger_appears_with_all_its_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression: a reader that opened a run during its creation failed because created_at was missing."""
    with monkeypatch.context() as killed:
        killed.setattr(
            ledger_module, "pairs", lambda values: 1 / 0
        )  # as if killed after the tables were created
        with pytest.raises(ZeroDivisionError):
            RunStore.create_or_open(tmp_path / "run", config=None)
    with pytest.raises(StoreError, match="is incomplete"):
        RunStore.open(tmp_path / "run", readonly=True)
    RunStore.create_or_open(tmp_path / "run", config=None).close()
    with RunStore.open(tmp_path / "run", readonly=True) as reader:
        assert reader.summary().created_at


# -------------------------------------------------------------------- kill -9


def assert_whole(folder: Path) -> None:
    """Assert that every row of a run has its files, with the right content, however the run was left."""
    try:
        reader = RunStore.open(folder, readonly=True)
    except StoreError as error:
        assert "not a run directory" in str(error) or "is incomplete" in str(error)
        return
    with reader:
        for record in reader.records():
            np.testing.assert_array_equal(reader.image(record.id), make_rgb(record))
            assert_equal_heat_maps(reader.heat_maps(record.id), make_heat_maps(record))


def assert_complete(folder: Path, reference: Path, count: int) -> None:
    """Assert that a run that was killed and continued equals an uninterrupted one."""
    assert files(folder) == files(reference)
    with RunStore.open(folder, readonly=True) as store:
        assert list(store.records()) == [make_record(number) for number in range(count)]
        assert [label.image_id for label in store.labels()] == list(store.image_ids())
        assert store.result(0, "label", TaskImages) == TaskImages(count)


def test_killed_at_random_moments(tmp_path: Path) -> None:
    child.write_run(tmp_path / "reference", 30)
    moments = random.Random(7)
    for _ in range(5):
        process = start("write", tmp_path / "run")
        assert process.stdout is not None
        for _ in range(moments.randint(1, 4)):
            process.stdout.readline()
        time.sleep(moments.uniform(0.0, 0.02))
        process.kill()
        process.communicate(timeout=WAIT_SECONDS)
        # 0: on a busy machine it may finish before it is killed.
        assert process.returncode in (-signal.SIGKILL, 0)
        assert_whole(tmp_path / "run")
    child.write_run(tmp_path / "run", 30)
    assert_complete(tmp_path / "run", tmp_path / "reference", 30)


def test_a_writer_removes_temporary_files_and_nothing_else(store: RunStore) -> None:
    add(store, 0)
    folder = store.folder
    store.close()
    kept = [folder / "images" / "0123.png", folder / "images" / "notes.txt", folder / "heatmaps" / ".keep"]
    swept = [folder / part / "unfinished" / ".0123.tmp" for part in ("images", "heatmaps", "taught/decoder")]
    swept.append(folder / ".0123.tmp")
    for path in (*kept, *swept):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    RunStore.open(folder, readonly=True).close()
    assert all(path.exists() for path in (*kept, *swept))
    RunStore.open(folder).close()
    assert all(path.exists() for path in kept)
    assert not any(path.exists() for path in swept)


def test_files_lie_in_sub_folders_and_flat_ones_are_found(store: RunStore) -> None:
    add(store, 0, 1)
    first, second = (make_record(number) for number in range(2))
    assert store.image_path(first.id) == store.folder / "images" / first.id[:2] / f"{first.id}.png"
    for kind, path in (("images", store.image_path(first.id)), ("heatmaps", store.heat_maps_path(first.id))):
        path.rename(store.folder / kind / path.name)
    assert store.has_image(first.id) and store.image_path(first.id).parent == store.folder / "images"
    np.testing.assert_array_equal(store.image(first.id), make_rgb(first))
    # A lost file of an older run is made where new ones are, and one that is there is replaced there.
    store.heat_maps_path(first.id).unlink()
    add(store, 0)
    assert store.has_image(first.id) and len(files(store.folder)) == 4
    store.put_taught("decoder", [make_heat_maps(second)])
    assert store.taught_path("decoder", second.id).parent.name == second.id[:2]
    assert store.taught("decoder", second.id).image_id == second.id


def test_lost_files_are_noticed_without_looking_at_each(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(store, *range(6))
    assert list(store.images_without_files()) == []
    looked: list[str] = []

    def looking(self: ImageFiles, prefix: str, ids: list[str]) -> Iterator[str]:
        looked.append(prefix)
        return missing(self, prefix, ids)

    missing = ImageFiles.missing
    monkeypatch.setattr(ImageFiles, "missing", looking)
    assert list(store.images_without_files()) == [] and looked, "the files have just changed"
    later = time.time_ns() + 60 * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: later)
    assert list(store.images_without_files()) == []
    looked.clear()
    assert list(store.images_without_files()) == [] and not looked
    record = make_record(3)
    store.heat_maps_path(record.id).unlink()
    assert list(store.images_without_files()) == [record.id]
    round = Round(Run(store, (), 0), record.round)
    assert round.files_missing() and not Round(round.run, record.round + 1).files_missing()
    add(store, 3)
    assert list(store.images_without_files()) == []
    folder = Path(shutil.copytree(store.folder, store.folder.with_name("copy")))
    for path in (folder / "images").rglob("*.png"):
        times = (store.folder / path.relative_to(folder)).parent.stat()
        path.unlink()
        os.utime(path.parent, ns=(times.st_atime_ns, times.st_mtime_ns))
    with RunStore.open(folder) as copy:
        assert len(list(copy.images_without_files())) == 6, "a copy is not the same folder"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_before_each_line(tmp_path: Path) -> None:
    child.write_run(tmp_path / "reference", 2)
    process = start("lines", tmp_path / "killed", 7)
    process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 0
    killed = sorted((tmp_path / "killed").iterdir())
    assert len(killed) > 30
    leftovers = 0
    for folder in killed:
        assert_whole(folder)
        leftovers += any(name.endswith(".tmp") for name in files(folder))
        child.write_run(folder, 2)
        assert_complete(folder, tmp_path / "reference", 2)
    assert leftovers, "no kill hit a half-written file"


def test_a_reader_works_while_another_process_writes(tmp_path: Path) -> None:
    process = start("write", tmp_path / "run")
    seen: list[str] = []
    looks = 0
    while process.poll() is None:
        try:
            reader = RunStore.open(tmp_path / "run", readonly=True)
        except StoreError as error:
            assert "not a run directory" in str(error) or "is incomplete" in str(error)
            continue
        with reader:
            ids = list(reader.image_ids())
            assert ids[: len(seen)] == seen
            assert reader.summary().images >= len(ids)
            for image_id in ids[len(seen) :]:
                np.testing.assert_array_equal(reader.image(image_id), make_rgb(reader.record(image_id)))
                assert reader.heat_maps(image_id).image_id == image_id
            looks += len(ids) > len(seen)
            seen = ids
    process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 0
    assert looks >= 2
    child.write_run(tmp_path / "reference", 30)
    assert_complete(tmp_path / "run", tmp_path / "reference", 30)


# -------------------------------------------------------------------- full and read-only disks


def fill_with_images(store: RunStore) -> int:
    """Add images until the disk is full; return how many fit."""
    for number in range(1000):
        try:
            add(store, number, size_wh=(120, 88))
        except StoreError as error:
            assert "no space left" in str(error)
            assert str(store.folder) in str(error)
            return number
    raise AssertionError("the disk never filled up")


def test_full_disk(small_disk: Path) -> None:
    folder = small_disk / "run"
    with RunStore.create_or_open(folder, config=None) as store:
        count = fill_with_images(store)
        assert count > 3
        assert not [name for name in files(folder) if name.endswith(".tmp")]
        big = [
            make_labels(record, method=f"{n}-{'m' * 20_000}") for n in range(50) for record in store.records()
        ]
        with pytest.raises(StoreError, match="no space left"):
            store.put_labels(big)
        assert list(store.labels()) == []
        for record in store.records():
            np.testing.assert_array_equal(store.image(record.id), make_rgb(record))
        subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True, timeout=WAIT_SECONDS)
        add(store, count, size_wh=(120, 88))
        assert len(list(store.records())) == count + 1


def test_open_on_a_full_disk(small_disk: Path) -> None:
    folder = small_disk / "run"
    with RunStore.create_or_open(folder, config=None) as store:
        add(store, 0)
    try:
        (small_disk / "ballast").write_bytes(bytes(2 << 20))
    except OSError:
        assert shutil.disk_usage(small_disk).free == 0
    with pytest.raises(StoreError, match="no space left"):
        RunStore.open(folder)
    with RunStore.open(folder, readonly=True) as reader:
        assert reader.summary().images == 1
    (small_disk / "ballast").unlink()
    with RunStore.open(folder) as store:
        add(store, 1)
        assert len(list(store.image_ids())) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit")
@pytest.mark.parametrize("limit_bytes", [1_500, 40_000, 80_000])
def test_file_size_limits(tmp_path: Path, limit_bytes: int) -> None:
    """The limit first hits an image, the ledger during its creation, or the ledger later."""
    process = start("limit", tmp_path / "run", limit_bytes)
    output, _ = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 0
    assert "no space left" in output or "cannot read or write" in output
    assert str(tmp_path / "run") in output
    assert_whole(tmp_path / "run")
    assert not [name for name in files(tmp_path / "run") if name.endswith(".tmp")]
    child.write_run(tmp_path / "run", 30)
    child.write_run(tmp_path / "reference", 30)
    assert_complete(tmp_path / "run", tmp_path / "reference", 30)


def test_a_read_only_disk_can_be_read(small_disk: Path) -> None:
    folder = small_disk / "run"
    with RunStore.create_or_open(folder, config=None) as store:
        add(store, 0)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True, timeout=WAIT_SECONDS)
    for attempt in (
        lambda: RunStore.open(folder),
        lambda: RunStore.create_or_open(small_disk / "new", config=None),
    ):
        with pytest.raises(StoreError, match=r"cannot read or write run .* Check its permissions"):
            attempt()
    with RunStore.open(folder, readonly=True) as reader:
        np.testing.assert_array_equal(reader.image(make_record(0).id), make_rgb(make_record(0)))


def test_a_killed_run_can_be_read_after_its_disk_turned_read_only(small_disk: Path) -> None:
    process = start("write", small_disk / "run")
    assert process.stdout is not None
    assert process.stdout.readline() == "image\n"
    process.kill()
    process.communicate(timeout=WAIT_SECONDS)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True, timeout=WAIT_SECONDS)
    with RunStore.open(small_disk / "run", readonly=True) as reader:
        assert next(reader.records()) == make_record(0)


# -------------------------------------------------------------------- bad input and damage


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def foreign_ledger(folder: Path) -> None:
    (folder / "ledger.sqlite").unlink()
    with sqlite3.connect(folder / "ledger.sqlite") as other:
        other.execute("CREATE TABLE songs (name TEXT)")
    other.close()


def drop_table(folder: Path) -> None:
    with sqlite3.connect(folder / "ledger.sqlite") as other:
        other.execute("DROP TABLE labels")
        other.execute("DROP TABLE images")
    other.close()


def make_folder_of_runs(folder: Path) -> None:
    shutil.copytree(folder, folder / "first")
    (folder / "ledger.sqlite").unlink()


def make_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("x")


LEDGER_DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no ledger": (
        lambda folder: (folder / "ledger.sqlite").unlink(),
        "not a run directory: it has no ledger.sqlite",
    ),
    "folder of runs": (make_folder_of_runs, "it contains the runs first"),
    "no folder": (lambda folder: shutil.rmtree(folder), "not a run directory"),
    "a file": (make_file, "not a run directory"),
    "text": (
        lambda folder: (folder / "ledger.sqlite").write_text("hello " * 999),
        "corrupt (file is not a database)",
    ),
    "overwritten": (
        lambda folder: rewrite(folder / "ledger.sqlite", lambda data: data[:100] + bytes(len(data) - 100)),
        "sqlite3 ledger.sqlite .recover > rescue.sql",
    ),
    "cut short": (lambda folder: rewrite(folder / "ledger.sqlite", lambda data: data[:6000]), "is corrupt ("),
    "tables dropped": (drop_table, "the definition of images is missing"),
    "another program's": (foreign_ledger, "an SQLite database of another program"),
}


@pytest.mark.parametrize("readonly", [True, False])
@pytest.mark.parametrize("case", LEDGER_DAMAGE)
def test_damaged_ledger(store: RunStore, case: str, readonly: bool) -> None:
    add(store, *range(3))
    folder = store.folder
    store.close()
    damage, message = LEDGER_DAMAGE[case]
    damage(folder)
    with pytest.raises(StoreError) as raised, RunStore.open(folder, readonly=readonly) as opened:
        list(opened.records())
    assert message in str(raised.value)
    assert str(folder) in str(raised.value)
    if folder.is_dir():
        assert not (folder / "writer.pid").exists()


@pytest.mark.skipif(shutil.which("sqlite3") is None, reason="needs the sqlite3 command")
@pytest.mark.parametrize("command", [".recover", ".dump"])
def test_the_recovery_of_a_corrupt_ledger_works(store: RunStore, command: str) -> None:
    add(store, *range(40))
    folder = store.folder
    store.close()
    with sqlite3.connect(folder / "ledger.sqlite") as other:
        (root,) = other.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'images_by_round'"
        ).fetchone()
    other.close()
    rewrite(
        folder / "ledger.sqlite",
        lambda data: data[: (root - 1) * 4096] + b"\x07" * 4096 + data[root * 4096 :],
    )
    with RunStore.open(folder) as store, pytest.raises(StoreError, match=r"\.recover"):
        list(store.image_ids(round=1))
    rescue = subprocess.run(
        ["sqlite3", "ledger.sqlite", command],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
    ).stdout
    if "CREATE TABLE" not in rescue:
        pytest.skip(f"this sqlite3 has no working {command}")
    for path in folder.glob("ledger.sqlite*"):
        path.unlink()
    subprocess.run(
        ["sqlite3", "ledger.sqlite"], cwd=folder, input=rescue, text=True, check=True, timeout=WAIT_SECONDS
    )
    with RunStore.open(folder) as store:
        assert len(list(store.image_ids(round=1))) == 13
        assert all(store.has_image(image_id) for image_id in store.image_ids())
        add(store, 40)


def swap_files(first: Path, second: Path) -> None:
    first.write_bytes(second.read_bytes())


def pickled_npz(path: Path) -> None:
    np.savez(path, about=np.array([{"image_id": "x"}], dtype=object), allow_pickle=True)


FILE_DAMAGE: dict[str, tuple[str, Callable[[Path, Path], object], str]] = {
    "image missing": ("image", lambda path, _: path.unlink(), "is missing"),
    "image cut short": ("image", lambda path, _: rewrite(path, lambda data: data[:1000]), "cannot be read"),
    "image empty": ("image", lambda path, _: path.write_bytes(b""), "cannot be read"),
    "image of another size": (
        "image",
        lambda path, _: path.write_bytes(codec.rgb_to_png(np.zeros((40, 24, 3), np.uint8))),
        "is 24x40 px, not 40x24",
    ),
    "heat maps missing": ("heat_maps", lambda path, _: path.unlink(), "is missing"),
    "heat maps cut short": (
        "heat_maps",
        lambda path, _: rewrite(path, lambda data: data[:300]),
        "cannot be read",
    ),
    "heat maps flipped bits": (
        "heat_maps",
        lambda path, _: rewrite(
            path, lambda data: data[:80] + bytes(255 - byte for byte in data[80:120]) + data[120:]
        ),
        "cannot be read",
    ),
    "heat maps pickled": ("heat_maps", lambda path, _: pickled_npz(path), "cannot be read"),
    "heat maps of another image": ("heat_maps", swap_files, "belongs to image"),
    "heat maps are an image": (
        "heat_maps",
        lambda path, _: path.write_bytes(codec.rgb_to_png(np.zeros((40, 24, 3), np.uint8))),
        "cannot be read",
    ),
}


@pytest.mark.parametrize("case", FILE_DAMAGE)
def test_damaged_file(store: RunStore, case: str) -> None:
    add(store, 0, 1)
    before = files(store.folder)
    kind, damage, message = FILE_DAMAGE[case]
    image_id, other_id = make_record(0).id, make_record(1).id
    find = store.image_path if kind == "image" else store.heat_maps_path
    damage(find(image_id), find(other_id))
    with pytest.raises(StoreError) as raised:
        getattr(store, kind)(image_id)
    for part in (message, image_id, str(find(image_id)), "delete"):
        assert part in str(raised.value)
    find(image_id).unlink(missing_ok=True)  # as the message suggests
    add(store, 0)
    assert files(store.folder) == before


@pytest.mark.parametrize(
    "rgb",
    [
        np.zeros((40, 24, 3), np.uint8),
        np.zeros((24, 40, 4), np.uint8),
        np.zeros((24, 40), np.uint8),
        np.zeros((24, 40, 3), np.float32),
    ],
    ids=["swapped axes", "alpha", "grey", "float"],
)
def test_wrong_pixels_are_refused(store: RunStore, rgb: np.ndarray) -> None:
    record = make_record(0)
    with pytest.raises(ValueError, match=r"needs pixels uint8 of shape .*\(24, 40, 3\)"):
        store.add_image(record, rgb, make_heat_maps(record), seconds=1)
    assert files(store.folder) == {}


def test_heat_maps_of_another_image_are_refused(store: RunStore) -> None:
    record = make_record(0)
    with pytest.raises(ValueError, match="was given the heat maps of image"):
        store.add_image(record, make_rgb(record), make_heat_maps(make_record(1)), seconds=1)
    assert files(store.folder) == {}


def test_one_bad_label_set_rolls_back_the_others(store: RunStore) -> None:
    add(store, 0)
    good, unknown = make_labels(make_record(0)), make_labels(make_record(9))
    with pytest.raises(StoreError, match=f"no image with id '{make_record(9).id}'"):
        store.put_labels([good, unknown])
    swapped = LabelSet(make_record(0).id, "model", Instances((24, 40), (), (), np.zeros(0)), "a")
    with pytest.raises(ValueError, match=r"labels of size \(24, 40\) for image .* of size \(40, 24\)"):
        store.put_labels([good, swapped])
    assert list(store.labels()) == []


@pytest.mark.parametrize("read", ["record", "image", "heat_maps"])
def test_unknown_image(store: RunStore, read: str) -> None:
    with pytest.raises(StoreError, match=r"no image with id '\.\./secret'"):
        getattr(store, read)("../secret")


def test_dropped_images_and_sources(store: RunStore) -> None:
    record = make_record(9)
    assert not store.is_dropped(record.id)
    store.drop_image(record, "too dark")
    store.drop_image(record, "still too dark")
    assert store.is_dropped(record.id) and not store.has_image(record.id)
    assert store.summary().rounds[record.round].dropped == 1
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    store.put_source("photo-1", rgb)
    store.put_source("photo-1", np.zeros_like(rgb))
    assert np.array_equal(store.source("photo-1"), rgb), "a source is written only once"
    with pytest.raises(StoreError, match=r"photo-2.png of image photo-2 is missing"):
        store.source("photo-2")
    add(store, 0)
    [image_id] = store.image_ids()
    assert np.array_equal(store.source(image_id), store.image(image_id)), (
        "an image of the run can be a source without a copy"
    )
