"""A damaged or edited ledger: every command that reads it ends with exit code 2 and names the row."""

from __future__ import annotations

import json
import runpy
import shutil
import sqlite3
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given

from diffugen.config.load import load_config
from diffugen.errors import DiffugenError, StoreError
from diffugen.records import Decision, Disagreement
from diffugen.review.decisions import read_decisions
from diffugen.run.results import Promoted
from diffugen.run.store import RunStore
from tests.support.command_line import run
from tests.support.hostile import FUZZ, damaged, no_hang

child = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "support" / "store_child.py")))
RECORDS = [child.make_record(number) for number in range(3)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    with RunStore.create_or_open(folder, config=load_config("miniature").dump()) as store:
        store.add_images((one, child.make_rgb(one), child.make_heat_maps(one), 1.5) for one in RECORDS)
        for source in ("attention", "model"):
            store.put_labels(child.make_labels(one, source) for one in RECORDS)
        store.put_disagreements(0, [Disagreement(RECORDS[0].id, "spurious", 0.5, 0, None, 0.1)])
        store.add_decisions([Decision(RECORDS[1].id, "reject", None, "anna")])
        store.finish_stage(0, "promote", Promoted(True, "best.pt"), 1.0)
    return folder


def edited(whole: Path, folder: Path, *statements: str) -> Path:
    copy = Path(shutil.copytree(whole, folder / "run"))
    with sqlite3.connect(copy / "ledger.sqlite") as ledger:
        ledger.execute("PRAGMA ignore_check_constraints = ON")
        for statement in statements:
            ledger.execute(statement)
    ledger.close()
    return copy


VALUES = [
    ("UPDATE images SET round = 'x'", "images"),
    ("UPDATE images SET round = -1", "images"),
    ("UPDATE images SET round = 1000000000000", "images"),
    ("UPDATE images SET created_at = 'now'", "images"),
    ("UPDATE images SET created_at = '2024-02-31T00:00:00+00:00'", "images"),
    ("UPDATE images SET created_at = '2024-02-01T00:00:00'", "images"),
    ("UPDATE stages SET seconds = 'x'", "stages"),
    ("UPDATE stages SET created_at = 7", "stages"),
    ("UPDATE decisions SET created_at = 'soon'", "decisions"),
    ("UPDATE disagreements SET round = x'00'", "disagreements"),
]

SUMMED = [
    "UPDATE images SET seconds = 'x'",
    "UPDATE images SET bytes = x'00'",
    "UPDATE labels SET objects = 'many'",
    "INSERT OR REPLACE INTO labels SELECT seq, image_id, source, method, round, instances, 'x', created_at "
    "FROM labels",
]

STATUS = [
    *VALUES,
    ("UPDATE image_counts SET images = 'x'", "image_counts"),
    ("UPDATE image_counts SET seconds = 'x'", "image_counts"),
    ("UPDATE image_counts SET bytes = x'00'", "image_counts"),
    ("UPDATE image_counts SET round = 'x' WHERE round = 0", "images"),
    ("UPDATE label_counts SET objects = 'many'", "label_counts"),
    ("UPDATE label_counts SET label_sets = 'many'", "label_counts"),
    ("UPDATE disagreement_counts SET disagreements = 'x'", "disagreement_counts"),
    ("UPDATE contested_counts SET images = 'x'", "contested_counts"),
    ("UPDATE contested_counts SET round = 'x'", "contested_counts"),
    ("UPDATE label_counts SET round = -1 WHERE source = 'model' AND round = 0", "labels"),
    ("UPDATE meta SET value = 'x' WHERE key = 'schema'", "schema"),
    ("UPDATE meta SET value = x'ff' WHERE key = 'schema'", "schema"),
    ("UPDATE meta SET value = '99999999999999999999' WHERE key = 'schema'", "schema"),
    ("DELETE FROM meta WHERE key = 'created_at'", "created_at"),
    ("UPDATE meta SET value = CAST(x'ff' AS TEXT) WHERE key = 'diffugen_version'", "corrupt"),
    ("UPDATE stages SET result = '{'", "stages"),
    ("UPDATE stages SET result = '[]'", "stages"),
    ("DROP TABLE labels", "labels"),
    ("DROP TABLE meta", "another program"),
    (
        "CREATE VIEW odd AS WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x FROM c) SELECT x FROM c",
        "view",
    ),
    ("CREATE TRIGGER odd AFTER INSERT ON images BEGIN DELETE FROM images; END", "trigger"),
    ("CREATE TRIGGER images_by_round AFTER INSERT ON images BEGIN DELETE FROM images; END", "trigger"),
]

REPORT = [
    ("UPDATE images SET record = '{'", "images"),
    ("UPDATE images SET record = '[]'", "images"),
    ("UPDATE images SET record = replace(record, '\"text\"', '\"tixt\"')", "images"),
    ('UPDATE images SET record = replace(record, \'"seed":\', \'"seed":[],"sead":\')', "images"),
    (f"UPDATE images SET record = '{'[' * 100_000}'", "images"),
    (
        "UPDATE images SET record = replace(replace(record, 'txt2img', 'img2img'), "
        '\'"parent":null\', \'"parent":"../../x"\')',
        "not the id of an image or a photo",
    ),
    ("UPDATE labels SET instances = '{}'", "labels"),
    ('UPDATE labels SET instances = replace(instances, \'"counts":["\', \'"counts":["5\')', "labels"),
    ("UPDATE disagreements SET kind = 'odd'", "disagreements"),
    ("UPDATE disagreements SET severity = 'a'", "disagreements"),
    ("UPDATE decisions SET verdict = 'odd'", "decisions"),
    ("UPDATE meta SET value = '{' WHERE key = 'config'", "config"),
    ("UPDATE meta SET value = '[]' WHERE key = 'config'", "config"),
]


IDS = [
    "UPDATE images SET id = '../../../etc/pass' WHERE seq = 1",
    "UPDATE labels SET image_id = '../../../../x.pn' WHERE seq = 1",
    "INSERT INTO dropped SELECT '..', round, 'dark', created_at FROM images WHERE seq = 1",
]


@pytest.mark.parametrize("statement", [*(statement for statement, _ in VALUES), *SUMMED, *IDS])
def test_the_ledger_refuses_wrong_values_of_other_programs(
    whole: Path, tmp_path: Path, statement: str
) -> None:
    copy = Path(shutil.copytree(whole, tmp_path / "run"))
    with sqlite3.connect(copy / "ledger.sqlite") as ledger, pytest.raises(sqlite3.IntegrityError):
        ledger.execute(statement)
    ledger.close()


@pytest.mark.parametrize("statement", SUMMED)
def test_no_sum_counts_what_is_no_number(whole: Path, tmp_path: Path, statement: str) -> None:
    """Not even where the checks are switched off."""
    with pytest.raises(sqlite3.IntegrityError):
        edited(whole, tmp_path, statement)


def test_an_id_that_leads_elsewhere_names_no_file(whole: Path, tmp_path: Path) -> None:
    with RunStore.open(edited(whole, tmp_path, IDS[0]), readonly=True) as store:
        image_id = next(store.image_ids())
        for read in (store.image, store.heat_maps, store.image_path, store.heat_maps_path):
            with pytest.raises(StoreError, match=r"'\.\./\.\./\.\./etc/pass'.* is not the id of an image"):
                read(image_id)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE sqlite_master SET sql = replace(sql, 'NOT GLOB', 'GLOB') WHERE name = 'images'",
        "DROP INDEX labels_by_round",
        "DROP TRIGGER image_counts_insert",
        "UPDATE sqlite_master SET sql = replace(sql, '+ 1', '+ 2') WHERE name = 'label_counts_insert'",
    ],
)
def test_an_edited_definition_is_refused(whole: Path, tmp_path: Path, statement: str) -> None:
    folder = edited(whole, tmp_path, "PRAGMA writable_schema = ON", statement)
    for readonly in (True, False):
        with pytest.raises(StoreError, match="the definition of"):
            RunStore.open(folder, readonly=readonly)


