"""The review in the FiftyOne App, in a real browser: keys, reload, undo, two people, kills, the end."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest
from playwright.sync_api import Browser, Dialog, Page

import diffugen as dg
from tests.support import run_for_review as made
from tests.support.app import Review, Reviewer, until
from tests.support.browser import chromium

pytestmark = pytest.mark.slow

HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


def make_run(folder: Path, count: int) -> Path:
    """A run with the configuration of the miniature, as `diffugen review` needs one."""
    dg.open_run(folder, dg.load_config("miniature")).close()
    made.make_run(folder, range(count), config=None).close()
    return folder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def verdicts(review: Review) -> list[str]:
    return [one.verdict for one in review.votes()]


def decided(page: Page) -> int:
    """How many images the panel says are decided."""
    text = page.locator("#diffugen-review").first.inner_text()
    return int(text.split()[0]) if text[:1].isdigit() else -1


def test_ten_keys_are_ten_decisions_and_nothing_but_the_flag_ends_the_session(
    tmp_path: Path, browser: Browser
) -> None:
    review = Review(make_run(tmp_path / "piano run", 20), free_port(), "--reviewer", "ann")
    ann = Reviewer(browser, review.url())
    ann.open_image()
    for count, key in enumerate("12341", start=1):
        ann.press(key)
        until(lambda count=count: len(review.votes()) == count)  # type: ignore[misc]
    ann.be_ready()  # a reload shows the same image again
    ann.page.reload()
    ann.open_image()
    for count, key in enumerate("23412", start=6):
        ann.press(key)
        until(lambda count=count: len(review.votes()) == count)  # type: ignore[misc]
    names = {"1": "attention", "2": "model", "3": "empty", "4": "reject"}
    assert verdicts(review) == [names[key] for key in "1234123412"]
    assert len({one.image_id for one in review.votes()}) == 10
    assert {one.reviewer for one in review.votes()} == {"ann"}

    # The panel knows, and space changes what is drawn.
    ann.page.locator("[data-cy=panel-tab-diffugen-review]").click()
    until(lambda: decided(ann.page) == 10)
    ann.page.locator("[data-cy=panel-tab-fo-sample-modal-plugin]").click()

    # Taken back: the image is undecided again, and its vote stays on record.
    ann.press("u")
    until(lambda: verdicts(review)[10:] == ["open"])
    assert review.votes()[10].image_id == review.votes()[9].image_id

    # Another person, at the same time.
    ben = Reviewer(browser, review.url(), "ben")
    ben.open_image()
    ben.press("4")
    until(lambda: len(review.votes()) == 12)
    assert (review.votes()[-1].verdict, review.votes()[-1].reviewer) == ("reject", "ben")

    ben.page.close()
    assert review.process.poll() is None, "a closed page ends nothing"
    # Where masks are changed, keys belong to FiftyOne's tools; all labels can be changed there.
    ann.press("e")
    ann.page.wait_for_selector("[data-cy=annotation-save-state]", state="attached")
    assert ann.page.locator("[data-cy^=annotate-label-]").count() > 0
    ann.press("1")
    ann.page.locator("[data-cy=explore]").click()
    assert len(review.votes()) == 12
    ann.page.evaluate("__foo__.executeOperator('@diffugen/review/finish')")
    assert review.end() == 0
    assert "10 images decided in this review, all stored in the run" in " ".join(review.said.split())


def test_kills_lose_no_verdict(tmp_path: Path, browser: Browser) -> None:
    """Ctrl-C says what to run next; a killed database ends the session with one message; a killed command."""
    run = make_run(tmp_path / "piano run", 20)
    review = Review(run, free_port())
    ann = Reviewer(browser, review.url())
    ann.open_image()
    ann.press("2")
    ann.page.wait_for_selector("text=/Model is right/")
    review.end(signal.SIGKILL)  # at once: the vote may not be in the run yet
    ann.page.close()

    review = Review(run, free_port())
    ann = Reviewer(browser, review.url())
    assert verdicts(review) == ["model"], "the next session begins with what the last one left"
    ann.open_image()
    ann.press("4")
    ann.page.wait_for_selector("text=/Rejected/")
    for process in psutil.Process(review.process.pid).children(recursive=True):
        if "mongod" in process.name():
            process.kill()
    assert review.end() == 2
    assert "Traceback" not in review.said and "run the same command" in " ".join(review.said.split())
    ann.page.close()

    review = Review(run, free_port())
    review.url()
    assert verdicts(review) == ["model", "reject"]
    assert review.end(signal.SIGINT) == 130
    assert "To go on with the run: diffugen teach" in " ".join(review.said.split())


def test_hostile_words_are_shown_as_text(tmp_path: Path, browser: Browser) -> None:
    run = make_run(tmp_path / "piano run", 2)
    review = Review(run, free_port(), "--reviewer", HOSTILE)
    ann = Reviewer(browser, review.url())
    alerts: list[str] = []

    def note(dialog: Dialog) -> None:
        alerts.append(dialog.message)
        dialog.dismiss()

    ann.page.on("dialog", note)
    ann.open_image()
    ann.press("1")
    until(lambda: review.votes())
    ann.page.locator("[data-cy=panel-tab-diffugen-review]").click()
    ann.press("u")
    until(lambda: len(review.votes()) == 2)
    assert review.votes()[0].reviewer == HOSTILE and alerts == []
    assert review.end(signal.SIGINT) == 130
