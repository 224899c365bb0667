"""The commands around the embedded model: draw its world, train its weights, measure it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diffugen.cli.output import say
from diffugen.cli.progress import progress
from diffugen.cli.shared import examples

miniature_app = typer.Typer(
    help="Draw scenes of the miniature's world; train and measure it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    miniature_app.command(
        "render",
        epilog=examples(
            "diffugen miniature render piano-on-road --count 24 --size 128 --out scenes.png",
            "diffugen miniature render known --count 6 --photos photos",
        ),
    )(render)
    miniature_app.command(
        "train", epilog=examples("diffugen miniature train --out runs/weights --recipe cpu")
    )(train)
    miniature_app.command("measure", epilog=examples("diffugen miniature measure --out reports/miniature"))(
        measure
    )
    app.add_typer(miniature_app, name="miniature")


def render(
    scenes: Annotated[
        str, typer.Argument(help="known, piano-on-road, piano-photos, training or uniform")
    ] = "training",
    count: Annotated[int, typer.Option(min=1, help="Number of scenes.")] = 12,
    size: Annotated[int, typer.Option(min=16, help="Height in pixels.")] = 64,
    width: Annotated[
        int | None, typer.Option(min=16, help="Width in pixels. Default: equal to the height.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The picture to write.")] = Path("runs/scenes.png"),
    photos: Annotated[
        Path | None,
        typer.Option(help="A folder that also gets each scene as an image of its own, to try things on."),
    ] = None,
) -> None:
    """Draw scenes of the miniature's world with their exact masks."""
    from diffugen.miniature.sets import scene_set
    from diffugen.miniature.sheet import scene_photos, scene_sheet

    drawn = list(scene_set(scenes, count, (width or size, size)))
    say(f"{count} scenes of {scenes}: {scene_sheet(drawn, out)}")
    if photos is not None:
        scene_photos(drawn, photos)
        say(f"one by one: {photos}")


def train(
    out: Annotated[
        Path, typer.Option(help="Folder to write. After an interruption, the same command continues.")
    ] = Path("runs/weights"),
    recipe: Annotated[str, typer.Option(help="cpu, gpu, or smoke (seconds; useless weights).")] = "cpu",
    stage: Annotated[list[str] | None, typer.Option(help="Only this stage. May be repeated.")] = None,
    device: Annotated[str, typer.Option(help="Torch device.")] = "cpu",
) -> None:
    """Train every weight of the miniature from scratch."""
    from diffugen.miniature.train import STAGES, train as train_miniature

    train_miniature(out, recipe=recipe, stages=stage or STAGES, device=device, notify=say)


def measure(
    weights: Annotated[
        Path | None, typer.Option(help="Weights to measure. Default: the embedded ones.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the report and its pictures.")] = Path("runs/measure"),
    images: Annotated[int, typer.Option(min=1, help="Generated images per class.")] = 40,
) -> None:
    """Measure the miniature: its images, its attention, its speed."""
    from diffugen.miniature.measure import measure as measure_miniature

    with progress("measuring", "step") as on_progress:
        report = measure_miniature(weights, out, images=images, on_progress=on_progress)
    say(f"report: {report}")
