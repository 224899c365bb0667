"""What detectors share about images and memory: batches of one shape, smaller ones when memory runs out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from diffugen.diffusion.devices import free_memory
from diffugen.errors import DiffugenError, ModelError, is_out_of_memory
from diffugen.records import Instances

Result = TypeVar("Result")

BATCH_SIZE = 16
"""Images per step or call where the caller sets none; halved when memory runs out, so a large one is safe."""


def predict_in_batches(
    images: Sequence[NDArray[np.uint8]], predict: Callable[[Sequence[NDArray[np.uint8]]], list[Instances]]
) -> list[Instances]:
    """Predict images in batches of one shape each, halved when memory runs out.

    One shape per batch: otherwise an image's padding, and so its instances, would depend on the other images
    of the batch.

    Args:
        images: N arrays uint8 (H, W, 3), RGB; sizes may differ.
        predict: Returns the instances in images of one shape.

    Returns:
        The instances in each of the N images.

    Raises:
        DiffugenError: An image has another dtype or shape.
        ModelError: Memory runs out even with one image.
    """
    for number, image in enumerate(images):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise DiffugenError(
                f"image {number} is {image.dtype} {image.shape}; expected uint8 (H, W, 3), RGB"
            )
    found: dict[int, Instances] = {}
    by_shape = sorted(range(len(images)), key=lambda number: images[number].shape)
    for _, group in itertools.groupby(by_shape, key=lambda number: images[number].shape):
        numbers = list(group)
        while numbers:
            rest = [images[number] for number in numbers]
            batch = halving(partial(_predict_first, predict, rest), BATCH_SIZE, "predicting")
            found.update(zip(numbers, batch, strict=False))
            numbers = numbers[len(batch) :]
    return [found[number] for number in range(len(images))]


def _predict_first(
    predict: Callable[[Sequence[NDArray[np.uint8]]], list[Instances]],
    images: Sequence[NDArray[np.uint8]],
    count: int,
) -> list[Instances]:
    return predict(images[:count])


def halving(work: Callable[[int], Result], batch_size: int, what: str) -> Result:
    """Call ``work(batch_size)``, and again with half the batch each time that memory runs out.

    Raises:
        ModelError: Memory runs out even with one image.
    """
    while True:
        try:
            return work(batch_size)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if batch_size == 1:
                raise ModelError(
                    f"out of memory while {what}, even with one image; use a smaller image_size"
                ) from error
        batch_size //= 2
        free_memory()
