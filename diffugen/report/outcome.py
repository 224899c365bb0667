"""The first parts of a report: is the detector good now, and what did each round gain?

Turns facts into blocks. Every sentence is made from numbers of the ledger.
"""

from __future__ import annotations

from collections.abc import Sequence

from diffugen.report.blocks import (
    Block,
    Cell,
    Code,
    Inline,
    Missing,
    Paragraph,
    Section,
    Table,
    Tiles,
    as_count,
    as_percent,
    as_rate,
    counted,
    listed,
    number,
)
from diffugen.report.charts import Line, line_chart
from diffugen.report.facts import Measured, RunFacts
from diffugen.report.survey import Survey

SAME = 0.005
"""APs that differ by less have not changed: rounding and the order of training decide that much."""

EVIDENCE = {
    "human": "human labels",
    "validation": "the labels of the validation split",
    "agreed": "labels on which attention and model agree",
    "none": "no evidence",
}
"""What a promotion can rest on, in words."""


def headline(facts: RunFacts, survey: Survey) -> Section:
    """Return the section to read first: what happened, in a sentence and four numbers."""
    blocks: list[Block] = [Paragraph((_verdict(facts),), tone="lead")]
    final, base, reference = facts.final, facts.base, facts.reference
    if facts.any("promote"):
        blocks.append(Paragraph(_promotion(facts)))
    if final is not None:
        blocks.append(Tiles(_tiles(final, base, reference)))
        blocks.append(_ap_table(final, base, reference))
        if reference is not None:
            blocks.append(Paragraph((_reference(reference),), tone="note"))
    elif facts.finished_rounds:
        blocks.append(
            Paragraph(
                (
                    "No truth was measured, so how good the detector is cannot be said: promotions compare, "
                    "they do not judge.",
                )
            )
        )
    else:
        what = "No detector was trained yet" if facts.summary["images"] else "Nothing was generated yet"
        blocks.append(Missing(what, facts.command("loop")))
    blocks.append(_about(facts, survey))
    return Section("headline", "Outcome", tuple(blocks))


def rounds(facts: RunFacts) -> Section:
    """Return AP per round as charts and a table."""
    blocks: list[Block] = []
    known = [one for one in map(facts.measured, facts.rounds) if one is not None]
    if known:
        for key, name in (("ap50", "mask AP50"), ("ap50_95", "mask AP50-95")):
            chart = _ap_chart(facts, known, key, name)
            blocks += [chart] if chart else []
        blocks.append(
            Paragraph(
                (
                    f"Measured on {known[-1].truth}, after each round, on the detector that is promoted "
                    "then: a round whose "
                    "detector is not promoted repeats the value before it. A detector is promoted on its APs "
                    "on the "
                    "promotion evidence, columns candidate and incumbent, which are no truth and cannot be "
                    "compared with it.",
                ),
                tone="note",
            )
        )
    elif facts.any("promote"):
        blocks.append(Missing("No round was measured on a truth", facts.command("loop")))
    else:
        blocks.append(Missing("No round has trained a detector yet", facts.command("loop")))
    if known or any(facts.any(stage) for stage in ("dataset", "train", "promote")):
        blocks.append(_rounds_table(facts))
    return Section("rounds", "AP per round", tuple(blocks))


def _verdict(facts: RunFacts) -> str:
    final, base, reference = facts.final, facts.base, facts.reference
    if final is None or final.ap50 is None:
        if facts.finished_rounds:
            return (
                f"{counted(len(facts.finished_rounds), 'round')} done. {_promoted(facts)} {_stopped(facts)}"
            )
        images = facts.summary["images"]
        if not images:
            return "This run is empty."
        labelled = any("attention" in one["label_sets"] for one in facts.summary["rounds"].values())
        labels = "with attention labels" if labelled else "not labelled yet"
        return f"This run has {counted(images, 'image')}, {labels}, and no detector."
    change = f"On {final.truth}, mask AP50 is {as_rate(final.ap50)}"
    if base is not None and base.ap50 is not None:
        gain = final.ap50 - base.ap50
        verb = "rose" if gain > 0 else "fell"
        change = (
            f"On {final.truth}, mask AP50 did not change: {as_rate(base.ap50)} before, {as_rate(final.ap50)} "
            "now"
            if abs(gain) < SAME
            else f"On {final.truth}, mask AP50 {verb} from {as_rate(base.ap50)} to {as_rate(final.ap50)} "
            f"({gain:+.3f})"
        )
    if reference is not None and reference.ap50:
        change += f", {as_percent(final.ap50, reference.ap50)} of what exact labels give"
    return f"{change}. {_promoted(facts)} {_stopped(facts)}".strip()


