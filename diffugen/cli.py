"""The command line: parses, imports what a command needs when it runs, and turns errors into one clear message.

Knows no method: every command body calls a stage, a loop or a module and shows what came of it.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffugen import __version__
from diffugen.errors import DiffugenError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console

    from diffugen.config import Config
    from diffugen.records import Prompt
    from diffugen.store import RunStore

app = typer.Typer(
    help="Labelled images of rare classes from text-to-image models: generate, label by attention, look, repeat.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)
configs_app = typer.Typer(
    help="Look at and copy the shipped configurations.", no_args_is_help=True, rich_markup_mode=None
)
miniature_app = typer.Typer(
    help="Draw, train, measure the embedded model.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(configs_app, name="configs")
app.add_typer(miniature_app, name="miniature")

ConfigArgument = Annotated[
    str | None,
    typer.Argument(
        help="A configuration's name (diffugen configs list) or a YAML, JSON or TOML file. None: the miniature."
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one value, e.g. --set prompts.count=8. May be repeated."),
]
RunOption = Annotated[
    Path | None, typer.Option("--run", help="The run's folder; runs/<name of the configuration> if not given.")
]

HARMLESS_KEYS = ("diffusion.batch_size", "diffusion.device", "diffusion.offload", "labels", "score")
"""Keys that may change between two calls on the same run: they alter no image."""


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
    """Work on one run at a time; every command may be interrupted and given again, and goes on where it stopped."""


@app.command(epilog="Examples:  diffugen prompts   |   diffugen prompts cars --set prompts.count=5 --set seed=3")
def prompts(config: ConfigArgument = None, set_: SetOption = None) -> None:
    """Show a configuration's prompts. Names the words that are traced, and how evenly the attributes are covered."""
    from diffugen.prompts import coverage

    made = _make_prompts(_load(config, set_))
    console = _console()
    for prompt in made:
        traced = ", ".join(f"{phrase.text} -> {phrase.class_name or 'background'}" for phrase in prompt.phrases)
        console.print(f"{prompt.text}  [dim]\\[{traced}][/dim]", highlight=False)
    table = _table("attribute", "values and how often")
    for name, counts in coverage(made).items():
        table.add_row(name, ", ".join(f"{value} {count}" for value, count in counts.items()))
    console.print(table)
    console.print(f"{len(made)} prompts")


@app.command(
    epilog="Examples:  diffugen generate   |   diffugen generate piano-on-road --images 4 --run runs/pianos   |   "
    "diffugen generate --set diffusion.model=/models/sd15 --set diffusion.size_wh=[512,512]"
)
def generate(
    config: ConfigArgument = None,
    set_: SetOption = None,
    run: RunOption = None,
    images: Annotated[int, typer.Option(min=1, help="Images of each prompt.")] = 1,
) -> None:
    """Generate images and heat maps into a run. What is there already is kept."""
    from diffugen.stages import generate_stage

    settings = _load(config, set_)
    made = _make_prompts(settings)
    diffusion = settings.diffusion
    with _open_run(run, settings) as store, _progress("generating", "image") as on_progress:
        jobs = generate_stage(
            store, made, model=diffusion.model, device=diffusion.device, dtype=diffusion.dtype, size_wh=diffusion.size_wh,
            settings={
                "num_inference_steps": diffusion.num_inference_steps,
                "guidance_scale": diffusion.guidance_scale,
                **({} if diffusion.scheduler is None else {"scheduler": diffusion.scheduler}),
                **({} if diffusion.dtype == "auto" else {"dtype": diffusion.dtype}),
            },
            batch_size=diffusion.batch_size, attention_backend=diffusion.attention_backend, offload=diffusion.offload,
            trust_remote_pickle=diffusion.trust_remote_pickle, images_per_prompt=images, seed=settings.seed,
            on_progress=on_progress,
        )  # fmt: skip
        folder = store.folder
    _console().print(f"{len(jobs)} images in {folder}. Next: diffugen label {_again(config, run)}".rstrip())


