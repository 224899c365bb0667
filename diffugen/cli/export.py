"""The command that writes a run's labels as a dataset: `diffugen export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diffugen.cli.output import say
from diffugen.cli.shared import SetOption, examples, open_existing_run


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(
        epilog=examples(
            "diffugen export runs/pianos",
            "diffugen export runs/pianos --format coco --out pianos-coco",
            "diffugen export runs/pianos --format fiftyone --set dataset.min_score=0.5",
        )
    )(export)


def export(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="The folder to write, new or empty. Default: datasets/<name of the run>-<format>."
        ),
    ] = None,
    set_: SetOption = None,
    format: Annotated[str, typer.Option("--format", help="yolo-seg, coco or fiftyone.")] = "yolo-seg",
) -> None:
    """Write a run's training labels as a dataset. Holes, pieces and scores are kept."""
    from diffugen.stages import verbs
    from diffugen.stages.export import check_format

    check_format(format)
    out = out or Path("datasets") / f"{run.resolve().name}-{format}"
    with open_existing_run(None, set_, run, readonly=True) as opened:
        written = verbs.export(opened, out, format)
    counts = " and ".join(f"{count} {split}" for split, count in written.items())
    say(f"{counts} images in {out} ({format}); classes: {', '.join(opened.config.prompts.classes)}")
