"""Generate images and their heat maps from jobs, in batches.

A job is an `ImageRecord`. It contains everything that determines the pixels, so any image can be generated
again from its record. To resume, the caller leaves out the jobs that are done. Does not know files, labels or
rounds.
"""

from __future__ import annotations

import inspect
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from diffugen.config.sections import ATTENTION_BACKENDS, MAP_KINDS
from diffugen.diffusion.concepts import check_concepts
from diffugen.diffusion.daam_backend import trace_with_daam
from diffugen.diffusion.devices import free_memory
from diffugen.diffusion.jobs import grouped
from diffugen.diffusion.messages import quiet
from diffugen.diffusion.steps import followed
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
from diffugen.errors import ModelError, is_out_of_memory
from diffugen.records import GeneratedImage, HeatMaps, ImageRecord, Phrase, Prompt

if TYPE_CHECKING:
    from collections.abc import Mapping

logger = logging.getLogger(__name__)

Tracer = Callable[[Any, Sequence[ImageRecord]], AbstractContextManager[Any]]

BATCH_SIZE = 8
GPU_BATCH_SIZE = 32
"""Images per call where the caller sets none; halved when memory runs out, so a large one is safe."""

LOAD_SETTINGS = frozenset({"scheduler", "dtype", "loras", "embeddings", "vae_tiling", WORKING_SIZE, WINDOW})
"""Settings of an image that are not arguments of the call; most are part of the loaded pipeline."""

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
"""Arguments of a pipeline's call that come from other fields of the record."""


def default_batch_size(device: str) -> int:
    """Return how many images share a call where the caller does not say: more on a CUDA GPU."""
    return GPU_BATCH_SIZE if device.startswith("cuda") else BATCH_SIZE


def generate(
    pipeline: Any,
    jobs: Sequence[ImageRecord],
    *,
    source: Callable[[ImageRecord], Source] | None = None,
    on_drop: Callable[[ImageRecord, str], None] = lambda record, reason: None,
    on_step: Callable[[float, int], None] = lambda share, images: None,
    on_halve: Callable[[int], None] = lambda size: None,
    batch_size: int | None = None,
    attention_backend: str = "native",
    keep_self_attention: bool = False,
    map_kind: str = "probability",
    concepts: Sequence[str] = (),
) -> Iterator[GeneratedImage]:
    """Generate the image and heat maps of each job.

    Jobs of the same task, size and settings share a batch, those with a negative prompt separately. Each
    image draws its noise from its own generator on the CPU, so it starts from the same noise in any batch and
    on any device. Only the rounding of batched arithmetic differs (float32 on the CPU: by at most 1 of 255
    grey levels, measured in the tests).

    Args:
        pipeline: From `diffugen.diffusion.pipelines.load_pipeline`, for any task.
        jobs: The images to generate.
        source: Returns the source of an ``img2img`` or ``inpaint`` job; called once per job, batch by batch.
        on_drop: Called instead of yielding an image that the safety checker blackened, with the reason.
        on_step: Called after each denoising step with the fraction of the batch that is done, below 1, and
            the number of its images.
        on_halve: Called with the new number of images per call when memory has run out.
        batch_size: Images per call, >= 1; None means 32 on a CUDA GPU and 8 elsewhere. Free memory is not
            measured: when memory runs out, this and all later batches are halved.
        attention_backend: ``"native"``, or ``"daam"``: square images with guidance, one per call.
        keep_self_attention: Whether heat maps have the self-attention, too; not with ``"daam"``. It needs
            about 10 MB of memory per image of a batch, and 300 MB per batch.
        map_kind: ``"probability"``, or ``"output"``: maps of concepts, which are the phrases of each prompt,
            in its text or not, and ``concepts``; see `diffugen.diffusion.concepts`. Not with ``"daam"``.
        concepts: Words that compete with all prompts' phrases; their heat maps are kept as those of
            background words. For ``"output"`` only.

    Yields:
        For each job, batch by batch: the record, the image uint8 RGB (H, W, 3), its heat maps, and its share
        of the batch's time in seconds.

    Raises:
        PromptError: A phrase is missing from its prompt or beyond the token limit, or an image has a single
            concept; raised before any image is generated.
        ModelError: The pipeline rejects a setting or size, cannot be traced, or runs out of memory even with
            one image.

    Example:
        >>> for record, image, heat_maps, seconds in generate(pipeline, jobs, batch_size=4): ...
    """
    if attention_backend not in ATTENTION_BACKENDS:
        raise ModelError(
            f"unknown attention backend {attention_backend!r}; one of {', '.join(ATTENTION_BACKENDS)}"
        )
    if keep_self_attention and attention_backend != "native":
        raise ModelError("daam does not trace self-attention; use the attention backend native")
    if map_kind == "output" and attention_backend != "native":
        raise ModelError("daam does not trace concepts; use the attention backend native")
    if batch_size is None:
        batch_size = default_batch_size(pipeline.device.type)
    pipelines, tokens = _checked(pipeline, jobs, map_kind, concepts)

    def phrases_of(job: ImageRecord) -> tuple[Phrase, ...]:
        return _traced(job.prompt, concepts)

    def tracer(of_task: Any, batch: Sequence[ImageRecord]) -> AbstractContextManager[Any]:
        indices = [tokens[job.prompt.id] for job in batch]
        if attention_backend == "daam":
            return trace_with_daam(of_task, indices)
        words = [[phrase.text for phrase in phrases_of(job)] for job in batch]
        return trace(
            of_task,
            indices,
            keep_self_attention=keep_self_attention,
            concepts=words if map_kind == "output" else None,
        )

    if attention_backend == "daam":
        batch_size = 1
    for group in grouped(jobs):
        while group:
            batch = group[:batch_size]
            sources = [source(job) for job in batch if source is not None and job.parent is not None]
            done: list[GeneratedImage | None] = []
            try:
                done = _generate_batch(pipelines[batch[0].task], batch, sources, phrases_of, tracer, on_step)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            if not done:
                batch_size = _halve(pipeline, len(batch), batch[0].size_wh)
                on_halve(batch_size)
                continue
            group = group[len(batch) :]
            for job, result in zip(batch, done, strict=True):
                if result is None:
                    on_drop(job, "the model's safety checker blackened it")
                else:
                    yield result


