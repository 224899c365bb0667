"""Runs of older DiffuGens (ledger schemas 3 and 4, tests/fixtures/README.md) open and continue unchanged."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffugen import stages
from diffugen.config import Config, kept_config
from diffugen.errors import StoreError
from diffugen.labels.label import label
from diffugen.run import Run, RunStore, schema, store as store_module
from tests.support.command_line import run as run_command

OLD = Path(__file__).parents[1] / "fixtures" / "run-schema-3"
OLD_4 = Path(__file__).parents[1] / "fixtures" / "run-schema-4"
TABLES = ("images", "labels", "stages", "disagreements", "decisions", "dropped", "sqlite_sequence")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD, tmp_path / "old"))


@pytest.fixture
def store(folder: Path) -> Iterator[RunStore]:
    with RunStore.open(folder, readonly=True) as opened:
        yield opened


def config_of(store: RunStore) -> Config:
    assert store.config is not None
    return kept_config(store.config, "the old run")


def test_it_opens_and_its_results_are_read(store: RunStore) -> None:
    first, second = (store.results(number) for number in (0, 1))
    assert first.generate and (first.generate.images, first.generate.tasks["txt2img"].images) == (12, 12)
    assert first.promote and not first.promote.promoted and first.promote.incumbent.ap50 == 1.0
    assert second.tune and second.tune.before.settings == config_of(store).labels
    assert second.compare and second.compare.kinds["overlooked"] == 3
    assert second.dataset is None, "it was killed before this stage"
    assert store.summary().images == 24 and store.loop is None
    for record in store.records():
        assert store.image(record.id).shape == (64, 64, 3)


@pytest.mark.parametrize("told", [True, False])
def test_a_long_upgrade_is_told_once(
    folder: Path, told: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if told:
        monkeypatch.setattr(store_module, "MANY_ROWS", 24)
    RunStore.open(folder, readonly=True).close()
    assert not caplog.messages, "nothing is upgraded"
    for _ in range(2):
        RunStore.open(folder).close()
    assert len(caplog.messages) == told and all(str(folder) in one for one in caplog.messages)


def test_the_same_heat_maps_give_the_same_labels(store: RunStore) -> None:
    labelling = config_of(store).labelling
    kept = list(store.labels("attention"))
    assert len(kept) == 24 and {one.method for one in kept} == {labelling.method}
    for one in kept:
        heat_maps, rgb = store.heat_maps(one.image_id), store.image(one.image_id)
        made = label(heat_maps, labelling.settings, labelling.weights, rgb)
        assert (made.class_names, made.rles) == (one.instances.class_names, one.instances.rles)
        np.testing.assert_allclose(made.scores, one.instances.scores, atol=1e-6)


def test_the_same_labels_give_the_same_dataset(folder: Path) -> None:
    with RunStore.open(folder) as store:
        config = config_of(store)
        # Back to the state in which round 0 chose its images: no model labels yet.
        store._ledger._connection.execute("DELETE FROM labels WHERE source = 'model'")
        run = Run(store, tuple(config.prompts.classes), config.seed)
        dataset = folder / "datasets" / "round-0"
        before = {
            path.relative_to(dataset): path.read_bytes() for path in dataset.rglob("*") if path.is_file()
        }
        made = stages.choose(run.round(0, redo=True), config.labelling.method, config.training_policy)
    after = {path.relative_to(dataset): path.read_bytes() for path in dataset.rglob("*") if path.is_file()}
    assert len(before) > 30 and before.items() <= after.items()
    assert (made.train + made.val, made.by_origin) == (24, {"attention": 24})


def test_commands_that_only_read_need_no_upgrade(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    before = (folder / "ledger.sqlite").read_bytes()
    assert run_command(monkeypatch, "status", str(folder)) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^1 +12 .*tune *$", shown, re.MULTILINE), shown
    assert run_command(monkeypatch, "report", "--run", str(folder)) == 0
    assert run_command(monkeypatch, "export", str(folder), "--out", str(tmp_path / "set")) == 0
    assert (folder / "ledger.sqlite").read_bytes() == before


# -------------------------------------------------------------------- schema 4 becomes today's


def rows_of(folder: Path) -> dict[str, list[tuple[Any, ...]]]:
    with sqlite3.connect(f"{(folder / 'ledger.sqlite').as_uri()}?mode=ro", uri=True) as ledger:
        found = {table: sorted(ledger.execute(f"SELECT * FROM {table}"), key=repr) for table in TABLES}
        found["images"] = [row[:7] for row in found["images"]]  # without the place in the draw of audits
    ledger.close()
    return found


@pytest.fixture
def fourth(tmp_path: Path) -> Path:
    """A run of schema 4 whose newest label set and newest disagreement were deleted."""
    folder = Path(shutil.copytree(OLD_4, tmp_path / "fourth"))
    with sqlite3.connect(folder / "ledger.sqlite") as ledger:
        for table in ("labels", "disagreements"):
            ledger.execute(f"DELETE FROM {table} WHERE seq = (SELECT max(seq) FROM {table})")
    ledger.close()
    return folder


def test_an_upgrade_keeps_every_row(fourth: Path) -> None:
    before = rows_of(fourth)
    assert all(before.values())
    with RunStore.open(fourth, readonly=True) as reader:
        assert reader.ledger.version == 4
        ids = list(reader.image_ids())
        RunStore.open(fourth).close()
        # A reader of before goes on.
        assert list(reader.image_ids()) == ids
        assert [reader.image(one).shape for one in ids] == [(24, 40, 3)] * 6
    assert rows_of(fourth) == before, "a number in seq never repeats"
    with RunStore.open(fourth, readonly=True) as store:
        assert store.ledger.version == len(schema.MIGRATIONS)
        assert [one.verdict for one in store.decisions()] == ["model", "reject"]
        assert next(store.votes()).judged


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_an_upgrade_that_is_killed_changes_nothing(
    fourth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = rows_of(fourth)
    left, connect = 0, sqlite3.connect

    def kill(statement: str) -> None:
        nonlocal left
        left -= statement.lstrip().startswith(("CREATE", "INSERT", "DELETE", "DROP", "ALTER", "COMMIT"))
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def traced(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        connection = connect(*args, **kwargs)
        connection.set_trace_callback(kill)
        return connection

    kills = 0
    for number in range(0, 100, 4):
        folder = Path(shutil.copytree(fourth, tmp_path / str(number)))
        left = number
        pid = os.fork()
        if pid == 0:
            monkeypatch.setattr(sqlite3, "connect", traced)
            RunStore.open(folder).close()
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        assert rows_of(folder) == before
        if not os.WIFSIGNALED(status):
            break
        kills += 1
        with RunStore.open(folder, readonly=True) as reader:
            assert reader.ledger.version == 4
        RunStore.open(folder).close()
        assert rows_of(folder) == before
    assert kills > 10


def test_temporary_files_of_an_older_version_are_removed(fourth: Path) -> None:
    left = [fourth / name / ".0123.png.tmp" for name in ("images", "heatmaps", "sources")]
    for path in left:
        path.touch()
    RunStore.open(fourth).close()
    assert not any(path.exists() for path in left)


def test_a_wrong_row_stops_an_upgrade(fourth: Path) -> None:
    with sqlite3.connect(fourth / "ledger.sqlite") as ledger:
        ledger.execute("UPDATE labels SET objects = 'many' WHERE seq = 3")
    ledger.close()
    before = rows_of(fourth)
    for readonly in (True, False):
        with pytest.raises(
            StoreError, match=r"ledger.sqlite: row '\w{16}' of the table labels cannot be read"
        ):
            RunStore.open(fourth, readonly=readonly)
    assert rows_of(fourth) == before


# -------------------------------------------------------------------- continuing


@pytest.mark.slow
def test_it_continues_where_it_was_killed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with RunStore.open(folder, readonly=True) as store:
        ids, kept = list(store.image_ids()), store.results(1).tune
    assert run_command(monkeypatch, "bootstrap", "--run", str(folder)) == 0
    said = capsys.readouterr().out
    assert "continuing after round 0" in said
    assert re.search(r"round 1 .*: dataset", said) and not re.search(r"round 1 .*: generate", said), said
    with RunStore.open(folder, readonly=True) as store:
        assert list(store.image_ids()) == ids and store.results(1).tune == kept
        assert store.results(1).promote and store.loop == "bootstrap"
        labelled = [labels.image_id for labels in store.labels("attention")]
        assert sorted(labelled) == sorted(ids), "no image was labelled again"


@pytest.mark.slow
def test_the_same_configuration_makes_the_same_images(
    tmp_path: Path, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ids are the same; the pixels are not, because the miniature has been trained anew since."""
    config = config_of(store)
    with Run.open(tmp_path / "new", config) as run:
        round = run.round(0)
        stages.generate(round, config.generation, config.labelling)
        stages.label(round, config.labelling)
        old = list(store.image_ids(0))
        assert list(run.store.image_ids()) == old
        for image_id in old:
            assert run.store.image(image_id).shape == store.image(image_id).shape
