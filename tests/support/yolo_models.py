"""Tiny YOLO models with random weights, for tests of what does not depend on what a model has learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffugen.detectors.yolo import YoloDetector
from diffugen.detectors.yolo_checkpoint import import_ultralytics
from tests.support.detector_contract import scene


def random_model(architecture: str) -> Any:
    """Return a model of cars and trucks; a YOLOE model has prompts for them."""
    import_ultralytics()
    from ultralytics.nn.tasks import SegmentationModel, YOLOESegModel

    torch.manual_seed(0)
    if architecture.startswith("yoloe"):
        model = YOLOESegModel(architecture, verbose=False)
        model.set_classes(["car", "truck"], torch.nn.functional.normalize(torch.randn(1, 2, 512), dim=-1))
        for head in model.model[-1].cv4:
            torch.nn.init.zeros_(head.bias)  # else almost nothing is found
    else:
        model = SegmentationModel(architecture, nc=2, verbose=False)
        model.names = {0: "car", 1: "truck"}
    return model


def random_detector(architecture: str, folder: Path) -> YoloDetector:
    """Return a detector whose predictions are worthless but depend on every pixel.

    Its weights are random and its batch norms are set so that activations on scenes are normalised.
    """
    model = random_model(architecture)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    images = torch.from_numpy(
        np.stack([np.pad(scene(seed)[1], ((0, 16), (0, 0), (0, 0))) for seed in range(8)])
    )
    with torch.no_grad():
        model.train()(images.permute(0, 3, 1, 2) / 255)
    file = folder / "random.pt"
    torch.save({"model": model.half().eval(), "train_args": {"task": "segment"}}, file)
    return YoloDetector(file, device="cpu")


def detect_model(folder: Path) -> Path:
    """Write a model that finds boxes alone."""
    import_ultralytics()
    from ultralytics.nn.tasks import DetectionModel

    torch.save({"model": DetectionModel("yolov8n.yaml", nc=2, verbose=False)}, folder / "detect.pt")
    return folder / "detect.pt"
