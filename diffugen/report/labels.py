"""A part of a report: can the labels be trusted, and what did tuning change?"""

from __future__ import annotations

from collections.abc import Sequence

from diffugen.comparison.metrics import ClassQuality
from diffugen.records import SOURCES
from diffugen.report.blocks import (
    Block,
    Cell,
    Chart,
    Code,
    Missing,
    Paragraph,
    Section,
    Table,
    as_count,
    as_percent,
    as_rate,
    as_value,
    counted,
    number,
)
from diffugen.report.charts import Bars, Line, bar_chart, line_chart
from diffugen.report.facts import RunFacts
from diffugen.report.quality import SAMPLE_SEED, Comparison, Quality

_EVIDENCE = {"human": "human labels", "model": "model labels"}
_WHEN = {"first": "first settings", "now": "newest"}
_FEW = 5


def labels(facts: RunFacts, quality: Quality) -> Section:
    """Return what the labels are worth: sources, IoU, score, tuning, training set."""
    blocks: list[Block] = []
    if not facts.summary["images"]:
        return Section("labels", "Labels", (Missing("No images, so no labels", facts.command("generate")),))
    if any(one["label_sets"] for one in facts.summary["rounds"].values()):
        blocks.append(_sources(facts))
    else:
        blocks.append(Missing("No image is labelled yet", facts.command("label")))
    if quality.comparisons:
        blocks += _quality_blocks(quality)
        blocks += _reliability_blocks(quality)
    else:
        blocks.append(
            Missing(
                "Nothing to compare the attention labels with: no human labels and no model labels. "
                "How good they are is not known",
                facts.command("loop"),
            )
        )
    blocks += _tuning_blocks(facts)
    if facts.any("dataset"):
        blocks.append(_trained_on(facts))
    return Section("labels", "Labels", tuple(blocks))


def _sources(facts: RunFacts) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for round in facts.rounds:
        one = facts.summary["rounds"][round]
        sets = [as_count(one["label_sets"].get(source, 0)) for source in SOURCES]
        objects = [as_count(one["objects"].get(source, 0)) for source in SOURCES]
        rows.append((str(round), *(cell for pair in zip(sets, objects, strict=True) for cell in pair)))
    head = (
        "made in round",
        *(f"{source} {what}" for source in SOURCES for what in ("label sets", "objects")),
    )
    return Table(
        "Labels by source (an image labelled by several settings counts each time)", head, tuple(rows)
    )


def _quality_blocks(quality: Quality) -> list[Block]:
    rows: list[tuple[Cell, ...]] = []
    for one in quality.comparisons:
        by_class = one.quality.by_class
        everything = ClassQuality(
            sum(each.objects for each in by_class.values()),
            sum(each.labels for each in by_class.values()),
            one.quality.pixel_iou,
            one.quality.label_iou,
            one.quality.object_iou,
        )
        named = {"all (mean of the classes)": everything, **by_class} if len(by_class) > 1 else by_class
        for name, each in named.items():
            rows.append(
                (
                    _EVIDENCE[one.evidence],
                    _WHEN[one.when],
                    as_count(one.images),
                    name,
                    as_count(each.objects),
                    as_count(each.labels),
                    as_rate(each.pixel_iou),
                    as_rate(each.label_iou),
                    as_rate(each.object_iou),
                )
            )
    head = (
        "compared with",
        "attention labels",
        "images",
        "class",
        "objects",
        "labels",
        "pixel IoU",
        "IoU per label",
        "IoU per object",
    )
    blocks: list[Block] = [Paragraph((_quality_sentence(quality),))]
    blocks.append(Table("Attention labels against the evidence", head, tuple(rows)))
    said = [
        "IoU per label: mean over the attention labels, made-up ones counting 0. IoU per object: mean over "
        "the objects of the "
        "evidence, missed ones counting 0. Pixel IoU: all of a class's pixels together."
    ]
    sampled = [one for one in quality.comparisons if one.images < one.available]
    if sampled:
        first = sampled[0]
        said.append(
            f" Measured on a random sample (seed {SAMPLE_SEED}): {first.images:,} of {first.available:,} "
            "images with "
            f"{_EVIDENCE[first.evidence]}."
        )
    if any(one.evidence == "human" for one in quality.comparisons):
        said.append(
            " People look at images with disagreements first, so the rows of human labels describe the hard "
            "part of the run; "
            "labels accepted as they were count with IoU 1."
        )
    if any(one.evidence == "model" for one in quality.comparisons):
        said.append(
            " Model labels are no truth: these rows are agreement, not accuracy. They are made only "
            "for images that no detector of the run had been trained on."
        )
    blocks.append(Paragraph(("".join(said),), tone="note"))
    return blocks


