"""Sort what a detector found in an image by what it means for the attention labels of that image.

The detector is a *witness*: it knows some of the classes, such as those of the data it was trained on, and
not the rare one. Knows its objects, heat maps and the prompt's classes; does not know detectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffugen.config.labelling import Threshold
from diffugen.labels.heatmaps import scaled, threshold
from diffugen.labels.shapes import decode
from diffugen.records import Instances

Mask = NDArray[np.bool_]

MISNAMED_FRAC = 0.5
"""An object of which at least this share lies in one of a class unknown to the witness can be misnamed."""


@dataclass(frozen=True)
class Witness:
    """What a detector found in an image.

    Attributes:
        instances: The objects, one mask each, with confidences as scores.
        class_names: The classes that the detector knows.
    """

    instances: Instances
    class_names: frozenset[str]


@dataclass(frozen=True)
class Testimony:
    """The objects of a witness that count, by what they mean for the labels.

    Attributes:
        named: From a class that the prompt names to the masks of its objects, large before small.
        others: The objects of classes that the prompt does not name.
        unknown: Classes of the prompt that the witness does not know.
        taken: bool (h, w), the pixels of all objects that count.
    """

    named: Mapping[str, list[Mask]]
    others: Instances
    unknown: frozenset[str]
    taken: Mask


def testify(
    witness: Witness,
    names: Sequence[str],
    maps: Sequence[NDArray[np.float32]],
    how: Mapping[str, Threshold],
    painted: Mask | None = None,
) -> Testimony:
    """Return what a witness contributes to the labels of an image.

    An object does not count if it is a misnamed one, because a detector gives what it has never seen the name
    of something that it knows: if most of it lies where the heat of a class is high that the prompt names and
    the witness does not know, and that class's heat in it is higher than its own class's.

    Args:
        witness: What the detector found.
        names: The N classes that the prompt names.
        maps: N heat maps, float32 (h, w) each.
        how: From each of these classes to how its map is thresholded.
        painted: bool (h, w), the part of the image that was painted; objects that lie mostly outside do not
            count. None for all of it.
    """
    heats = {name: scaled(heat) for name, heat in zip(names, maps, strict=True)}
    unknown = frozenset(names) - witness.class_names
    rough = {name: threshold(heats[name], how[name]) for name in unknown}
    width, height = witness.instances.size_wh
    taken = np.zeros((height, width), dtype=np.bool_)
    named: dict[str, list[Mask]] = {}
    others = []
    for index, name in enumerate(witness.instances.class_names):
        mask = decode(witness.instances.rles[index])
        if painted is not None:
            mask = within(mask, painted)
        if not mask.any() or _misnamed(mask, heats.get(name), heats, rough):
            continue
        taken |= mask
        if name in heats:
            named.setdefault(name, []).append(mask)
        else:
            others.append(index)
    for objects in named.values():
        objects.sort(key=lambda mask: -int(mask.sum()))
    return Testimony(named, witness.instances.take(others), unknown, taken)


def within(mask: Mask, painted: Mask) -> Mask:
    """Return the part of an object's mask in the painted region; an empty mask if most of it lies outside.

    Both and the result are bool (h, w).
    """
    inside = mask & painted
    return inside if 2 * inside.sum() >= mask.sum() else np.zeros_like(mask)


def _misnamed(
    mask: Mask,
    own: NDArray[np.float32] | None,
    heats: Mapping[str, NDArray[np.float32]],
    rough: Mapping[str, Mask],
) -> bool:
    heat = 0.0 if own is None else float(own[mask].mean())
    for name, other in rough.items():
        covered = float((mask & other).sum()) >= MISNAMED_FRAC * float(mask.sum())
        if covered and float(heats[name][mask].mean()) > heat:
            return True
    return False
