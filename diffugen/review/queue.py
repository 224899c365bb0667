"""The review queue: images on which the label sources disagree, worst first, with the labels compared.

Among them are *audits*: a few images, drawn at random, on which both sources agree. They alone can tell how
often both are wrong together, which calibrates what agreement is worth and tunes the labels.

Reads a run; knows neither the App nor the page that shows it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest

from diffugen.records import KINDS, OPEN, Decision, Disagreement, ImageRecord, Instances, LabelSet, content_id
from diffugen.run.results import Compared, Labelled
from diffugen.run.store import RunStore
from diffugen.run.votes import newest_votes, settled

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
        return compared_method(self.store)

    @property
    def waiting(self) -> list[str]:
        """The images of the queue without a decision, in its order."""
        return [image_id for image_id in self.disagreements if image_id not in self.decisions]

    def entry(self, image_id: str) -> Entry:
        """Return everything about an image that a reviewer sees; it may lie outside the queue.

        Raises:
            StoreError: The run has no such image.
        """
        record = self.store.record(image_id)
        attention = attention_labels(self.store, image_id, self.method)
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
        found = _newest_labels(self.store, image_id, source, method)
        if found is None or source != "model" or self.class_names is None:
            return found
        return replace(found, instances=found.instances.of_classes(self.class_names))


def _newest_labels(store: RunStore, image_id: str, source: str, method: str | None = None) -> LabelSet | None:
    return next(reversed(list(store.labels(source, method, image_id=image_id))), None)


def attention_labels(store: RunStore, image_id: str, method: str | None) -> LabelSet | None:
    """Return an image's attention labels of a provenance, or else its newest; None if it has none."""
    of_method = _newest_labels(store, image_id, "attention", method)
    return of_method or _newest_labels(store, image_id, "attention")


def count_queue(store: RunStore) -> QueueCounts:
    """Return the numbers of the review queue of a run."""
    kinds = Counter[str]()
    for one in store.summary().rounds.values():
        kinds.update(one.disagreements)
    contested, audits = store.count_contested(), audits_of(store)
    audits_decided = len(decided_audits(store))
    decided = store.count_contested_decided() + audits_decided
    return QueueCounts(
        disagreements=kinds.total(),
        kinds={kind: kinds[kind] for kind in KINDS},
        images=sum(contested.values()) + len(audits),
        audits=len(audits),
        decided=decided,
        audits_decided=audits_decided,
        voted=_count_voted(store, frozenset(audits)) if store.consensus > 1 else 0,
    )


def _count_voted(store: RunStore, audits: Collection[str]) -> int:
    decided = {one.image_id for one in store.decisions()}
    return sum(
        image_id not in decided
        and any(vote.verdict != OPEN for vote in votes)
        and (image_id in audits or next(store.disagreements(image_id=image_id), None) is not None)
        for image_id, votes in newest_votes(store.votes()).items()
    )


def audits_of(store: RunStore) -> list[str]:
    """Return the images of the review queue on which the sources agree; the same ones whenever it is read."""
    rounds = sorted(store.count_contested().items())
    return store.ledger.once(
        "audits", lambda: [one for number, count in rounds for one in _audits_of(store, number, count)]
    )


def decided_audits(store: RunStore) -> list[str]:
    """Return the audits that are decided."""
    return store.ledger.once("decided audits", lambda: store.decided_of(audits_of(store)))


def _audits_of(store: RunStore, number: int, contested: int) -> list[str]:
    share = _audits(store)
    return store.draw_agreed(number, max(1, round(share * contested))) if share and contested else []


class _Found(Mapping[str, tuple[Disagreement, ...]]):
    """From the images of the queue, in its order, to their disagreements, which are read when asked for."""

    def __init__(self, store: RunStore, order: Iterable[str]) -> None:
        self._store, self._order = store, dict.fromkeys(order)

    def __getitem__(self, image_id: str) -> tuple[Disagreement, ...]:
        self._order[image_id]
        return tuple(self._store.disagreements(image_id=image_id))

    def __iter__(self) -> Iterator[str]:
        return iter(self._order)

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._order


def read_queue(store: RunStore) -> Queue:
    """Return the review queue of a run.

    The place of an image is that of its first disagreement, and the audits are spread evenly among them. The
    queues of several rounds are merged: the first image of each round, then the second of each, newest round
    first.
    """
    by_round = [
        _with_audits(store, number, store.contested_ids(number))
        for number in sorted(store.count_contested(), reverse=True)
    ]
    votes = newest_votes(store.votes())
    return Queue(
        store,
        _Found(store, (one for places in zip_longest(*by_round) for one in places if one is not None)),
        settled((one for of_image in votes.values() for one in of_image), store.consensus),
        votes,
        configured_classes(store) or None,
    )


def _with_audits(store: RunStore, number: int, queue: list[str]) -> list[str]:
    """Return the queue of a round with its audits."""
    audits = _audits_of(store, number, len(queue))
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


def compared_method(store: RunStore) -> str | None:
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
