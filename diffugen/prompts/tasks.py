"""The configured tasks in order, each with its name and source and, where it starts from noise, its prompts.

Knows how tasks depend on one another; not how images are made, and loads nothing heavy.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from diffugen.config.generation import PromptSettings, Task
from diffugen.errors import DiffugenError
from diffugen.prompts.make import make_prompts
from diffugen.records import FIELD, Prompt


def plan_tasks(tasks: Sequence[Task]) -> list[Task]:
    """Return the configured tasks, names and sources filled in; without any, one ``txt2img`` task."""
    planned: list[Task] = []
    for task in tasks or (Task(task="txt2img"),):
        source = task.source
        if task.task != "txt2img" and source is None:
            source = planned[-1].step
        planned.append(task.changed(name=task.step, source=source))
    return planned


def choose_tasks(tasks: Sequence[Task], only: str | None) -> list[Task]:
    """Return all tasks, or those of one name or kind.

    Raises:
        DiffugenError: There is no such task.
    """
    named = [task for task in tasks if only in (None, task.step)]
    chosen = named or [task for task in tasks if task.task == only]
    if not chosen:
        names = ", ".join(task.step for task in tasks)
        raise DiffugenError(
            f"no task {only!r}; the configuration has {names}: name one of them, or add it under tasks"
        )
    return chosen


def task_prompts(task: Task, tasks: Sequence[Task], prompts: PromptSettings, seed: int) -> list[Prompt]:
    """Return the prompts of a ``txt2img`` task.

    Args:
        task: Its templates, attributes and count take precedence over those of ``prompts``.
        tasks: All tasks. What only others need is not a mistake here: attributes of their templates, and,
            as sources bring objects too, classes that no prompt of this task can name.
        prompts: What the prompts say.
        seed: Seed of the choice.
    """
    templates = task.templates or prompts.templates
    attributes = {**prompts.attributes, **task.attributes}
    classes = prompts.classes
    if len(tasks) > 1 or task.templates:
        here = _fields(templates)
        elsewhere = _fields(prompts.templates).union(*(_fields(one.templates) for one in tasks))
        attributes = {
            name: values
            for name, values in attributes.items()
            if name in here or name in task.attributes or name not in elsewhere
        }
        words = " | ".join([*templates, *itertools.chain.from_iterable(attributes.values())]).casefold()
        classes = {
            name: phrases
            for name, phrases in classes.items()
            if any(mention.casefold() in words for mention in (f"{{{name}}}", *phrases))
        }
    return make_prompts(
        templates,
        attributes,
        classes,
        prompts.background,
        prompts.negative,
        count=prompts.count if task.count is None else task.count,
        sampling=prompts.sampling,
        seed=seed,
    )


def _fields(templates: Sequence[str]) -> set[str]:
    return {name for template in templates for name in FIELD.findall(template)}
