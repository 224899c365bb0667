"""The stage that makes images: the configured tasks in order, with their sources, regions and prompts.

Knows which prompts, sources and earlier labels the images of a task are made from, and keeps the images; not
how an image is made (`diffugen.diffusion`), nor the order of the stages.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffugen.config.generation import Task
from diffugen.config.labelling import Labelling
from diffugen.config.sections import DiffusionSettings, Generation
from diffugen.errors import DiffugenError, Interrupted, counted
from diffugen.labels.shapes import decode
from diffugen.prompts.tasks import choose_tasks, plan_tasks, task_prompts
from diffugen.records import ImageRecord, Instances, LabelSet, content_id
from diffugen.run.executors import OnStep
from diffugen.run.results import Generated, TaskImages
from diffugen.run.rounds import OnProgress, Round, stage
from diffugen.run.store import RunStore
from diffugen.stages.batches import Batches, Progress
from diffugen.stages.label import label_images
from diffugen.stages.making import Dropped, ImageBatch, ImageMaker
from diffugen.stages.models import load_for_planning, load_model
from diffugen.stages.plan import Common, Plan, find_regions, plan_from_prompts, plan_from_sources
from diffugen.stages.regions import check_mask
from diffugen.stages.shards import WHOLE, Shard
from diffugen.stages.sources import check_source, images_of_task, sources_outside, with_classes

if TYPE_CHECKING:
    from diffugen.diffusion.tasks import Source

CARRIED = "carried"
"""Provenance of the objects that an in-painted image keeps from its source."""


@stage("generate", Generated, unless=Round.files_missing, kept="The images saved so far are kept.")
def generate(
    round: Round,
    on_progress: OnProgress,
    generation: Generation,
    labelling: Labelling,
    only: str | None = None,
    shard: Shard = WHOLE,
) -> Generated:
    """Generate the images of a round that the run does not have yet, batch by batch, with their heat maps.

    Args:
        round: The round.
        on_progress: Called after each denoising step with images done, those of the batch in work in part,
            and all images planned so far.
        generation: What is generated, and how. Sources keep their proportions whatever ``size_wh`` says.
        labelling: How the images of one task are labelled before they are the sources of another.
        only: Do only the task of this name or kind; the images of the tasks before it must exist.
        shard: The part of each task's images to generate.

    Raises:
        DiffugenError: The model cannot be used, a phrase cannot be traced, a source or region cannot be read,
            or the run cannot be written.
        Interrupted: Ctrl-C while a batch is in work; its images cannot be kept.
    """
    from diffugen.diffusion.generate import check_jobs

    round.run.executor.open()
    tasks = plan_tasks(generation.tasks)
    chosen = choose_tasks(tasks, only)
    for task in chosen:
        check_places(task, {one.step for one in tasks})
    if shard.count > 1:
        _check_shardable(chosen, {one.step for one in tasks})
    work = _Work(round, generation, labelling, tasks)
    models = _Models(generation.diffusion, planning=round.run.executor.spreads)
    store, done, total, in_work = round.store, 0, 0, 0
    reached = 0.0
    counts: dict[str, TaskImages] = {}

    def report(now: float) -> None:
        nonlocal reached
        reached = max(reached, now)  # images of a batch are saved one by one, after all of its steps
        on_progress(reached, total)

    def on_step(share: float, images: int) -> None:
        nonlocal in_work
        in_work = images
        report(done + share * images)

    def on_done(existing: int, made: int) -> None:
        nonlocal done, in_work
        done, in_work = done + existing + made, max(0, in_work - made)
        report(done)

    for task in chosen:
        pipeline = models.load(task)
        plan = _plan(work, task, pipeline)
        maker = _maker(work, task, pipeline)
        batches = Batches(plan.groups, maker.batch_size)
        batches = batches[shard.part(len(batches))]
        total += batches.images
        settings = generation.diffusion
        check_jobs(pipeline, plan.samples(), map_kind=settings.map, concepts=settings.concepts)
        _tell_what_is_unread(round, pipeline, plan.samples())
        report(done)
        key = None if plan.digest is None else content_id(plan.digest, maker.batch_size, str(shard))
        progress = Progress(round, batches, key, on_done)
        try:
            _make(work, maker, progress, on_step)
        except KeyboardInterrupt as stop:
            again = f"; the {counted(in_work, 'image')} in work will be generated again" if in_work else ""
            raise Interrupted(f"{done} of {counted(total, 'image')} are kept{again}.") from stop
        _keep_carried(store, plan.carried, round.number)
        counts[task.step] = TaskImages(batches.images, progress.dropped, plan.skipped)
    return Generated(
        images=sum(one.images for one in counts.values()),
        dropped=sum(one.dropped for one in counts.values()),
        skipped=sum(one.skipped for one in counts.values()),
        tasks=counts,
    )


def check_places(task: Task, names: Collection[str]) -> None:
    """Check, before anything is made, that what a task starts from exists.

    Args:
        task: The task.
        names: The names of all tasks.

    Raises:
        DiffugenError: A source, mask or checkpoint is missing.
    """
    if task.source is not None and task.source not in names:
        check_source(task.source, names)
    if task.region is not None and task.region.mask is not None:
        check_mask(task.region.mask)
    if task.region is not None and task.region.detector is not None:
        from diffugen.detectors.load import open_checkpoint

        open_checkpoint(task.region.detector)


def _check_shardable(chosen: Sequence[Task], names: Collection[str]) -> None:
    """Check that no task starts from images of another, of which a shard has only a part.

    Raises:
        DiffugenError: A task does.
    """
    for task in chosen:
        if task.source in names:
            raise DiffugenError(
                f"task {task.step} starts from the images of task {task.source}, and a shard has only some "
                f"of them. Generate {task.source} in shards (--task {task.source}), merge the runs, and "
                "generate the rest in the merged run, without --shard"
            )


def file_digest(file: str) -> str:
    """Return 16 hex digits of a file's content; of anything else, such as a Hub name, the text itself."""
    path = Path(file).expanduser()
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else file


