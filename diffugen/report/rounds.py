"""A section of a report: what each round gained, as charts and a table."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from diffugen.report.blocks import (
    NOTHING,
    Block,
    Cell,
    Chart,
    Missing,
    Paragraph,
    Section,
    Table,
    as_count,
    as_rate,
    finite,
)
from diffugen.report.charts import COLOURS, Line, line_chart
from diffugen.report.facts import RunFacts
from diffugen.run.results import Evaluated, Precision, Promoted

MEASURES: Sequence[tuple[str, Callable[[Precision], float | None]]] = (
    ("AP50", lambda one: finite(one.ap50)),
    ("AP50-95", lambda one: finite(one.ap50_95)),
)
"""Name of each AP that a report quotes, and how to read it."""


def rounds(facts: RunFacts) -> Section:
    """Return AP per round as charts and a table."""
    results = facts.results.values()
    measured = {number: one.evaluate for number, one in facts.results.items() if one.evaluate}
    blocks: list[Block] = []
    if measured:
        charts = (_ap_chart(facts, measured, name, value) for name, value in MEASURES)
        blocks += [chart for chart in charts if chart is not None]
    elif any(one.promote for one in results):
        blocks.append(Missing("No round was measured on a truth set", facts.continuing))
    else:
        blocks.append(Missing("No round has trained a detector yet", facts.continuing))
    if measured or any(one.dataset or one.train or one.promote for one in results):
        note = _rounds_note(list(measured.values()), facts.labels_name)
        blocks += [_rounds_table(facts), Paragraph((note,), tone="note")]
    epochs = _training_chart(facts)
    if epochs is not None:
        blocks.append(epochs)
    return Section("rounds", "AP per round", tuple(blocks))


def _training_chart(facts: RunFacts) -> Chart | None:
    """Return the AP on each round's own validation images by epoch, of the last rounds."""
    found = {number: _epochs(facts, number) for number, one in facts.results.items() if one.train}
    curves = {number: points for number, points in found.items() if len(points) > 1}
    lines = [Line(f"round {number}", points) for number, points in list(curves.items())[-COLOURS:]]
    if not lines:
        return None
    last = max(line.points[-1][0] for line in lines)
    return line_chart(
        "Training: mask AP50 on the round's own validation images (not the truth)",
        x_label="epoch",
        y_label="mask AP50",
        x_ticks=[(1.0, "1"), (last, f"{last:.0f}")],
        lines=lines,
        y_top=1.0,
    )


def _epochs(facts: RunFacts, number: int) -> tuple[tuple[float, float], ...]:
    """Return epoch and mask AP50 from the table that the detector's training wrote; empty without one."""
    kept = facts.results[number].train
    table = None if kept is None else facts.folder / Path(kept.checkpoint).parent.parent / "results.csv"
    if table is None or not table.is_file():
        return ()
    try:
        with table.open(newline="", encoding="utf-8") as file:
            rows = [{key.strip(): value for key, value in row.items()} for row in csv.DictReader(file)]
        return tuple((float(row["epoch"]), float(row["metrics/mAP50(M)"])) for row in rows)
    except (OSError, ValueError, KeyError, AttributeError):
        return ()


def _rounds_note(measured: Sequence[Evaluated], labels_name: str) -> str:
    parts = [
        f"Agreed: training images on which {labels_name} and model labels agree. Left out until decided: "
        "images with a disagreement that the round did not train on. Decides: mask AP50 / AP50-95 of the new "
        "detector (candidate) and of the one before it (incumbent), on the evidence that the promotion was "
        "decided on. On labels that no person has seen, a candidate may lag by as much as chance explains "
        "(±)."
    ]
    if measured:
        parts.append(
            f"Truth: measured on {measured[-1].truth} with the detector that is "
            "current after the round, so a round without promotion repeats the values before it. They are "
            "not comparable with candidate and incumbent, and decide nothing."
        )
    return " ".join(parts)


def _ap_chart(
    facts: RunFacts, measured: Mapping[int, Evaluated], name: str, value: Callable[[Precision], float | None]
) -> Block | None:
    prefix = "round " if len(measured) < 6 else ""
    values = [(number, f"{prefix}{number}", value(one.mask)) for number, one in measured.items()]
    start = value(facts.initial.mask) if facts.initial else None
    exact = value(facts.reference.mask) if facts.reference else None
    if start is not None:
        values.insert(0, (-1, "initial", start))
    points = tuple((float(x), y) for x, _, y in values if y is not None)
    if not points:
        return None
    levels = [(text, y) for text, y in (("initial", start), ("exact labels", exact)) if y is not None]
    tallest = max([y for _, y in points] + [y for _, y in levels])
    return line_chart(
        f"Mask {name} on {list(measured.values())[-1].truth}",
        x_label="after round",
        y_label=f"mask {name}",
        x_ticks=[(float(x), tick) for x, tick, _ in values],
        lines=[Line("current detector", points)],
        levels=levels,
        y_top=1.0 if tallest > 0.75 else None,
        inset_px=26,
        with_values=True,
    )


def _rounds_table(facts: RunFacts) -> Table:
    head = (
        "round",
        "new images",
        "train images",
        "val images",
        "agreed",
        "left out until decided",
        "truth: AP50",
        "truth: AP50-95",
        "truth: box AP50",
        "decided on",
        "decides: candidate",
        "decides: incumbent",
        "promoted",
    )
    rows: list[tuple[Cell, ...]] = []
    if facts.initial is not None:
        rows.append(("initial", *[NOTHING] * 5, *measured_aps(facts.initial), *[NOTHING] * 4))
    for number, one in facts.results.items():
        chosen, vote = one.dataset, one.promote
        rows.append(
            (
                str(number),
                as_count(facts.summary.rounds[number].images),
                as_count(chosen.train if chosen else None),
                as_count(chosen.val if chosen else None),
                as_count(chosen.by_origin.get("agreed", 0) if chosen else None),
                as_count(chosen.left_out.get("disagreement", 0) if chosen else None),
                *measured_aps(one.evaluate),
                (vote.evidence if vote else "") or NOTHING,
                _both(vote.candidate if vote else None),
                _both(vote.incumbent if vote else None),
                _won(vote),
            )
        )
    return Table("Results of each round", head, tuple(rows))


def _won(vote: Promoted | None) -> str:
    if vote is None:
        return NOTHING
    chance = f" (± {as_rate(vote.tolerance)})" if vote.tolerance else ""
    return ("yes" if vote.promoted else "no") + chance


def _both(one: Precision | None) -> str:
    values = [value(one) if one else None for _, value in MEASURES]
    return NOTHING if values == [None, None] else " / ".join(map(as_rate, values))


def measured_aps(one: Evaluated | None) -> tuple[str, str, str]:
    """Return mask AP50, mask AP50-95 and box AP50 as cells of a table."""
    if one is None:
        return (NOTHING, NOTHING, NOTHING)
    return (as_rate(one.mask.ap50), as_rate(one.mask.ap50_95), as_rate(one.box.ap50))
