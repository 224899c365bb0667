"""Read what a denoiser sees in finished images: noise them a little and run it once at each noise level.

Whatever an image comes from, an earlier round or a camera, its own pixels are noised, so nothing of its
generation needs to be kept. Each run yields the attention of the prompt's phrases, as `tracing` records it
while images are generated, and the activations of the denoiser's blocks. The image is not denoised further.

Knows images, prompts and denoisers. Does not know labels, or what the features are used for.
Method: Baranchuk et al. (2022, "Label-Efficient Semantic Segmentation with Diffusion Models", section 3.2)
for the activations; OVAM (Marcos-Manchón et al., 2024, section 3.2) for attention of a noised image.
"""

from __future__ import annotations

import inspect
import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from diffugen.diffusion.devices import free_memory
from diffugen.diffusion.families import denoiser_of
from diffugen.diffusion.layout import cells_hw, latent_grid_hw
from diffugen.diffusion.messages import quiet
from diffugen.diffusion.pipelines import default_size_wh
from diffugen.diffusion.tasks import size_unit, task_pipeline, working_size
from diffugen.diffusion.tokens import index_tokens
from diffugen.diffusion.tracing import trace
from diffugen.errors import ModelError, first_line, is_out_of_memory
from diffugen.records import PixelFeatures, Prompt

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

NOISE_LEVELS = (0.06, 0.2, 0.4)
"""Fractions of the denoising process: outlines show at the lowest, kinds of things at the highest."""

STEPS = 50
"""Steps that the process is divided into; the one at each noise level is run."""

BATCH_SIZE = 8

FLOAT16_MAX = float(np.finfo(np.float16).max)

TRANSFORMER_DEPTHS = (0.25, 0.5, 0.75)
"""Depths of the blocks of a transformer whose activations are read: the middle knows most about the image."""

RGB = NDArray[np.uint8]


class _Read(Exception):
    """The denoiser has run; the rest of the pipeline's call is not needed."""


@dataclass(frozen=True)
class _Image:
    rgb: RGB
    prompt: Prompt
    size_wh: tuple[int, int]


def read_features(
    pipeline: Any,
    images: Iterable[tuple[RGB, Prompt]],
    *,
    budget_wh: tuple[int, int] | None = None,
    batch_size: int = BATCH_SIZE,
) -> Iterator[PixelFeatures]:
    """Read the features of images, a batch of neighbours of the same size at a time.

    All images get the same noise, so features do not depend on what an image is read together with.

    Args:
        pipeline: From `diffugen.diffusion.pipelines.load_pipeline`, for any task.
        images: Pixels uint8 (H, W, 3) with the prompt that says what they show.
        budget_wh: Width and height that the model works at; each image is scaled to as many pixels. None for
            the size that it was trained at.
        batch_size: Images at a time; halved when memory runs out.

    Yields:
        The features of each image, in order.

    Raises:
        PromptError: A phrase is missing from its prompt, or beyond the token limit.
        ModelError: The model cannot start from images or cannot be traced, or an image is too large for the
            memory.
    """
    unet = getattr(pipeline, "unet", None)
    if unet is not None and unet.config.in_channels != pipeline.vae.config.latent_channels:
        raise ModelError(
            f"the features of images cannot be read with a {type(pipeline).__name__} whose UNet also reads a "
            "mask; use the model that it was made from"
        )
    from_image = task_pipeline(pipeline, "img2img")
    budget_wh, unit = budget_wh or default_size_wh(pipeline), size_unit(pipeline)
    sized = (_Image(rgb, prompt, working_size(_size_wh(rgb), budget_wh, unit)) for rgb, prompt in images)
    for _, group in itertools.groupby(sized, key=lambda image: image.size_wh):
        for batch in _batched(group, batch_size):
            yield from _read(from_image, batch)


def _batched(images: Iterable[_Image], size: int) -> Iterator[list[_Image]]:
    images = iter(images)
    while batch := list(itertools.islice(images, size)):
        yield batch


def _read(pipeline: Any, batch: Sequence[_Image]) -> list[PixelFeatures]:
    try:
        return _read_together(pipeline, batch)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    width, height = batch[0].size_wh
    if len(batch) == 1:
        raise ModelError(
            f"out of memory while reading the features of one image at {width}x{height} pixels on "
            f"{pipeline.device}. Use dtype float16, or offload model or sequential."
        )
    free_memory()
    middle = len(batch) // 2
    logger.warning("out of memory with %d images; continuing with %d", len(batch), middle)
    return [*_read(pipeline, batch[:middle]), *_read(pipeline, batch[middle:])]


