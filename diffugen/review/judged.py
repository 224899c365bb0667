"""The labels that are left of an image when single objects of it are kept, dropped, renamed or redrawn.

Knows label sets and what was said about their objects; neither tags nor files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from diffugen.labels.shapes import areas, iou_matrix
from diffugen.records import Instances, Judged

SAME_OBJECT_IOU = 0.5
"""Two kept labels of different sources that overlap more than this are the same object."""


class Unclear(Exception):
    """What a person said about an image cannot be interpreted; the message says why, and what to do."""


def kept_instances(
    judged: Sequence[Judged], labels: Mapping[str, Instances], size_wh: tuple[int, int]
) -> Instances:
    """Return the objects that were kept, with their correct classes and masks, as far as `drawn`.

    A label whose mask was replaced, like an object that was drawn, has the score 1 and no score terms.

    Args:
        judged: What was said about objects; what is not mentioned is dropped.
        labels: From a source to its labels.
        size_wh: Width and height of the image in pixels.

    Raises:
        Unclear: A label does not exist, or the same object is kept from two sources.
    """
    by_source: dict[str, list[Instances]] = {}
    for one in judged:
        if one.kept:
            by_source.setdefault(one.source, []).append(_object(one, labels, size_wh))
    parts = [joined(found, size_wh) for found in by_source.values()]
    refuse_doubles(parts)
    return drawn(joined(parts, size_wh))


def drawn(instances: Instances) -> Instances:
    """Return the objects of which a pixel is left: to erase one is to drop it."""
    return instances.take(np.flatnonzero(areas(instances.rles)).tolist())


def _object(one: Judged, labels: Mapping[str, Instances], size_wh: tuple[int, int]) -> Instances:
    if one.source == "human":
        return Instances(size_wh, (str(one.class_name),), (one.mask or {},), np.ones(1))
    found = labels.get(one.source)
    if found is None or one.index >= len(found):
        raise Unclear(f"it has no {one.source} label {one.index}")
    label = found.take([one.index])
    name = one.class_name or label.class_names[0]
    if one.mask is not None:
        return Instances(size_wh, (name,), (one.mask,), np.ones(1))
    return Instances(size_wh, (name,), label.rles, label.scores, label.terms)


def joined(parts: Sequence[Instances], size_wh: tuple[int, int]) -> Instances:
    """Return the objects of several label sets as one."""
    return Instances(
        size_wh,
        tuple(name for part in parts for name in part.class_names),
        tuple(rle for part in parts for rle in part.rles),
        np.concatenate([np.zeros(0), *(part.scores for part in parts)]),
        tuple(terms for part in parts for terms in part.terms),
    )


def refuse_doubles(parts: Sequence[Instances]) -> None:
    """Refuse label sets of different sources that have an object in common.

    Raises:
        Unclear: They have one.
    """
    for number, first in enumerate(parts):
        for second in parts[number + 1 :]:
            overlap = iou_matrix(first.rles, second.rles)
            if overlap.size and overlap.max() > SAME_OBJECT_IOU:
                raise Unclear("one object is kept twice, from two sources; drop it from one of them")