def _quality_sentence(quality: Quality) -> str:
    said = []
    for evidence, verb in (
        ("human", "reach a mean IoU of {} with human labels"),
        ("model", "agree with IoU {} with model labels"),
    ):
        now, first = quality.of(evidence, "now"), quality.of(evidence, "first")
        if now is not None:
            change = (
                f" ({as_rate(first.quality.object_iou)} with the first settings)" if first is not None else ""
            )
            said.append(
                f"{verb.format(as_rate(now.quality.object_iou))}{change} on {counted(now.images, 'image')}"
            )
    return f"Attention labels {'; they '.join(said)}."


def _reliability_blocks(quality: Quality) -> list[Block]:
    scored = [one for one in quality.comparisons if one.reliability.count]
    if not scored:
        return []
    charts = [
        _reliability_chart(evidence, [one for one in scored if one.evidence == evidence])
        for evidence in dict.fromkeys(one.evidence for one in scored)
    ]
    names = [(_EVIDENCE[one.evidence], _WHEN[one.when]) for one in scored]
    summed = tuple(
        (
            *name,
            as_count(one.reliability.count),
            as_rate(one.reliability.spearman),
            as_rate(one.reliability.calibration_error),
        )
        for name, one in zip(names, scored, strict=True)
    )
    curve = tuple(
        (
            *name,
            f"{each.low:.2f} to {each.high:.2f}",
            as_count(each.count),
            as_rate(each.mean_score),
            as_rate(each.mean_iou),
        )
        for name, one in zip(names, scored, strict=True)
        for each in one.reliability.bins
        if each.count
    )
    # Model labels are many, and not chosen for disagreement; the newest labels are the ones in use.
    judged = scored[-1]
    who = ("compared with", "attention labels", "labels")
    return [
        *charts,
        Paragraph((f"Against {_EVIDENCE[judged.evidence]}: {_worth(judged.reliability.spearman)}",)),
        Paragraph(
            (
                "On the dotted line a score is the IoU to expect; calibration error is the mean distance "
                "from it. Rank "
                "correlation: whether better labels have higher scores, 1 for always, 0 for no more often "
                "than by chance.",
            ),
            tone="note",
        ),
        Table(
            "Score against the evidence",
            (*who, "rank correlation of score and IoU", "calibration error"),
            summed,
        ),
        Table(
            "Numbers of the curves",
            (*who[:2], "score", "labels", "mean score", "mean IoU"),
            curve,
            folded=True,
        ),
    ]


def _reliability_chart(evidence: str, known: Sequence[Comparison]) -> Chart:
    curves = [
        Line(
            _WHEN[one.when],
            tuple(
                (each.mean_score or 0.0, each.mean_iou or 0.0)
                for each in one.reliability.bins
                if each.count >= _FEW
            ),
        )
        for one in known
    ]
    return line_chart(
        f"What a score is worth, against {_EVIDENCE[evidence]} (bins of at least {_FEW} labels)",
        x_label="score of the label",
        y_label=f"IoU with {_EVIDENCE[evidence]}",
        x_ticks=[(value / 4, f"{value / 4:.2g}") for value in range(5)],
        lines=[*curves, Line("score = IoU", ((0.0, 0.0), (1.0, 1.0)), plain=True)],
        y_top=1.0,
    )


def _worth(correlation: float | None) -> str:
    if correlation is None:
        return "too few different scores to say whether the score orders the labels."
    if correlation >= 0.5:
        return "the score orders the labels well, higher scores are better labels."
    if correlation >= 0.2:
        return "the score orders the labels weakly; trust it for the worst and the best, not in between."
    return "the score says little about how good a label is; do not rely on it to filter labels."


