"""Which images a task makes, from prompts or from sources with regions: a complete record for each.

Knows prompts, sources and regions; not how an image is made, or what is kept of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from diffugen.config.generation import PromptSettings, Region, Task
from diffugen.errors import DiffugenError
from diffugen.labels.shapes import decode, encode
from diffugen.prompts.children import child_prompts
from diffugen.records import RLE, ImageRecord, Instances, Prompt
from diffugen.stages.regions import outside, region_mask, window_around
from diffugen.stages.sources import SourceImage

if TYPE_CHECKING:
    from diffugen.run.store import RunStore

LEAST_CONFIDENCE = 0.25
"""Finds of a region's detector that it is less sure of do not count."""


@dataclass(frozen=True)
class Common:
    """What the images of a task have in common.

    Attributes:
        task: The task.
        model: The diffusion model, as configured.
        settings: What else decides the pixels.
        size_wh: The size that the model is used at.
        unit: Sides are multiples of this.
        seed: Seed of the round.
        round: The round.
    """

    task: Task
    model: str
    settings: Mapping[str, Any]
    size_wh: tuple[int, int]
    unit: int
    seed: int
    round: int


@dataclass
class Plan:
    """The images of a task.

    Attributes:
        jobs: What is to be made.
        carried: From the id of an in-painted image to the objects that it has from its source.
        skipped: How many sources had no region to paint over, or nothing that could change.
    """

    jobs: list[ImageRecord]
    carried: dict[str, Instances] = field(default_factory=dict)
    skipped: int = 0


def plan_from_prompts(common: Common, prompts: Sequence[Prompt], each: int) -> Plan:
    """Plan ``each`` images of each prompt."""
    from diffugen.diffusion.generate import plan_jobs

    jobs = plan_jobs(
        prompts,
        images_per_prompt=each,
        run_seed=common.seed,
        size_wh=common.size_wh,
        model=common.model,
        settings=common.settings,
        round=common.round,
    )
    return Plan([replace(job, step=common.task.step) for job in jobs])


def find_regions(
    store: RunStore, task: Task, sources: Sequence[SourceImage], detector_device: str
) -> list[tuple[SourceImage, RLE | None]]:
    """Return each source with the region that is painted over: None for ``img2img``, and where there is none.

    Args:
        store: The run; holds the pixels of the sources.
        task: The task.
        sources: What it starts from. A detector's finds take the place of their labels where the task names a
            detector.
        detector_device: Where that detector runs.
    """
    region = task.region
    if region is None:
        return [(source, None) for source in sources]
    if region.label is not None and all(source.instances is None for source in sources):
        raise DiffugenError(
            f"task {task.step!r} paints over objects labelled {region.label!r}, but the sources of "
            f"{task.source!r} have no "
            "labels; give a labelled set, or find them with region.detector, or name a region.part or polygon"
        )
    if region.detector is None:
        return [(one, _region_rle(region, one, one.instances)) for one in sources]
    from diffugen.detectors.yolo import YoloDetector

    detector = YoloDetector(region.detector, device=detector_device)
    if region.find not in detector.class_names:
        raise DiffugenError(
            f"task {task.step!r}: the detector {region.detector} does not know {region.find!r}; it knows "
            f"{', '.join(detector.class_names)}"
        )
    found = []
    for one in sources:
        [seen] = detector.predict(
            [store.source(one.id)], image_size=_side(one.size_wh), confidence=LEAST_CONFIDENCE
        )
        # Its finds are labels too, where nobody made any.
        known = replace(one, instances=seen) if one.instances is None else one
        found.append((known, _region_rle(region, one, seen)))
    return found


def plan_from_sources(
    common: Common, found: Sequence[tuple[SourceImage, RLE | None]], prompts: PromptSettings
) -> Plan:
    """Plan the images that are made of sources.

    Args:
        common: What they have in common.
        found: Sources with their regions; those without one are left out of ``inpaint``.
        prompts: Arguments of `diffugen.prompts.make.make_prompts`.
    """
    from diffugen.diffusion.generate import image_seed
    from diffugen.diffusion.tasks import DEFAULT_STRENGTH, WINDOW, WORKING_SIZE, working_size

    task = common.task
    usable = [(source, region) for source, region in found if region is not None or task.region is None]
    if not usable:
        raise DiffugenError(
            f"task {task.step!r}: none of the {len(found)} sources of {task.source!r} has a region to paint "
            "over: no labelled "
            "object, or too little room beside the objects that are spared (region.spare)"
            if found
            else f"task {task.step!r}: the task {task.source!r} has made no images yet; run it first, "
            "without --task"
        )
    parents = [source.prompt for source, _ in usable]
    untold = not any(parent is not None and parent.template for parent in parents)
    texts = child_prompts(
        parents,
        templates=task.templates or (prompts.templates if untold else ()),
        changes=task.attributes,
        attributes=prompts.attributes,
        classes=prompts.classes,
        background=prompts.background,
        negative=prompts.negative,
        images_each=task.images_per_source,
        seed=common.seed,
    )
    plan = Plan([], skipped=len(found) - len(usable) + sum(not chosen for chosen in texts))
    strength = task.strength or DEFAULT_STRENGTH[task.task]
    for (source, rle), chosen in zip(usable, texts, strict=True):
        settings: dict[str, Any] = {**common.settings, "strength": strength}
        size_wh = seen_wh = source.size_wh
        kept: Instances | None = None
        if rle is not None and task.region is not None:
            region = decode(rle)
            kept = outside(source.instances or _nothing(size_wh), region).of_classes(tuple(prompts.classes))
            window = window_around(region, task.region.context_frac, common.size_wh)
            if window is not None:
                settings[WINDOW] = list(window)
                seen_wh = (window[2] - window[0], window[3] - window[1])
        working_wh = working_size(seen_wh, common.size_wh, common.unit)
        if rle is None:
            size_wh = working_wh
        elif size_wh != working_wh:
            settings[WORKING_SIZE] = list(working_wh)
        for number, prompt in enumerate(chosen):
            job = ImageRecord(
                prompt,
                image_seed(common.seed, number, prompt, source.id),
                size_wh,
                common.model,
                task.task,
                settings,
                common.round,
                parent=source.id,
                region=rle,
                origin=source.family,
                source=source.place,
                step=task.step,
            )
            plan.jobs.append(job)
            if kept is not None:
                plan.carried[job.id] = kept
    return plan


def _region_rle(region: Region, source: SourceImage, instances: Instances | None) -> RLE | None:
    # Encoded at once: the masks of many large photos would fill the memory.
    mask = region_mask(region, source.size_wh, source.name, instances)
    return None if mask is None else encode(mask)


def _nothing(size_wh: tuple[int, int]) -> Instances:
    return Instances(size_wh, (), (), np.zeros(0))


def _side(size_wh: tuple[int, int]) -> int:
    """A side that the detector can divide, at least as long as the image's longer one."""
    return -(-max(size_wh) // 32) * 32
