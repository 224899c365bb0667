"""`diffugen review --out` and `--in`: what they print, and that mistakes are one message."""

from __future__ import annotations

from pathlib import Path

import pytest

import diffugen as dg
from diffugen.run.store import RunStore
from tests.support import run_for_review as made
from tests.support.annotators import Labelme
from tests.support.command_line import run as run_command


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run with a queue of six images, one of them an audit."""
    run = tmp_path / "my pianos"
    dg.open_run(run, dg.load_config("miniature")).close()
    made.make_run(run, config=None).close()
    return run


def test_out_and_in(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    review = ("review", "--run", str(folder))
    assert run_command(monkeypatch, *review, "--out", "labelme") == 0
    said = capsys.readouterr().out
    assert f"6 images of the review queue written to {folder / 'review' / 'labelme'}\n" in said
    assert f"labelme '{folder / 'review' / 'labelme'}' --labels" in said
    assert f"diffugen review --run '{folder}' --in '{folder / 'review' / 'labelme'}'" in said
    annotator = Labelme(folder / "review" / "labelme")
    annotator.delete(made.image_id(2), 0)
    annotator.saved()
    assert run_command(monkeypatch, *review, "--in", str(annotator.folder), "--reviewer", "ben") == 0
    said = capsys.readouterr().out
    assert "5 images left as written and not marked as reviewed: undecided" in said
    assert "new decisions: 1 model; the run has decisions on 1 image" in said
    with RunStore.open(folder, readonly=True) as store:
        [found] = store.decisions()
        assert (found.image_id, found.verdict, found.reviewer) == (made.image_id(2), "model", "ben")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "cvta"], "unknown tool 'cvta', did you mean 'cvat'?"),
        (["--out", "cvat", "--in", "x.xml"], "--out and --in cannot be used together"),
        (["--in", "x.xml", "--decisions", "y.json"], "--in and --decisions cannot be used together"),
        (["--out", "cvat", "--static"], "--out and --static cannot be used together"),
        (["--folder", "x"], "--folder needs --out"),
        (["--in", "missing.xml"], "cannot read missing.xml"),
    ],
)
def test_mistakes_are_one_message(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    assert run_command(monkeypatch, "review", "--run", str(folder), *arguments) == 2
    shown = capsys.readouterr()
    assert message in shown.err + shown.out and "Traceback" not in shown.err
    assert not (folder / "review").exists() or not list((folder / "review").iterdir())
