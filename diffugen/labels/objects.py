"""Make one mask per object of what a detector returns: drop duplicates, and settle what an object is.

A detector suppresses overlapping *boxes*, each class by itself, so that one object can keep several masks of
its class, and masks of several classes. Knows masks, classes and confidences; not detectors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from diffugen.labels.refine import refined
from diffugen.labels.shapes import areas, iou_matrix
from diffugen.records import RLE, Instances

SAME_OBJECT_IOU = 0.5
"""From this mask IoU on, two masks are of one object, whatever their classes."""

CONTAINED_FRAC = 0.8
"""A mask of which at least this share lies within a mask of the same class is a part of that object."""


def one_mask_per_object(instances: Instances) -> Instances:
    """Return the most confident mask of each object (mask NMS), in order of confidence.

    A mask is dropped if it has an IoU of at least `SAME_OBJECT_IOU` with a more confident one, or if one of
    the two contains at least `CONTAINED_FRAC` of the other and their classes are equal. If the classes
    differ, the one that is kept remembers the other in `Instances.rivals`.

    Args:
        instances: Of one image, with confidences as scores.
    """
    order = np.argsort(-instances.scores, kind="stable")
    ious = iou_matrix(instances.rles, instances.rles)
    within = contained(instances.rles)
    kept: list[int] = []
    rivals: dict[int, dict[str, float]] = {}
    for index in (int(number) for number in order):
        name, confidence = instances.class_names[index], float(instances.scores[index])
        dropped = False
        for other in kept:
            same = instances.class_names[other] == name
            if ious[index, other] < SAME_OBJECT_IOU and not (same and within[index, other]):
                continue
            dropped = True
            if not same:
                rivals[other].setdefault(name, confidence)
            break
        if not dropped:
            kept.append(index)
            rivals[index] = dict(instances.rivals[index])
    return dataclasses.replace(instances.take(kept), rivals=tuple(rivals[index] for index in kept))


def with_rivals(instances: Instances) -> Instances:
    """Return instances and, with the same mask, what else the detector took each of them for.

    Average precision counts each class by itself; without its second guesses, a detector that mistakes one
    class for another would look as if it did not know the other at all.
    """
    guesses = [
        (index, name, confidence)
        for index, rivals in enumerate(instances.rivals)
        for name, confidence in rivals.items()
    ]
    return instances.joined(
        Instances(
            instances.size_wh,
            tuple(name for _, name, _ in guesses),
            tuple(instances.rles[index] for index, _, _ in guesses),
            np.array([confidence for _, _, confidence in guesses], dtype=np.float64),
        )
    )


def finished(instances: Instances, rgb: NDArray[np.uint8]) -> Instances:
    """Return a detector's output as labels: one mask per object, with edges where the image's colours change.

    Duplicates are dropped before and after the edges move, because masks of one object then come together.

    Args:
        instances: Of one image, with confidences as scores.
        rgb: uint8 (H, W, 3), the image.

    Raises:
        ValueError: Image and masks differ in size.
    """
    return one_mask_per_object(refined(one_mask_per_object(instances), rgb))


def contained(rles: Sequence[RLE]) -> NDArray[np.bool_]:
    """Return bool (N, N): whether one of two masks lies within the other, to at least `CONTAINED_FRAC`."""
    if not rles:
        return np.zeros((0, 0), dtype=np.bool_)
    # With every mask as a crowd, COCO's IoU is the share of the first mask that lies in the second.
    shares = np.asarray(coco.iou(list(rles), list(rles), [1] * len(rles)))
    filled = areas(rles) > 0
    within = (shares >= CONTAINED_FRAC) & np.outer(filled, filled)
    return np.asarray(within | within.T)
