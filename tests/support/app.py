"""A review in the FiftyOne App, in a process of its own, as a person starts it; and a page to drive it by."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page

from diffugen.records import Decision
from diffugen.run.store import RunStore
from tests.support.children import WAIT_SECONDS, restore_signals
from tests.support.store_child import SIZE_WH


class Review:
    """``diffugen review`` on a run, and what it has said so far.

    Args:
        run: The run.
        port: Port of the App.
        more: Further options.
    """

    def __init__(self, run: Path, port: int, *more: str) -> None:
        self.run = run
        self.log = run.parent / f"{run.name}-review-{port}.log"
        hidden = ("DISPLAY", "WAYLAND_DISPLAY")
        environment = {key: value for key, value in os.environ.items() if key not in hidden}
        command = [sys.executable, "-m", "diffugen.cli", "review", str(run), "--port", str(port), *more]
        with self.log.open("w") as file:
            self.process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, env=environment, preexec_fn=restore_signals
            )

    @property
    def said(self) -> str:
        """Everything that it has printed."""
        return self.log.read_text(encoding="utf-8")

    def url(self) -> str:
        """Wait for the address, and return it."""

        def found() -> re.Match[str] | None:
            assert self.process.poll() is None, self.said
            return re.search(r"http://127\.0\.0\.1:\d+/\?token=\S+", self.said)

        return str(until(found).group(0))

    def votes(self) -> list[Decision]:
        """Return all votes that the run has."""
        with RunStore.open(self.run, readonly=True) as store:
            return list(store.votes())

    def __enter__(self) -> Review:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait(timeout=WAIT_SECONDS)

    def end(self, how: signal.Signals | None = None) -> int:
        """Send a signal, unless it ends by itself, and return its exit code."""
        if how is not None:
            self.process.send_signal(how)
        return self.process.wait(timeout=WAIT_SECONDS)


def until(look: Callable[[], Any]) -> Any:
    """Ask again and again until the answer is true, and return it."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not (found := look()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
    return found


class Reviewer:
    """A person at a browser.

    Args:
        browser: The browser.
        url: Address of the App.
        name: What the person is called; empty for the run's own.
    """

    def __init__(self, browser: Browser, url: str, name: str = "") -> None:
        self.page: Page = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
        if name:
            self.page.add_init_script(f"localStorage.setItem('diffugen-reviewer', {name!r})")
        self.page.set_default_timeout(1000 * WAIT_SECONDS)  # on a busy machine, everything takes longer
        self.page.goto(url)

    def open_image(self) -> None:
        """Open the first undecided image; keys are heard once the plugin is there."""
        self.be_ready()
        if not self.page.locator("[data-cy=modal]").is_visible():  # after a reload it may be open already
            self.press("n")
        self.page.wait_for_selector("[data-cy=modal]")

    def press(self, key: str) -> None:
        """Press a key once the App hears it: not before the next image is there."""
        self.be_ready()
        self.page.keyboard.press(key)

    def open_id(self) -> str:
        """Return the id of the open sample; empty if none is open."""
        return str(self.page.evaluate("new URLSearchParams(location.search).get('id') || ''"))

    def stroke(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Draw with the tool of the tab Annotate, from one point of the image to another, in its pixels."""
        image = self.page.locator("[data-cy=lighter-sample-image]")
        image.wait_for()  # the brush may be there before the image is
        box = image.bounding_box()
        assert box is not None
        width, height = SIZE_WH
        ends = [
            (box["x"] + x / width * box["width"], box["y"] + y / height * box["height"])
            for x, y in (start, end)
        ]
        self.page.mouse.move(*ends[0])
        self.page.mouse.down()
        self.page.mouse.move(*ends[1], steps=5)
        self.page.mouse.up()

    def be_ready(self) -> None:
        """Wait until the App hears keys: the plugin is there, and so is the next image."""
        self.page.wait_for_function("() => document.body?.dataset.reviewBusy === ''")
