"""Transactions of a run: safe under kills, full disks, and concurrent processes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from diffugen.errors import StoreError
from diffugen.run import ledger as ledger_module, schema
from diffugen.run.places import ImageFiles
from diffugen.run.results import TaskImages
from diffugen.run.rounds import Round, Run
from diffugen.run.store import RunStore
from tests.support.children import WAIT_SECONDS
from tests.support.stores import (
    add,
    assert_equal_heat_maps,
    child,
    files,
    make_heat_maps,
    make_labels,
    make_record,
    make_rgb,
    start,
)

# -------------------------------------------------------------------- locks and versions


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
            lambda: reader.finish_stage(0, "label", TaskImages(1), 1.0),
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
        newer.setattr(schema, "READABLE", 7)
        with pytest.raises(StoreError, match="has schema 6, which is older than 7"):
            RunStore.open(folder, readonly=True)
        with RunStore.open(folder) as upgraded:
            assert upgraded.has_image(make_record(0).id)
            assert upgraded._ledger.all("SELECT * FROM later") == []
    for readonly in (True, False):
        with pytest.raises(StoreError, match="newer DiffuGen: its ledger has schema 7"):
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