def _promoted(facts: RunFacts) -> str:
    decided = [one for one in facts.rounds if facts.has(one, "promote")]
    won = facts.promoted_rounds
    if not decided:
        return ""
    if not won:
        return f"No new detector was promoted in {counted(len(decided), 'round')}."
    lost = [one for one in decided if one not in won]
    rest = f", not in {_named(lost)}" if lost else ""
    return f"A new detector was promoted in {_named(won)}{rest}."


def _named(numbers: Sequence[int]) -> str:
    return f"round{'' if len(numbers) == 1 else 's'} {listed([str(one) for one in numbers])}"


def _stopped(facts: RunFacts) -> str:
    if not facts.rounds:
        return ""
    last = facts.rounds[-1]
    if not facts.has(last, "promote"):
        return f"Round {last} is not finished: its stage {facts.next_stage(last)} has not run."
    lost = last - max(facts.promoted_rounds, default=-1)
    patience, asked = number(facts.setting("loop", "patience")), number(facts.setting("loop", "rounds"))
    if patience is not None and lost >= patience:
        return f"The loop stopped after round {last}: {counted(lost, 'round')} without a better detector."
    if asked is not None and last + 1 >= asked:
        return f"The loop has done the {counted(last + 1, 'round')} that it was asked for."
    return f"Round {last} is the last so far."


def _promotion(facts: RunFacts) -> tuple[Inline, ...]:
    kinds = [facts.value(one, "promote", "evidence") for one in facts.rounds if facts.has(one, "promote")]
    named = [EVIDENCE.get(str(kind), str(kind)) for kind in dict.fromkeys(kinds) if kind]
    won = facts.promoted_rounds
    path = facts.value(won[-1], "promote", "checkpoint") if won else None
    rested = f"it rested on {listed(named)}." if named else "what it rested on was not kept."
    if facts.promoted_on_truth:
        rested = f"Beware: the validation that promotions rested on is the truth itself, so these numbers flatter; {rested}"
    else:
        rested = f"Promotion never looked at the truth: {rested}"
    if not path:
        base = facts.base
        kept: tuple[Inline, ...] = (
            (Code(facts.short(base.checkpoint)),) if base and base.checkpoint else ("the first one",)
        )
        return (rested, " The detector is still ", *kept, ".")
    return (rested, f" The detector, promoted in round {won[-1]}: ", Code(facts.short(str(path))), ".")


def _tiles(
    final: Measured, base: Measured | None, reference: Measured | None
) -> tuple[tuple[str, str, str], ...]:
    tiles = []
    for name, now, before, exact in (
        ("mask AP50", final.ap50, base.ap50 if base else None, reference.ap50 if reference else None),
        (
            "mask AP50-95",
            final.ap50_95,
            base.ap50_95 if base else None,
            reference.ap50_95 if reference else None,
        ),
    ):
        gain = "" if now is None or before is None else f"{now - before:+.3f} over base {before:.3f}"
        tiles.append((name, as_rate(now), gain or "base not measured"))
        share = as_percent(now, exact)
        detail = "not measured" if exact is None else f"exact labels give {exact:.3f}"
        tiles.append((f"of exact labels, {name.removeprefix('mask ')}", share, detail))
    return tuple(tiles)


def _ap_table(final: Measured, base: Measured | None, reference: Measured | None) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name, one in (("base", base), ("final", final), ("exact labels", reference)):
        if one is None:
            rows.append((name, "-", "-", "-", "-", "-", "-"))
            continue
        rows.append(
            (
                name,
                as_rate(one.ap50),
                as_rate(one.ap50_95),
                as_rate(one.box_ap50),
                as_percent(one.ap50, reference.ap50 if reference else None),
                as_percent(one.ap50_95, reference.ap50_95 if reference else None),
                as_count(one.images),
            )
        )
    head = (
        "detector",
        "mask AP50",
        "mask AP50-95",
        "box AP50",
        "of exact, AP50",
        "of exact, AP50-95",
        "truth images",
    )
    return Table(f"Detectors on {final.truth}", head, tuple(rows))


