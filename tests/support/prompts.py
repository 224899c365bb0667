"""Prompts of configured tasks."""

from __future__ import annotations

from diffugen.config import Config, Task
from diffugen.prompts.children import child_prompts
from diffugen.records import Prompt


def children(config: Config, task: Task, parents: list[Prompt] | list[None]) -> list[list[Prompt]]:
    """Return the prompts that a task makes of each of its sources."""
    prompts = config.prompts
    return child_prompts(
        parents,
        templates=task.templates,
        changes=task.attributes,
        attributes=prompts.attributes,
        classes=prompts.classes,
        background=prompts.background,
        negative=prompts.negative,
        images_each=task.images_per_source,
    )
