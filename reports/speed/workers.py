"""Measure what workers of a Ray gain, and how busy the denoiser is, and write ``ray.md`` beside this file.

    python reports/speed/workers.py

The same images are made in this process, by one worker and by two, each with one thread, and written into
runs. The ways take turns, so a busy machine affects all of them. Loading a model and starting a worker are
not counted: each way makes one batch per worker before its first turn.

How busy the denoiser is: the share of the time of the first way in which the pipeline's call runs, text
encoder and decoder included. The images of a batch are encoded and written during the call of the next one.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; workers get it from Ray
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import fill
from typing import Any

import ray

from diffugen.config import ExecutorSettings, load_config
from diffugen.diffusion import generate as generating
from diffugen.diffusion.jobs import PromptJobs
from diffugen.diffusion.pipelines import default_size_wh
from diffugen.records import Phrase, Prompt
from diffugen.run import RunStore
from diffugen.run.executors import Executor, executor_of
from diffugen.stages.making import Dropped, ImageBatch, ImageMaker
from diffugen.stages.models import load_model

PROMPTS = [
    Prompt(f"a {thing} on a road, {weather}", (Phrase(thing, thing),))
    for thing in ("piano", "car")
    for weather in ("sunny", "foggy", "at night", "in the rain")
]
WAYS = {
    "in this process": ExecutorSettings(),
    "1 worker": ExecutorSettings(kind="ray", workers=1),
    "2 workers": ExecutorSettings(kind="ray", workers=2),
}


class Denoiser:
    """Counts the time in which the pipeline is called, in this process."""

    def __init__(self) -> None:
        self.seconds = 0.0
        call: Callable[..., Any] = generating._call

        def timed(*arguments: Any) -> Any:
            started = time.perf_counter()
            try:
                return call(*arguments)
            finally:
                self.seconds += time.perf_counter() - started

        generating._call = timed  # type: ignore[assignment]


def batches(maker: ImageMaker, first: int, count: int, size_wh: tuple[int, int]) -> Iterator[ImageBatch]:
    """Yield batches of new images; the same ``first`` gives the same images."""
    jobs = PromptJobs(
        PROMPTS,
        images_per_prompt=count * maker.batch_size // len(PROMPTS) + 1,
        run_seed=first,
        size_wh=size_wh,
        model=maker.model,
        settings={"num_inference_steps": maker.settings.num_inference_steps, "guidance_scale": 3.0},
    )
    for number in range(count):
        yield ImageBatch(tuple(jobs[number * maker.batch_size : (number + 1) * maker.batch_size]), ())


def make(executor: Executor, maker: ImageMaker, given: Iterator[ImageBatch], store: RunStore) -> float:
    """Make the images of the batches and keep them; return the seconds that it took."""
    started = time.perf_counter()
    for made in executor.spread(maker, given):
        if isinstance(made, Dropped):
            raise SystemExit(f"an image was dropped: {made.reason}")
        store.add_encoded([made])
    return time.perf_counter() - started


def measure(options: argparse.Namespace, folder: Path) -> list[dict[str, float]]:
    """Return for each turn the seconds of each way, and those of the denoiser in this process."""
    settings = load_config("miniature").diffusion.model_copy(
        update={"num_inference_steps": options.steps, "device": "cpu"}
    )
    pipeline = load_model(settings, settings.model)
    size_wh, denoiser = default_size_wh(pipeline), Denoiser()
    makers, executors, stores = {}, {}, {}
    # Places for the workers of both ways, of which those of one wait while the other's work.
    places = sum(asked.workers or 0 for asked in WAYS.values())
    ray.init("local", num_cpus=places, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    for number, (way, asked) in enumerate(WAYS.items()):
        here = asked.kind == "local"
        makers[way] = ImageMaker(settings, settings.model, options.batch, pipeline if here else None)
        executors[way] = executor_of(asked)
        stores[way] = RunStore.create_or_open(folder / str(number), config=None)
    turns = []
    try:
        for way in WAYS:  # warm-up
            given = batches(makers[way], 10**6, asked_workers(way), size_wh)
            make(executors[way], makers[way], given, stores[way])
        for turn in range(options.turns):
            taken: dict[str, float] = {}
            for way in list(WAYS) if turn % 2 else list(WAYS)[::-1]:
                busy = denoiser.seconds
                given = batches(makers[way], turn, options.batches, size_wh)
                taken[way] = make(executors[way], makers[way], given, stores[way])
                if way == "in this process":
                    taken["denoiser"] = denoiser.seconds - busy
            turns.append(taken)
            print({way: round(seconds, 1) for way, seconds in taken.items()}, flush=True)
    finally:
        for executor in executors.values():
            executor.close()
        for store in stores.values():
            store.close()
        ray.shutdown()
    return turns


def asked_workers(way: str) -> int:
    """Return the number of workers of a way."""
    return WAYS[way].workers or 1


def spread_of(values: list[float], digits: int = 2) -> str:
    """Return the median, with the smallest and the largest in brackets."""
    ordered = sorted(values)
    return f"{statistics.median(ordered):.{digits}f} ({ordered[0]:.{digits}f} to {ordered[-1]:.{digits}f})"


def page(turns: list[dict[str, float]], options: argparse.Namespace) -> str:
    """Return the page."""
    images = options.batches * options.batch
    lines = [
        "# Workers of a Ray, and how busy the denoiser is",
        "",
        fill(
            f"Measured by `python reports/speed/workers.py`: `miniature`, {options.steps} steps with "
            f"guidance, batches of {options.batch}, {images} images per way and turn, {options.turns} turns, "
            f"one thread for this process and for each worker, {os.cpu_count()} CPU cores "
            f"({platform.machine()}). Images and heat maps are encoded and written into a run. Medians of "
            "the turns, smallest to largest in brackets.",
            110,
        ),
        "",
        "| images are made | images per second | relative to this process | relative to 1 worker |",
        "|---|---|---|---|",
    ]
    for way in WAYS:
        rate = spread_of([images / turn[way] for turn in turns])
        ours = spread_of([turn["in this process"] / turn[way] for turn in turns])
        one = spread_of([turn["1 worker"] / turn[way] for turn in turns])
        lines.append(f"| {way} | {rate} | {ours} | {one} |")
    busy = spread_of([100 * turn["denoiser"] / turn["in this process"] for turn in turns], 1)
    lines += ["", fill(f"In this process the pipeline's call ran for {busy} % of the time.", 110), ""]
    return "\n".join(lines)


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--batches", type=int, default=8, help="per way and turn")
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        turns = measure(options, Path(folder))
    text = page(turns, options)
    Path(__file__).with_name("ray.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
