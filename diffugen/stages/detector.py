"""What stages share about detectors: where a checkpoint lies, what its classes mean, its image size."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from diffugen.config.sections import DetectorSettings
from diffugen.errors import DiffugenError
from diffugen.records import content_id
from diffugen.run.rounds import Run
from diffugen.run.store import RunStore

if TYPE_CHECKING:
    from diffugen.detectors.yolo import YoloDetector

SAMPLED_IMAGES = 100
"""Images of a run whose sizes are looked at; the first ones, so that later rounds change nothing."""


def resolve_checkpoint(store: RunStore, checkpoint: str) -> Path | str:
    """Return the path of a checkpoint that lies in the run's folder, and any other checkpoint as it is."""
    return store.folder / checkpoint if (store.folder / checkpoint).exists() else checkpoint


def open_detector(run: Run, checkpoint: str, settings: DetectorSettings) -> tuple[YoloDetector, int]:
    """Load a detector, and say at which image size it runs.

    Args:
        run: The run.
        checkpoint: The detector: a path relative to the run's folder, or any other checkpoint.
        settings: Its device and, where configured, its image size.

    Returns:
        The detector, and the longer side in pixels that images are scaled to. The user is told once where it
        was not configured.

    Raises:
        DiffugenError: The checkpoint cannot be loaded.
    """
    from diffugen.detectors.yolo import YoloDetector

    detector = YoloDetector(resolve_checkpoint(run.store, checkpoint), device=settings.device)
    return detector, _image_size(run, detector, checkpoint, settings)


def _image_size(run: Run, detector: YoloDetector, checkpoint: str, settings: DetectorSettings) -> int:
    from diffugen.detectors import suited_image_size

    if settings.image_size is not None:
        return settings.image_size
    records = islice(run.store.records(), SAMPLED_IMAGES)
    side = max((max(record.size_wh) for record in records), default=0)
    if not side:
        return detector.image_size or suited_image_size(None, 640)
    chosen = suited_image_size(detector.image_size, side)
    trained = (
        f"trained at {detector.image_size} px" if detector.image_size else "whose training size is unknown"
    )
    run.notify_once(
        f"detector.image_size: {chosen} px, chosen for images of {side} px and the checkpoint {checkpoint}, "
        f"{trained}"
    )
    return chosen


def labels_method(
    checkpoint: Path | str, meanings: Mapping[str, str], image_size: int, confidence: float, refine: str
) -> str:
    """Return the provenance of model labels, ``model-`` and a hash of everything that decides them.

    Args:
        checkpoint: The detector, hashed by its content.
        meanings: What `mapped_classes` returned.
        image_size: Longer side in pixels that images are scaled to.
        confidence: Least confidence of a label.
        refine: How masks are refined.

    Raises:
        DiffugenError: The checkpoint cannot be read.
    """
    from diffugen.detectors.yolo_checkpoint import find_checkpoint

    path = find_checkpoint(checkpoint)
    digest = hashlib.sha256()
    try:
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    except OSError as error:
        raise DiffugenError(f"cannot read the checkpoint {path}: {error.strerror or error}") from error
    meant = list(meanings.items())
    return f"model-{content_id(digest.hexdigest(), meant, image_size, confidence, refine)}"


def mapped_classes(
    known: Collection[str], class_names: Sequence[str], class_map: Mapping[str, str]
) -> dict[str, str]:
    """Return the part of a class map that applies: classes that a detector knows by another name only.

    Args:
        known: The detector's classes.
        class_names: The run's classes.
        class_map: From a class of the run to the detector's name for it.
    """
    return {
        name: theirs
        for name, theirs in class_map.items()
        if name in class_names and name not in known and theirs in known
    }


def knows_any(run: Run, checkpoint: str, settings: DetectorSettings) -> bool:
    """Return whether a detector has learned any of the run's classes, under any name of the class map."""
    from diffugen.detectors.yolo import YoloDetector

    known = YoloDetector(resolve_checkpoint(run.store, checkpoint), device=settings.device).class_names
    mapped = mapped_classes(known, run.class_names, settings.class_map)
    return not set(run.class_names).isdisjoint(known) or bool(mapped)


def trained_on(store: RunStore) -> set[str]:
    """Return the ids of all images that a detector of this run has been trained on."""
    return {path.stem for path in (store.folder / "datasets").glob("*/images/train/*")}
