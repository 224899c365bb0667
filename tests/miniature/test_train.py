"""Training creates all weights from scratch; a second call skips them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from diffugen.detectors.yolo import YoloDetector
from diffugen.diffusion.pipelines import default_size_wh, load_pipeline
from diffugen.miniature import oracle
from diffugen.miniature.scenes import KNOWN_CLASSES
from diffugen.miniature.train import RECIPES, STAGES, train


@pytest.mark.slow
def test_all_weights_from_scratch(tmp_path: Path) -> None:
    told: list[str] = []
    train(tmp_path, recipe="smoke", notify=told.append)
    assert {line.split(":")[0] for line in told} >= {"autoencoder", "detector", "oracle"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["detector", "diffusion", "oracle", "work"]
    assert (tmp_path / "work" / f"samples-{RECIPES['smoke'].steps:06}.png").stat().st_size > 10_000
    assert (tmp_path / "work" / "log.jsonl").read_text().count("\n") == len(told)

    assert StableDiffusionPipeline.from_pretrained(tmp_path / "diffusion").text_encoder.dtype == torch.float32
    pipeline = load_pipeline(tmp_path / "diffusion")
    assert default_size_wh(pipeline) == RECIPES["smoke"].size_wh
    detector = YoloDetector(tmp_path / "detector")
    assert detector.class_names == KNOWN_CLASSES
    assert detector.image_size == 2 * max(RECIPES["smoke"].size_wh)
    labels = oracle.segment(oracle.load_oracle(tmp_path / "oracle"), [np.zeros((32, 32, 3), np.uint8)])
    assert labels.shape == (1, 32, 32)
    for config in (tmp_path / "diffusion").rglob("*.json"):
        assert str(tmp_path) not in config.read_text(), f"{config} contains a path on this machine"

    told.clear()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    train(tmp_path, recipe="smoke", stages=STAGES, notify=told.append)
    assert told == []
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
