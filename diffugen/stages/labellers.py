"""The work of labelling images, by heat maps or with a detector, wherever it is done. Does not know runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffugen.config.labelling import LabelSettings, ScoreWeights
from diffugen.config.sections import DetectorSettings
from diffugen.errors import DiffugenError
from diffugen.labels.segmenter import Segmenter
from diffugen.labels.witness import Witness
from diffugen.records import HeatMaps, Instances
from diffugen.run.executors import OnStep
from diffugen.run.temporary import temporary_folder
from diffugen.stages.detector import OpenDetector

RGB = NDArray[np.uint8]


@dataclass(frozen=True)
class Evidence:
    """What an image's labels are made from.

    Attributes:
        heat_maps: Its heat maps.
        rgb: Its pixels, uint8 (H, W, 3), if labels depend on them.
        witness: What a detector found in it, if one is asked.
    """

    heat_maps: HeatMaps
    rgb: RGB | None
    witness: Witness | None


@dataclass(frozen=True)
class HeatLabeller:
    """Labels images by their heat maps, as `diffugen.run.executors.Work`.

    Attributes:
        settings: How heat maps become instances.
        weights: How an instance is scored.
        segmenter: The checkpoint of the segmenter that outlines objects; None for no such refinement.
        device: Where the segmenter runs.
    """

    settings: LabelSettings
    weights: ScoreWeights
    segmenter: Path | str | None
    device: str

    @property
    def on_gpu(self) -> bool:
        """Whether it gains by a GPU: only a segmenter does."""
        return self.segmenter is not None and self.device != "cpu"

    def load(self, on_step: OnStep) -> Callable[[Sequence[Evidence]], Iterator[Instances]]:
        """Return what labels the images of a batch, with the segmenter loaded."""
        from diffugen.labels.label import label

        segmenter = self.open_segmenter()

        def handle(batch: Sequence[Evidence]) -> Iterator[Instances]:
            for one in batch:
                yield label(one.heat_maps, self.settings, self.weights, one.rgb, one.witness, segmenter)

        return handle

    def finish(self, made: Instances) -> Instances:
        """Return them as they are."""
        return made

    def open_segmenter(self) -> Segmenter | None:
        """Load the segmenter; None if there is none.

        Raises:
            ModelError: The checkpoint or the device does not exist, or it is not a Segment Anything Model.
        """
        if self.segmenter is None:
            return None
        from diffugen.detectors.sam import SamSegmenter

        return SamSegmenter(self.segmenter, device=self.device)


@dataclass(frozen=True)
class PackedDetector:
    """A detector to be opened where its files are not.

    Attributes:
        files: From a file's path inside the checkpoint to its content; the path of a single file is empty.
        name: Name of the checkpoint.
        renamed: From the checkpoint's names for classes to those that are used.
        image_size: As of `OpenDetector`, like all that follow.
        settings: Its section of the configuration.
        wanted: Its names for the run's classes.
        means: From a name of its own to the only class of the run that it stands for.
    """

    files: Mapping[str, bytes]
    name: str
    renamed: Mapping[str, str]
    image_size: int
    settings: DetectorSettings
    wanted: frozenset[str]
    means: Mapping[str, str]

    @classmethod
    def of(cls, opened: OpenDetector, device: str) -> PackedDetector:
        """Return a loaded detector as it can be sent, to be opened on a device there.

        Raises:
            DiffugenError: A file of the checkpoint cannot be read.
        """
        path, detector = opened.detector.checkpoint, opened.detector
        try:
            inside = [one for one in path.rglob("*") if one.is_file()] if path.is_dir() else [path]
            files = {
                "" if one == path else one.relative_to(path).as_posix(): one.read_bytes() for one in inside
            }
        except OSError as error:
            raise DiffugenError(f"cannot read the checkpoint {path}: {error.strerror or error}") from error
        renamed = dict(detector.renamed)
        settings = opened.settings.changed(device=device)
        return cls(files, path.name, renamed, opened.image_size, settings, opened.wanted, opened.means)

    def open(self) -> OpenDetector:
        """Load it.

        Raises:
            ModelError: Its device does not exist here.
        """
        from diffugen.detectors.load import open_checkpoint

        with temporary_folder("detector") as folder:
            for inside, content in self.files.items():
                path = folder / self.name / inside if inside else folder / self.name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            detector = open_checkpoint(folder / self.name, device=self.settings.device)
        detector.rename(self.renamed)
        return OpenDetector(detector, self.image_size, self.settings, self.wanted, self.means)


@dataclass(frozen=True)
class Predictor:
    """Finds objects in images with a detector, as `diffugen.run.executors.Work`.

    Attributes:
        detector: The detector, loaded here, or packed to be loaded elsewhere.
        confidence: Minimum confidence of an object.
    """

    detector: OpenDetector | PackedDetector
    confidence: float

    @property
    def on_gpu(self) -> bool:
        """Whether it gains by a GPU."""
        return self.detector.settings.device != "cpu"

    def load(self, on_step: OnStep) -> Callable[[Sequence[RGB]], list[Instances]]:
        """Return what finds the objects in the images of a batch, with the detector loaded."""
        detector = self.detector if isinstance(self.detector, OpenDetector) else self.detector.open()
        return lambda batch: detector.predict(batch, self.confidence)

    def finish(self, made: Instances) -> Instances:
        """Return them as they are."""
        return made
