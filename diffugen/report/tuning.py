"""A part of a report: what tuning changed in the label settings and the score weights."""

from __future__ import annotations

from diffugen.config.labelling import TERMS, LabelSettings
from diffugen.report.blocks import (
    Block,
    Cell,
    Code,
    Missing,
    Paragraph,
    Table,
    as_count,
    as_percent,
    as_rate,
    as_value,
)
from diffugen.report.charts import Bars, bar_chart
from diffugen.report.facts import RunFacts
from diffugen.run.results import Tuned


def tuning_blocks(facts: RunFacts) -> list[Block]:
    """Return the outcome of each tuning, and the changes of the last adopted one, or else of the last one."""
    tuned = {round: one.tune for round, one in facts.results.items() if one.tune}
    if not tuned:
        return [Missing("Label settings and score weights have not been tuned yet", facts.continuing)]
    if not any(one.trials for one in tuned.values()):
        reason = list(tuned.values())[-1].reason
        return [Paragraph((f"No other label settings or score weights were tried: {reason}.",))]
    rows = tuple(
        (
            str(round),
            as_rate(one.held_out.before),
            as_rate(one.held_out.after),
            as_rate(one.miscalibration.before),
            as_rate(one.miscalibration.after),
            "yes" if one.adopted else "no",
            one.evidence,
            as_count(one.images),
            as_count(one.trials),
        )
        for round, one in tuned.items()
    )
    head = (
        "round",
        "worth of labels before",
        "worth of labels after",
        "error of scores before",
        "error of scores after",
        "adopted",
        "evidence",
        "images",
        "trials",
    )
    adopted = [round for round, one in tuned.items() if one.adopted]
    shown = (adopted or list(tuned))[-1]
    word = "adopted" if adopted else "not adopted"
    return [
        Table("Tuning (adopted only if better on held-out images)", head, rows),
        Paragraph((f"Round {shown}: {tuned[shown].reason}.",)),
        *_weight_blocks(tuned[shown], shown, word),
        *_setting_blocks(tuned[shown], shown, word),
    ]


def _weight_blocks(tuned: Tuned, round: int, word: str) -> list[Block]:
    if tuned.before.weights == tuned.after.weights:
        return [Paragraph((f"Tuning in round {round} did not change the score weights.",))]
    before, after = tuned.before.weights.model_dump(), tuned.after.weights.model_dump()
    shares = [[100 * side[term] / sum(side.values()) for term in TERMS] for side in (before, after)]
    rows = tuple(
        (term, as_rate(before[term]), as_rate(after[term]), *map(_percent, pair))
        for term, *pair in zip(TERMS, *shares, strict=True)
    )
    title = f"Score weights before and after tuning in round {round} ({word})"
    chart = bar_chart(
        title,
        x_label="share of all weights, percent",
        groups=[term.replace("_", " ") for term in TERMS],
        bars=[Bars(name, tuple(side)) for name, side in zip(("before", "after"), shares, strict=True)],
        written=_percent,
    )
    head = ("term", "weight before", "weight after", "share before", "share after")
    return [chart, Table(title, head, rows, folded=True)]


def _setting_blocks(tuned: Tuned, round: int, word: str) -> list[Block]:
    changed = _changed_settings(tuned.before.settings, tuned.after.settings)
    if not changed:
        return [Paragraph((f"Tuning in round {round} did not change the label settings.",))]
    title = f"Label settings changed by tuning in round {round} ({word})"
    return [Table(title, ("setting", "before", "after"), changed)]


def _changed_settings(before: LabelSettings, after: LabelSettings) -> tuple[tuple[Cell, ...], ...]:
    new = dict(after)
    return tuple(
        (Code(f"labels.{key}"), as_value(value), as_value(new[key]))
        for key, value in before
        if value != new[key]
    )


def _percent(value: float) -> str:
    return as_percent(value, 100.0)