@dataclass(frozen=True)
class _Work:
    """What the tasks of a round have in common."""

    round: Round
    generation: Generation
    labelling: Labelling
    tasks: Sequence[Task]


class _Models:
    """Loads the diffusion model of a task, one at a time in memory."""

    def __init__(self, settings: DiffusionSettings, *, planning: bool) -> None:
        self._settings = settings
        self._load = load_for_planning if planning else load_model
        self._loaded: str | None = None
        self._pipeline: Any = None

    def load(self, task: Task) -> Any:
        model = task.model or self._settings.model
        if self._loaded != model:
            self._pipeline = None  # frees its memory before the next one takes some
            self._pipeline = self._load(self._settings, model)
            self._loaded = model
        return self._pipeline


def _plan(work: _Work, task: Task, pipeline: Any) -> Plan:
    """Return the images of a task, those that exist already included."""
    from diffugen.diffusion.pipelines import default_size_wh
    from diffugen.diffusion.tasks import size_unit

    round, generation = work.round, work.generation
    settings = generation.diffusion
    common = Common(
        task,
        task.model or settings.model,
        _pixel_settings(settings),
        settings.size_wh or default_size_wh(pipeline),
        size_unit(pipeline),
        round.seed,
        round.number,
    )
    if task.task == "txt2img":
        prompts = task_prompts(task, work.tasks, generation.prompts, round.seed)
        return plan_from_prompts(common, prompts, generation.images_per_prompt)
    source, classes = str(task.source), tuple(generation.prompts.classes)
    if source in {one.step for one in work.tasks}:
        label_images(round, work.labelling)
        sources = list(images_of_task(round.store, source, round.number, work.labelling.method))
    else:
        sources = list(sources_outside(round.store, source, task.count, round.run.notify_once))
        label = task.region.label if task.region else None
        sources, told = with_classes(source, sources, classes, label)
        round.run.notify_once(f"source of task {task.step}: {told}")
    found = find_regions(round.store, task, sources[: task.count], classes, generation.detector_device)
    return plan_from_sources(common, found, generation.prompts)


