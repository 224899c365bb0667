"""Find the disagreements between attention labels and model labels, and say how bad they are.

Compares one image at a time, so a run never has to fit in memory. Knows masks, classes and scores; does not
know images, heat maps, decisions or files.

Severity estimates how likely it is that the *attention* label, or its absence, is wrong. It is a mixture of
two witnesses. With probability ``m``, its confidence, the model is right about the object: then the label is
wrong as far as the model's mask does not support it, ``1 - s``. Otherwise only the label's own score ``a``
counts, and it is wrong with probability ``1 - a``.

=================  ======================================================================================
kind               severity
=================  ======================================================================================
``overlooked``     ``m * (1 - iou)``; on an attention label, it is a second name for it
``spurious``       ``1 - a``; or as ``badly_located``, if the model suspects something there (a candidate)
``swapped``        ``m + (1 - m) * (1 - a)``, with ``m`` less the confidence in the attention label's class
``badly_located``  ``m * (1 - s) + (1 - m) * (1 - a)``
=================  ======================================================================================

The support ``s`` grows from 0 at an IoU of `UNSUPPORTED_IOU` to 1 at `SUPPORTED_IOU`. Severity never rises
as the score of the attention label rises or as the masks come closer. Decisions calibrate it; see
`diffugen.comparison.calibration`. The kinds are those of ObjectLab (Tkachenko et al. 2023) plus ``spurious``.
Unlike ObjectLab, masks are compared, not boxes, and the scores of both sides count.
"""

from __future__ import annotations

from dataclasses import dataclass

from diffugen.comparison.calibration import AGREED, UNCALIBRATED, Calibration
from diffugen.comparison.matching import Match, check_iou, match
from diffugen.errors import DiffugenError
from diffugen.labels.shapes import iou_matrix
from diffugen.records import Disagreement, Instances

UNSUPPORTED_IOU, SUPPORTED_IOU = 0.1, 0.7
"""Mask IoUs with the model's object at which it does not support an attention label at all, and fully."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Agreements and disagreements of an image's attention labels (first) and model labels (second).

    Attributes:
        image_id: The image.
        agreements: Pairs of equal class with a good IoU.
        doubts: The severity of each agreement, on the scale of the disagreements.
        disagreements: Everything else. Each instance of either side is in exactly one agreement or
            disagreement.
    """

    image_id: str
    agreements: tuple[Match, ...]
    doubts: tuple[float, ...]
    disagreements: tuple[Disagreement, ...]

    @property
    def worst(self) -> float:
        """The highest severity of all objects, agreed ones included; 0 without objects."""
        return max([*self.doubts, *(one.severity for one in self.disagreements)], default=0.0)


def compare(
    image_id: str,
    attention: Instances,
    model: Instances,
    candidates: Instances | None = None,
    *,
    min_iou: float = 0.1,
    good_iou: float = 0.5,
    calibration: Calibration = UNCALIBRATED,
) -> Comparison:
    """Compare the two label sets of one image.

    Args:
        image_id: The image.
        attention: Attention labels, with their scores.
        model: Model labels, with the detector's confidence as scores.
        candidates: What the detector suspects, but is not sure enough of to label; they speak for or against
            attention labels that no model label matches.
        min_iou: Below this IoU, two instances are different objects.
        good_iou: From this IoU on, two instances agree on the location. Below it, a pair of equal class is
            ``badly_located``, and instances of different classes are two objects, one overlooked, one
            spurious.
        calibration: What a severity is worth, by kind.

    Raises:
        DiffugenError: The images differ in size, or not ``0 <= min_iou <= good_iou <= 1``.
    """
    check_iou("min_iou", min_iou)
    check_iou("good_iou", good_iou)
    if min_iou > good_iou:
        raise DiffugenError(
            f"min_iou ({min_iou}) is above good_iou ({good_iou}); lower min_iou or raise good_iou"
        )
    agreements: list[Match] = []
    doubts: list[float] = []
    disagreements: list[Disagreement] = []
    for pair in match(attention, model, min_iou=min_iou, min_iou_swapped=good_iou):
        kind = _kind(pair, attention, model, good_iou)
        score = None if pair.first is None else float(attention.scores[pair.first])
        confidence, iou = None, pair.iou
        if pair.second is not None:
            confidence = float(model.scores[pair.second])
            if kind == "swapped" and pair.first is not None:
                rival = model.rivals[pair.second].get(attention.class_names[pair.first], 0.0)
                confidence = max(0.0, confidence - rival)
        elif pair.first is not None and candidates is not None:
            confidence, iou = _suspected(attention, pair.first, candidates, min_iou)
        worst = calibration.probability(kind or AGREED, severity(kind, score, confidence, iou))
        if kind is None:
            agreements.append(pair)
            doubts.append(worst)
        else:
            disagreements.append(Disagreement(image_id, kind, worst, pair.first, pair.second, pair.iou))
    return Comparison(image_id, tuple(agreements), tuple(doubts), tuple(disagreements))


def severity(kind: str | None, score: float | None, confidence: float | None, iou: float) -> float:
    """Return how likely the attention label, or its absence, is wrong, in [0, 1].

    The formulas are in the docstring of this module.

    Args:
        kind: One of `diffugen.records.KINDS`; None for an agreement, which is judged like ``badly_located``.
        score: Score of the attention label, in [0, 1]; None without one.
        confidence: Confidence of the model label or candidate, in [0, 1]; None without one.
        iou: IoU as in `Disagreement`, or with the candidate.
    """
    if score is None:
        return (confidence or 0.0) * (1 - iou)
    if confidence is None:
        return 1 - score
    support = (iou - UNSUPPORTED_IOU) / (SUPPORTED_IOU - UNSUPPORTED_IOU)
    support = 0.0 if kind == "swapped" else min(max(support, 0.0), 1.0)
    return confidence * (1 - support) + (1 - confidence) * (1 - score)


def _suspected(
    attention: Instances, index: int, candidates: Instances, min_iou: float
) -> tuple[float | None, float]:
    """Return confidence and IoU of the candidate that overlaps an attention label of its class most."""
    same = candidates.of_classes([attention.class_names[index]])
    ious = iou_matrix([attention.rles[index]], same.rles)[0]
    if not len(ious) or ious.max() < max(min_iou, 1e-9):
        return None, 0.0
    best = int(ious.argmax())
    return float(same.scores[best]), float(ious[best])


def _kind(pair: Match, attention: Instances, model: Instances, good_iou: float) -> str | None:
    if pair.first is None:
        return "overlooked"
    if pair.second is None:
        return "spurious"
    if attention.class_names[pair.first] != model.class_names[pair.second]:
        return "swapped"
    return "badly_located" if pair.iou < good_iou else None
