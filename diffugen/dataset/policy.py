"""Decide what an image trains with, and whether it trains or validates.

Knows labels, decisions and prompt ids; no files, images or rounds. Every function is pure: the same arguments
give the same answer on any machine.

What an image trains with, the first row that fits:

=====================================  =====================================================================================
a person decided                       origin ``human``: her labels; ``reject``: left out (``rejected``)
an attention score is below the least  left out (``low_score``)
no detector has looked                 origin ``attention``: the attention labels; left out (``unlabelled``)
if there are none neither side sees anything             origin ``negative``: background
both sides agree on everything         origin ``agreed``: one mask of each pair, with the attention label's
score they disagree anywhere                 left out (``disagreement``), or the trusted side's labels: origin ``attention``/``model``
=====================================  =====================================================================================

An image is never half-labelled: what it trains with is a whole label set of one side, or all pairs, or
nothing. A missing label would teach the detector that the object is background.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from diffugen.comparison.disagreement import compare
from diffugen.comparison.matching import Match
from diffugen.errors import DiffugenError
from diffugen.labels import shapes
from diffugen.records import RLE, Decision, Instances

Mask = Literal["model", "attention", "union", "intersection"]
Trust = Literal["none", "attention", "model"]

ORIGINS = ("human", "agreed", "attention", "model", "negative")
"""Where the labels that an image trains with come from."""

LEFT_OUT = ("rejected", "low_score", "unlabelled", "disagreement")
"""Why an image does not train."""


@dataclass(frozen=True)
class TrainingLabels:
    """What one image trains with.

    Attributes:
        origin: One of `ORIGINS`; None if the image is left out.
        instances: All objects of the image, none for background; None if the image is left out.
        reason: One of `LEFT_OUT`; None if the image trains.
    """

    origin: str | None
    instances: Instances | None
    reason: str | None = None

    def __post_init__(self) -> None:
        trains = self.origin in ORIGINS and self.instances is not None and self.reason is None
        left_out = self.origin is None and self.instances is None and self.reason in LEFT_OUT
        if not trains and not left_out:
            raise ValueError(
                f"an image trains or is left out; got origin {self.origin!r} and reason {self.reason!r}"
            )


def in_validation(family: str, val_frac: float, seed: int) -> bool:
    """Return whether a family's images validate, by its hash alone: the answer never depends on others.

    Args:
        family: The family; all its images go the same way, or the validation images would be known from
            training.
        val_frac: Part of the families that validate, in [0, 1).
        seed: Another seed draws others.

    Raises:
        DiffugenError: If ``val_frac`` lies outside [0, 1).
    """
    _check_val_frac(val_frac)
    digest = hashlib.sha256(f"{seed}/{family}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48 < val_frac


def split_by_family(families: Iterable[str], val_frac: float, seed: int) -> set[str]:
    """Return the families of images (`diffugen.records.ImageRecord.family`) that validate.

    The first family that came trains, the second validates, and `in_validation` decides each later one. So,
    from two families on, neither side is empty; and as later families change nothing about earlier ones, a
    family that validates in one round never trains in another, nor the reverse.

    Args:
        families: In the order in which they came to the run, which must not change when families are added;
            repeated ones count once.
        val_frac: Part of the families that validate, in [0, 1); 0 for none at all.
        seed: Another seed draws others.

    Raises:
        DiffugenError: If ``val_frac`` lies outside [0, 1).
    """
    _check_val_frac(val_frac)
    ids = list(dict.fromkeys(families))
    drawn = {family for family in ids[2:] if in_validation(family, val_frac, seed)}
    return drawn | set(ids[1:2]) if val_frac > 0 else set()


def training_labels(
    image_id: str,
    attention: Instances,
    model: Instances | None,
    decision: Decision | None,
    *,
    mask: Mask = "model",
    trust: Trust = "none",
    min_score: float = 0.0,
    min_iou: float = 0.1,
    good_iou: float = 0.5,
    confidence: float = 0.25,
) -> TrainingLabels:
    """Return what an image trains with, by the table in the module's text.

    Args:
        image_id: The image.
        attention: Its attention labels, with their scores.
        model: Its model labels, with confidences as scores; None if no detector has looked at it.
        decision: What a person decided about it, if anything.
        mask: Of two labels that agree, whose mask is taken; or the pixels of either, or of both.
        trust: Whose labels are taken where the two sides disagree; ``none`` leaves the image out.
        min_score: Least score of an attention label, in [0, 1].
        min_iou: See `diffugen.comparison.disagreement.compare`.
        good_iou: See `diffugen.comparison.disagreement.compare`.
        confidence: Least confidence of a model label, in [0, 1]; less sure ones do not count.

    Raises:
        DiffugenError: If an option is unknown, a threshold lies outside [0, 1], or the labels are of
            different sizes.
    """
    _check_options(mask=mask, trust=trust, min_score=min_score, confidence=confidence)
    if decision is not None:
        if decision.instances is None:
            return TrainingLabels(None, None, "rejected")
        return TrainingLabels("human", decision.instances)
    if (attention.scores < min_score).any():
        return TrainingLabels(None, None, "low_score")
    if model is None:
        return (
            TrainingLabels("attention", attention)
            if len(attention)
            else TrainingLabels(None, None, "unlabelled")
        )
    sure = model.take(np.flatnonzero(model.scores >= confidence).tolist())
    comparison = compare(image_id, attention, sure, min_iou=min_iou, good_iou=good_iou)
    if comparison.disagreements:
        trusted = {"none": None, "attention": attention, "model": sure}[trust]
        return (
            TrainingLabels(None, None, "disagreement") if trusted is None else TrainingLabels(trust, trusted)
        )
    if not comparison.agreements:
        return TrainingLabels("negative", attention)
    return TrainingLabels("agreed", _agreed(attention, sure, comparison.agreements, mask))


def _check_val_frac(val_frac: float) -> None:
    if not 0 <= val_frac < 1:
        raise DiffugenError(f"val_frac is {val_frac!r}; the validation part must lie in [0, 1)")


def _check_options(*, mask: str, trust: str, min_score: float, confidence: float) -> None:
    for name, value, known in (
        ("mask", mask, ("model", "attention", "union", "intersection")),
        ("trust", trust, ("none", "attention", "model")),
    ):
        if value not in known:
            raise DiffugenError(f"{name} is {value!r}; expected one of {', '.join(known)}")
    for name, least in (("min_score", min_score), ("confidence", confidence)):
        if not 0 <= least <= 1:
            raise DiffugenError(f"{name} is {least!r}; it must lie between 0 and 1")


def _agreed(attention: Instances, model: Instances, pairs: Iterable[Match], mask: Mask) -> Instances:
    """The attention labels with the chosen mask of each pair."""
    rles = list(attention.rles)
    for pair in pairs:
        if pair.first is not None and pair.second is not None:
            rles[pair.first] = _mask_of(attention.rles[pair.first], model.rles[pair.second], mask)
    return Instances(attention.size_wh, attention.class_names, tuple(rles), attention.scores, attention.terms)


def _mask_of(attention: RLE, model: RLE, mask: Mask) -> RLE:
    if mask == "attention":
        return attention
    if mask == "model":
        return model
    first, second = shapes.decode(attention), shapes.decode(model)
    return shapes.encode(first | second if mask == "union" else first & second)
