"""Measure how well both kinds of detectors learn the miniature's scenes from exact labels, at the same cost.

    python reports/detectors/measure.py --work runs/detectors-report

Trains a tiny Mask2Former with random weights, then the architecture of the embedded YOLOv8n-seg, also with
random weights, for as many epochs as fit into the same processor time. Both learn the same scenes of streets,
choose their best epoch on others, and are measured on others again, none of them of a test set. Writes
README.md and numbers.json beside itself. After an interruption, the same command continues.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import fill
from typing import Any

from transformers import Mask2FormerConfig, SwinConfig

from diffugen.comparison.metrics import average_precision
from diffugen.config.training import TrainingArguments
from diffugen.dataset.files import Item
from diffugen.dataset.yolo import write_yolo
from diffugen.detectors import Detector
from diffugen.detectors.load import open_checkpoint
from diffugen.errors import counted
from diffugen.miniature.scenes import KNOWN_CLASSES
from diffugen.miniature.sets import exact_instances, scene_set

HERE = Path(__file__).parent
SCENES = "streets"
FIRST = {"train": 1_000_000, "val": 2_000_000, "test": 3_000_000}
"""Number of the first scene of each part; the parts share none."""

HELD_OUT = {"val": 40, "test": 300}
IMAGE_SIZE, BATCH_SIZE, CONFIDENCE = 96, 8, 0.01
MASK2FORMER, YOLO = "Mask2Former, tiny", "YOLOv8n-seg"


def architecture() -> Mask2FormerConfig:
    """Return a Mask2Former that learns small scenes on a CPU: 20 queries, no dropout, auxiliary losses."""
    backbone = SwinConfig(
        embed_dim=32,
        depths=[1, 1, 2, 1],
        num_heads=[1, 2, 4, 8],
        window_size=4,
        drop_path_rate=0.0,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    return Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=64,
        mask_feature_size=64,
        hidden_dim=64,
        encoder_feedforward_dim=128,
        dim_feedforward=128,
        encoder_layers=2,
        decoder_layers=4,
        num_attention_heads=4,
        num_queries=20,
        train_num_points=1024,
    )


@dataclass
class Curve:
    """The epochs of a training, kept in a file as they end.

    Attributes:
        file: The file.
        epochs: Number, seconds, loss and mask AP50 on the validation scenes of each.
    """

    file: Path
    epochs: list[dict[str, float]] = field(default_factory=list)
    since: float = field(default_factory=time.process_time)

    def __post_init__(self) -> None:
        if self.file.exists():
            self.epochs = json.loads(self.file.read_text(encoding="utf-8"))

    def add(self, epoch: int, values: Mapping[str, float]) -> None:
        """Print an epoch and keep it; those that it repeats are forgotten."""
        now = time.process_time()
        loss = sum(value for name, value in values.items() if name.startswith("train/"))
        ap50 = values["metrics/mAP50(M)"]
        self.epochs = [one for one in self.epochs if one["epoch"] < epoch]
        self.epochs.append({"epoch": epoch, "seconds": now - self.since, "loss": loss, "val_mask_ap50": ap50})
        self.since = now
        self.file.write_text(json.dumps(self.epochs), encoding="utf-8")
        print(
            f"{self.file.stem}: epoch {epoch}, loss {loss:.2f}, AP50 {ap50:.3f}, {self.seconds:.0f} s",
            flush=True,
        )

    @property
    def seconds(self) -> float:
        """Processor time of all epochs, in seconds."""
        return sum(one["seconds"] for one in self.epochs)


def items(part: str, count: int) -> Iterator[Item]:
    """Yield scenes with exact labels."""
    for number, drawn in enumerate(scene_set(SCENES, count, start=FIRST[part])):
        yield f"{part}-{number:05d}", drawn.rgb, exact_instances(drawn).of_classes(KNOWN_CLASSES)


def dataset(work: Path, images: int) -> Path:
    """Write the scenes to train on, unless they exist."""
    folder = work / f"scenes-{images}"
    if not folder.exists():
        write_yolo(
            folder, {"train": items("train", images), "val": items("val", HELD_OUT["val"])}, KNOWN_CLASSES
        )
    return folder


def train_mask2former(scenes: Path, work: Path, epochs: int, seed: int) -> dict[str, Any]:
    """Train the Mask2Former, or continue, and return what there is to say about it."""
    architecture().save_pretrained(work / "mask2former")
    curve = Curve(work / "curve-mask2former.json")
    best = work / "training-mask2former" / "weights" / "best"
    if not best.exists():
        open_checkpoint(work / "mask2former").fit(
            scenes,
            work / "training-mask2former",
            epochs=epochs,
            image_size=IMAGE_SIZE,
            seed=seed,
            batch_size=BATCH_SIZE,
            lr0=1e-3,
            on_epoch=curve.add,
        )
    return measured(open_checkpoint(best), curve)


def train_yolo(scenes: Path, work: Path, seconds: float, seed: int) -> dict[str, Any]:
    """Train a YOLO model for about as many processor seconds, and return what there is to say about it."""
    start = open_checkpoint("yolov8n-seg.yaml")
    more: dict[str, Any] = {
        "image_size": IMAGE_SIZE,
        "seed": seed,
        "batch_size": BATCH_SIZE,
        "extra": TrainingArguments(mosaic=0.0, mask_ratio=2),
    }
    trial = Curve(work / "curve-trial.json", since=time.process_time())
    start.fit(scenes, work / "training-trial", epochs=2, on_epoch=trial.add, **more)
    epochs = max(1, round(seconds / trial.epochs[-1]["seconds"]))
    curve = Curve(work / "curve-yolo.json")
    best = start.fit(scenes, work / "training-yolo", epochs=epochs, on_epoch=curve.add, **more)
    return measured(open_checkpoint(best), curve)


def measured(detector: Detector, curve: Curve) -> dict[str, Any]:
    """Return a detector's average precision on the test scenes, its size, and the course of its training."""
    scenes = list(items("test", HELD_OUT["test"]))
    found = detector.predict([rgb for _, rgb, _ in scenes], image_size=IMAGE_SIZE, confidence=CONFIDENCE)
    result = average_precision([(truth, one) for (_, _, truth), one in zip(scenes, found, strict=True)])
    return {
        "mask_ap50": result.ap50,
        "mask_ap50_95": result.ap50_95,
        "mask_ap50_by_class": dict(result.ap50_by_class),
        "seconds": curve.seconds,
        "epochs": curve.epochs,
    }


