"""Take the pictures of a review in docs/pictures: the FiftyOne App, and the page on a desktop and on a phone.

    python docs/review_pictures.py runs/miniature

Needs a run with a review queue, of which it makes a copy, and Chromium.
"""

from __future__ import annotations

import shutil
import signal
import socket
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Page

from diffugen.review.static import write_static
from diffugen.run.store import RunStore
from tests.support.app import Review, Reviewer
from tests.support.browser import chromium

PICTURES = Path(__file__).parent / "pictures"
DESKTOP, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}


def keep(page: Page, name: str) -> None:
    """Keep what a page shows after a while: drawing says nothing when it is done."""
    page.wait_for_timeout(5000)
    page.screenshot(path=PICTURES / f"review-{name}.png")


def app(browser: Browser, run: Path) -> None:
    """Take the App's grid, an image, the panel, and the tools for masks."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with Review(run, port) as review:
        session(Reviewer(browser, review.url()))
        review.end(signal.SIGINT)


def session(reviewer: Reviewer) -> None:
    """Take what a reviewer sees, one after another."""
    page = reviewer.page
    page.wait_for_function("() => document.body.dataset.reviewBusy === ''", timeout=120_000)
    keep(page, "app-queue")
    reviewer.open_image()
    keep(page, "app-image")
    page.locator("[data-cy=panel-tab-diffugen-review]").click()
    keep(page, "app-panel")
    page.locator("[data-cy=panel-tab-fo-sample-modal-plugin]").click()
    reviewer.press("e")
    keep(page, "app-masks")


def static(browser: Browser, run: Path) -> None:
    """Take the page: a desktop in light and dark, and a phone."""
    with RunStore.open(run) as store:
        address = write_static(store, run / "review").as_uri()
    for name, size, scheme in (
        ("page", DESKTOP, "light"),
        ("page-dark", DESKTOP, "dark"),
        ("page-phone", PHONE, "light"),
    ):
        page = browser.new_context(viewport=size, color_scheme=scheme).new_page()  # type: ignore[arg-type]
        page.goto(address)
        keep(page, name)


def main() -> None:
    """Take all pictures."""
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        run = Path(folder) / Path(sys.argv[1]).resolve().name
        shutil.copytree(sys.argv[1], run)
        static(browser, run)
        app(browser, run)


if __name__ == "__main__":
    main()
