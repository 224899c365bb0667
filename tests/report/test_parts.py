"""Sentences, formats, charts and both renderers of a report, one by one."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from diffugen.config import LabelSettings
from diffugen.report.arcs import arcs
from diffugen.report.blocks import (
    Page,
    Paragraph,
    Section,
    Table,
    as_percent,
    as_rate,
    as_seconds,
    as_value,
    listed,
)
from diffugen.report.charts import Bars, Line, bar_chart, line_chart
from diffugen.report.html import to_html
from diffugen.report.markdown import to_markdown
from diffugen.report.outcome import headline
from diffugen.report.survey import Cover, Survey, attribute_gaps
from diffugen.run.results import Chosen, Compared, HeldOut, Promoted, Relabelled, RoundResults
from tests.report.samples import (
    CONFIG,
    PageReader,
    evaluated,
    facts_of,
    labelled,
    markdown_tables,
    plain,
    tuned,
)

WON, LOST = Promoted(True, "c", "agreed"), Promoted(False, "b", "agreed")


def half(ap50: float) -> Any:
    return evaluated(ap50, ap50)


# -------------------------------------------------------------------- sentences


@pytest.mark.parametrize(
    ("ap50", "exact", "images", "labels", "expected"),
    [
        (0.25, 0.5, 50, 200, "50% of the AP50 with exact labels"),
        (0.25, 0.5, 50, None, "50% of the AP50 with exact labels"),
        (0.86, 0.5, 50, 200, "more than 100% of the AP50 with exact labels"),
        (0.5, 0.5, 50, 200, ", 100% of the AP50 with exact labels"),
        (0.86, 0.5, 50, 11, None),
        (0.25, 0.5, 29, 200, None),
    ],
    ids=["a share", "unknown number", "better than exact", "the same", "few exact labels", "few images"],
)
def test_a_share_of_exact_labels_is_withheld_where_it_rests_on_few_images(
    ap50: float, exact: float, images: int, labels: int | None, expected: str | None
) -> None:
    now, reference = replace(half(ap50), images=images), replace(half(exact), labels=labels)
    results = {0: RoundResults(evaluate=now, evaluate_reference=reference, promote=WON)}
    lead = headline(facts_of(results), Survey()).blocks[0]
    assert isinstance(lead, Paragraph)
    text = str(lead.parts[0])
    assert expected in text if expected else "exact labels" not in text
    assert "172%" not in text


@pytest.mark.parametrize(
    ("results", "loop", "expected"),
    [
        (
            [RoundResults(evaluate_base=half(0.5), evaluate=half(0.25), promote=WON)],
            {},
            "fell from 0.500 to 0.250 (-0.250)",
        ),
        (
            [RoundResults(evaluate_base=half(0.5), evaluate=half(0.502), promote=WON)],
            {},
            "did not change: 0.500 before, 0.502",
        ),
        (
            [RoundResults(evaluate=half(0.25), promote=WON)],
            {},
            "mask AP50 is 0.250. A new detector was promoted in round 0",
        ),
        (
            [RoundResults(promote=LOST)],
            {"patience": 1},
            "No new detector was promoted in 1 round. The loop stopped after round 0: 1",
        ),
        (
            [RoundResults(promote=WON), RoundResults(promote=WON)],
            {"rounds": 2},
            "The loop ended after 2 rounds, as configured.",
        ),
        (
            [RoundResults(promote=WON), RoundResults(promote=LOST)],
            {"rounds": 3, "patience": 2},
            "Round 1 is the latest so far.",
        ),
        (
            [RoundResults(promote=WON), RoundResults()],
            {},
            "Round 1 is not finished: its last finished stage is relabel.",
        ),
    ],
)
def test_verdict(results: list[RoundResults], loop: dict[str, int], expected: str) -> None:
    stages = {1: ["generate", "label", "relabel"]}
    facts = facts_of(dict(enumerate(results)), config={**CONFIG, "loop": loop}, stages=stages)
    lead = headline(facts, Survey()).blocks[0]
    assert isinstance(lead, Paragraph) and expected in str(lead.parts[0])


def test_the_parts_of_the_loop_say_what_they_did() -> None:
    results = {
        0: RoundResults(dataset=Chosen("d", 65, 15), promote=WON),
        1: RoundResults(
            relabel=Relabelled("model-1", "c", 160, 210),
            compare=Compared(160, 120, {"spurious": 30, "overlooked": 10}),
            tune=replace(tuned(), adopted=True, held_out=HeldOut(0.25, 0.375)),
            dataset=Chosen("d", 131, 25, hidden=18, left_out={"disagreement": 4, "noisy": 9}),
            promote=LOST,
        ),
    }
    [table, note] = arcs(facts_of(results), Survey()).blocks
    assert isinstance(table, Table) and isinstance(note, Paragraph)
    left = (
        "131 training images, 18 doubtful objects painted over, 4 images left out until reviewed, 9 images "
        "held back as noisy, by cross-validation"
    )
    assert list(table.rows) == [
        ("relabelling", "210 labels on 160 images by the newest detector"),
        ("comparison", "both sources agree on 120 objects (75%); 40 disagreements"),
        (
            "tuning",
            "better settings found in round 1 (worth of labels 0.250 to 0.375 and error of scores 0.125 to "
            "0.062), on held-out images",
        ),
        ("training set", left),
        ("promotion", "the new detector was better in 1 of 2 rounds"),
    ]
    assert "reports/loop-gain" in str(note.parts[0])
    assert not arcs(facts_of({0: RoundResults(promote=WON)}), Survey()).blocks, "one part explains itself"


@pytest.mark.parametrize(
    ("source", "part", "said"),
    [
        ("attention", "attention labels", "8 labels on 8 images"),
        ("both", "attention labels", "8 labels on 8 images, with the starting detector as a witness"),
        (
            "detector",
            "labels of the starting detector",
            "8 labels on 8 images, all by the starting detector; heat maps were not used",
        ),
    ],
)
def test_the_report_says_who_labelled(source: str, part: str, said: str) -> None:
    method = "detector-1" if source == "detector" else "attention-1"
    made = replace(labelled(method=method), settings=LabelSettings().changed(source=source))
    round = RoundResults(label=made, dataset=Chosen("d", 65, 15), promote=WON)
    [table, _] = arcs(facts_of({0: round}), Survey()).blocks
    assert isinstance(table, Table) and table.rows[0] == (part, said)


def test_a_round_without_a_finished_stage() -> None:
    facts = facts_of({0: RoundResults(promote=WON), 1: RoundResults()})
    lead = headline(facts, Survey()).blocks[0]
    assert isinstance(lead, Paragraph) and str(lead.parts[0]).endswith("Round 1 is not finished.")


@pytest.mark.parametrize(
    ("validation", "evidence", "optimistic"),
    [
        ("scenes", "validation", True),
        ("others", "validation", False),
        (None, "agreed", False),
        ("scenes", "human", False),
    ],
)
def test_promotion_on_the_truth_set_is_admitted(
    validation: str | None, evidence: str, optimistic: bool
) -> None:
    results = RoundResults(promote=Promoted(True, "c", evidence), evaluate=half(0.5))
    config = {**CONFIG, "loop": {"truth": "scenes", "validation": validation}}
    section = headline(facts_of({0: results}, config=config), Survey())
    said = " ".join(str(part) for block in section.blocks for part in getattr(block, "parts", ()))
    assert ("these numbers are optimistic" in said, "It did not use the truth set" in said) == (
        optimistic,
        not optimistic,
    )


@pytest.mark.parametrize(
    ("configured", "decided_by", "optimistic"),
    [
        ("sets/cars", "cars/val", False),
        ("sets/cars:test", "cars/test", True),
        ("sets/cars", "cars/test", True),
    ],
)
def test_what_counts_is_the_split_that_decided(configured: str, decided_by: str, optimistic: bool) -> None:
    measured = replace(half(0.5), truth="cars/test")
    decision = Promoted(True, "c", "validation", validation=decided_by)
    config = {**CONFIG, "loop": {"truth": "sets/cars", "validation": configured}}
    facts = facts_of({0: RoundResults(promote=decision, evaluate=measured)}, config=config)
    assert facts.promoted_on_truth is optimistic


@pytest.mark.parametrize(("evidence", "known"), [("validation", False), ("agreed", True)])
def test_promotion_is_not_defended_without_a_configuration(evidence: str, known: bool) -> None:
    results = RoundResults(promote=Promoted(True, "c", evidence), evaluate=half(0.5))
    section = headline(facts_of({0: results}, config=None), Survey())
    said = " ".join(str(part) for block in section.blocks for part in getattr(block, "parts", ()))
    assert ("It did not use the truth set" in said) == known
    assert ("is unknown" in said) != known


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


# -------------------------------------------------------------------- formats


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "-"),
        (float("nan"), "-"),
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
        ((0.0, 1.0), "0, 1"),
        (None, "-"),
        (True, "True"),
        ("otsu", "otsu"),
    ],
)
def test_settings(value: Any, expected: str) -> None:
    assert as_value(value) == expected


def test_shares_of_nothing_are_not_numbers() -> None:
    assert [as_percent(1, 4), as_percent(1, 0), as_percent(1, None), as_percent(None)] == [
        "25%",
        "-",
        "-",
        "-",
    ]
    assert [as_rate(float("inf")), as_rate(0.25)] == ["-", "0.250"]


def test_lists() -> None:
    assert [listed(words) for words in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == [
        "",
        "a",
        "a and b",
        "a, b and c",
    ]


# -------------------------------------------------------------------- charts


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


@pytest.mark.parametrize("last", [0.2, 0.45, 0.48, 0.5, 0.52, 0.9])
def test_the_text_of_a_level_avoids_the_end_of_a_line_and_its_value(last: float) -> None:
    chart = line_chart(
        "t",
        x_label="x",
        y_label="y",
        x_ticks=[(0, "0"), (1, "1")],
        lines=[Line("a", ((0.0, 0.0), (1.0, last)))],
        levels=[("exact", 0.5)],
        with_values=True,
    )
    [(x, y)] = [map(float, at) for at in re.findall(r'x="([\d.]+)" y="([\d.]+)"[^>]*>exact', chart.svg)]
    marks = re.findall(r'<circle class="mark[^>]* cx="([\d.]+)" cy="([\d.]+)" r="4.2"', chart.svg)
    values = re.findall(r'x="([\d.]+)" y="([\d.]+)"[^>]*>\d\.\d{3}<', chart.svg)
    assert len(marks) == len(values) == 2
    near = [float(top) for side, top in marks + values if abs(float(side) - x) < 100]
    assert all(abs(top - y) > 9 for top in near), (y, near)


def test_values_and_names_of_a_chart_are_words_too() -> None:
    chart = bar_chart("t", x_label="n", groups=["round 0"], bars=[Bars("a & b", (3.0,)), Bars("c", (None,))])
    assert chart.description == "n. round 0: a & b 3.000, c -."
    assert "a &amp; b 3.000" in chart.svg


def test_hostile_names_of_a_chart_stay_words() -> None:
    name = "</text><script>alert(1)</script>\"'&"
    line = line_chart(
        name,
        x_label=name,
        y_label=name,
        x_ticks=[(0, name)],
        lines=[Line(name, ((0.0, 1.0),))],
        levels=[(name, 0.5)],
        written=lambda value: name,
    )
    bars = bar_chart(name, x_label=name, groups=[name], bars=[Bars(name, (1.0,)), Bars(name, (2.0,))])
    page = PageReader(to_html(Page("t", (), (Section("k", "K", (line, bars)),))))
    assert {tag for tag, _ in page.tags} & {"script"} == set()
    assert page.text.count(name) >= 12


# -------------------------------------------------------------------- renderers


@pytest.mark.parametrize(
    "text",
    ["# x", "1. x", "- x", "a_b _c_ *d*", "|", "a\nb", "<b>", "`", "$x$", "~~x~~", "\\", "-", "{{ x }}"],
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
