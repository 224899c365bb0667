"""How far the attention labels can be trusted: compared with people's labels and with model labels.

Looks at a seeded sample of a run; knows which label sets to compare, not how (`diffugen.comparison.metrics`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field

import numpy as np

from diffugen.comparison.matching import match
from diffugen.comparison.metrics import LabelQuality, Pair, Reliability, label_quality, reliability
from diffugen.records import Instances
from diffugen.report.facts import RunFacts
from diffugen.report.survey import Survey, first_method
from diffugen.run.store import RunStore

MOST_IMAGES = 1000
"""Images of each kind of evidence that quality is measured on."""

SAMPLE_SEED = 0

SCORE_BINS = 20
"""Bins of the reliability curve: scores of one run lie close together."""


@dataclass(frozen=True)
class Comparison:
    """Attention labels compared with one kind of evidence.

    Attributes:
        evidence: ``human`` or ``model``.
        when: ``first`` for the labels by the run's first settings, ``now`` for the newest.
        images: Images compared.
        available: Images that could have been.
        quality: IoU by class.
        reliability: What the score says about the IoU.
    """

    evidence: str
    when: str
    images: int
    available: int
    quality: LabelQuality
    reliability: Reliability


@dataclass
class Quality:
    """All comparisons of a run, and how well each compared image agrees.

    Attributes:
        comparisons: First human, then model; of each, first the old labels, then the new.
        agreement: Of each compared image that has an object on either side: the evidence, the mean IoU over
            the objects of both sides, in [0, 1], and the image id.
    """

    comparisons: list[Comparison] = field(default_factory=list)
    agreement: list[tuple[str, float, str]] = field(default_factory=list)

    def of(self, evidence: str, when: str) -> Comparison | None:
        """Return one comparison, or None."""
        found = (one for one in self.comparisons if (one.evidence, one.when) == (evidence, when))
        return next(found, None)


def measure_quality(
    store: RunStore, facts: RunFacts, survey: Survey, on_progress: Callable[[int, int], None]
) -> Quality:
    """Compare attention labels with the evidence there is.

    Where images have labels by the first label settings and newer ones, both are compared on those images
    alone, so that the two numbers say what the settings changed and nothing else.
    """
    notes = survey.notes
    ids = {
        "human": sorted(one for one in survey.human if one in notes and notes[one].attention is not None),
        "model": sorted(
            one
            for one, note in notes.items()
            if note.attention is not None and note.model is not None and one not in survey.decided
        ),
    }
    first = first_method(facts)
    quality = Quality()
    samples = {}
    for evidence, known in ids.items():
        twice = [one for one in known if notes[one].first and notes[one].method != first]
        chosen = twice or known
        samples[evidence] = (_sample(chosen), len(chosen), bool(twice))
    total, done = sum(len(sample) for sample, _, _ in samples.values()), 0
    for evidence, (sample, available, both) in samples.items():
        now: list[Pair] = []
        before: list[Pair] = []
        for image_id in sample:
            truth = _only(evidence_labels(store, survey, evidence, image_id), survey.classes)
            now.append((truth, attention_labels(store, image_id, notes[image_id].method)))
            if both:
                before.append((truth, attention_labels(store, image_id, first)))
            value = agreement(*now[-1])
            if value is not None:
                quality.agreement.append((evidence, value, image_id))
            done += 1
            on_progress(done, total)
        for when, pairs in (("first", before), ("now", now)):
            if pairs:
                quality.comparisons.append(_compared(evidence, when, pairs, available))
    return quality


def agreement(first: Instances, second: Instances) -> float | None:
    """Return the mean mask IoU over the objects of both sides, those without a partner counting 0; None
    without objects.
    """
    ious = [
        pair.iou if pair.first is not None and pair.second is not None else 0.0
        for pair in match(first, second, min_iou=0.0, min_iou_swapped=None)
    ]
    return sum(ious) / len(ious) if ious else None


def attention_labels(store: RunStore, image_id: str, method: str | None) -> Instances:
    """Return an image's attention labels of one provenance, the newest for None; none where there are
    none.
    """
    size_wh = store.record(image_id).size_wh
    found = list(store.labels("attention", method, image_id=image_id))
    return found[-1].instances if found else Instances(size_wh, (), (), np.zeros(0))


def evidence_labels(store: RunStore, survey: Survey, evidence: str, image_id: str) -> Instances:
    """Return what attention labels are compared with: an image's human labels, or its newest model labels."""
    method = survey.notes[image_id].model_method if evidence == "model" else None
    found = list(store.labels(evidence, method, image_id=image_id))
    return found[-1].instances if found else Instances(store.record(image_id).size_wh, (), (), np.zeros(0))


def _only(instances: Instances, classes: Container[str]) -> Instances:
    """Leave out what no prompt names: a detector may know more classes than the run is about."""
    keep = [index for index, name in enumerate(instances.class_names) if name in classes]
    return Instances(
        instances.size_wh,
        tuple(instances.class_names[index] for index in keep),
        tuple(instances.rles[index] for index in keep),
        instances.scores[keep],
    )


def _compared(evidence: str, when: str, pairs: Sequence[Pair], available: int) -> Comparison:
    return Comparison(
        evidence, when, len(pairs), available, label_quality(pairs), reliability(pairs, bins=SCORE_BINS)
    )


def _sample(ids: list[str]) -> list[str]:
    return sorted(random.Random(SAMPLE_SEED).sample(ids, min(MOST_IMAGES, len(ids))))
