"""Checkpoints of YOLO segmentation models, v8 to 26 and YOLOE: load any kind, save as safetensors.

With the other ``yolo`` modules of this package and ``sam`` the only home of ultralytics (AGPL-3.0). Knows
nothing about images, datasets or training.

A checkpoint is one of
- a folder with ``model.safetensors`` and ``model.json``, as written by `save_safetensors`,
- ``miniature``: such a folder, included in DiffuGen, for cars, trucks, people and traffic cones,
- an Ultralytics ``.pt`` file, unpickled with Ultralytics' list of allowed classes only,
- the name of one that Ultralytics publishes, such as ``yolo11n-seg.pt``, downloaded once into torch's cache
  unless ``HF_HUB_OFFLINE`` is set, as for models of the Hub,
- the name of an architecture, such as ``yolov8n-seg.yaml``: no weights, so it can be fitted but not predict.

A YOLOE model finds what its prompts name. If it was saved with prompts (``set_classes``) or with a
vocabulary (``-pf``), it predicts these classes; else it has none, like an architecture. When it is fitted,
its weights go into the YOLO model of the same layers, whose classes are fixed: all but what compares with
prompts.
"""

from __future__ import annotations

import atexit
import copy
import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from diffugen.config.foreign import parse_json, read_text
from diffugen.detectors import NO_CLASSES
from diffugen.errors import ModelError, first_line
from diffugen.run.files import write_file
from diffugen.run.temporary import temporary_folder

if TYPE_CHECKING:
    from ultralytics.nn.tasks import SegmentationModel

MINIATURE = "miniature"
HEAD_ARGUMENTS = 3
"""Arguments of a segmentation head: classes, mask coefficients, and channels of the prototypes."""

