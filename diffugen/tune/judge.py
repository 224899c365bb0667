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

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffugen.comparison.metrics import spearman
from diffugen.config.labelling import HEAT_TERMS, LabelSettings, ScoreWeights
from diffugen.labels.segmenter import Segmenter
from diffugen.labels.witness import Witness
from diffugen.records import HeatMaps
from diffugen.run.executors import Executor
from diffugen.tune.evidence import Evidence
from diffugen.tune.matcher import MATCHED_AT_A_TIME, Matcher, Matching

WORTHLESS_IOU = 0.5
"""At this IoU, a label is as much right as wrong."""

CONTRADICTED_ERRORS = 2.0
"""Standard errors by which a term's correlation with the IoU must fall below 0 to count as contradicted."""

Values = NDArray[np.float64]


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


class Judge:
    """Judges many settings by the same evidence, and labels again only what can have changed.

    New score weights or another ``accept`` need no labelling: the terms and IoUs of all labels are kept. New
    thresholds or radii need no combining, and new weights of layer groups or steps no reading of heat maps,
    as far as `diffugen.tune.matcher.CACHE_BYTES` allow.

    Args:
        evidence: Labels that are taken as correct.
        heat_maps: Returns an image's heat maps.
        image: Returns an image's pixels, uint8 (H, W, 3).
        witness: Returns what a detector found in an image, or None.
        segmenter: Outlines objects, for settings with ``refine: sam``.
        terms: The T score terms that labels from these heat maps have; with ``certainty`` where a decoder
            drew them.
        executor: Where images are labelled; with a segmenter, always in this process. Workers are
            sent all heat maps and images at the start.
        notify: Called with what the user should know, such as that a worker is gone.

    Attributes:
        weights: float64 (N,), how much each image counts; their mean is 1.
        terms: The T score terms.

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
        terms: Sequence[str] = HEAT_TERMS,
        executor: Executor | None = None,
        notify: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._evidence = evidence
        self._notify = notify
        weights = np.array([one.weight for one in evidence], dtype=np.float64)
        self.weights = weights / weights.mean() if len(weights) else weights
        self._objects = np.array([max(len(one.instances), 1) for one in evidence])
        self.terms = tuple(terms)
        self._matcher = Matcher(evidence, heat_maps, image, witness, segmenter, terms)
        spreads = executor is not None and executor.spreads and segmenter is None  # which stays here
        self._executor = executor if spreads else None
        self._matching: Matching | None = None
        self._labelled: dict[str, _Labels] = {}

    def judge(self, settings: LabelSettings, weights: ScoreWeights) -> Judgement:
        """Return what settings and weights are worth in each image of the evidence.

        Raises:
            ConfigError: ``settings.groups`` does not match the heat maps.
            DiffugenError: The evidence for an image and the image differ in size.
        """
        labels = self._labels(settings)
        weight = np.array([getattr(weights, term) for term in self.terms])
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
        for term, values in zip(self.terms, labels.terms.T, strict=True):
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
        numbers = range(len(self._evidence))
        if self._executor is None:
            found = [self._matcher.match(number, settings) for number in numbers]
        else:
            self._matching = self._matching or Matching(self._matcher.packed())
            starts = numbers[::MATCHED_AT_A_TIME]
            batches = [(settings, numbers[start : start + MATCHED_AT_A_TIME]) for start in starts]
            parts = self._executor.spread(self._matching, batches, self._notify)
            found = [one for part in parts for one in part]
        images = np.repeat(np.arange(len(found)), [len(one.ious) for one in found])
        terms = np.concatenate([np.empty((0, len(self.terms))), *(one.terms for one in found)])
        return _Labels(terms, np.concatenate([np.empty(0), *(one.ious for one in found)]), images)


@dataclass(frozen=True)
class _Labels:
    """All L labels of all images: terms (L, T), IoU with the evidence (L,), number of the image (L,)."""

    terms: Values
    ious: Values
    images: NDArray[np.int64]
