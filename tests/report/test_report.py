"""A report says what the ledger says, of whole runs, beginnings and ruins, in two forms, and nothing gets in
or out of it."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import threading
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from diffugen.comparison.metrics import label_quality, reliability
from diffugen.errors import DiffugenError, StoreError
from diffugen.labels.shapes import encode
from diffugen.records import Decision, Disagreement, Instances, LabelSet, Phrase, Prompt
from diffugen.report import gallery as report_gallery
from diffugen.report import quality as report_quality
from diffugen.report.blocks import Page, Paragraph, Section, Table, as_rate, as_seconds, as_value, listed
from diffugen.report.charts import Bars, Line, bar_chart, line_chart
from diffugen.report.facts import RunFacts
from diffugen.report.html import to_html
from diffugen.report.markdown import to_markdown
from diffugen.report.outcome import headline
from diffugen.report.survey import Cover, Survey, attribute_gaps
from diffugen.report.write import write_report
from diffugen.run.store import RunStore

child = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "support" / "store_child.py")))
SIZE_WH = child.SIZE_WH
SECTIONS = ["headline", "rounds", "labels", "disagreements", "gallery", "coverage", "time", "reproduce"]
VOID = {"meta", "img", "br", "hr", "link", "input"}
HOSTILE = "a <script>alert('x')</script> piano | [a](http://evil.example) `b` \"q\" & *c* <img src=//e> \x07 on a road"
CONFIG = {
    "name": "pianos",
    "seed": 7,
    "prompts": {"classes": {"piano": ["grand piano"]}, "negative": "</pre><script>"},
    "loop": {"rounds": 2, "patience": 2},
}


class PageReader(HTMLParser):
    """Reads a page as a browser would: fails on tags that do not fit, keeps text, attributes and tables."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.tables: dict[str, list[list[str]]] = {}
        self._rows: list[list[str]] | None = None
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self._rows = self.tables.setdefault(str(dict(attrs)["aria-label"]), [])
        elif self._rows is not None and tag == "tr":
            self._rows.append([])
        elif self._rows is not None and tag in ("td", "th"):
            self._rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"
        if tag == "table":
            self._rows = None

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data
        if self._rows is not None and {"td", "th"} & set(self.open):
            self._rows[-1][-1] += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def box(x0: int, y0: int, x1: int, y1: int) -> Any:
    mask = np.zeros((SIZE_WH[1], SIZE_WH[0]), dtype=np.bool_)
    mask[y0:y1, x0:x1] = True
    return encode(mask)


def objects(*boxes: tuple[int, int, int, int], score: float = 0.5, name: str = "piano") -> Instances:
    scores = np.linspace(score, score / 2, len(boxes))
    return Instances(SIZE_WH, (name,) * len(boxes), tuple(box(*one) for one in boxes), scores)


def add_images(store: RunStore, count: int, round: int = 0, text: str | None = None) -> list[Any]:
    records = []
    for number in range(count):
        prompt = Prompt(
            text or f"a grand piano on a wet road, {number}",
            (Phrase("piano", "piano"), Phrase("road", None)),
            attributes={"time": "night" if number % 2 else "day"},
        )
        record = replace(child.make_record(1000 * round + number, round=round), prompt=prompt)
        store.add_image(record, child.make_rgb(record), child.make_heat_maps(record), seconds=1.5)
        records.append(record)
    return records


def add_labels(
    store: RunStore, records: list[Any], source: str, method: str, round: int, shift: int = 0
) -> None:
    store.put_labels(
        LabelSet(
            record.id,
            source,
            objects((2 + shift + index % 3, 3, 20, 15), score=0.4 + 0.05 * index),
            method,
            round,
        )
        for index, record in enumerate(records)
    )


