"""What stages share about detectors: where a checkpoint lies, what its classes mean, its image size."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from diffugen.config.sections import DetectorSettings
from diffugen.dataset.files import Item
from diffugen.detectors import NO_CLASSES, suited_image_size
from diffugen.errors import DiffugenError, ModelError
from diffugen.labels.objects import finished
from diffugen.prompts.names import matching_names
from diffugen.records import Instances, content_id
from diffugen.run.rounds import Run
from diffugen.run.store import RunStore

if TYPE_CHECKING:
    from diffugen.detectors import Detector

SAMPLED_IMAGES = 100
"""Images of a run whose sizes are looked at; the first ones, so that later rounds change nothing."""

UNKNOWN_SIDE = 640
"""Longer side in pixels that is assumed where there are no images to look at."""


def resolve_checkpoint(store: RunStore, checkpoint: str) -> Path | str:
    """Return the path of a checkpoint that lies in the run's folder, and any other checkpoint as it is."""
    return store.folder / checkpoint if (store.folder / checkpoint).exists() else checkpoint


@dataclass(frozen=True)
class OpenDetector:
    """A loaded detector that predicts as a run is configured to.

    Attributes:
        detector: The detector.
        image_size: Longer side in pixels that images are scaled to for prediction.
        settings: Its section of the configuration.
        wanted: Its names for the run's classes.
        means: From a name of its own to the only class of the run that it stands for, by the class map.
    """

    detector: Detector
    image_size: int
    settings: DetectorSettings
    wanted: frozenset[str]
    means: Mapping[str, str] = field(default_factory=dict)

    def predict(
        self, images: Sequence[NDArray[np.uint8]], confidence: float, *, raw: bool = False
    ) -> list[Instances]:
        """Return the objects in each image, most confident first.

        Args:
            images: N arrays uint8 (H, W, 3), RGB.
            confidence: Minimum confidence of an object, in [0, 1].
            raw: Whether to return what the detector does, whatever ``postprocess`` says.

        Returns:
            N records; one mask per object, with refined edges, if ``postprocess`` is set. Empty ones of a
            detector without classes.
        """
        if not self.detector.class_names:
            return [Instances((rgb.shape[1], rgb.shape[0]), (), (), np.zeros(0)) for rgb in images]
        found = self.detector.predict(images, image_size=self.image_size, confidence=confidence)
        if raw or not self.settings.postprocess:
            return found
        return [self.postprocess(one, rgb) for one, rgb in zip(found, images, strict=True)]

    def postprocess(self, found: Instances, rgb: NDArray[np.uint8]) -> Instances:
        """Return its raw output for an image as labels, most confident first; see `finished`.

        Objects of the run's classes and all others are settled apart: a bench, of which the run knows
        nothing, must not take the place of a piano that the detector is less sure of.
        """
        groups = [
            finished(found.of_classes(names), rgb)
            for names in (self.wanted, frozenset(found.class_names) - self.wanted)
        ]
        both = groups[0].joined(groups[1])
        return both.take(np.argsort(-both.scores, kind="stable").tolist())

    def method(self, class_map: Mapping[str, str], confidence: float) -> str:
        """Return the provenance of its labels, ``model-`` and a hash of everything that decides them.

        Args:
            class_map: What `mapped_classes` returned.
            confidence: Minimum confidence of a label.

        Raises:
            DiffugenError: The checkpoint cannot be read.
        """
        path = self.detector.checkpoint
        digest = hashlib.sha256()
        try:
            for file in sorted(path.iterdir()) if path.is_dir() else [path]:
                digest.update(file.read_bytes())
        except OSError as error:
            raise DiffugenError(f"cannot read the checkpoint {path}: {error.strerror or error}") from error
        meant = list(class_map.items())
        parts = digest.hexdigest(), meant, self.image_size, confidence, self.settings.postprocess
        renamed = [self.detector.renamed] if self.detector.renamed else []
        return f"model-{content_id(*parts, *renamed)}"


