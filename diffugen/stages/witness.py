"""Ask the detector that a run begins with about the classes that it knows. Does not know what for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from diffugen.config.sections import DetectorSettings
from diffugen.errors import DiffugenError
from diffugen.labels.witness import Witness
from diffugen.records import LabelSet
from diffugen.run.rounds import OnProgress, Round, unseen
from diffugen.stages.detector import mapped_classes, open_detector, unknown_classes
from diffugen.stages.relabel import as_prompted, predicted


def witnesses(
    round: Round,
    settings: DetectorSettings,
    confidence: float,
    image_ids: Iterable[str],
    on_progress: OnProgress = unseen,
) -> Iterator[tuple[str, Witness]]:
    """Yield images with what the configured detector finds in them; what it found once is kept in the run.

    Args:
        round: The round that asks.
        settings: The detector.
        confidence: Minimum confidence of an object, in [0, 1].
        image_ids: The images.
        on_progress: Called with images that the detector has seen and those that it has to see.

    Raises:
        DiffugenError: The checkpoint or an image cannot be read, or the detector knows no class of the run.
    """
    run, store, ids = round.run, round.store, list(image_ids)
    detector = open_detector(run, settings.checkpoint, settings)
    meanings = mapped_classes(detector.detector.class_names, run.class_names, settings.class_map)
    known = frozenset(run.class_names) - set(unknown_classes(run, settings.checkpoint, settings))
    if not known:
        raise DiffugenError(
            f"labels.witness is base, but the detector {settings.checkpoint} knows none of the classes "
            f"{', '.join(run.class_names)}; add classes that it knows to prompts.classes, map them to its "
            "names with detector.class_map, or set labels.witness to none"
        )
    method = detector.method(meanings, confidence)
    lacking = set(store.label_ids_missing("witness", method))
    missing = [image_id for image_id in ids if image_id in lacking]
    for part, found in predicted(store, detector, missing, confidence, on_progress):
        store.put_labels(
            LabelSet(
                image_id,
                "witness",
                as_prompted(instances, store.record(image_id).prompt, meanings, run.class_names),
                method,
                round.number,
            )
            for image_id, instances in zip(part, found, strict=True)
        )
    for image_id in ids:
        labels = next(iter(store.labels("witness", method, image_id=image_id)))
        yield image_id, Witness(labels.instances, known)
