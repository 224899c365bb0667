"""What the tests of the review page share: a reviewer in a real browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Browser, Page

PAGE_SECONDS = 60
"""How long a page has for what it does at once when the machine is not busy."""


DESKTOP = {"width": 1440, "height": 900}
PHONE = {"width": 390, "height": 844}


class Reviewer:
    """A review page in a browser of its own memory; every error of its script fails the test."""

    def __init__(self, browser: Browser, address: str, *, phone: bool = False) -> None:
        self.context = browser.new_context(
            viewport=PHONE if phone else DESKTOP,  # type: ignore[arg-type]
            has_touch=phone,
            is_mobile=phone,
        )
        self.page: Page = self.context.new_page()
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on(
            "console", lambda message: self.errors.append(message.text) if message.type == "error" else None
        )
        self.page.on("dialog", lambda dialog: self.errors.append(dialog.message))
        self.page.goto(address)
        self.page.locator("main:visible").wait_for()  # both are hidden until the script runs

    def close(self) -> None:
        self.context.close()
        assert self.errors == []

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def until(self, condition: str) -> None:
        """Wait until an expression is true; Playwright's own way needs ``eval``, which the page forbids."""
        self.page.evaluate(
            f"""async () => {{
                const end = Date.now() + {PAGE_SECONDS * 1000};
                while (!({condition}) && Date.now() < end) await new Promise((go) => setTimeout(go, 20));
                if (!({condition})) throw new Error("it did not happen");
            }}"""
        )

    @property
    def rank(self) -> str:
        return self.page.locator("#rank").inner_text()

    @property
    def state(self) -> str:
        return self.page.locator("#state").inner_text()

    @property
    def count(self) -> str:
        return self.page.locator("#count").inner_text()

    def kept(self) -> list[bool]:
        """Whether each label of the image is kept, in the order of their numbers."""
        buttons = self.page.locator("#objects button").all()
        return [one.get_attribute("aria-pressed") == "true" for one in buttons]

    def place(self, side: str, x: float, y: float) -> tuple[float, float]:
        """Where a point of the image, in its pixels, is in the window."""
        found = self.page.evaluate(
            """([side, x, y]) => {
                const svg = document.querySelector(`figure[data-side="${side}"] svg`);
                const point = new DOMPoint(x, y).matrixTransform(svg.getScreenCTM());
                return [point.x, point.y];
            }""",
            [side, x, y],
        )
        return found[0], found[1]

    def click(self, side: str, x: float, y: float) -> None:
        self.page.mouse.click(*self.place(side, x, y))

    def stroke(self, side: str, *points: tuple[float, float]) -> None:
        first, *rest = points
        self.page.mouse.move(*self.place(side, *first))
        self.page.mouse.down()
        for point in rest:
            self.page.mouse.move(*self.place(side, *point))
        self.page.mouse.up()

    def saved(self, path: Path) -> dict[str, Any]:
        """Save the decisions as a file, and return what it says."""
        with self.page.expect_download() as download:
            self.page.locator(
                "#finish-save" if self.page.locator("#finish").is_visible() else "#save"
            ).click()
        download.value.save_as(path / download.value.suggested_filename)
        content: dict[str, Any] = json.loads((path / download.value.suggested_filename).read_text())
        return content


def mask_of(rle: dict[str, Any]) -> np.ndarray:
    """The bool (h, w) mask of an uncompressed COCO RLE."""
    values = np.arange(len(rle["counts"])) % 2 == 1
    height, width = rle["size"]
    return np.repeat(values, rle["counts"]).reshape(width, height).T
