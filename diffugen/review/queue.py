"""The review queue: images on which the label sources disagree, worst first, with the labels compared.

Among them are *audits*: a few images, drawn at random, on which both sources agree. They alone can tell how
often both are wrong together, which calibrates what agreement is worth and tunes the labels.

Reads a run; knows neither the App nor the page that shows it.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest

from diffugen.records import KINDS, OPEN, Decision, Disagreement, ImageRecord, Instances, LabelSet, content_id
from diffugen.run.results import Compared, Labelled
from diffugen.run.store import RunStore
from diffugen.run.votes import newest_votes

AUDIT = "audit"
"""What a queued image is called on which the sources agree, in place of a kind of disagreement."""


@dataclass(frozen=True)
class Entry:
    """One image of the review queue.

    Attributes:
        record: The image.
        disagreements: Its disagreements, in the order of the queue; empty if the sources agree.
        attention: The attention labels that were compared; None if it has none.
        model: The model labels that were compared; None if it has none.
        decision: The decision about it that counts; None if it is not decided.
        votes: The newest decision of each reviewer, ``open`` ones too, oldest first.
    """

    record: ImageRecord
    disagreements: tuple[Disagreement, ...]
    attention: LabelSet | None
    model: LabelSet | None
    decision: Decision | None
    votes: tuple[Decision, ...] = ()

    @property
    def severity(self) -> float | None:
        """Severity of the worst disagreement, in [0, 1]; None if there is none."""
        return max((one.severity for one in self.disagreements), default=None)

    @property
    def kinds(self) -> list[str]:
        """Kinds of the disagreements, each once, in the order of the queue."""
        return list(dict.fromkeys(one.kind for one in self.disagreements))


@dataclass(frozen=True)
class QueueCounts:
    """The numbers of a review queue, the same wherever they are shown.

    A *disagreement* is one contradiction about one object. The *queue* is the images to review: those with a
    disagreement, and the audits. An image of the queue *waits* while no decision about it counts; of several
    decisions, only the newest does, or the one that enough reviewers agree on.

    Attributes:
        disagreements: Disagreements on all images of the queue, decided or not.
        kinds: The same by kind.
        images: Images of the queue.
        audits: Those of them on which the sources agree.
        decided: Those of them with a decision.
        audits_decided: Audits with a decision.
        voted: Images that wait although a reviewer has decided them: others must agree.
    """

    disagreements: int
    kinds: Mapping[str, int]
    images: int
    audits: int
    decided: int
    audits_decided: int
    voted: int

    @property
    def waiting(self) -> int:
        """Images of the queue without a decision."""
        return self.images - self.decided


@dataclass(frozen=True)
class Queue:
    """The review queue of a run, and what is needed to show its images; made by `read_queue`.

    Attributes:
        store: The run.
        disagreements: From an image id to its disagreements, none for an audit; images in the order of the
            queue.
        decisions: From an image id to the decision about it that counts; only decided images.
        votes: From an image id to the newest decision of each reviewer, oldest first.
        class_names: Classes that count in model labels; None for all.
    """

    store: RunStore
    disagreements: Mapping[str, tuple[Disagreement, ...]]
    decisions: Mapping[str, Decision]
    votes: Mapping[str, tuple[Decision, ...]]
    class_names: Collection[str] | None

    @cached_property
    def method(self) -> str | None:
        """Provenance of the attention labels that were compared; None for each image's newest.

        Raises:
            StoreError: The result of a comparison cannot be read.
        """
        return _compared_method(self.store)

    @property
    def audits(self) -> list[str]:
        """The images of the queue on which the sources agree."""
        return [image_id for image_id, found in self.disagreements.items() if not found]

    @property
    def waiting(self) -> list[str]:
        """The images of the queue without a decision, in its order."""
        return [image_id for image_id in self.disagreements if image_id not in self.decisions]

    @property
    def counts(self) -> QueueCounts:
        """The numbers of the queue."""
        kinds = Counter(one.kind for found in self.disagreements.values() for one in found)
        audits, waiting = self.audits, self.waiting
        return QueueCounts(
            disagreements=kinds.total(),
            kinds={kind: kinds[kind] for kind in KINDS},
            images=len(self.disagreements),
            audits=len(audits),
            decided=len(self.disagreements) - len(waiting),
            audits_decided=sum(image_id in self.decisions for image_id in audits),
            voted=sum(
                any(vote.verdict != OPEN for vote in self.votes.get(image_id, ())) for image_id in waiting
            )
            if self.store.consensus > 1
            else 0,
        )

    def entry(self, image_id: str) -> Entry:
        """Return everything about an image that a reviewer sees; it may lie outside the queue.

        Raises:
            StoreError: The run has no such image.
        """
        record = self.store.record(image_id)
        attention = self.labels(image_id, "attention", self.method) or self.labels(image_id, "attention")
        model = self.labels(image_id, "model")
        found = self.disagreements.get(image_id, ())
        votes = self.votes.get(image_id, ())
        return Entry(record, found, attention, model, self.decisions.get(image_id), votes)

    def labels(self, image_id: str, source: str, method: str | None = None) -> LabelSet | None:
        """Return the newest labels of an image, of one source and provenance; None if it has none.

        Args:
            image_id: The image.
            source: Source of the labels.
            method: Provenance of the labels; None for any.
        """
        found = list(self.store.labels(source, method, image_id=image_id))
        if not found:
            return None
        if source != "model" or self.class_names is None:
            return found[-1]
        return replace(found[-1], instances=found[-1].instances.of_classes(self.class_names))


def count_queue(store: RunStore) -> QueueCounts:
    """Return the numbers of the review queue of a run."""
    return read_queue(store).counts


def read_queue(store: RunStore) -> Queue:
    """Return the review queue of a run.

    The place of an image is that of its first disagreement, and the audits are spread evenly among them. The
    queues of several rounds are merged: the first image of each round, then the second of each, newest round
    first.
    """
    found: dict[str, list[Disagreement]] = {}
    by_round: list[list[str]] = []
    for number in sorted(store.summary().rounds, reverse=True):
        ids: dict[str, None] = {}
        for one in store.disagreements(number):
            found.setdefault(one.image_id, []).append(one)
            ids[one.image_id] = None
        by_round.append(_with_audits(store, number, list(ids)))
    order = [image_id for places in zip_longest(*by_round) for image_id in places if image_id is not None]
    return Queue(
        store,
        {image_id: tuple(found.get(image_id, ())) for image_id in order},
        {one.image_id: one for one in store.decisions()},
        newest_votes(store.votes()),
        configured_classes(store) or None,
    )


def _with_audits(store: RunStore, number: int, queue: list[str]) -> list[str]:
    """Return the queue of a round with its audits; the same images whenever it is read."""
    share = _audits(store)
    wanted = max(1, round(share * len(queue))) if share and queue else 0
    audits = heapq.nsmallest(wanted, store.agreed_ids(number), key=lambda one: content_id("audit", one))
    if not audits:
        return queue
    places = [((place + 1) / len(queue), 0, one) for place, one in enumerate(queue)]
    places += [((place + 0.5) / len(audits), 1, one) for place, one in enumerate(audits)]
    return [one for _, _, one in sorted(places)]


def _audits(store: RunStore) -> float:
    """Return the configured share of audits; 0 for a run of a version without any."""
    review = (store.config or {}).get("review")
    share = review.get("audits") if isinstance(review, dict) else None
    return float(share) if isinstance(share, (int, float)) else 0.0


def configured_classes(store: RunStore) -> list[str]:
    """Return the classes of the run's configuration, whichever version made it; empty if it has none."""
    prompts = (store.config or {}).get("prompts")
    classes = prompts.get("classes") if isinstance(prompts, dict) else None
    return list(classes) if isinstance(classes, dict) else []


def _compared_method(store: RunStore) -> str | None:
    """Return the provenance of the attention labels in the newest comparison; older runs kept it by round."""
    if store.compared_method is not None:
        return store.compared_method
    for number in sorted(store.summary().rounds, reverse=True):
        if store.result(number, "compare", Compared) is not None:
            labelled = store.result(number, "label", Labelled)
            return None if labelled is None else labelled.method
    return None


def run_name(store: RunStore) -> str:
    """Return the name of a run: that of its folder."""
    return store.folder.resolve().name


def fingerprint(instances: Instances) -> str:
    """Return 16 hex digits that depend on classes, masks and scores, but not on the score terms."""
    counts = [rle["counts"] for rle in instances.rles]
    return content_id(list(instances.size_wh), list(instances.class_names), counts, instances.scores.tolist())


def same_outcome(first: Decision, second: Decision) -> bool:
    """Return whether two decisions about an image give it the same labels, or both reject it.

    Two that leave the image open are the same if they say the same about its objects.
    """
    if OPEN in (first.verdict, second.verdict):
        return (first.verdict, first.judged) == (second.verdict, second.judged)
    if first.instances is None or second.instances is None:
        return first.instances is second.instances
    return fingerprint(first.instances) == fingerprint(second.instances)
