"""The stage that makes images: the configured tasks one after the other, each with the sources, regions and
prompts it needs.

Knows which prompts, sources and earlier labels a task's images are made of, and keeps what is made; not how
it is made (`diffugen.diffusion`), nor the order of the stages.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffugen.labels.label import LabelSettings
from diffugen.labels.score import ScoreWeights
from diffugen.labels.shapes import decode
from diffugen.prompts.tasks import Task, choose_tasks, plan_tasks, task_prompts
from diffugen.records import ImageRecord, LabelSet
from diffugen.run.rounds import OnProgress, Result
from diffugen.stages.label import label_method, label_stage
from diffugen.stages.plan import Common, Plan, find_regions, plan_from_prompts, plan_from_sources
from diffugen.stages.regions import check_mask
from diffugen.stages.sources import check_source, images_of_task, sources_outside

if TYPE_CHECKING:
    from diffugen.diffusion.tasks import Source
    from diffugen.run.store import RunStore

IMAGES_A_BATCH = 8
CARRIED = "carried"
"""Provenance of the objects that an in-painted image has from its source."""


def generate_stage(
    store: RunStore,
    on_progress: OnProgress = lambda done, total: None,
    *,
    prompts: Mapping[str, Any],
    tasks: Sequence[Mapping[str, Any]],
    labels: LabelSettings,
    weights: ScoreWeights,
    detector_device: str,
    model: str,
    device: str,
    dtype: str,
    size_wh: tuple[int, int] | None,
    num_inference_steps: int,
    guidance_scale: float,
    scheduler: str | None,
    batch_size: int | None,
    attention_backend: str,
    offload: str,
    vae_slicing: bool,
    vae_tiling: bool,
    compile: bool,
    loras: Mapping[str, float],
    embeddings: Sequence[str],
    trust_remote_pickle: bool,
    images_per_prompt: int,
    seed: int,
    round: int = 0,
    only: str | None = None,
) -> Result:
    """Generate the images of a round that the run does not have yet, batch by batch, with their heat maps.

    Args:
        store: The run, open for writing.
        on_progress: Called after each batch with images done and all images that are planned so far.
        prompts: Arguments of `diffugen.prompts.make.make_prompts`.
        tasks: What is made in which order; see `plan_tasks`.
        labels: How the images of one task are labelled before they are the sources of another.
        weights: The same, for the scores.
        detector_device: Where a detector runs that finds regions.
        model: Hub name, folder or file of the diffusion model, or ``miniature``.
        device: Torch device or ``auto``.
        dtype: Number format of the weights or ``auto``.
        size_wh: Width and height in pixels; None for the model's own. Sources keep their proportions.
        num_inference_steps: Denoising steps.
        guidance_scale: How strictly an image follows its prompt.
        scheduler: Class name of a diffusers scheduler; None for the model's own.
        batch_size: Images at a time; None for `IMAGES_A_BATCH`.
        attention_backend: ``native`` or ``daam``.
        offload: ``none``, ``model`` or ``sequential``.
        vae_slicing: Whether images of a batch are decoded one by one.
        vae_tiling: Whether large images are decoded in tiles.
        compile: Whether parts of the denoiser are compiled.
        loras: From a LoRA file or hub name to its weight.
        embeddings: Files of textual-inversion tokens.
        trust_remote_pickle: Whether pickled weights are accepted.
        images_per_prompt: Images of each prompt.
        seed: Seed of the round's prompts and images.
        round: The round.
        only: Do only the task of this name or kind; the images of those before it must be there.

    Returns:
        ``images``: how many are planned, those that were there already included; ``dropped``: how many of
        them are of no use; ``skipped``: sources without a region, or where nothing can change; ``tasks``: the
        same for each task, by name.

    Raises:
        DiffugenError: The model cannot be used, a phrase cannot be traced, a source or region cannot be read,
            or the run cannot be written.
    """
    from diffugen.diffusion.inversion import load_embeddings
    from diffugen.diffusion.pipelines import default_size_wh, load_pipeline
    from diffugen.diffusion.tasks import size_unit

    planned = plan_tasks(tasks)
    names = {task.name for task in planned}
    chosen = choose_tasks(planned, only)
    for task in chosen:
        check_places(task, names)
    shared = {
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
        **({} if scheduler is None else {"scheduler": scheduler}),
        **({} if dtype == "auto" else {"dtype": dtype}),
        **({"loras": {file_digest(file): weight for file, weight in loras.items()}} if loras else {}),
        **({"embeddings": [file_digest(file) for file in embeddings]} if embeddings else {}),
        **({"vae_tiling": True} if vae_tiling else {}),
    }
    loaded: str | None = None
    pipeline: Any = None
    done = total = 0
    counts: dict[str, dict[str, int]] = {}
    for task in chosen:
        if loaded != (loaded := task.model or model):
            pipeline = None  # before the next one takes memory too
            pipeline = load_pipeline(
                loaded,
                device=device,
                dtype=dtype,
                scheduler=scheduler,
                offload=offload,
                vae_slicing=vae_slicing,
                vae_tiling=vae_tiling,
                compile=compile,
                loras=loras,
                trust_remote_pickle=trust_remote_pickle,
            )
            load_embeddings(pipeline, embeddings)
        common = Common(
            task, loaded, shared, size_wh or default_size_wh(pipeline), size_unit(pipeline), seed, round
        )
        if task.task == "txt2img":
            plan = plan_from_prompts(common, task_prompts(task, planned, prompts, seed), images_per_prompt)
        else:
            if task.source in names:
                label_stage(store, labels, weights, round=round)
                sources = list(images_of_task(store, str(task.source), round, label_method(labels, weights)))
            else:
                sources = list(sources_outside(store, str(task.source), task.count))
            found = find_regions(store, task, sources[: task.count], detector_device)
            plan = plan_from_sources(common, found, prompts)
        total += len(plan.jobs)
        on_progress(done, total)
        for finished in _make(store, pipeline, plan.jobs, batch_size or IMAGES_A_BATCH, attention_backend):
            done += finished
            on_progress(done, total)
        _keep_carried(store, plan, round)
        dropped = sum(store.is_dropped(job.id) for job in plan.jobs)
        counts[task.name] = {"images": len(plan.jobs), "dropped": dropped, "skipped": plan.skipped}
    sums = {key: sum(one[key] for one in counts.values()) for key in ("images", "dropped", "skipped")}
    return {**sums, "tasks": counts}


def check_places(task: Task, names: Collection[str]) -> None:
    """Make sure, before anything is made, that what a task starts from is there.

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
        from diffugen.detectors.yolo_checkpoint import find_checkpoint

        find_checkpoint(task.region.detector)


