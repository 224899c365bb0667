"""The command line: parses, imports what a command needs when it runs, and turns errors into one clear
message.

Knows no method: every command body calls a stage, a loop or a module and shows what came of it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from diffugen import __version__
from diffugen.cli import (
    generate as cli_generate,
)
from diffugen.cli import (
    invert as cli_invert,
)
from diffugen.cli import (
    loops as cli_loop,
)
from diffugen.cli import (
    prompts as cli_prompts,
)
from diffugen.cli import (
    stages as cli_stages,
)
from diffugen.cli.shared import (
    ConfigArgument,
    RunOption,
    SetOption,
    console,
    copy_shipped,
    progress,
    settle,
    table,
    write_new,
)
from diffugen.errors import DiffugenError

app = typer.Typer(
    help="Labelled images of rare classes from text-to-image models: generate, label by attention, look, "
    "repeat.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)
configs_app = typer.Typer(
    help="List, show and copy the shipped configurations; convert the paper's.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
miniature_app = typer.Typer(
    help="Draw, train, measure the embedded model.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
cli_prompts.register(app)
cli_generate.register(app)
cli_loop.register(app)
cli_stages.register(app)
cli_invert.register(app)
app.add_typer(configs_app, name="configs")
app.add_typer(configs_app, name="config", hidden=True)  # the same, for those who leave out the s
app.add_typer(miniature_app, name="miniature")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"diffugen {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Work on one run at a time; every command may be interrupted and given again, and goes on where it
    stopped.
    """


@app.command(
    epilog="Examples:  diffugen label   |   diffugen label --run runs/pianos --set labels.method=compete   | "
    "  "
    "diffugen label --set labels.threshold=0.4 --set score.margin=2"
)
def label(config: ConfigArgument = None, set_: SetOption = None, run: RunOption = None) -> None:
    """Label a run's images by attention. Reads the heat maps on disk, needs no GPU, and draws a contact
    sheet.
    """
    from diffugen.labels.label import LabelSettings
    from diffugen.labels.score import ScoreWeights
    from diffugen.labels.sheets import attention_sheet
    from diffugen.run.store import RunStore
    from diffugen.stages.label import label_stage

    settings, folder = settle(config, set_, run)
    labels = LabelSettings(**settings.labels.model_dump())
    with RunStore.open(folder) as store:
        with progress("labelling", "image") as on_progress:
            made = label_stage(store, labels, ScoreWeights(**settings.score.model_dump()), on_progress)
        sheet = attention_sheet(store, made["method"], labels, store.folder / "contact-sheet.png")
    console().print(
        f"{made['objects']} labels on {made['images']} images\ncontact sheet: {sheet}", soft_wrap=True
    )


@configs_app.command("list")
def configs_list() -> None:
    """List the configurations that come with DiffuGen."""
    from diffugen.config.files import config_path, list_configs

    shown = table("name", "what for")
    for name in list_configs():
        first_line = config_path(name).read_text(encoding="utf-8").split("\n", 1)[0]
        shown.add_row(name, first_line.lstrip("# "))
    console().print(shown)


@configs_app.command("show", epilog="Example:  diffugen configs show miniature")
def configs_show(
    name: Annotated[str, typer.Argument(help="A name from: diffugen configs list")] = "miniature",
) -> None:
    """Print a configuration with its comments."""
    from diffugen.config.files import config_path

    typer.echo(config_path(name).read_text(encoding="utf-8"), nl=False)


@configs_app.command("copy", epilog="Example:  diffugen configs copy piano-on-road my-pianos.yaml")
def configs_copy(
    name: Annotated[str, typer.Argument(help="A name from: diffugen configs list")],
    to: Annotated[Path | None, typer.Argument(help="The new file; ./<name>.yaml if not given.")] = None,
) -> None:
    """Copy a configuration, to be edited. An existing file is never overwritten."""
    from diffugen.config.files import config_path

    source = config_path(name)
    target = to or Path(source.name)
    copy_shipped(source, target, f"diffugen configs copy {name}")
    console().print(f"copied to {target}. Use it: diffugen generate {target}")


