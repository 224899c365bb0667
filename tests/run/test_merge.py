"""Joining runs: what is taken, what does not fit, and kills at any moment."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from diffugen.errors import StoreError
from diffugen.records import Decision
from diffugen.run.ledger import LEDGER_NAME
from diffugen.run.merge import Merged, merge
from diffugen.run.store import RunStore
from tests.support import store_child
from tests.support.children import WAIT_SECONDS
from tests.support.store_child import make_heat_maps, make_labels, make_record, make_rgb, write_part


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """Two runs that share one image."""
    made = [tmp_path / "part-1", tmp_path / "part-2"]
    write_part(made[0], range(2))
    write_part(made[1], range(1, 4))
    return made


def content(folder: Path) -> dict[str, object]:
    """Return everything that a merge takes, as far as it does not depend on the time."""
    with RunStore.open(folder, readonly=True) as store:
        ids = list(store.image_ids())
        rows = {
            name: store.ledger.all(f"SELECT {columns} FROM {name} ORDER BY {order}")
            for name, columns, order in (
                ("images", "id, round, record, seconds, bytes, created_at", "seq"),
                ("labels", "image_id, source, method, instances, objects", "image_id, source, method"),
                ("decisions", "image_id, verdict, instances, reviewer, round, created_at", "image_id, seq"),
                ("dropped", "id, round, reason, created_at", "id"),
                ("meta", "key, value", "key"),
            )
        }
        rows["meta"] = [row for row in rows["meta"] if row[0] == "config"]
        files = {
            str(path.relative_to(folder)): path.read_bytes()
            for name in ("images", "heatmaps", "sources")
            for path in (folder / name).rglob("*")
            if path.is_file()
        }
        assert all(store.has_image(one) for one in ids)
    return {**rows, "files": files}


def test_everything_is_taken_and_nothing_twice(parts: list[Path], tmp_path: Path) -> None:
    into = tmp_path / "whole"
    before = [content(part) for part in parts]
    made = merge(parts, into)
    assert made == Merged(images=4, known=1, label_sets=4, decisions=5, dropped=2)
    with RunStore.open(into, readonly=True) as store:
        for record in (make_record(number, round=0) for number in range(4)):
            assert store.record(record.id) == record
            assert (store.image(record.id) == make_rgb(record)).all()
            found, planted = store.heat_maps(record.id), make_heat_maps(record)
            assert all((found.maps[name] == maps).all() for name, maps in planted.maps.items())
            (labels,) = store.labels("attention", image_id=record.id)
            assert labels.instances.rles == make_labels(record).instances.rles
            assert len(list(store.labels("human", image_id=record.id))) == 1
        assert [one.reviewer for one in store.votes(make_record(1, round=0).id)] == ["part-1", "part-2"]
        assert store.source("photo").shape == (4, 6, 3)
    whole = content(into)
    assert merge(parts, into) == Merged(known=5)
    assert content(into) == whole
    assert [content(part) for part in parts] == before


def test_the_newest_decision_counts_in_whatever_order_runs_are_merged(tmp_path: Path) -> None:
    record = make_record(1, round=0)
    for name, verdict, year in (("old", "reject", 2024), ("new", "edited", 2025)):
        write_part(tmp_path / name, [2 if name == "old" else 3])
        with RunStore.open(tmp_path / name) as store:
            store.add_image(record, make_rgb(record), make_heat_maps(record), 1.0)
            labels = make_labels(record).instances if verdict == "edited" else None
            time = f"{year}-01-01T00:00:00+00:00"
            store.add_decisions([Decision(record.id, verdict, labels, "anna", 0, (), time)])
    merge([tmp_path / "new", tmp_path / "old"], tmp_path / "whole")
    with RunStore.open(tmp_path / "whole", readonly=True) as store:
        (counts,) = (one for one in store.decisions() if one.image_id == record.id)
        assert counts.verdict == "edited"
        assert len(list(store.labels("human", image_id=record.id))) == 1


def test_later_work_in_a_part_is_taken_by_the_next_merge(parts: list[Path], tmp_path: Path) -> None:
    into = tmp_path / "whole"
    merge(parts, into)
    with RunStore.open(parts[0]) as store:
        new, known = make_record(9, round=0), make_record(0, round=0)
        store.add_image(new, make_rgb(new), make_heat_maps(new), 1.0)
        store.put_labels([make_labels(known, source="model")])
    assert merge(parts, into) == Merged(images=1, known=5, label_sets=1)


def test_a_changed_file_of_a_part_leaves_the_merged_run_as_it_is(parts: list[Path], tmp_path: Path) -> None:
    merge(parts, tmp_path / "whole")
    record = make_record(0, round=0)
    with RunStore.open(parts[0]) as store:
        store.heat_maps_path(record.id).unlink()
        store.add_image(record, 255 - make_rgb(record), make_heat_maps(record), 1.0)
    with RunStore.open(tmp_path / "whole", readonly=True) as store:
        assert (store.image(record.id) == make_rgb(record)).all()


def test_images_without_files_are_left_out(parts: list[Path], tmp_path: Path) -> None:
    with RunStore.open(parts[0], readonly=True) as store:
        store.image_path(make_record(0, round=0).id).unlink()
    made = merge(parts, tmp_path / "whole")
    assert (made.images, made.without_files) == (3, 1)


def refused(parts: list[Path], into: Path, *words: str) -> None:
    """Check that a merge is refused with these words, and that it leaves no trace."""
    existed = content(into) if into.exists() else None
    with pytest.raises(StoreError) as error:
        merge(parts, into)
    for word in words:
        assert word in str(error.value)
    assert (content(into) if into.exists() else None) == existed


def test_runs_that_do_not_fit_are_refused_before_anything_is_written(
    parts: list[Path], tmp_path: Path
) -> None:
    into, other = tmp_path / "whole", tmp_path / "other"
    write_part(other, [7], **{"seed": 5, "prompts.count": 3})
    refused([*parts, other], into, "seed: 0 in", "5 in", "prompts.count", str(other))
    merge(parts, into)
    refused([other], into, "seed: 0 in", "5 in")
    refused([parts[0], parts[0]], tmp_path / "new", "name it once")
    refused([parts[0], into], into, "is also the run to merge into")
    link = tmp_path / "link"
    link.symlink_to(parts[0], target_is_directory=True)
    refused([parts[0], link], tmp_path / "new", "name it once")
    refused([tmp_path], tmp_path / "new", "is not a run directory")
    refused([tmp_path / "nothing"], tmp_path / "new", "is not a run directory")


def test_resumable_keys_may_differ(parts: list[Path], tmp_path: Path) -> None:
    write_part(tmp_path / "other", [7], **{"diffusion.batch_size": 3})
    assert merge([*parts, tmp_path / "other"], tmp_path / "whole").images == 5


def test_an_image_with_other_pixels_is_refused(parts: list[Path], tmp_path: Path) -> None:
    record = make_record(1, round=0)
    path = parts[1] / "images" / record.id[:2] / f"{record.id}.png"
    path.unlink()
    Image.fromarray(make_rgb(record)).save(path, compress_level=0)
    assert merge(parts, tmp_path / "same").images == 4  # another file, but the same pixels
    path.unlink()
    Image.fromarray(255 - make_rgb(record)).save(path)
    refused(parts, tmp_path / "whole", record.id, "different pixels", str(path))


def test_an_image_with_another_record_is_refused(parts: list[Path], tmp_path: Path) -> None:
    record = make_record(1, round=0)
    with sqlite3.connect(parts[1] / LEDGER_NAME) as ledger:
        ledger.execute(
            "UPDATE images SET record = replace(record, 'blurry', 'dark') WHERE id = ?", [record.id]
        )
    refused(parts, tmp_path / "whole", record.id, "different record")


def test_a_newer_schema_is_refused(parts: list[Path], tmp_path: Path) -> None:
    with sqlite3.connect(parts[1] / LEDGER_NAME) as ledger:
        ledger.execute("UPDATE meta SET value = '99' WHERE key = 'schema'")
    refused(parts, tmp_path / "whole", "newer DiffuGen")


def test_a_run_that_is_being_written_is_refused(parts: list[Path], tmp_path: Path) -> None:
    with RunStore.open(parts[1]):
        refused(parts, tmp_path / "whole", f"{parts[1]} is being written by process {os.getpid()}")
    merge(parts, tmp_path / "whole")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kills_at_many_moments_lose_nothing(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, str(store_child.__file__), "merge", str(tmp_path), "61"],
        check=True,
        timeout=WAIT_SECONDS,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    whole = content(tmp_path / "whole")
    killed = [folder for folder in tmp_path.iterdir() if folder.name.isdecimal()]
    assert len(killed) > 10
    for folder in killed:
        assert content(folder) == whole, folder.name
        assert not list(folder.rglob("*.tmp"))
