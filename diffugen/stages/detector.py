"""What stages share about detectors: where a checkpoint lies, what its classes mean, its image size."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from diffugen.config.sections import DetectorSettings
from diffugen.dataset.files import Item
from diffugen.errors import DiffugenError
from diffugen.records import content_id
from diffugen.run.rounds import Run
from diffugen.run.store import RunStore

if TYPE_CHECKING:
    from diffugen.detectors.yolo import YoloDetector

SAMPLED_IMAGES = 100
"""Images of a run whose sizes are looked at; the first ones, so that later rounds change nothing."""

UNKNOWN_SIDE = 640
"""Longer side in pixels that is assumed where there are no images to look at."""


def resolve_checkpoint(store: RunStore, checkpoint: str) -> Path | str:
    """Return the path of a checkpoint that lies in the run's folder, and any other checkpoint as it is."""
    return store.folder / checkpoint if (store.folder / checkpoint).exists() else checkpoint


def open_detector(
    run: Run, checkpoint: str, settings: DetectorSettings, items: Iterable[Item] = ()
) -> tuple[YoloDetector, int]:
    """Load a detector, and choose the image size that it runs at.

    Args:
        run: The run.
        checkpoint: The detector: a path relative to the run's folder, or any other checkpoint.
        settings: Its device and, if configured, its image size.
        items: The images that it will see, looked at only while the run has no images of its own.

    Returns:
        The detector, and the longer side in pixels that images are scaled to. If it was not configured, the
        user is told once.

    Raises:
        DiffugenError: The checkpoint cannot be loaded.
    """
    from diffugen.detectors import suited_image_size
    from diffugen.detectors.yolo import YoloDetector

    detector = YoloDetector(resolve_checkpoint(run.store, checkpoint), device=settings.device)
    if settings.image_size is not None:
        return detector, settings.image_size
    side = _longest_side(run.store, items)
    chosen = suited_image_size(detector.image_size, side)
    trained = f"at {detector.image_size} px" if detector.image_size else "at an unknown size"
    run.notify_once(
        f"detector.image_size: {chosen} px, chosen for images of {side} px and a detector trained {trained}"
    )
    return detector, chosen


def _longest_side(store: RunStore, items: Iterable[Item]) -> int:
    """Return the longest side of a run's images in pixels; while there are none, that of the given ones."""
    sizes = [max(record.size_wh) for record in islice(store.records(), SAMPLED_IMAGES)]
    sizes = sizes or [max(rgb.shape[:2]) for _, rgb, _ in islice(items, 1)]
    return max(sizes, default=UNKNOWN_SIDE)


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