def measured(ap50: float, ap50_95: float, checkpoint: str = "base") -> dict[str, Any]:
    return {
        "truth": "piano-on-road",
        "images": 50,
        "checkpoint": checkpoint,
        "mask": {"ap50": ap50, "ap50_95": ap50_95},
        "box": {"ap50": ap50 + 0.01, "ap50_95": ap50_95 + 0.01},
    }


def finish_round(store: RunStore, round: int, promoted: bool, ap50: float) -> None:
    weights = {"box_size": 1.0, "contrast": 3.0 if round else 1.0}
    for name, result in {
        "generate": {"images": 8},
        "label": {
            "method": "otsu",
            "images": 8,
            "objects": 8,
            "settings": {"groups": {"*": 1.0}},
            "weights": weights,
        },
        "relabel": {"method": f"model-{round}", "checkpoint": "x", "images": 8, "objects": 8},
        "compare": {"images": 8, "agreements": 5, "kinds": {"overlooked": 2, "badly_located": 1}},
        "review": {"mode": "none", "queue": 3, "decisions": {}},
        "tune": {
            "adopted": True,
            "evidence": "agreement",
            "images": 8,
            "trials": 11,
            "before": {"settings": {"threshold": "otsu", "accept": 0.0}, "weights": weights, "value": 0.5},
            "after": {
                "settings": {"threshold": 0.375, "accept": 0.0},
                "weights": {"box_size": 1.0, "contrast": 3.0},
            },
            "held_out": {"before": 0.51234, "after": 0.61234},
        },
        "dataset": {
            "folder": f"datasets/round-{round}",
            "train": 23 + round,
            "val": 4,
            "known": 0,
            "by_origin": {"human": 3, "agreed": 17},
            "left_out": {"disagreement": 6},
        },
        "train": {
            "checkpoint": f"training/round-{round}/best",
            "start": "base",
            "epochs": 3,
            "image_size": 64,
        },
        "promote": {
            "promoted": promoted,
            "checkpoint": f"training/round-{round}/best",
            "evidence": "agreed",
            "images": 4,
            "candidate": {"ap50": 0.71, "ap50_95": 0.41},
            "incumbent": {"ap50": 0.31, "ap50_95": None},
        },
        "evaluate": measured(ap50, ap50 / 2, f"training/round-{round}/best"),
    }.items():
        store.finish_stage(round, name, result, seconds=2.0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two rounds, the second not promoted, with labels of all sources; closed, and not to be
    changed."""
    folder = tmp_path_factory.mktemp("runs") / "pianos"
    with RunStore.create_or_open(folder, config=CONFIG) as store:
        for round in range(2):
            records = add_images(store, 8, round)
            add_labels(store, records, "attention", "otsu", round)
            add_labels(store, records, "model", f"model-{round}", round, shift=4)
            store.put_disagreements(
                round,
                [
                    Disagreement(records[3].id, "badly_located", 0.8, 0, 0, 0.2),
                    Disagreement(records[4].id, "overlooked", 0.7, None, 0, 0.1),
                    Disagreement(records[5].id, "spurious", 0.6, 0, None, 0.0),
                ],
            )
            edited = objects((4, 3, 20, 15), (25, 2, 35, 20), score=1.0)
            store.add_decisions(
                [
                    Decision(records[3].id, "edited", edited, "ann", round),
                    Decision(records[0].id, "reject", None, "ann", round),
                ]
            )
            finish_round(store, round, promoted=round == 0, ap50=0.4375)
        store.finish_stage(0, "evaluate-base", measured(0.125, 0.0625), seconds=1.0)
        store.finish_stage(1, "evaluate-reference", measured(0.875, 0.5), seconds=9.0)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "pianos", ignore=shutil.ignore_patterns("report")))


@pytest.fixture(scope="module")
def report(finished: Path) -> tuple[str, PageReader, str]:
    """The run's page, the page as read, and its Markdown."""
    return written(finished)


def written(folder: Path, **options: Any) -> tuple[str, PageReader, str]:
    """Write a run's report; return the page, the page as read, and the Markdown."""
    with RunStore.open(folder, readonly=True) as store:
        path = write_report(store, **options)
    assert path == folder / "report" / "index.html"
    page = path.read_text(encoding="utf-8")
    return page, PageReader(page), path.with_name("report.md").read_text(encoding="utf-8")


def markdown_tables(text: str) -> dict[str, list[list[str]]]:
    """All tables of a Markdown file by their title, as a reader sees them."""
    tables: dict[str, list[list[str]]] = {}
    for title, body in re.findall(r"^\*\*(.+)\*\*\n\n((?:\|.*\n)+)", text, flags=re.MULTILINE):
        rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in body.splitlines()]
        assert len({len(row) for row in rows}) == 1, f"table {title} has rows of several lengths"
        tables[plain(title)] = [[plain(cell.strip()) for cell in row] for row in [rows[0], *rows[2:]]]
    return tables


