"""Checkpoints of YOLO segmentation models: load each kind, save as safetensors, import Ultralytics quietly.

With `diffugen.detectors.yolo` the only home of ultralytics (AGPL-3.0). Knows no images, datasets or training.

A checkpoint is one of
- a folder with ``model.safetensors`` and ``model.json``, as `save_safetensors` makes it,
- ``miniature``: such a folder that comes with DiffuGen, of a detector of cars, trucks, people and traffic
  cones,
- an Ultralytics ``.pt`` file, unpickled with Ultralytics' list of allowed classes only,
- the name of an architecture, such as ``yolov8n-seg.yaml``: no weights; it can be fitted but cannot predict.
"""

from __future__ import annotations

import atexit
import copy
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from diffugen.errors import ModelError

if TYPE_CHECKING:
    from ultralytics.nn.tasks import SegmentationModel

MINIATURE = "miniature"
_SWITCHES = {
    "YOLO_OFFLINE": "true",
    "YOLO_AUTOINSTALL": "false",
    "YOLO_VERBOSE": "false",
    "ULTRALYTICS_SAFE_LOAD": "true",
}


def save_safetensors(checkpoint: Path | str, folder: Path) -> Path:
    """Write a checkpoint as ``model.safetensors`` (float16) and ``model.json`` into a folder that
    `YoloDetector` loads.

    Raises:
        ModelError: If the checkpoint cannot be loaded or has no weights.
    """
    from safetensors.torch import save_file

    import_ultralytics()
    architecture, model = load_checkpoint(Path(checkpoint))
    if model is None:
        raise ModelError(f"{checkpoint} is an architecture without weights; fit it first")
    tensors = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in model.state_dict().items()
    }
    about = {
        "task": "segment",
        "class_names": [model.names[number] for number in sorted(model.names)],
        "architecture": {key: value for key, value in architecture.items() if key != "yaml_file"},
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "model.json").write_text(json.dumps(about, indent=1, ensure_ascii=False), encoding="utf-8")
    return folder


def find_checkpoint(name: Path | str) -> Path:
    """Return the file or folder that a checkpoint's name stands for: ``miniature`` is the embedded one."""
    return (
        Path(__file__).parents[1] / "miniature" / "weights" / "detector"
        if str(name) == MINIATURE
        else Path(name)
    )


def load_checkpoint(checkpoint: Path) -> tuple[dict[str, Any], SegmentationModel | None]:
    """The architecture of a checkpoint and, unless that is all it is, the model in float32."""
    with contained():
        if checkpoint.is_dir():
            return _load_folder(checkpoint)
        if checkpoint.suffix in (".yaml", ".yml"):
            return _load_architecture(checkpoint), None
        if not checkpoint.is_file():
            raise ModelError(
                f"no checkpoint at {checkpoint}; give a .pt file, a folder with model.safetensors, or an "
                "architecture "
                "such as yolov8n-seg.yaml (nothing is downloaded)"
            )
        return _load_pickle(checkpoint)


def _load_folder(folder: Path) -> tuple[dict[str, Any], SegmentationModel]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from ultralytics.nn.tasks import SegmentationModel

    try:
        about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        _check_task(folder, about["task"])
        names = about["class_names"]
        model = SegmentationModel(copy.deepcopy(about["architecture"]), ch=3, nc=len(names), verbose=False)
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"{folder} is no detector: it needs model.json and model.safetensors that fit each other "
            f"({first_line(error)})"
        ) from error
    model.names = dict(enumerate(names))
    return about["architecture"], model.float().eval()


def _load_architecture(name: Path) -> dict[str, Any]:
    from ultralytics.nn.tasks import guess_model_task, yaml_model_load

    try:
        architecture = yaml_model_load(name)
        task = guess_model_task(architecture)
    except (OSError, ValueError, KeyError, TypeError, IndexError, yaml.YAMLError) as error:
        raise ModelError(
            f"no architecture {name}; for example yolov8n-seg.yaml ({first_line(error)})"
        ) from error
    _check_task(name, task)
    return dict(architecture)


def _load_pickle(file: Path) -> tuple[dict[str, Any], SegmentationModel]:
    from ultralytics.nn.tasks import SegmentationModel, guess_model_task, torch_safe_load

    try:
        content = torch_safe_load(file, safe_only=True)[0]
        model = content.get("ema") or content["model"]
    except Exception as error:  # unpickling a file of another kind can raise anything
        raise ModelError(
            f"{file} is not an Ultralytics checkpoint, or damaged ({first_line(error)})"
        ) from error
    if not isinstance(model, SegmentationModel):
        _check_task(file, guess_model_task(model))
        raise ModelError(f"{file} holds a {type(model).__name__}; DiffuGen needs a YOLO segmentation model")
    return dict(model.yaml), model.float().eval()


def _check_task(checkpoint: Path, task: str | None) -> None:
    if task != "segment":
        raise ModelError(
            f"{checkpoint} is a model for the task {task!r}; DiffuGen needs one for 'segment', such as "
            "yolov8n-seg"
        )


@cache
def import_ultralytics() -> None:
    """Import Ultralytics so that it leaves network, home folder and environment alone.

    Where the caller has imported it before, her settings stand.
    """
    import torch  # noqa: F401  # first, because Ultralytics sets OMP_NUM_THREADS, which torch reads once

    if "ultralytics" in sys.modules:
        return
    home = Path(tempfile.mkdtemp(prefix="diffugen-yolo-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    (home / "Ultralytics").mkdir()
    for font in ("Arial.ttf", "Arial.Unicode.ttf"):
        (
            home / "Ultralytics" / font
        ).touch()  # never opened, as nothing is plotted; if absent, it is downloaded
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ.update({**_SWITCHES, "YOLO_CONFIG_DIR": str(home)})
    import ultralytics  # noqa: F401

    if threads is None:
        os.environ.pop("OMP_NUM_THREADS", None)


@contextmanager
def contained() -> Iterator[None]:
    """Keep Ultralytics silent, and the process's number of torch threads as it was."""
    import torch

    logger = logging.getLogger("ultralytics")
    level, threads = logger.level, torch.get_num_threads()
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        torch.set_num_threads(threads)


def first_line(error: BaseException) -> str:
    """The first line of a message, without colours and pictures."""
    text = str(error).strip() or type(error).__name__
    return "".join(letter for letter in text.splitlines()[0] if letter.isascii() and letter.isprintable())
