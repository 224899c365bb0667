"""The command that generates images and labels them: `diffugen generate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffugen.cli.output import say
from diffugen.cli.progress import progress
from diffugen.cli.shared import RunOption, SetOption, changed_settings, examples, printing
from diffugen.errors import DiffugenError, shell_command

if TYPE_CHECKING:
    from diffugen.config import Config, Task
    from diffugen.run.results import Generated


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(
        epilog=examples(
            "diffugen generate",
            "diffugen generate piano-on-road --images 4 --run runs/pianos",
            "diffugen generate piano-on-own-photos --source photos",
            "diffugen generate txt2img cars.json",
            "diffugen generate cars.json --shard 1/4 --run runs/cars-1",
            "diffugen generate --set diffusion.model=/models/sd15 --set diffusion.size_wh=[512,512]",
        )
    )(generate)


def generate(
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TASK] [CONFIG]",
            help="A task's name or kind (txt2img, img2img, inpaint), to run only that one; and a "
            "configuration: a name "
            "(see: diffugen configs list) or a YAML, JSON or TOML file, in the paper's format too. "
            "Default: the run's own; for a new run, the miniature.",
        ),
    ] = None,
    set_: SetOption = None,
    run: RunOption = None,
    task: Annotated[
        str | None, typer.Option("--task", help="Run only the task of this name or kind.")
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--source",
            help="Photos, a labelled set, or a run to start from, instead of the configured source.",
        ),
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=1, help="Images per prompt. Default: loop.images_per_prompt.")
    ] = None,
    shard: Annotated[
        str,
        typer.Option(
            "--shard",
            metavar="I/N",
            help="Generate only part I of N, such as 1/4; join the parts with diffugen merge.",
        ),
    ] = "1/1",
) -> None:
    """Generate images and label them. Existing images are kept."""
    from diffugen.config.files import Option
    from diffugen.stages import verbs
    from diffugen.stages.shards import Shard

    part = Shard.parse(shard)
    config, only = _split_arguments(what or [], task)
    number = [] if images is None else [Option("--images", "loop.images_per_prompt", images)]
    settings, folder = verbs.resolve_config(config, [*(set_ or ()), *number], run)
    if source is not None:
        settings = _with_source(settings, str(source), only)
    with printing(verbs.open_run(folder, settings, progress=progress)) as opened:
        made = verbs.generate(opened, only, part)
        if not made.images and part.count > 1:
            say(f"Nothing to generate: there are fewer batches than shards, and none is left for {part}")
            return
        labelled = verbs.label(opened)
        name = f"contact-sheet-{only}.png" if only else "contact-sheet.png"
        sheet = verbs.contact_sheet(opened, name=name, steps=made.tasks if only else None)
        changed = changed_settings(opened)
    say(f"{made.images} images in {folder}{_left_out(made)}, {labelled.objects} labels")
    say(f"contact sheet: {sheet}")
    if part.count > 1:
        merge = shell_command("merge", folder, "...", "--into", "RUN")
        say(f"Next, when all {part.count} shards are done: {merge}")
        return
    bootstrap = shell_command("bootstrap", "--run", folder, *changed)
    say(f"Next: {shell_command('export', folder)}, or {bootstrap}")


def _split_arguments(what: list[str], task: str | None) -> tuple[str | None, str | None]:
    """Return the configuration and the task; a task may precede the configuration, or be an option."""
    from diffugen.records import TASKS

    words = list(what)
    if words and (words[0] in TASKS or len(words) == 2):
        first = words.pop(0)
        if task not in (None, first):
            raise DiffugenError(
                f"two tasks are named, {first!r} and --task {task}; name one, or none for all of them"
            )
        task = first
    if len(words) > 1:
        raise DiffugenError(
            f"expected one configuration, got {' and '.join(words)}; the name of a task comes before it"
        )
    return (words[0] if words else None), task


def _with_source(settings: Config, source: str, only: str | None) -> Config:
    """Return the configuration with another source for its first task that starts outside the run."""
    names = {task.step for task in settings.tasks}
    for place, task in enumerate(settings.tasks):
        if _starts_outside(task, names, only):
            changed = task.changed(source=source)
            return settings.changed(tasks=(*settings.tasks[:place], changed, *settings.tasks[place + 1 :]))
    raise DiffugenError(
        "--source needs a task that starts from images, and the configuration has none: add one under tasks, "
        "such as "
        "{task: inpaint, source: photos, region: {part: lower half}}, or name one of its img2img or inpaint "
        "tasks "
        "with --task"
    )


def _starts_outside(task: Task, names: set[str], only: str | None) -> bool:
    if task.task == "txt2img" or only not in (None, task.name, task.task):
        return False
    return only is not None or (task.source is not None and task.source not in names)


def _left_out(made: Generated) -> str:
    parts = [
        f"{made.dropped} dropped by the safety checker" if made.dropped else "",
        f"{made.skipped} sources skipped: no region, or nothing to change" if made.skipped else "",
    ]
    told = ", ".join(part for part in parts if part)
    return f" ({told})" if told else ""
