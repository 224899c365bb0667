"""The last sections of a report: prompt coverage, where the time went, and how to reproduce the run."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version

from diffugen import __version__
from diffugen.report.blocks import (
    NOTHING,
    Bar,
    Block,
    Cell,
    Code,
    Details,
    Missing,
    Paragraph,
    Section,
    Table,
    as_count,
    as_percent,
    as_rate,
    as_seconds,
)
from diffugen.report.charts import Bars, bar_chart
from diffugen.report.facts import RunFacts
from diffugen.report.quality import MOST_IMAGES, SAMPLE_SEED
from diffugen.report.survey import Cover, Gap, Survey, attribute_gaps

_MOST_VALUES = 24
_PACKAGES = ("torch", "diffusers", "transformers", "ultralytics", "optuna", "numpy")
_MEASURES = {
    "agreed_frac": "Fewest images without a disagreement",
    "seen_frac": "Fewest images in which the detector finds the prompted classes",
    "score": "Lowest mean score",
    "found_frac": "Fewest images in which {labeller} finds the prompted classes",
}


def coverage(facts: RunFacts, survey: Survey) -> Section:
    """Return how often each attribute value occurs and how well its images do."""
    if not survey.overall.images:
        missing = Missing("No images, so no prompts to cover", (facts.command("generate"),))
        return Section("coverage", "Prompt coverage", (missing,))
    gaps = attribute_gaps(survey)
    blocks: list[Block] = [Paragraph((_gap(key, gap, facts.labeller),)) for key, gap in gaps.items()]
    if not gaps:
        blocks.append(Paragraph(("No attribute value does notably worse than the others.",)))
    blocks.append(_attributes(survey, facts.labeller))
    if not survey.attributes:
        blocks.append(Paragraph(("The prompts of this run have no attributes.",)))
    note = (
        f"{facts.labeller.capitalize()} found, detector found: images in which {facts.labels_name}, or model "
        "labels, include every class that the prompt names. No disagreement: share of the images that have "
        "both kinds of labels. A prompt whose template lacks an attribute is in none of its rows."
    )
    blocks.append(Paragraph((note,), tone="note"))
    return Section("coverage", "Prompt coverage", tuple(blocks))


def times(facts: RunFacts) -> Section:
    """Return where the time went; stages are listed in the order in which they first finished."""
    seconds = _seconds(facts)
    if not seconds:
        missing = Missing("Nothing has been timed yet", (facts.command("generate"),))
        return Section("time", "Time", (missing,))
    stages = list(dict.fromkeys(stage for by_stage in seconds.values() for stage in by_stage))
    images = facts.summary.images
    rows: list[tuple[Cell, ...]] = []
    for stage in stages:
        row = [by_stage.get(stage) for by_stage in seconds.values()]
        rows.append((stage, *map(as_seconds, row), *_sums(row, images)))
    by_round = [sum(by_stage.values()) for by_stage in seconds.values()]
    rows.append(("all", *map(as_seconds, by_round), *_sums(by_round, images)))
    totals = [sum(by_stage.get(stage, 0.0) for by_stage in seconds.values()) for stage in stages]
    chart = bar_chart(
        "Time by stage, all rounds",
        x_label="seconds",
        groups=stages,
        bars=[Bars("all rounds", tuple(totals))],
        written=as_seconds,
    )
    head = ("stage", *(f"round {round}" for round in seconds), "all rounds", "per image")
    title = "Time by stage and round (per image: all rounds, divided by the images of the run)"
    return Section("time", "Time", (chart, Table(title, head, tuple(rows))))


def reproduce(facts: RunFacts) -> Section:
    """Return what is needed to continue the run, or to make it once more."""
    continuing, repeating = facts.continuing, facts.repeating
    if not facts.looped:
        continuing = (facts.command("generate"), ", then ", facts.command("label"))
        again = [Code(f"diffugen {name} again.json --run runs/again") for name in ("generate", "label")]
        repeating = (again[0], ", then ", again[1])
    blocks: list[Block] = [Paragraph(("To continue this run: ", *continuing))]
    if facts.kept_config is None:
        text = "The run was made without a configuration, so it cannot be reproduced from here."
        return Section("reproduce", "Reproduce", (*blocks, Paragraph((text,)), _versions(facts)))
    saved = ("To repeat it, save the configuration below as ", Code("again.json"), ", then: ")
    blocks += [Paragraph((*saved, *repeating)), _versions(facts)]
    if facts.config is None:
        text = (
            "This version of DiffuGen does not accept the configuration; use the version that made the run."
        )
        blocks.append(Paragraph((text,), tone="warning"))
    text = json.dumps(facts.kept_config, indent=2, ensure_ascii=False)
    blocks.append(Details("Configuration of the run, as JSON", text))
    return Section("reproduce", "Reproduce", tuple(blocks))


# -------------------------------------------------------------------- coverage


def _gap(measure: str, gap: Gap, labeller: str) -> str:
    written, of = (as_rate, "in") if measure == "score" else (as_percent, "of")
    value = f"{written(gap.value)} {of} {gap.images:,} images"
    name = _MEASURES[measure].format(labeller=labeller)
    return f"{name}: {gap.name}, {value}, compared with {written(gap.whole)} overall."


def _attributes(survey: Survey, labeller: str) -> Table:
    whole = survey.overall.images
    rows = [_row("all images", "", survey.overall, whole)]
    for name, covers in survey.attributes.items():
        ordered = sorted(covers.items(), key=lambda pair: -pair[1].images)
        rows += [_row(name, value, cover, whole) for value, cover in ordered[:_MOST_VALUES]]
        if len(ordered) > _MOST_VALUES:
            rest = sum(cover.images for _, cover in ordered[_MOST_VALUES:])
            rows.append((name, f"{len(ordered) - _MOST_VALUES} more values", as_count(rest), *[NOTHING] * 4))
    head = (
        "attribute",
        "value",
        "images",
        f"{labeller} found",
        "mean score",
        "detector found",
        "no disagreement",
    )
    return Table("Images by attribute of their prompt", head, tuple(rows))


def _row(name: str, value: str, cover: Cover, images: int) -> tuple[Cell, ...]:
    return (
        name,
        value,
        Bar(as_count(cover.images), cover.images / images),
        _bar(as_percent(cover.found_frac), cover.found_frac),
        _bar(as_rate(cover.score), cover.score),
        _bar(as_percent(cover.seen_frac), cover.seen_frac),
        _bar(as_percent(cover.agreed_frac), cover.agreed_frac),
    )


def _bar(text: str, frac: float | None) -> Cell:
    return text if frac is None else Bar(text, frac)


# -------------------------------------------------------------------- time


def _seconds(facts: RunFacts) -> dict[int, dict[str, float]]:
    """Return seconds by round and stage, in the order in which stages finished.

    Where ``generate`` has not finished, it counts with the time that its images took so far.
    """
    found = {}
    for round, one in facts.summary.rounds.items():
        by_stage = dict(one.stages)
        if one.images:
            by_stage.setdefault("generate", one.seconds)
        if by_stage:
            found[round] = by_stage
    return found


def _sums(seconds: list[float | None] | list[float], images: int) -> tuple[str, str]:
    total = sum(one or 0.0 for one in seconds)
    return as_seconds(total), as_seconds(total / images if images else None)


# -------------------------------------------------------------------- versions


def _versions(facts: RunFacts) -> Table:
    seed = (facts.kept_config or {}).get("seed", NOTHING)
    sample = f"{SAMPLE_SEED}, at most {MOST_IMAGES:,} images for each kind of evidence"
    rows: list[tuple[Cell, ...]] = [
        ("seed of the run", str(seed)),
        ("seed of this report's samples", sample),
        ("run made by diffugen", facts.summary.diffugen_version),
        ("report written by diffugen", __version__),
        ("python", platform.python_version()),
        *((package, _version(package)) for package in _PACKAGES),
    ]
    title = "Seeds, and versions installed where this report was written"
    return Table(title, ("item", "value"), tuple(rows))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
