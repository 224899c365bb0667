"""Where attention lies in space and time: latent grids, shapes of layers, thirds of the steps.

Knows numbers and shapes only, no tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffugen.diffusion.families import ADVICE
from diffugen.errors import ModelError
from diffugen.records import STEP_THIRDS


def thirds_of(step: int, steps: int) -> range:
    """Return the thirds of the denoising process to which a step belongs.

    Args:
        step: Index of the step, in [0, steps).
        steps: Number of steps, >= 1.

    Returns:
        One third in [0, 3); with fewer than 3 steps, every third that the step overlaps, so none is empty.
    """
    first = step * STEP_THIRDS // steps
    if steps >= STEP_THIRDS:
        return range(first, first + 1)
    return range(first, -(-(step + 1) * STEP_THIRDS // steps))


def latent_grid_hw(inputs: Mapping[str, Any], denoiser: str) -> tuple[int, int]:
    """Return height and width of a denoiser's input in latent cells.

    Args:
        inputs: The arguments of the denoiser's forward call, by name.
        denoiser: Class name of the denoiser, for the message.

    Raises:
        ModelError: The arguments do not determine the grid.
    """
    sample = inputs.get("sample", inputs.get("hidden_states"))
    if sample is not None and sample.ndim == 4:
        return int(sample.shape[-2]), int(sample.shape[-1])
    if inputs.get("img_ids") is not None:  # packed latents (Flux): one row (time, y, x) per token
        rows, columns = inputs["img_ids"].reshape(-1, 3)[:, 1:].amax(dim=0).int().tolist()
        return rows + 1, columns + 1
    raise ModelError(
        f"{denoiser} cannot be traced: it gets neither a 4-dimensional sample nor img_ids, so the height and "
        f"width of its latents are unknown. {ADVICE}"
    )


def cells_hw(count: int, grid_hw: tuple[int, int]) -> tuple[int, int]:
    """Return height and width of a layer's grid: the latent grid divided by an integer, rounded up.

    Args:
        count: Number of the layer's image queries.
        grid_hw: Height and width of the latent grid.

    Raises:
        ModelError: No integer gives that many cells.
    """
    for factor in range(1, max(grid_hw) + 1):
        h, w = (-(-side // factor) for side in grid_hw)
        if h * w == count:
            return h, w
    raise ModelError(
        f"an attention layer has {count} image queries, which do not match the {grid_hw[0]}x{grid_hw[1]} "
        "latent grid (height x width) divided by any integer, so the shape of its heat map is unknown. Use "
        "an image size that the model's patch and downsampling factors divide."
    )