def plain(markdown: str) -> str:
    is_code = markdown.startswith("`")
    text = markdown.strip("`").replace(r"\|", "|") if is_code else re.sub(r"\\(.)", r"\1", markdown)
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


def row(table: list[list[str]], first: str) -> dict[str, str]:
    """One row of a table by the columns' names."""
    [found] = [one for one in table[1:] if one[0] == first]
    return dict(zip(table[0], found, strict=True))


# ------------------------------------------------------------------------------------------------ the page


def test_page_is_whole_and_loads_nothing(report: tuple[str, PageReader, str]) -> None:
    text, page, _ = report
    assert [attrs["id"] for attrs in page.of("section")] == SECTIONS
    assert not page.of("script") and not page.of("link") and not page.of("iframe")
    assert all(str(attrs["src"]).startswith("data:image/jpeg;base64,") for attrs in page.of("img"))
    assert {str(attrs["href"])[0] for attrs in page.of("a")} == {"#"}
    assert {str(attrs["href"])[1:] for attrs in page.of("a")} == set(SECTIONS)
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert "url(" not in text and "@import" not in text and "http://" not in text and "https://" not in text
    assert "default-src 'none'" in text and "prefers-color-scheme: dark" in text and "@media print" in text


def test_every_picture_and_chart_has_words(report: tuple[str, PageReader, str]) -> None:
    _, page, _ = report
    assert page.of("img") and all(attrs["alt"] for attrs in page.of("img"))
    charts = [attrs for attrs in page.of("svg") if attrs.get("role") == "img"]
    assert len(charts) >= 6
    assert all(len(str(attrs["aria-label"])) > 40 for attrs in charts)
    [ap] = [
        str(attrs["aria-label"]) for attrs in charts if str(attrs["aria-label"]).startswith("mask AP50 on")
    ]
    assert "0.125 at base" in ap and "0.438 at round 1" in ap and "exact labels: 0.875" in ap


