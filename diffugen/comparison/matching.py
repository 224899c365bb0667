"""Match the instances of two label sets of one image one to one, by mask IoU.

Knows classes and masks; does not know which side is right, what a pair means for review, or where the labels
come from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffugen.errors import DiffugenError
from diffugen.labels.shapes import iou_matrix
from diffugen.records import Instances

SAME_CLASS_BONUS = 0.05
"""IoUs that differ by less are a tie, won by the pair of equal classes; two good masks differ by about as
much."""

_TIE_BREAK = 1e-6


@dataclass(frozen=True, slots=True)
class Match:
    """A pair of instances, or an instance without a partner.

    Attributes:
        first: Index in the first label set; None if only the second has the instance.
        second: Index in the second label set; None if only the first has the instance.
        iou: Mask IoU of the pair, in (0, 1]; for an unmatched instance, its highest IoU with any instance of
            the other side, in [0, 1].
    """

    first: int | None
    second: int | None
    iou: float

    def __post_init__(self) -> None:
        if self.first is None and self.second is None:
            raise ValueError("a match needs an instance on at least one side")


def match(
    first: Instances, second: Instances, *, min_iou: float = 0.1, min_iou_swapped: float | None = 0.5
) -> list[Match]:
    """Match instances so that the summed IoU of the pairs is maximal (Hungarian method, Kuhn 1955).

    The classes of a pair may differ, so that a swapped class gives one pair rather than two unmatched
    instances. Where two assignments differ by less than `SAME_CLASS_BONUS` per pair, equal classes win;
    between equal masks, the higher score wins.

    Args:
        first: N instances.
        second: M instances of the same image.
        min_iou: Minimum IoU of a pair of equal class, in [0, 1]. Masks that share no pixel are never paired.
        min_iou_swapped: Minimum IoU of a pair of different classes, in [0, 1]; None never pairs different
            classes. Different classes with little overlap are two neighbouring objects, not one object with
            two names.

    Returns:
        Pairs and unmatched instances: those of ``first`` in order, then the remaining ones of ``second`` in
        order. Every instance occurs exactly once.

    Raises:
        DiffugenError: The images differ in size, or a threshold lies outside [0, 1].

    Example:
        >>> [pair.iou for pair in match(attention, model) if pair.second is not None]  # doctest: +SKIP
        [0.83, 0.41]
    """
    from scipy.optimize import linear_sum_assignment

    check_same_size(first, second)
    check_iou("min_iou", min_iou)
    if min_iou_swapped is not None:
        check_iou("min_iou_swapped", min_iou_swapped)
    ious = iou_matrix(first.rles, second.rles)
    same = _same_class(first, second)
    across = np.inf if min_iou_swapped is None else min_iou_swapped
    allowed = (ious > 0) & (ious >= np.where(same, min_iou, across))
    gains = ious + SAME_CLASS_BONUS * same + _TIE_BREAK * np.add.outer(first.scores, second.scores)
    rows, columns = linear_sum_assignment(np.where(allowed, gains, 0.0), maximize=True)
    partner = {
        int(row): int(column) for row, column in zip(rows, columns, strict=True) if allowed[row, column]
    }
    taken = set(partner.values())
    matches = [
        Match(row, partner[row], float(ious[row, partner[row]]))
        if row in partner
        else Match(row, None, _highest(ious[row]))
        for row in range(len(first))
    ]
    return matches + [Match(None, j, _highest(ious[:, j])) for j in range(len(second)) if j not in taken]


def check_same_size(first: Instances, second: Instances) -> None:
    """Raise DiffugenError unless both label sets, empty or not, have the same image size."""
    if tuple(first.size_wh) != tuple(second.size_wh):
        raise DiffugenError(
            f"cannot compare label sets of images of {_size(first)} and {_size(second)} px (width x height); "
            "use two label sets of the same image, or rescale the masks of one to the size of the other"
        )


def check_iou(name: str, value: float) -> None:
    """Raise DiffugenError unless the IoU threshold ``value``, called ``name``, lies in [0, 1]."""
    if not 0 <= value <= 1:
        raise DiffugenError(f"{name} is {value!r}; an IoU threshold must lie between 0 and 1")


def _same_class(first: Instances, second: Instances) -> NDArray[np.bool_]:
    # dtype=object, because an empty array would be of floats, which numpy does not compare with text.
    names = (np.array(side.class_names, dtype=object) for side in (first, second))
    return np.asarray(np.equal.outer(*names), dtype=np.bool_)


def _highest(ious: NDArray[np.float64]) -> float:
    return float(ious.max(initial=0.0))


def _size(instances: Instances) -> str:
    return "{} x {}".format(*instances.size_wh)
