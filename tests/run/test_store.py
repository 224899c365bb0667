"""Rows and records of a run: lossless, in order, and refused where they are wrong or damaged."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from diffugen.errors import StoreError
from diffugen.records import Decision, Disagreement, HeatMaps, Instances, LabelSet
from diffugen.run import codec
from diffugen.run.results import TaskImages
from diffugen.run.store import RunStore
from diffugen.run.summary import RoundSummary
from tests.support.children import WAIT_SECONDS
from tests.support.stores import (
    add,
    assert_equal_heat_maps,
    assert_equal_labels,
    child,
    files,
    make_heat_maps,
    make_labels,
    make_record,
    make_rgb,
)

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
    assert list(store.labelled_ids("attention", "old")) == [first.id, second.id]
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
    assert store.count_contested() == {0: 2, 1: 1}
    store.drop_disagreements(one for one in (ids[0], "nobody"))
    assert list(store.disagreements()) == first[:1] and store.count_contested() == {0: 1}


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
        assert store.summary().images == 40
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
