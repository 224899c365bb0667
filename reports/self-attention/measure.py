"""Measure what spreading heat along self-attention does to labels, on the miniature.

    python reports/self-attention/measure.py

Generates images of a few kinds of prompt, and labels each with no to four steps of the random walk
(`labels.self_attention`). The oracle, a segmentation model trained on exact masks, judges the labels. Writes
README.md and numbers.json beside itself.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffugen.config import LabelSettings, ScoreWeights
from diffugen.config.load import load_config
from diffugen.diffusion.generate import generate
from diffugen.diffusion.jobs import PromptJobs
from diffugen.diffusion.pipelines import default_size_wh, load_pipeline
from diffugen.labels.label import label
from diffugen.miniature import oracle
from diffugen.miniature.measure import BAD_IOU, SETTINGS, WEIGHTS, class_mask, iou
from diffugen.miniature.scenes import CLASSES
from diffugen.prompts.make import make_prompts
from diffugen.records import GeneratedImage, ImageRecord
from diffugen.run.codec import heat_maps_to_npz

HERE = Path(__file__).parent
STEPS = range(5)
KINDS: dict[str, tuple[str, ...]] = {
    "piano": ("piano",),
    "car": ("car",),
    "person": ("person",),
    "piano + car": ("piano", "car"),
    "person + traffic cone": ("person", "traffic cone"),
    "car + truck": ("car", "truck"),
}
LOOKS = {"weather": ("sunny", "cloudy", "rainy", "snowy", "foggy"), "time": ("day", "sunset", "night")}
TIMES = 3
"""How often the time of a batch is measured; the shortest counts."""


def jobs_of(classes: Sequence[str], count: int, size_wh: tuple[int, int]) -> PromptJobs:
    """Return the images to make of one kind of prompt."""
    words = {name: ("grand piano", "piano") if name == "piano" else (name,) for name in classes}
    things = " and ".join(f"a {{{name}}}" for name in classes)
    template = f"a photo of {things} on a road, {{weather}}, {{time}}"
    prompts = make_prompts([template], LOOKS, words, ("road",), count=count, sampling="sample", seed=17)
    return PromptJobs(
        prompts, images_per_prompt=1, run_seed=17, size_wh=size_wh, model="miniature", settings=SETTINGS
    )


def labelled_ious(
    images: Sequence[GeneratedImage],
    truths: NDArray[np.int64],
    classes: Sequence[str],
    settings: LabelSettings,
) -> list[list[float]]:
    """Return, for each image, the IoU of the label of each class that the oracle finds in it."""
    ious = []
    for (_, rgb, heat_maps, _), truth in zip(images, truths, strict=True):
        instances = label(heat_maps, settings, ScoreWeights(), rgb)
        ious.append(
            [
                iou(class_mask(instances, name), truth == 1 + CLASSES.index(name))
                for name in classes
                if oracle.found(truth, name)
            ]
        )
    return ious


def summary(ious: Sequence[Sequence[float]], baseline: Sequence[Sequence[float]]) -> dict[str, float]:
    """Return mean IoU, share of bad labels, and gain over the baseline with its standard error by image."""
    values = np.concatenate([np.array(one) for one in ious if one])
    gains = np.array(
        [np.mean(one) - np.mean(other) for one, other in zip(ious, baseline, strict=True) if one]
    )
    return {
        "labels": len(values),
        "iou": round(float(values.mean()), 4),
        "bad": round(float((values < BAD_IOU).mean()), 4),
        "gain": round(float(gains.mean()), 4),
        "error": round(float(gains.std(ddof=1) / math.sqrt(len(gains))), 4),
    }


def cost(pipeline: Any, jobs: Sequence[ImageRecord]) -> dict[str, float]:
    """Return seconds and bytes of heat maps per image, without and with self-attention, in turns."""
    names = {False: "without", True: "with"}
    times: dict[bool, list[float]] = {False: [], True: []}
    found = {}
    for turn in range(2 * TIMES):
        keep = bool(turn % 2)
        start = time.perf_counter()
        images = list(generate(pipeline, jobs, batch_size=len(jobs), keep_self_attention=keep))
        times[keep].append((time.perf_counter() - start) / len(jobs))
        found[f"seconds {names[keep]}"] = round(min(times[keep]), 3)
        found[f"bytes {names[keep]}"] = round(np.mean([len(heat_maps_to_npz(one[2])) for one in images]))
    return found


def measure(count: int) -> dict[str, Any]:
    """Return all numbers."""
    pipeline, judge = load_pipeline("miniature"), oracle.load_oracle(WEIGHTS / "oracle")
    size_wh = default_size_wh(pipeline)
    configured = load_config("miniature").labels.changed(source="attention")
    variants = {"configured": configured, "not refined": configured.changed(refine="none")}
    ious: dict[str, dict[int, dict[str, list[list[float]]]]] = {
        name: {steps: {} for steps in STEPS} for name in variants
    }
    for kind, classes in KINDS.items():
        print(kind, flush=True)
        images = list(
            generate(pipeline, jobs_of(classes, count, size_wh), batch_size=8, keep_self_attention=True)
        )
        truths = oracle.segment(judge, [rgb for _, rgb, _, _ in images])
        for name, settings in variants.items():
            for steps in STEPS:
                ious[name][steps][kind] = labelled_ious(
                    images, truths, classes, settings.changed(self_attention=steps)
                )
    groups = {"one object": singles(), "two objects": [kind for kind in KINDS if kind not in singles()]}
    groups |= {kind: [kind] for kind in KINDS}
    return {
        "images of a kind": count,
        "cost": cost(pipeline, jobs_of(KINDS["car"], 8, size_wh)),
        "labels": {
            name: {
                group: {
                    str(steps): summary(
                        [one for kind in kinds for one in by_steps[steps][kind]],
                        [one for kind in kinds for one in by_steps[0][kind]],
                    )
                    for steps in STEPS
                }
                for group, kinds in groups.items()
            }
            for name, by_steps in ious.items()
        },
    }


INTRODUCTION = """\
Made by `python reports/self-attention/measure.py`: {count} images of each of {kinds} kinds of prompt, 20 DDIM
steps, guidance scale 3, judged by the oracle (see [the miniature, measured](../miniature/README.md)). Labels
use the settings of `configs/miniature.yaml` without the witness, and *steps* of the random walk
(`labels.self_attention`) along the self-attention of the 16x16 cells of the latents; no setting was chosen
on these images. *Not refined* leaves out `labels.refine`, which moves edges to where the colours change. A
label is *bad* if its IoU with the oracle's mask is below .5; the first number of a cell is the mean IoU.
*Gain* is the mean difference in IoU from the same image without a walk, with its standard error over
images."""

COST = """\
Keeping the self-attention takes {with_seconds:.2f} s per image instead of {without_seconds:.2f} (batch of 8,
best of {times}, in turns; on a busy machine both vary by more than they differ), and {with_kb:.0f} KB of heat
maps instead of {without_kb:.0f}. Images are bit-identical."""


def page(numbers: dict[str, Any]) -> str:
    """Return the page."""
    cost = numbers["cost"]
    parts = [
        "# Heat that spreads along self-attention",
        filled(INTRODUCTION.format(count=numbers["images of a kind"], kinds=len(KINDS))),
        filled(verdict(numbers["labels"])),
    ]
    for name, by_group in numbers["labels"].items():
        parts += [f"## Labels {name}", table(by_group)]
    parts += [
        "## Cost",
        filled(
            COST.format(
                with_seconds=cost["seconds with"],
                without_seconds=cost["seconds without"],
                with_kb=cost["bytes with"] / 1e3,
                without_kb=cost["bytes without"] / 1e3,
                times=TIMES,
            )
        ),
    ]
    return "\n\n".join(parts) + "\n"


def table(by_group: dict[str, dict[str, dict[str, float]]]) -> str:
    """Return a table with a row for each group of prompts, and a column for each number of steps."""
    lines = [
        "| prompts | labels | no walk | " + " | ".join(f"steps: {steps}" for steps in STEPS if steps) + " |",
        "|---|---|" + "---|" * len(STEPS),
    ]
    for group, by_steps in by_group.items():
        cells = [
            f"{one['iou']:.3f}, bad {one['bad']:.0%}"
            + (f", gain {one['gain']:+.3f} ± {one['error']:.3f}" if steps != "0" else "")
            for steps, one in by_steps.items()
        ]
        lines.append(f"| {group} | {by_steps['0']['labels']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def verdict(labels: dict[str, dict[str, dict[str, dict[str, float]]]]) -> str:
    """Return in a sentence per variant and number of objects which walks gain or lose."""
    sentences = []
    for name, by_group in labels.items():
        for group in ("one object", "two objects"):
            walks = {steps: one for steps, one in by_group[group].items() if steps != "0"}
            gaining = [steps for steps, one in walks.items() if one["gain"] > 2 * one["error"]]
            losing = [steps for steps, one in walks.items() if one["gain"] < -2 * one["error"]]
            found = f"a gain with steps {', '.join(gaining)}" if gaining else "no gain"
            found += f", a loss with steps {', '.join(losing)}" if losing else ""
            sentences.append(f"{group}, {name}: {found}")
    return f"**Counting what exceeds two standard errors: {'; '.join(sentences)}.**"


def filled(text: str) -> str:
    """Return a paragraph in lines of at most 120 columns."""
    return fill(" ".join(text.split()), 120, break_on_hyphens=False, break_long_words=False)


def singles() -> list[str]:
    """Return the kinds of prompt that name one object."""
    return [kind for kind, classes in KINDS.items() if len(classes) == 1]


def main() -> None:
    """Measure, and write numbers and page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=40, help="images of each kind of prompt")
    numbers = measure(parser.parse_args().images)
    (HERE / "numbers.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    (HERE / "README.md").write_text(page(numbers), encoding="utf-8")


if __name__ == "__main__":
    main()
