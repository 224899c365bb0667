"""The sections that say what is generated: prompts, and the tasks that make images of them or of other
images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, model_validator

from diffugen.config.mistakes import hint
from diffugen.config.values import Name, Point, Radius, Section, Text, Texts, Values, some
from diffugen.records import FIELD, TASKS

PARTS = (
    "all",
    "upper half",
    "lower half",
    "left half",
    "right half",
    "upper third",
    "lower third",
    "left third",
    "right third",
    "upper two thirds",
    "lower two thirds",
    "middle",
)


def _own_fields(template: str, info: ValidationInfo) -> str:
    """Check a template's fields, unless attributes or classes are themselves wrong."""
    if {"attributes", "classes"} <= info.data.keys():
        _known_fields(template, [*info.data["attributes"], *info.data["classes"]])
    return template


def _known_fields(template: str, names: Sequence[str]) -> None:
    for field in FIELD.findall(template):
        if field not in names:
            raise ValueError(f"fields that are attributes or classes, not {{{field}}}{hint(field, names)}")


def _a_polygon(points: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
    if len(points) < 3:
        raise ValueError("at least three corners")
    return points


def check_chain(tasks: tuple[TaskSection, ...], info: ValidationInfo) -> tuple[TaskSection, ...]:
    """Check names, that a source is not itself or a later task, and that the fields of templates can be
    filled.
    """
    names = [task.name or task.task for task in tasks]
    prompts: PromptsSection | None = info.data.get("prompts")
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
            for template in task.templates:
                _known_fields(template, [*prompts.attributes, *prompts.classes, *task.attributes])
            _check_used(task.attributes, names[place], _templates_of(place, tasks, prompts))
    return tasks


def _templates_of(place: int, tasks: tuple[TaskSection, ...], prompts: PromptsSection) -> tuple[str, ...]:
    """Return the templates that a task's prompts come from; none where its sources bring their own."""
    task = tasks[place]
    names = [one.name or one.task for one in tasks]
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
                f"attributes of the task {name!r} that its templates use, not "
                f"{attribute!r}{hint(attribute, fields)}; the "
                f"templates are {', '.join(map(repr, templates[:2]))}{' ...' if len(templates) > 2 else ''}"
            )


class PromptsSection(Section):
    """Arguments of `diffugen.prompts.make.make_prompts`.

    Attributes:
        attributes: From a ``{field}`` of the templates to the values it can take, or to their weights.
        classes: From a class name to the phrases that name it in a prompt.
        templates: Texts with fields.
        background: Words that name no object but compete with the objects for pixels.
        negative: Negative text of every prompt.
        count: How many prompts; None for every combination once.
        sampling: How they are chosen among the combinations.
    """

    attributes: dict[str, Values] = Field(default_factory=dict)
    classes: Annotated[dict[str, Texts], AfterValidator(some)]
    templates: Annotated[tuple[Annotated[Text, AfterValidator(_own_fields)], ...], AfterValidator(some)]
    background: tuple[Text, ...] = ()
    negative: str = ""
    count: Annotated[int, Field(ge=1)] | None = None
    sampling: Literal["balanced", "sample", "product"] = "balanced"


class RegionSection(Section):
    """Which part of an image is painted over: exactly one of the first five, changed by the others.

    Attributes:
        label: The largest object of this class among the labels of the source.
        detector: A checkpoint; the largest object of class ``find`` that it finds.
        polygon: Corners as parts of width and height, in [0, 1].
        part: A part of the image, such as ``lower half`` or ``middle``.
        mask: A mask image of the source's size (white is painted over), or a folder of masks with the
            sources' names.
        find: The class that the detector looks for.
        grow_frac: Grown by this radius, relative to the square root of the image area.
        spare: Whether labelled objects of the source are left out of a ``polygon``, ``part`` or ``mask``.
        context_frac: Part of the image around it that the model sees, on each side, relative to its own width
            and height.
    """

    label: Text | None = None
    detector: Text | None = None
    polygon: Annotated[tuple[Point, ...], AfterValidator(_a_polygon)] | None = None
    part: Literal[PARTS] | None = None  # type: ignore[valid-type]
    mask: Text | None = None
    find: Text | None = None
    grow_frac: Radius = 0.02
    spare: bool = True
    context_frac: Annotated[float, Field(ge=0)] = 0.5

    @model_validator(mode="after")
    def _one_way(self) -> RegionSection:
        ways = ("label", "detector", "polygon", "part", "mask")
        given = [way for way in ways if getattr(self, way) is not None]
        if len(given) != 1:
            raise ValueError(f"exactly one of {', '.join(ways)}, not {' and '.join(given) or 'none'}")
        if (self.detector is None) != (self.find is None):
            raise ValueError("detector and find together: the checkpoint, and the class that it looks for")
        return self


class TaskSection(Section):
    """One step of the generation: what is made, and of what.

    Attributes:
        task: ``txt2img`` makes images of prompts, ``img2img`` of other images, ``inpaint`` paints over a part
            of them.
        name: What later tasks call it; the task if not given.
        source: Images to start from: the name of an earlier task, a folder of photos, a labelled set (a
            YOLO-seg folder or COCO file), or the folder of another run; None for the task before.
        templates: Texts with fields, as in ``prompts``; empty: each source's own, or those of ``prompts``
            where there is none.
        attributes: Values for fields that differ from those of ``prompts``. A source's child gets another
            value than it has; all fields that are not named here keep the source's values.
        count: How many prompts (``txt2img``) or at most how many sources; None for as ``prompts`` says, or
            all.
        images_per_source: Images that are made of each source, with different prompts where there are
            several.
        strength: How much a source is changed, in (0, 1]; None for 0.6, or 1 for ``inpaint``.
        region: What is painted over; for ``inpaint`` only.
        model: Another diffusion model for this task, such as one that was made for inpainting; None for the
            configured one.
    """

    task: Literal[TASKS]  # type: ignore[valid-type]
    name: Name | None = None
    source: Text | None = None
    templates: tuple[Text, ...] = ()
    attributes: dict[str, Values] = Field(default_factory=dict)
    count: Annotated[int, Field(ge=1)] | None = None
    images_per_source: Annotated[int, Field(ge=1)] = 1
    strength: Annotated[float, Field(gt=0, le=1)] | None = None
    region: RegionSection | None = None
    model: Text | None = None

    @model_validator(mode="after")
    def _keys_fit_the_task(self) -> TaskSection:
        if (self.region is not None) != (self.task == "inpaint"):
            raise ValueError(f"{'a' if self.task == 'inpaint' else 'no'} region for {self.task}")
        if self.task == "txt2img" and (self.source is not None or self.strength is not None):
            raise ValueError("neither source nor strength for txt2img, which starts from noise")
        return self
