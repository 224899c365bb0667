"""The configured tasks in order, each with its name, its source and, where it starts from noise, its prompts.

Knows how tasks lean on one another; not how images are made, and loads nothing heavy.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from diffugen.errors import DiffugenError
from diffugen.prompts.make import make_prompts
from diffugen.records import FIELD, Prompt


@dataclass(frozen=True)
class Region:
    """How to find the part of an image that is painted over: exactly one of the first five, changed by the
    others.

    Attributes:
        label: The largest object of this class among the labels of the image.
        detector: A checkpoint; the largest object of class ``find`` that it finds.
        polygon: Corners (x, y) as parts of width and height, in [0, 1].
        part: A named part, such as ``lower half``.
        mask: A mask image of the image's size (bright is painted over), or a folder of masks with the images'
            names.
        find: The class that the detector looks for.
        grow_frac: Grown by this radius, relative to the square root of the image area.
        spare: Whether labelled objects are left out of a ``polygon``, ``part`` or ``mask``.
        context_frac: Part of the image around it that the model sees, on each side, relative to its own width
            and height.
    """

    label: str | None = None
    detector: str | None = None
    polygon: tuple[tuple[float, float], ...] | None = None
    part: str | None = None
    mask: str | None = None
    find: str | None = None
    grow_frac: float = 0.02
    spare: bool = True
    context_frac: float = 0.5


@dataclass(frozen=True)
class Task:
    """One step of the generation; the fields are those of `diffugen.config.generation.TaskSection`, which
    explains them.
    """

    task: str
    name: str
    source: str | None = None
    templates: tuple[str, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    count: int | None = None
    images_per_source: int = 1
    strength: float | None = None
    region: Region | None = None
    model: str | None = None


def plan_tasks(tasks: Sequence[Mapping[str, Any]]) -> list[Task]:
    """Return the tasks of a configuration, with their names and sources filled in.

    Args:
        tasks: The fields of each, by name; none for ``txt2img`` alone.
    """
    planned: list[Task] = []
    for given in tasks or ({"task": "txt2img"},):
        values = {**given, "name": given.get("name") or given["task"]}
        if values.get("region") is not None:
            corners = values["region"].get("polygon")
            polygon = None if corners is None else tuple((x, y) for x, y in corners)
            values["region"] = Region(**{**values["region"], "polygon": polygon})
        if values["task"] != "txt2img" and values.get("source") is None:
            values["source"] = planned[-1].name
        planned.append(Task(**{**values, "templates": tuple(values.get("templates", ()))}))
    return planned


def choose_tasks(tasks: Sequence[Task], only: str | None) -> list[Task]:
    """Return all tasks, or those of one name or kind.

    Raises:
        DiffugenError: There is no such task.
    """
    chosen = [task for task in tasks if only in (None, task.name)] or [
        task for task in tasks if task.task == only
    ]
    if not chosen:
        names = ", ".join(task.name for task in tasks)
        raise DiffugenError(
            f"no task {only!r}; the configuration has {names}: name one of them, or add it under tasks"
        )
    return chosen


def task_prompts(task: Task, tasks: Sequence[Task], prompts: Mapping[str, Any], seed: int) -> list[Prompt]:
    """Return the prompts of a ``txt2img`` task.

    Args:
        task: Its templates, attributes and count go before those of ``prompts``.
        tasks: All tasks. What only others need is no mistake here: attributes of their templates, and, as
            sources bring objects too, classes that no prompt of this task can name.
        prompts: Arguments of `diffugen.prompts.make.make_prompts`.
        seed: Seed of the choice.
    """
    templates = task.templates or prompts["templates"]
    attributes = {**prompts["attributes"], **task.attributes}
    classes = prompts["classes"]
    if len(tasks) > 1 or task.templates:
        here = _fields(templates)
        elsewhere = _fields(prompts["templates"]).union(*(_fields(one.templates) for one in tasks))
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
    changed = {"templates": templates, "attributes": attributes, "classes": classes}
    count = prompts["count"] if task.count is None else task.count
    return make_prompts(**{**prompts, **changed, "count": count}, seed=seed)


def _fields(templates: Sequence[str]) -> set[str]:
    return {name for template in templates for name in FIELD.findall(template)}
