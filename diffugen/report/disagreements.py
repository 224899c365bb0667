"""A part of a report: where the two label sources contradict each other, what to look at next, and what was
decided.
"""

from __future__ import annotations

from diffugen.records import KINDS, VERDICTS, Disagreement
from diffugen.report.blocks import (
    NOTHING,
    Block,
    Code,
    Missing,
    Paragraph,
    Section,
    Table,
    as_count,
    as_rate,
    counted,
    number,
)
from diffugen.report.charts import Bars, bar_chart
from diffugen.report.facts import RunFacts
from diffugen.report.quality import attention_labels, evidence_labels
from diffugen.report.survey import Survey
from diffugen.run.store import RunStore


def disagreements(store: RunStore, facts: RunFacts, survey: Survey) -> Section:
    """Return disagreements by kind and round, the head of the queue, and decisions."""
    blocks: list[Block] = []
    if facts.any("compare") or any(one["disagreements"] for one in facts.summary["rounds"].values()):
        blocks += _kind_blocks(facts)
        blocks += _queue_blocks(store, facts, survey)
    else:
        blocks.append(
            Missing("Attention labels and model labels were not compared yet", facts.command("loop"))
        )
    if survey.verdicts:
        blocks.append(_verdicts(survey))
    else:
        blocks.append(Missing("Nobody has reviewed an image of this run", facts.command("review")))
    return Section("disagreements", "Disagreements and decisions", tuple(blocks))


def _kind_blocks(facts: RunFacts) -> list[Block]:
    rounds = [one for one in facts.rounds if facts.has(one, "compare")]
    found = {one: facts.mapping(one, "compare", "kinds") for one in rounds}
    if not rounds:  # the disagreements of a run whose loop kept no counts
        rounds = [one for one in facts.rounds if facts.summary["rounds"][one]["disagreements"]]
        found = {one: facts.summary["rounds"][one]["disagreements"] for one in rounds}
    counts = {one: [number(found[one].get(kind)) or 0.0 for kind in KINDS] for one in rounds}
    named = [kind.replace("_", " ") for kind in KINDS]
    bars = [Bars(name, tuple(counts[one][index] for one in rounds)) for index, name in enumerate(named)]
    rows = tuple(
        (
            str(one),
            *map(as_count, counts[one]),
            as_count(sum(counts[one])),
            as_count(facts.value(one, "compare", "agreements")),
            as_count(facts.value(one, "compare", "images")),
            _rate(sum(counts[one]), facts.number(one, "compare", "images")),
        )
        for one in rounds
    )
    head = ("round", *named, "all", "agreements", "images compared", "disagreements per 100 images")
    return [
        bar_chart(
            "Disagreements found in each round, by kind",
            x_label="disagreements",
            bars=bars,
            stacked=True,
            written=as_count,
            groups=[f"round {one}" for one in rounds],
        ),
        Paragraph(
            (
                "Overlooked: the detector sees it, attention missed it. Spurious: the reverse. Swapped: one "
                "place, two classes. "
                "Badly located: one class, low IoU. Each round compares all images that have labels of both "
                "kinds by then.",
            ),
            tone="note",
        ),
        Table("Disagreements by kind and round", head, rows),
    ]


def _rate(count: float, images: float | None) -> str:
    return f"{100 * count / images:.1f}" if images else NOTHING


def _queue_blocks(store: RunStore, facts: RunFacts, survey: Survey) -> list[Block]:
    if not survey.queue:
        return [Paragraph(("No image waits for a decision.",))]
    rows = tuple(
        (
            str(place),
            Code(one.image_id),
            one.kind.replace("_", " "),
            as_rate(one.severity),
            _what(store, facts, survey, one),
            as_rate(one.iou),
            store.record(one.image_id).prompt.text,
        )
        for place, one in enumerate(survey.queue, start=1)
    )
    head = ("place", "image", "kind", "severity", "labels", "IoU", "prompt")
    return [
        Table(f"Look at these next: head of round {survey.queue_round}'s queue", head, rows),
        Paragraph(
            (
                f"{counted(sum(survey.waiting.values()), 'image')} with a disagreement, of all rounds, and "
                "no decision yet. Review: ",
                Code(facts.command("review")),
            )
        ),
    ]


def _what(store: RunStore, facts: RunFacts, survey: Survey, one: Disagreement) -> str:
    """Class and score on either side, from the labels that were compared."""
    said = []
    method = facts.compared_method
    sides = (
        ("attention", one.attention, lambda: attention_labels(store, one.image_id, method)),
        ("model", one.model, lambda: evidence_labels(store, survey, "model", one.image_id)),
    )
    for source, index, read in sides:
        found = read() if index is not None else None
        if found is not None and index is not None and index < len(found):
            said.append(f"{source} {found.class_names[index]} {as_rate(float(found.scores[index]))}")
    return ", ".join(said) or "-"


def _verdicts(survey: Survey) -> Table:
    rows = tuple(
        (
            str(round),
            *(as_count(counts.get(verdict, 0)) for verdict in VERDICTS),
            as_count(sum(counts.values())),
        )
        for round, counts in sorted(survey.verdicts.items())
    )
    head = ("round", "attention is right", "model is right", "edited", "empty", "rejected", "all")
    return Table("Decisions by verdict (the newest of each image)", head, rows)
