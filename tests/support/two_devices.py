"""Two processes on the CPU in place of two GPUs: machines of tests have none.

Precision and data loaders are those of a CPU. All else is as on GPUs: Ultralytics' script, its launcher, its
processes and its trainer.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from diffugen.detectors import yolo, yolo_fit

FAILURE = "DIFFUGEN_TEST_FAILS"
"""What the second process says before it fails, if this is set in the environment."""


def _start(self: Any, *arguments: Any, overrides: dict[str, Any], **more: Any) -> None:
    from ultralytics.models.yolo.segment import SegmentationTrainer
    from ultralytics.utils import LOCAL_RANK

    SegmentationTrainer.__init__(self, *arguments, overrides={**overrides, "device": "cpu"}, **more)
    self.world_size = 2
    self.ddp = LOCAL_RANK == -1


def _join(self: Any) -> None:
    import torch.distributed as dist

    rank = int(os.environ["RANK"])
    dist.init_process_group(backend="gloo", rank=rank, world_size=self.world_size)
    parallel = torch.nn.parallel.DistributedDataParallel
    torch.nn.parallel.DistributedDataParallel = lambda model, device_ids=None, **more: parallel(model, **more)
    (Path(self.args.project) / f"process-{rank}").write_text(str(os.getpid()))
    if rank == 1 and FAILURE in os.environ:
        raise RuntimeError(os.environ[FAILURE])


def use_two_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``cuda:0,1`` stand for two processes on the CPU where a YOLO model is trained."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(yolo, "hardware_arguments", lambda device: {"amp": False, "workers": 0})
    monkeypatch.setattr(
        yolo_fit, "_FITTING_METHODS", {**yolo_fit._FITTING_METHODS, "__init__": _start, "_setup_ddp": _join}
    )