def test_numbers_are_those_of_the_ledger(finished: Path, report: tuple[str, PageReader, str]) -> None:
    _, page, _ = report
    with RunStore.open(finished, readonly=True) as store:
        for round in (0, 1):
            ledger = {
                name: store.stage_done(round, name) or {} for name in ("dataset", "promote", "evaluate")
            }
            [title] = [title for title in page.tables if title.startswith("Rounds (")]
            shown = row(page.tables[title], str(round))
            assert shown["new images"] == "8"
            assert shown["train"] == str(ledger["dataset"]["train"]) and shown["val"] == str(
                ledger["dataset"]["val"]
            )
            assert shown["agreed"] == "17" and shown["waiting"] == "6"
            assert shown["AP50"] == f"{ledger['evaluate']['mask']['ap50']:.3f}"
            assert shown["AP50-95"] == f"{ledger['evaluate']['mask']['ap50_95']:.3f}"
            assert shown["box AP50"] == f"{ledger['evaluate']['box']['ap50']:.3f}"
            assert shown["candidate"] == "0.710 / 0.410" and shown["incumbent"] == "0.310 / -"
            assert shown["promoted"] == ("yes" if ledger["promote"]["promoted"] else "no")
    final = row(page.tables["Detectors on piano-on-road"], "final")
    assert (final["mask AP50"], final["of exact, AP50"], final["of exact, AP50-95"]) == (
        "0.438",
        "50%",
        "44%",
    )
    kinds = row(page.tables["Disagreements by kind and round"], "0")
    assert (kinds["overlooked"], kinds["badly located"], kinds["all"]) == ("2", "1", "3")
    assert kinds["disagreements per 100 images"] == "37.5"
    tuning = row(page.tables["Tuning (adopted only if better on images held out from it)"], "1")
    assert (tuning["held-out value before"], tuning["held-out value after"]) == ("0.512", "0.612")
    verdicts = row(page.tables["Decisions by verdict (the newest of each image)"], "1")
    assert (verdicts["edited"], verdicts["rejected"], verdicts["all"]) == ("1", "1", "2")
    trained = row(page.tables["Images that each round trained on, by the origin of their labels"], "1")
    assert (trained["human"], trained["model"], trained["left out: disagreement"]) == ("3", "0", "6")


def test_quality_is_what_metrics_say(finished: Path, report: tuple[str, PageReader, str]) -> None:
    _, page, _ = report
    with RunStore.open(finished, readonly=True) as store:
        latest = {
            source: {one.image_id: one.instances for one in store.latest_labels(source)}
            for source in ("attention", "model", "human")
        }
        decided = {one.image_id for one in store.decisions()}
    for evidence in ("human", "model"):
        ids = [one for one in latest[evidence] if evidence == "human" or one not in decided]
        pairs = [(latest[evidence][one], latest["attention"][one]) for one in ids]
        quality, trust = label_quality(pairs), reliability(pairs)
        [shown] = [
            one
            for one in page.tables["Attention labels against the evidence"]
            if one[0] == f"{evidence} labels"
        ]
        assert shown[2:4] == [str(len(ids)), "piano"]
        assert shown[-3:] == [
            f"{value:.3f}" for value in (quality.pixel_iou, quality.label_iou, quality.object_iou)
        ]
        [scored] = [
            one for one in page.tables["Score against the evidence"] if one[0] == f"{evidence} labels"
        ]
        assert scored[2:4] == [str(trust.count), as_rate(trust.spearman)]
    assert len(decided) == 4 and "agreement, not accuracy" in page.text


def test_both_forms_have_the_same_tables(finished: Path, report: tuple[str, PageReader, str]) -> None:
    _, page, text = report
    tables = markdown_tables(text)
    assert tables.keys() == page.tables.keys()
    for title, rows in page.tables.items():
        assert tables[title] == rows, title
    shown = re.findall(r"!\[.*\]\((.+)\)", text)
    assert shown and set(shown) == {path.name for path in (finished / "report").glob("*.png")}


def test_headline_says_what_happened(report: tuple[str, PageReader, str]) -> None:
    _, page, text = report
    for said in (page.text, text.replace("\\", "")):
        assert "mask AP50 rose from 0.125 to 0.438 (+0.312), 50% of what exact labels give." in said
        assert "A new detector was promoted in round 0, not in round 1." in said
        assert "Promotion never looked at the truth" in said
        assert "labels on which attention and model agree" in said
        assert "training/round-0/best" in said


def test_queue_leaves_out_what_is_decided(report: tuple[str, PageReader, str]) -> None:
    _, page, _ = report
    queue = page.tables["Look at these next: head of round 1's queue"]
    assert [one[2] for one in queue[1:]] == ["overlooked", "spurious"]
    assert queue[1][4] == "model piano 0.600" and queue[2][4] == "attention piano 0.650"
    assert "4 images with a disagreement, of all rounds" in page.text


# ------------------------------------------------------------------------------------------------ beginnings