def _read_together(pipeline: Any, batch: Sequence[_Image]) -> list[PixelFeatures]:
    tokens = [
        index_tokens(pipeline, image.prompt.text, [phrase.text for phrase in image.prompt.phrases])
        for image in batch
    ]
    attention: list[list[dict[str, NDArray[np.float16]]]] = []
    activations: list[dict[str, NDArray[np.float16]]] = [{} for _ in batch]
    for number, level in enumerate(NOISE_LEVELS):
        with quiet(), trace(pipeline, tokens) as traced, _activations(pipeline) as seen:
            _run_once(pipeline, batch, level, number)
        attention.append(traced.maps())
        for name, blocks in seen.items():
            for image, block in zip(activations, blocks[-len(batch) :], strict=True):
                image[f"{name}@{level:g}"] = block
    return [
        PixelFeatures(
            size_wh=_size_wh(image.rgb),
            phrases=image.prompt.phrases,
            heats={
                # With a single step, a map stands in each third of the steps that the step overlaps.
                group: np.stack([maps[index][group][:, 0] for maps in attention], axis=1)
                for group in attention[0][index]
            },
            activations=activations[index],
        )
        for index, image in enumerate(batch)
    ]


def _run_once(pipeline: Any, batch: Sequence[_Image], level: float, seed: int) -> None:
    """Call a pipeline for as long as its denoiser takes to run once, at a noise level."""
    import torch
    from PIL import Image

    width, height = batch[0].size_wh
    arguments = {
        "prompt": [image.prompt.text for image in batch],
        "image": [
            Image.fromarray(image.rgb).resize((width, height), Image.Resampling.LANCZOS) for image in batch
        ],
        "strength": level,
        "num_inference_steps": STEPS,
        "guidance_scale": 1.0,  # no second pass for a negative prompt
        "generator": [torch.Generator().manual_seed(seed) for _ in batch],
        "width": width,
        "height": height,
    }
    taken = inspect.signature(type(pipeline).__call__).parameters
    try:
        pipeline(**{name: value for name, value in arguments.items() if name in taken})
    except _Read:
        return
    except ValueError as error:  # diffusers' report of an argument that it rejects
        raise ModelError(
            f"{type(pipeline).__name__} cannot read images of {width}x{height} pixels: {first_line(error)}"
        ) from error
    raise ModelError(f"{type(pipeline).__name__} never runs its {type(denoiser_of(pipeline)).__name__}")


@contextmanager
def _activations(pipeline: Any) -> Iterator[dict[str, list[NDArray[np.float16]]]]:
    """Collect the activations of a denoiser's blocks while it runs once, and stop the call after that.

    Yields:
        From the name of a block to the activations of the rows of its batch, float16 (C, h, w) each.
    """
    denoiser = denoiser_of(pipeline)
    signature = inspect.signature(type(denoiser).forward)
    seen: dict[str, list[NDArray[np.float16]]] = {}
    grid_hw = (0, 0)

    def enter(_: Any, args: Any, kwargs: Any) -> None:
        nonlocal grid_hw
        given = signature.bind(None, *args, **kwargs).arguments
        grid_hw = latent_grid_hw(given, type(denoiser).__name__)

    def keep(name: str, values: torch.Tensor) -> None:
        if values.ndim == 3:  # tokens of a transformer
            h, w = cells_hw(values.shape[1], grid_hw)
            values = values.transpose(1, 2).reshape(len(values), -1, h, w)
        # Some transformers have a few activations beyond float16's range.
        seen[name] = list(values.detach().float().clamp(-FLOAT16_MAX, FLOAT16_MAX).half().cpu().numpy())

    def stop(*_: Any) -> None:
        raise _Read

    with ExitStack() as stack:
        stack.callback(denoiser.register_forward_pre_hook(enter, with_kwargs=True).remove)
        for name, block in _unet_blocks(denoiser):

            def left(_: Any, __: Any, output: Any, name: str = name) -> None:
                keep(name, output[0] if isinstance(output, tuple) else output)

            stack.callback(block.register_forward_hook(left).remove)
        for name, block in _transformer_blocks(denoiser):
            order = inspect.signature(type(block).forward)

            def entered(
                _: Any, args: Any, kwargs: Any, name: str = name, order: inspect.Signature = order
            ) -> None:
                keep(name, order.bind(None, *args, **kwargs).arguments["hidden_states"])

            stack.callback(block.register_forward_pre_hook(entered, with_kwargs=True).remove)
        stack.callback(denoiser.register_forward_hook(stop).remove)
        yield seen


def _unet_blocks(denoiser: Any) -> Iterator[tuple[str, Any]]:
    """Yield the blocks of a UNet but the first, which has seen little more than pixels."""
    if not hasattr(denoiser, "up_blocks"):
        return
    yield from ((f"down-{number}", block) for number, block in enumerate(denoiser.down_blocks) if number)
    yield "mid", denoiser.mid_block
    yield from ((f"up-{number}", block) for number, block in enumerate(denoiser.up_blocks))


def _transformer_blocks(denoiser: Any) -> Iterator[tuple[str, Any]]:
    """Yield those blocks of a transformer that take the image's tokens apart from the prompt's."""
    blocks = list(getattr(denoiser, "transformer_blocks", ()))
    numbers = {round(depth * (len(blocks) - 1)) for depth in TRANSFORMER_DEPTHS} if blocks else set()
    yield from ((f"block-{number:02d}", blocks[number]) for number in sorted(numbers))


def _size_wh(rgb: RGB) -> tuple[int, int]:
    return rgb.shape[1], rgb.shape[0]
