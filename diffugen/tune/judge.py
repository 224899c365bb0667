"""Judge labels by evidence: what label settings and score weights are worth in each of many images.

Knows heat maps, labels and what is taken for right; not how settings are searched for, nor when they are good
enough.

The value of settings in one image is ``worth - miscalibration``:

- **Worth**: the sum over the *accepted* labels (score >= ``accept``) of ``IoU - 1/2``, divided by the number
  of objects that the evidence has in the image (by 1 where it has none). The IoU is that with the object of
  the same class that the label matches one to one, 0 for none. A label is as much right as wrong at one half:
  above, a detector that learns from it is better off than without it, below, worse off. So a missed object is
  worth 0, a false label costs one half, and no labels at all are worth exactly 0. Dividing by the objects
  makes an image with twenty cars count like one with one car: a prompt that happens to ask for crowds does
  not decide everything.
- **Miscalibration**: the mean over *all* labels of the image, accepted or not, of ``(score - IoU)**2`` (the
  Brier score with the IoU in the place of the hit): least when the score says how good a label is, which
  ``accept`` and the review queue take it for.

A value lies in the mean between about -1 and 1/2, and is a plain mean over images: so any part of the images
(a fold) can be evaluated without labelling again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from diffugen.comparison.matching import match
from diffugen.config.labelling import TERMS, LabelSettings, ScoreWeights
from diffugen.errors import DiffugenError
from diffugen.labels.heatmaps import combine
from diffugen.labels.label import label_combined
from diffugen.records import HeatMaps, Instances

WORTHLESS_IOU = 0.5
"""A label with this IoU is as much right as wrong."""

KEPT_BYTES = 2**28
"""Heat maps kept in memory; as much again for combined heat maps and for images. The rest is read or made
again each time."""

T = TypeVar("T")
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Evidence:
    """What is taken for right in one image: a person's labels, or those of a detector that has not learnt
    from it.

    Attributes:
        image_id: The image.
        family: Its prompt; images of one prompt look alike and stay in one fold.
        instances: *All* objects of the classes that are labelled; a label of anything else counts as false.
    """

    image_id: str
    family: str
    instances: Instances


@dataclass(frozen=True)
class Judgement:
    """What settings are worth.

    Attributes:
        values: float64 (N,), one an image; see the module's text.
        labelled: Number of images with an accepted label.
    """

    values: Values
    labelled: int


def spread(evidence: Sequence[Evidence], images: int, seed: int) -> list[Evidence]:
    """Draw at most ``images`` of the evidence, from as many prompts as possible; does not depend on the order
    given.

    Raises:
        DiffugenError: An image occurs twice.
    """
    by_prompt: dict[str, list[Evidence]] = {}
    for one in sorted(evidence, key=lambda one: one.image_id):
        by_prompt.setdefault(one.family, []).append(one)
    twice = len(evidence) - len({one.image_id for one in evidence})
    if twice:
        raise DiffugenError(f"{twice} images occur more than once in the evidence; give each image once")
    rng = random.Random(seed)
    piles = [rng.sample(pile, len(pile)) for _, pile in sorted(by_prompt.items())]
    rng.shuffle(piles)
    # The first image of every prompt, then the second, and so on.
    turns = sorted((turn, number) for number, pile in enumerate(piles) for turn in range(len(pile)))
    return [piles[number][turn] for turn, number in turns[:images]]


class Judge:
    """Judges settings by the same evidence again and again, labelling only where labels can have changed.

    Other score weights or another ``accept`` need no labels: the terms and IoUs of each label are kept. Other
    thresholds or radii need no combined heat maps, other heat-map weights no reading, within `KEPT_BYTES`.

    Args:
        evidence: What is taken for right.
        heat_maps: Returns an image's heat maps.
        image: Returns an image's pixels, uint8 (H, W, 3); only called for settings that refine masks.

    Example:
        >>> judge = Judge(evidence, store.heat_maps, store.image)  # doctest: +SKIP
        >>> judge.judge(LabelSettings(), ScoreWeights()).values.mean()  # doctest: +SKIP
        0.113
    """

    def __init__(
        self,
        evidence: Sequence[Evidence],
        heat_maps: Callable[[str], HeatMaps],
        image: Callable[[str], NDArray[np.uint8]],
    ) -> None:
        self._evidence = evidence
        self._objects = np.array([max(len(one.instances), 1) for one in evidence])
        self._heat_maps = _Kept(heat_maps, lambda made: sum(array.nbytes for array in made.maps.values()))
        self._images = _Kept(image, lambda made: made.nbytes)
        self._combined_by: Any = None
        self._found: dict[str, _Found] = {}

    def judge(self, settings: LabelSettings, weights: ScoreWeights) -> Judgement:
        """Judge settings.

        Raises:
            ConfigError: ``settings.groups`` does not fit the heat maps.
            DiffugenError: Evidence is of another size than its image.
        """
        everything = settings.changed(accept=0.0)
        key = repr(everything)
        if key not in self._found:
            self._found[key] = self._label(everything)
        found = self._found[key]
        weight = np.array([getattr(weights, term) for term in TERMS])
        scores = found.terms @ weight / weight.sum()
        images = len(self._evidence)
        accepted = scores >= settings.accept
        gains = (found.ious - WORTHLESS_IOU)[accepted]
        worth = np.bincount(found.images[accepted], gains, minlength=images) / self._objects
        labels = np.maximum(np.bincount(found.images, minlength=images), 1)
        miscalibration = np.bincount(found.images, (scores - found.ious) ** 2, minlength=images) / labels
        return Judgement(worth - miscalibration, len(np.unique(found.images[accepted])))

    def _label(self, settings: LabelSettings) -> _Found:
        by = (dict(settings.groups), settings.step_weights)
        if by != self._combined_by:
            self._combined_by = by
            self._combined = _Kept(
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
        return _Found(
            np.reshape(np.array(terms), shape), np.array(ious, dtype=float), np.array(images, dtype=np.int64)
        )

    def _label_one(self, one: Evidence, settings: LabelSettings) -> Instances:
        heat_maps = self._heat_maps[one.image_id]
        if one.instances.size_wh != heat_maps.size_wh:
            raise DiffugenError(
                f"the evidence for image {one.image_id} is of {one.instances.size_wh} px (width, height), "
                "the image of "
                f"{heat_maps.size_wh}; rescale the masks of the evidence to the image's size"
            )
        rgb = None if settings.refine == "none" else self._images[one.image_id]
        heats = self._combined[one.image_id]
        return label_combined(heats, heat_maps.phrases, settings, ScoreWeights(), rgb, heat_maps.region)


@dataclass(frozen=True)
class _Found:
    """All L labels of all images: terms (L, T), IoU with the evidence (L,), number of the image (L,)."""

    terms: Values
    ious: Values
    images: NDArray[np.int64]


class _Kept(Generic[T]):
    """Keeps what was made, up to `KEPT_BYTES` in all; the rest is made anew each time it is wanted.

    Images are gone through in one order again and again, where dropping the oldest would drop just what is
    wanted next.
    """

    def __init__(self, make: Callable[[str], T], nbytes: Callable[[T], int]) -> None:
        self._make, self._nbytes = make, nbytes
        self._made: dict[str, T] = {}
        self._room = KEPT_BYTES

    def __getitem__(self, image_id: str) -> T:
        if image_id in self._made:
            return self._made[image_id]
        made = self._make(image_id)
        self._room -= self._nbytes(made)
        if self._room >= 0:
            self._made[image_id] = made
        return made


def _ious(labels: Instances, truth: Instances) -> list[float]:
    """IoU of each label with the object it matches, 0 for none."""
    ious = [0.0] * len(labels)
    for pair in match(labels, truth, min_iou=0.0, min_iou_swapped=None):
        if pair.first is not None and pair.second is not None:
            ious[pair.first] = pair.iou
    return ious
