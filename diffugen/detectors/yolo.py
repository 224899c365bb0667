"""YOLOv8-seg by Ultralytics (AGPL-3.0): fit and predict, offline and silent.

Knows dataset folders and arrays; nothing of rounds, label sources or truth. Nothing is downloaded, reported
or written outside the folder it is given: no updates, telemetry, trackers, fonts, plots, or settings in the
user's home.
"""

from __future__ import annotations

import copy
import difflib
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from diffugen.dataset.yolo import find_yolo
from diffugen.detectors import OnEpoch
from diffugen.detectors.yolo_checkpoint import (
    contained,
    find_checkpoint,
    first_line,
    import_ultralytics,
    load_checkpoint,
)
from diffugen.errors import ConfigError, DiffugenError, ModelError
from diffugen.labels import shapes
from diffugen.records import Instances

if TYPE_CHECKING:
    from ultralytics.engine.results import Results
    from ultralytics.models.yolo.segment import SegmentationPredictor

Result = TypeVar("Result")

SMALLEST_IMAGE = 64
"""Below 64 px the coarsest feature map is a single cell, and batch normalisation fails on a batch of one."""


class YoloDetector:
    """A YOLO segmentation model; implements `diffugen.detectors.Detector`.

    Example:
        >>> base = YoloDetector("yolov8n-seg.yaml")
        >>> best = base.fit(Path("dataset"), Path("training"), epochs=20, image_size=128, seed=0)
        >>> found = YoloDetector(best).predict([image], image_size=128)

    Attributes:
        checkpoint: What it was made from.
        class_names: The classes in the order of their numbers; empty for an architecture without weights.
    """

    def __init__(self, checkpoint: Path | str, *, device: str = "auto") -> None:
        """Load a checkpoint.

        Args:
            checkpoint: One of the kinds that `diffugen.detectors.yolo_checkpoint` describes.
            device: ``auto``, ``cpu``, ``mps``, ``cuda`` or ``cuda:<number>``.

        Raises:
            ModelError: If there is no such checkpoint or device, or it is not a segmentation model's.
        """
        import_ultralytics()
        self.checkpoint = find_checkpoint(checkpoint)
        self._device = _resolve_device(device)
        self._architecture, self._model = load_checkpoint(self.checkpoint)
        names = self._model.names if self._model is not None else {}
        self.class_names = tuple(str(names[number]) for number in sorted(names))
        self._predictor: SegmentationPredictor | None = None

    def fit(
        self,
        dataset: Path,
        out_folder: Path,
        *,
        epochs: int,
        image_size: int,
        seed: int,
        batch_size: int | None = None,
        on_epoch: OnEpoch | None = None,
        lr0: float | None = None,
        freeze: int | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Path:
        """Train from this checkpoint and return the path of the best new one, a ``.pt`` file.

        Weights whose shape fits are kept; where the classes differ, so are those of the classes of the same
        name. When memory runs out, the batch is halved and the training begins again. On a CPU, the same
        arguments give the same weights, bit by bit on one thread and to rounding (about 1e-6) on several.

        Args:
            dataset: A folder with ``data.yaml``, or such a file: see `diffugen.dataset.yolo.write_yolo`.
            out_folder: Gets ``weights/best.pt``, ``weights/last.pt``, ``results.csv`` and ``args.yaml``.
            epochs: Passes over the training images.
            image_size: Longer side in px that images are scaled to, at least 64; rounded up to a multiple of
                32.
            seed: Decides initial weights, order and augmentation.
            batch_size: Images a step; 16 if None.
            on_epoch: Called after each epoch with its number, from 1, and losses and validation metrics.
            lr0: Initial learning rate of AdamW; None lets Ultralytics choose optimiser and rate.
            freeze: How many layers from the input on are kept as they are.
            extra: Further Ultralytics training arguments, by their own names.

        Raises:
            DiffugenError: If the dataset is missing or empty, or an argument is out of range.
            ConfigError: If ``extra`` holds a key that Ultralytics does not know, or one of those above.
            ModelError: If the training fails, or memory does not suffice for a single image.
        """
        if epochs < 1 or image_size < SMALLEST_IMAGE:
            raise DiffugenError(
                f"epochs must be at least 1 and image_size at least {SMALLEST_IMAGE}; got {epochs} and "
                f"{image_size}"
            )
        arguments = {
            "model": str(self.checkpoint),
            "data": str(find_yolo(Path(dataset))),
            "epochs": epochs,
            "imgsz": image_size,
            "seed": seed % 2**31,
            "device": self._device,
            "freeze": freeze,
            "project": str(Path(out_folder).resolve().parent),
            "name": Path(out_folder).name,
            "exist_ok": True,
            "plots": False,
            "verbose": False,
            # With "optimizer: auto" Ultralytics ignores lr0.
            **({} if lr0 is None else {"lr0": lr0, "optimizer": "AdamW"}),
            **_hardware_arguments(self._device),
        }
        caches = _label_caches(Path(arguments["data"]).parent)
        arguments |= _checked_extra(
            extra or {}, {*arguments, "batch", "save_dir"} - {"optimizer", "amp", "workers"}
        )
        try:
            return _halving(partial(self._fit_once, arguments, on_epoch), batch_size or 16, "a training step")
        finally:
            for cache in _label_caches(Path(arguments["data"]).parent) - caches:
                cache.unlink(missing_ok=True)

    def _fit_once(self, arguments: dict[str, Any], on_epoch: OnEpoch | None, batch_size: int) -> Path:
        import torch
        from ultralytics.models.yolo.segment import SegmentationTrainer

        fitting_class = type("Fitting", (SegmentationTrainer,), _FITTING_METHODS)
        threads = torch.get_num_threads()
        with contained():
            try:
                fitting = fitting_class(overrides={**arguments, "batch": batch_size})
            except (TypeError, ValueError, SyntaxError, RuntimeError, FileNotFoundError) as error:
                raise ModelError(
                    f"Ultralytics refuses to train {self.checkpoint}: {first_line(error)}"
                ) from error
            torch.set_num_threads(threads)
            for path in (fitting.best, fitting.last):
                path.unlink(missing_ok=True)
            fitting.model = fitting.get_model(
                cfg=copy.deepcopy(self._architecture), weights=self._model, verbose=False
            )
            if on_epoch is not None:
                fitting.add_callback("on_fit_epoch_end", partial(_report_epoch, on_epoch=on_epoch))
            fitting.train()
        made = [path for path in (fitting.best, fitting.last) if path.exists()]
        if not made:
            raise ModelError(
                f"training {self.checkpoint} left no checkpoint in {fitting.wdir}; see {fitting.csv}"
            )
        return Path(made[0])

    def predict(
        self,
        images: Sequence[NDArray[np.uint8]],
        *,
        image_size: int,
        confidence: float = 0.25,
        iou: float = 0.7,
        batch_size: int = 16,
    ) -> list[Instances]:
        """Return the instances found in each image, surest first, with masks at the image's own size.

        Args:
            images: N arrays uint8 (H, W, 3), RGB; sizes may differ.
            image_size: Longer side in px that images are scaled to.
            confidence: Least confidence of an instance, in [0, 1].
            iou: Box IoU, in [0, 1], above which the less sure of two instances of a class is dropped.
            batch_size: Images at once; halved when memory runs out.

        Returns:
            N `Instances` whose scores are confidences.

        Raises:
            DiffugenError: If an image has another type or shape.
            ModelError: If this detector is an architecture without weights, or memory does not suffice for
                one image.
        """
        if self._model is None:
            raise ModelError(
                f"{self.checkpoint} is an architecture without weights; fit it and predict with the result"
            )
        for number, image in enumerate(images):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise DiffugenError(
                    f"image {number} is {image.dtype} {image.shape}; expected uint8 (H, W, 3), RGB"
                )
        found: dict[int, Instances] = {}
        with contained():
            predictor = self._ready_predictor(image_size=image_size, confidence=confidence, iou=iou)
            # Batches of one shape, or an image's padding, and so its instances, would depend on its
            # neighbours.
            by_shape = sorted(range(len(images)), key=lambda number: images[number].shape)
            for _, group in itertools.groupby(by_shape, key=lambda number: images[number].shape):
                numbers = list(group)
                while numbers:
                    predict = partial(self._predict_first, predictor, [images[number] for number in numbers])
                    batch = _halving(predict, batch_size, "a prediction")
                    found.update(zip(numbers, batch, strict=False))
                    numbers = numbers[len(batch) :]
        return [found[number] for number in range(len(images))]

    def _ready_predictor(self, *, image_size: int, confidence: float, iou: float) -> SegmentationPredictor:
        import torch
        from ultralytics.models.yolo.segment import SegmentationPredictor

        settings = {"imgsz": image_size, "conf": confidence, "iou": iou}
        if self._predictor is None:
            threads = torch.get_num_threads()
            fixed = {
                "device": self._device,
                "rect": True,
                "retina_masks": True,
                "save": False,
                "verbose": False,
            }
            self._predictor = SegmentationPredictor(overrides={**fixed, **settings})
            self._predictor.setup_model(self._model, verbose=False)
            torch.set_num_threads(threads)
        vars(self._predictor.args).update(settings)
        return self._predictor

    def _predict_first(
        self, predictor: SegmentationPredictor, images: Sequence[NDArray[np.uint8]], count: int
    ) -> list[Instances]:
        # Ultralytics takes arrays for BGR.
        results = predictor([np.ascontiguousarray(image[..., ::-1]) for image in images[:count]])
        return [_instances(result) for result in results]


def _label_caches(dataset: Path) -> set[Path]:
    """Return the files that Ultralytics leaves in a dataset's folder; they hold absolute paths."""
    return set(dataset.rglob("*.cache"))


def _checked_extra(extra: Mapping[str, Any], taken: set[str]) -> Mapping[str, Any]:
    from ultralytics.cfg import DEFAULT_CFG_DICT

    mistakes = [
        f"detector.extra: {key!r} has an argument of its own; set it there" for key in extra if key in taken
    ]
    for key in extra:
        if key not in DEFAULT_CFG_DICT:
            near = difflib.get_close_matches(key, DEFAULT_CFG_DICT, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            mistakes.append(f"detector.extra: {key!r} is no training argument of Ultralytics{hint}")
    if mistakes:
        raise ConfigError(mistakes)
    return extra


def _hardware_arguments(device: str) -> dict[str, Any]:
    """Precision and loader processes. The float16 mode is not used: its check downloads a model."""
    import torch

    cores = os.cpu_count() or 1
    on_gpu = device.startswith("cuda")
    return {
        "amp": "bf16" if on_gpu and torch.cuda.is_bf16_supported() else False,
        "workers": min(8, cores) if on_gpu and cores > 4 else 0,
    }


def _resolve_device(device: str) -> str:
    import torch

    if device == "auto":
        if torch.cuda.is_available():
            return "cuda:0"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, number = device.partition(":")
    there = {"cpu": 1, "mps": int(torch.backends.mps.is_available()), "cuda": torch.cuda.device_count()}
    if kind not in there or (number and not number.isdecimal()) or int(number or 0) >= there[kind]:
        present = ", ".join(f"{name} ({count})" for name, count in there.items() if count)
        raise ModelError(f"no device {device!r} here; use 'auto', or one of {present}")
    return f"cuda:{number or 0}" if kind == "cuda" else kind


def _halving(work: Callable[[int], Result], batch_size: int, what: str) -> Result:
    """Call ``work(batch_size)``, with half the batch again each time that memory runs out."""
    while True:
        try:
            return work(batch_size)
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
            if batch_size == 1:
                raise ModelError(
                    f"memory does not suffice for {what} with one image; use a smaller image_size"
                ) from error
        # Outside the handler, because the exception keeps the tensors of its frames alive.
        batch_size //= 2
        _free_memory()


def _out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(
        part in text for part in ("out of memory", "not enough memory", "can't allocate memory")
    )


def _free_memory() -> None:
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _report_epoch(fitting: Any, on_epoch: OnEpoch) -> None:
    values = {**fitting.label_loss_items(fitting.tloss), **fitting.metrics}
    on_epoch(fitting.epoch + 1, {name: float(value) for name, value in values.items()})


def _strip_checkpoints(fitting: Any) -> None:
    from ultralytics.utils.torch_utils import strip_optimizer

    for path in (fitting.last, fitting.best):
        if path.exists():
            strip_optimizer(path)


# The class that trains must not have "Trainer" in its name: Ultralytics would add trackers and uploads to it.
# And it spends no time on what nobody reads: a second validation of the best epoch, and the losses of all
# epochs in each checkpoint.
_FITTING_METHODS: dict[str, Any] = {"final_eval": _strip_checkpoints, "read_results_csv": lambda fitting: {}}


def _instances(result: Results) -> Instances:
    height, width = result.orig_shape
    if result.masks is None:
        return Instances((width, height), (), (), np.zeros(0))
    scores = result.boxes.conf.cpu().numpy().astype(np.float64)
    order = np.argsort(-scores, kind="stable")
    masks = result.masks.data.cpu().numpy().astype(np.bool_)
    classes = result.boxes.cls.cpu().numpy().astype(int)
    return Instances(
        size_wh=(width, height),
        class_names=tuple(str(result.names[classes[index]]) for index in order),
        rles=tuple(shapes.encode(masks[index]) for index in order),
        scores=scores[order].clip(0, 1),
    )