def page(numbers: Mapping[str, Any], command: str) -> str:
    """Return the page: a row per detector, and how the Mask2Former learned."""
    detectors: Mapping[str, Any] = numbers["detectors"]
    lines = [
        "# Two kinds of detectors",
        "",
        f"Measured by `{command}`.",
        "",
        fill(
            f"Both begin with random weights and learn {numbers['images']} scenes of streets with exact "
            f"masks, at {IMAGE_SIZE} px; the YOLO model trains for as many epochs as fit into the "
            f"Mask2Former's processor time, on {counted(numbers['threads'], 'thread')}. The table gives "
            f"mask AP on {HELD_OUT['test']} other scenes. The "
            "Mask2Former is far smaller than any published one (reports/detectors/measure.py); the point is "
            "that `detector.checkpoint` trains either, not which is better on photographs.",
            120,
            break_on_hyphens=False,
        ),
        "",
        "| detector | epochs | processor minutes | AP50 | AP50-95 | "
        + " | ".join(f"AP50 {name}" for name in KNOWN_CLASSES)
        + " |",
        "|---|" + "---|" * (4 + len(KNOWN_CLASSES)),
    ]
    for name, one in detectors.items():
        by_class = (f"{one['mask_ap50_by_class'][known]:.3f}" for known in KNOWN_CLASSES)
        lines.append(
            f"| {name} | {len(one['epochs'])} | {one['seconds'] / 60:.1f} | {one['mask_ap50']:.3f} "
            f"| {one['mask_ap50_95']:.3f} | {' | '.join(by_class)} |"
        )
    shown = detectors[MASK2FORMER]["epochs"]
    shown = shown[:: max(1, len(shown) // 10)]
    lines += [
        "",
        "How the Mask2Former learns:",
        "",
        "| epoch | " + " | ".join(str(one["epoch"]) for one in shown) + " |",
        "|---|" + "---|" * len(shown),
        "| loss | " + " | ".join(f"{one['loss']:.1f}" for one in shown) + " |",
        "| AP50, validation | " + " | ".join(f"{one['val_mask_ap50']:.2f}" for one in shown) + " |",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Train both, measure them, and write the page."""
    import torch

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("runs/detectors-report"))
    arguments = parser.parse_args()
    work = arguments.work / f"{arguments.images}-{arguments.epochs}-{arguments.seed}"
    work.mkdir(parents=True, exist_ok=True)
    kept = work / "numbers.json"
    detectors: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    scenes = dataset(arguments.work, arguments.images)
    if MASK2FORMER not in detectors:
        detectors[MASK2FORMER] = train_mask2former(scenes, work, arguments.epochs, arguments.seed)
        kept.write_text(json.dumps(detectors), encoding="utf-8")
    if YOLO not in detectors:
        seconds = detectors[MASK2FORMER]["seconds"]
        detectors[YOLO] = train_yolo(scenes, work, seconds, arguments.seed)
        kept.write_text(json.dumps(detectors), encoding="utf-8")
    numbers = {
        "images": arguments.images,
        "seed": arguments.seed,
        "threads": torch.get_num_threads(),
        "detectors": detectors,
    }
    (HERE / "numbers.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    command = (
        f"python reports/detectors/measure.py --images {arguments.images} --epochs {arguments.epochs} "
        f"--seed {arguments.seed}"
    )
    (HERE / "README.md").write_text(page(numbers, command), encoding="utf-8")


if __name__ == "__main__":
    main()
