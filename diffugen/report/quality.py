"""How far the attention labels can be trusted: compared with human labels and with model labels.

Measures on a seeded sample of a run. Knows which label sets to compare, not how
(`diffugen.comparison.metrics`).
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from diffugen.comparison.matching import match
from diffugen.comparison.metrics import LabelQuality, Pair, Reliability, label_quality, reliability
from diffugen.records import Instances, content_id
from diffugen.report.facts import RunFacts
from diffugen.report.survey import Survey
from diffugen.run.rounds import OnProgress
from diffugen.run.store import RunStore

Evidence = Literal["human", "model"]
When = Literal["first", "now"]

MOST_IMAGES = 1000
"""Maximum number of images that each kind of evidence is measured on."""

SAMPLE_SEED = 0

SCORE_BINS = 20
"""Bins of the reliability curve; many, because the scores of a run are close together."""


@dataclass(frozen=True)
class Comparison:
    """Attention labels compared with one kind of evidence.

    Attributes:
        evidence: The labels they are compared with.
        when: ``first`` for labels made with the run's first settings, ``now`` for the newest.
        images: Images compared.
        available: Images that could have been compared.
        quality: IoU by class.
        reliability: What the score says about the IoU.
    """

    evidence: Evidence
    when: When
    images: int
    available: int
    quality: LabelQuality
    reliability: Reliability


@dataclass
class Quality:
    """All comparisons of a run, and how well each compared image agrees.

    Attributes:
        comparisons: First human, then model; of each, first the old labels, then the new.
        agreement: Evidence, mean IoU over the objects of both sides in [0, 1], and image id, of each compared
            image with an object on either side.
    """

    comparisons: list[Comparison] = field(default_factory=list)
    agreement: list[tuple[Evidence, float, str]] = field(default_factory=list)

    def of(self, evidence: Evidence, when: When) -> Comparison | None:
        """Return one comparison, or None."""
        found = (one for one in self.comparisons if (one.evidence, one.when) == (evidence, when))
        return next(found, None)


@dataclass(frozen=True)
class _Sample:
    """Images to compare: a sample of those available; ``both`` if they have first and newest labels."""

    image_ids: list[str]
    available: int
    both: bool


def measure_quality(store: RunStore, facts: RunFacts, survey: Survey, on_progress: OnProgress) -> Quality:
    """Compare the attention labels with the available evidence.

    If images have labels made with the first label settings and newer ones, both are compared, on those
    images only, so that the difference shows the effect of the settings and nothing else.
    """
    first = facts.first_method
    samples = _samples(survey, first)
    quality = Quality()
    total, done = sum(len(sample.image_ids) for sample in samples.values()), 0
    for evidence, sample in samples.items():
        now: list[Pair] = []
        before: list[Pair] = []
        for image_id in sample.image_ids:
            truth = evidence_labels(store, survey, evidence, image_id).of_classes(survey.classes)
            now.append((truth, attention_labels(store, image_id, survey.notes[image_id].method)))
            if sample.both:
                before.append((truth, attention_labels(store, image_id, first)))
            value = agreement(*now[-1])
            if value is not None:
                quality.agreement.append((evidence, value, image_id))
            done += 1
            on_progress(done, total)
        if before:
            quality.comparisons.append(_compared(evidence, "first", before, sample.available))
        if now:
            quality.comparisons.append(_compared(evidence, "now", now, sample.available))
    return quality


def agreement(first: Instances, second: Instances) -> float | None:
    """Return the mean mask IoU over the objects of both sides, 0 for unmatched ones; None without objects."""
    ious = [
        pair.iou if pair.first is not None and pair.second is not None else 0.0
        for pair in match(first, second, min_iou=0.0, min_iou_swapped=None)
    ]
    return sum(ious) / len(ious) if ious else None


def attention_labels(store: RunStore, image_id: str, method: str | None) -> Instances:
    """Return an image's attention labels of one provenance, or its newest for None; empty if it has none."""
    return _newest(store, image_id, "attention", method)


def evidence_labels(store: RunStore, survey: Survey, evidence: Evidence, image_id: str) -> Instances:
    """Return what attention labels are compared with: the human labels or the newest model labels."""
    method = survey.notes[image_id].model_method if evidence == "model" else None
    return _newest(store, image_id, evidence, method)


def _newest(store: RunStore, image_id: str, source: str, method: str | None) -> Instances:
    found = list(store.labels(source, method, image_id=image_id))
    return found[-1].instances if found else Instances(store.record(image_id).size_wh, (), (), np.zeros(0))


class _Draw:
    """Draws at most `MOST_IMAGES` of many images: the same ones, in whatever order they come."""

    def __init__(self) -> None:
        self.available = 0
        self._kept: list[tuple[int, str]] = []

    def add(self, image_id: str) -> None:
        self.available += 1
        place = -int(content_id(SAMPLE_SEED, image_id), 16)
        if len(self._kept) < MOST_IMAGES:
            heapq.heappush(self._kept, (place, image_id))
        else:
            heapq.heappushpop(self._kept, (place, image_id))

    @property
    def image_ids(self) -> list[str]:
        return sorted(image_id for _, image_id in self._kept)


def _samples(survey: Survey, first: str | None) -> dict[Evidence, _Sample]:
    draws: dict[tuple[Evidence, bool], _Draw] = defaultdict(_Draw)
    for image_id, note in survey.notes.items():
        if image_id in survey.human:
            evidence: Evidence = "human"
        elif note.model is not None and image_id not in survey.decided:
            evidence = "model"
        else:
            continue
        if note.attention is not None:
            draws[evidence, False].add(image_id)
            if note.first and note.method != first:  # it has labels of both kinds
                draws[evidence, True].add(image_id)
    samples: dict[Evidence, _Sample] = {}
    for evidence in get_args(Evidence):
        both = (evidence, True) in draws
        drawn = draws[evidence, both]
        samples[evidence] = _Sample(drawn.image_ids, drawn.available, both)
    return samples


def _compared(evidence: Evidence, when: When, pairs: Sequence[Pair], available: int) -> Comparison:
    return Comparison(
        evidence, when, len(pairs), available, label_quality(pairs), reliability(pairs, bins=SCORE_BINS)
    )
