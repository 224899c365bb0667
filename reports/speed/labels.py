"""Measure labelling on one core: ``python reports/speed/labels.py`` writes ``labels.md`` beside this file."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from textwrap import fill

import cv2
import numpy as np

from diffugen.config import LabelSettings, ScoreWeights
from diffugen.labels.heatmaps import combine, morphology, threshold
from diffugen.labels.label import label, label_combined
from diffugen.labels.score import rescore
from diffugen.records import HeatMaps, Phrase

SIZE_WH = (512, 512)
PHRASES = (Phrase("piano", "piano"), Phrase("car", "car"), Phrase("road", None), Phrase("sky", None))
GROUPS = ("down-64x64", "down-32x32", "down-16x16", "mid-8x8", "up-16x16", "up-32x32", "up-64x64")
REPEATS = 40


def make_maps(seed: int) -> HeatMaps:
    """Return heat maps like those of Stable Diffusion at 512 x 512 px: soft blobs around 1e-3, with noise."""
    rng = np.random.default_rng(seed)
    centres, radii = rng.uniform(0.2, 0.8, (len(PHRASES), 2)), rng.uniform(0.08, 0.25, len(PHRASES))
    maps = {}
    for group in GROUPS:
        side = int(group.split("x")[1])
        ticks = (np.arange(side) + 0.5) / side
        dx, dy = (
            ticks[None, None] - centres[:, 0, None, None],
            ticks[None, :, None] - centres[:, 1, None, None],
        )
        blobs = np.exp(-(dx**2 + dy**2) / (2 * radii[:, None, None] ** 2))[:, None].repeat(3, axis=1)
        maps[group] = (2e-3 * blobs + 2e-4 * rng.random(blobs.shape)).astype(np.float16)
    return HeatMaps(f"image-{seed}", SIZE_WH, PHRASES, maps)


def milliseconds(step: Callable[[int], object]) -> float:
    """Return the median processor time of ``step`` over the images."""
    times = []
    for index in range(REPEATS):
        start = time.process_time()
        step(index)
        times.append(1000 * (time.process_time() - start))
    return statistics.median(times)


def main() -> None:
    """Measure each step, and write the page."""
    cv2.setNumThreads(1)
    images = [make_maps(seed) for seed in range(REPEATS)]
    paper, compete, weights = LabelSettings(method="paper"), LabelSettings(), ScoreWeights()
    heats = [combine(maps, compete.groups, compete.step_weights) for maps in images]
    masks = [threshold(heat[0], "otsu") for heat in heats]
    found = [label_combined(heat, PHRASES, compete, weights) for heat in heats]
    count = len(PHRASES)
    # name, heat maps per call, call
    steps: list[tuple[str, int, Callable[[int], object]]] = [
        ("`combine`", count, lambda i: combine(images[i], compete.groups, compete.step_weights)),
        ("`threshold`, Otsu", 1, lambda i: threshold(heats[i][0], "otsu")),
        ("`morphology`, 1% of the side", 1, lambda i: morphology(masks[i], 0.01, 0.01)),
        ("`morphology`, 5% of the side", 1, lambda i: morphology(masks[i], 0.05, 0.05)),
        ("`label`, paper, all steps", count, lambda i: label(images[i], paper, weights)),
        ("`label`, compete, all steps", count, lambda i: label(images[i], compete, weights)),
        ("`label_combined`, compete", count, lambda i: label_combined(heats[i], PHRASES, compete, weights)),
        ("`rescore`", count, lambda i: rescore(found[i], weights)),
    ]
    lines = [
        "# Labelling speed on one core",
        "",
        fill(
            f"Measured by `python reports/speed/labels.py`: {SIZE_WH[0]} x {SIZE_WH[1]} px, {count} phrases "
            f"(2 classes, 2 background words), {len(GROUPS)} layer groups, synthetic heat maps. Median "
            f"processor time of {REPEATS} images, one thread. Python {platform.python_version()}, numpy "
            f"{np.__version__}, OpenCV {cv2.__version__}, {platform.machine()}.",
            120,
            break_on_hyphens=False,
        ),
        "",
        "| step | ms per call | heat maps per call | heat maps/s | calls/s |",
        "|---|---|---|---|---|",
    ]
    for name, handled, step in steps:
        step(0)
        took = milliseconds(step)
        lines.append(
            f"| {name} | {took:.2f} | {handled} | {1000 * handled / took:,.0f} | {1000 / took:,.0f} |"
        )
    text = "\n".join(lines) + "\n"
    Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
