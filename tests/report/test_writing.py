"""A report is written as a whole, the same for the same run, and stays small."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from diffugen.errors import StoreError
from diffugen.report import gallery, quality
from diffugen.report.write import write_report
from diffugen.run.results import Labelled
from diffugen.run.store import RunStore
from tests.report.samples import add_labels, evaluated, written
from tests.support.children import WAIT_SECONDS


def test_same_run_same_bytes_and_no_leftovers(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def files() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (run / "report").iterdir()}

    written(run)
    first = files()
    written(run)
    assert files() == first
    monkeypatch.setattr(gallery, "GROUP_SIZE", 1)
    written(run)
    assert len(files()) < len(first)
    assert all(name in ("index.html", "report.md") or name.startswith("picture-") for name in files())


def test_a_failed_report_leaves_the_old_page(run: Path) -> None:
    page, _, _ = written(run)
    with RunStore.open(run) as store:
        store.finish_stage(1, "evaluate", evaluated(0.9, 0.8), 1.0)
    (run / "report" / "report.md").unlink()
    (run / "report" / "report.md").mkdir()
    with (
        RunStore.open(run, readonly=True) as store,
        pytest.raises(StoreError, match="cannot read or write run"),
    ):
        write_report(store)
    assert (run / "report" / "index.html").read_text(encoding="utf-8") == page


def test_a_reader_never_sees_half_a_page(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(run)
    path, sizes, done = run / "report" / "index.html", set(), threading.Event()
    broken: list[str] = []

    def read() -> None:
        while not done.is_set():
            text = path.read_text(encoding="utf-8")
            sizes.add(len(text))
            if not (text.startswith("<!DOCTYPE html>") and text.endswith("</html>\n")):
                broken.append(text[-80:])

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for size in (1, 3, 2):
            monkeypatch.setattr(gallery, "GROUP_SIZE", size)
            written(run)
    finally:
        done.set()
        reader.join(timeout=WAIT_SECONDS)
    assert not broken and sizes


@pytest.mark.parametrize(("size", "figures"), [(1, 3), (2, 6)])
def test_gallery_size(run: Path, size: int, figures: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "GROUP_SIZE", size)
    _, page, _ = written(run)
    assert len(page.with_class("figure", "shown")) == figures


def test_page_stays_small(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "MOST_BYTES", 30_000)
    _, page, _ = written(run)
    assert "left out to keep this page small" in page.text
    assert sum(len(str(attrs["src"])) for attrs in page.of("img")) < 2 * 30_000 * 4 / 3


def test_sample_is_said(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "MOST_IMAGES", 3)
    steps: list[tuple[int, int]] = []
    _, page, _ = written(run, on_progress=lambda done, total: steps.append((done, total)))
    assert "Measured on a random sample (seed 0): 3 of 12 images with model labels." in page.text
    assert (5, 5) in steps and all(done <= total for done, total in steps)


def test_first_and_newest_settings_are_compared_on_the_same_images(run: Path) -> None:
    with RunStore.open(run) as store:
        records = list(store.records())
        add_labels(store, records[:10], "attention", "tuned", 1, shift=4)
        before = store.result(1, "label", Labelled)
        assert before is not None
        store.finish_stage(1, "label", replace(before, method="tuned"), 1.0)
    _, page, _ = written(run)
    compared = page.tables["Attention labels compared with the evidence"]
    shown = [one for one in compared if one[0] == "model labels"]
    assert [one[1:3] for one in shown] == [["first settings", "7"], ["newest", "7"]]
    assert float(shown[1][-1]) > float(shown[0][-1])  # the new labels lie where the model's do
