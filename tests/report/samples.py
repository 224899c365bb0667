"""Made-up runs for the tests of the report, and readers of its two forms."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from diffugen.config import LabelSettings, ScoreWeights, kept_config
from diffugen.labels.shapes import encode
from diffugen.records import (
    Decision,
    Disagreement,
    ImageRecord,
    Instances,
    LabelSet,
    Phrase,
    Prompt,
    SeverityBin,
)
from diffugen.report.facts import RunFacts
from diffugen.report.write import write_report
from diffugen.run.results import (
    Chosen,
    Compared,
    Evaluated,
    Generated,
    HeldOut,
    Labelled,
    Precision,
    Promoted,
    Relabelled,
    Reviewed,
    RoundResults,
    Sifted,
    Trained,
    Tuned,
    TunedSide,
)
from diffugen.run.store import RunStore
from diffugen.run.summary import RoundSummary, RunSummary
from tests.support import store_child

SIZE_WH = store_child.SIZE_WH
SECTIONS = [
    "headline",
    "rounds",
    "arcs",
    "labels",
    "disagreements",
    "gallery",
    "coverage",
    "time",
    "reproduce",
]
WITHOUT_ARCS = [name for name in SECTIONS if name != "arcs"]
"""The sections of a run in which at most one part of the loop has done anything."""
VOID = {"meta", "img", "br", "hr", "link", "input"}
CONFIG: dict[str, Any] = {
    "name": "pianos",
    "seed": 7,
    "prompts": {
        "classes": {"piano": ["grand piano"]},
        "templates": ["a {piano} on a wet road"],
        "negative": "</pre><script>",
    },
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

    def with_class(self, tag: str, name: str) -> list[dict[str, str | None]]:
        return [attrs for attrs in self.of(tag) if attrs.get("class") == name]


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


# -------------------------------------------------------------------- runs


def objects(*boxes: tuple[int, int, int, int], score: float = 0.5, name: str = "piano") -> Instances:
    masks = np.zeros((len(boxes), SIZE_WH[1], SIZE_WH[0]), dtype=np.bool_)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    scores = np.linspace(score, score / 2, len(boxes))
    return Instances(SIZE_WH, (name,) * len(boxes), tuple(map(encode, masks)), scores)


def add_images(store: RunStore, count: int, round: int = 0, text: str | None = None) -> list[ImageRecord]:
    records = []
    for number in range(count):
        prompt = Prompt(
            text or f"a grand piano on a wet road, {number}",
            (Phrase("piano", "piano"), Phrase("road", None)),
            attributes={"time": "night" if number % 2 else "day"},
        )
        record = replace(store_child.make_record(1000 * round + number, round=round), prompt=prompt)
        store.add_image(record, store_child.make_rgb(record), store_child.make_heat_maps(record), seconds=1.5)
        records.append(record)
    return records


def add_labels(
    store: RunStore, records: list[ImageRecord], source: str, method: str, round: int, shift: int = 0
) -> None:
    boxes = ((2 + shift + index % 3, 3, 20, 15) for index in range(len(records)))
    store.put_labels(
        LabelSet(record.id, source, objects(box, score=0.4 + 0.05 * index), method, round)
        for index, (record, box) in enumerate(zip(records, boxes, strict=True))
    )


def evaluated(ap50: float, ap50_95: float, checkpoint: str = "base") -> Evaluated:
    mask, box = Precision(ap50, ap50_95), Precision(ap50 + 0.01, ap50_95 + 0.01)
    return Evaluated(truth="piano-on-road", checkpoint=checkpoint, images=50, mask=mask, box=box)


def labelled(round: int = 0, method: str = "otsu") -> Labelled:
    weights = ScoreWeights(contrast=3.0 if round else 1.0)
    return Labelled(method, 8, 8, LabelSettings(groups={"*": 1.0}), weights)


def compared() -> Compared:
    bins = SeverityBin(0.2, 0.4, 0.25, 10, 3), SeverityBin(0.8, 1.0, 0.9, 4, 4)
    return Compared(8, 5, {"overlooked": 2, "badly_located": 1}, 14, bins)


def tuned(round: int = 0) -> Tuned:
    before = TunedSide(LabelSettings(threshold="otsu"), ScoreWeights())
    after = TunedSide(LabelSettings(threshold=0.375), ScoreWeights(contrast=3.0))
    return Tuned(
        True,
        "it is better",
        "agreement",
        before,
        after,
        HeldOut(0.51234, 0.61234),
        HeldOut(0.125, 0.0625),
        8,
        11,
    )


def results_of(round: int, promoted: bool, ap50: float) -> dict[str, Any]:
    """Results of all stages of a round, in the order in which the loop finishes them."""
    checkpoint = f"training/round-{round}/best"
    origins, left_out = {"human": 3, "agreed": 17}, {"disagreement": 6, "noisy": 2}
    return {
        "generate": Generated(8),
        "label": labelled(round),
        "relabel": Relabelled(f"model-{round}", "x", 8, 8),
        "compare": compared(),
        "review": Reviewed("none", 3, {}),
        "tune": tuned(round),
        "sift": Sifted(9, ("a", "b"), {"piano": 2, "car": 1}),
        "dataset": Chosen(f"datasets/round-{round}", 23 + round, 4, 0, origins, left_out),
        "train": Trained(checkpoint, "base", 3, 64),
        "promote": Promoted(promoted, checkpoint, "agreed", 4, Precision(0.71, 0.41), Precision(0.31)),
        "evaluate": evaluated(ap50, ap50 / 2, checkpoint),
    }


def finish_round(store: RunStore, round: int, promoted: bool, ap50: float) -> None:
    for name, result in results_of(round, promoted, ap50).items():
        store.finish_stage(round, name, result, seconds=2.0)


def fill(store: RunStore) -> None:
    """Make two rounds, the second not promoted, with labels of all sources."""
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
    store.finish_stage(0, "evaluate-base", evaluated(0.125, 0.0625), seconds=1.0)
    store.finish_stage(1, "evaluate-reference", evaluated(0.875, 0.5), seconds=9.0)


def facts_of(
    results: Mapping[int, RoundResults],
    *,
    config: Mapping[str, Any] | None = CONFIG,
    stages: Mapping[int, list[str]] | None = None,
    **more: Any,
) -> RunFacts:
    """Facts of a run with these results, one image a round."""
    rounds = {
        number: RoundSummary(images=1, stages=dict.fromkeys((stages or {}).get(number, []), 1.0))
        for number in results
    }
    folder = Path("runs/x")
    summary = RunSummary(folder, "2026-01-01T00:00:00+00:00", "0.1.0", len(rounds), 1, None, rounds)
    typed = None if config is None else kept_config(config, "the test")
    return RunFacts(folder, summary, results, typed, config, **more)
