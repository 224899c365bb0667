"""The stage that compares attention labels with model labels and fills the review queue."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from diffugen.comparison.acquisition import Ranker
from diffugen.comparison.calibration import Calibration, Outcome, calibrate, reliability
from diffugen.comparison.disagreement import compare as compare_labels
from diffugen.comparison.verdicts import outcomes
from diffugen.config.sections import DisagreementSettings, ReviewOrder
from diffugen.labels.features import features_of
from diffugen.labels.heatmaps import doubt
from diffugen.records import KINDS, Instances, LabelSet
from diffugen.run.results import Compared
from diffugen.run.rounds import OnProgress, Round, Run, stage
from diffugen.run.store import RunStore

REPORTED_EVERY = 200


@stage("compare", Compared)
def compare(
    round: Round,
    on_progress: OnProgress,
    method: str,
    settings: DisagreementSettings,
    order: ReviewOrder = "severity",
) -> Compared:
    """Compare the labels of all images that have both kinds, and keep the review queue of each round.

    Args:
        round: The round that compares.
        on_progress: Called with images compared and images to compare.
        method: Provenance of the attention labels.
        settings: When two labels contradict each other.
        order: Which images a person reviews first; see `diffugen.comparison.acquisition`.
    """
    store, summary = round.store, round.store.summary()
    decided = decided_outcomes(round.run, method, settings)
    learned = calibrate(one for made in decided for one in made)
    total = sum(one.label_sets.get("model", 0) for one in summary.rounds.values())
    decoder = round.taught_decoder()
    if order == "doubt" and decoder is None:
        order = "severity"
        round.run.notify_once("review.order: severity, because no decoder is in use whose doubt could count")

    def doubt_of(image_id: str) -> float:
        if decoder is None or order != "doubt":
            return 0.0
        return doubt(store.taught(decoder.id, image_id))

    ranker = Ranker(order, round.run.seed)
    kinds = Counter[str]()
    images = agreements = 0
    for pair in label_pairs(store, method, round.run.class_names):
        found = compare_labels(
            *pair, min_iou=settings.min_iou, good_iou=settings.good_iou, calibration=learned
        )
        images, agreements = images + 1, agreements + len(found.agreements)
        if found.disagreements:
            record = store.record(pair.image_id)
            ranker.add(record.round, found.disagreements, record.family, doubt_of(record.id))
            kinds.update(one.kind for one in found.disagreements)
        if images % REPORTED_EVERY == 0:
            on_progress(images, max(images, total))
    on_progress(images, images)
    for number in summary.rounds:
        queue = ranker.queue(number, lambda image_id: features_of(store.image(image_id)))
        store.put_disagreements(number, queue, method)
    return Compared(
        images,
        agreements,
        {kind: kinds[kind] for kind in KINDS},
        sum(learned.outcomes.values()),
        tuple(reliability(decided)),
    )


def learned_calibration(run: Run, method: str, settings: DisagreementSettings) -> Calibration:
    """Return what the decisions so far say that severities are worth; the arguments are those below."""
    return calibrate(one for made in decided_outcomes(run, method, settings) for one in made)


def decided_outcomes(run: Run, method: str, settings: DisagreementSettings) -> list[list[Outcome]]:
    """Return, for each image that was decided and compared, what turned out about its labels.

    Args:
        run: The run.
        method: Provenance of the attention labels.
        settings: When two labels contradict each other.
    """
    store, found = run.store, list[list[Outcome]]()
    for decision in store.decisions():
        pair = label_pair(store, decision.image_id, method, run.class_names)
        if pair is None or decision.instances is None:
            continue
        human = decision.instances.of_classes(run.class_names)
        uncalibrated = compare_labels(*pair, min_iou=settings.min_iou, good_iou=settings.good_iou)
        made = outcomes(uncalibrated, pair.attention, pair.model, human, good_iou=settings.good_iou)
        found.append(list(made))
    return found


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
        pair = _pair(store, labels, method, class_names)
        if pair is not None:
            yield pair


def label_pair(store: RunStore, image_id: str, method: str, class_names: Sequence[str]) -> LabelPair | None:
    """Return the labels of one image, as `label_pairs` does; None if it does not have both kinds."""
    labels = next(store.latest_labels("model", image_id=image_id), None)
    return None if labels is None else _pair(store, labels, method, class_names)


def _pair(store: RunStore, labels: LabelSet, method: str, class_names: Sequence[str]) -> LabelPair | None:
    attention = next(store.labels("attention", method, image_id=labels.image_id), None)
    if attention is None:
        return None
    model = labels.instances.of_classes(class_names)
    suspected = next(store.labels("candidate", labels.method, image_id=labels.image_id), None)
    candidates = model.take([]) if suspected is None else suspected.instances.of_classes(class_names)
    return LabelPair(labels.image_id, attention.instances, model, candidates)
