"""Judge labels by evidence: what label settings and score weights are worth in each of many images.

Knows heat maps, labels, and what is taken as correct; not how settings are searched, nor when they are good
enough.

Settings and weights are judged apart in each image: a gain of one must not pay for a loss of the other.

- **Worth** of label settings: the sum of ``IoU - 1/2`` over the accepted labels (score >= ``accept``),
  divided by the number of objects that the evidence has in the image (by 1 if there are none). Labels are
  matched one to one with objects of the same class; without a match, the IoU is 0. At an IoU of one half, a
  label is as much right as wrong: a detector that learns from it is better off above, and worse off below. So
  a missed object is worth 0, a false label costs one half, and no labels at all are worth exactly 0. Dividing
  by the number of objects gives an image with twenty cars the same weight as an image with one: a prompt that
  happens to ask for crowds does not decide everything.
- **Miscalibration** of score weights: the mean of ``(score - IoU)**2`` over *all* labels of the image,
  accepted or not (the Brier score with the IoU in place of the binary outcome). It is lowest if the score
  tells how good a label is, as ``accept`` and the review queue assume.

Totals are plain means over images, so any subset (a fold) can be evaluated without labelling again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from diffugen.comparison.matching import match
from diffugen.comparison.metrics import spearman
from diffugen.config.labelling import TERMS, LabelSettings, ScoreWeights
from diffugen.errors import DiffugenError
from diffugen.labels.heatmaps import combine
from diffugen.labels.label import label_combined
from diffugen.labels.segmenter import Segmenter
from diffugen.labels.witness import Witness
from diffugen.records import HeatMaps, Instances

WORTHLESS_IOU = 0.5
"""At this IoU, a label is as much right as wrong."""

CONTRADICTED_ERRORS = 2.0
"""Standard errors by which a term's correlation with the IoU must fall below 0 to count as contradicted."""

CACHE_BYTES = 2**28
"""Memory for heat maps, and as much each for combined maps and images; the rest is made anew each time."""

T = TypeVar("T")
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Evidence:
    """Labels of one image that are taken as correct: a person's, or a detector's that was not trained on it.

    Attributes:
        image_id: The image.
        family: The prompt or photo it goes back to; images of a family look alike and stay in one fold.
        instances: *All* objects of the labelled classes; a label without an object counts as false.
        weight: How much it counts, above 0: a person's word more than a detector's.
    """

    image_id: str
    family: str
    instances: Instances
    weight: float = 1.0


@dataclass(frozen=True)
class Judgement:
    """What settings and weights are worth on the evidence; this module's docstring defines it.

    Attributes:
        worth: float64 (N,), the worth of the labels in each image.
        miscalibration: float64 (N,), the miscalibration of the scores in each image, in [0, 1].
        labelled: Number of images with an accepted label.
    """

    worth: Values
    miscalibration: Values
    labelled: int


def spread(evidence: Sequence[Evidence], images: int, seed: int) -> list[Evidence]:
    """Draw at most ``images`` of the evidence, from as many families as possible.

    The result does not depend on the order of the evidence.

    Raises:
        DiffugenError: An image occurs twice.
    """
    by_family: dict[str, list[Evidence]] = {}
    for one in sorted(evidence, key=lambda one: one.image_id):
        by_family.setdefault(one.family, []).append(one)
    repeated = len(evidence) - len({one.image_id for one in evidence})
    if repeated:
        raise DiffugenError(f"{repeated} images occur more than once in the evidence; pass each image once")
    rng = random.Random(seed)
    piles = [rng.sample(pile, len(pile)) for _, pile in sorted(by_family.items())]
    rng.shuffle(piles)
    # The first image of every family, then the second, and so on.
    turns = sorted((turn, number) for number, pile in enumerate(piles) for turn in range(len(pile)))
    return [piles[number][turn] for turn, number in turns[:images]]