def open_detector(
    run: Run,
    checkpoint: str,
    settings: DetectorSettings,
    items: Iterable[Item] = (),
    *,
    allow_untrained: bool = False,
) -> OpenDetector:
    """Load a detector to predict with.

    It sees images at the size that it was trained at, whatever ``image_size`` the next training uses, because
    it recognises objects at the size that it has learned; ``prediction_size`` is there to say otherwise.

    Args:
        run: The run.
        checkpoint: The detector: a path relative to the run's folder, or any other checkpoint.
        settings: Its device and, if configured, its sizes.
        items: The images that it will see, looked at only while the run has no images of its own.
        allow_untrained: Whether it may have no classes, like an architecture without weights, which a run
            can begin with.

    Raises:
        DiffugenError: The checkpoint cannot be loaded, or has no classes.
    """
    detector = load_detector(run, checkpoint, settings)
    if not detector.class_names and not allow_untrained:
        raise ModelError(f"{checkpoint} {NO_CLASSES}; give a trained detector")
    size = settings.prediction_size or detector.image_size
    meanings = mapped_classes(detector.class_names, run.class_names, settings.class_map)
    wanted = frozenset({*run.class_names, *meanings.values()})
    stands_for = Counter(meanings.values())
    means = {
        theirs: name
        for name, theirs in meanings.items()
        if stands_for[theirs] == 1 and theirs not in run.class_names
    }
    size = size or training_size(run, detector, settings, items)
    return OpenDetector(detector, size, settings, wanted, means)


def open_for_training(
    run: Run, checkpoint: str, settings: DetectorSettings, items: Iterable[Item] = ()
) -> tuple[Detector, int]:
    """Load a detector to train, and choose the longer side in pixels that images are scaled to.

    The arguments are those of `open_detector`.
    """
    detector = load_detector(run, checkpoint, settings)
    return detector, training_size(run, detector, settings, items)


def training_size(
    run: Run, detector: Detector, settings: DetectorSettings, items: Iterable[Item] = ()
) -> int:
    """Return the configured image size, or else one that suits checkpoint and images; the user is told."""
    if settings.image_size is not None:
        return settings.image_size
    side = _longest_side(run.store, items)
    chosen = suited_image_size(detector.image_size, side)
    trained = f"at {detector.image_size} px" if detector.image_size else "at an unknown size"
    run.notify_once(
        f"detector.image_size: {chosen} px, chosen for images of {side} px and a detector trained {trained}"
    )
    return chosen


def load_detector(run: Run, checkpoint: str, settings: DetectorSettings) -> Detector:
    """Load a detector; classes that only its spelling keeps apart from the run's get the run's names."""
    from diffugen.detectors.load import open_checkpoint

    detector = open_checkpoint(resolve_checkpoint(run.store, checkpoint), device=settings.device)
    ours = {
        theirs: name
        for theirs, name in matching_names(detector.class_names, run.class_names).items()
        if theirs != name
    }
    if ours:
        detector.rename(ours)
        told = ", ".join(f"{theirs!r} is {name!r}" for theirs, name in ours.items())
        run.notify_once(f"classes of the detector {checkpoint} that are spelt differently here: {told}")
    return detector


def _longest_side(store: RunStore, items: Iterable[Item]) -> int:
    """Return the longest side of a run's images in pixels; while there are none, that of the given ones."""
    sizes = [max(record.size_wh) for record in islice(store.records(), SAMPLED_IMAGES)]
    sizes = sizes or [max(rgb.shape[:2]) for _, rgb, _ in islice(items, 1)]
    return max(sizes, default=UNKNOWN_SIDE)


def mapped_classes(
    known: Collection[str], class_names: Sequence[str], class_map: Mapping[str, str]
) -> dict[str, str]:
    """Return the part of a class map that applies: classes that a detector knows by another name only.

    Args:
        known: The detector's classes.
        class_names: The run's classes.
        class_map: From a class of the run to the detector's name for it.
    """
    same = matching_names(class_map.values(), tuple(known))
    return {
        name: same[theirs]
        for name, theirs in class_map.items()
        if name in class_names and name not in known and theirs in same
    }


def unknown_classes(run: Run, checkpoint: str, settings: DetectorSettings) -> list[str]:
    """Return the run's classes that a detector has not learned, under any name of the class map."""
    known = load_detector(run, checkpoint, settings).class_names
    mapped = mapped_classes(known, run.class_names, settings.class_map)
    return [name for name in run.class_names if name not in known and name not in mapped]


def trained_on(store: RunStore) -> set[str]:
    """Return the ids of all images that a detector of this run has been trained on."""
    return {path.stem for path in (store.folder / "datasets").glob("*/images/train/*")}
