"""A made-up world for tuning: images of one disc each, of which one layer group shows the place."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffugen.comparison.metrics import label_quality
from diffugen.config.labelling import LabelSettings, ScoreWeights
from diffugen.labels import label
from diffugen.labels.shapes import encode
from diffugen.records import HeatMaps, Instances, Phrase
from diffugen.tune import Evidence, Outcome, tune

SIZE_WH = (36, 24)
TRIALS = 18
WRONG = LabelSettings(method="paper", threshold=0.3, groups={"up@*": 1.0, "down@*": 3.0})
WEIGHTS = ScoreWeights()


class World:
    """Images of one disc each: the maps of "up" show where it is, those of "down" show another place."""

    def __init__(self, size_wh: tuple[int, int] = SIZE_WH) -> None:
        self.size_wh = size_wh
        self.read: Counter[str] = Counter()

    def disc(self, name: str, grow: float = 1.0) -> NDArray[np.bool_]:
        return self._blob(np.random.default_rng(_seed(name)), *self.size_wh, grow) > 0.5

    def heat_maps(self, image_id: str) -> HeatMaps:
        self.read[image_id] += 1
        width, height = self.size_wh
        maps = {}
        for place, name in (("up", image_id), ("down", f"elsewhere {image_id}")):
            rng = np.random.default_rng(_seed(name))
            blob = self._blob(rng, width // 2, height // 2)
            noise = np.random.default_rng(_seed(f"noise {image_id}")).random((3, height // 2, width // 2))
            array = 1e-3 * (0.1 + 0.8 * np.stack([blob] * 3) + 0.1 * noise)
            maps[f"{place}-{height // 2}x{width // 2}"] = array[None].astype(np.float16)
        return HeatMaps(image_id, self.size_wh, (Phrase("piano", "piano"),), maps)

    def image(self, image_id: str) -> NDArray[np.uint8]:
        rgb = np.full((*self.size_wh[::-1], 3), 90, dtype=np.uint8)
        rgb[self.disc(image_id)] = (200, 120, 60)
        return rgb

    def evidence(
        self, image_id: str, mask: NDArray[np.bool_] | None = None, family: str | None = None
    ) -> Evidence:
        mask = self.disc(image_id) if mask is None else mask
        return Evidence(image_id, family or f"prompt {image_id}", objects(mask))

    def correct(self, count: int = 16) -> list[Evidence]:
        return [self.evidence(f"image {number}") for number in range(count)]

    def tune(
        self, evidence: list[Evidence], storage: Path, settings: LabelSettings = WRONG, **more: object
    ) -> Outcome:
        arguments = {"trials": TRIALS, **more}
        return tune(evidence, self.heat_maps, self.image, settings, WEIGHTS, storage=storage, **arguments)  # type: ignore[arg-type]

    def fresh_iou(self, settings: LabelSettings, weights: ScoreWeights) -> float:
        """Mean IoU of labels with these settings, on images that are never part of the evidence."""
        names = [f"fresh {number}" for number in range(24)]
        pairs = [
            (objects(self.disc(name)), label(self.heat_maps(name), settings, weights, self.image(name)))
            for name in names
        ]
        found = label_quality(pairs).object_iou
        assert found is not None
        return found

    @staticmethod
    def _blob(rng: np.random.Generator, width: int, height: int, grow: float = 1.0) -> NDArray[np.float64]:
        x, y, radius = rng.uniform(0.25, 0.75), rng.uniform(0.3, 0.7), rng.uniform(0.15, 0.25) * grow
        rows, columns = np.mgrid[:height, :width]
        distance = np.hypot(((columns + 0.5) / width - x) * width / height, (rows + 0.5) / height - y)
        return 1 / (1 + np.exp((distance - radius) * 20))


def _seed(name: str) -> list[int]:
    return list(name.encode())


def objects(*masks: NDArray[np.bool_]) -> Instances:
    height, width = masks[0].shape if masks else SIZE_WH[::-1]
    return Instances((width, height), ("piano",) * len(masks), tuple(map(encode, masks)), np.ones(len(masks)))
