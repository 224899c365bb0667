"""One pass over every image of a run: what each label source found, and what people decided.

Streams the ledger, and keeps one small note of each image on disk. Reads no pixels.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from diffugen.records import ImageRecord
from diffugen.report.facts import RunFacts
from diffugen.review.queue import Queue
from diffugen.run.spool import Spool
from diffugen.run.store import RunStore

FEWEST = 20
"""Attribute values with fewer images are not judged."""

NOTABLE = 0.05
"""Smaller gaps between an attribute value and the whole run are not reported."""


@dataclass(frozen=True, slots=True)
class Note:
    """What the label sets of one image hold.

    Attributes:
        attention: Classes of its newest attention labels; None if it has none.
        method: Provenance of these labels.
        score: Mean score of these labels; None without objects.
        first: Whether it has labels made with the run's first label settings.
        model: Classes of its newest model labels; None if it has none.
        model_method: Provenance of these labels.
        contested: Whether it has a disagreement.
    """

    attention: frozenset[str] | None = None
    method: str = ""
    score: float | None = None
    first: bool = False
    model: frozenset[str] | None = None
    model_method: str = ""
    contested: bool = False


@dataclass(slots=True)
class Cover:
    """Counts over the images that share a value of an attribute.

    Attributes:
        images: All of them.
        labelled: Images with attention labels.
        found: Labelled images in which attention found every prompted class.
        scored: Images with a mean score.
        score_sum: Sum of these means.
        relabelled: Images with model labels.
        seen: Relabelled images in which the detector found every prompted class.
        contested: Relabelled images with a disagreement.
    """

    images: int = 0
    labelled: int = 0
    found: int = 0
    scored: int = 0
    score_sum: float = 0.0
    relabelled: int = 0
    seen: int = 0
    contested: int = 0

    def add(self, prompted: frozenset[str], note: Note) -> None:
        """Count one image."""
        self.images += 1
        if note.attention is not None:
            self.labelled += 1
            self.found += prompted <= note.attention
        if note.score is not None:
            self.scored += 1
            self.score_sum += note.score
        if note.model is not None:
            self.relabelled += 1
            self.seen += prompted <= note.model
            self.contested += note.contested

    @property
    def found_frac(self) -> float | None:
        """Share of the labelled images in which attention found every prompted class."""
        return self.found / self.labelled if self.labelled else None

    @property
    def score(self) -> float | None:
        """Mean score of the attention labels; every image counts once."""
        return self.score_sum / self.scored if self.scored else None

    @property
    def seen_frac(self) -> float | None:
        """Share of the relabelled images in which the detector found every prompted class."""
        return self.seen / self.relabelled if self.relabelled else None

    @property
    def agreed_frac(self) -> float | None:
        """Share of the relabelled images without a disagreement."""
        return 1 - self.contested / self.relabelled if self.relabelled else None


@dataclass(frozen=True)
class Gap:
    """An attribute value whose images do worse than the whole run.

    Attributes:
        name: Attribute and value.
        images: Images that the measure is a mean over.
        value: Their measure.
        whole: The measure of the whole run.
    """

    name: str
    images: int
    value: float
    whole: float


@dataclass
class Survey:
    """The result of one pass over every image.

    Attributes:
        notes: By image id, for images with any label.
        classes: Prompted classes in the order in which they first appear.
        attributes: From an attribute and its value to counts.
        overall: The same counts over all images.
        human: Ids of images with human labels.
        decided: Ids of images with a decision.
        verdicts: By round, how often each verdict was given; only the newest decision of an image counts.
    """

    notes: Spool[Note] = field(default_factory=Spool)
    classes: dict[str, None] = field(default_factory=dict)
    attributes: dict[str, dict[str, Cover]] = field(default_factory=dict)
    overall: Cover = field(default_factory=Cover)
    human: set[str] = field(default_factory=set)
    decided: set[str] = field(default_factory=set)
    verdicts: dict[int, Counter[str]] = field(default_factory=dict)

    def note(self, image_id: str, **values: Any) -> None:
        """Change values in the note of an image; it is made if there is none."""
        self.notes.put(image_id, replace(self.notes.get(image_id) or Note(), **values))


def survey_run(store: RunStore, facts: RunFacts, queue: Queue) -> Survey:
    """Look at every image of a run once."""
    survey = Survey()
    _note_labels(store, facts, survey)
    for decision in queue.decisions.values():
        survey.decided.add(decision.image_id)
        survey.verdicts.setdefault(decision.round, Counter())[decision.verdict] += 1
        if decision.instances is not None:
            survey.human.add(decision.image_id)
    for round in store.count_contested():
        for image_id in store.contested_ids(round):
            survey.note(image_id, contested=True)
    for record in store.records():
        _cover(record, survey)
    return survey


def _note_labels(store: RunStore, facts: RunFacts, survey: Survey) -> None:
    for labels in store.labels("attention"):
        values: dict[str, Any] = {
            "attention": frozenset(labels.instances.class_names),
            "method": labels.method,
            "score": float(labels.instances.scores.mean()) if len(labels.instances) else None,
        }
        if labels.method == facts.first_method:
            values["first"] = True
        survey.note(labels.image_id, **values)
    # The relabel stage skips images that a detector of the run was trained on, so all of these are unseen.
    for labels in store.latest_labels("model"):
        found = frozenset(labels.instances.class_names)
        survey.note(labels.image_id, model=found, model_method=labels.method)


def _cover(record: ImageRecord, survey: Survey) -> None:
    prompted = [phrase.class_name for phrase in record.prompt.phrases if phrase.class_name is not None]
    survey.classes.update(dict.fromkeys(prompted))
    note = survey.notes.get(record.id) or Note()
    survey.overall.add(frozenset(prompted), note)
    for name, value in record.prompt.attributes.items():
        survey.attributes.setdefault(name, {}).setdefault(value, Cover()).add(frozenset(prompted), note)


# Each measure of Cover, with the number of images that it is a mean over.
_MEASURES: Mapping[str, Callable[[Cover], tuple[float | None, int]]] = {
    "agreed_frac": lambda cover: (cover.agreed_frac, cover.relabelled),
    "seen_frac": lambda cover: (cover.seen_frac, cover.relabelled),
    "score": lambda cover: (cover.score, cover.scored),
    "found_frac": lambda cover: (cover.found_frac, cover.labelled),
}


def attribute_gaps(survey: Survey) -> dict[str, Gap]:
    """Return, for each measure of `Cover`, the attribute value that falls farthest below the whole run.

    Every gap must be at least `NOTABLE`; a gap in a share must also be at least two standard errors, so that
    small groups do not stand out by chance.

    Returns:
        From ``agreed_frac``, ``seen_frac``, ``score`` and ``found_frac`` to the gap; without the measures
        that have none.
    """
    gaps = {}
    for measure, measured in _MEASURES.items():
        whole, _ = measured(survey.overall)
        found = []
        for name, covers in survey.attributes.items():
            for value, cover in covers.items():
                mean, images = measured(cover)
                if mean is not None and whole is not None:
                    found.append(Gap(f"{name} {value}", images, mean, whole))
        notable = [gap for gap in found if _stands_out(gap, is_share=measure != "score")]
        if notable:
            gaps[measure] = min(notable, key=lambda gap: (gap.value, gap.name))
    return gaps


def _stands_out(gap: Gap, is_share: bool) -> bool:
    spread = math.sqrt(gap.whole * (1 - gap.whole) / gap.images) if is_share else 0.0
    return gap.images >= FEWEST and gap.whole - gap.value >= max(NOTABLE, 2 * spread)
