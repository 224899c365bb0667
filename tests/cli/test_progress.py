"""What progress says: units, time left and notes, and nothing that only a terminal understands."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from diffugen.cli import progress as module
from diffugen.cli.output import duration, say
from diffugen.cli.progress import Work, progress
from tests.support.terminal import without_terminal

LINES = {
    "nothing reported": ((), "title: 2 min so far", "title: done in 2 min"),
    "nothing to do": (((0, 0, ""),), "title: 2 min so far", "title: done in 2 min"),
    "slow": (
        ((0, 10, ""), (4, 10, "")),
        "title: 4 of 10 epochs, 25.0 s/epoch, 2 min so far, about 2 min left",
        "title: 4 of 10 epochs, 25.0 s/epoch, done in 2 min",
    ),
    "fast": (
        ((0, 1000, ""), (250, 1000, "")),
        "title: 250 of 1000 epochs, 2.5 epochs/s, 2 min so far, about 5 min left",
        "title: 250 of 1000 epochs, 2.5 epochs/s, done in 2 min",
    ),
    "what was done before does not count as fast": (
        ((5, 10, ""), (6, 10, "")),
        "title: 6 of 10 epochs, 100.0 s/epoch, 2 min so far, about 7 min left",
        "title: 6 of 10 epochs, 100.0 s/epoch, done in 2 min",
    ),
    "a part is not counted as done, but as time": (
        ((0, 10, ""), (2.5, 10, "")),
        "title: 2 of 10 epochs, 40.0 s/epoch, 2 min so far, about 5 min left",
        "title: 2 of 10 epochs, 40.0 s/epoch, done in 2 min",
    ),
    "a note": (
        ((0, 2, ""), (1, 2, "loss 2.10, AP50 0.412")),
        "title: 1 of 2 epochs, 100.0 s/epoch, 2 min so far, about 2 min left, loss 2.10, AP50 0.412",
        "title: 1 of 2 epochs, 100.0 s/epoch, done in 2 min, loss 2.10, AP50 0.412",
    ),
    "begun again with less memory": (
        ((0, 4, ""), (3, 4, ""), (0, 4, "")),
        "title: 0 of 4 epochs, 2 min so far",
        "title: 0 of 4 epochs, done in 2 min",
    ),
}


@pytest.mark.parametrize(("reports", "line", "end"), LINES.values(), ids=LINES)
def test_a_line(reports: tuple[tuple[float, int, str], ...], line: str, end: str) -> None:
    seconds = 0.0
    work = Work("title", "epoch", clock=lambda: seconds)
    for report in reports:
        work.report(*report)
    seconds = 100.0
    assert work.line() == line
    assert work.line(ended=True) == end


def test_a_moment_has_no_speed() -> None:
    seconds = 0.0
    work = Work("title", "image", clock=lambda: seconds)
    work.report(0, 58)
    work.report(58, 58)
    seconds = 0.05
    assert work.line(ended=True) == "title: 58 of 58 images, done in 0 s"
    seconds = 0.5
    assert work.line(ended=True) == "title: 58 of 58 images, 116.0 images/s, done in 0 s"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, "0 s"), (0.6, "1 s"), (89, "89 s"), (90, "2 min"), (720, "12 min"), (9000, "2 h 30 min")],
)
def test_durations(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


@pytest.mark.parametrize("force", [False, True])
def test_a_silent_stage_is_reported_without_control_characters(
    force: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a log of a build server, which sets FORCE_COLOR, too."""
    if force:
        monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(module, "LINE_SECONDS", 0.01)
    told = ""
    with progress("round 0: train", "epoch") as on_progress:
        on_progress(1, 3, "loss 2.10")
        while told.count("\n") < 3:  # nothing is reported meanwhile
            time.sleep(0.01)
            told += capsys.readouterr().out
        say("a notice")
    told += capsys.readouterr().out
    *lines, last = told.splitlines()
    lines.remove("a notice")
    assert all(
        re.fullmatch(r"round 0: train: 1 of 3 epochs, \d+ s so far, loss 2\.10", one) for one in lines
    ), lines
    assert re.fullmatch(r"round 0: train: 1 of 3 epochs, done in \d+ s, loss 2\.10", last)
    assert not re.search(r"[^\n\x20-\x7e]", told)


def test_failed_work_is_not_reported_as_done(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), progress("round 0: train", "epoch") as on_progress:
        on_progress(1, 3)
        1 / 0  # noqa: B018
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_a_loop_without_a_terminal_tells_how_far_it_is(tmp_path: Path) -> None:
    settings = ["prompts.count=4", "diffusion.num_inference_steps=2", "dataset.trust=attention"]
    settings += ["detector.steps=null", "detector.epochs=1", "detector.image_size=64", "loop.truth=null"]
    overrides = [part for one in settings for part in ("--set", one)]
    done = without_terminal(["bootstrap", "--rounds", "2", "--run", "run", *overrides], tmp_path)
    assert done.returncode == 0, done.stderr
    for expected in (
        r"round 0 \(1 of 2\): generate: 4 of 4 images, .*done in \d+ s",
        r"round 1 \(2 of 2\): train: 1 of 1 epochs, .*loss \d+\.\d\d, AP50 \d\.\d+",
        r"round 0 \(1 of 2\) is done; at most 1 more round, about \d+ s left",
    ):
        assert re.search(f"^{expected}$", done.stdout, re.M), done.stdout
    assert not re.search(r"[^\n\x20-\x7e]", done.stdout)
