"""Stages ask the executor where models run, so that workers may see other GPUs than the configured ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diffugen.config import load_config
from diffugen.run.executors import LocalExecutor
from diffugen.stages import verbs
from diffugen.stages.verbs import open_run
from tests.support.sam_models import random_sam, shrink


class Elsewhere(LocalExecutor):
    """Work that loads its own models, as on another machine; there is only a CPU."""

    spreads = True

    def __init__(self) -> None:
        self.asked: list[str] = []

    def worker_device(self, device: str) -> str:
        self.asked.append(device)
        return "cpu"


def test_models_of_workers_run_where_the_executor_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This process sees GPUs by number; they are made up, so whatever went to one would fail."""
    shrink(monkeypatch)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    settings = ["prompts.count=2", "diffusion.num_inference_steps=2", "diffusion.device=cuda:1"]
    settings += ["detector.device=cuda:2,0", f"labels.segmenter={random_sam(tmp_path, 'mobile_sam.pt')}"]
    settings += ["labels.refine=sam"]
    executor = Elsewhere()
    with open_run(tmp_path / "run", load_config("miniature", settings)) as run:
        run.run.executor = executor
        assert verbs.generate(run).images == 2
        assert verbs.label(run).images == verbs.relabel(run).images == 2
    assert set(executor.asked) == {"cuda:1", "cuda:2,0"}
