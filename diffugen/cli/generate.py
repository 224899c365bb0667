"""The command that generates: images of prompts, of other images, or in regions of other images, and their
first labels.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffugen.cli.shared import RunOption, SetOption, again, console, new_or_old_run, progress, settle
from diffugen.errors import DiffugenError

if TYPE_CHECKING:
    from diffugen.config.sections import Config


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(
        epilog="Examples:  diffugen generate   |   diffugen generate piano-on-road --images 4 --run "
        "runs/pianos   |   "
        "diffugen generate piano-on-own-photos --source photos   |   diffugen generate txt2img cars.json   | "
        "  "
        "diffugen generate --set diffusion.model=/models/sd15 --set diffusion.size_wh=[512,512]"
    )(generate)


def generate(
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TASK] [CONFIG]",
            help="A task's name or kind (txt2img, img2img, inpaint), if not all are wanted; and a "
            "configuration's name "
            "(diffugen configs list) or a YAML, JSON or TOML file, in the paper's format too. None: the "
            "run's own; for a new "
            "run, the miniature.",
        ),
    ] = None,
    set_: SetOption = None,
    run: RunOption = None,
    task: Annotated[str | None, typer.Option("--task", help="Only the task of this name or kind.")] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--source",
            help="Photos, a labelled set, or a run to start from, in the place of the configured source.",
        ),
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=1, help="Images of each prompt; loop.images_per_prompt if not given.")
    ] = None,
) -> None:
    """Generate images and heat maps into a run, and label them by attention. What is there already is
    kept.
    """
    from diffugen.labels.label import LabelSettings
    from diffugen.labels.score import ScoreWeights
    from diffugen.labels.sheets import attention_sheet
    from diffugen.stages.generate import generate_stage
    from diffugen.stages.label import label_stage

    config, only = _parted(what or [], task)
    settings, folder = settle(config, set_, run)
    if source is not None:
        settings = _with_source(settings, str(source), only)
    labels, weights = (
        LabelSettings(**settings.labels.model_dump()),
        ScoreWeights(**settings.score.model_dump()),
    )
    with new_or_old_run(folder, settings) as store:
        with progress("generating", "image") as on_progress:
            made = generate_stage(
                store,
                on_progress,
                prompts=dict(settings.prompts),
                tasks=settings.dump()["tasks"],
                labels=labels,
                weights=weights,
                detector_device=settings.detector.device,
                **dict(settings.diffusion),
                images_per_prompt=images or settings.loop.images_per_prompt,
                seed=settings.seed,
                only=only,
            )
        with progress("labelling", "image") as on_progress:
            labelled = label_stage(store, labels, weights, on_progress)
        sheet = store.folder / (f"contact-sheet-{only}.png" if only else "contact-sheet.png")
        attention_sheet(store, labelled["method"], labels, sheet, steps=made["tasks"])
    out = console()
    out.print(
        f"{made['images']} images in {folder}{_but(made)}, {labelled['objects']} labels", soft_wrap=True
    )
    out.print(f"contact sheet: {sheet}", soft_wrap=True)
    out.print(
        f"Next: diffugen export {folder}, or diffugen bootstrap {again(config, run)}".rstrip(), soft_wrap=True
    )


def _parted(what: list[str], task: str | None) -> tuple[str | None, str | None]:
    """Return configuration and task of the arguments; a task may stand before the configuration, or be an
    option.
    """
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
            f"one configuration at a time, not {' and '.join(words)}; a task's name comes before it"
        )
    return (words[0] if words else None), task


def _with_source(settings: Config, source: str, only: str | None) -> Config:
    """Return the configuration with another source for its first task that starts from images outside the
    run.
    """
    tasks: list[Any] = list(settings.tasks)
    names = {task.name or task.task for task in tasks}
    for place, task in enumerate(tasks):
        wanted = only in (None, task.name, task.task)
        if (
            wanted
            and task.task != "txt2img"
            and (only is not None or (task.source is not None and task.source not in names))
        ):
            tasks[place] = task.model_copy(update={"source": source})
            return settings.model_copy(update={"tasks": tuple(tasks)})
    raise DiffugenError(
        "--source needs a task that starts from images, and the configuration has none: add one under tasks, "
        "such as "
        "{task: inpaint, source: photos, region: {part: lower half}}, or name an img2img or inpaint task of "
        "it with --task"
    )


def _but(made: dict[str, Any]) -> str:
    parts = [
        f"{made['dropped']} dropped by the safety checker" if made["dropped"] else "",
        f"{made['skipped']} sources skipped: no region, or nothing to change" if made["skipped"] else "",
    ]
    told = ", ".join(part for part in parts if part)
    return f" ({told})" if told else ""
