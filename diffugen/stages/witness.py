"""Ask the detector that a run begins with about the classes that it knows. Does not know what for."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

from diffugen.config.labelling import Labelling, Source
from diffugen.errors import DiffugenError
from diffugen.labels.witness import Witness
from diffugen.records import LabelSet
from diffugen.run.rounds import OnProgress, Round, unseen
from diffugen.run.spool import ImageIds
from diffugen.run.store import RunStore
from diffugen.stages.detector import mapped_classes, open_detector
from diffugen.stages.relabel import as_prompted, predicted


def witnesses(
    round: Round, labelling: Labelling, image_ids: Iterable[str], on_progress: OnProgress = unseen
) -> Iterator[tuple[str, Witness]]:
    """Return images with what a labelling's detector finds in them; what it found once is kept in the run.

    All of them are looked at before the first is returned; what was found is then read one by one.

    Args:
        round: The round that asks.
        labelling: The labelling; without a detector, nothing is returned.
        image_ids: The images.
        on_progress: Called with images that the detector has seen and those that it has to see.

    Raises:
        DiffugenError: The checkpoint or an image cannot be read, or the detector does not know the classes
            that it has to label; see `source_mistake`.
    """
    settings, confidence = labelling.detector, labelling.settings.detector_confidence
    if settings is None:
        return iter(())
    run, store, ids = round.run, round.store, ImageIds(image_ids)
    detector = open_detector(run, settings.checkpoint, settings)
    meanings = mapped_classes(detector.detector.class_names, run.class_names, settings.class_map)
    known = frozenset(run.class_names) & {*detector.detector.class_names, *meanings}
    mistake = source_mistake(labelling.settings.source, settings.checkpoint, run.class_names, known)
    if mistake is not None:
        raise DiffugenError(mistake)
    method = detector.method(meanings, confidence)
    lacking = set(store.label_ids_missing("witness", method))
    missing = ImageIds(image_id for image_id in ids if image_id in lacking)
    for part, found in predicted(run, detector, missing, confidence, on_progress):
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
    return _kept(store, method, ids, known)


def _kept(
    store: RunStore, method: str, image_ids: Iterable[str], known: frozenset[str]
) -> Iterator[tuple[str, Witness]]:
    for image_id in image_ids:
        labels = next(iter(store.labels("witness", method, image_id=image_id)))
        yield image_id, Witness(labels.instances, known)


def source_mistake(
    source: Source, checkpoint: str, class_names: Sequence[str], known: Collection[str]
) -> str | None:
    """Return why a detector cannot be what ``labels.source`` says, and the way out; None if it can.

    Args:
        source: The setting.
        checkpoint: The detector.
        class_names: The run's classes.
        known: Those that the detector knows, under any name of the class map.
    """
    unknown = [name for name in class_names if name not in known]
    if source == "attention" or not unknown or (source == "both" and known):
        return None
    if known:
        lacks, other = f"does not know {', '.join(unknown)}", "both: attention labels what it does not know"
    else:
        lacks, other = f"knows none of the classes {', '.join(unknown)}", "attention"
    return (
        f"labels.source is {source}, but the detector {checkpoint} {lacks}; map classes to its names with "
        f"detector.class_map, or set labels.source to {other}"
    )
