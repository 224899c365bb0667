"""Turn jobs into a stream of images and heat maps, batched.

A job is an `ImageRecord`: it says everything that decides the pixels, so whoever holds a record can make its
image again. Resuming is the caller's: leave out the jobs that are done. Does not know files, labels or
rounds.
"""

from __future__ import annotations

import gc
import inspect
import itertools
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from diffugen.diffusion.daam_backend import trace_with_daam
from diffugen.diffusion.messages import quiet
from diffugen.diffusion.tasks import (
    WINDOW,
    WORKING_SIZE,
    Source,
    finished,
    many_channels,
    task_arguments,
    task_pipeline,
)
from diffugen.diffusion.tokens import TokenIndex, index_tokens
from diffugen.diffusion.tracing import trace
from diffugen.errors import ModelError
from diffugen.records import GeneratedImage, HeatMaps, ImageRecord, Prompt, content_id

if TYPE_CHECKING:
    from collections.abc import Mapping

logger = logging.getLogger(__name__)

ATTENTION_BACKENDS = ("native", "daam")
"""``native``: our tracer. ``daam``: the package of that name, one image a call; the reference, not the fast
one."""

LOAD_SETTINGS = frozenset({"scheduler", "dtype", "loras", "embeddings", "vae_tiling", WORKING_SIZE, WINDOW})
"""Settings of an image that are no arguments of the call: most are already part of the loaded pipeline."""

OWN_ARGUMENTS = frozenset(
    {
        "self",
        "prompt",
        "negative_prompt",
        "width",
        "height",
        "use_resolution_binning",
        "image",
        "mask_image",
        "generator",
        "output_type",
    }
)
"""Arguments of a pipeline's call that come from the record's other fields."""


def image_seed(run_seed: int, number: int, prompt: Prompt, parent: str | None = None) -> int:
    """Return the seed of an image's noise, in [0, 2**63).

    Args:
        run_seed: Seed of the run.
        number: Number of the image among those of its prompt and parent.
        prompt: Its prompt.
        parent: The image it is made of; None for none.
    """
    return int(content_id(prompt.id, number, run_seed, *([] if parent is None else [parent])), 16) % 2**63


def plan_jobs(
    prompts: Sequence[Prompt],
    *,
    images_per_prompt: int,
    run_seed: int,
    size_wh: tuple[int, int],
    model: str,
    settings: Mapping[str, Any],
    round: int = 0,
) -> list[ImageRecord]:
    """Plan images, each with a seed of its own.

    A seed depends on the run seed, the prompt and the number of the image alone, so a longer plan begins with
    the images of a shorter one, and equal prompts of two runs start from different noise. All prompts get
    their first image before any gets its second; a prompt that stands twice in the list gets two different
    ones. For new images of the same prompts in a later round, give another ``run_seed``.

    Args:
        prompts: What to show.
        images_per_prompt: Images of each prompt, >= 1.
        run_seed: Seed of the run.
        size_wh: Width and height in pixels.
        model: Name of the diffusion model, as configured.
        settings: Arguments of the pipeline's call that decide the pixels, e.g. ``num_inference_steps``,
            ``guidance_scale``; and ``scheduler`` and ``dtype`` as loaded.
        round: The round of the loop.

    Example:
        >>> plan_jobs([prompt], images_per_prompt=2, run_seed=1, size_wh=(64, 96), model="miniature", settings={})
    """
    made: Counter[str] = Counter()
    jobs = []
    for prompt in [*prompts] * images_per_prompt:
        seed = image_seed(run_seed, made[prompt.id], prompt)
        made[prompt.id] += 1
        jobs.append(ImageRecord(prompt, seed, size_wh, model, settings=dict(settings), round=round))
    return jobs