@app.command(
    epilog="Examples:  diffugen label   |   diffugen label --run runs/pianos --set labels.method=compete   |   "
    "diffugen label --set labels.threshold=0.4 --set score.margin=2"
)
def label(config: ConfigArgument = None, set_: SetOption = None, run: RunOption = None) -> None:
    """Label a run's images by attention. Reads the heat maps on disk, needs no GPU, and draws a contact sheet."""
    from diffugen.labels.label import LabelSettings
    from diffugen.labels.score import ScoreWeights
    from diffugen.sheets import attention_sheet
    from diffugen.stages import label_stage

    settings = _load(config, set_)
    label_settings = LabelSettings(**settings.labels.model_dump())
    weights = ScoreWeights(**settings.score.model_dump())
    with _open_run(run, settings, must_exist=True) as store:
        with _progress("labelling", "image") as on_progress:
            method = label_stage(store, label_settings, weights, on_progress=on_progress)
        sheet = attention_sheet(store, method, label_settings, store.folder / "contact-sheet.png")
        objects = [len(found.instances) for found in store.labels("attention", method)]
    empty = sum(count == 0 for count in objects)
    _console().print(
        f"{sum(objects)} labels on {len(objects)} images ({empty} images without any)\ncontact sheet: {sheet}",
        soft_wrap=True,
    )


@app.command(epilog="Examples:  diffugen status   |   diffugen status runs/pianos")
def status(run: Annotated[Path, typer.Argument(help="The run's folder.")] = Path("runs/miniature")) -> None:
    """Show what a run holds. Works also while another process writes it."""
    from diffugen.store import RunStore

    with RunStore.open(run, readonly=True) as store:
        summary = store.summary()
    console = _console()
    console.print(
        f"run {summary['folder']}: {summary['images']} images, {summary['bytes'] / 1e6:.1f} MB, "
        f"made by diffugen {summary['diffugen_version']}, last activity {summary['last_activity'] or 'never'}",
        soft_wrap=True,
    )
    table = _table("round", "images", "seconds an image", "label sets", "objects", "stages done")
    for number, one in summary["rounds"].items():
        per_image = one["seconds"] / one["images"] if one["images"] else 0.0
        sources = ", ".join(f"{source} {count}" for source, count in one["label_sets"].items())
        objects = ", ".join(f"{source} {count}" for source, count in one["objects"].items())
        table.add_row(str(number), str(one["images"]), f"{per_image:.2f}", sources, objects, ", ".join(one["stages"]))
    console.print(table)


@configs_app.command("list")
def configs_list() -> None:
    """List the configurations that come with DiffuGen."""
    from diffugen.config import config_path, list_configs

    table = _table("name", "what for")
    for name in list_configs():
        first_line = config_path(name).read_text(encoding="utf-8").split("\n", 1)[0]
        table.add_row(name, first_line.lstrip("# "))
    _console().print(table)


@configs_app.command("show", epilog="Example:  diffugen configs show miniature")
def configs_show(name: Annotated[str, typer.Argument(help="A name from: diffugen configs list")] = "miniature") -> None:
    """Print a configuration with its comments."""
    from diffugen.config import config_path

    typer.echo(config_path(name).read_text(encoding="utf-8"), nl=False)


@configs_app.command("copy", epilog="Example:  diffugen configs copy piano-on-road my-pianos.yaml")
def configs_copy(
    name: Annotated[str, typer.Argument(help="A name from: diffugen configs list")],
    to: Annotated[Path | None, typer.Argument(help="The new file; ./<name>.yaml if not given.")] = None,
) -> None:
    """Copy a configuration, to be edited. An existing file is never overwritten."""
    from diffugen.config import config_path

    source = config_path(name)
    target = to or Path(source.name)
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(source.read_text(encoding="utf-8"))
    except FileExistsError:
        raise DiffugenError(
            f"{target} exists already; name another file: diffugen configs copy {name} OTHER.yaml"
        ) from None
    except OSError as error:
        raise DiffugenError(f"cannot write {target}: {error.strerror}; name a file in a folder that exists") from error
    _console().print(f"copied to {target}. Use it: diffugen generate {target}")


