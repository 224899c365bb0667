"""The oracle: a segmentation model, trained on many exact masks, that evaluates generated images.

It is for measurements only. Nothing in the loop may call it, because it would leak the ground truth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from diffugen.labels.shapes import encode
from diffugen.miniature.scenery import RenderedScene
from diffugen.miniature.scenes import CLASSES
from diffugen.miniature.sets import scene_set
from diffugen.records import Instances

if TYPE_CHECKING:
    import torch
    from diffusers import UNet2DModel

FOUND_AREA_FRAC = 0.01
"""A class, or a piece of it, is found if the oracle assigns it at least this share of the image."""


def build_oracle() -> UNet2DModel:
    """Build an untrained oracle: a convolutional U-Net with output channels for background and classes."""
    from diffusers import UNet2DModel

    return UNet2DModel(
        in_channels=3,
        out_channels=1 + len(CLASSES),
        layers_per_block=1,
        block_out_channels=(16, 32, 64, 96),
        down_block_types=("DownBlock2D",) * 4,
        up_block_types=("UpBlock2D",) * 4,
        norm_num_groups=8,
        add_attention=False,
    )


def class_map(drawn: RenderedScene) -> NDArray[np.int64]:
    """Return int64 (H, W): 0 for background, k + 1 for `CLASSES`[k]."""
    labels = np.zeros(drawn.rgb.shape[:2], np.int64)
    for name, mask in zip(drawn.class_names, drawn.masks, strict=True):
        if name in CLASSES:
            labels[mask] = 1 + CLASSES.index(name)
    return labels


def train_oracle(
    model: UNet2DModel,
    *,
    size_wh: tuple[int, int],
    steps: int,
    batch_size: int = 16,
    learning_rate: float = 3e-3,
    seed: int = 0,
    device: str = "cpu",
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Train the oracle in place on a stream of new scenes.

    Half of the images are blurred and made noisy, because generated images are softer than rendered ones.

    Args:
        model: From `build_oracle`.
        size_wh: Width and height of the scenes in pixels.
        steps: Optimiser steps.
        batch_size: Scenes per step.
        learning_rate: Peak rate of the one-cycle schedule.
        seed: Determines the augmentation.
        device: Torch device.
        on_step: Called with the number of the step and its loss.
    """
    import torch
    from torch.nn.functional import cross_entropy

    from diffugen.miniature.autoencoder import to_unit

    model.to(device).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        drawn = list(scene_set("uniform", batch_size, size_wh, start=1000 + step * batch_size))
        images = _soften(to_unit(np.stack([one.rgb for one in drawn])), generator).to(device)
        target = torch.from_numpy(np.stack([class_map(one) for one in drawn])).to(device)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            logits = model(images, 0).sample
        loss = cross_entropy(logits.float(), target, label_smoothing=0.02)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        on_step(step + 1, float(loss.detach()))
    model.eval()


def _soften(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    import torch
    from torch.nn.functional import avg_pool2d

    share = torch.rand((len(images), 1, 1, 1), generator=generator) * (
        torch.rand((len(images), 1, 1, 1), generator=generator) < 0.5
    )
    blurred = avg_pool2d(images, 3, 1, 1, count_include_pad=False)
    noise = torch.randn(images.shape, generator=generator) * 0.12 * share
    return images + (blurred - images) * 0.7 * share + noise


def load_oracle(folder: Path) -> UNet2DModel:
    """Load a saved oracle, in float32."""
    from diffusers import UNet2DModel

    return UNet2DModel.from_pretrained(folder).float().eval()


def segment(
    model: UNet2DModel, images: Sequence[NDArray[np.uint8]], batch_size: int = 32
) -> NDArray[np.int64]:
    """Return the class maps, int64 (N, H, W), of images uint8 (H, W, 3) of the same size."""
    import torch

    from diffugen.miniature.autoencoder import to_unit

    maps = []
    with torch.no_grad():
        for first in range(0, len(images), batch_size):
            logits = model(to_unit(np.stack(images[first : first + batch_size])), 0).sample
            maps.append(logits.argmax(1).numpy())
    return np.concatenate(maps)


def found(labels: NDArray[np.int64], class_name: str) -> bool:
    """Return whether a class map, int64 (H, W), contains enough of a class to count as found."""
    return bool((labels == 1 + CLASSES.index(class_name)).mean() >= FOUND_AREA_FRAC)


def intersection_over_union(truth: NDArray[np.int64], labels: NDArray[np.int64]) -> dict[str, float]:
    """Return each class's IoU over all pixels of class maps int64 (N, H, W); NaN for absent classes."""
    result = {}
    for number, name in enumerate(CLASSES, 1):
        union = ((truth == number) | (labels == number)).sum()
        result[name] = (
            float(((truth == number) & (labels == number)).sum() / union) if union else float("nan")
        )
    return result


def oracle_instances(labels: NDArray[np.int64], class_names: Sequence[str]) -> Instances:
    """Return the objects of a class map, int64 (H, W): each connected piece of a class is one.

    Pieces smaller than `FOUND_AREA_FRAC` of the image are left out: most are the oracle's own mistakes.

    Args:
        labels: From `segment`.
        class_names: Classes that count.
    """
    import cv2

    names, rles = [], []
    for name in class_names:
        mask = (labels == 1 + CLASSES.index(name)).astype(np.uint8)
        count, pieces, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        for number in range(1, count):
            if stats[number, cv2.CC_STAT_AREA] >= FOUND_AREA_FRAC * labels.size:
                names.append(name)
                rles.append(encode(pieces == number))
    height, width = labels.shape
    return Instances((width, height), tuple(names), tuple(rles), np.ones(len(names)))
