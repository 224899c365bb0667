"""A section of a report: where the label sources disagree, what to review next, and what was decided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from diffugen.errors import counted
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
    listed,
)
from diffugen.report.charts import Bars, Line, bar_chart, line_chart
from diffugen.report.facts import RunFacts
from diffugen.report.quality import attention_labels, evidence_labels
from diffugen.report.survey import Survey
from diffugen.review.queue import AUDIT, Queue, count_queue
from diffugen.run.store import RunStore

QUEUE_LENGTH = 10
"""Images of the review queue that a report lists."""

_HEADS = {
    "attention": "attention is right",
    "model": "model is right",
    "edited": "edited",
    "empty": "empty",
    "reject": "rejected",
}


@dataclass(frozen=True)
class _Counts:
    """Disagreements of a round by kind, with agreements and compared images if these were kept."""

    kinds: Mapping[str, int]
    agreements: int | None = None
    images: int | None = None


def disagreements(store: RunStore, facts: RunFacts, survey: Survey, queue: Queue) -> Section:
    """Return the disagreements by kind and round, the head of the review queue, and the decisions."""
    blocks: list[Block] = []
    counts = _counts(facts)
    if counts:
        blocks += _kind_blocks(counts, facts.labeller)
        blocks += _queue_blocks(store, facts, survey, queue)
    else:
        what = f"{facts.labels_name.capitalize()} and model labels have not been compared yet"
        blocks.append(Missing(what, facts.continuing))
    if survey.verdicts:
        blocks.append(_verdicts(survey))
        blocks += _reliability_blocks(facts)
    else:
        blocks.append(Missing("No image of this run has been reviewed", (facts.command("review"),)))
    return Section("disagreements", "Disagreements and decisions", tuple(blocks))


def _counts(facts: RunFacts) -> dict[int, _Counts]:
    """Return what each comparison found; for runs that kept no comparison, what the queue holds."""
    found = {
        round: _Counts(one.compare.kinds, one.compare.agreements, one.compare.images)
        for round, one in facts.results.items()
        if one.compare
    }
    if found:
        return found
    rounds = facts.summary.rounds
    return {round: _Counts(one.disagreements) for round, one in rounds.items() if one.disagreements}


def _kind_blocks(counts: Mapping[int, _Counts], labeller: str) -> list[Block]:
    named = [kind.replace("_", " ") for kind in KINDS]
    by_round = {round: [one.kinds.get(kind, 0) for kind in KINDS] for round, one in counts.items()}
    bars = [
        Bars(name, tuple(float(found[index]) for found in by_round.values()))
        for index, name in enumerate(named)
    ]
    rows = tuple(
        (
            str(round),
            *map(as_count, by_round[round]),
            as_count(sum(by_round[round])),
            as_count(one.agreements),
            as_count(one.images),
            f"{100 * sum(by_round[round]) / one.images:.1f}" if one.images else NOTHING,
        )
        for round, one in counts.items()
    )
    head = ("round", *named, "all", "agreements", "images compared", "disagreements per 100 images")
    note = (
        f"Overlooked: the detector sees an object that {labeller} missed. Spurious: {labeller} sees an "
        "object that the detector does not. Swapped: same place, different classes. Badly located: same "
        "class, low IoU. Each round compares all images that have both kinds of labels by then."
    )
    chart = bar_chart(
        "Disagreements found in each round, by kind",
        x_label="disagreements",
        bars=bars,
        stacked=True,
        written=as_count,
        groups=[f"round {round}" for round in counts],
    )
    return [chart, Paragraph((note,), tone="note"), Table("Disagreements by kind and round", head, rows)]


def _reliability_blocks(facts: RunFacts) -> list[Block]:
    """Return how often labels of a severity turned out wrong, once at least two ranges have labels."""
    kept = [one.compare.reliability for one in facts.results.values() if one.compare]
    bins = kept[-1] if kept else ()
    if len(bins) < 2:
        return []
    points = tuple((one.severity, one.wrong / one.labels) for one in bins)
    chart = line_chart(
        "Severity, and how often the label was wrong",
        x_label="severity",
        y_label="labels that were wrong",
        x_ticks=[(place, f"{place:.1f}") for place in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)],
        lines=[Line("decided", points), Line("severity is right", ((0.0, 0.0), (1.0, 1.0)), plain=True)],
        y_top=1.0,
    )
    counts = listed([f"{one.wrong} of {one.labels}" for one in bins])
    note = (
        f"Labels of decided images, in ranges of severity: {counts} were wrong. Each severity was calibrated "
        "by the decisions about other images."
    )
    return [chart, Paragraph((note,), tone="note")]


def _queue_blocks(store: RunStore, facts: RunFacts, survey: Survey, queue: Queue) -> list[Block]:
    counts = count_queue(queue.store)
    found = counted(counts.disagreements, "disagreement")
    text = (
        f"The review queue has {counted(counts.images, 'image')}: "
        f"{counts.images - counts.audits:,} with a disagreement ({found} in all) "
        f"and {counted(counts.audits, 'audit')}, images on which both sources agree. "
        f"{counts.decided:,} of them {'is' if counts.decided == 1 else 'are'} decided, "
        f"{counts.waiting:,} {'waits' if counts.waiting == 1 else 'wait'} for a decision."
    )
    waiting = queue.waiting
    if not waiting:
        return [Paragraph((text,))]
    places = {image_id: place for place, image_id in enumerate(queue.disagreements, start=1)}
    rows = tuple(
        _queue_row(store, facts, survey, queue, image_id, places[image_id])
        for image_id in waiting[:QUEUE_LENGTH]
    )
    head = ("place", "image", "kind", "severity", "labels", "IoU", "prompt")
    return [
        Paragraph((text,)),
        Table("Review these next: head of the queue, worst disagreement of each image", head, rows),
        Paragraph(("To review: ", facts.command("review"))),
    ]


def _queue_row(
    store: RunStore, facts: RunFacts, survey: Survey, queue: Queue, image_id: str, place: int
) -> tuple[str | Code, ...]:
    found = queue.disagreements[image_id]
    worst = max(found, key=lambda one: one.severity, default=None)
    prompt = store.record(image_id).prompt.text
    if worst is None:
        return (str(place), Code(image_id), AUDIT, *[NOTHING] * 3, prompt)
    return (
        str(place),
        Code(image_id),
        worst.kind.replace("_", " "),
        as_rate(worst.severity),
        _labels_in_words(store, facts, survey, worst),
        as_rate(worst.iou),
        prompt,
    )


def _labels_in_words(store: RunStore, facts: RunFacts, survey: Survey, one: Disagreement) -> str:
    """Return class and score on either side, read from the labels that were compared."""
    said = []
    if one.attention is not None:
        attention = attention_labels(store, one.image_id, facts.compared_method)
        if one.attention < len(attention):
            score = as_rate(float(attention.scores[one.attention]))
            said.append(f"{facts.labeller}: {attention.class_names[one.attention]} {score}")
    if one.model is not None:
        model = evidence_labels(store, survey, "model", one.image_id)
        if one.model < len(model):
            said.append(f"model: {model.class_names[one.model]} {as_rate(float(model.scores[one.model]))}")
    return ", ".join(said) or NOTHING


def _verdicts(survey: Survey) -> Table:
    rows = tuple(
        (
            str(round),
            *(as_count(counts.get(verdict, 0)) for verdict in VERDICTS),
            as_count(sum(counts.values())),
        )
        for round, counts in sorted(survey.verdicts.items())
    )
    head = ("round", *(_HEADS[verdict] for verdict in VERDICTS), "all")
    return Table("Decisions by verdict (one for each image)", head, rows)