@miniature_app.command(
    "render", epilog="Example:  diffugen miniature render piano-on-road --count 24 --size 128 --out scenes.png"
)
def miniature_render(
    scenes: Annotated[str, typer.Argument(help="known, piano-on-road, piano-photos, training or uniform")] = "training",
    count: Annotated[int, typer.Option(min=1, help="How many scenes.")] = 12,
    size: Annotated[int, typer.Option(min=16, help="Height in pixels.")] = 64,
    width: Annotated[int | None, typer.Option(min=16, help="Width in pixels; the height if not given.")] = None,
    out: Annotated[Path, typer.Option(help="The picture to write.")] = Path("runs/scenes.png"),
) -> None:
    """Draw scenes of the miniature's world with their exact masks."""
    from diffugen.miniature.scenes import scene_set
    from diffugen.miniature.sheet import scene_sheet

    path = scene_sheet(scene_set(scenes, count, (width or size, size)), out)
    _console().print(f"{count} scenes of {scenes}: {path}")


@miniature_app.command("train", epilog="Example:  diffugen miniature train --out runs/weights --recipe cpu")
def miniature_train(
    out: Annotated[Path, typer.Option(help="Folder to write; give it again to go on after an interruption.")] = Path(
        "runs/weights"
    ),
    recipe: Annotated[str, typer.Option(help="cpu, gpu, or smoke (seconds; useless weights).")] = "cpu",
    stage: Annotated[list[str] | None, typer.Option(help="Only this stage; may be repeated.")] = None,
    device: Annotated[str, typer.Option(help="Torch device.")] = "cpu",
) -> None:
    """Recreate every weight of the miniature from nothing."""
    from diffugen.miniature.train import STAGES, train

    train(out, recipe=recipe, stages=stage or STAGES, device=device, tell=_console().print)


@miniature_app.command("measure", epilog="Example:  diffugen miniature measure --out reports/miniature")
def miniature_measure(
    weights: Annotated[Path | None, typer.Option(help="Weights to measure; the embedded ones if not given.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the report and its pictures.")] = Path("runs/measure"),
    images: Annotated[int, typer.Option(min=1, help="Generated images a class.")] = 40,
) -> None:
    """Measure the miniature: what it draws, how well its attention points, how fast it is."""
    from diffugen.miniature.measure import measure

    with _progress("measuring", "step") as on_progress:
        report = measure(weights, out, images=images, on_progress=on_progress)
    _console().print(f"report: {report}")


@app.command()
def doctor() -> None:
    """Show what is installed and what is missing. Names the device that will be used, and what each missing piece costs."""
    from diffugen.doctor import examine

    table = _table("piece", "state", "what it is for, or how to get it")
    for piece in examine():
        table.add_row(piece.name, piece.state, piece.note)
    _console().print(table)


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


def _load(config: str | None, overrides: list[str] | None) -> Config:
    from diffugen.config import load_config

    return load_config(config, overrides or ())


def _make_prompts(settings: Config) -> list[Prompt]:
    from diffugen.prompts import make_prompts

    return make_prompts(**dict(settings.prompts), seed=settings.seed)


def _open_run(run: Path | None, settings: Config, must_exist: bool = False) -> RunStore:
    from diffugen.store import RunStore

    folder = run or Path("runs") / settings.name
    if must_exist:
        return RunStore.open(folder)
    return RunStore.create_or_open(folder, config=settings.dump(), ignore_keys=HARMLESS_KEYS)


def _again(config: str | None, run: Path | None) -> str:
    return " ".join([*([config] if config else []), *(["--run", str(run)] if run else [])])


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False)


def _table(*columns: str) -> Any:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


@contextmanager
def _progress(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar with rate and time left; a line at the end where the output is no terminal."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=_console()) as bar:
        task = bar.add_task(what, total=None, rate="")
        start: int | None = None

        def on_progress(done: int, total: int) -> None:
            nonlocal start
            start = done if start is None else start
            elapsed = bar.tasks[0].elapsed or 0.0
            speed = (done - start) / elapsed if elapsed > 0 else 0.0
            rate = f"{speed:.1f} {unit}s/s" if speed >= 1 else f"{1 / speed:.1f} s/{unit}" if speed > 0 else ""
            bar.update(task, completed=done, total=total, rate=rate)

        yield on_progress


if __name__ == "__main__":
    main()
