"""The stage that labels images with a detector. Does not know how the detector was trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice

import numpy as np

from diffugen.config.labelling import by_detector
from diffugen.config.sections import DetectorSettings
from diffugen.records import Instances, LabelSet, Prompt
from diffugen.run.results import Relabelled
from diffugen.run.rounds import OnProgress, Round, Run, stage
from diffugen.run.spool import ImageIds
from diffugen.stages.detector import OpenDetector, mapped_classes, open_detector, trained_on
from diffugen.stages.labellers import PackedDetector, Predictor

PREDICTED_AT_A_TIME = 16
"""Images in a batch; as many as a YOLO model is given at a time, so that none shares a call with others."""

CANDIDATE_CONFIDENCE = 0.05
"""From this confidence on, an object that is no label still counts for or against attention labels."""


@stage("relabel", Relabelled, kept="The labels saved so far are kept.")
def relabel(round: Round, on_progress: OnProgress, checkpoint: str, settings: DetectorSettings) -> Relabelled:
    """Label the images that no detector of the run was trained on and that this one has not labelled.

    Where it has labelled an image before, by the same settings, and another detector or other settings since,
    its labels are the newest again. Disagreements with labels that are no longer the newest are dropped. The
    user is told if it has made the labels too that its own will be compared with.

    Args:
        round: The round that the labels are made in.
        on_progress: Called with images labelled and images to label.
        checkpoint: The detector.
        settings: Device, image size, least confidence, and ``class_map``. If several classes of the run map
            to one of the detector's, the image's prompt decides: with ``{sedan: car, suv: car}``, a car is a
            sedan where the prompt names a sedan.

    Raises:
        DiffugenError: The checkpoint or an image cannot be read.
    """
    round.run.executor.open()
    store, class_names = round.store, round.run.class_names
    if checkpoint == settings.checkpoint and by_detector(store.latest_method("attention")):
        round.run.notify_once(
            f"relabel: {checkpoint} has made the labels too (labels.source is detector), so where both sides "
            "agree, nothing is confirmed; they differ only in the confidence that counts"
        )
    detector = open_detector(round.run, checkpoint, settings)
    meanings = mapped_classes(detector.detector.class_names, class_names, settings.class_map)
    method = detector.method(meanings, settings.confidence)
    seen = trained_on(store)
    missing = ImageIds(one for one in store.label_ids_missing("model", method) if one not in seen)
    # A disagreement names an object by its number, which means another object among other labels.
    store.drop_disagreements(chain(missing, store.superseded("model", method)))
    store.renew_labels("model", method)
    least = min(CANDIDATE_CONFIDENCE, settings.confidence)
    for ids, found in predicted(round.run, detector, missing, least, on_progress):
        if meanings:
            found = [
                as_prompted(instances, store.record(image_id).prompt, meanings, class_names)
                for image_id, instances in zip(ids, found, strict=True)
            ]
        store.put_labels(
            LabelSet(image_id, source, part, method, round.number)
            for image_id, instances in zip(ids, found, strict=True)
            for source, part in zip(
                ("model", "candidate"), sure_and_unsure(instances, settings.confidence), strict=True
            )
        )
    return Relabelled(method, checkpoint, *store.count_labels("model", method))


def sure_and_unsure(instances: Instances, confidence: float) -> tuple[Instances, Instances]:
    """Return the instances from a confidence on, and the others."""
    sure = instances.scores >= confidence
    return instances.take(np.flatnonzero(sure).tolist()), instances.take(np.flatnonzero(~sure).tolist())


def predicted(
    run: Run, detector: OpenDetector, ids: Sequence[str], confidence: float, on_progress: OnProgress
) -> Iterator[tuple[Sequence[str], list[Instances]]]:
    """Yield the ids of some images of a run at a time, with what a detector finds in them.

    Args:
        run: The run.
        detector: The detector.
        ids: The images.
        confidence: Minimum confidence of an object.
        on_progress: Called with images done and all of them, after the caller has taken what was yielded.
    """
    on_progress(0, len(ids))
    if not ids:
        return

    def parts() -> Iterator[Sequence[str]]:
        for first in range(0, len(ids), PREDICTED_AT_A_TIME):
            yield ids[first : first + PREDICTED_AT_A_TIME]

    executor = run.executor
    device = executor.worker_device(detector.settings.device)
    work = Predictor(PackedDetector.of(detector, device) if executor.spreads else detector, confidence)
    batches = ([run.store.image(image_id) for image_id in part] for part in parts())
    found = executor.spread(work, batches, run.notify)
    for done, part in enumerate(parts(), start=1):
        yield part, list(islice(found, len(part)))
        on_progress(min(done * PREDICTED_AT_A_TIME, len(ids)), len(ids))


def as_prompted(
    instances: Instances, prompt: Prompt, meanings: Mapping[str, str], class_names: Sequence[str]
) -> Instances:
    """Rename instances to the run's classes that the prompt names and their classes may stand for."""
    named = {phrase.class_name for phrase in prompt.phrases}
    means: dict[str, str] = {}
    for theirs in set(instances.class_names):
        meant = [name for name, other in meanings.items() if other == theirs and name in named]
        # A class of the run keeps its own objects where it cannot be told which of the named ones an object
        # is.
        if meant and not (theirs in class_names and (len(meant) > 1 or theirs in named)):
            means[theirs] = meant[0]
    return instances.renamed(means)
