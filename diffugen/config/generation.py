"""What is generated: prompts, the tasks that make images from them, and regions to paint over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field, ValidationInfo, model_validator

from diffugen.config.values import AnyText, Name, Point, Radius, Section, Text, Texts, Values, some
from diffugen.errors import did_you_mean
from diffugen.records import FIELD, TASKS

Sampling = Literal["balanced", "sample", "product"]
SAMPLINGS: tuple[Sampling, ...] = get_args(Sampling)
"""Ways to choose combinations of values, explained at `diffugen.prompts.make.make_prompts`."""

PARTS = {
    "all": (0, 0, 1, 1),
    "upper half": (0, 0, 1, 1 / 2),
    "lower half": (0, 1 / 2, 1, 1),
    "left half": (0, 0, 1 / 2, 1),
    "right half": (1 / 2, 0, 1, 1),
    "upper third": (0, 0, 1, 1 / 3),
    "lower third": (0, 2 / 3, 1, 1),
    "left third": (0, 0, 1 / 3, 1),
    "right third": (2 / 3, 0, 1, 1),
    "upper two thirds": (0, 0, 1, 2 / 3),
    "lower two thirds": (0, 1 / 3, 1, 1),
    "middle": (1 / 4, 1 / 4, 3 / 4, 3 / 4),
}
"""Left, upper, right and lower edge of the named parts of an image, as fractions of its width and height."""


def _own_fields(template: str, info: ValidationInfo) -> str:
    """Check a template's fields, unless attributes or classes are themselves wrong."""
    if {"attributes", "classes"} <= info.data.keys():
        _check_fields(template, info.data["attributes"], info.data["classes"])
    return template


def _check_fields(template: str, attributes: Mapping[str, Any], classes: Mapping[str, Any]) -> None:
    for field in FIELD.findall(template):
        if field not in attributes and field not in classes:
            near = did_you_mean(field, [*attributes, *classes])
            raise ValueError(f"fields that are attributes or classes, not {{{field}}}{near}")


def _at_least_three_corners(points: tuple[Point, ...]) -> tuple[Point, ...]:
    if len(points) < 3:
        raise ValueError("at least three corners")
    return points


class PromptSettings(Section):
    """What the prompts say; the fields are the arguments of `diffugen.prompts.make.make_prompts`.

    Attributes:
        attributes: From a ``{field}`` of the templates to the values it can take, or to their weights.
        classes: From a class name to the phrases that name it in a prompt.
        templates: Texts with fields.
        background: Words that name no object but compete with the objects for pixels.
        negative: Negative text of every prompt.
        count: How many prompts; None for every combination once.
        sampling: How combinations are chosen.
    """

    attributes: dict[Text, Values] = Field(default_factory=dict)
    classes: Annotated[dict[Text, Texts], AfterValidator(some)]
    templates: Annotated[tuple[Annotated[Text, AfterValidator(_own_fields)], ...], AfterValidator(some)]
    background: tuple[Text, ...] = ()
    negative: AnyText = ""
    count: Annotated[int, Field(ge=1)] | None = None
    sampling: Sampling = "balanced"


class Region(Section):
    """Which part of an image is painted over: exactly one of the first five keys, refined by the others.

    Attributes:
        label: The largest object of this class among the labels of the source image.
        detector: A checkpoint; the largest object of class ``find`` that it detects.
        polygon: Corners (x, y) as fractions of width and height, in [0, 1].
        part: A named part of the image, such as ``lower half`` or ``middle``; see `PARTS`.
        mask: A mask image of the source's size (white is painted over), or a folder of masks named like the
            sources.
        find: The class that the detector looks for.
        grow_frac: Radius by which the region is grown, relative to the square root of the image area.
        spare: Whether labelled objects of the source are left out of a ``polygon``, ``part`` or ``mask``.
        context_frac: How much of the image around the region the model sees on each side, relative to the
            region's own width and height.
    """

    label: Text | None = None
    detector: Text | None = None
    polygon: Annotated[tuple[Point, ...], AfterValidator(_at_least_three_corners)] | None = None
    part: Literal[tuple(PARTS)] | None = None  # type: ignore[valid-type]
    mask: Text | None = None
    find: Text | None = None
    grow_frac: Radius = 0.02
    spare: bool = True
    context_frac: Annotated[float, Field(ge=0)] = 0.5

    @model_validator(mode="after")
    def _one_way(self) -> Region:
        ways = ("label", "detector", "polygon", "part", "mask")
        given = [way for way in ways if getattr(self, way) is not None]
        if len(given) != 1:
            raise ValueError(f"exactly one of {', '.join(ways)}, not {' and '.join(given) or 'none'}")
        if (self.detector is None) != (self.find is None):
            raise ValueError("detector and find together: the checkpoint, and the class that it looks for")
        return self


