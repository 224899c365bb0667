"""The three tasks as one interface: the pipeline of a task, the arguments of its call, and the pixels that
come of it.

Sources (images to start from) come as arrays, regions as masks. Does not know where they lie, nor attention.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffugen.diffusion.messages import first_line, quiet
from diffugen.errors import ModelError
from diffugen.records import TASKS, ImageRecord

DEFAULT_STRENGTH: Mapping[str, float] = {"img2img": 0.6, "inpaint": 1.0}
"""How much of the noise a source gets where nothing is said: enough for another weather; for another object
all of it."""

WORKING_SIZE = "working_wh"
"""Setting of an image: the size at which its source is worked on, where that is not the image's own."""

WINDOW = "window_xyxy"
"""Setting of an in-painted image: the part of its source that is worked on, where that is not all of it; in
pixels."""

_EDGE_FRAC = 0.01
"""Width, relative to the image side, of the rim inside a region where it fades into the source."""

RGB = NDArray[np.uint8]


@dataclass(frozen=True)
class Source:
    """What an image is made of.

    Attributes:
        rgb: uint8 (H, W, 3).
        region: bool (H, W), what is painted over; None for ``img2img``.
    """

    rgb: RGB
    region: NDArray[np.bool_] | None = None


def task_pipeline(pipeline: Any, task: str) -> Any:
    """Return a pipeline for a task that shares every weight with the given one.

    Args:
        pipeline: From `diffugen.diffusion.pipelines.load_pipeline`, of any task.
        task: ``txt2img``, ``img2img`` or ``inpaint``.

    Raises:
        ModelError: Diffusers has no pipeline of this family for the task.
    """
    import diffusers

    makers = dict(
        zip(
            TASKS,
            ("AutoPipelineForText2Image", "AutoPipelineForImage2Image", "AutoPipelineForInpainting"),
            strict=True,
        )
    )
    with quiet():
        try:
            made = getattr(diffusers, makers[task]).from_pipe(pipeline)
        except (ValueError, AttributeError) as error:
            if (
                task == "txt2img"
            ):  # a family of its own, outside diffusers' tables, can still do what it was made for
                return pipeline
            raise ModelError(
                f"{type(pipeline).__name__} has no pipeline for {task}: {first_line(error)} Use a model of "
                "another "
                "family for this task, such as Stable Diffusion 1.5 or XL."
            ) from error
    made.set_progress_bar_config(disable=True)
    return made


def working_size(size_wh: tuple[int, int], budget_wh: tuple[int, int], unit: int) -> tuple[int, int]:
    """Return the size at which a source is worked on: the model's number of pixels in the source's
    proportions.

    Args:
        size_wh: Width and height of the source in pixels.
        budget_wh: A size that the model was trained for.
        unit: Both sides of the result are multiples of this.

    Example:
        >>> working_size((1280, 720), (512, 512), 16)
        (688, 384)
    """
    scale = math.sqrt(math.prod(budget_wh) / math.prod(size_wh))
    width, height = (max(unit, round(side * scale / unit) * unit) for side in size_wh)
    return width, height


def size_unit(pipeline: Any) -> int:
    """Return a number of pixels whose multiples every layer of a pipeline can divide: two latent cells."""
    return 2 * int(pipeline.vae_scale_factor)


def task_arguments(pipeline: Any, batch: Sequence[ImageRecord], sources: Sequence[Source]) -> dict[str, Any]:
    """Return the arguments of a pipeline's call that a task needs beside the prompts.

    Args:
        pipeline: From `task_pipeline`.
        batch: Images of one task, size and working size.
        sources: One for each; none for ``txt2img``.
    """
    first = batch[0]
    width, height = first.settings.get(WORKING_SIZE, first.size_wh)
    # PixArt would otherwise generate at another size and resize, and the heat maps would not fit.
    arguments: dict[str, Any] = {"width": width, "height": height, "use_resolution_binning": False}
    parts = [_part(record) for record in batch]
    if sources:
        arguments["image"] = [
            _scaled(source.rgb[part], (width, height)) for source, part in zip(sources, parts, strict=True)
        ]
    if first.task == "inpaint":
        arguments["mask_image"] = [
            _scaled(_white(source.region)[part], (width, height))
            for source, part in zip(sources, parts, strict=True)
        ]
    taken = inspect.signature(type(pipeline).__call__).parameters
    return {name: value for name, value in arguments.items() if name in taken}


def finished(record: ImageRecord, made: RGB, source: Source | None) -> RGB:
    """Return an image's pixels from what the pipeline made.

    Of an in-painted image every pixel outside the region is the source's; inside, a narrow rim fades into it.

    Args:
        record: The image.
        made: uint8 (h, w, 3) at the working size.
        source: What it was made of; None for ``txt2img``.

    Returns:
        uint8 (H, W, 3) of the record's size.
    """
    if record.task != "inpaint" or source is None or source.region is None:
        return made
    part = _part(record)
    height, width = source.region[part].shape
    painted = source.rgb.astype(np.float32)
    painted[part] = np.asarray(_scaled(made, (width, height)))
    share = _fading(source.region)[..., None]
    mixed = np.round(share * painted + (1 - share) * source.rgb).astype(np.uint8)
    return np.where(source.region[..., None], mixed, source.rgb)


@contextmanager
def many_channels(pipeline: Any, task: str) -> Iterator[None]:
    """Let the in-painting pipelines of Stable Diffusion run on latents of other than 4 channels.

    They take a UNet of 4 input channels for a plain one, one of 9 for one made for in-painting, and refuse
    every other. A UNet that reads what its autoencoder writes is a plain one too; it passes for 4 until the
    context closes.
    """
    unet: Any = getattr(pipeline, "unet", None)
    channels = None if unet is None else unet.config.in_channels
    if task != "inpaint" or channels in (None, 4, 9) or channels != pipeline.vae.config.latent_channels:
        yield
        return
    unet.register_to_config(in_channels=4)
    try:
        yield
    finally:
        unet.register_to_config(in_channels=channels)


def _part(record: ImageRecord) -> tuple[slice, slice]:
    """The rows and columns of the source that are worked on."""
    left, upper, right, lower = record.settings.get(WINDOW, (0, 0, None, None))
    return slice(upper, lower), slice(left, right)


def _scaled(pixels: NDArray[np.uint8], size_wh: tuple[int, int]) -> Any:
    """The array as a Pillow image of another size."""
    from PIL import Image

    image = Image.fromarray(pixels)
    return image if image.size == tuple(size_wh) else image.resize(size_wh, Image.Resampling.LANCZOS)


def _white(region: NDArray[np.bool_] | None) -> NDArray[np.uint8]:
    assert region is not None
    return region.astype(np.uint8) * 255


def _fading(region: NDArray[np.bool_]) -> NDArray[np.float32]:
    """How much of each pixel is painted: 0 outside the region, rising to 1 within a narrow rim inside it."""
    from PIL import Image, ImageFilter

    radius = _EDGE_FRAC * math.sqrt(region.size)
    soft = Image.fromarray(_white(region)).filter(ImageFilter.GaussianBlur(radius))
    return np.clip(np.asarray(soft, dtype=np.float32) / 127.5 - 1, 0, 1) * region
