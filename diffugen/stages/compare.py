"""The stage that compares attention labels with model labels and fills the review queue."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from diffugen.comparison.disagreement import compare as compare_labels, rank
from diffugen.config.sections import DisagreementSettings
from diffugen.records import KINDS, Disagreement, Instances
from diffugen.run.results import Compared
from diffugen.run.rounds import OnProgress, Round, stage
from diffugen.run.store import RunStore

REPORTED_EVERY = 200


@stage("compare", Compared)
def compare(round: Round, on_progress: OnProgress, method: str, settings: DisagreementSettings) -> Compared:
    """Compare the labels of all images that have both kinds, and keep the review queue of each round.

    Args:
        round: The round that compares.
        on_progress: Called with images compared and images to compare.
        method: Provenance of the attention labels.
        settings: When two labels contradict each other.
    """
    store, summary = round.store, round.store.summary()
    total = sum(one.label_sets.get("model", 0) for one in summary.rounds.values())
    by_round: dict[int, list[Disagreement]] = {}
    families: dict[str, str] = {}
    images = agreements = 0
    for image_id, attention, model, candidates in label_pairs(store, method, round.run.class_names):
        found = compare_labels(
            image_id, attention, model, candidates, min_iou=settings.min_iou, good_iou=settings.good_iou
        )
        images, agreements = images + 1, agreements + len(found.agreements)
        if found.disagreements:
            record = store.record(image_id)
            families[image_id] = record.family
            by_round.setdefault(record.round, []).extend(found.disagreements)
        if images % REPORTED_EVERY == 0:
            on_progress(images, max(images, total))
    on_progress(images, images)
    for number in summary.rounds:
        queue = rank(by_round.get(number, []), families=families, balance_kinds=True)
        store.put_disagreements(number, queue, method)
    kinds = Counter(one.kind for queue in by_round.values() for one in queue)
    return Compared(images, agreements, {kind: kinds[kind] for kind in KINDS})


class LabelPair(NamedTuple):
    """The labels of an image that has both kinds.

    Attributes:
        image_id: The image.
        attention: Its attention labels.
        model: Its newest model labels.
        candidates: What that detector is not sure enough of to label.
    """

    image_id: str
    attention: Instances
    model: Instances
    candidates: Instances


def label_pairs(store: RunStore, method: str, class_names: Sequence[str]) -> Iterator[LabelPair]:
    """Yield the labels of each image that has both kinds, a few at a time.

    Args:
        store: The run.
        method: Provenance of the attention labels.
        class_names: Classes that count; model labels of other classes contradict nothing.
    """
    for labels in store.latest_labels("model"):
        attention = next(store.labels("attention", method, image_id=labels.image_id), None)
        if attention is None:
            continue
        model = labels.instances.of_classes(class_names)
        suspected = next(store.labels("candidate", labels.method, image_id=labels.image_id), None)
        candidates = model.take([]) if suspected is None else suspected.instances.of_classes(class_names)
        yield LabelPair(labels.image_id, attention.instances, model, candidates)
