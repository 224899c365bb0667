"""Plan the images of a task, from prompts or from sources and regions: one complete record per image.

Knows prompts, sources and regions; does not know how an image is generated or what is kept of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from diffugen.config.generation import PromptSettings, Region, Task
from diffugen.errors import DiffugenError, counted
from diffugen.labels.shapes import decode, encode
from diffugen.prompts.children import child_prompts
from diffugen.prompts.names import matching_names
from diffugen.records import RLE, ImageRecord, Instances, Prompt
from diffugen.stages.regions import LEAST_AREA_FRAC, outside, region_mask, window_around
from diffugen.stages.sources import SourceImage

if TYPE_CHECKING:
    from diffugen.run.store import RunStore

LEAST_CONFIDENCE = 0.25
"""Detections of a region's detector below this confidence are ignored."""


@dataclass(frozen=True)
class Common:
    """What all images of a task share.

    Attributes:
        task: The task.
        model: The diffusion model, as configured.
        settings: All other settings that affect the pixels.
        size_wh: Width and height that the model runs at, in pixels.
        unit: Both sides must be multiples of this, in pixels.
        seed: Seed of the round.
        round: Number of the round.
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
        groups: The images to generate: in each group those that can share a batch.
        samples: Yields some of them, which have all prompts and settings among them.
        digest: Hash of all that decides them; None where the plan is not remembered.
        carried: From the id of an inpainted image to the objects it keeps from its source.
        skipped: Number of sources left out: no region to paint over, or no attribute to change.
    """

    groups: Sequence[Sequence[ImageRecord]]
    samples: Callable[[], Iterable[ImageRecord]]
    digest: str | None = None
    carried: dict[str, Instances] = field(default_factory=dict)
    skipped: int = 0


def plan_from_prompts(common: Common, prompts: Sequence[Prompt], each: int) -> Plan:
    """Plan ``each`` images of each prompt."""
    from diffugen.diffusion.jobs import PromptJobs

    jobs = PromptJobs(
        prompts,
        images_per_prompt=each,
        run_seed=common.seed,
        size_wh=common.size_wh,
        model=common.model,
        settings=common.settings,
        round=common.round,
        step=common.task.step,
    )
    return Plan([jobs], jobs.first_of_each, jobs.digest)


def find_regions(
    store: RunStore, task: Task, sources: Sequence[SourceImage], classes: Sequence[str], detector_device: str
) -> list[tuple[SourceImage, RLE | None]]:
    """Return each source with the region to paint over; None for ``img2img`` and where there is none.

    Args:
        store: The run, which contains the pixels of the sources.
        task: The task.
        sources: The images to start from. If the task names a detector, its detections replace their labels.
        classes: Classes of the run; the detector's names for them may be spelt differently.
        detector_device: Device of that detector.

    Raises:
        DiffugenError: The sources have no labels but the region needs them, or the detector lacks the class.
    """
    region = task.region
    if region is None:
        return [(source, None) for source in sources]
    if region.label is not None and all(source.instances is None for source in sources):
        raise DiffugenError(
            f"task {task.step!r} paints over objects labelled {region.label!r}, but the images of "
            f"{task.source!r} have no labels; use a labelled dataset, find the objects with "
            "region.detector, or set region.part or region.polygon"
        )
    if region.detector is None:
        return [(one, _region_rle(region, one, one.instances)) for one in sources]
    from diffugen.detectors.load import open_checkpoint

    detector = open_checkpoint(region.detector, device=detector_device)
    detector.rename(matching_names(detector.class_names, [str(region.find), *classes]))
    if region.find not in detector.class_names:
        raise DiffugenError(
            f"task {task.step!r}: the detector {region.detector} has no class {region.find!r}; its classes "
            f"are {', '.join(detector.class_names)}"
        )
    found = []
    for one in sources:
        [seen] = detector.predict(
            [store.source(one.id)], image_size=_side(one.size_wh), confidence=LEAST_CONFIDENCE
        )
        # The detections also serve as labels where the image has none.
        known = replace(one, instances=seen) if one.instances is None else one
        found.append((known, _region_rle(region, one, seen)))
    return found


def _why_nothing(task: Task) -> str:
    """Return why no source has a region to paint over."""
    region = task.region
    wanted = region and (region.label or region.find)
    if wanted:
        return f"none shows a {wanted} that covers at least {LEAST_AREA_FRAC:.1%} of the image"
    least = f"less than {LEAST_AREA_FRAC:.1%} of the image"
    if region and region.spare:
        return f"the region covers {least}, or hardly any of it is free of labelled objects (region.spare)"
    return f"the region covers {least}"


def plan_from_sources(
    common: Common, found: Sequence[tuple[SourceImage, RLE | None]], prompts: PromptSettings
) -> Plan:
    """Plan the images that are made from sources.

    Args:
        common: What the images share.
        found: Sources with their regions; ``inpaint`` skips those without one.
        prompts: The prompt settings of the configuration.

    Raises:
        DiffugenError: There is no source, or none has a region to paint over.
    """
    from diffugen.diffusion.jobs import grouped, image_seed
    from diffugen.diffusion.tasks import DEFAULT_STRENGTH, WINDOW, WORKING_SIZE, working_size

    task = common.task
    usable = [(source, region) for source, region in found if region is not None or task.region is None]
    if not usable:
        raise DiffugenError(
            f"task {task.step!r}: nothing to paint over in the {counted(len(found), 'image')} of "
            f"{task.source!r}: {_why_nothing(task)}"
            if found
            else f"task {task.step!r}: the task {task.source!r} has not made any images yet; run it first, "
            "without --task"
        )
    parents = [source.prompt for source, _ in usable]
    no_template = not any(parent is not None and parent.template for parent in parents)
    texts = child_prompts(
        parents,
        templates=task.templates or (prompts.templates if no_template else ()),
        changes=task.attributes,
        attributes=prompts.attributes,
        classes=prompts.classes,
        background=prompts.background,
        negative=prompts.negative,
        images_each=task.images_per_source,
        seed=common.seed,
    )
    jobs: list[ImageRecord] = []
    carried: dict[str, Instances] = {}
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
            jobs.append(job)
            if kept is not None:
                carried[job.id] = kept
    skipped = len(found) - len(usable) + sum(not chosen for chosen in texts)
    return Plan(grouped(jobs), lambda: jobs, None, carried, skipped)


def _region_rle(region: Region, source: SourceImage, instances: Instances | None) -> RLE | None:
    # Encoded right away: uncompressed masks of many large photos would fill the memory.
    mask = region_mask(region, source.size_wh, source.name, instances)
    return None if mask is None else encode(mask)


def _nothing(size_wh: tuple[int, int]) -> Instances:
    return Instances(size_wh, (), (), np.zeros(0))


def _side(size_wh: tuple[int, int]) -> int:
    """Return the longer side of an image, rounded up to a multiple of the detector's stride, 32 px."""
    return -(-max(size_wh) // 32) * 32