def test_empty_run(tmp_path: Path) -> None:
    RunStore.create_or_open(tmp_path / "new", config=None).close()
    _, page, text = written(tmp_path / "new")
    assert [attrs["id"] for attrs in page.of("section")] == SECTIONS
    assert "This run is empty." in page.text and "made without a configuration" in page.text
    assert page.text.count(f"diffugen generate --run {tmp_path / 'new'}") >= 3
    assert (
        "nan" not in page.text.lower().replace("finance", "")
        and markdown_tables(text).keys() == page.tables.keys()
    )


def test_run_with_attention_labels_only(tmp_path: Path) -> None:
    folder = tmp_path / "some"
    with RunStore.create_or_open(folder, config=CONFIG) as store:
        add_labels(store, add_images(store, 5), "attention", "otsu", 0)
        _, page, _ = written(folder)  # a writer is at work
    assert "This run has 5 images, with attention labels, and no detector." in page.text
    missing = [attrs for attrs in page.of("p") if attrs.get("class") == "missing"]
    assert len(missing) == 6
    assert (
        f"diffugen bootstrap --run {folder}" in page.text and f"diffugen review --run {folder}" in page.text
    )
    assert "best and worst go by the score alone" in page.text
    covered = {one[1]: one for one in page.tables["Images by attribute of their prompt"]}
    assert covered["night"][2:] == ["2", "100%", "0.500", "-", "-"]
    assert covered["day"][2:] == ["3", "100%", "0.500", "-", "-"]
    assert (
        row(page.tables["Time by stage and round (an image: of all images of the run)"], "generate")[
            "round 0"
        ]
        == "7.5 s"
    )


def test_images_without_labels(tmp_path: Path) -> None:
    with RunStore.create_or_open(tmp_path / "raw", config=CONFIG) as store:
        add_images(store, 2)
    _, page, _ = written(tmp_path / "raw")
    assert "2 images, not labelled yet" in page.text and "diffugen label --run" in page.text
    assert not page.of("img")


# ------------------------------------------------------------------------------------------------ bad weather


def test_hostile_words_stay_words(tmp_path: Path) -> None:
    with RunStore.create_or_open(tmp_path / "bad", config=CONFIG) as store:
        records = add_images(store, 3, text=HOSTILE)
        add_labels(store, records, "attention", "<b>otsu", 0)
        add_labels(store, records, "model", "m", 0, shift=9)
        store.put_disagreements(0, [Disagreement(records[1].id, "badly_located", 0.5, 0, 0, 0.3)])
        store.finish_stage(
            0, "evaluate", {**measured(0.5, 0.25), "truth": "<i onload=x>truth", "checkpoint": "a|b"}, 1.0
        )
    text, page, markdown = written(tmp_path / "bad")
    assert not page.of("script") and not page.of("b") and not page.of("i")
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert "</pre><script>" in page.text  # the configuration, shown as it is
    assert HOSTILE.replace("\x07", "\ufffd") in page.text and "\x07" not in text
    assert markdown_tables(markdown).keys() == page.tables.keys()
    outside = re.sub(r"^```.*?^```", "", markdown, flags=re.MULTILINE | re.DOTALL)
    assert "<" not in outside
    assert all(link.startswith("picture-") for link in re.findall(r"(?<!\\)\]\(([^)]*)", outside))


def test_missing_files_leave_gaps(run: Path) -> None:
    for path in [*(run / "heatmaps").iterdir(), *list((run / "images").iterdir())[:8]]:
        path.unlink()
    _, page, _ = written(run)
    absent = [attrs for attrs in page.of("span") if attrs.get("class") == "absent"]
    shown = [attrs for attrs in page.of("figure") if attrs.get("class") == "shown"]
    assert len(page.of("img")) + len(absent) == 4 * len(shown)
    assert len(absent) >= len(shown) and page.of("img")


