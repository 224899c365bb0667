"""The command that shows prompts before any image is generated: `diffugen prompts`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffugen.cli.output import console, table
from diffugen.cli.shared import ConfigArgument, SetOption, examples

if TYPE_CHECKING:
    from rich.console import Console

    from diffugen.config import Config, Task
    from diffugen.prompts.sampling import Values
    from diffugen.records import Prompt


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(
        epilog=examples(
            "diffugen prompts",
            "diffugen prompts cars --set prompts.count=5 --set seed=3",
            "diffugen prompts piano-on-road --limit 0",
            "diffugen prompts --json > prompts.json",
        )
    )(prompts)


def prompts(
    config: ConfigArgument = None,
    set_: SetOption = None,
    limit: Annotated[
        int, typer.Option("--limit", min=0, help="Number of prompts to list per task; 0 for all.")
    ] = 20,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print everything, including all prompts, as one JSON document.")
    ] = False,
) -> None:
    """Show a configuration's prompts. Tells which words are traced, and how often each value occurs."""
    from diffugen.config import load_config
    from diffugen.prompts.tasks import plan_tasks, task_prompts

    settings = load_config(config, set_ or ())
    tasks = plan_tasks(settings.tasks)
    made = {
        task.step: task_prompts(task, tasks, settings.prompts, settings.seed)
        for task in tasks
        if task.task == "txt2img"
    }
    if as_json:
        typer.echo(json.dumps(_document(settings, tasks, made), indent=2, ensure_ascii=False))
        return
    out = console()
    for task in tasks:
        if len(tasks) > 1:
            out.print(task.step, style="bold")
        if task.step in made:
            _show_prompts(out, made[task.step], limit)
            _show_coverage(out, made[task.step], _values(settings, task))
            out.print(f"{len(made[task.step])} prompts")
        else:
            _show_dependent(out, task)
        if task is not tasks[-1]:
            out.print()


def _values(settings: Config, *tasks: Task) -> dict[str, Values]:
    """Return the possible values of each field, in the given order or with their weights."""
    found: dict[str, Values] = {**settings.prompts.attributes, **settings.prompts.classes}
    for task in tasks:
        found.update(task.attributes)
    return found


def _show_prompts(out: Console, made: Sequence[Prompt], limit: int) -> None:
    from rich.text import Text

    shown = made[: limit or None]
    for prompt in shown:
        traced = ", ".join(
            f"{phrase.text} -> {phrase.class_name or 'background'}" for phrase in prompt.phrases
        )
        out.print(Text(prompt.text).append(f"  [{traced}]", style="dim"), soft_wrap=True)
    if len(shown) < len(made):
        out.print(f"... and {len(made) - len(shown)} more; --limit 0 or --json shows all")


def _show_coverage(out: Console, made: Sequence[Prompt], values: Mapping[str, Values]) -> None:
    from diffugen.prompts.coverage import coverage, pair_coverage

    singles = table("attribute", "values and counts")
    for name, counts in coverage(made).items():
        singles.add_row(name, ", ".join(_count(value, counts, values[name]) for value in values[name]))
    pairs = table("attributes", "pairs used", "min count", "max count")
    for pair in pair_coverage(made, values):
        names = " x ".join(pair.attributes)
        pairs.add_row(names, f"{pair.used} of {pair.possible}", str(pair.least), str(pair.most))
    for shown in (singles, pairs):
        if shown.row_count:
            out.print()
            out.print(shown)
    out.print()


def _count(value: str, counts: Mapping[str, int], values: Values) -> str:
    return f"{value} {counts.get(value, 0)}" + (
        f" (weight {values[value]:g})" if isinstance(values, Mapping) else ""
    )


def _show_dependent(out: Console, task: Task) -> None:
    lines = [
        f"{task.task} from the images of {task.source}: the prompts depend on them and are made during "
        "generation"
    ]
    lines += [f"template: {one}" for one in task.templates or ("each image's own",)]
    for name, values in task.attributes.items():
        weights = values if isinstance(values, Mapping) else {}
        choices = (f"{value} (weight {weights[value]:g})" if value in weights else value for value in values)
        lines.append(f"{name} changes to another of: {', '.join(choices)}")
    out.print("\n".join(lines), soft_wrap=True)


def _document(
    settings: Config, tasks: Sequence[Task], made: Mapping[str, Sequence[Prompt]]
) -> dict[str, Any]:
    """Return everything as JSON values; the coverage is that of all prompts together."""
    from diffugen.prompts.coverage import coverage, pair_coverage

    every = [(name, prompt) for name, some in made.items() for prompt in some]
    together = [prompt for _, prompt in every]
    values = _values(settings, *(task for task in tasks if task.step in made))
    return {
        "name": settings.name,
        "seed": settings.seed,
        "count": len(every),
        "prompts": [
            {
                "task": name,
                "id": prompt.id,
                "text": prompt.text,
                "negative": prompt.negative,
                "phrases": [asdict(phrase) for phrase in prompt.phrases],
                "attributes": dict(prompt.attributes),
                "template": prompt.template,
            }
            for name, prompt in every
        ],
        "values": {
            name: dict(given) if isinstance(given, Mapping) else list(given) for name, given in values.items()
        },
        "coverage": coverage(together),
        "pair_coverage": [asdict(pair) for pair in pair_coverage(together, values)],
        "tasks": [
            {
                "name": task.step,
                "task": task.task,
                "source": task.source,
                "templates": list(task.templates),
                "attributes": dict(task.attributes),
                "prompts": len(made[task.step]) if task.step in made else None,
            }
            for task in tasks
        ],
    }
