"""Measure the cost of tracing: ``python reports/speed/tracing.py`` writes ``tracing.md`` beside this file.

Untraced and traced runs take turns and are compared pair by pair, so that a busy or throttled machine affects
both equally. Measures processor time on the CPU, and wall-clock time on a GPU.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import diffusers
import torch

from diffugen.diffusion.daam_backend import trace_with_daam
from diffugen.diffusion.messages import quiet
from diffugen.diffusion.pipelines import default_size_wh, load_pipeline
from diffugen.diffusion.tokens import index_tokens
from diffugen.diffusion.tracing import trace
from diffugen.errors import ModelError

VARIANTS = ("untraced", "native", "output", "daam")


def run(pipeline: Any, prompt: str, phrases: Sequence[str], images: int, steps: int, variant: str) -> float:
    """Generate images of one prompt, read their maps if traced, and return the seconds per image.

    daam supports one image per call, so it needs one call for each image.
    """
    calls, batch = (images, 1) if variant == "daam" else (1, images)
    index = index_tokens(pipeline, prompt, phrases)
    clock = time.perf_counter if pipeline.device.type == "cuda" else time.process_time
    started = clock()
    for _ in range(calls):
        settings: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": 3.0, "output_type": "np"}
        generators = [torch.Generator().manual_seed(seed) for seed in range(batch)]
        if variant == "untraced":
            pipeline([prompt] * batch, generator=generators, **settings)
            continue
        if variant == "daam":
            tracing: Any = trace_with_daam(pipeline, [index] * batch)
        else:  # with concepts, the same phrases compete
            tracing = trace(
                pipeline, [index] * batch, concepts=[phrases] * batch if variant == "output" else None
            )
        with tracing as traced:
            pipeline([prompt] * batch, generator=generators, **settings)
        traced.maps()
    return (clock() - started) / images


def measure(
    pipeline: Any, prompt: str, phrases: Sequence[str], images: int, steps: int, pairs: int
) -> list[str]:
    """Return one table row per variant: seconds per image, and the ratio to untraced in the same turn."""
    usable = list(VARIANTS)
    for variant in VARIANTS:  # also a warm-up
        try:
            run(pipeline, prompt, phrases, images, steps, variant)
        except ModelError as error:
            usable.remove(variant)
            print(f"without {variant}: {error}")
    turns = [
        {
            variant: run(pipeline, prompt, phrases, images, steps, variant)
            for variant in (usable, usable[::-1])[i % 2]
        }
        for i in range(pairs)
    ]
    rows = []
    for variant in usable:
        seconds = statistics.median(turn[variant] for turn in turns)
        ratios = sorted(turn[variant] / turn["untraced"] for turn in turns)
        ratio = (
            f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
            if variant != "untraced"
            else ""
        )
        rows.append(f"| {images} | {variant} | {seconds:.3f} | {ratio} |")
    return rows


def main() -> None:
    """Measure with batches of 8 and 1 images, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="miniature")
    parser.add_argument("--prompt", default="a photo of a grand piano on a road")
    parser.add_argument("--phrases", nargs="+", default=["grand piano", "road"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=7)
    options = parser.parse_args()
    pipeline = load_pipeline(options.model)
    with quiet():
        rows = [
            row
            for images in (8, 1)
            for row in measure(
                pipeline, options.prompt, options.phrases, images, options.steps, options.pairs
            )
        ]
    device = torch.cuda.get_device_name() if pipeline.device.type == "cuda" else platform.machine()
    w, h = default_size_wh(pipeline)
    page = [
        "# What tracing costs",
        "",
        fill(
            f"Measured by `python reports/speed/tracing.py`: {type(pipeline).__name__} `{options.model}`, "
            f"{w} x {h} px, {pipeline.dtype}, {options.steps} steps with guidance, {len(options.phrases)} "
            f"phrases. Medians of {options.pairs} turns; ratios are taken pair by pair (smallest to "
            f"largest). {torch.get_num_threads()} thread(s), {device}, torch {torch.__version__}, diffusers "
            f"{diffusers.__version__}.",
            120,
            break_on_hyphens=False,
        ),
        "",
        "| batch | attention | seconds per image | ratio to untraced |",
        "|---|---|---|---|",
        *rows,
        "",
        "daam supports one image per call, so its row for batch 8 is 8 calls. It also computes the complete "
        "softmax over all",
        "tokens.",
    ]
    Path(__file__).with_suffix(".md").write_text("\n".join(page) + "\n", encoding="utf-8")
    print("\n".join(page))


if __name__ == "__main__":
    main()
