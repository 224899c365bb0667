"""A section of a report: how far the labels can be trusted, what tuning changed, and what was trained on."""

from __future__ import annotations

from collections.abc import Sequence

from diffugen.comparison.metrics import ClassQuality
from diffugen.errors import counted
from diffugen.records import SOURCES
from diffugen.report.blocks import (
    FEW,
    Block,
    Cell,
    Chart,
    Missing,
    Paragraph,
    Section,
    Table,
    as_count,
    as_rate,
    listed,
)
from diffugen.report.charts import Line, line_chart
from diffugen.report.facts import RunFacts
from diffugen.report.quality import SAMPLE_SEED, Comparison, Evidence, Quality
from diffugen.report.tuning import tuning_blocks

_EVIDENCE: dict[Evidence, str] = {"human": "human labels", "model": "model labels"}
_WHEN = {"first": "first settings", "now": "newest"}
_FEW = 5
_ORIGINS = ("human", "agreed", "attention", "model", "evidence", "negative")
_REASONS = ("disagreement", "rejected", "low_score", "unlabelled", "noisy")


def labels(facts: RunFacts, quality: Quality) -> Section:
    """Return the quality of the labels: sources, IoU, score, tuning, training set."""
    if not facts.summary.images:
        missing = Missing("No images, so no labels", (facts.command("generate"),))
        return Section("labels", "Labels", (missing,))
    blocks: list[Block] = []
    if any(one.label_sets for one in facts.summary.rounds.values()):
        blocks.append(_sources(facts))
    else:
        blocks.append(Missing("No image has labels yet", (facts.command("label"),)))
    if quality.comparisons:
        blocks += _quality_blocks(quality, facts.labels_name)
        blocks += _reliability_blocks(quality, facts.labels_name)
    else:
        what = "There are no human or model labels to compare with, so the label quality is unknown"
        blocks.append(Missing(what, facts.continuing))
    blocks += tuning_blocks(facts)
    if any(one.dataset for one in facts.results.values()):
        blocks.append(_training_sets(facts))
        blocks += _sifted(facts)
    return Section("labels", "Labels", tuple(blocks))


def _sources(facts: RunFacts) -> Table:
    rounds = facts.summary.rounds
    sources = [name for name in SOURCES if any(one.label_sets.get(name) for one in rounds.values())]
    rows: list[tuple[Cell, ...]] = []
    for round, one in rounds.items():
        counts = [(one.label_sets.get(source, 0), one.objects.get(source, 0)) for source in sources]
        rows.append((str(round), *(as_count(count) for pair in counts for count in pair)))
    # A detector's labels are stored in the place of attention's; the newest decide what the column is called.
    names = [facts.labeller if source == "attention" else source for source in sources]
    head = ("made in round", *(f"{name}: {what}" for name in names for what in ("images", "objects")))
    title = "Labels by source (an image counts once for each label setting and detector)"
    return Table(title, head, tuple(rows))


# -------------------------------------------------------------------- IoU


def _quality_blocks(quality: Quality, labels_name: str) -> list[Block]:
    rows: list[tuple[Cell, ...]] = []
    for one in quality.comparisons:
        for name, each in _classes(one).items():
            counts = (as_count(one.images), name, as_count(each.objects), as_count(each.labels))
            ious = (as_rate(each.pixel_iou), as_rate(each.label_iou), as_rate(each.object_iou))
            rows.append((_EVIDENCE[one.evidence], _WHEN[one.when], *counts, *ious))
    head = (
        "compared with",
        labels_name,
        "images",
        "class",
        "objects",
        "labels",
        "pixel IoU",
        "IoU per label",
        "IoU per object",
    )
    return [
        Paragraph((_quality_sentence(quality, labels_name),)),
        Table(f"{labels_name.capitalize()} compared with the evidence", head, tuple(rows)),
        Paragraph((_quality_note(quality, labels_name),), tone="note"),
    ]


def _classes(one: Comparison) -> dict[str, ClassQuality]:
    """Return the quality of each class, and of all classes together first if there are several."""
    by_class = dict(one.quality.by_class)
    if len(by_class) < 2:
        return by_class
    everything = ClassQuality(
        sum(each.objects for each in by_class.values()),
        sum(each.labels for each in by_class.values()),
        one.quality.pixel_iou,
        one.quality.label_iou,
        one.quality.object_iou,
    )
    return {"all (mean over classes)": everything, **by_class}


def _quality_sentence(quality: Quality, labels_name: str) -> str:
    said = []
    for evidence, known in _EVIDENCE.items():
        sentence = f"Against {known}, {labels_name} reach a mean IoU of"
        now, first = quality.of(evidence, "now"), quality.of(evidence, "first")
        if now is not None:
            change = f" (first settings: {as_rate(first.quality.object_iou)})" if first else ""
            objects = sum(each.objects for each in now.quality.by_class.values())
            count = f"{counted(objects, 'object')} of {counted(now.images, 'image')}"
            if objects < FEW:
                said.append(f"Only {count} can be compared with {_EVIDENCE[evidence]}: too few for a mean.")
            else:
                said.append(f"{sentence} {as_rate(now.quality.object_iou)}{change} on {count}.")
    return " ".join(said)