def file_digest(file: str) -> str:
    """Return 16 hex digits of a file's content; of anything else, such as a hub name, the text itself."""
    path = Path(file).expanduser()
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else file


def _make(
    store: RunStore, pipeline: Any, jobs: Sequence[ImageRecord], size: int, attention_backend: str
) -> Iterator[int]:
    """Make the images that are not there, and yield after each step how many more are there."""
    from diffugen.diffusion.generate import generate, grouped

    # Whole batches, of which some images may be there: in another batch an image would be rounded another
    # way.
    batches = [group[first : first + size] for group in grouped(jobs) for first in range(0, len(group), size)]
    unfinished = [
        job
        for batch in batches
        if not all(store.has_image(job.id) or store.is_dropped(job.id) for job in batch)
        for job in batch
    ]
    yield len(jobs) - len(unfinished)
    dropped: list[ImageRecord] = []

    def drop(record: ImageRecord, reason: str) -> None:
        store.drop_image(record, reason)
        dropped.append(record)

    made = generate(
        pipeline,
        unfinished,
        source=lambda job: _source(store, job),
        on_drop=drop,
        batch_size=size,
        attention_backend=attention_backend,
    )
    for record, rgb, heat_maps, seconds in made:
        store.add_image(record, rgb, heat_maps, seconds)
        yield 1
    yield len(dropped)


def _source(store: RunStore, job: ImageRecord) -> Source:
    from diffugen.diffusion.tasks import Source

    return Source(store.source(str(job.parent)), None if job.region is None else decode(job.region))


def _keep_carried(store: RunStore, plan: Plan, round: int) -> None:
    """Keep the objects that in-painted images have from their sources."""
    missing = [job.id for job in plan.jobs if job.id in plan.carried and store.has_image(job.id)]
    known = {labels.image_id for labels in store.labels(CARRIED, CARRIED)}
    store.put_labels(
        LabelSet(image_id, CARRIED, plan.carried[image_id], CARRIED, round)
        for image_id in missing
        if image_id not in known
    )