@pytest.mark.parametrize(("statement", "named"), STATUS, ids=lambda value: value[:50])
def test_status_names_what_is_damaged(
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    statement: str,
    named: str,
) -> None:
    folder = edited(whole, tmp_path, statement)
    with no_hang():
        assert run(monkeypatch, "status", str(folder)) == 2
    error = capsys.readouterr().err
    assert named in error
    assert str(folder) in error


@pytest.mark.parametrize(("statement", "named"), REPORT, ids=lambda value: value[:50])
def test_the_report_names_the_row(
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    statement: str,
    named: str,
) -> None:
    folder = edited(whole, tmp_path, statement)
    with no_hang():
        assert run(monkeypatch, "report", "--run", str(folder)) == 2
    error = capsys.readouterr().err
    assert f"{folder / 'ledger.sqlite'}: row" in error
    assert named in error


def test_a_whole_run_is_read(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "status", str(whole)) == 0
    assert run(monkeypatch, "report", "--run", str(whole)) == 0


DECISIONS = json.dumps(
    {"run": "run", "decisions": [{"image_id": RECORDS[0].id, "verdict": "attention", "reviewer": "anna"}]}
)


def test_a_damaged_decisions_file(whole: Path, tmp_path: Path) -> None:
    file = tmp_path / "decisions.json"
    with RunStore.open(whole, readonly=True) as store:
        file.write_text(DECISIONS)
        assert len(read_decisions(store, file, reviewer="anna", round=0)) == 1

        @FUZZ
        @given(damaged(DECISIONS.encode()))
        def attack(data: bytes) -> None:
            file.write_bytes(data)
            with no_hang():
                try:
                    read_decisions(store, file, reviewer="anna", round=0)
                except DiffugenError as error:
                    assert str(file) in str(error)
                    assert len(str(error)) < 3000

        attack()


def test_very_many_mistakes_in_a_decisions_file_are_cut(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text(json.dumps({"run": "run", "decisions": [{"verdict": "x" * 999}] * 9999}))
    with RunStore.open(whole, readonly=True) as store, pytest.raises(DiffugenError) as caught:
        read_decisions(store, tmp_path / "d.json", reviewer="anna", round=0)
    assert "... and 9,949 more" in str(caught.value)
    assert len(str(caught.value)) < 30_000


def test_a_damaged_row_is_not_blamed_on_the_decisions_file(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text(DECISIONS)
    folder = edited(whole, tmp_path, "UPDATE images SET record = '{'")
    with (
        RunStore.open(folder, readonly=True) as store,
        pytest.raises(DiffugenError, match="of the table images"),
    ):
        read_decisions(store, tmp_path / "d.json", reviewer="anna", round=0)