def generate(
    pipeline: Any,
    jobs: Sequence[ImageRecord],
    *,
    source: Callable[[ImageRecord], Source] | None = None,
    on_drop: Callable[[ImageRecord, str], None] = lambda record, reason: None,
    batch_size: int | None = None,
    attention_backend: str = "native",
) -> Iterator[GeneratedImage]:
    """Generate the image and heat maps of each job.

    Jobs of equal task, size, settings and need of a negative prompt share a batch. Each image draws its noise
    from a generator of its own on the CPU, so it starts from the same noise in any batch and on any device;
    what remains is the rounding of batched arithmetic (float32 on the CPU: at most 1 of 255 grey levels
    apart, measured in the tests). When memory runs out the batch is halved, and stays so.

    Args:
        pipeline: From `load_pipeline`, of any task.
        jobs: What to make.
        source: Returns what an ``img2img`` or ``inpaint`` job is made of; called once a job, batch by batch.
        on_drop: Called, in the place of a yield, with an image that the model's safety checker blackened, and
            why.
        batch_size: Images per call, >= 1; None begins with 32 on a GPU and 8 elsewhere.
        attention_backend: ``"native"``, or ``"daam"``: square images with guidance, one a call.

    Yields:
        For each job, batch by batch: the record, the image uint8 RGB (H, W, 3), its heat maps, and the
        seconds it took (its share of the batch).

    Raises:
        PromptError: A phrase is missing from its prompt or beyond the token limit; raised before any image is
            made.
        ModelError: The pipeline refuses a setting or size, cannot be traced, or does not fit into memory even
            singly.

    Example:
        >>> for record, image, heat_maps, seconds in generate(pipeline, jobs, batch_size=4): ...
    """
    if attention_backend not in ATTENTION_BACKENDS:
        raise ModelError(
            f"unknown attention backend {attention_backend!r}; one of {', '.join(ATTENTION_BACKENDS)}"
        )
    if batch_size is None:
        batch_size = 32 if pipeline.device.type == "cuda" else 8
    if attention_backend == "daam":
        batch_size = 1
    tokens: dict[str, TokenIndex] = {}
    pipelines = {task: task_pipeline(pipeline, task) for task in dict.fromkeys(job.task for job in jobs)}
    for job in jobs:
        _check_job(pipelines[job.task], job)
        if job.prompt.id not in tokens:
            tokens[job.prompt.id] = index_tokens(
                pipeline, job.prompt.text, [phrase.text for phrase in job.prompt.phrases]
            )
    for group in grouped(jobs):
        while group:
            batch = group[:batch_size]
            sources = [source(job) for job in batch if source is not None and job.parent is not None]
            done: list[GeneratedImage | None] = []
            try:
                done = _generate_batch(
                    pipelines[batch[0].task],
                    batch,
                    sources,
                    [tokens[job.prompt.id] for job in batch],
                    attention_backend,
                )
            except RuntimeError as error:
                if not _out_of_memory(error):
                    raise
            if not done:  # outside the except block, where the failed call's tensors are still held
                batch_size = _halve(pipeline, len(batch), batch[0].size_wh)
                continue
            group = group[len(batch) :]
            for job, result in zip(batch, done, strict=True):
                if result is None:
                    on_drop(job, "the model's safety checker blackened it")
                else:
                    yield result


def _check_job(pipeline: Any, job: ImageRecord) -> None:
    unet: Any = getattr(pipeline, "unet", None)
    if (
        job.task != "inpaint"
        and unet is not None
        and unet.config.in_channels == 2 * unet.config.out_channels + 1
    ):
        raise ModelError(
            f"the model of this {type(pipeline).__name__} was made for in-painting alone (its UNet also "
            "reads a mask); use "
            f"another model for {job.task}"
        )
    known = set(inspect.signature(type(pipeline).__call__).parameters)
    free = (known - OWN_ARGUMENTS) | LOAD_SETTINGS
    unknown = sorted(set(job.settings) - free)
    if unknown:
        raise ModelError(
            f"{type(pipeline).__name__} takes no setting {', '.join(map(repr, unknown))}. "
            f"It takes: {', '.join(sorted(free))}."
        )
    if job.prompt.negative and "negative_prompt" not in known:
        raise ModelError(
            f"{type(pipeline).__name__} takes no negative prompt; prompt {job.prompt.text!r} has one. Leave "
            "it empty."
        )