_SWITCHES = {
    "YOLO_OFFLINE": "true",
    "YOLO_AUTOINSTALL": "false",
    "YOLO_VERBOSE": "false",
    "ULTRALYTICS_SAFE_LOAD": "true",
}


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint.

    Attributes:
        architecture: Ultralytics' description of the layers that are fitted.
        model: The model in float32, to predict with; None if it has no weights or no classes.
        weights: The model in float32 that is fitted; None for an architecture without weights.
        image_size: Longer side in pixels that the model was trained at; None if unknown.
    """

    architecture: dict[str, Any]
    model: SegmentationModel | None = None
    weights: SegmentationModel | None = None
    image_size: int | None = None


def save_safetensors(checkpoint: Path | str, folder: Path) -> Path:
    """Write a checkpoint into a folder as ``model.safetensors`` (float16) and ``model.json``.

    Returns:
        The folder, which is a checkpoint for `diffugen.detectors.yolo.YoloDetector`.

    Raises:
        ModelError: The checkpoint cannot be loaded or has no weights.
    """
    from safetensors.torch import save

    import_ultralytics()
    loaded = load_checkpoint(Path(checkpoint))
    model = loaded.model
    if model is None:
        raise ModelError(f"{checkpoint} {NO_CLASSES}; fit it first")
    if _is_yoloe(model.yaml):
        raise ModelError(f"{checkpoint} is a YOLOE model, whose prompts cannot be written; fit it first")
    tensors = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in model.state_dict().items()
    }
    about = {
        "task": "segment",
        "class_names": [model.names[number] for number in sorted(model.names)],
        **({} if loaded.image_size is None else {"image_size": loaded.image_size}),
        "architecture": {key: value for key, value in loaded.architecture.items() if key != "yaml_file"},
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / "model.safetensors", save(tensors))
    write_file(folder / "model.json", json.dumps(about, indent=1, ensure_ascii=False).encode())
    return folder


def find_checkpoint(name: Path | str) -> Path:
    """Return the path of a checkpoint; the name ``miniature`` stands for the one included in DiffuGen.

    Raises:
        ModelError: It is the name of a published checkpoint, and cannot be downloaded.
    """
    if str(name) == MINIATURE:
        return Path(__file__).parents[1] / "miniature" / "weights" / "detector"
    path = Path(name)
    return path if path.exists() or path.name != str(name) else _published(path)


def _published(name: Path) -> Path:
    """Return where a checkpoint is that Ultralytics publishes, downloading it if necessary; else the name."""
    import torch

    import_ultralytics()
    from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES, attempt_download_asset

    if str(name) not in GITHUB_ASSETS_NAMES:
        return name
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if path.is_file():
        return path
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() not in ("", "0", "false", "no", "off"):
        raise ModelError(
            f"the checkpoint {name} is not here, and HF_HUB_OFFLINE is set; copy it to {path}, or give the "
            "path of another"
        )
    try:
        with contained():
            path.parent.mkdir(parents=True, exist_ok=True)
            attempt_download_asset(path, progress=False)
    except Exception as error:  # no network, no space, no rights: types of several packages
        raise ModelError(
            f"the checkpoint {name} is not here, and its download failed: {first_line(error)} Copy it to "
            f"{path}, or give the path of another"
        ) from error
    return path


def load_checkpoint(checkpoint: Path) -> Checkpoint:
    """Load a checkpoint of any kind.

    Raises:
        ModelError: The checkpoint is missing, damaged, or not of a segmentation model.
    """
    with contained():
        if checkpoint.is_dir():
            return _load_folder(checkpoint)
        if checkpoint.suffix in (".yaml", ".yml"):
            return _load_architecture(checkpoint)
        if not checkpoint.is_file():
            raise ModelError(
                f"no checkpoint at {checkpoint}; give a .pt file, a folder with model.safetensors, a "
                "published one such as yolo11n-seg.pt, or an architecture such as yolov8n-seg.yaml"
            )
        return _load_pickle(checkpoint)


def _load_folder(folder: Path) -> Checkpoint:
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from ultralytics.nn.tasks import SegmentationModel

    try:
        about = parse_json(read_text(folder / "model.json"))
        _check_task(folder, about["task"])
        names = about["class_names"]
        model = SegmentationModel(copy.deepcopy(about["architecture"]), ch=3, nc=len(names), verbose=False)
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"{folder} is not a detector: it needs a model.json and a model.safetensors that match "
            f"({first_line(error)})"
        ) from error
    model.names = dict(enumerate(names))
    # Folders written before DiffuGen recorded the size lack the key.
    model = model.float().eval()
    return Checkpoint(about["architecture"], model, model, _as_size(about.get("image_size")))


def _load_architecture(name: Path) -> Checkpoint:
    from ultralytics.nn.tasks import guess_model_task, yaml_model_load

    try:
        architecture = yaml_model_load(name)
        task = guess_model_task(architecture)
    except (OSError, ValueError, KeyError, TypeError, IndexError, yaml.YAMLError) as error:
        raise ModelError(
            f"no architecture {name}; give one such as yolov8n-seg.yaml ({first_line(error)})"
        ) from error
    _check_task(name, task)
    return Checkpoint(_with_fixed_classes(architecture))


def _load_pickle(file: Path) -> Checkpoint:
    from ultralytics.nn.tasks import SegmentationModel, guess_model_task, torch_safe_load

    try:
        content = torch_safe_load(file, safe_only=True)[0]
        model = content.get("ema") or content["model"]
    except Exception as error:  # unpickling another kind of file can raise anything
        raise ModelError(
            f"{file} is not an Ultralytics checkpoint, or is damaged ({first_line(error)})"
        ) from error
    if not isinstance(model, SegmentationModel):
        _check_task(file, guess_model_task(model))
        raise ModelError(f"{file} holds a {type(model).__name__}; DiffuGen needs a YOLO segmentation model")
    sizes = (_trained_size(content.get("train_args")), _trained_size(getattr(model, "args", None)))
    image_size = next((size for size in sizes if size is not None), None)
    model = model.float().eval()
    if not _is_yoloe(model.yaml):
        return Checkpoint(dict(model.yaml), model, model, image_size)
    plain = _without_prompts(model)
    return Checkpoint(dict(plain.yaml), model if _has_classes(model) else None, plain, image_size)


def _trained_size(arguments: object) -> int | None:
    """Return the image size in Ultralytics' training arguments, a mapping or a namespace; None if absent."""
    given = arguments if isinstance(arguments, Mapping) else getattr(arguments, "__dict__", {})
    return _as_size(given.get("imgsz"))


