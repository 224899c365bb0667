"""Measure what DiffuGen adds to plain diffusers, and write ``generate.md`` beside this file.

    python reports/speed/generate.py

Plain: the pipeline call alone, its images discarded. Ours: the same call with tracing; each image and its
heat maps are written into a run and labelled, and the labels are written. Both make the same images. They
take turns and are compared pair by pair, so that a busy or throttled machine affects both equally. Measures
processor time on the CPU, and wall-clock time on a GPU.

``--random sd15`` and ``--random sdxl`` build models of those sizes with random weights (in float16 on a GPU)
and add the package daam with batch 1; the page is then ``generate-sd15.md``. ``--shrink 10`` makes them small
enough for a quick test.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import diffusers
import numpy as np
import torch
from random_models import random_pipeline

from diffugen.config import LabelSettings, ScoreWeights
from diffugen.config.load import load_config
from diffugen.diffusion.generate import generate
from diffugen.diffusion.messages import quiet
from diffugen.diffusion.pipelines import default_size_wh, load_pipeline
from diffugen.diffusion.tasks import Source, many_channels, task_arguments, task_pipeline
from diffugen.diffusion.tracing import AttentionTrace
from diffugen.errors import ModelError
from diffugen.labels.label import label
from diffugen.labels.shapes import encode
from diffugen.records import TASKS, ImageRecord, LabelSet, Phrase, Prompt
from diffugen.run.store import RunStore

PROMPT = Prompt("a photo of a grand piano on a road", (Phrase("grand piano", "piano"), Phrase("road", None)))
STRENGTH = 0.6


class Bench:
    """One model on one device, and a run in a temporary folder.

    Args:
        pipeline: The pipeline.
        model: Name of the model.
        steps: Denoising steps.
        folder: Folder for the run.
    """

    def __init__(self, pipeline: Any, model: str, steps: int, folder: Path) -> None:
        self.pipeline, self.model, self.steps = pipeline, model, steps
        self.size_wh = default_size_wh(pipeline)
        config = load_config("miniature")
        # Other models have other layer names: use all layers there.
        groups = config.labels.groups if model == "miniature" else {"*": 1.0}
        self.labels = LabelSettings(**{**config.labels.model_dump(), "groups": groups})
        self.weights = ScoreWeights(**config.score.model_dump())
        self.store = RunStore.create_or_open(folder, config=None)
        self.clock = time.perf_counter if pipeline.device.type == "cuda" else time.process_time
        self.spent: defaultdict[str, float] = defaultdict(float)
        if pipeline.device.type == "cpu":  # a GPU runs asynchronously, so parts cannot be timed
            self.time_tracer()
        width, height = self.size_wh
        rough = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        rows, columns = (np.arange(side) * 8 // side for side in (height, width))
        mask = np.zeros((height, width), dtype=bool)
        mask[height // 2 :] = True
        self.photo, self.mask = np.ascontiguousarray(rough[rows][:, columns]), mask

    def time_tracer(self) -> None:
        """Add up the time of the tracer's own arithmetic."""
        record = AttentionTrace._record

        def timed(*arguments: Any, **named: Any) -> None:
            started = self.clock()
            record(*arguments, **named)
            self.spent["trace"] += self.clock() - started

        AttentionTrace._record = timed  # type: ignore[method-assign]

    def jobs(self, task: str, first: int, count: int) -> list[ImageRecord]:
        """Return the images to make; the same ``first`` gives the same images."""
        settings: dict[str, Any] = {"num_inference_steps": self.steps, "guidance_scale": 3.0}
        parent: dict[str, Any] = {}
        if task != "txt2img":
            settings["strength"] = STRENGTH
            parent = {"parent": "photo-0", "region": encode(self.mask) if task == "inpaint" else None}
        return [
            ImageRecord(PROMPT, first + i, self.size_wh, self.model, task, settings, **parent)
            for i in range(count)
        ]

    def source(self, job: ImageRecord) -> Source:
        """Return the photo, with a region if the image is inpainted."""
        return Source(self.photo, self.mask if job.task == "inpaint" else None)

    def plain(self, jobs: Sequence[ImageRecord], batch: int) -> None:
        """Generate images as a user of diffusers does."""
        pipeline = task_pipeline(self.pipeline, jobs[0].task)
        for first in range(0, len(jobs), batch):
            chosen = jobs[first : first + batch]
            sources = [self.source(job) for job in chosen if job.parent]
            with many_channels(pipeline, jobs[0].task):
                pipeline(
                    [job.prompt.text for job in chosen],
                    generator=[torch.Generator().manual_seed(job.seed) for job in chosen],
                    **task_arguments(pipeline, chosen, sources),
                    **jobs[0].settings,
                )

    def ours(self, jobs: Sequence[ImageRecord], batch: int, backend: str = "native") -> None:
        """Generate, trace, write and label images."""
        made = generate(self.pipeline, jobs, source=self.source, batch_size=batch, attention_backend=backend)
        for record, rgb, heat_maps, seconds in made:
            started = self.clock()
            self.store.add_image(record, rgb, heat_maps, seconds)
            written = self.clock()
            found = label(heat_maps, self.labels, self.weights, rgb)
            labelled = self.clock()
            self.store.put_labels([LabelSet(record.id, "attention", found, "attention-speed")])
            self.spent["label"] += labelled - written
            self.spent["write"] += written - started + self.clock() - labelled

    def seconds(self, work: Callable[[], None]) -> float:
        """Return the time that the work takes."""
        if self.pipeline.device.type == "cuda":
            torch.cuda.synchronize()
        started = self.clock()
        work()
        if self.pipeline.device.type == "cuda":
            torch.cuda.synchronize()
        return self.clock() - started


