"""Measure what workers of a Ray gain when label settings are tuned, and write ``tuning.md`` beside this file.

    python reports/speed/tuning.py

The same study is made in this process, by one worker and by two, each with one thread. The ways take turns,
so a busy machine affects all of them. Starting the workers is not counted; sending them the heat maps is.
The heat maps are synthetic, and the evidence is what other settings label in them.
"""

from __future__ import annotations

# isort: split
from workers import WAYS, spread_of  # first: it limits the threads

# isort: split
import argparse
import tempfile
import time
from pathlib import Path
from textwrap import fill

import cv2
import numpy as np
import ray
from labels import GROUPS, PHRASES, SIZE_WH, make_maps
from numpy.typing import NDArray

from diffugen.config import LabelSettings, ScoreWeights
from diffugen.labels.label import label
from diffugen.run.executors import Executor, executor_of
from diffugen.tune import Evidence, Outcome, tune

HERE = Path(__file__).parent
FEW = 8
"""Images and trials of the study that starts the workers."""


def study(executor: Executor, images: int, trials: int, folder: Path) -> tuple[float, Outcome]:
    """Return the seconds of a study that starts afresh, and what came out of it."""
    settings, weights = LabelSettings(), ScoreWeights()
    maps = {f"image-{seed}": make_maps(seed) for seed in range(images)}
    evidence = [
        Evidence(name, f"prompt {name}", label(one, LabelSettings(method="paper"), weights))
        for name, one in maps.items()
    ]

    def image(image_id: str) -> NDArray[np.uint8]:
        seed = int(image_id.partition("-")[2])
        return np.random.default_rng(seed).integers(0, 256, (*SIZE_WH[::-1], 3), dtype=np.uint8)

    with tempfile.NamedTemporaryFile(dir=folder, suffix=".sqlite") as file:
        started = time.perf_counter()
        found = tune(
            evidence,
            maps.__getitem__,
            image,
            settings,
            weights,
            storage=Path(file.name),
            trials=trials,
            images=images,
            executor=executor,
        )
        return time.perf_counter() - started, found


def measure(options: argparse.Namespace, folder: Path) -> list[dict[str, float]]:
    """Return for each turn the seconds of each way."""
    places = sum(asked.workers or 0 for asked in WAYS.values())
    ray.init("local", num_cpus=places, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    executors = {way: executor_of(asked) for way, asked in WAYS.items()}
    turns = []
    try:
        for executor in executors.values():
            study(executor, FEW, FEW, folder)
        for turn in range(options.turns):
            taken, results = {}, []
            for way in list(WAYS) if turn % 2 else list(WAYS)[::-1]:
                taken[way], found = study(executors[way], options.images, options.trials, folder)
                results.append(found)
            if any(one != results[0] for one in results):
                raise SystemExit("the ways differ in their result")
            turns.append(taken)
            print({way: round(seconds, 1) for way, seconds in taken.items()}, flush=True)
    finally:
        for executor in executors.values():
            executor.close()
        ray.shutdown()
    return turns


def page(turns: list[dict[str, float]], options: argparse.Namespace) -> str:
    """Return the page."""
    given = f"--images {options.images} --trials {options.trials} --turns {options.turns}"
    lines = [
        "# Workers of a Ray, and tuning",
        "",
        fill(
            f"Measured by `python reports/speed/tuning.py {given}`: {options.trials} trials of label "
            f"settings and as many of score weights on {options.images} images of {SIZE_WH[0]} x "
            f"{SIZE_WH[1]} px, {len(PHRASES)} phrases, {len(GROUPS)} layer groups, synthetic heat maps; "
            f"{options.turns} turns, one thread for this process and for each worker, 2 CPU cores. Medians "
            "of the turns, smallest to largest in brackets. All ways gave the same result.",
            120,
            break_on_hyphens=False,
        ),
        "",
        "| images are labelled | seconds | times as fast as this process |",
        "|---|---|---|",
    ]
    for way in WAYS:
        ratios = [one["in this process"] / one[way] for one in turns]
        lines.append(f"| {way} | {spread_of([one[way] for one in turns], 1)} | {spread_of(ratios)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        text = page(measure(options, Path(folder)), options)
    (HERE / "tuning.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
