"""One number for one thing: queue, status, report and review say the same about a run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import diffugen as dg
from diffugen.comparison.shares import Share
from diffugen.records import Decision
from diffugen.report.write import write_report
from diffugen.review.audits import audit_errors
from diffugen.review.queue import QueueCounts, count_queue, read_queue
from diffugen.run.store import RunStore
from tests.support import run_for_review as made
from tests.support.command_line import run as run_command

AGREED = made.LABELS[4][0]
WRONG = made.instances_of(("piano", made.box_mask(0, 0, 12, 12), 1.0))


def decision(number: int, verdict: str, labels: Any = None, reviewer: str = "ann") -> Decision:
    return Decision(made.image_id(number), verdict, labels, reviewer)


DECISIONS = [
    decision(0, "reject"),
    decision(0, "model", made.LABELS[0][1]),  # decided again: one image still
    decision(1, "attention", made.LABELS[1][0]),
    decision(1, "open"),  # taken back
    decision(2, "model", made.LABELS[2][1], "ben"),
    decision(2, "model", made.LABELS[2][1], "ann"),
    decision(3, "edited", WRONG, "ben"),
    decision(3, "attention", made.LABELS[3][0], "ann"),
    decision(5, "open"),
    decision(4, "attention", AGREED),  # audits
    decision(10, "edited", WRONG),
    decision(10, "edited", WRONG, "ben"),
    decision(16, "reject"),
]


def make(folder: Path, *settings: str) -> Path:
    config = dg.load_config("miniature", ["review.audits=0.3", *settings])
    dg.open_run(folder, config).close()
    with made.make_run(folder, range(24), config=None) as store:
        store.add_decisions(DECISIONS)
    return folder


@pytest.fixture(scope="module")
def decided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with images decided, decided again, taken back, half decided, and audited; not to be changed."""
    return make(tmp_path_factory.mktemp("runs") / "pianos")


def counts_of(folder: Path) -> QueueCounts:
    with RunStore.open(folder, readonly=True) as store:
        return count_queue(store)


def test_the_counts(decided: Path) -> None:
    found = counts_of(decided)
    assert (found.images, found.audits, found.disagreements) == (24, 4, 24 - 4)
    assert found.kinds == {"overlooked": 8, "spurious": 4, "swapped": 4, "badly_located": 4}
    assert (found.decided, found.waiting, found.audits_decided, found.voted) == (6, 18, 3, 0)


def test_status_report_review_and_queue_say_the_same(
    decided: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    line = "review queue: 24 images (20 disagreements, 4 audits), 6 decided, 18 waiting"
    assert run_command(monkeypatch, "status", str(decided)) == 0
    shown = capsys.readouterr().out
    assert line in shown
    assert re.search(r"^0 +24 .*attention 2\b", shown, re.MULTILINE), (
        "two images, though one was decided twice"
    )
    empty = tmp_path / "decisions.json"
    empty.write_text(json.dumps({"run": decided.name, "decisions": []}))
    arguments = ("review", "--run", str(decided), "--decisions", str(empty))
    assert run_command(monkeypatch, *arguments) == 0
    said = capsys.readouterr().out
    assert "the run has decisions on 6 images" in said and line in said
    with RunStore.open(decided, readonly=True) as store:
        assert sum(store.summary().rounds[0].decisions.values()) == 6
        assert len(read_queue(store).waiting) == 18
        page = write_report(store)
        waiting = read_queue(store).waiting
    html, markdown = page.read_text(), page.with_name("report.md").read_text()
    for text in (re.sub(r"<[^>]+>", "", html), markdown.replace("\\", "")):
        text = " ".join(text.split())
        assert "The review queue has 24 images: 20 with a disagreement (20 disagreements in all)" in text
        assert "4 audits" in text and "6 of them are decided, 18 wait for a decision" in text
    assert waiting[0] in html
    assert (
        run_command(
            monkeypatch, "review", "--run", str(decided), "--out", "cvat", "--folder", str(tmp_path / "out")
        )
        == 0
    )
    assert "18 images of the review queue written to" in capsys.readouterr().out
    assert len(list((tmp_path / "out" / "images").iterdir())) == 18


def test_audits_measure_how_often_both_sources_are_wrong(
    decided: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunStore.open(decided, readonly=True) as store:
        assert audit_errors(store) == Share(1, 2), "the rejected one says nothing"
        text = write_report(store).read_text()
    assert "the labels were wrong on 1 of 2 (50%, 95% interval 9% to 91%)" in text
    assert run_command(monkeypatch, "status", str(decided)) == 0
    assert (
        "audits: where both sources agree, the labels were wrong on 1 of 2 decided images "
        "(95% interval 9% to 91%)" in capsys.readouterr().out
    )


def test_agreement_between_reviewers_is_in_both_forms_of_the_report(decided: Path) -> None:
    with RunStore.open(decided, readonly=True) as store:
        page = write_report(store)
    for text in (page.read_text(), page.with_name("report.md").read_text().replace("\\", "")):
        assert "they agree on 2 of 3 (67%, 95% interval 21% to 94%)" in text
        assert "Agreement between reviewers by kind" in text
        assert "Agreement between reviewers by pair" not in text, "there is only one"


def test_a_consensus_that_is_missing_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(tmp_path / "two", "review.consensus=2")
    found = counts_of(folder)
    assert (found.decided, found.waiting, found.voted) == (2, 22, 4), "images 0, 3, 4 and 16 have a vote"
    monkeypatch.setenv("COLUMNS", "200")
    assert run_command(monkeypatch, "status", str(folder)) == 0
    assert "2 decided, 22 waiting (4 for another reviewer)" in capsys.readouterr().out
    with RunStore.open(folder, readonly=True) as store:
        text = write_report(store).read_text()
    assert "An image is decided when 2 reviewers agree (review.consensus). 4 images with a vote wait" in text


def test_a_run_without_comparison_has_no_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dg.open_run(tmp_path / "new", dg.load_config("miniature")).close()
    assert run_command(monkeypatch, "status", str(tmp_path / "new")) == 0
    assert "review queue" not in capsys.readouterr().out
    assert counts_of(tmp_path / "new").images == 0
