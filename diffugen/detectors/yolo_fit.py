"""One training run of a YOLO segmentation model by Ultralytics, offline and silent.

Knows Ultralytics' trainer and its arguments. Does not know the forms of a checkpoint, prediction or memory.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from diffugen.dataset.yolo_layout import read_layout
from diffugen.detectors import OnEpoch, OnStep
from diffugen.detectors.yolo_checkpoint import Checkpoint, contained
from diffugen.detectors.yolo_gpus import tell_epoch, tell_step, train_in_processes
from diffugen.errors import ModelError, first_line


def fit_once(
    arguments: Mapping[str, Any],
    checkpoint: Checkpoint,
    on_epoch: OnEpoch | None,
    on_step: OnStep | None,
    batch_size: int,
) -> Path:
    """Train with a fixed batch size and return the path of the best checkpoint, or the last if none is best.

    Args:
        arguments: Ultralytics' training arguments, without ``batch``. Each of several devices gets a process.
        checkpoint: Architecture and weights to start from.
        on_epoch: Called after each epoch.
        on_step: Called after each step with the epochs done, as a fraction.
        batch_size: Images per step, on all devices together.

    Raises:
        ModelError: Ultralytics rejects an argument, or training fails or leaves no checkpoint.
    """
    import torch
    from ultralytics.models.yolo.segment import SegmentationTrainer

    fitting_class = type("Fitting", (SegmentationTrainer,), _FITTING_METHODS)
    model, threads = arguments["model"], torch.get_num_threads()
    with contained():
        try:
            fitting = fitting_class(overrides={**arguments, "batch": batch_size})
        except (TypeError, ValueError, SyntaxError, RuntimeError, FileNotFoundError) as error:
            raise ModelError(f"Ultralytics refuses to train {model}: {first_line(error)}") from error
        torch.set_num_threads(threads)
        for path in (fitting.best, fitting.last):
            path.unlink(missing_ok=True)
        fitting.model = fitting.get_model(
            cfg=copy.deepcopy(checkpoint.architecture), weights=checkpoint.weights, verbose=False
        )
        to_epoch, to_step = (tell_epoch, tell_step) if fitting.ddp else (on_epoch, on_step)
        if to_epoch is not None:
            fitting.add_callback("on_fit_epoch_end", partial(_report_epoch, on_epoch=to_epoch))
        if to_step is not None:
            fitting.add_callback("on_train_batch_end", _StepReport(to_step))
        if fitting.ddp:
            train_in_processes(fitting, on_epoch, on_step)
        else:
            fitting.train()
    made = [path for path in (fitting.best, fitting.last) if path.exists()]
    if not made:
        raise ModelError(f"training {model} left no checkpoint in {fitting.wdir}; see {fitting.csv}")
    return Path(made[0])


def label_caches(dataset: Path) -> set[Path]:
    """Return the cache files that Ultralytics leaves in a dataset's folder; they hold absolute paths."""
    return set(dataset.rglob("*.cache"))


def hardware_arguments(device: str) -> dict[str, Any]:
    """Return precision and number of loader processes; no float16, since its check downloads a model."""
    import torch

    cores = os.cpu_count() or 1
    on_gpu = device.startswith("cuda")
    return {
        "amp": "bf16" if on_gpu and torch.cuda.is_bf16_supported() else False,
        "workers": min(8, cores) if on_gpu and cores > 4 else 0,
    }


def _reports() -> bool:
    """Return whether this process reports for all that train: it is the only one, or the first."""
    from ultralytics.utils import RANK

    return RANK in (-1, 0)


def _report_epoch(fitting: Any, on_epoch: OnEpoch) -> None:
    if _reports():
        values = {**fitting.label_loss_items(fitting.tloss), **fitting.metrics}
        on_epoch(fitting.epoch + 1, {name: float(value) for name, value in values.items()})


@dataclass
class _StepReport:
    on_step: OnStep
    done: int = 0

    def __call__(self, fitting: Any) -> None:
        steps = len(fitting.train_loader)
        self.done += 1
        if _reports():
            # An epoch ends with a validation, which counts as one more step, so no epoch is done before that.
            self.on_step(fitting.epoch + ((self.done - 1) % steps + 1) / (steps + 1))


def _strip_checkpoints(fitting: Any) -> None:
    from ultralytics.utils.torch_utils import strip_optimizer

    for path in (fitting.last, fitting.best):
        if _reports() and path.exists():
            strip_optimizer(path)


def _dataset(fitting: Any) -> Any:
    from ultralytics.models.yolo.segment import SegmentationTrainer

    found = SegmentationTrainer.get_dataset(fitting)
    # Ultralytics reads YAML 1.1, where a class called no is False.
    found["names"] = dict(sorted(read_layout(Path(fitting.args.data)).class_names.items()))
    return found


# The training class must not have "Trainer" in its name, or Ultralytics would add trackers and uploads to it.
# It also skips what nobody reads: a second validation of the best epoch, and every epoch's losses in each
# checkpoint.
_FITTING_METHODS: dict[str, Any] = {
    "get_dataset": _dataset,
    "final_eval": _strip_checkpoints,
    "read_results_csv": lambda fitting: {},
}
