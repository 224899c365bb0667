"""Decide which labels an image is trained with, and whether it is used for training or validation.

Knows labels, decisions and families of images (`diffugen.records.ImageRecord.family`), and how the colours of
an image tie its pixels together; does not know files or rounds. Every function is pure: equal arguments give
equal results on any machine.

The first matching row decides what an image is trained with:

================================  ====================================================================
a person decided                  their labels (``human``), or left out (``rejected``)
an attention score is too low     left out (``low_score``)
no detector has predicted on it   the attention labels (``attention``), or without any, left out
                                  (``unlabelled``)
neither side has labels           background (``negative``)
both sides agree on everything    one mask per pair, with the attention score (``agreed``)
both sides disagree anywhere      by ``trust``: left out (``disagreement``), the labels of one side
                                  (``attention``, ``model``), or object by object (``evidence``)
================================  ====================================================================

With ``trust="evidence"``, an image trains with the objects that both sides agree on and with those attention
labels that are more likely right than wrong; see severity in `diffugen.comparison.disagreement`. The others,
and what the model probably sees and attention missed, are hidden: a missing label would teach the detector
that the object is background, so it has to be painted over. If nothing is left, the image is left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

from diffugen.comparison.calibration import UNCALIBRATED, Calibration
from diffugen.comparison.disagreement import Comparison, compare
from diffugen.comparison.matching import Match
from diffugen.config.sections import MaskChoice, Trust
from diffugen.errors import DiffugenError
from diffugen.labels import shapes
from diffugen.labels.refine import ColourTies, consensus
from diffugen.records import RLE, Decision, Instances

ORIGINS = ("human", "agreed", "attention", "model", "evidence", "negative")
"""Where the training labels of an image come from."""

Merge = Callable[[RLE, RLE], RLE]

DOUBTFUL = 0.5
"""From this severity on, an attention label, or its absence, is more likely wrong than right."""

LEFT_OUT = ("rejected", "low_score", "unlabelled", "disagreement", "noisy")
"""Why an image is left out of training; ``noisy``: the noise filter holds it back, see `without_noisy`."""

CONFIRMED_ORIGINS = ("human", "agreed")
"""Origins of labels that a second source has confirmed."""

UNCONFIRMED_ORIGINS = ("attention", "model", "evidence")
"""Origins of labels that only one source vouches for, in part at least."""


@dataclass(frozen=True)
class TrainingLabels:
    """The labels that one image is trained with, or why it is left out.

    Attributes:
        origin: One of `ORIGINS`; None if the image is left out.
        instances: All objects of the image, empty for background; None if the image is left out.
        reason: One of `LEFT_OUT`; None if the image is used.
        hidden: Masks of objects to paint over, because nobody can tell what they are.
    """

    origin: str | None
    instances: Instances | None
    reason: str | None = None
    hidden: tuple[RLE, ...] = ()

    def __post_init__(self) -> None:
        used = self.origin in ORIGINS and self.instances is not None and self.reason is None
        left_out = self.origin is None and self.instances is None and self.reason in LEFT_OUT
        if not used and not left_out:
            raise ValueError(
                f"an image is either used or left out; got origin {self.origin!r} and reason {self.reason!r}"
            )


def in_validation(family: str, val_frac: float, seed: int) -> bool:
    """Return whether a family is used for validation, from its hash alone, whatever other families exist.

    Use it for images that are read one by one, such as those of an existing dataset; `FamilySplit` is for
    the images of a run, and guarantees that both splits have images.

    Args:
        family: The family; all its images are in the same split, because they look alike.
        val_frac: Fraction of the families used for validation, in [0, 1).
        seed: Seed of the split.

    Raises:
        DiffugenError: ``val_frac`` is not in [0, 1).
    """
    _check_val_frac(val_frac)
    digest = hashlib.sha256(f"{seed}/{family}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48 < val_frac


def split_by_family(families: Iterable[str], val_frac: float, seed: int) -> set[str]:
    """Return the families that are used for validation, by `FamilySplit`.

    Args:
        families: Families in the order of the run; repeats are ignored.
        val_frac: Fraction of the families used for validation, in [0, 1); 0 for none.
        seed: Seed of the split.

    Raises:
        DiffugenError: ``val_frac`` is not in [0, 1).
    """
    split = FamilySplit(val_frac, seed)
    return {family for family in families if split.holds_out(family)}


class FamilySplit:
    """Tells which families (`diffugen.records.ImageRecord.family`) of a run are used for validation.

    The first family is used for training, the second for validation, and `in_validation` decides all others.
    So neither split is empty once there are two families, and a family never changes splits when families are
    added.
    """

    def __init__(self, val_frac: float, seed: int) -> None:
        """Begin before the first family.

        Args:
            val_frac: Fraction of the families used for validation, in [0, 1); 0 for none.
            seed: Seed of the split.

        Raises:
            DiffugenError: ``val_frac`` is not in [0, 1).
        """
        _check_val_frac(val_frac)
        self._val_frac = val_frac
        self._seed = seed
        self._first: list[str] = []

    def holds_out(self, family: str) -> bool:
        """Return whether a family is used for validation.

        Args:
            family: Ask for each in the order of the run, to which new ones must be appended; repeats do not
                matter.
        """
        if len(self._first) < 2 and family not in self._first:
            self._first.append(family)
        if family in self._first:
            return self._val_frac > 0 and family != self._first[0]
        return in_validation(family, self._val_frac, self._seed)


def training_labels(
    image_id: str,
    attention: Instances,
    model: Instances | None,
    decision: Decision | None,
    candidates: Instances | None = None,
    *,
    mask: MaskChoice = "model",
    trust: Trust = "none",
    min_score: float = 0.0,
    min_iou: float = 0.1,
    good_iou: float = 0.5,
    calibration: Calibration = UNCALIBRATED,
    ties: Callable[[], ColourTies] | None = None,
) -> TrainingLabels:
    """Return the labels that an image is trained with, by the table in the docstring of this module.

    Args:
        image_id: The image.
        attention: Its attention labels.
        model: Its model labels, with confidences as scores; None if no detector has predicted on it.
        decision: The decision of a person about it, if any.
        candidates: What the detector is not sure enough of to label.
        mask: Which mask to use if both sides agree: one side's, the ``union`` or ``intersection`` of both, or
            their ``consensus`` with the image's colours.
        trust: Which side's labels to use if they disagree; ``none`` leaves the image out, ``evidence``
            decides object by object.
        min_score: Minimum score of an attention label, in [0, 1].
        min_iou: IoU below which two instances are different objects, in [0, 1].
        good_iou: IoU from which two instances agree on the location, in [0, 1].
        calibration: What a severity is worth.
        ties: Returns how the colours of the image tie its pixels together; needed for a ``consensus``, and
            called at most once.

    Raises:
        DiffugenError: An option is unknown, a threshold is not in [0, 1], or the label sets differ in image
            size.
        ValueError: A ``consensus`` is wanted and ``ties`` is missing.
    """
    _check_options(mask, trust, min_score)
    merge = _merging(mask, ties)
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
    comparison = compare(
        image_id, attention, model, candidates, min_iou=min_iou, good_iou=good_iou, calibration=calibration
    )
    if comparison.disagreements and trust == "evidence":
        return _by_evidence(attention, model, comparison, merge)
    if comparison.disagreements:
        trusted = {"none": None, "attention": attention, "model": model}[trust]
        return (
            TrainingLabels(None, None, "disagreement") if trusted is None else TrainingLabels(trust, trusted)
        )
    if not comparison.agreements:
        return TrainingLabels("negative", attention)
    return TrainingLabels("agreed", _agreed(attention, model, comparison.agreements, merge))


def without_noisy(
    chosen: Iterable[tuple[str, TrainingLabels]], held_back: Collection[str]
) -> Iterator[tuple[str, TrainingLabels]]:
    """Yield what images train with when the noise filter holds some back, confirmed ones never.

    Args:
        chosen: Ids of images with their training labels.
        held_back: Ids from `diffugen.dataset.noise.most_contradicted`.
    """
    noisy, ids = TrainingLabels(None, None, "noisy"), frozenset(held_back)
    for image_id, one in chosen:
        yield image_id, noisy if image_id in ids and one.origin in UNCONFIRMED_ORIGINS else one


def _check_val_frac(val_frac: float) -> None:
    if not 0 <= val_frac < 1:
        raise DiffugenError(f"val_frac is {val_frac!r}; it must be in [0, 1)")


def _check_options(mask: str, trust: str, min_score: float) -> None:
    for name, value, known in (
        ("mask", mask, ("consensus", "model", "attention", "union", "intersection")),
        ("trust", trust, ("none", "attention", "model", "evidence")),
    ):
        if value not in known:
            raise DiffugenError(f"{name} is {value!r}; expected one of {', '.join(known)}")
    if not 0 <= min_score <= 1:
        raise DiffugenError(f"min_score is {min_score!r}; it must be in [0, 1]")


def _by_evidence(
    attention: Instances, model: Instances, comparison: Comparison, merge: Merge
) -> TrainingLabels:
    """Return the objects that are more likely right than wrong; the others are hidden."""
    hidden: list[RLE] = []
    wrong: set[int] = set()
    for one in comparison.disagreements:
        if one.severity < DOUBTFUL:
            continue
        if one.attention is not None:
            wrong.add(one.attention)
            hidden.append(attention.rles[one.attention])
        if one.model is not None:
            hidden.append(model.rles[one.model])
    kept = [index for index in range(len(attention)) if index not in wrong]
    if not kept:
        return TrainingLabels(None, None, "disagreement")
    labels = _agreed(attention, model, comparison.agreements, merge).take(kept)
    return TrainingLabels("evidence", labels, hidden=tuple(hidden))


def _agreed(attention: Instances, model: Instances, pairs: Iterable[Match], merge: Merge) -> Instances:
    """Return the attention labels with the merged mask of each pair."""
    rles = list(attention.rles)
    for pair in pairs:
        if pair.first is not None and pair.second is not None:
            rles[pair.first] = merge(attention.rles[pair.first], model.rles[pair.second])
    return Instances(attention.size_wh, attention.class_names, tuple(rles), attention.scores, attention.terms)


def _merging(mask: MaskChoice, ties: Callable[[], ColourTies] | None) -> Merge:
    """Return how the attention label's and the model's mask of an object become one."""
    if mask == "consensus":
        if ties is None:
            raise ValueError("a consensus of masks needs the image's ties")
        once = cache(ties)
        return lambda attention, model: consensus(attention, model, once())
    if mask in ("attention", "model"):
        return lambda attention, model: attention if mask == "attention" else model
    join = np.logical_or if mask == "union" else np.logical_and
    return lambda attention, model: shapes.encode(join(shapes.decode(attention), shapes.decode(model)))
