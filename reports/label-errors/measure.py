"""Measure how well label errors are found: ours against cleanlab's ObjectLab and FiftyOne's mistakenness.

    python reports/label-errors/measure.py --work runs/label-errors

Writes README.md and results.json beside itself. Two worlds:

- *planted*: exact labels of scenes of `piano-among`, 20% of the images with one planted error;
- *attention*: real attention labels of generated images, wrong where the oracle says so.

Each is ranked with the help of a strong and of a weak detector, neither trained on these images. All rankers
see the same detections, one per object.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from numpy.typing import NDArray
from planted import KINDS, plant
from rankers import mistakenness, object_lab, ours

from diffugen import stages
from diffugen.comparison.matching import match
from diffugen.config import load_config
from diffugen.config.training import TrainingArguments
from diffugen.dataset.yolo import write_yolo
from diffugen.detectors.yolo import YoloDetector
from diffugen.labels.objects import finished
from diffugen.miniature.measure import WEIGHTS
from diffugen.miniature.oracle import load_oracle, oracle_instances, segment
from diffugen.miniature.scenes import CLASSES
from diffugen.miniature.sets import exact_instances, scene_set
from diffugen.records import Instances
from diffugen.review.database import database
from diffugen.run import Run
from diffugen.run.codec import rgb_to_png

HERE = Path(__file__).parent
NAMES = tuple(name for name in CLASSES if name != "bus")
BAD_SHARE = 0.2
GOOD_IOU = 0.5
"""From this mask IoU with the oracle on, a label is right."""
LEAST_CONFIDENCE = 0.05
UNKNOWN_SCORE = 0.5
"""Score of an exact or planted label: its annotator says nothing about it."""
FIRST = (0.1, 0.2, 0.3)
IMAGE_SIZE = 128
TRAINING = {"strong": (900, 16), "weak": (60, 6)}
"""Exactly labelled scenes and epochs of each detector."""
EXTRA = TrainingArguments(mosaic=0.0, mask_ratio=2, scale=0.25, warmup_epochs=0.0)


@dataclass
class World:
    """Images with labels of which some are wrong.

    Attributes:
        images: N images, uint8 (H, W, 3).
        labels: Their labels.
        errors: The kind of each image's error; empty for none.
    """

    images: list[NDArray[np.uint8]]
    labels: list[Instances]
    errors: list[str]


def planted(count: int, seed: int) -> World:
    """Return scenes with exact labels, a share of them with a planted error."""
    rng = np.random.default_rng(seed)
    world = World([], [], [])
    for number, drawn in enumerate(scene_set("piano-among", count, start=300_000)):
        exact = exact_instances(drawn).of_classes(NAMES)
        labels, kind = exact, ""
        if rng.random() < BAD_SHARE:
            kind = KINDS[number % len(KINDS)]
            labels = plant(exact, kind, NAMES, rng)
            kind = "" if labels is exact else kind
        scored = Instances(
            labels.size_wh, labels.class_names, labels.rles, np.full(len(labels), UNKNOWN_SCORE)
        )
        world.images.append(drawn.rgb)
        world.labels.append(scored)
        world.errors.append(kind)
    return world


def attention(count: int, seed: int, work: Path) -> World:
    """Return generated images with the labels of the paper's method, and what the oracle finds wrong.

    An image's error is its first of: a class `swapped`, an object `missing`, one that is `spurious`, a mask
    with an IoU below `GOOD_IOU` (`coarse`).
    """
    overrides = [f"seed={seed}", f"prompts.count={count}", "labels.method=paper", "labels.source=attention"]
    config = load_config("miniature", overrides)
    model = load_oracle(WEIGHTS / "oracle")
    world = World([], [], [])
    with Run.open(work / "run", config) as run:
        round = run.round(0)
        stages.generate(round, config.generation, config.labelling)
        method = stages.label(round, config.labelling).method
        for image_id in run.store.image_ids(0):
            rgb = run.store.image(image_id)
            labels = next(run.store.labels("attention", method, image_id=image_id)).instances
            truth = oracle_instances(segment(model, [rgb])[0], NAMES)
            world.images.append(rgb)
            world.labels.append(labels.of_classes(NAMES))
            world.errors.append(error(labels, truth))
    return world


def error(labels: Instances, truth: Instances) -> str:
    """Return the kind of the first error of an image's labels, or nothing."""
    kinds = set()
    for pair in match(labels, truth):
        if pair.first is None:
            kinds.add("missing")
        elif pair.second is None:
            kinds.add("spurious")
        elif labels.class_names[pair.first] != truth.class_names[pair.second]:
            kinds.add("swapped")
        elif pair.iou < GOOD_IOU:
            kinds.add("coarse")
    return next((kind for kind in ("swapped", "missing", "spurious", "coarse") if kind in kinds), "")


