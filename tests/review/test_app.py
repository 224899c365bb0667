"""The review in the FiftyOne App, in a real browser: keys, reload, undo, two people, kills, the end."""

from __future__ import annotations

import shutil
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import psutil  # type: ignore[import-untyped]
import pytest
from playwright.sync_api import Browser, Dialog, Page

import diffugen as dg
from diffugen.comparison.disagreement import compare
from diffugen.labels.shapes import decode
from diffugen.records import HeatMaps, ImageRecord, Prompt
from diffugen.run.store import RunStore
from tests.support import run_for_review as made, store_child as child
from tests.support.app import Review, Reviewer, until
from tests.support.browser import ARGUMENTS, chromium
from tests.support.children import WAIT_SECONDS

pytestmark = pytest.mark.slow

Start = Callable[..., Review]

HOSTILE = (
    "<img src=x onerror=alert(1)></script><script>alert(2)</script> \"'$where {$ne: 1} a.b ünï 日本 "
    + 80 * "x"
)


@pytest.fixture
def browser() -> Iterator[Browser]:
    """Yield a browser; a new one for each test, because a page of an ended review goes on asking for it."""
    with chromium() as opened:
        yield opened


@pytest.fixture
def start() -> Iterator[Start]:
    """Yield what starts a review, which does not outlive the test."""
    with ExitStack() as started:
        yield lambda run, *more: started.enter_context(Review(run, free_port(), *more))


def make_run(folder: Path, numbers: Sequence[int]) -> Path:
    """A run with the configuration of the miniature, as `diffugen review` needs one."""
    dg.open_run(folder, dg.load_config("miniature")).close()
    made.make_run(folder, numbers, config=None).close()
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
    tmp_path: Path, browser: Browser, start: Start
) -> None:
    review = start(make_run(tmp_path / "piano run", range(20)), "--reviewer", "ann")
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

    # Another person, at the same time, whose page follows no other, and is followed by none.
    ann.be_ready()
    taken_back = ann.open_id()
    ben = Reviewer(browser, review.url(), "ben")
    ben.be_ready()
    assert not ben.open_id()
    ben.open_image()
    assert ben.open_id() == taken_back
    for count, key in enumerate("43", start=12):
        ben.press(key)
        until(lambda count=count: len(review.votes()) == count)  # type: ignore[misc]
    assert verdicts(review)[11:] == ["reject", "empty"]
    assert {one.reviewer for one in review.votes()[11:]} == {"ben"}
    ben.be_ready()
    assert ben.open_id() != taken_back

    # Where masks are changed, all labels can be, and a digit still decides: it leaves the tab first.
    ann.press("e")
    ann.page.wait_for_selector("[data-cy=annotation-save-state]", state="attached")
    assert ann.page.locator("[data-cy^=annotate-label-]").count() > 0
    assert ann.open_id() == taken_back
    ann.press("1")
    until(lambda: verdicts(review)[13:] == ["attention"])
    assert review.votes()[13].image_id == review.votes()[11].image_id == review.votes()[10].image_id

    ben.page.close()
    assert review.process.poll() is None, "a closed page ends nothing"
    ann.be_ready()
    ann.page.evaluate("__foo__.executeOperator('@diffugen/review/finish')")
    assert review.end() == 0
    assert "11 images decided in this review, all stored in the run" in " ".join(review.said.split())


def test_a_mask_is_corrected_with_three_actions(tmp_path: Path, browser: Browser, start: Start) -> None:
    review = start(make_run(tmp_path / "piano run", [0]))
    ann = Reviewer(browser, review.url())
    ann.open_image()

    # There are three labels; the brush is for the only one in dispute, the piano that attention overlooked.
    for _ in range(5):
        ann.press("e")
        ann.page.wait_for_selector("[data-cy=brush][data-cy-active=true]")
        ann.be_ready()
        ann.stroke((20.8, 20.5), (29.2, 20.5))
        ann.press("2")
        ann.be_ready()
        if review.votes():
            break
        # On a busy machine FiftyOne does not always store the stroke. Then nothing is decided, and the App
        # asks for a reload.
        ann.page.reload()
        ann.open_image()
    (vote,) = review.votes()
    piano, car = (decode(one) for one in made.sure(vote.instances).rles)
    before_piano, before_car = (decode(one) for one in made.LABELS[0][1].rles)
    # The brush is 16 pixels of the screen wide, and a pixel of the image is 26: the stroke covers 60% of each
    # pixel from 21 to 28, and 30% of those beside them. FiftyOne may shift a mask by one pixel of the screen,
    # which is 4% of one of the image, so it changes none of them.
    expected = before_piano.copy()
    expected[20, 21:29] = True
    assert vote.verdict == "edited" and made.sure(vote.instances).class_names == ("piano", "car")
    assert np.array_equal(piano, expected), "the painted pixels, and the rest with its hole"
    assert np.array_equal(car, before_car)

    # A button of the open image does what its key does, under the name of whoever clicks.
    ann.page.evaluate("localStorage.setItem('diffugen-reviewer', 'ben')")
    ann.be_ready()
    ann.page.locator("#modal img[src$='icons/reject.svg']").click()
    until(lambda: len(review.votes()) == 2)
    assert (review.votes()[1].verdict, review.votes()[1].reviewer) == ("reject", "ben")
    assert review.end(signal.SIGINT) == 130


