"""A section of a report, and the strip above all others: what the detector finds in held-out scenes.

Shows what evaluation kept in the run: a few scenes, false finds, precision by recall, classes and sizes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from diffugen.labels.pictures import enlarged, label_overlay
from diffugen.records import RECALLS, Curve, FalseFinds, Instances
from diffugen.report.blocks import (
    NOTHING,
    Block,
    Cell,
    Chart,
    Gallery,
    Paragraph,
    Picture,
    Section,
    Shown,
    Table,
    as_count,
    as_percent,
    as_rate,
    finite,
)
from diffugen.report.charts import Line, line_chart
from diffugen.report.encoded import HEIGHT, jpeg, side_by_side
from diffugen.report.facts import RunFacts
from diffugen.run.results import Evaluated
from diffugen.run.scenes import MeasuredScene, read_scenes

RGB = NDArray[np.uint8]


def strip(facts: RunFacts) -> Gallery | None:
    """Return the first held-out scenes: image, initial detector, current detector, truth."""
    number = facts.measured_round
    now = [] if number is None else read_scenes(facts.folder, "evaluate", number, "first")
    if not now or facts.current is None:
        return None
    before = {one.name: one.found for one in read_scenes(facts.folder, "evaluate-base", 0, "first")}
    about = f"The first {len(now)} scenes of {facts.current.truth}; none was chosen."
    shown = tuple(_shown(facts, one, {"initial detector": before.get(one.name)}) for one in now)
    return Gallery("Held-out scenes", about, shown)


def measured(facts: RunFacts) -> Section:
    """Return what evaluation measured besides AP; without blocks where it measured nothing else."""
    current = facts.current
    blocks: list[Block] = []
    if current is not None and current.by_class:
        blocks += [chart for chart in (_false_finds(facts), _precision_by_recall(facts)) if chart]
        blocks += [_classes(facts, current), _sizes(current)]
        blocks.append(Paragraph((_note(facts, current),), tone="note"))
        worst = _worst(facts)
        if worst is not None:
            blocks.append(worst)
    return Section("truth", "On held-out truth", tuple(blocks))


def _shown(
    facts: RunFacts, scene: MeasuredScene, others: Mapping[str, Instances | None], *more: str
) -> Shown:
    """Return a scene with what was found in it: by other detectors, by the current one, and the truth."""
    names, size_wh = facts.class_names, scene.truth.size_wh
    drawn: list[tuple[str, RGB | None, str]] = [
        ("scene", enlarged(scene.rgb, HEIGHT), f"held-out scene {scene.name}")
    ]
    for label, found in {**others, "current detector": scene.found, "truth": scene.truth}.items():
        overlay = None if found is None else label_overlay(scene.rgb, found, HEIGHT, names)
        drawn.append((label, overlay, f"{label}: {_in_words(found)}"))
    pictures = tuple(Picture(label, None if one is None else jpeg(one), alt) for label, one, alt in drawn)
    lines = (f"found: {_in_words(scene.found)}; truth: {_in_words(scene.truth)}", *more)
    return Shown(scene.name, lines, pictures, side_by_side(size_wh, [one for _, one, _ in drawn]))


def _in_words(instances: Instances | None) -> str:
    if instances is None:
        return "not measured"
    return ", ".join(instances.class_names) or "nothing"


def _worst(facts: RunFacts) -> Gallery | None:
    number = facts.measured_round
    scenes = [] if number is None else read_scenes(facts.folder, "evaluate", number, "worst")
    scenes = [one for one in scenes if one.error > 0]
    if not scenes:
        return None
    shown = tuple(_shown(facts, one, {}, f"wrong by {one.error:.1f} objects") for one in scenes)
    about = "The largest errors: a missed or false object counts 1, a matched one counts 1 - IoU."
    return Gallery("Worst failures of the current detector", about, shown)


def _false_finds(facts: RunFacts) -> Chart | None:
    """Return, for the rare classes, the share of images without the class in which it is found, by round."""
    measured = {number: one.evaluate for number, one in facts.results.items() if one.evaluate}
    ticks = [(float(number), f"round {number}") for number in measured]
    if facts.initial is not None and facts.initial.false_finds:
        ticks.insert(0, (-1.0, "initial"))
    lines = []
    for name in facts.rare_classes:
        points = [
            (x, share)
            for x, _ in ticks
            for one in [facts.initial if x < 0 else measured[int(x)]]
            if one and name in one.false_finds and (share := one.false_finds[name].share) is not None
        ]
        if points:
            lines.append(Line(name, tuple(points)))
    if not lines or facts.current is None:
        return None
    images = {facts.current.false_finds[line.name].images for line in lines}
    return line_chart(
        f"False finds on {facts.current.truth}: scenes without the class",
        x_label="after round",
        y_label=f"share of {as_count(min(images))} scenes",
        x_ticks=ticks,
        lines=lines,
        inset_px=26,
        with_values=True,
        written=lambda value: f"{100 * value:.0f}%",
    )


def _precision_by_recall(facts: RunFacts) -> Chart | None:
    current = facts.current
    curves: dict[str, Curve] = {}
    if current is not None:
        curves = {name: current.curves[name] for name in facts.rare_classes if name in current.curves}
    if not curves:
        return None
    lines = [Line(f"{name}: {_recommended(curve)}", _drawn(curve)) for name, curve in curves.items()]
    return line_chart(
        "Precision by recall at IoU .50, with the confidence that is best (F1)",
        x_label="recall",
        y_label="precision",
        x_ticks=[(0.0, "0"), (0.25, "0.25"), (0.5, "0.5"), (0.75, "0.75"), (1.0, "1")],
        lines=lines,
        y_top=1.0,
    )


def _recommended(curve: Curve) -> str:
    confidence, precision, recall = curve.best()
    return f"from {confidence:.2f} on, precision {precision:.2f}, recall {recall:.2f}"


def _drawn(curve: Curve) -> tuple[tuple[float, float], ...]:
    return tuple(
        (recall, precision) for recall, precision in list(zip(RECALLS, curve.precision, strict=True))[::5]
    )


def _classes(facts: RunFacts, current: Evaluated) -> Table:
    rows: list[tuple[Cell, ...]] = []
    everywhere = not any(one.images for one in current.false_finds.values())
    for name, now in current.by_class.items():
        others = [one.by_class.get(name) if one else None for one in (facts.initial, facts.reference)]
        finds = current.false_finds.get(name)
        curve = current.curves.get(name)
        best = curve.best() if curve else None
        rows.append(
            (
                name,
                *(as_rate(one.ap50_95) if one else NOTHING for one in (others[0], now, others[1])),
                as_rate(now.ap50),
                f"{best[0]:.2f}" if best else NOTHING,
                *(() if everywhere else _share_and_count(finds)),
            )
        )
    head = (
        "class",
        "initial AP50-95",
        "current AP50-95",
        "exact labels AP50-95",
        "current AP50",
        "best confidence",
        *(() if everywhere else ("found where there is none", "scenes without it")),
    )
    return Table(f"Mask AP by class on {current.truth}", head, tuple(rows))


def _share_and_count(finds: FalseFinds | None) -> tuple[str, str]:
    if finds is None:
        return NOTHING, NOTHING
    return as_percent(finds.found, finds.images), as_count(finds.images)


def _sizes(current: Evaluated) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (
            f"{one.low:.2f} to {one.high:.2f}",
            as_count(one.objects),
            as_percent(one.found, one.objects),
            as_rate(finite(one.iou)),
        )
        for one in current.sizes
        if one.objects
    ]
    head = ("size (root of the area share)", "objects", "found", "mean mask IoU")
    return Table("Objects by size", head, tuple(rows))


def _note(facts: RunFacts, current: Evaluated) -> str:
    least = facts.config.detector.confidence if facts.config else None
    text = f"n = {current.images} scenes. "
    if least is not None:
        text += f"Finds and sizes count detections from a confidence of {least:g} on. "
    if current.raw_mask is not None:
        raw, now = finite(current.raw_mask.ap50_95), finite(current.mask.ap50_95)
        text += (
            f"Masks are refined, one per object: mask AP50-95 is {as_rate(now)}. As the detector returns "
            f"them, it is {as_rate(raw)}."
        )
    return text.strip()
