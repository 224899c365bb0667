"""The command that joins runs made elsewhere: `diffugen merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diffugen.cli.output import say
from diffugen.cli.progress import progress
from diffugen.cli.shared import examples
from diffugen.errors import counted, shell_command


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(
        epilog=examples(
            "diffugen merge runs/cars-1 runs/cars-2 --into runs/cars",
            "diffugen merge runs/cars-* --into runs/cars",
        )
    )(merge)


def merge(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of the runs to take from.")],
    into: Annotated[Path, typer.Option("--into", help="Folder of the run to write, new or existing.")],
) -> None:
    """Join runs of the same configuration. Existing images are kept.

    Takes images, heat maps, source images, labels, decisions and dropped images. Leaves out what describes
    the rounds of one run: stage results, disagreements, decoders and detectors.
    """
    from diffugen.run.merge import merge as merge_runs

    with progress("merge", "image") as on_progress:
        made = merge_runs(runs, into, on_progress)
    known = f" ({counted(made.known, 'image')} known already)" if made.known else ""
    say(f"{counted(made.images, 'new image')} in {into}{known}")
    taken = (
        f"{counted(made.label_sets, 'label set')}, {counted(made.decisions, 'decision')}, "
        f"{counted(made.dropped, 'dropped image')}"
    )
    say(f"also new: {taken}; left out: stage results, disagreements, decoders and detectors")
    if made.without_files:
        lost = counted(made.without_files, "image")
        say(f"left out, because files are missing: {lost}; generate makes them again")
    say(f"Next: {shell_command('bootstrap', '--run', into)}")
