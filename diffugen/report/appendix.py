"""The last parts of a report: which prompts it covers, where the time went, and how to do it again."""

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
from diffugen.report.facts import RARE_STAGES, STAGES, RunFacts
from diffugen.report.quality import MOST_IMAGES, SAMPLE_SEED
from diffugen.report.survey import Cover, Gap, Survey, attribute_gaps

_MOST_VALUES = 24
_PACKAGES = ("torch", "diffusers", "transformers", "ultralytics", "optuna", "numpy")
_MEASURES = {
    "agreed_frac": "Fewest images without a disagreement",
    "seen_frac": "The detector finds the prompted classes least often in",
    "score": "Lowest mean score",
    "found_frac": "Attention finds the prompted classes least often in",
}


def coverage(facts: RunFacts, survey: Survey) -> Section:
    """Return how often each attribute value occurs and how its images fare."""
    if not survey.overall.images:
        missing = Missing("No images, so no prompts to cover", facts.command("generate"))
        return Section("coverage", "Coverage of prompts", (missing,))
    gaps = attribute_gaps(survey)
    blocks: list[Block] = [Paragraph((_gap(key, gap),)) for key, gap in gaps.items()]
    if not gaps:
        blocks.append(Paragraph(("No attribute value stands out for the worse.",)))
    blocks.append(_attributes(survey))
    if not survey.attributes:
        blocks.append(Paragraph(("The prompts of this run have no attributes.",)))
    blocks.append(
        Paragraph(
            (
                "Found: images in which attention labels, or the detector, have every class that the prompt "
                "names. "
                "No disagreement: of the images with labels of both kinds. Prompts whose template lacks an "
                "attribute are in "
                "none of its rows.",
            ),
            tone="note",
        )
    )
    return Section("coverage", "Coverage of prompts", tuple(blocks))


def times(facts: RunFacts) -> Section:
    """Return where the time went."""
    seconds = _seconds(facts)
    if not seconds:
        return Section("time", "Time", (Missing("Nothing was timed yet", facts.command("generate")),))
    rounds = [round for round in facts.rounds if any((round, stage) in seconds for stage in _stages(facts))]
    stages = [stage for stage in _stages(facts) if any((round, stage) in seconds for round in rounds)]
    images = facts.summary["images"]
    totals = {stage: sum(seconds.get((round, stage), 0.0) for round in rounds) for stage in stages}
    rows: list[tuple[Cell, ...]] = [
        (
            stage,
            *(as_seconds(seconds.get((round, stage))) for round in rounds),
            as_seconds(totals[stage]),
            as_seconds(totals[stage] / images if images else None),
        )
        for stage in stages
    ]
    by_round = [sum(seconds.get((round, stage), 0.0) for stage in stages) for round in rounds]
    everything = sum(by_round)
    rows.append(
        (
            "all",
            *map(as_seconds, by_round),
            as_seconds(everything),
            as_seconds(everything / images if images else None),
        )
    )
    head = ("stage", *(f"round {round}" for round in rounds), "all rounds", "an image")
    bars = [Bars("all rounds", tuple(totals.values()))]
    return Section(
        "time",
        "Time",
        (
            bar_chart(
                "Time by stage, all rounds", x_label="seconds", groups=stages, bars=bars, written=as_seconds
            ),
            Table("Time by stage and round (an image: of all images of the run)", head, tuple(rows)),
        ),
    )


def reproduce(facts: RunFacts) -> Section:
    """Return what is needed to do the run again."""
    looped = facts.any("train") or facts.any("promote")
    names = [facts.loop] if looped else ["generate", "label"]
    blocks: list[Block] = [
        Paragraph(("To continue this run:",)),
        *(Paragraph((Code(f"diffugen {name} --run {facts.folder}"),)) for name in names),
        Paragraph(("To do it anew, save the configuration below as ", Code("again.json"), ":")),
        *(Paragraph((Code(f"diffugen {name} again.json --run runs/again"),)) for name in names),
        _versions(facts),
    ]
    if facts.config is None:
        blocks.append(
            Paragraph(("The run was made without a configuration, so it cannot be done anew from here.",))
        )
    else:
        text = json.dumps(facts.config, indent=2, ensure_ascii=False)
        blocks.append(Details("Configuration the run was made with, as JSON", text))
    return Section("reproduce", "Do it again", tuple(blocks))


def _gap(measure: str, gap: Gap) -> str:
    wrote, of = (as_rate, "in") if measure == "score" else (as_percent, "of")
    value = f"{wrote(gap.value)} {of} {gap.images:,} images"
    return f"{_MEASURES[measure]}: {gap.name}, {value} against {wrote(gap.whole)} overall."


def _attributes(survey: Survey) -> Table:
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
        "attention found",
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
        _share(as_percent(cover.found_frac), cover.found_frac),
        _share(as_rate(cover.score), cover.score),
        _share(as_percent(cover.seen_frac), cover.seen_frac),
        _share(as_percent(cover.agreed_frac), cover.agreed_frac),
    )


def _share(text: str, frac: float | None) -> Cell:
    return text if frac is None else Bar(text, frac)


def _stages(facts: RunFacts) -> list[str]:
    known = [*RARE_STAGES, *STAGES]
    named = {name for one in facts.summary["rounds"].values() for name in one["stages"]}
    return [*STAGES, *RARE_STAGES, *sorted(named - set(known))]


def _seconds(facts: RunFacts) -> dict[tuple[int, str], float]:
    """Seconds by round and stage; of rounds without a noted stage, what their images took."""
    found = {}
    for round in facts.rounds:
        one = facts.summary["rounds"][round]
        found.update({(round, stage): float(seconds) for stage, seconds in one["stages"].items()})
        if one["images"]:
            found.setdefault((round, "generate"), float(one["seconds"]))
    return found


def _versions(facts: RunFacts) -> Table:
    config = facts.config or {}
    rows: list[tuple[Cell, ...]] = [
        ("seed of the run", str(config.get("seed", NOTHING))),
        (
            "seed of this report's samples",
            f"{SAMPLE_SEED}, at most {MOST_IMAGES:,} images of each kind of evidence",
        ),
        ("run made by diffugen", str(facts.summary.get("diffugen_version", NOTHING))),
        ("report written by diffugen", __version__),
        ("python", platform.python_version()),
        *((package, _version(package)) for package in _PACKAGES),
    ]
    return Table(
        "Seeds, and versions installed where this report was written", ("what", "value"), tuple(rows)
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
