"""Damage and bad input: one message that names the file or the row, and nothing is lost."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from diffugen.errors import StoreError
from diffugen.records import Instances, LabelSet
from diffugen.run import codec
from diffugen.run.store import RunStore
from tests.support.children import WAIT_SECONDS
from tests.support.store_samples import add, files, make_heat_maps, make_labels, make_record, make_rgb

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