@pytest.mark.parametrize(
    "result", [{}, {"mask": None}, {"mask": {"ap50": None, "ap50_95": float("nan")}}, {"mask": 3}]
)
def test_stages_that_kept_little(tmp_path: Path, result: dict[str, Any]) -> None:
    with RunStore.create_or_open(tmp_path / "odd", config={"prompts": None, "loop": 4}) as store:
        add_images(store, 1)
        for name in (
            "label",
            "relabel",
            "compare",
            "tune",
            "dataset",
            "train",
            "promote",
            "evaluate",
            "evaluate-base",
        ):
            store.finish_stage(0, name, result, seconds=0.0)
    _, page, text = written(tmp_path / "odd")
    assert [attrs["id"] for attrs in page.of("section")] == SECTIONS
    assert "nan" not in text and "None" not in text and "None" not in page.text


# ------------------------------------------------------------------------------------------------ writing


def test_same_run_same_bytes_and_no_leftovers(run: Path) -> None:
    def files() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (run / "report").iterdir()}

    written(run)
    first = files()
    written(run)
    assert files() == first
    written(run, gallery=1)
    assert len(files()) < len(first)
    assert all(name in ("index.html", "report.md") or name.startswith("picture-") for name in files())


def test_a_failed_report_leaves_the_old_page(run: Path) -> None:
    page, _, _ = written(run)
    with RunStore.open(run) as store:
        store.finish_stage(1, "evaluate", measured(0.9, 0.8), 1.0)
    (run / "report" / "report.md").unlink()
    (run / "report" / "report.md").mkdir()
    with (
        RunStore.open(run, readonly=True) as store,
        pytest.raises(StoreError, match="cannot read or write run"),
    ):
        write_report(store)
    assert (run / "report" / "index.html").read_text(encoding="utf-8") == page


def test_a_reader_never_sees_half_a_page(run: Path) -> None:
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
        for gallery in (1, 3, 2):
            written(run, gallery=gallery)
    finally:
        done.set()
        reader.join()
    assert not broken and sizes


@pytest.mark.parametrize(("gallery", "figures"), [(0, 0), (1, 3), (2, 6)])
def test_gallery_size(run: Path, gallery: int, figures: int) -> None:
    _, page, _ = written(run, gallery=gallery)
    assert len([attrs for attrs in page.of("figure") if attrs.get("class") == "shown"]) == figures


def test_gallery_refuses_fewer_than_none(run: Path) -> None:
    with RunStore.open(run, readonly=True) as store, pytest.raises(DiffugenError, match="-1 images"):
        write_report(store, gallery=-1)


def test_page_stays_small(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_gallery, "MOST_BYTES", 30_000)
    _, page, _ = written(run)
    assert "left out to keep this page small" in page.text
    assert sum(len(str(attrs["src"])) for attrs in page.of("img")) < 2 * 30_000 * 4 / 3


def test_sample_is_said(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_quality, "MOST_IMAGES", 3)
    steps: list[tuple[int, int]] = []
    _, page, _ = written(run, on_progress=lambda done, total: steps.append((done, total)))
    assert "Measured on a random sample (seed 0): 3 of 12 images with model labels." in page.text
    assert (5, 5) in steps and all(done <= total for done, total in steps)


def test_first_and_newest_settings_are_compared_on_the_same_images(run: Path) -> None:
    with RunStore.open(run) as store:
        records = list(store.records())
        add_labels(store, records[:10], "attention", "tuned", 1, shift=4)
        again = store.stage_done(1, "label") or {}
        store.finish_stage(1, "label", {**again, "method": "tuned"}, 1.0)
    _, page, _ = written(run)
    shown = [one for one in page.tables["Attention labels against the evidence"] if one[0] == "model labels"]
    assert [one[1:3] for one in shown] == [["first settings", "7"], ["newest", "7"]]
    assert float(shown[1][-1]) > float(shown[0][-1])  # the new labels lie where the model's do


# ------------------------------------------------------------------------------------------------ parts


