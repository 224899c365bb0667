"""The first section of a report: how good the detector is now, and how it got there.

Turns facts into blocks. Every sentence is made from numbers of the ledger.
"""

from __future__ import annotations

from collections.abc import Sequence

from diffugen.errors import counted
from diffugen.report.blocks import (
    FEW,
    NOTHING,
    Block,
    Cell,
    Code,
    Inline,
    Missing,
    Paragraph,
    Section,
    Table,
    Tile,
    Tiles,
    as_count,
    as_percent,
    as_rate,
    finite,
    listed,
)
from diffugen.report.facts import RunFacts
from diffugen.report.measured import strip
from diffugen.report.rounds import MEASURES, measured_aps
from diffugen.report.survey import Survey
from diffugen.run.results import Evaluated, Precision

SAME = 0.005
"""Smaller differences in AP are not reported as a change: they can come from the order of training alone."""

EVIDENCE = {
    "human": "human labels",
    "validation": "the validation set",
    "agreed": "labels on which {labeller} and the detector agree",
    "none": "no evidence",
}
"""From the evidence of a promotion to its name in a sentence; ``{labeller}`` is what made the labels."""


def headline(facts: RunFacts, survey: Survey) -> Section:
    """Return the section to read first: what happened, in a few sentences and four numbers."""
    first = strip(facts)
    blocks: list[Block] = [] if first is None else [first]
    blocks.append(Paragraph((_verdict(facts),), tone="lead"))
    blocks += [Paragraph((text,), tone="warning") for text in facts.unreadable]
    if facts.promoted_on_truth:
        text = "Warning: promotion used the truth set, so these numbers are optimistic."
        blocks.append(Paragraph((text,), tone="warning"))
    if any(one.promote for one in facts.results.values()):
        blocks.append(Paragraph(_promotion(facts)))
    if facts.current is not None:
        blocks.append(Tiles(_tiles(facts.current, facts.initial, facts.reference)))
        blocks.append(_detectors_table(facts.current, facts.initial, facts.reference))
        if facts.reference is not None:
            blocks.append(Paragraph((_reference(facts.reference),), tone="note"))
    elif facts.finished_rounds:
        text = (
            "The detector was not measured on a truth set, so its accuracy is unknown: promotion only "
            "compares two detectors."
        )
        blocks.append(Paragraph((text,)))
    else:
        what = (
            "No detector has been trained yet" if facts.summary.images else "Nothing has been generated yet"
        )
        blocks.append(Missing(what, facts.continuing))
    blocks.append(_about(facts, survey))
    return Section("headline", "Outcome", tuple(blocks))


# -------------------------------------------------------------------- sentences


def _verdict(facts: RunFacts) -> str:
    current = facts.current
    if current is None or finite(current.mask.ap50) is None:
        if facts.finished_rounds:
            done = counted(len(facts.finished_rounds), "round")
            return " ".join(filter(None, (f"{done} done.", _promoted(facts), _stopped(facts))))
        images = facts.summary.images
        if not images:
            return "This run is empty."
        labelled = any("attention" in one.label_sets for one in facts.summary.rounds.values())
        labels = f"with {facts.labels_name}" if labelled else "without labels"
        text = f"This run has {counted(images, 'image')} {labels} and no trained detector."
        return f"{text} {_stopped(facts)}" if facts.looped else text
    return " ".join(filter(None, (_change(facts, current), _promoted(facts), _stopped(facts))))


def _change(facts: RunFacts, current: Evaluated) -> str:
    return _overall_change(facts, current) + "".join(
        f" {text}" for name in facts.rare_classes if (text := _rare(facts, current, name))
    )


def _rare(facts: RunFacts, current: Evaluated, name: str) -> str:
    """Return a sentence about one class: its AP, and where it is found although there is none."""
    if len(current.by_class) < 2 and not current.false_finds:
        return ""
    now = current.by_class.get(name)
    text = f"{name.capitalize()}: mask AP50-95 {as_rate(now.ap50_95 if now else None)}"
    exact = facts.reference.by_class.get(name) if facts.reference else None
    if exact is not None:
        text += f" (exact labels: {as_rate(exact.ap50_95)})"
    finds = current.false_finds.get(name)
    if finds is not None and finds.images:
        text += f", found in {finds.found} of {as_count(finds.images)} scenes without one"
        worst = max(
            (
                one.evaluate.false_finds[name].found
                for one in facts.results.values()
                if one.evaluate and name in one.evaluate.false_finds
            ),
            default=finds.found,
        )
        if worst > finds.found:
            text += f" (at worst {worst})"
    return f"{text}."


def _overall_change(facts: RunFacts, current: Evaluated) -> str:
    now = finite(current.mask.ap50) or 0.0
    before = finite(facts.initial.mask.ap50) if facts.initial else None
    exact = finite(facts.reference.mask.ap50) if facts.reference else None
    if before is None:
        text = f"On {_scenes(current)}, mask AP50 is {as_rate(now)}"
    elif abs(now - before) < SAME:
        text = (
            f"On {_scenes(current)}, mask AP50 did not change: {as_rate(before)} before, {as_rate(now)} now"
        )
    else:
        verb = "rose" if now > before else "fell"
        text = f"On {_scenes(current)}, mask AP50 {verb} from {as_rate(before)} to {as_rate(now)}"
        text += f" ({now - before:+.3f})"
    share = _relative(now, exact, current, facts.reference)
    return f"{text}." if share == NOTHING else f"{text}, {share} of the AP50 with exact labels."