def _reference(reference: Measured) -> str:
    amount = "as many" if reference.labels is None else f"{reference.labels:,.0f}"
    return f"Exact labels: the same kind of detector, trained apart from the loop on {amount} exactly labelled images."


def _about(facts: RunFacts, survey: Survey) -> Table:
    final = facts.final
    classes = list(facts.setting("prompts", "classes") or survey.classes)
    finished = len(facts.finished_rounds)
    begun = len(facts.rounds)
    rows: list[tuple[Cell, ...]] = [
        ("run", Code(str(facts.folder))),
        ("configuration", facts.config_name or "-"),
        ("classes", ", ".join(classes) or "-"),
        ("rounds done", f"{finished} of {begun} begun" if begun != finished else str(finished)),
        ("images", as_count(facts.summary["images"])),
        ("truth", "-" if final is None else f"{final.truth}, {as_count(final.images)} images"),
        ("last activity", facts.last_activity or "-"),
    ]
    return Table("This run", ("what", "value"), tuple(rows))


def _ap_chart(facts: RunFacts, known: Sequence[Measured], key: str, name: str) -> Block | None:
    base, reference = facts.base, facts.reference
    values = [(float(one.round), getattr(one, key)) for one in known]
    first = getattr(base, key) if base is not None else None
    ticks = [(float(one.round), f"round {one.round}" if len(known) < 6 else str(one.round)) for one in known]
    if first is not None:
        values.insert(0, (-1.0, first))
        ticks.insert(0, (-1.0, "base"))
    points = tuple((x, y) for x, y in values if y is not None)
    if not points:
        return None
    levels = [
        (label, getattr(one, key))
        for label, one in (("base", base), ("exact labels", reference))
        if one is not None and getattr(one, key) is not None
    ]
    tall = max([y for _, y in points] + [level for _, level in levels])
    return line_chart(
        f"{name} on {known[-1].truth}",
        x_label="after round",
        y_label=name,
        x_ticks=ticks,
        lines=[Line("promoted detector", points)],
        levels=levels,
        y_top=1.0 if tall > 0.75 else None,
        inset_px=26,
        with_values=True,
    )


def _rounds_table(facts: RunFacts) -> Table:
    head = (
        "round",
        "new images",
        "train",
        "val",
        "agreed",
        "waiting",
        "AP50",
        "AP50-95",
        "box AP50",
        "evidence",
        "candidate",
        "incumbent",
        "promoted",
    )
    rows: list[tuple[Cell, ...]] = []
    if facts.base is not None:
        base = facts.base
        measures = (as_rate(base.ap50), as_rate(base.ap50_95), as_rate(base.box_ap50))
        rows.append(("base", *["-"] * 5, *measures, *["-"] * 4))
    for one in facts.rounds:
        measured = facts.measured(one)
        promoted = facts.value(one, "promote", "promoted")
        rows.append(
            (
                str(one),
                as_count(facts.summary["rounds"][one]["images"]),
                as_count(facts.value(one, "dataset", "train")),
                as_count(facts.value(one, "dataset", "val")),
                as_count(facts.count(one, "by_origin", "agreed")),
                as_count(facts.count(one, "left_out", "disagreement")),
                as_rate(measured and measured.ap50),
                as_rate(measured and measured.ap50_95),
                as_rate(measured and measured.box_ap50),
                str(facts.value(one, "promote", "evidence") or "-"),
                _two(facts, one, "candidate"),
                _two(facts, one, "incumbent"),
                "-" if promoted is None else "yes" if promoted else "no",
            )
        )
    title = "Rounds (agreed and waiting: training images whose labels agree; images left out until someone decides)"
    return Table(title, head, tuple(rows))


def _two(facts: RunFacts, round: int, side: str) -> str:
    values = [facts.number(round, "promote", side, key) for key in ("ap50", "ap50_95")]
    return "-" if values == [None, None] else " / ".join(map(as_rate, values))