@pytest.mark.parametrize(
    ("results", "loop", "expected"),
    [
        (
            {(0, "evaluate-base"): 0.5, (0, "evaluate"): 0.25, (0, "promote"): True},
            {},
            "fell from 0.500 to 0.250 (-0.250)",
        ),
        (
            {(0, "evaluate-base"): 0.5, (0, "evaluate"): 0.502, (0, "promote"): True},
            {},
            "did not change: 0.500 before, 0.502",
        ),
        (
            {(0, "evaluate"): 0.25, (0, "promote"): True},
            {},
            "mask AP50 is 0.250. A new detector was promoted in round 0",
        ),
        (
            {(0, "promote"): False},
            {"patience": 1},
            "No new detector was promoted in 1 round. The loop stopped after round 0: 1",
        ),
        (
            {(0, "promote"): True, (1, "promote"): True},
            {"rounds": 2},
            "The loop has done the 2 rounds that it was asked for.",
        ),
        (
            {(0, "promote"): True, (1, "promote"): False},
            {"rounds": 3, "patience": 2},
            "Round 1 is the last so far.",
        ),
        (
            {(0, "promote"): True, (1, "label"): 1},
            {},
            "Round 1 is not finished: its stage relabel has not run.",
        ),
    ],
)
def test_verdict(results: dict[tuple[int, str], Any], loop: dict[str, int], expected: str) -> None:
    kept: dict[tuple[int, str], dict[str, Any]] = {}
    for (round, stage), value in results.items():
        kept[round, stage] = {"promoted": value} if stage == "promote" else measured(value, value)
    rounds = {round: {"images": 1, "label_sets": {}} for round in {round for round, _ in kept}}
    facts = RunFacts(Path("runs/x"), {"loop": loop}, {"rounds": rounds, "images": 1}, kept)
    lead = headline(facts, Survey()).blocks[0]
    assert isinstance(lead, Paragraph) and expected in str(lead.parts[0])


@pytest.mark.parametrize(
    ("validation", "evidence", "flatters"),
    [
        ("scenes", "validation", True),
        ("others", "validation", False),
        (None, "agreed", False),
        ("scenes", "human", False),
    ],
)
def test_promotion_on_the_truth_is_owned_up_to(validation: str | None, evidence: str, flatters: bool) -> None:
    kept: dict[tuple[int, str], dict[str, Any]] = {
        (0, "promote"): {"promoted": True, "checkpoint": "c", "evidence": evidence},
        (0, "evaluate"): measured(0.5, 0.5),
    }
    config = {"loop": {"truth": "scenes", "validation": validation}}
    facts = RunFacts(Path("runs/x"), config, {"rounds": {0: {}}, "images": 1}, kept)
    said = " ".join(
        str(part) for block in headline(facts, Survey()).blocks[:2] for part in getattr(block, "parts", ())
    )
    assert ("these numbers flatter" in said, "Promotion never looked at the truth" in said) == (
        flatters,
        not flatters,
    )


@pytest.mark.parametrize(
    ("round", "done", "expected"),
    [
        (0, "", "generate"),
        (0, "generate label", "dataset"),
        (1, "generate label", "relabel"),
        (1, "label promote", "evaluate"),
    ],
)
def test_next_stage(round: int, done: str, expected: str) -> None:
    facts = RunFacts(
        Path("runs/x"), None, {"rounds": {round: {}}}, {(round, stage): {} for stage in done.split()}
    )
    assert facts.next_stage(round) == expected