@configs_app.command("convert", epilog="Example:  diffugen config convert cars.json my-cars.yaml")
def configs_convert(
    file: Annotated[Path, typer.Argument(help="A JSON file in the paper's format.")],
    to: Annotated[Path | None, typer.Argument(help="The new file; ./<name>.yaml if not given.")] = None,
) -> None:
    """Convert a configuration of the paper's format to YAML with notes. All commands also read such a file as
    it is.
    """
    from diffugen.config.files import read_settings
    from diffugen.config.load import load_config
    from diffugen.config.paper import from_paper, is_paper_format, to_yaml

    load_config(str(file))  # says what is wrong with it
    settings = read_settings(file, []) or {}
    if not is_paper_format(settings):
        raise DiffugenError(
            f"{file} is not in the paper's format, but a configuration already: diffugen generate {file}"
        )
    made, notes = from_paper(settings, str(file))
    target = to or Path(f"{file.stem}.yaml")
    write_new(target, to_yaml(made, notes), f"diffugen config convert {file} OTHER.yaml")
    for note in notes:
        console().print(f"- {note}", markup=False, soft_wrap=True)
    console().print(f"converted to {target}. Use it: diffugen generate {target}", soft_wrap=True)


@miniature_app.command(
    "render",
    epilog="Examples:  diffugen miniature render piano-on-road --count 24 --size 128 --out scenes.png   |   "
    "diffugen miniature render known --count 6 --photos photos",
)
def miniature_render(
    scenes: Annotated[
        str, typer.Argument(help="known, piano-on-road, piano-photos, training or uniform")
    ] = "training",
    count: Annotated[int, typer.Option(min=1, help="How many scenes.")] = 12,
    size: Annotated[int, typer.Option(min=16, help="Height in pixels.")] = 64,
    width: Annotated[
        int | None, typer.Option(min=16, help="Width in pixels; the height if not given.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The picture to write.")] = Path("runs/scenes.png"),
    photos: Annotated[
        Path | None,
        typer.Option(
            help="A folder to write each scene into as an image of its own, as photos to try things on."
        ),
    ] = None,
) -> None:
    """Draw scenes of the miniature's world with their exact masks."""
    from diffugen.miniature.scenes import scene_set
    from diffugen.miniature.sheet import scene_photos, scene_sheet

    drawn = list(scene_set(scenes, count, (width or size, size)))
    console().print(f"{count} scenes of {scenes}: {scene_sheet(drawn, out)}", soft_wrap=True)
    if photos is not None:
        scene_photos(drawn, photos)
        console().print(f"one by one: {photos}", soft_wrap=True)


@miniature_app.command("train", epilog="Example:  diffugen miniature train --out runs/weights --recipe cpu")
def miniature_train(
    out: Annotated[
        Path, typer.Option(help="Folder to write; give it again to go on after an interruption.")
    ] = Path("runs/weights"),
    recipe: Annotated[str, typer.Option(help="cpu, gpu, or smoke (seconds; useless weights).")] = "cpu",
    stage: Annotated[list[str] | None, typer.Option(help="Only this stage; may be repeated.")] = None,
    device: Annotated[str, typer.Option(help="Torch device.")] = "cpu",
) -> None:
    """Recreate every weight of the miniature from nothing."""
    from diffugen.miniature.train import STAGES, train

    train(out, recipe=recipe, stages=stage or STAGES, device=device, tell=console().print)


@miniature_app.command("measure", epilog="Example:  diffugen miniature measure --out reports/miniature")
def miniature_measure(
    weights: Annotated[
        Path | None, typer.Option(help="Weights to measure; the embedded ones if not given.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the report and its pictures.")] = Path("runs/measure"),
    images: Annotated[int, typer.Option(min=1, help="Generated images a class.")] = 40,
) -> None:
    """Measure the miniature: what it draws, how well its attention points, how fast it is."""
    from diffugen.miniature.measure import measure

    with progress("measuring", "step") as on_progress:
        report = measure(weights, out, images=images, on_progress=on_progress)
    console().print(f"report: {report}")


@app.command()
def doctor() -> None:
    """Show what is installed and what is missing. Names the device that will be used, and what each missing
    piece costs.
    """
    from diffugen.cli.doctor import examine

    shown = table("piece", "state", "what it is for, or how to get it")
    for piece in examine():
        shown.add_row(piece.name, piece.state, piece.note)
    console().print(shown)


def main() -> None:
    """Run the command line; errors that a user can mend end with exit code 2 and no traceback."""
    try:
        app()
    except DiffugenError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo("stopped; what was done is kept, and the same command goes on from there", err=True)
        sys.exit(130)
