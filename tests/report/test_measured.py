"""What evaluation kept of held-out scenes is shown: strip, false finds, curves, classes, sizes, failures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffugen.records import Curve, FalseFinds, Instances, SizeBin
from diffugen.run.results import Evaluated, Precision
from diffugen.run.scenes import MeasuredScene, keep_scenes, read_scenes
from diffugen.run.store import RunStore
from tests.report.samples import SIZE_WH, evaluated, markdown_tables, objects, row, written

CURVE = Curve((1.0,) * 81 + (0.0,) * 20, tuple(np.linspace(0.95, 0.35, 81)) + (0.0,) * 20)
NOTHING = Instances(SIZE_WH, (), (), np.zeros(0))


def scene(name: str, error: float, found: Instances = NOTHING) -> MeasuredScene:
    rgb = np.full((SIZE_WH[1], SIZE_WH[0], 3), 90, np.uint8)
    return MeasuredScene(name, rgb, objects((2, 3, 20, 15)), found, error)


def more(one: Evaluated, finds: int, piano: float | None) -> Evaluated:
    values: dict[str, Any] = {
        "by_class": {"piano": Precision(piano, piano), "car": Precision(0.9, 0.6)},
        "false_finds": {"piano": FalseFinds(120, finds), "car": FalseFinds(80, 3)},
        "curves": {"piano": CURVE, "car": CURVE},
        "sizes": (SizeBin(0.0, 0.15, 10, 4, 0.3), SizeBin(0.15, 1.0, 0, 0, None)),
        "raw_mask": Precision(0.4, 0.2),
    }
    return replace(one, **values)


@pytest.fixture
def measured(run: Path) -> Path:
    with RunStore.open(run) as store:
        for round, finds in ((0, 60), (1, 6)):
            store.finish_stage(round, "evaluate", more(evaluated(0.4375, 0.25), finds, 0.5), seconds=1.0)
        store.finish_stage(0, "evaluate-base", more(evaluated(0.125, 0.0625), 0, None), seconds=1.0)
        store.finish_stage(1, "evaluate-reference", more(evaluated(0.875, 0.5), 1, 0.8), seconds=9.0)
    seen = objects((3, 3, 20, 15))
    keep_scenes(run, "evaluate-base", 0, {"first": [scene("one", 1.0)], "worst": []})
    groups = {"first": [scene("one", 0.1, seen), scene("two", 1.0)], "worst": [scene("two", 1.0)]}
    keep_scenes(run, "evaluate", 1, groups)
    return run


def test_the_page_tells_the_story_first(measured: Path) -> None:
    text, page, markdown = written(measured)
    assert text.index("Held-out scenes") < text.index("On 50 images of piano-on-road")
    said = (
        "Piano: mask AP50-95 0.500 (exact labels: 0.800), found in 6 of 120 scenes without one (at worst 60)."
    )
    assert said in page.text and said in markdown.replace("\\", "")
    assert "Car: mask" not in page.text, "the initial detector knew cars"
    assert "truth" in [attrs["id"] for attrs in page.of("section")]
    charts = [str(attrs["aria-label"]) for attrs in page.of("svg") if attrs.get("role") == "img"]
    [finds] = [one for one in charts if one.startswith("False finds on piano-on-road")]
    assert "piano: 0% at initial, 50% at round 0, 5% at round 1" in finds
    [curve] = [one for one in charts if one.startswith("Precision by recall")]
    assert "from 0.35 on, precision 1.00, recall 0.80" in curve
    classes = row(page.tables["Mask AP by class on piano-on-road"], "piano")
    assert (classes["initial AP50-95"], classes["current AP50-95"]) == ("-", "0.500")
    assert (classes["found where there is none"], classes["best confidence"]) == ("5%", "0.35")
    sizes = page.tables["Objects by size"]
    assert sizes[1:] == [["0.00 to 0.15", "10", "40%", "0.300"]], "sizes without objects say nothing"
    assert markdown_tables(markdown).keys() == page.tables.keys()
    assert "wrong by 1.0 objects" in page.text


def test_scenes_that_cannot_be_read_are_left_out(measured: Path) -> None:
    for path in (measured / "measured").rglob("*.png"):
        path.write_bytes(b"no picture")
    _, page, _ = written(measured)
    assert "Held-out scenes" not in page.text and "Mask AP by class on piano-on-road" in page.tables


def test_scenes_come_back_as_they_were_kept(tmp_path: Path) -> None:
    kept = [scene("a", 0.25, objects((2, 3, 20, 15))), scene("b", 2.0)]
    keep_scenes(tmp_path, "evaluate", 3, {"first": [kept[1]], "worst": []})
    keep_scenes(tmp_path, "evaluate", 3, {"first": kept, "worst": kept[:1]})
    first, worst = (read_scenes(tmp_path, "evaluate", 3, group) for group in ("first", "worst"))
    assert [one.name for one in first] == ["a", "b"] and [one.error for one in worst] == [0.25]
    assert np.array_equal(first[0].rgb, kept[0].rgb) and first[0].found.rles == kept[0].found.rles
    assert read_scenes(tmp_path, "evaluate", 4, "first") == read_scenes(tmp_path, "evaluate", 3, "best") == []