def check_jobs(
    pipeline: Any, jobs: Iterable[ImageRecord], *, map_kind: str = "probability", concepts: Sequence[str] = ()
) -> None:
    """Check, before any image is generated, that a model can generate and trace all of them.

    Args:
        pipeline: As for `generate`; its weights do not matter.
        jobs: The images to generate.
        map_kind: As for `generate`.
        concepts: The same.

    Raises:
        PromptError: A phrase is missing from its prompt or beyond the token limit, or an image has a single
            concept.
        ModelError: The pipeline rejects a setting, or cannot trace concepts.
    """
    _checked(pipeline, jobs, map_kind, concepts)


def _checked(
    pipeline: Any, jobs: Iterable[ImageRecord], map_kind: str, concepts: Sequence[str]
) -> tuple[Mapping[str, Any], Mapping[str, TokenIndex]]:
    """Return the pipeline of each task, and by the id of each prompt where its phrases stand."""
    if map_kind not in MAP_KINDS:
        raise ModelError(f"unknown kind of map {map_kind!r}; one of {', '.join(MAP_KINDS)}")
    if concepts and map_kind != "output":
        raise ModelError("concepts are traced in maps of the kind 'output' only")
    tokens: dict[str, TokenIndex] = {}
    compared: dict[tuple[str, ...], None] = {}  # in the order of the jobs
    pipelines: dict[str, Any] = {}
    checked: set[tuple[Any, ...]] = set()
    for job in jobs:
        key = (job.task, job.prompt.id, *job.settings)
        if key in checked:  # nothing else of a job is looked at, and there may be a million of them
            continue
        checked.add(key)
        if job.task not in pipelines:
            pipelines[job.task] = task_pipeline(pipeline, job.task)
        _check_job(pipelines[job.task], job)
        if job.prompt.id not in tokens:
            words = [phrase.text for phrase in _traced(job.prompt, concepts)]
            if map_kind == "output":  # they are encoded by themselves, in the prompt or not
                compared[tuple(words)] = None
                words = []
            tokens[job.prompt.id] = index_tokens(pipeline, job.prompt.text, words)
    if map_kind == "output":
        check_concepts(pipeline, compared)
    return pipelines, tokens


def _traced(prompt: Prompt, concepts: Sequence[str]) -> tuple[Phrase, ...]:
    """Return the phrases that are traced in the images of a prompt: its own, then the other concepts."""
    known = {phrase.text.casefold() for phrase in prompt.phrases}
    others: dict[str, str] = {}  # each word once, whatever its case: it would compete with itself
    for word in concepts:
        if word.casefold() not in known:
            others.setdefault(word.casefold(), word)
    return (*prompt.phrases, *(Phrase(word, None) for word in others.values()))