def detector(name: str, work: Path) -> YoloDetector:
    """Return a detector trained on exactly labelled scenes, disjoint from those that are ranked."""
    folder = work / f"detector-{name}"
    scenes, epochs = TRAINING[name]
    best = folder / "training" / "weights" / "best.pt"
    if not best.exists():
        items = [
            (f"scene-{number}", drawn.rgb, exact_instances(drawn).of_classes(NAMES))
            for number, drawn in enumerate(scene_set("piano-among", scenes, start=200_000))
        ]
        if not (folder / "dataset").exists():
            write_yolo(folder / "dataset", {"train": items}, NAMES)
        YoloDetector("miniature").fit(
            folder / "dataset",
            folder / "training",
            epochs=epochs,
            image_size=IMAGE_SIZE,
            seed=0,
            batch_size=8,
            extra=EXTRA,
        )
    return YoloDetector(best)


def detections(model: YoloDetector, images: Sequence[NDArray[np.uint8]]) -> list[Instances]:
    """Return one detection per object, as the loop does."""
    found = model.predict(images, image_size=IMAGE_SIZE, confidence=LEAST_CONFIDENCE)
    return [finished(one, rgb).of_classes(NAMES) for one, rgb in zip(found, images, strict=True)]


def judged(scores: NDArray[np.float64], bad: NDArray[np.bool_], seed: int = 0) -> dict[str, Any]:
    """Return AP and AUROC with 95% bootstrap intervals, and the share of bad images among the first."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    rng = np.random.default_rng(seed)
    noise = rng.random(len(scores)) * 1e-9  # ties in random order
    scores = scores + noise
    measures: dict[str, Callable[..., float]] = {"ap": average_precision_score, "auroc": roc_auc_score}
    result: dict[str, Any] = {}
    for name, measure in measures.items():
        drawn = []
        for _ in range(300):
            picks = rng.integers(0, len(scores), len(scores))
            if bad[picks].any() and not bad[picks].all():
                drawn.append(measure(bad[picks], scores[picks]))
        low, high = np.quantile(drawn, [0.025, 0.975])
        result[name] = [float(measure(bad, scores)), float(low), float(high)]
    order = np.argsort(-scores)
    result["first"] = {
        str(share): float(bad[order[: max(1, round(share * len(bad)))]].mean()) for share in FIRST
    }
    return result


def rankings(world: World, found: list[Instances], files: list[Path]) -> dict[str, NDArray[np.float64]]:
    """Return the scores of every ranker."""
    return {
        "ours": ours(world.labels, found),
        "ObjectLab": object_lab(world.labels, found, NAMES, stretch=False),
        "ObjectLab, stretched": object_lab(world.labels, found, NAMES, stretch=True),
        "mistakenness": mistakenness(world.labels, found, files, combined=False),
        "all of FiftyOne, stretched": mistakenness(world.labels, found, files, combined=True),
    }


def measure(worlds: dict[str, World], work: Path) -> dict[str, Any]:
    """Rank each world with each detector; return the results by world, detector and ranker."""
    results: dict[str, Any] = {}
    with database(work / "database"):
        for name, world in worlds.items():
            folder = work / name
            folder.mkdir(parents=True, exist_ok=True)
            files = [folder / f"{number:04}.png" for number in range(len(world.images))]
            for path, rgb in zip(files, world.images, strict=True):
                path.write_bytes(rgb_to_png(rgb))
            errors = np.array(world.errors)
            for strength in TRAINING:
                found = detections(detector(strength, work), world.images)
                for ranker, scores in rankings(world, found, files).items():
                    one = judged(scores, errors != "")
                    one["kinds"] = {
                        kind: judged(scores[keep], errors[keep] != "")["ap"][0]
                        for kind in sorted(set(errors) - {""})
                        if (keep := (errors == kind) | (errors == "")).any()
                    }
                    results.setdefault(name, {}).setdefault(strength, {})[ranker] = one
            results[name]["images"] = len(errors)
            results[name]["bad"] = {kind: int((errors == kind).sum()) for kind in sorted(set(errors) - {""})}
    return results


def page(results: dict[str, Any], command: str) -> str:
    """Return the report as Markdown."""
    lines = ["# How well label errors are found", "", f"Command: `{command}`", ""]
    lines += [*(__doc__ or "").split("\n\n")[3].splitlines(), ""]
    lines += [*(__doc__ or "").split("\n\n")[4].splitlines(), ""]
    for name, world in results.items():
        bad = sum(world["bad"].values())
        lines += [
            f"## {name.capitalize()} errors",
            "",
            f"n = {world['images']} images, {bad} of them bad.",
            "",
        ]
        for strength in TRAINING:
            rows = world[strength]
            lines += [f"### {strength.capitalize()} detector", ""]
            head = ["ranker", "AP", "AUROC", *(f"bad in the first {float(s):.0%}" for s in FIRST)]
            lines += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
            for ranker, one in rows.items():
                cells = [ranker] + ["{:.2f} ({:.2f}-{:.2f})".format(*one[key]) for key in ("ap", "auroc")]
                cells += [f"{one['first'][str(share)]:.0%}" for share in FIRST]
                lines.append("| " + " | ".join(cells) + " |")
            kinds = list(world["bad"])
            if len(kinds) > 1:
                lines += ["", "AP by kind of error, against the images without any:", ""]
                lines += [
                    "| ranker | " + " | ".join(f"{kind} (n = {world['bad'][kind]})" for kind in kinds) + " |"
                ]
                lines += ["|---" * (len(kinds) + 1) + "|"]
                for ranker, one in rows.items():
                    lines.append(
                        f"| {ranker} | " + " | ".join(f"{one['kinds'][kind]:.2f}" for kind in kinds) + " |"
                    )
            lines += ["", *behind(rows), ""]
    return "\n".join(lines)


def behind(rows: dict[str, Any]) -> list[str]:
    """Return sentences about where another ranker is ahead of ours."""
    others = {name: one for name, one in rows.items() if name != "ours"}
    said = []
    best = max(others, key=lambda name: float(others[name]["ap"][0]))
    if others[best]["ap"][2] > rows["ours"]["ap"][1]:
        said.append(f"The intervals of our AP and that of {best} overlap: the lead may be chance.")
    kinds = [
        f"{kind} ({name}: {one['kinds'][kind]:.2f} against {value:.2f})"
        for kind, value in rows["ours"]["kinds"].items()
        for name, one in others.items()
        if round(one["kinds"][kind], 2) > round(value, 2)
    ]
    if kinds:
        said.append(f"Ours is behind on {', '.join(kinds)}.")
    shares = [
        f"the first {float(share):.0%} ({name})"
        for share, value in rows["ours"]["first"].items()
        for name, one in others.items()
        if one["first"][share] > value
    ]
    if shares:
        said.append(f"Others find more bad images in {', '.join(shares)}.")
    return [fill(" ".join(said), 120)] if said else []


def main() -> None:
    """Measure, and write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("runs/label-errors"))
    parser.add_argument("--out", type=Path, default=HERE)
    arguments = parser.parse_args()
    worlds = {
        "planted": planted(arguments.images, arguments.seed),
        "attention": attention(arguments.images // 2, arguments.seed + 900, arguments.work),
    }
    results = measure(worlds, arguments.work)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    command = f"python reports/label-errors/measure.py --images {arguments.images} --seed {arguments.seed}"
    (arguments.out / "README.md").write_text(page(results, command))


if __name__ == "__main__":
    main()