def test_kills_lose_no_verdict(tmp_path: Path, browser: Browser, start: Start) -> None:
    """Ctrl-C says what to run next; a killed database ends the session with one message; a killed command."""
    run = make_run(tmp_path / "piano run", range(20))
    review = start(run)
    ann = Reviewer(browser, review.url())
    ann.open_image()
    ann.press("2")
    ann.page.wait_for_selector("text=/Model is right/")
    review.end(signal.SIGKILL)  # at once: the vote may not be in the run yet
    ann.page.close()

    review = start(run)
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

    review = start(run)
    review.url()
    assert verdicts(review) == ["model", "reject"]
    assert review.end(signal.SIGINT) == 130
    assert "To go on with the run: diffugen teach" in " ".join(review.said.split())


def test_a_killed_browser_ends_nothing_and_a_killed_server_the_session(
    tmp_path: Path, browser: Browser, start: Start
) -> None:
    review = start(make_run(tmp_path / "piano run", range(20)))
    url, before = review.url(), set(psutil.Process().children(recursive=True))
    with second(browser) as other:
        ann = Reviewer(other, url)
        ann.open_image()
        ann.press("2")
        ann.page.wait_for_selector("text=/Model is right/")
        started = set(psutil.Process().children(recursive=True)) - before
        for process in (killed := [one for one in started if "chrom" in one.name()]):
            process.kill()
        assert killed and not psutil.wait_procs(killed, timeout=WAIT_SECONDS)[1]
    assert verdicts(review) == ["model"] and review.process.poll() is None

    ben = Reviewer(browser, url, "ben")
    ben.open_image()
    ben.press("4")
    ben.page.wait_for_selector("text=/Rejected/")
    (server,) = [
        one
        for one in psutil.Process(review.process.pid).children(recursive=True)
        if "guard import serve" in " ".join(one.cmdline()) and one.cmdline()[1] == "-c"
    ]
    server.kill()
    assert review.end() == 2
    said = " ".join(review.said.split())
    assert "the App's server has ended" in said and "run the same command" in said
    assert "Traceback" not in said
    assert verdicts(review) == ["model", "reject"]
    ben.page.close()


@contextmanager
def second(browser: Browser) -> Iterator[Browser]:
    """Another browser, which may be killed."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    opened = browser.browser_type.launch(executable_path=path, args=list(ARGUMENTS))
    try:
        yield opened
    finally:
        opened.close()


def test_hostile_words_are_shown_as_text(tmp_path: Path, browser: Browser, start: Start) -> None:
    run = make_run(tmp_path / "<b>'$run\" a.b ünï", [])
    with RunStore.open(run) as store:
        record = ImageRecord(Prompt(HOSTILE, ()), seed=1, size_wh=made.SIZE_WH, model="miniature")
        store.add_image(record, child.make_rgb(record), HeatMaps(record.id, made.SIZE_WH, (), {}), 1.0)
        attention = made.instances_of((HOSTILE, made.box_mask(2, 3, 20, 20), 0.5))
        model = made.instances_of(("car", made.box_mask(25, 3, 35, 20), 0.5))
        made.put_labels(store, record, attention=attention, model=model)
        store.put_disagreements(0, compare(record.id, attention, model).disagreements)
    review = start(run, "--reviewer", HOSTILE)
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
    panel = ann.page.locator("#diffugen-review").first
    until(lambda: HOSTILE in panel.inner_text() and "car 0.50" in panel.inner_text())
    assert panel.locator("script, img[src=x]").count() == 0
    ann.press("u")
    until(lambda: len(review.votes()) == 2)
    first = review.votes()[0]
    assert first.reviewer == HOSTILE.strip() and alerts == []
    assert made.sure(first.instances).class_names == (HOSTILE,)
    assert review.end(signal.SIGINT) == 130