class Task(Section):
    """One step of the generation: what is made, and from what.

    Attributes:
        task: ``txt2img`` makes images from prompts, ``img2img`` from other images, ``inpaint`` repaints a
            part of them.
        name: What later tasks call it; the task if not given.
        source: Images to start from: the name of an earlier task, a folder of photos, a labelled set (a
            YOLO-seg folder or COCO file), or the folder of another run; None for the task before.
        templates: Texts with fields, as in ``prompts``. Empty: each source's own, or those of ``prompts`` if
            it has none.
        attributes: Values for fields that differ from those of ``prompts``. An image made from a source gets
            another value than the source has; fields that are not named here keep the source's values.
        count: Number of prompts (``txt2img``), or the most sources to use; None for the count of ``prompts``,
            or for all sources.
        images_per_source: Images made from each source, with different prompts where there are several.
        strength: How much a source is changed, in (0, 1]; None for 0.6, or 1 for ``inpaint``.
        region: What is painted over; for ``inpaint`` only.
        model: Another diffusion model for this task, such as one trained for inpainting; None for the
            configured one.
    """

    task: Literal[TASKS]  # type: ignore[valid-type]
    name: Name | None = None
    source: Text | None = None
    templates: tuple[Text, ...] = ()
    attributes: dict[Text, Values] = Field(default_factory=dict)
    count: Annotated[int, Field(ge=1)] | None = None
    images_per_source: Annotated[int, Field(ge=1)] = 1
    strength: Annotated[float, Field(gt=0, le=1)] | None = None
    region: Region | None = None
    model: Text | None = None

    @property
    def step(self) -> str:
        """What other tasks and image records call it."""
        return self.name or str(self.task)

    @model_validator(mode="after")
    def _keys_fit_the_task(self) -> Task:
        if (self.region is not None) != (self.task == "inpaint"):
            raise ValueError(f"{'a' if self.task == 'inpaint' else 'no'} region for {self.task}")
        if self.task == "txt2img" and (self.source is not None or self.strength is not None):
            raise ValueError("neither source nor strength for txt2img, which starts from noise")
        return self


def check_chain(tasks: tuple[Task, ...], info: ValidationInfo) -> tuple[Task, ...]:
    """Check the names and the order of tasks, and that the fields of their templates can be filled."""
    names = [task.step for task in tasks]
    prompts: PromptSettings | None = info.data.get("prompts")
    for place, task in enumerate(tasks):
        if names[place] in names[:place]:
            raise ValueError(f"tasks of different names; there are two {names[place]!r}: give one a name")
        if task.source in names[place:]:
            raise ValueError(
                f"a source that comes before the task {names[place]!r}; {task.source!r} does not"
            )
        if place == 0 and task.task != "txt2img" and task.source is None:
            raise ValueError(
                f"a source for the first task, {task.task}: a folder of photos, a labelled set or a run"
            )
        if prompts is not None:
            attributes = {**prompts.attributes, **task.attributes}
            for template in task.templates:
                _check_fields(template, attributes, prompts.classes)
            _check_used(task.attributes, names[place], _templates_of(place, tasks, prompts))
    return tasks


def _templates_of(place: int, tasks: tuple[Task, ...], prompts: PromptSettings) -> tuple[str, ...]:
    """Return the templates that a task's prompts come from; none where its sources bring their own."""
    task = tasks[place]
    names = [one.step for one in tasks]
    source = task.source if task.source is not None or place == 0 else names[place - 1]
    if task.templates:
        return task.templates
    if task.task == "txt2img":
        return prompts.templates
    return _templates_of(names.index(source), tasks, prompts) if source in names else ()


def _check_used(attributes: Mapping[str, Any], name: str, templates: Sequence[str]) -> None:
    fields = {field for template in templates for field in FIELD.findall(template)}
    for attribute in attributes if templates else ():
        if attribute not in fields:
            raise ValueError(
                f"attributes of the task {name!r} that its templates use, not {attribute!r}"
                f"{did_you_mean(attribute, fields)}; the templates are "
                f"{', '.join(map(repr, templates[:2]))}{' ...' if len(templates) > 2 else ''}"
            )