@pytest.mark.parametrize(
    ("images", "agreed", "stands_out"),
    [(19, 0.0, False), (100, 0.45, False), (100, 0.39, True), (25, 0.35, False)],
)
def test_small_or_chance_gaps_are_not_reported(images: int, agreed: float, stands_out: bool) -> None:
    def cover(count: int, share: float) -> Cover:
        return Cover(images=count, relabelled=count, seen=count, contested=round(count * (1 - share)))

    survey = Survey(overall=cover(1000, 0.5))
    survey.attributes["time"] = {"day": cover(1000 - images, 0.5), "night": cover(images, agreed)}
    assert [gap.name for gap in attribute_gaps(survey).values()] == (["time night"] if stands_out else [])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "-"),
        (0.0213, "21.3 ms"),
        (0.5, "0.5 s"),
        (12.34, "12.3 s"),
        (89.9, "89.9 s"),
        (600, "10 min"),
        (86400, "24 h"),
    ],
)
def test_durations(value: float | None, expected: str) -> None:
    assert as_seconds(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.1 + 0.2, "0.3"),
        ({"up@*": 1.0}, "up@*: 1"),
        ([0.0, 1.0], "0, 1"),
        (None, "-"),
        (True, "True"),
        ("otsu", "otsu"),
    ],
)
def test_settings(value: Any, expected: str) -> None:
    assert as_value(value) == expected


def test_lists() -> None:
    assert [listed(words) for words in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == [
        "",
        "a",
        "a and b",
        "a, b and c",
    ]


@pytest.mark.parametrize("top", [0.0, 1e-4, 0.037, 0.512, 0.99, 1.0, 7.0, 86_400.0])
def test_charts_stay_inside_their_frame(top: float) -> None:
    points = tuple((float(x), top * x / 3) for x in range(4))
    chart = line_chart(
        "t",
        x_label="x",
        y_label="y",
        x_ticks=[(x, str(x)) for x, _ in points],
        lines=[Line("<a>", points)],
        levels=[("base", top)],
        with_values=True,
    )
    bars = bar_chart(
        "t",
        x_label="x",
        groups=["a", "b"],
        bars=[Bars("k", (top, None)), Bars("l", (0.0, top))],
        stacked=True,
    )
    for svg in (chart.svg, bars.svg):
        width, height = map(float, re.findall(r"[\d.]+", str(PageReader(svg).of("svg")[0]["viewbox"]))[2:])
        for tag, attrs in PageReader(svg).tags:
            for name, limit in (("x", width), ("cx", width), ("y", height), ("cy", height)):
                if attrs.get(name) is not None:
                    assert 0 <= float(str(attrs[name])) <= limit, (tag, attrs)


def test_values_and_names_of_a_chart_are_words_too() -> None:
    chart = bar_chart("t", x_label="n", groups=["round 0"], bars=[Bars("a & b", (3.0,)), Bars("c", (None,))])
    assert chart.description == "n. round 0: a & b 3.000, c -."
    assert "a &amp; b 3.000" in chart.svg


@pytest.mark.parametrize(
    "text", ["# x", "1. x", "- x", "a_b _c_ *d*", "|", "a\nb", "<b>", "`", "$x$", "~~x~~", "\\", "-"]
)
def test_any_cell_survives_both_forms(text: str) -> None:
    page = Page(
        "t", ("s",), (Section("k", "K", (Table("T", ("a", "b"), ((text, "1"),)), Paragraph((text,)))),)
    )
    markdown, _ = to_markdown(page)
    expected = re.sub(r"\s+", " ", text)
    assert markdown_tables(markdown)["T"][1] == [expected.strip(), "1"]
    assert PageReader(to_html(page)).tables["T"][1] == [text, "1"]
    last = markdown.rstrip("\n").rsplit("\n\n", 1)[1]
    assert not re.match(r"(#|-|\d+\.) ", last) and plain(last) == expected


def test_config_is_shown_whole(report: tuple[str, PageReader, str]) -> None:
    _, page, text = report
    [shown] = re.findall(r"^```json\n(.*)\n```$", text, flags=re.MULTILINE | re.DOTALL)
    assert json.loads(shown) == CONFIG
    assert (
        json.dumps(CONFIG["seed"])
        == row(page.tables["Seeds, and versions installed where this report was written"], "seed of the run")[
            "value"
        ]
    )
