"""Compose training images: cut-outs of labelled objects, pasted into other images, in front and behind.

After X-Paste (Zhao et al. 2023, section 3): a rare object in many scenes, crowded and partly hidden, with
masks as exact as those of its cut-out. Knows pixels and masks; does not know which labels can be trusted.

An object stands on the ground: the lower its edge in the image, the nearer it is. So a pasted object keeps
the height at which it stood, hides what stands farther up, and is hidden by what stands farther down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from diffugen.labels.shapes import areas, boxes, decode, encode
from diffugen.records import Instances

RGB = NDArray[np.uint8]
Mask = NDArray[np.bool_]

SCALES = (0.6, 1.2)
"""Lowest and highest factor by which a cut-out is enlarged."""

SHIFT_FRAC = 0.05
"""A pasted object stands this much higher or lower than in its own image, relative to the image height."""

LEAST_VISIBLE_FRAC = 0.3
"""Of no object may a smaller share stay visible: nobody would label it. Only one that disappears may go."""

LIGHT = (0.4, 2.0)
"""Lowest and highest factor by which a cut-out is adapted to the brightness of the other image."""


ATTEMPTS = 8


@dataclass(frozen=True)
class CutOut:
    """An object to paste.

    Attributes:
        item: Number of the image it comes from.
        index: Its number among the labels of that image.
        class_name: Its class.
    """

    item: int
    index: int
    class_name: str


def composed(
    labels: Sequence[Instances],
    image: Callable[[int], RGB],
    cut_outs: Sequence[CutOut],
    count: int,
    seed: int,
) -> Iterator[tuple[str, RGB, Instances]]:
    """Yield composed images with their labels, named ``pasted-00000`` and so on.

    Every class of the cut-outs is pasted equally often. Where the pasted object would hardly be visible,
    another one is tried, `ATTEMPTS` times, so there can be fewer images than ``count``.

    Args:
        labels: Labels of the N images to paste into, which are also those that the cut-outs come from.
        image: Returns an image by number, uint8 (H, W, 3).
        cut_outs: The objects to paste.
        count: Number of images.
        seed: Decides which object goes where.
    """
    by_class: dict[str, list[CutOut]] = {}
    for one in cut_outs:
        by_class.setdefault(one.class_name, []).append(one)
    names = sorted(by_class)
    if not names:
        return
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        chosen = by_class[names[number % len(names)]]
        for _ in range(ATTEMPTS):
            cut_out = chosen[int(rng.integers(len(chosen)))]
            target = int(rng.integers(len(labels)))
            source = labels[cut_out.item].take([cut_out.index])
            made = _pasted(image(target), labels[target], image(cut_out.item), source, rng)
            if made is not None:
                yield f"pasted-{number:05d}", *made
                break


def _pasted(
    rgb: RGB, labels: Instances, source: RGB, pasted: Instances, rng: np.random.Generator
) -> tuple[RGB, Instances] | None:
    """Return an image with an object pasted into it, and all labels; None if too little of one is visible."""
    height, width = rgb.shape[:2]
    cut, mask = _moved(source, decode(pasted.rles[0]), (width, height), rng)
    whole = int(mask.sum())
    if not whole:
        return None
    foot = int(np.flatnonzero(mask.any(axis=1))[-1]) + 1
    nearer = boxes(labels.rles)[:, 3] > foot
    masks = [decode(rle) for rle in labels.rles]
    for other, in_front in zip(masks, nearer, strict=True):
        if in_front:
            mask &= ~other
    if mask.sum() < max(1, LEAST_VISIBLE_FRAC * whole):
        return None
    kept, rles = [], []
    for index, (other, area) in enumerate(zip(masks, areas(labels.rles), strict=True)):
        visible = other & ~mask
        if not visible.any():
            continue
        if visible.sum() < LEAST_VISIBLE_FRAC * area:
            return None
        kept.append(index)
        rles.append(encode(visible))
    light = np.clip((rgb.mean() + 1) / (source.mean() + 1), *LIGHT)
    alpha = cv2.GaussianBlur(mask.astype(np.float32), (3, 3), 0)[..., None] * mask[..., None]
    blended = rgb * (1 - alpha) + np.clip(cut * light, 0, 255) * alpha
    others = labels.take(kept)
    joined = Instances(others.size_wh, others.class_names, tuple(rles), others.scores, others.terms)
    new = Instances(labels.size_wh, pasted.class_names, (encode(mask),), pasted.scores, pasted.terms)
    return blended.round().astype(np.uint8), joined.joined(new)


def _moved(
    source: RGB, mask: Mask, size_wh: tuple[int, int], rng: np.random.Generator
) -> tuple[NDArray[np.float32], Mask]:
    """Return an object mirrored, scaled and moved, as pixels and mask of the other image's size."""
    width, height = size_wh
    left, _, right, lower = (float(value) for value in boxes([encode(mask)])[0])
    scale = float(rng.uniform(*SCALES)) * height / source.shape[0]
    flip = -1.0 if rng.random() < 0.5 else 1.0
    x = float(rng.uniform(0.1, 0.9)) * width
    y = lower / source.shape[0] * height + float(rng.uniform(-SHIFT_FRAC, SHIFT_FRAC)) * height
    # The middle of the object's lower edge goes to (x, y).
    matrix = np.array(
        [[flip * scale, 0, x - flip * scale * (left + right) / 2], [0, scale, y - scale * lower]], np.float32
    )
    pixels = cv2.warpAffine(
        source.astype(np.float32), matrix, (width, height), borderMode=cv2.BORDER_REPLICATE
    )
    moved = cv2.warpAffine(mask.astype(np.float32), matrix, (width, height))
    return np.asarray(pixels, dtype=np.float32), np.asarray(moved >= 0.5)