class Judge:
    """Judges many settings by the same evidence, and labels again only what can have changed.

    New score weights or another ``accept`` need no labelling: the terms and IoUs of all labels are kept. New
    thresholds or radii need no combining, and new weights of layer groups or steps no reading of heat maps,
    as far as `CACHE_BYTES` allow.

    Args:
        evidence: Labels that are taken as correct.
        heat_maps: Returns an image's heat maps.
        image: Returns an image's pixels, uint8 (H, W, 3); called only for settings that refine masks.
        witness: Returns what a detector found in an image, or None.
        segmenter: Outlines objects, for settings with ``refine: sam``.

    Attributes:
        weights: float64 (N,), how much each image counts; their mean is 1.

    Example:
        >>> judge = Judge(evidence, store.heat_maps, store.image)  # doctest: +SKIP
        >>> judge.judge(LabelSettings(), ScoreWeights()).worth.mean()  # doctest: +SKIP
        0.213
    """

    def __init__(
        self,
        evidence: Sequence[Evidence],
        heat_maps: Callable[[str], HeatMaps],
        image: Callable[[str], NDArray[np.uint8]],
        witness: Callable[[str], Witness | None] = lambda image_id: None,
        segmenter: Segmenter | None = None,
    ) -> None:
        self._evidence = evidence
        self._witness = witness
        self._segmenter = segmenter
        weights = np.array([one.weight for one in evidence], dtype=np.float64)
        self.weights = weights / weights.mean() if len(weights) else weights
        self._objects = np.array([max(len(one.instances), 1) for one in evidence])
        self._heat_maps = _Cache(heat_maps, lambda made: made.nbytes)
        self._images = _Cache(image, lambda made: made.nbytes)
        self._combined_by: Any = None
        self._labelled: dict[str, _Labels] = {}

    def judge(self, settings: LabelSettings, weights: ScoreWeights) -> Judgement:
        """Return what settings and weights are worth in each image of the evidence.

        Raises:
            ConfigError: ``settings.groups`` does not match the heat maps.
            DiffugenError: The evidence for an image and the image differ in size.
        """
        labels = self._labels(settings)
        weight = np.array([getattr(weights, term) for term in TERMS])
        scores = labels.terms @ weight / weight.sum()
        images = len(self._evidence)
        accepted = scores >= settings.accept
        gains = (labels.ious - WORTHLESS_IOU)[accepted]
        worth = np.bincount(labels.images[accepted], gains, minlength=images) / self._objects
        counts = np.maximum(np.bincount(labels.images, minlength=images), 1)
        miscalibration = np.bincount(labels.images, (scores - labels.ious) ** 2, minlength=images) / counts
        return Judgement(worth, miscalibration, len(np.unique(labels.images[accepted])))

    def contradicted(self, settings: LabelSettings) -> set[str]:
        """Return the score terms that are the lower, the better the label, by more than chance.

        With a weight, such a term would order labels wrongly, however well it suits their mean.
        """
        labels = self._labels(settings)
        weights = np.array([one.weight for one in self._evidence])[labels.images]
        found = set()
        for term, values in zip(TERMS, labels.terms.T, strict=True):
            correlation = spearman(values, labels.ious, weights)
            if correlation is not None and correlation < -CONTRADICTED_ERRORS / np.sqrt(max(1, len(values))):
                found.add(term)
        return found

    def _labels(self, settings: LabelSettings) -> _Labels:
        everything = settings.changed(accept=0.0)
        key = repr(everything)
        if key not in self._labelled:
            self._labelled[key] = self._label(everything)
        return self._labelled[key]

    def _label(self, settings: LabelSettings) -> _Labels:
        by = (dict(settings.groups), settings.step_weights, settings.self_attention)
        if by != self._combined_by:
            self._combined_by = by
            self._combined = _Cache(
                lambda image_id: combine(self._heat_maps[image_id], *by), lambda made: made.nbytes
            )
        terms: list[list[float]] = []
        ious: list[float] = []
        images: list[int] = []
        for number, one in enumerate(self._evidence):
            labels = self._label_one(one, settings)
            terms += [[each[term] for term in TERMS] for each in labels.terms]
            ious += _ious(labels, one.instances)
            images += [number] * len(labels)
        shape = (len(ious), len(TERMS))
        return _Labels(
            np.reshape(np.array(terms), shape), np.array(ious, dtype=float), np.array(images, dtype=np.int64)
        )

    def _label_one(self, one: Evidence, settings: LabelSettings) -> Instances:
        heat_maps = self._heat_maps[one.image_id]
        if one.instances.size_wh != heat_maps.size_wh:
            raise DiffugenError(
                f"the evidence for image {one.image_id} has size {one.instances.size_wh} px (width, height), "
                f"but the image has {heat_maps.size_wh}; rescale the masks of the evidence"
            )
        rgb = self._images[one.image_id]
        heats = self._combined[one.image_id]
        labels = label_combined(
            heats,
            heat_maps.phrases,
            settings,
            ScoreWeights(),
            rgb,
            heat_maps.region,
            self._witness(one.image_id),
            self._segmenter,
        )
        # What only the witness names has no terms, and no setting changes it.
        return labels.take([index for index, terms in enumerate(labels.terms) if terms])


@dataclass(frozen=True)
class _Labels:
    """All L labels of all images: terms (L, T), IoU with the evidence (L,), number of the image (L,)."""

    terms: Values
    ious: Values
    images: NDArray[np.int64]


class _Cache(Generic[T]):
    """Keeps values until `CACHE_BYTES` are full; the rest is made each time it is needed.

    Nothing is evicted: images are visited in the same order again and again, so the oldest value is always
    the one needed next.
    """

    def __init__(self, make: Callable[[str], T], nbytes: Callable[[T], int]) -> None:
        self._make, self._nbytes = make, nbytes
        self._made: dict[str, T] = {}
        self._room = CACHE_BYTES

    def __getitem__(self, image_id: str) -> T:
        if image_id in self._made:
            return self._made[image_id]
        made = self._make(image_id)
        self._room -= self._nbytes(made)
        if self._room >= 0:
            self._made[image_id] = made
        return made


def _ious(labels: Instances, truth: Instances) -> list[float]:
    """Return the IoU of each label with the object it matches, or 0 if it matches none."""
    ious = [0.0] * len(labels)
    for pair in match(labels, truth, min_iou=0.0, min_iou_swapped=None):
        if pair.first is not None and pair.second is not None:
            ious[pair.first] = pair.iou
    return ious
