"""Label the images of the evidence by settings that are tried, and match the labels with the evidence.

The images of a trial can be spread over workers, not the trials: so the search takes the same course however
many workers there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from diffugen.comparison.matching import match
from diffugen.config.labelling import LabelSettings, ScoreWeights
from diffugen.errors import DiffugenError
from diffugen.labels.heatmaps import combine, doubt_maps
from diffugen.labels.label import label_combined
from diffugen.labels.segmenter import Segmenter
from diffugen.labels.witness import Witness
from diffugen.records import HeatMaps, Instances
from diffugen.run.executors import OnStep
from diffugen.tune.evidence import Evidence

CACHE_BYTES = 2**28
"""Memory for heat maps, and as much each for combined maps and images; the rest is made anew each time."""

MATCHED_AT_A_TIME = 8
"""Images that a worker is given at a time; how many makes no difference to the result."""


@dataclass(frozen=True)
class Matched:
    """The L labels of an image.

    Attributes:
        terms: float64 (L, T), their score terms, as `Matcher` was told.
        ious: float64 (L,), the IoU of each with the object that it matches; 0 without a match.
    """

    terms: NDArray[np.float64]
    ious: NDArray[np.float64]


class Matcher:
    """Labels images, and makes only that again which other settings can have changed.

    Args:
        evidence: Labels that are taken as correct.
        heat_maps: Returns an image's heat maps.
        image: Returns an image's pixels, uint8 (H, W, 3).
        witness: Returns what a detector found in an image, or None.
        segmenter: Outlines objects, for settings with ``refine: sam``.
        terms: The T score terms that labels from these heat maps have.
    """

    def __init__(
        self,
        evidence: Sequence[Evidence],
        heat_maps: Callable[[str], HeatMaps],
        image: Callable[[str], NDArray[np.uint8]],
        witness: Callable[[str], Witness | None],
        segmenter: Segmenter | None,
        terms: Sequence[str],
    ) -> None:
        self._evidence = evidence
        self._terms = tuple(terms)
        self._witness = witness
        self._segmenter = segmenter
        self._heat_maps = _Cache(heat_maps)
        self._images = _Cache(image)
        self._combined_by: Any = None

    def packed(self) -> Matcher:
        """Return one with everything in memory that it would read; it can be sent, without a segmenter."""
        ids = [one.image_id for one in self._evidence]
        heat_maps = {image_id: self._heat_maps[image_id] for image_id in ids}
        images = {image_id: self._images[image_id] for image_id in ids}
        seen = {image_id: self._witness(image_id) for image_id in ids}
        return Matcher(self._evidence, heat_maps.__getitem__, images.__getitem__, seen.get, None, self._terms)

    def match(self, number: int, settings: LabelSettings) -> Matched:
        """Return the labels of an image by these settings.

        Raises:
            ConfigError: ``settings.groups`` does not match the heat maps.
            DiffugenError: The evidence for the image and the image differ in size.
        """
        one = self._evidence[number]
        labels = self._label(one, settings)
        terms = np.array([[each[term] for term in self._terms] for each in labels.terms], dtype=np.float64)
        return Matched(terms.reshape(-1, len(self._terms)), _ious(labels, one.instances))

    def _label(self, one: Evidence, settings: LabelSettings) -> Instances:
        heat_maps = self._heat_maps[one.image_id]
        if one.instances.size_wh != heat_maps.size_wh:
            raise DiffugenError(
                f"the evidence for image {one.image_id} has size {one.instances.size_wh} px (width, height), "
                f"but the image has {heat_maps.size_wh}; rescale the masks of the evidence"
            )
        by = (dict(settings.groups), settings.step_weights, settings.self_attention)
        if by != self._combined_by:
            self._combined_by = by
            self._combined = _Cache(lambda image_id: combine(self._heat_maps[image_id], *by))
        labels = label_combined(
            self._combined[one.image_id],
            heat_maps.phrases,
            settings,
            ScoreWeights(),
            self._images[one.image_id],
            heat_maps.region,
            self._witness(one.image_id),
            self._segmenter,
            doubt_maps(heat_maps),
        )
        # What only the witness names has no terms, and no setting changes it.
        return labels.take([index for index, terms in enumerate(labels.terms) if terms])


@dataclass(frozen=True, eq=False)
class Matching:
    """Labels and matches images by settings, as `diffugen.run.executors.Work`.

    Attributes:
        matcher: What does it; packed, if it is to be sent.
    """

    matcher: Matcher
    on_gpu = False

    def load(self, on_step: OnStep) -> Callable[[tuple[LabelSettings, Sequence[int]]], list[list[Matched]]]:
        """Return what labels the images of a batch: settings, and the numbers of the images."""

        def handle(batch: tuple[LabelSettings, Sequence[int]]) -> list[list[Matched]]:
            settings, numbers = batch
            return [[self.matcher.match(number, settings) for number in numbers]]

        return handle

    def finish(self, made: list[Matched]) -> list[Matched]:
        """Return them as they are."""
        return made


class _Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


T = TypeVar("T", bound=_Sized)


class _Cache(Generic[T]):
    """Keeps values until `CACHE_BYTES` are full; the rest is made each time it is needed.

    Nothing is evicted: images are visited in the same order again and again, so the oldest value is always
    the one needed next.
    """

    def __init__(self, make: Callable[[str], T]) -> None:
        self._make = make
        self._made: dict[str, T] = {}
        self._room = CACHE_BYTES

    def __getitem__(self, image_id: str) -> T:
        if image_id in self._made:
            return self._made[image_id]
        made = self._make(image_id)
        self._room -= made.nbytes
        if self._room >= 0:
            self._made[image_id] = made
        return made


def _ious(labels: Instances, truth: Instances) -> NDArray[np.float64]:
    """Return the IoU of each label with the object it matches, or 0 if it matches none."""
    ious = np.zeros(len(labels))
    for pair in match(labels, truth, min_iou=0.0, min_iou_swapped=None):
        if pair.first is not None and pair.second is not None:
            ious[pair.first] = pair.iou
    return ious