def grouped(jobs: Sequence[ImageRecord]) -> list[list[ImageRecord]]:
    """Return the jobs that one call could make together, in the order of their first members."""
    groups: dict[str, list[ImageRecord]] = {}
    for job in jobs:
        # An empty negative prompt is not the same as none to every pipeline (SDXL), so the two are kept
        # apart.
        settings = {name: value for name, value in job.settings.items() if name != WINDOW}
        size_wh = settings.setdefault(WORKING_SIZE, list(job.size_wh))
        key = json.dumps([job.task, size_wh, settings, bool(job.prompt.negative)], sort_keys=True)
        groups.setdefault(key, []).append(job)
    return list(groups.values())


def _generate_batch(
    pipeline: Any,
    batch: Sequence[ImageRecord],
    sources: Sequence[Source],
    tokens: Sequence[TokenIndex],
    backend: str,
) -> list[GeneratedImage | None]:
    """Make the images of a batch; None in the place of one that was blackened."""
    started = time.perf_counter()
    tracer: AbstractContextManager[Any] = (trace if backend == "native" else trace_with_daam)(
        pipeline, tokens
    )
    with quiet(), many_channels(pipeline, batch[0].task), tracer as traced:
        images, blackened = _call(pipeline, batch, sources)
    maps = traced.maps()
    made = [finished(job, image, one) for job, image, one in itertools.zip_longest(batch, images, sources)]
    seconds = (time.perf_counter() - started) / len(batch)
    return [
        None if black else (job, image, _heat_maps(job, found), seconds)
        for job, image, found, black in zip(batch, made, maps, blackened, strict=True)
    ]


def _heat_maps(job: ImageRecord, maps: Mapping[str, NDArray[np.float16]]) -> HeatMaps:
    window = job.settings.get(WINDOW)
    covered = None if window is None else (window[0], window[1], window[2], window[3])
    return HeatMaps(job.id, job.size_wh, job.prompt.phrases, maps, job.region, covered)


def _call(
    pipeline: Any, batch: Sequence[ImageRecord], sources: Sequence[Source]
) -> tuple[NDArray[np.uint8], list[bool]]:
    """Run the pipeline; uint8 RGB (N, h, w, 3) at the working size, and which of them the safety checker
    blackened.
    """
    import torch

    first = batch[0]
    width, height = first.settings.get(WORKING_SIZE, first.size_wh)
    arguments = {name: value for name, value in first.settings.items() if name not in LOAD_SETTINGS}
    if first.prompt.negative:
        arguments["negative_prompt"] = [job.prompt.negative for job in batch]
    try:
        result = pipeline(
            prompt=[job.prompt.text for job in batch],
            **task_arguments(pipeline, batch, sources),
            generator=[torch.Generator().manual_seed(job.seed) for job in batch],
            output_type="np",
            **arguments,
        )
    except ValueError as error:  # how diffusers reports arguments it refuses
        raise ModelError(
            f"{type(pipeline).__name__} refuses size {width}x{height} or settings {dict(first.settings)}: "
            f"{error}"
        ) from error
    images = np.asarray(result.images)
    if images.shape[1:3] != (height, width):
        raise ModelError(
            f"{type(pipeline).__name__} made images of {images.shape[2]}x{images.shape[1]} pixels where "
            f"{width}x{height} were asked for; ask for sides it can divide, such as multiples of 16."
        )
    if not np.isfinite(images).all():
        raise ModelError(
            f"{type(pipeline).__name__} produced images that are not finite; load it with dtype float32 or "
            "bfloat16."
        )
    blackened = getattr(result, "nsfw_content_detected", None) or [False] * len(batch)
    return (images * 255).round().astype(np.uint8), [bool(flag) for flag in blackened]


def _out_of_memory(error: RuntimeError) -> bool:
    import torch

    text = str(error).lower()
    return (
        isinstance(error, torch.OutOfMemoryError)
        or "out of memory" in text
        or "can't allocate memory" in text
    )


def _halve(pipeline: Any, batch_size: int, size_wh: tuple[int, int]) -> int:
    """Half the batch size, with what the failed call held given back."""
    import torch

    if batch_size == 1:
        raise ModelError(
            f"out of memory with a single image of {size_wh[0]}x{size_wh[1]} pixels on {pipeline.device}. "
            "Use a "
            "smaller size, dtype float16, or offload model or sequential."
        )
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    logger.warning("out of memory with %d images a batch: going on with %d", batch_size, batch_size // 2)
    return batch_size // 2