def _relative(
    value: float | None, exact: float | None, measured: Evaluated, reference: Evaluated | None
) -> str:
    """Return a value as a share of that with exact labels, unless either rests on few images."""
    if value is None or not exact or reference is None:
        return NOTHING
    if measured.images < FEW or (reference.labels is not None and reference.labels < FEW):
        return NOTHING
    return as_percent(value, exact) if value <= exact else "more than 100%"


def _scenes(current: Evaluated) -> str:
    return f"{as_count(current.images)} images of {current.truth}"


def _promoted(facts: RunFacts) -> str:
    decided = [number for number, one in facts.results.items() if one.promote]
    won = facts.promoted_rounds
    if not decided:
        return ""
    if not won:
        return f"No new detector was promoted in {counted(len(decided), 'round')}."
    lost = [one for one in decided if one not in won]
    rest = f" but not in {_named(lost)}" if lost else ""
    return f"A new detector was promoted in {_named(won)}{rest}."


def _named(numbers: Sequence[int]) -> str:
    return f"round{'' if len(numbers) == 1 else 's'} {listed([str(one) for one in numbers])}"


def _stopped(facts: RunFacts) -> str:
    if not facts.rounds:
        return ""
    last = facts.rounds[-1]
    if last not in facts.finished_rounds:
        stages = list(facts.summary.rounds[last].stages)
        last_stage = f": its last finished stage is {stages[-1]}" if stages else ""
        return f"Round {last} is not finished{last_stage}."
    lost = last - max(facts.promoted_rounds, default=-1)
    loop = facts.config.loop if facts.config else None
    if loop and lost >= loop.patience and facts.results[last].promote:
        return f"The loop stopped after round {last}: {counted(lost, 'round')} without a better detector."
    if loop and last + 1 >= loop.rounds:
        return f"The loop ended after {counted(last + 1, 'round')}, as configured."
    return f"Round {last} is the latest so far."


def _promotion(facts: RunFacts) -> tuple[Inline, ...]:
    kinds = [one.promote.evidence for one in facts.results.values() if one.promote]
    named = [
        EVIDENCE.get(kind, kind).format(labeller=facts.labeller) for kind in dict.fromkeys(kinds) if kind
    ]
    based = f"Promotion was based on {listed(named) or 'evidence that was not noted'}."
    if facts.promoted_on_truth is None:
        based += " Whether that is the truth set is unknown, because the configuration cannot be read."
    elif not facts.promoted_on_truth:
        based += " It did not use the truth set."
    won = facts.promoted_rounds
    promote = facts.results[won[-1]].promote if won else None
    if promote is not None:
        checkpoint = Code(facts.short(promote.checkpoint))
        return (f"{based} Current detector, from round {won[-1]}: ", checkpoint, ".")
    if facts.initial is not None:
        return (f"{based} The detector is still ", Code(facts.short(facts.initial.checkpoint)), ".")
    return (f"{based} The detector is still the one that the loop started with.",)


def _reference(reference: Evaluated) -> str:
    amount = "as many" if reference.labels is None else f"{reference.labels:,}"
    return (
        "Exact labels: a detector of the same kind, trained separately from the loop on "
        f"{amount} exactly labelled images."
    )


# -------------------------------------------------------------------- tables and charts


def _tiles(current: Evaluated, initial: Evaluated | None, reference: Evaluated | None) -> tuple[Tile, ...]:
    tiles = []
    for name, value in MEASURES:
        now = value(current.mask)
        before = value(initial.mask) if initial else None
        exact = value(reference.mask) if reference else None
        gain = "initial detector not measured"
        if now is not None and before is not None:
            gain = f"{now - before:+.3f} from {before:.3f} initially"
        tiles.append(Tile(f"mask {name}", as_rate(now), gain))
        detail = "not measured"
        if exact is not None and reference is not None:
            amount = "" if reference.labels is None else f", {counted(reference.labels, 'image')}"
            detail = f"exact labels: {exact:.3f}{amount}"
        share = _relative(now, exact, current, reference)
        tiles.append(Tile(f"{name} relative to exact labels", share, detail))
    return tuple(tiles)


def _detectors_table(current: Evaluated, initial: Evaluated | None, reference: Evaluated | None) -> Table:
    rows: list[tuple[Cell, ...]] = []
    exact = reference.mask if reference else Precision()
    for name, one in (("initial", initial), ("current", current), ("exact labels", reference)):
        if one is None:
            rows.append((name, *[NOTHING] * 6))
            continue
        shares = [_relative(value(one.mask), value(exact), one, reference) for _, value in MEASURES]
        rows.append((name, *measured_aps(one), *shares, as_count(one.images)))
    head = (
        "detector",
        "mask AP50",
        "mask AP50-95",
        "box AP50",
        "AP50, relative to exact",
        "AP50-95, relative to exact",
        "images",
    )
    return Table(f"Detectors on {current.truth}", head, tuple(rows))


def _about(facts: RunFacts, survey: Survey) -> Table:
    current, config = facts.current, facts.config
    finished, begun = len(facts.finished_rounds), len(facts.rounds)
    classes = list(config.prompts.classes if config else survey.classes)
    rows: list[tuple[Cell, ...]] = [
        ("folder", Code(str(facts.folder))),
        ("configuration", config.name if config else NOTHING),
        ("classes", ", ".join(classes) or NOTHING),
        ("rounds finished", f"{finished} of {begun} started" if begun != finished else str(finished)),
        ("images", as_count(facts.summary.images)),
        ("truth set", f"{current.truth}, {as_count(current.images)} images" if current else NOTHING),
        ("last activity", facts.last_activity or NOTHING),
    ]
    return Table("This run", ("property", "value"), tuple(rows))
