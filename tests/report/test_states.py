"""A report of a run in any state: just begun, interrupted, old, damaged, or full of hostile text."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from diffugen.config.sections import Config
from diffugen.records import Disagreement
from diffugen.run.results import Chosen, Evaluated, Generated, Precision, Promoted, Relabelled, Trained
from diffugen.run.store import RunStore
from tests.report.samples import (
    CONFIG,
    SECTIONS,
    WITHOUT_ARCS,
    PageReader,
    add_images,
    add_labels,
    compared,
    evaluated,
    labelled,
    markdown_tables,
    row,
    tuned,
    written,
)

OLD_RUN = Path(__file__).parents[1] / "fixtures" / "run-schema-3"
HOSTILE = (
    "a <script>alert('x')</script> piano | [a](http://evil.example) `b` \"q\" & *c* "
    "<img src=//e> \x07 on a road"
)
TIMES = "Time by stage and round (per image: all rounds, divided by the images of the run)"


# -------------------------------------------------------------------- beginnings


def test_empty_run(tmp_path: Path) -> None:
    RunStore.create_or_open(tmp_path / "new", config=None).close()
    _, page, text = written(tmp_path / "new")
    assert [attrs["id"] for attrs in page.of("section")] == WITHOUT_ARCS
    assert "This run is empty." in page.text and "made without a configuration" in page.text
    assert page.text.count(f"diffugen generate --run {tmp_path / 'new'}") >= 3
    assert "nan" not in page.text.lower()
    assert markdown_tables(text).keys() == page.tables.keys()


def test_run_with_attention_labels_only(tmp_path: Path) -> None:
    folder = tmp_path / "some"
    with RunStore.create_or_open(folder, config=CONFIG) as store:
        add_labels(store, add_images(store, 5), "attention", "otsu", 0)
        _, page, _ = written(folder)  # a writer is at work
    assert "This run has 5 images with attention labels and no trained detector." in page.text
    assert len(page.with_class("p", "missing")) == 6
    assert f"run a loop, e.g. diffugen bootstrap --run {folder}" in page.text
    assert f"diffugen review --run {folder}" in page.text
    assert "only the score decides which images are best and worst" in page.text
    covered = {one[1]: one for one in page.tables["Images by attribute of their prompt"]}
    assert covered["night"][2:] == ["2", "100%", "0.500", "-", "-"]
    assert covered["day"][2:] == ["3", "100%", "0.500", "-", "-"]
    assert row(page.tables[TIMES], "generate")["round 0"] == "7.5 s"


def test_images_without_labels(tmp_path: Path) -> None:
    with RunStore.create_or_open(tmp_path / "raw", config=CONFIG) as store:
        add_images(store, 2)
    _, page, _ = written(tmp_path / "raw")
    assert "2 images without labels" in page.text and "diffugen label --run" in page.text
    assert not page.of("img")


# -------------------------------------------------------------------- what comes next


def interrupted(folder: Path, loop: str | None) -> PageReader:
    """The report of a run whose loop was interrupted after `compare` in round 0."""
    with RunStore.create_or_open(folder, config=CONFIG) as store:
        if loop is not None:
            store.keep_loop(loop)
        add_labels(store, add_images(store, 4), "attention", "otsu", 0)
        store.finish_stage(0, "evaluate-base", evaluated(0.125, 0.0625), seconds=1.0)
        store.finish_stage(0, "generate", Generated(4), seconds=1.0)
        store.finish_stage(0, "label", labelled(), seconds=1.0)
        store.finish_stage(0, "relabel", Relabelled("model-0", "x", 4, 4), seconds=1.0)
        store.finish_stage(0, "compare", compared(), seconds=1.0)
    return written(folder)[1]


def test_an_interrupted_improve_is_continued_by_improve(tmp_path: Path) -> None:
    page = interrupted(tmp_path / "better", "improve")
    assert "Round 0 is not finished: its last finished stage is compare." in page.text
    assert f"To continue this run: diffugen improve --run {tmp_path / 'better'}" in page.text
    assert "diffugen improve again.json --run runs/again" in page.text
    assert "bootstrap" not in page.text


def test_a_custom_loop_is_continued_by_its_file(tmp_path: Path) -> None:
    folder = tmp_path / "own run; $(x)"
    page = interrupted(folder, "my loops/night.py")
    command = f"diffugen loops run 'my loops/night.py' --run {shlex.quote(str(folder))}"
    assert f"To continue this run: {command}" in page.text
    assert "diffugen loops run 'my loops/night.py' again.json --run runs/again" in page.text
    assert f"diffugen review --run {shlex.quote(str(folder))}" in page.text
    assert f"--run {folder}" not in page.text
    assert "bootstrap" not in page.text and "improve" not in page.text


def test_an_unknown_loop_is_not_guessed(tmp_path: Path) -> None:
    page = interrupted(tmp_path / "old", None)
    advice = f"run the loop that made it again, e.g. diffugen bootstrap --run {tmp_path / 'old'}"
    assert f"To continue this run: {advice}" in page.text


def test_a_run_without_a_loop_is_continued_by_its_commands(tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    with RunStore.create_or_open(folder, config=CONFIG) as store:
        add_images(store, 2)
        store.finish_stage(0, "generate", Generated(2), seconds=1.0)
        store.finish_stage(0, "label", labelled(), seconds=1.0)
    _, page, _ = written(folder)
    expected = f"diffugen generate --run {folder}, then diffugen label --run {folder}"
    assert f"To continue this run: {expected}" in page.text
    assert "diffugen generate again.json --run runs/again, then diffugen label again.json" in page.text
    assert "not finished" not in page.text


def test_times_follow_the_order_of_work(tmp_path: Path) -> None:
    with RunStore.create_or_open(tmp_path / "run", config=CONFIG) as store:
        for round, stages in enumerate((["train", "distil"], ["label", "distil", "train"])):
            add_images(store, 1, round)
            for number, stage in enumerate(stages, start=1):
                store.finish_stage(round, stage, Generated(), seconds=number)
    _, page, _ = written(tmp_path / "run")
    assert [one[0] for one in page.tables[TIMES]] == [
        "stage",
        "train",
        "distil",
        "generate",  # unfinished; the time is that of the images so far
        "label",
        "all",
    ]
    assert row(page.tables[TIMES], "distil") == {
        "stage": "distil",
        "round 0": "2 s",
        "round 1": "2 s",
        "all rounds": "4 s",
        "per image": "2 s",
    }


# -------------------------------------------------------------------- old, damaged and hostile runs


def test_the_report_of_an_old_run_is_written(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(OLD_RUN, tmp_path / "old"))
    _, page, text = written(folder)
    assert [attrs["id"] for attrs in page.of("section")] == SECTIONS
    assert "Round 1 is not finished: its last finished stage is tune." in page.text
    assert f"run the loop that made it again, e.g. diffugen bootstrap --run {folder}" in page.text
    assert row(page.tables["This run"], "classes")["value"] == "car"
    results = row(page.tables["Results of each round"], "0")
    assert (results["train images"], results["val images"], results["promoted"]) == ("3", "9", "no")
    assert results["decides: incumbent"] == "1.000 / 0.569"
    tuning = row(page.tables["Tuning (adopted only if better on held-out images)"], "1")
    assert (tuning["worth of labels before"], tuning["adopted"]) == ("0.294", "no")
    assert page.of("img") and not page.with_class("p", "warning")
    assert markdown_tables(text) == page.tables


def test_hostile_words_stay_words(tmp_path: Path) -> None:
    with RunStore.create_or_open(tmp_path / "bad", config=CONFIG) as store:
        records = add_images(store, 3, text=HOSTILE)
        add_labels(store, records, "attention", "<b>otsu", 0)
        add_labels(store, records, "model", "m", 0, shift=9)
        store.put_disagreements(0, [Disagreement(records[1].id, "badly_located", 0.5, 0, 0, 0.3)])
        measured = Evaluated(
            truth="<i onload=x>truth\x07", checkpoint="a|b", images=50, mask=Precision(0.5, 0.25)
        )
        store.finish_stage(0, "evaluate", measured, 1.0)
    text, page, markdown = written(tmp_path / "bad")
    assert not page.of("script") and not page.of("b") and not page.of("i")
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert "</pre><script>" in page.text  # the configuration, shown as it is
    assert HOSTILE.replace("\x07", "\ufffd") in page.text and "\x07" not in text
    assert "\x07" not in markdown
    assert any("<i onload=x>truth\ufffd" in str(attrs.get("aria-label")) for attrs in page.of("svg"))
    assert markdown_tables(markdown).keys() == page.tables.keys()
    outside = re.sub(r"^```.*?^```", "", markdown, flags=re.MULTILINE | re.DOTALL)
    assert "<" not in outside
    assert all(link.startswith("picture-") for link in re.findall(r"(?<!\\)\]\(([^)]*)", outside))


def test_a_hostile_loop_stays_code(tmp_path: Path) -> None:
    with RunStore.create_or_open(tmp_path / "bad", config=CONFIG) as store:
        store.keep_loop("<script>alert(2)</script>`x`.py")
        add_images(store, 1)
    _, page, markdown = written(tmp_path / "bad")
    assert not page.of("script")
    command = "diffugen loops run '<script>alert(2)</script>`x`.py' --run"
    assert command in page.text and "`` " + command in markdown
    outside = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", markdown, flags=re.DOTALL)
    assert "<" not in outside


def test_missing_files_leave_gaps(run: Path) -> None:
    for path in [*(run / "heatmaps").rglob("*.npz"), *list((run / "images").rglob("*.png"))[:8]]:
        path.unlink()
    _, page, _ = written(run)
    absent, shown = page.with_class("span", "absent"), page.with_class("figure", "shown")
    assert len(page.of("img")) + len(absent) == 4 * len(shown)
    assert len(absent) >= len(shown) and page.of("img")


@pytest.mark.parametrize(
    "result", [{}, {"mask": None}, {"mask": {"ap50": None, "ap50_95": float("nan")}}, {"mask": 3}]
)
def test_results_that_cannot_be_read_are_named_and_left_out(tmp_path: Path, result: dict[str, Any]) -> None:
    broken = ("label", "relabel", "compare", "tune", "dataset", "train", "promote", "evaluate")
    with RunStore.create_or_open(tmp_path / "odd", config={"prompts": None, "loop": 4}) as store:
        add_images(store, 1)
        for name in (*broken, "evaluate-base"):
            store.finish_stage(0, name, result, seconds=0.0)
        store.finish_stage(0, "generate", Generated(1), seconds=0.5)
    _, page, text = written(tmp_path / "odd")
    assert [attrs["id"] for attrs in page.of("section")] == WITHOUT_ARCS
    for name in (*broken, "evaluate-base"):
        assert f"The result of stage {name} of round 0 cannot be read." in page.text
    assert "stage generate of round 0" not in page.text
    assert "does not accept the configuration" in page.text
    assert "nan" not in text and "None" not in text and "None" not in page.text


def test_results_without_measurements(tmp_path: Path) -> None:
    nothing = Precision(None, float("nan"))
    results = {
        "tune": tuned(),
        "dataset": Chosen("d", 0, 0),
        "train": Trained("c", "b", 1, 64),
        "promote": Promoted(True, "c"),
        "evaluate": Evaluated(truth="t", checkpoint="c", images=0, mask=nothing, box=nothing),
        "evaluate-base": Evaluated(truth="t", checkpoint="b", images=0),
        "evaluate-reference": Evaluated(truth="t", checkpoint="b", images=0, mask=nothing),
    }
    with RunStore.create_or_open(tmp_path / "odd", config=CONFIG) as store:
        add_images(store, 1)
        for name, result in results.items():
            store.finish_stage(0, name, result, seconds=0.0)
    _, page, text = written(tmp_path / "odd")
    assert [attrs["id"] for attrs in page.of("section")] == SECTIONS
    assert "nan" not in text and "None" not in text and "None" not in page.text
    assert not page.with_class("p", "warning")


def test_a_configuration_of_another_version_is_shown_and_not_used(tmp_path: Path) -> None:
    newer = {**CONFIG, "seed": 11, "quantum": {"qubits": 3}}
    with pytest.raises(ValueError, match="quantum"):
        Config.model_validate(newer)
    with RunStore.create_or_open(tmp_path / "newer", config=newer) as store:
        add_images(store, 1)
        store.finish_stage(0, "promote", Promoted(True, "c", "validation"), seconds=0.0)
    _, page, _ = written(tmp_path / "newer")
    assert "does not accept the configuration" in page.text and "qubits" in page.text
    assert "Whether that is the truth set is unknown" in page.text
    assert row(page.tables["This run"], "classes")["value"] == "piano"  # as in the prompts
    versions = page.tables["Seeds, and versions installed where this report was written"]
    assert row(versions, "seed of the run")["value"] == "11"