def _as_size(value: object) -> int | None:
    """Return the longer side of an image size, a number or a list of two; None if the value is neither."""
    sides = value if isinstance(value, (list, tuple)) else [value]
    whole = all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides)
    return max(sides) if sides and whole else None


def _check_task(checkpoint: Path, task: str | None) -> None:
    if task != "segment":
        raise ModelError(
            f"{checkpoint} is a model for the task {task!r}; DiffuGen needs one for 'segment', such as "
            "yolov8n-seg"
        )


def _is_yoloe(architecture: Mapping[str, Any]) -> bool:
    return str(architecture["head"][-1][2]).startswith("YOLOE")


def _with_fixed_classes(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """Return an architecture; instead of a YOLOE model's that of the model that it extends."""
    if not _is_yoloe(architecture):
        return dict(architecture)
    *layers, (inputs, repeats, name, arguments) = architecture["head"]
    head = [inputs, repeats, name.removeprefix("YOLOE"), arguments[:HEAD_ARGUMENTS]]
    return {**architecture, "head": [*layers, head]}


def _without_prompts(model: SegmentationModel) -> SegmentationModel:
    """Return the model that a YOLOE model extends, with its weights, but without its classes."""
    from ultralytics.nn.tasks import SegmentationModel

    plain = SegmentationModel(_with_fixed_classes(copy.deepcopy(model.yaml)), verbose=False)
    shapes = {name: value.shape for name, value in plain.state_dict().items()}
    # YOLOE compares with prompts in cv4, and has in cv5 what others have in cv4: the masks' coefficients.
    given = {name: value for name, value in model.state_dict().items() if "cv4." not in name}
    renamed = {name.replace("cv5.", "cv4."): value for name, value in given.items()}
    fitting = {name: value for name, value in renamed.items() if shapes.get(name) == value.shape}
    plain.load_state_dict(fitting, strict=False)
    return plain.float().eval()


def _has_classes(model: SegmentationModel) -> bool:
    """Return whether a YOLOE model was given prompts, or has a vocabulary."""
    head: Any = model.model[-1]
    return hasattr(head, "lrpc") or head.is_fused or getattr(model, "pe", None) is not None


@cache
def import_ultralytics() -> None:
    """Import Ultralytics without letting it touch the home folder, the environment or the network.

    If the calling program imported Ultralytics before, its settings stay in force.
    """
    import torch  # noqa: F401  # first, because Ultralytics sets OMP_NUM_THREADS, which torch reads once

    if "ultralytics" in sys.modules:
        return
    folders = ExitStack()
    home = folders.enter_context(temporary_folder("yolo"))
    atexit.register(folders.close)
    (home / "Ultralytics").mkdir()
    # Nothing is plotted, so the fonts are never opened, but Ultralytics downloads them if they are absent.
    for font in ("Arial.ttf", "Arial.Unicode.ttf"):
        (home / "Ultralytics" / font).touch()
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ.update({**_SWITCHES, "YOLO_CONFIG_DIR": str(home)})
    import ultralytics  # noqa: F401

    if threads is None:
        os.environ.pop("OMP_NUM_THREADS", None)


@contextmanager
def contained() -> Iterator[None]:
    """Silence Ultralytics and restore the process's number of torch threads afterwards."""
    import torch

    logger = logging.getLogger("ultralytics")
    level, threads = logger.level, torch.get_num_threads()
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        torch.set_num_threads(threads)