def _quality_note(quality: Quality, labels_name: str) -> str:
    said = [
        f"IoU per label: mean over the {labels_name}; a label without a matching object counts 0. IoU per "
        "object: mean over the objects of the evidence; a missed object counts 0. Pixel IoU: all pixels of a "
        "class together."
    ]
    for one in quality.comparisons:
        if one.images < one.available:
            images = f"{one.images:,} of {one.available:,} images"
            said.append(
                f"Measured on a random sample (seed {SAMPLE_SEED}): {images} with {_EVIDENCE[one.evidence]}."
            )
            break
    if any(one.evidence == "human" for one in quality.comparisons):
        said.append(
            "People review images with disagreements first, so the rows for human labels describe the "
            "difficult part of the run; labels accepted unchanged count with IoU 1."
        )
    if any(one.evidence == "model" for one in quality.comparisons):
        said.append(
            "Model labels are not ground truth: these rows show agreement, not accuracy. They cover only "
            "images that no detector of the run was trained on."
        )
    return " ".join(said)


# -------------------------------------------------------------------- score


def _reliability_blocks(quality: Quality, labels_name: str) -> list[Block]:
    scored = [one for one in quality.comparisons if one.reliability.count]
    if not scored:
        return []
    charts = [
        _reliability_chart(evidence, [one for one in scored if one.evidence == evidence])
        for evidence in dict.fromkeys(one.evidence for one in scored)
    ]
    # The last one compares the newest labels, which are in use, with model labels if there are any: these are
    # many, and were not selected for disagreement.
    judged = scored[-1]
    note = (
        "On the dotted line, the score equals the expected IoU; the calibration error is the mean distance "
        "from it. Rank correlation: 1 if better labels always score higher, 0 if the score says nothing."
    )
    verdict = f"Compared with {_EVIDENCE[judged.evidence]}, {_worth(judged.reliability.spearman)}"
    return [
        *charts,
        Paragraph((verdict,)),
        Paragraph((note,), tone="note"),
        *_reliability_tables(scored, labels_name),
    ]


def _reliability_tables(scored: Sequence[Comparison], labels_name: str) -> list[Table]:
    summed: list[tuple[Cell, ...]] = []
    curves: list[tuple[Cell, ...]] = []
    for one in scored:
        name, all_labels = (_EVIDENCE[one.evidence], _WHEN[one.when]), one.reliability
        rates = (as_rate(all_labels.spearman), as_rate(all_labels.calibration_error))
        summed.append((*name, as_count(all_labels.count), *rates))
        curves += [
            (
                *name,
                f"{each.low:.2f} to {each.high:.2f}",
                as_count(each.count),
                as_rate(each.mean_score),
                as_rate(each.mean_iou),
            )
            for each in all_labels.bins
            if each.count
        ]
    who = ("compared with", labels_name)
    head = (*who, "labels", "rank correlation of score and IoU", "calibration error")
    return [
        Table("Score compared with IoU", head, tuple(summed)),
        Table(
            "Values of the curves",
            (*who, "score", "labels", "mean score", "mean IoU"),
            tuple(curves),
            folded=True,
        ),
    ]


def _reliability_chart(evidence: Evidence, known: Sequence[Comparison]) -> Chart:
    curves = []
    for one in known:
        bins = [each for each in one.reliability.bins if each.count >= _FEW]
        points = tuple((each.mean_score or 0.0, each.mean_iou or 0.0) for each in bins)
        curves.append(Line(_WHEN[one.when], points))
    return line_chart(
        f"Score and IoU with {_EVIDENCE[evidence]} (bins of at least {_FEW} labels)",
        x_label="score of the label",
        y_label=f"IoU with {_EVIDENCE[evidence]}",
        x_ticks=[(value / 4, f"{value / 4:.2g}") for value in range(5)],
        lines=[*curves, Line("score = IoU", ((0.0, 0.0), (1.0, 1.0)), plain=True)],
        y_top=1.0,
    )


def _worth(correlation: float | None) -> str:
    if correlation is None:
        return "there are too few different scores to tell whether the score ranks the labels."
    if correlation >= 0.5:
        return "the score ranks the labels well: labels with higher scores are better."
    if correlation >= 0.2:
        return "the score ranks the labels weakly: trust it for the best and the worst labels only."
    return "the score says little about the quality of a label: do not filter labels by it."


# -------------------------------------------------------------------- training sets


def _training_sets(facts: RunFacts) -> Table:
    rows = tuple(
        (
            str(round),
            *(as_count(one.dataset.by_origin.get(origin, 0)) for origin in _ORIGINS),
            as_count(one.dataset.known),
            *(as_count(one.dataset.left_out.get(reason, 0)) for reason in _REASONS),
        )
        for round, one in facts.results.items()
        if one.dataset
    )
    reasons = (f"left out: {reason.replace('_', ' ')}" for reason in _REASONS)
    origins = (facts.labeller if origin == "attention" else origin for origin in _ORIGINS)
    head = ("round", *origins, "external", *reasons)
    return Table("Images in each round's dataset, by origin of their labels", head, rows)


def _sifted(facts: RunFacts) -> list[Block]:
    """Return what the noise filter held back and why; nothing where it is off."""
    held_back = {number: one.sift for number, one in facts.results.items() if one.sift and one.sift.held_back}
    if not held_back:
        return []
    rounds = [
        f"{len(one.held_back)} of {one.judged} in round {number} "
        f"({listed([f'{name} {count}' for name, count in sorted(one.by_class.items())])})"
        for number, one in held_back.items()
    ]
    why = (
        "Noisy images are held back (dataset.noise_filter): nobody confirmed their labels, and in their "
        "class they are contradicted most by detectors that were trained on the other images: "
    )
    return [Paragraph((f"{why}{listed(rounds)}.",), tone="note")]