def _check_job(pipeline: Any, job: ImageRecord) -> None:
    unet: Any = getattr(pipeline, "unet", None)
    if (
        job.task != "inpaint"
        and unet is not None
        and unet.config.in_channels == 2 * unet.config.out_channels + 1
    ):
        raise ModelError(
            f"the model of this {type(pipeline).__name__} can only inpaint (its UNet also reads a mask); use "
            f"another model for {job.task}"
        )
    known = set(inspect.signature(type(pipeline).__call__).parameters)
    free = (known - OWN_ARGUMENTS) | LOAD_SETTINGS
    unknown = sorted(set(job.settings) - free)
    if unknown:
        raise ModelError(
            f"{type(pipeline).__name__} has no setting {', '.join(map(repr, unknown))}. Its settings: "
            f"{', '.join(sorted(free))}."
        )
    if job.prompt.negative and "negative_prompt" not in known:
        raise ModelError(
            f"{type(pipeline).__name__} does not support negative prompts, but prompt {job.prompt.text!r} "
            "has one. Leave it empty."
        )


def _generate_batch(
    pipeline: Any,
    batch: Sequence[ImageRecord],
    sources: Sequence[Source],
    phrases_of: Callable[[ImageRecord], tuple[Phrase, ...]],
    tracer: Tracer,
    on_step: Callable[[float, int], None],
) -> list[GeneratedImage | None]:
    """Generate the images of a batch; None in place of a blackened one."""
    started = time.perf_counter()
    with (
        quiet(),
        many_channels(pipeline, batch[0].task),
        followed(pipeline, lambda share: on_step(share, len(batch))),
        tracer(pipeline, batch) as traced,
    ):
        images, blackened = _call(pipeline, batch, sources)
    phrases = [phrases_of(job) for job in batch]
    heat_maps = map(_heat_maps, batch, phrases, traced.maps(), traced.self_attention())
    made = [finished(job, image, one) for job, image, one in itertools.zip_longest(batch, images, sources)]
    seconds = (time.perf_counter() - started) / len(batch)
    return [
        None if black else (job, image, found, seconds)
        for job, image, found, black in zip(batch, made, heat_maps, blackened, strict=True)
    ]


def _heat_maps(
    job: ImageRecord,
    phrases: tuple[Phrase, ...],
    maps: Mapping[str, NDArray[np.float16]],
    self_attention: NDArray[np.float16] | None,
) -> HeatMaps:
    window = job.settings.get(WINDOW)
    covered = None if window is None else (window[0], window[1], window[2], window[3])
    return HeatMaps(job.id, job.size_wh, phrases, maps, job.region, covered, self_attention)


def _call(
    pipeline: Any, batch: Sequence[ImageRecord], sources: Sequence[Source]
) -> tuple[NDArray[np.uint8], list[bool]]:
    """Run the pipeline once.

    Returns:
        The images, uint8 RGB (N, h, w, 3) at the working size, and whether each was blackened by the safety
        checker.
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
    except ValueError as error:  # diffusers' report of an argument that it rejects
        raise ModelError(
            f"{type(pipeline).__name__} rejects size {width}x{height} or settings {dict(first.settings)}: "
            f"{error}"
        ) from error
    images = np.asarray(result.images)
    if images.shape[1:3] != (height, width):
        raise ModelError(
            f"{type(pipeline).__name__} generated images of {images.shape[2]}x{images.shape[1]} pixels "
            f"instead of {width}x{height}; choose sides that it can divide, such as multiples of 16."
        )
    if not np.isfinite(images).all():
        raise ModelError(
            f"{type(pipeline).__name__} generated images with NaN or infinite values; load it with dtype "
            "float32 or bfloat16."
        )
    blackened = getattr(result, "nsfw_content_detected", None) or [False] * len(batch)
    return (images * 255).round().astype(np.uint8), [bool(flag) for flag in blackened]


def _halve(pipeline: Any, batch_size: int, size_wh: tuple[int, int]) -> int:
    """Return half the batch size after freeing the memory of the failed call."""
    if batch_size == 1:
        raise ModelError(
            f"out of memory even with one image of {size_wh[0]}x{size_wh[1]} pixels on {pipeline.device}. "
            "Use a smaller size, dtype float16, or offload model or sequential."
        )
    free_memory()
    logger.warning("out of memory with a batch of %d images; continuing with %d", batch_size, batch_size // 2)
    return batch_size // 2
