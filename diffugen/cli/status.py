"""The command that shows what a run holds, and the table of its rounds that loops print too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffugen.cli.output import as_value, console, say, table
from diffugen.cli.shared import examples

if TYPE_CHECKING:
    from diffugen.run import RunStore


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
                ", ".join(f"{name} {count} ({one.objects[name]})" for name, count in one.label_sets.items()),
                _listed(one.decisions) or "-",
                next(reversed(one.stages), "-"),
            )
        console().print(shown)
        if any("promote" in one.stages for one in summary.rounds.values()):
            console().print(rounds_table(store))


def rounds_table(store: RunStore) -> Any:
    """Return a table with a line for each round: what it was trained on, and how good its detector is.

    ``val AP50`` is the new detector's on held-out evidence, ``better`` whether it was promoted for that;
    ``AP50`` and ``AP50-95`` are those of the promoted detector's masks on the truth; ``min`` is the time of
    all stages in minutes.
    """
    columns = ("round", "agreed", "differ", "train", "val", "val AP50", "better", "AP50", "AP50-95", "min")
    shown = table(*columns)
    for number, one in store.summary().rounds.items():
        kept = store.results(number)
        dataset, vote, measured = kept.dataset, kept.promote, kept.evaluate
        shown.add_row(
            str(number),
            str(dataset.by_origin.get("agreed", "-")) if dataset else "-",
            str(sum(one.disagreements.values())) if kept.compare else "-",
            str(dataset.train) if dataset else "-",
            str(dataset.val) if dataset else "-",
            as_value(vote.candidate.ap50 if vote else None),
            "-" if vote is None else "yes" if vote.promoted else "no",
            as_value(measured.mask.ap50 if measured else None),
            as_value(measured.mask.ap50_95 if measured else None),
            f"{sum(one.stages.values()) / 60:.1f}",
        )
    return shown


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())