def measure(bench: Bench, task: str, batch: int, images: int, pairs: int, *, with_daam: bool) -> list[str]:
    """Return a table row for each way of generating ``images`` images."""
    images = max(images, batch)
    ways: dict[str, Callable[[Sequence[ImageRecord]], None]] = {
        "diffusers": lambda jobs: bench.plain(jobs, batch),
        "DiffuGen": lambda jobs: bench.ours(jobs, batch),
    }
    if with_daam and batch == 1 and task == "txt2img":
        ways["DiffuGen with daam"] = lambda jobs: bench.ours(jobs, 1, "daam")
    for way in list(ways):  # warm-up
        try:
            ways[way](bench.jobs(task, 0, batch))
        except ModelError as error:
            del ways[way]
            print(f"without {way}: {error}")
    bench.spent.clear()
    turns: list[dict[str, float]] = []
    for turn in range(pairs):
        taken = {}
        for number, way in enumerate(list(ways) if turn % 2 else list(ways)[::-1]):
            jobs = bench.jobs(task, 1000 * (10 * turn + number + 1), images)
            kept = dict(bench.spent)
            taken[way] = bench.seconds(lambda way=way, jobs=jobs: ways[way](jobs))  # type: ignore[misc]
            if way == "DiffuGen with daam":
                bench.spent = defaultdict(float, kept)  # only the parts of our own tracer are reported
        turns.append(taken)
        print(task, batch, {way: round(seconds / images, 3) for way, seconds in taken.items()}, flush=True)
    rows = []
    plain = sum(turn["diffusers"] for turn in turns)
    for way in ways:
        rate = images / statistics.median(turn[way] for turn in turns)
        ratios = sorted(turn[way] / turn["diffusers"] for turn in turns)
        more = (
            f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
            if way != "diffusers"
            else ""
        )
        parts = ["", "", ""]
        if way == "DiffuGen":
            parts = [f"{100 * bench.spent[part] / plain:.1f} %" for part in ("trace", "label", "write")]
        rows.append(f"| {task} | {batch} | {way} | {rate:.3g} | {more} | {' | '.join(parts)} |")
    return rows


def wrapped(text: str) -> str:
    """Return a paragraph with line breaks."""
    return fill(text, 120, break_on_hyphens=False)


def main() -> None:
    """Measure every task and batch size, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="miniature")
    parser.add_argument("--random", choices=["sd15", "sdxl"], help="instead of --model")
    parser.add_argument("--shrink", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tasks", nargs="+", choices=TASKS)
    parser.add_argument("--batch", nargs="+", type=int)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--images", type=int, default=8, help="images per turn")
    parser.add_argument("--pairs", type=int, default=7)
    options = parser.parse_args()
    tasks = options.tasks or (["txt2img"] if options.random else TASKS)
    if options.random:
        device = (
            "cuda"
            if options.device == "auto" and torch.cuda.is_available()
            else options.device.replace("auto", "cpu")
        )
        dtype = torch.float16 if device.startswith("cuda") else torch.float32
        pipeline = random_pipeline(options.random, device, dtype, options.shrink)
        pipeline.set_progress_bar_config(disable=True)
    else:
        pipeline = load_pipeline(options.model, device=options.device)
    name = options.random or options.model
    rows: list[str] = []
    with tempfile.TemporaryDirectory() as folder, quiet():
        bench = Bench(pipeline, name, options.steps, Path(folder) / "run")
        for task in tasks:
            for batch in options.batch or ((1, 4, 8) if options.random else (8, 1)):
                rows += measure(
                    bench, task, batch, options.images, options.pairs, with_daam=options.random is not None
                )
        bench.store.close()
    w, h = bench.size_wh
    used = (
        torch.cuda.get_device_name()
        if pipeline.device.type == "cuda"
        else f"{platform.machine()}, {torch.get_num_threads()} thread(s)"
    )
    call = "python reports/speed/generate.py" + (f" --random {options.random}" if options.random else "")
    what = f"{name} with random weights" if options.random else f"`{name}`"
    shrunk = f", widths divided by {options.shrink}" if options.shrink > 1 else ""
    page = [
        "# What tracing, writing and labelling add to plain diffusers",
        "",
        wrapped(
            f"Measured by `{call}`: {what}{shrunk}, {w} x {h} px, {pipeline.dtype}, {options.steps} steps "
            f"with guidance, strength {STRENGTH:g}, {len(PROMPT.phrases)} phrases; {options.pairs} turns of "
            f"{options.images} images each. {used}, torch {torch.__version__}, diffusers "
            f"{diffusers.__version__}."
        ),
        "",
        wrapped(
            "diffusers: only the pipeline call, its images discarded. DiffuGen: traced, images and heat maps "
            "written, labelled with the settings of `configs/miniature.yaml`. Ratio: DiffuGen's time divided "
            "by that of diffusers in the same turn, median (smallest to largest)."
        ),
        "",
        wrapped(
            "The last three columns: the time of these parts relative to that of the plain call (tracing "
            "only on a CPU). If the machine is busy, their sum is more reliable than the ratio."
        ),
        "",
        "| task | batch | | images per second | ratio | tracing | labelling | writing |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
    ]
    suffix = f"-{options.random}" if options.random else ""
    target = Path(__file__).with_name(f"generate{suffix}.md")
    target.write_text("\n".join(page) + "\n", encoding="utf-8")
    print("\n".join(page))


if __name__ == "__main__":
    main()
