"""One interface to the three tasks: a task's pipeline, the arguments of its call, and the final pixels.

Takes sources (images to start from) as arrays and regions as masks. Does not know files or attention.
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

from diffugen.diffusion.messages import quiet
from diffugen.errors import ModelError, first_line
from diffugen.records import TASKS, ImageRecord

DEFAULT_STRENGTH: Mapping[str, float] = {"img2img": 0.6, "inpaint": 1.0}
"""Default share of noise added to a source: some of it changes the weather, all of it can add an object."""

WORKING_SIZE = "working_wh"
"""Setting of an image: width and height at which the model processes it, if not the image's own size."""

WINDOW = "window_xyxy"
"""Setting of an inpainted image: the part of its source that is processed, in pixels, if not all of it."""

_EDGE_FRAC = 0.01
"""Width, relative to the image side, of the edge inside a region that is blended into the source."""

RGB = NDArray[np.uint8]


@dataclass(frozen=True)
class Source:
    """The image from which an ``img2img`` or ``inpaint`` image is generated.

    Attributes:
        rgb: uint8 (H, W, 3).
        region: bool (H, W), the pixels to be repainted; None for ``img2img``.
    """

    rgb: RGB
    region: NDArray[np.bool_] | None = None


def task_pipeline(pipeline: Any, task: str) -> Any:
    """Return a pipeline for a task that shares all weights with the given pipeline.

    Args:
        pipeline: From `diffugen.diffusion.pipelines.load_pipeline`, for any task.
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
            if task == "txt2img":  # the pipeline itself, of a family that is not in diffusers' tables
                return pipeline
            raise ModelError(
                f"{type(pipeline).__name__} has no pipeline for {task}: {first_line(error)} Use a model of "
                "another family for this task, such as Stable Diffusion 1.5 or XL."
            ) from error
    made.set_progress_bar_config(disable=True)
    return made


def working_size(size_wh: tuple[int, int], budget_wh: tuple[int, int], unit: int) -> tuple[int, int]:
    """Return the size at which to process a source: its aspect ratio with the model's number of pixels.

    Args:
        size_wh: Width and height of the source in pixels.
        budget_wh: Width and height in pixels that the model was trained at.
        unit: Both sides of the result are multiples of this.

    Example:
        >>> working_size((1280, 720), (512, 512), 16)
        (688, 384)
    """
    scale = math.sqrt(math.prod(budget_wh) / math.prod(size_wh))
    width, height = (max(unit, round(side * scale / unit) * unit) for side in size_wh)
    return width, height


def size_unit(pipeline: Any) -> int:
    """Return the number of pixels of which image sides must be multiples: two latent cells."""
    return 2 * int(pipeline.vae_scale_factor)


def task_arguments(pipeline: Any, batch: Sequence[ImageRecord], sources: Sequence[Source]) -> dict[str, Any]:
    """Return the arguments of a pipeline's call that a task needs in addition to the prompts.

    Args:
        pipeline: From `task_pipeline`.
        batch: Images of the same task, size and working size.
        sources: The source of each image; empty for ``txt2img``.
    """
    first = batch[0]
    width, height = first.settings.get(WORKING_SIZE, first.size_wh)
    # Otherwise PixArt would generate another size and resize the image, and its heat maps would not fit.
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
    """Return an image's final pixels, given the pipeline's output.

    Outside the region, an inpainted image has the pixels of its source; a narrow edge inside the region is
    blended.

    Args:
        record: The image.
        made: The pipeline's output, uint8 (h, w, 3) at the working size.
        source: The image's source; None for ``txt2img``.

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
    """Let Stable Diffusion's inpainting pipelines run on latents that do not have 4 channels.

    These pipelines accept UNets with 4 input channels (plain) or 9 (made for inpainting) and reject all
    others. A UNet with as many input channels as its autoencoder's latents is plain too, so this declares 4
    channels in its configuration until the context closes.
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
    """Return the rows and columns of the source that are processed."""
    left, upper, right, lower = record.settings.get(WINDOW, (0, 0, None, None))
    return slice(upper, lower), slice(left, right)


def _scaled(pixels: NDArray[np.uint8], size_wh: tuple[int, int]) -> Any:
    """Return an array as a Pillow image of the given size."""
    from PIL import Image

    image = Image.fromarray(pixels)
    return image if image.size == tuple(size_wh) else image.resize(size_wh, Image.Resampling.LANCZOS)


def _white(region: NDArray[np.bool_] | None) -> NDArray[np.uint8]:
    assert region is not None
    return region.astype(np.uint8) * 255


def _fading(region: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return each pixel's weight of the new image: 0 outside the region, rising to 1 at its inner edge."""
    from PIL import Image, ImageFilter

    radius = _EDGE_FRAC * math.sqrt(region.size)
    soft = Image.fromarray(_white(region)).filter(ImageFilter.GaussianBlur(radius))
    return np.clip(np.asarray(soft, dtype=np.float32) / 127.5 - 1, 0, 1) * region