def _tell_what_is_unread(round: Round, pipeline: Any, jobs: Iterable[ImageRecord]) -> None:
    """Tell the user which words of the prompts change nothing, because the text encoder stops before them."""
    from diffugen.diffusion.tokens import unread

    texts = {(job.prompt.text, job.prompt.negative) for job in jobs}
    for place, what in enumerate(("prompts", "negative prompts")):
        different = {pair[place] for pair in texts}
        cut = {text: rest for text in sorted(different) if text and (rest := unread(pipeline, text))}
        if cut:
            text, rest = next(iter(cut.items()))
            round.run.notify_once(
                f"Too long for the model's text encoder: {len(cut)} of {len(different)} {what}. It never "
                f"sees their ends, such as {rest!r} of {text!r}; shorten them."
            )


def _pixel_settings(settings: DiffusionSettings) -> Mapping[str, Any]:
    """Return the settings that decide an image's pixels, and thereby its id; defaults are left out."""
    return {
        "num_inference_steps": settings.num_inference_steps,
        "guidance_scale": settings.guidance_scale,
        **({} if settings.scheduler is None else {"scheduler": settings.scheduler}),
        **({} if settings.dtype == "auto" else {"dtype": settings.dtype}),
        **(
            {"loras": {file_digest(file): one for file, one in settings.loras.items()}}
            if settings.loras
            else {}
        ),
        **(
            {"embeddings": [file_digest(file) for file in settings.embeddings]} if settings.embeddings else {}
        ),
        **({"vae_tiling": True} if settings.vae_tiling else {}),
    }


def _maker(work: _Work, task: Task, pipeline: Any) -> ImageMaker:
    """Return what makes the images of a task, here or elsewhere."""
    from diffugen.diffusion.generate import default_batch_size

    settings, executor = work.generation.diffusion, work.round.run.executor
    model = task.model or settings.model
    if not executor.spreads:
        size = settings.batch_size or default_batch_size(pipeline.device.type)
        return ImageMaker(settings, model, size, pipeline)
    device = "cuda" if settings.device != "cpu" and executor.gives_gpu() else "cpu"
    settings = settings.changed(device=executor.worker_device(settings.device))
    return ImageMaker(settings, model, settings.batch_size or default_batch_size(device))


def _make(work: _Work, maker: ImageMaker, progress: Progress, on_step: OnStep) -> None:
    """Make the images that are missing."""
    store, run = work.round.store, work.round.run

    def with_sources() -> Iterator[ImageBatch]:
        for batch in progress.unfinished():
            sources = tuple(_source(store, job) for job in batch if job.parent is not None)
            yield ImageBatch(tuple(batch), sources)

    for made in run.executor.spread(maker, with_sources(), run.notify, on_step):
        if isinstance(made, Dropped):
            store.drop_image(made.record, made.reason)
        else:
            store.add_encoded([made])
        progress.made()


def _source(store: RunStore, job: ImageRecord) -> Source:
    from diffugen.diffusion.tasks import Source

    return Source(store.source(str(job.parent)), None if job.region is None else decode(job.region))


def _keep_carried(store: RunStore, carried: Mapping[str, Instances], round: int) -> None:
    """Keep the objects that in-painted images have from their sources."""
    if not carried:
        return
    known = set(store.labelled_ids(CARRIED, CARRIED))
    missing = [image_id for image_id in carried if image_id not in known and store.has_image(image_id)]
    store.put_labels(LabelSet(image_id, CARRIED, carried[image_id], CARRIED, round) for image_id in missing)