def _tuning_blocks(facts: RunFacts) -> list[Block]:
    if not facts.tune_rounds:
        return [Missing("Label settings and score weights were not tuned yet", facts.command("loop"))]
    rows = tuple(
        (
            str(round),
            as_rate(facts.value(round, "tune", "held_out", "before")),
            as_rate(facts.value(round, "tune", "held_out", "after")),
            "yes" if facts.value(round, "tune", "adopted") else "no",
            as_value(facts.value(round, "tune", "evidence")),
            as_count(facts.value(round, "tune", "images")),
            as_count(facts.value(round, "tune", "trials")),
        )
        for round in facts.tune_rounds
    )
    head = (
        "round",
        "held-out value before",
        "held-out value after",
        "adopted",
        "evidence",
        "images",
        "trials",
    )
    adopted = [round for round in facts.tune_rounds if facts.value(round, "tune", "adopted") is True]
    shown = adopted[-1] if adopted else facts.tune_rounds[-1]
    blocks: list[Block] = [Table("Tuning (adopted only if better on images held out from it)", head, rows)]
    word = "adopted" if adopted else "not adopted"
    blocks += _weight_blocks(facts, shown, word)
    changed = _changed_settings(facts, shown)
    if changed:
        blocks.append(
            Table(
                f"Label settings that round {shown}'s tuning changed ({word})",
                ("setting", "before", "after"),
                changed,
            )
        )
    else:
        blocks.append(Paragraph((f"Round {shown}'s tuning changed no label setting.",)))
    return blocks


def _weight_blocks(facts: RunFacts, round: int, word: str) -> list[Block]:
    sides = [facts.mapping(round, "tune", side, "weights") for side in ("before", "after")]
    terms = list(dict.fromkeys([*sides[0], *sides[1]]))
    if not terms:
        return []
    values = [[number(side.get(term)) for term in terms] for side in sides]
    sums = [sum(value or 0.0 for value in side) for side in values]
    percents = [
        [None if value is None or not total else 100 * value / total for value in side]
        for side, total in zip(values, sums, strict=True)
    ]
    rows = tuple(
        (
            term,
            as_rate(values[0][index]),
            as_rate(values[1][index]),
            _percent(percents[0][index]),
            _percent(percents[1][index]),
        )
        for index, term in enumerate(terms)
    )
    title = f"Score weights before and after round {round}'s tuning ({word})"
    bars = [Bars(name, tuple(side)) for name, side in zip(("before", "after"), percents, strict=True)]
    named = [term.replace("_", " ") for term in terms]
    return [
        bar_chart(title, x_label="share of all weights, percent", groups=named, bars=bars, written=_percent),
        Table(
            title, ("term", "weight before", "weight after", "share before", "share after"), rows, folded=True
        ),
    ]


def _percent(value: float | None) -> str:
    return as_percent(value, 100.0)


def _changed_settings(facts: RunFacts, round: int) -> tuple[tuple[Cell, ...], ...]:
    before, after = (facts.mapping(round, "tune", side, "settings") for side in ("before", "after"))
    keys = dict.fromkeys([*before, *after])
    return tuple(
        (Code(f"labels.{key}"), as_value(before.get(key)), as_value(after.get(key)))
        for key in keys
        if before.get(key) != after.get(key)
    )


def _trained_on(facts: RunFacts) -> Table:
    origins = ("human", "agreed", "attention", "model", "negative")
    reasons = ("disagreement", "rejected", "low_score", "unlabelled")
    rows = tuple(
        (
            str(round),
            *(as_count(facts.count(round, "by_origin", origin)) for origin in origins),
            as_count(facts.value(round, "dataset", "known")),
            *(as_count(facts.count(round, "left_out", reason)) for reason in reasons),
        )
        for round in facts.rounds
        if facts.has(round, "dataset")
    )
    head = (
        "round",
        *origins,
        "from outside",
        *(f"left out: {reason.replace('_', ' ')}" for reason in reasons),
    )
    return Table("Images that each round trained on, by the origin of their labels", head, rows)
