"""What a decision about an image says about each of its objects: which labels were wrong.

Knows masks and classes; does not know who decided, or how.
"""

from __future__ import annotations

from collections.abc import Iterator

from diffugen.comparison.calibration import AGREED, Outcome
from diffugen.comparison.disagreement import Comparison
from diffugen.comparison.matching import match
from diffugen.records import Instances


def outcomes(
    comparison: Comparison, attention: Instances, model: Instances, human: Instances, *, good_iou: float = 0.5
) -> Iterator[Outcome]:
    """Yield what turned out about each object of an image.

    An attention label is right if a human label of its class has an IoU of at least ``good_iou`` with it. An
    object that only the model sees was overlooked if a human label says the same of it, and no attention
    label is right about that one.

    Args:
        comparison: Of the two label sets, *uncalibrated*.
        attention: The attention labels.
        model: The model labels.
        human: The labels that a person decided on.
        good_iou: IoU from which two masks are of the same object, in [0, 1].
    """
    right = _partners(attention, human, good_iou)
    confirmed = _partners(model, human, good_iou)
    for pair, doubt in zip(comparison.agreements, comparison.doubts, strict=True):
        yield Outcome(AGREED, doubt, pair.first not in right)
    for one in comparison.disagreements:
        if one.attention is not None:
            wrong = one.attention not in right
        else:
            wrong = one.model in confirmed and confirmed[one.model] not in right.values()
        yield Outcome(one.kind, one.severity, wrong)


def is_wrong(labels: Instances, human: Instances, *, good_iou: float = 0.5) -> bool:
    """Return whether the labels of an image are wrong: not one to one those of a person.

    Args:
        labels: The labels.
        human: The labels that a person decided on.
        good_iou: IoU from which two masks of one class are of the same object, in [0, 1].
    """
    return not len(labels) == len(human) == len(_partners(labels, human, good_iou))


def _partners(labels: Instances, human: Instances, good_iou: float) -> dict[int | None, int]:
    """Return from the number of each label that a human label confirms to the number of that one."""
    pairs = match(labels, human, min_iou=good_iou, min_iou_swapped=None)
    return {pair.first: pair.second for pair in pairs if pair.first is not None and pair.second is not None}
