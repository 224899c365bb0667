"""Draw what a run's detector sees on held-out scenes, after ``diffugen bootstrap``.

    python docs/draw_result.py [RUN]

Writes docs/pictures/loop-result.png: the scene, the detections before the loop, those of the detector
promoted last, and the exact masks. The scenes are the first ones of the miniature's held-out set; none was
chosen.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffugen.detectors.yolo import YoloDetector
from diffugen.labels.objects import finished
from diffugen.labels.pictures import BACKGROUND, Panel, contact_sheet, enlarged, label_overlay
from diffugen.miniature.sets import exact_instances, scene_set
from diffugen.review.queue import configured_classes
from diffugen.run import Round, Run, RunStore

SCENES = 6
HEIGHT = 128
CONFIDENCE = 0.25
GAP_PX = 6
OUT = Path(__file__).parent / "pictures" / "loop-result.png"


def main(folder: str = "runs/miniature") -> None:
    """Draw the picture."""
    with RunStore.open(folder, readonly=True) as store:
        names = tuple(configured_classes(store))
        run = Run(store, names, 0)
        last = Round(run, run.finished_rounds()).promoted_detector("miniature")
        kept = store.results(0).train
        size = kept.image_size if kept else 128
        detectors = [YoloDetector("miniature"), YoloDetector(store.folder / last)]
    panels = []
    for number, drawn in enumerate(scene_set("piano-among", SCENES, (64, 64))):
        seen = [
            finished(detector.predict([drawn.rgb], image_size=size, confidence=CONFIDENCE)[0], drawn.rgb)
            for detector in detectors
        ]
        exact = exact_instances(drawn).of_classes(names)
        overlays = [label_overlay(drawn.rgb, found, HEIGHT, names) for found in (*seen, exact)]
        pictures = [_with_gap(picture) for picture in (enlarged(drawn.rgb, HEIGHT), *overlays)]
        panels.append(Panel(pictures, f"held-out scene {number}"))
    title = "pianos among others: scene | detections before the loop | after the loop | exact masks"
    contact_sheet(panels, OUT, columns=2, height=HEIGHT, title=title)
    print(OUT)


def _with_gap(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    gap = np.full((len(rgb), GAP_PX, 3), BACKGROUND, np.uint8)
    return np.concatenate([rgb, gap], axis=1)


if __name__ == "__main__":
    main(*sys.argv[1:])
