"""The command that shows what a run holds, and the table of its rounds that loops print too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffugen.cli.output import as_value, console, say, table
from diffugen.cli.shared import examples
from diffugen.errors import counted

if TYPE_CHECKING:
    from diffugen.run import RunStore
    from diffugen.run.results import Evaluated


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(epilog=examples("diffugen status", "diffugen status runs/pianos"))(status)


def status(run: Annotated[Path, typer.Argument(help="Folder of the run.")] = Path("runs/miniature")) -> None:
    """Show what a run holds and how far its loop has come."""
    from diffugen.run import RunStore

    with RunStore.open(run, readonly=True) as store:
        summary = store.summary()
        say(
            f"run {summary.folder}: {summary.images} images, {summary.bytes / 1e6:.1f} MB, "
            f"made by diffugen {summary.diffugen_version}, last activity {summary.last_activity or 'never'}"
        )
        shown = table("round", "images", "s/image", "labelled (objects)", "decisions", "last stage")
        for number, one in summary.rounds.items():
            shown.add_row(
                str(number),
                f"{one.images}" + (f" (+ {one.dropped} dropped)" if one.dropped else ""),
                f"{one.seconds / one.images if one.images else 0.0:.2f}",
                ", ".join(
                    f"{_source(store, number, source)} {count} ({one.objects[source]})"
                    for source, count in one.label_sets.items()
                ),
                _listed(one.decisions) or "-",
                next(reversed(one.stages), "-"),
            )
        console().print(shown)
        for line in queue_lines(store):
            say(line)
        if any("promote" in one.stages for one in summary.rounds.values()):
            console().print(rounds_table(store))
        for number in summary.rounds:
            store.results(number)  # the tables leave out what cannot be read; here it is an error


def queue_lines(store: RunStore) -> list[str]:
    """Return what a run's review queue holds, and what its audits say; nothing before a comparison."""
    from diffugen.review.audits import audit_errors
    from diffugen.review.queue import count_queue

    counts, errors = count_queue(store), audit_errors(store)
    if not counts.images:
        return []
    audits = f", {counted(counts.audits, 'audit')}" if counts.audits else ""
    lines = [
        f"review queue: {counted(counts.images, 'image')} "
        f"({counted(counts.disagreements, 'disagreement')}{audits}), "
        f"{counts.decided} decided, {counts.waiting} waiting"
    ]
    if counts.voted:
        lines[0] += f" ({counts.voted} for another reviewer)"
    if errors.interval is not None:
        low, high = errors.interval
        lines.append(
            f"audits: where both sources agree, the labels were wrong on {errors.hits} of "
            f"{counted(errors.of, 'decided image')} (95% interval {low:.0%} to {high:.0%})"
        )
    return lines


def _source(store: RunStore, number: int, source: str) -> str:
    """Return the source of a round's labels; a detector's alone are stored in the place of attention's."""
    from diffugen.config.labelling import by_detector

    made = store.results(number).label
    method = made.method if made else store.latest_method("attention")
    return "detector" if source == "attention" and by_detector(method) else source


def rounds_table(store: RunStore) -> Any:
    """Return a table with a line for each round: what it was trained on, and how good its detector is.

    ``decides: AP50`` is the new detector's on the evidence that promotes it, ``better`` whether it was. The
    columns that begin with ``truth`` are measured on held-out truth with the promoted detector's masks, and
    decide nothing: AP, and for rare classes the share of images without one in which one is found. ``min`` is
    the time of all stages in minutes.
    """
    from diffugen.report.facts import gather_facts

    facts = gather_facts(store)
    rare = facts.rare_classes if facts.current and len(facts.current.by_class) > 1 else []
    columns = [
        "round",
        "agreed",
        "disagreements",
        "train",
        "decides: AP50",
        "better",
        "truth: AP50",
        "AP50-95",
    ]
    for name in rare:
        columns += [f"truth: {name} AP50-95", f"false {name}"]
    shown = table(*columns, "min")
    if facts.initial is not None:
        shown.add_row("before", *["-"] * 5, *_on_truth(facts.initial, rare), "-")
    for number, one in store.summary().rounds.items():
        kept = facts.results[number]
        dataset, vote = kept.dataset, kept.promote
        shown.add_row(
            str(number),
            str(dataset.by_origin.get("agreed", "-")) if dataset else "-",
            str(sum(one.disagreements.values())) if kept.compare else "-",
            str(dataset.train) if dataset else "-",
            as_value(vote.candidate.ap50 if vote else None),
            "-" if vote is None else "yes" if vote.promoted else "no",
            *_on_truth(kept.evaluate, rare),
            f"{sum(one.stages.values()) / 60:.1f}",
        )
    return shown


def _on_truth(measured: Evaluated | None, rare: Sequence[str]) -> list[str]:
    if measured is None:
        return ["-"] * (2 + 2 * len(rare))
    cells = [as_value(measured.mask.ap50), as_value(measured.mask.ap50_95)]
    for name in rare:
        one, finds = measured.by_class.get(name), measured.false_finds.get(name)
        share = None if finds is None else finds.share
        cells += [as_value(one.ap50_95 if one else None), "-" if share is None else f"{share:.0%}"]
    return cells


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())
