"""Images as a Mask2Former sees them, and what it finds in them as records.

Knows pixels, tensors and a loaded model; does not know checkpoints or training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from diffugen.diffusion.messages import quiet
from diffugen.labels import shapes
from diffugen.records import Instances

if TYPE_CHECKING:
    import torch
    from transformers import Mask2FormerForUniversalSegmentation

STRIDE = 32
"""Sides of the network's input are multiples of it."""

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's colours in [0, 1], which the backbones were trained on."""


def input_wh(rgb: NDArray[np.uint8], image_size: int) -> tuple[int, int]:
    """Return width and height of the network's input for an image: its shape, in multiples of the stride."""
    height, width = rgb.shape[:2]
    scale = image_size / max(height, width)
    return max(STRIDE, round(width * scale / STRIDE) * STRIDE), max(
        STRIDE, round(height * scale / STRIDE) * STRIDE
    )


def scaled(images: torch.Tensor, size_wh: tuple[int, int]) -> torch.Tensor:
    """Return float images (N, C, H, W) at another size."""
    import torch

    if not images.shape[1]:
        return images.new_zeros((len(images), 0, size_wh[1], size_wh[0]))
    return torch.nn.functional.interpolate(images, size_wh[::-1], mode="bilinear", antialias=True)


def padded(image: torch.Tensor, size_wh: tuple[int, int]) -> torch.Tensor:
    """Return a float image (..., H, W) with zeros on its right and below it, so that it has a size."""
    import torch

    height, width = image.shape[-2:]
    return torch.nn.functional.pad(image, (0, size_wh[0] - width, 0, size_wh[1] - height))


def as_input(rgb: NDArray[np.uint8], size_wh: tuple[int, int]) -> torch.Tensor:
    """Return an image, uint8 (H, W, 3) RGB, as the network sees it, float32 (3, h, w)."""
    import torch

    mean, deviation = (torch.tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
    image = torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1))).float() / 255
    return (scaled(image[None], size_wh)[0] - mean) / deviation


def predict_batch(
    model: Mask2FormerForUniversalSegmentation,
    names: Sequence[str],
    image_size: int,
    confidence: float,
    images: Sequence[NDArray[np.uint8]],
) -> list[Instances]:
    """Return what a model finds in N images of one shape, most confident first.

    Args:
        model: The model; it is left in evaluation mode.
        names: Its classes, in the order of their ids.
        image_size: Longer side in pixels that images are scaled to.
        confidence: Minimum confidence of an instance, in [0, 1].
        images: N arrays uint8 (H, W, 3), RGB.
    """
    import torch
    from transformers import Mask2FormerImageProcessor

    height, width = images[0].shape[:2]
    size = input_wh(images[0], image_size)
    pixels = torch.stack([as_input(rgb, size) for rgb in images]).to(model.device)
    model.eval()
    with torch.inference_mode(), quiet():
        found = Mask2FormerImageProcessor().post_process_instance_segmentation(
            model(pixel_values=pixels),
            threshold=confidence,
            target_sizes=[(height, width)] * len(images),
            return_binary_maps=True,
        )
    return [_instances(one, names, (width, height)) for one in found]


def _instances(found: Mapping[str, Any], names: Sequence[str], size_wh: tuple[int, int]) -> Instances:
    segments = found["segments_info"]
    if not segments:
        return Instances(size_wh, (), (), np.zeros(0))
    scores = np.array([one["score"] for one in segments], dtype=np.float64)
    order = np.argsort(-scores, kind="stable")
    masks = found["segmentation"].cpu().numpy().astype(np.bool_)
    return Instances(
        size_wh=size_wh,
        class_names=tuple(names[segments[index]["label_id"]] for index in order),
        rles=tuple(shapes.encode(masks[index]) for index in order),
        scores=scores[order].clip(0, 1),
    )
