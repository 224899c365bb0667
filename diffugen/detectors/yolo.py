"""YOLOv8-seg by Ultralytics (AGPL-3.0): fit and predict, offline and silent.

Knows dataset folders and image arrays. Does not know rounds, label sources or ground truth. Writes nothing
outside the folder it is given and contacts no server: no downloads, updates, telemetry, trackers, fonts,
plots, or settings in the user's home.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from diffugen.config.training import TrainingArguments
from diffugen.dataset.yolo import find_yolo
from diffugen.detectors import NO_CLASSES, SMALLEST_IMAGE, OnEpoch, OnStep
from diffugen.detectors.batches import BATCH_SIZE, halving, predict_in_batches
from diffugen.detectors.yolo_checkpoint import contained, find_checkpoint, import_ultralytics, load_checkpoint
from diffugen.detectors.yolo_fit import fit_once, hardware_arguments, label_caches
from diffugen.diffusion.devices import resolve_devices
from diffugen.errors import DiffugenError, ModelError
from diffugen.labels import shapes
from diffugen.records import Instances

if TYPE_CHECKING:
    from ultralytics.engine.results import Results
    from ultralytics.models.yolo.segment import SegmentationPredictor

BOX_IOU = 0.7
"""Of two boxes that overlap more than this, the less confident one is dropped: Ultralytics' own default."""


class YoloDetector:
    """A YOLO segmentation model; implements `diffugen.detectors.Detector`.

    Example:
        >>> base = YoloDetector("yolov8n-seg.yaml")
        >>> best = base.fit(Path("dataset"), Path("training"), epochs=20, image_size=128, seed=0)
        >>> found = YoloDetector(best).predict([image], image_size=128)

    Attributes:
        checkpoint: Path of the checkpoint, or the name of the architecture.
        class_names: The classes in the order of their ids; empty for an architecture without weights, and for
            a YOLOE model without prompts.
        renamed: From the checkpoint's own names for classes to those that are used; see `rename`.
        image_size: Longer side in pixels that the checkpoint was trained at; None if unknown or untrained.
    """

    def __init__(self, checkpoint: Path | str, *, device: str = "auto") -> None:
        """Load a checkpoint.

        Args:
            checkpoint: One of the kinds listed in `diffugen.detectors.yolo_checkpoint`.
            device: ``auto``, ``cpu``, ``mps``, ``cuda`` or ``cuda:<number>``; of several GPUs, such as
                ``cuda:0,1``, all train, by Ultralytics' DDP, and the first predicts.

        Raises:
            ModelError: There is no such checkpoint or device, or it is not a segmentation model.
        """
        import_ultralytics()
        self.checkpoint = find_checkpoint(checkpoint)
        self._devices = resolve_devices(device)
        self._device = self._devices[0]
        self._loaded = load_checkpoint(self.checkpoint)
        names = self._loaded.model.names if self._loaded.model is not None else {}
        self.class_names = tuple(str(names[number]) for number in sorted(names))
        self.renamed: dict[str, str] = {}
        self.image_size = self._loaded.image_size
        self._predictor: SegmentationPredictor | None = None

    def rename(self, names: Mapping[str, str]) -> None:
        """Call classes by other names from now on; those that are not in ``names`` keep theirs."""
        self.renamed.update(names)
        self.class_names = tuple(names.get(name, name) for name in self.class_names)

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
        on_step: OnStep | None = None,
        lr0: float | None = None,
        freeze: int | None = None,
        ignore_band: float = 0.0,
        extra: TrainingArguments | None = None,
    ) -> Path:
        """Train from this checkpoint and return the path of the best new one, a ``.pt`` file.

        Weights of matching shape are kept. If the classes differ, classes of the same name also keep their
        weights. When memory runs out, training restarts with half the batch size. On a CPU, the same
        arguments give the same weights: bit for bit on one thread, up to rounding (about 1e-6) on several.

        Args:
            dataset: A folder with ``data.yaml``, or such a file; see `diffugen.dataset.yolo.write_yolo`.
            out_folder: Folder for ``weights/best.pt``, ``weights/last.pt``, ``results.csv``, ``args.yaml``.
            epochs: Passes over the training images.
            image_size: Longer side in pixels that images are scaled to, at least 64; rounded up to a
                multiple of 32.
            seed: Determines initial weights, sample order and augmentation.
            batch_size: Images per step, on all GPUs together; None means 16, rounded down to a multiple of
                their number. Halved when memory runs out.
            on_epoch: Called after each epoch with its number, counted from 1, and losses and validation
                metrics.
            on_step: Called after each step with the epochs done, as a fraction.
            lr0: Initial learning rate of AdamW; None lets Ultralytics choose optimiser and rate.
            freeze: Number of layers, counted from the input, that are not trained.
            ignore_band: Must be 0.
            extra: Further training arguments of Ultralytics.

        Raises:
            DiffugenError: The dataset is missing or empty, or an argument is out of range.
            ModelError: Training fails, or memory runs out even with one image per step.
        """
        self.check_fit(extra=extra, ignore_band=ignore_band, batch_size=batch_size)
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
            "device": ",".join(self._devices),
            "freeze": freeze,
            "project": str(Path(out_folder).resolve().parent),
            "name": Path(out_folder).name,
            "exist_ok": True,
            "plots": False,
            "verbose": False,
            # With "optimizer: auto" Ultralytics ignores lr0.
            **({} if lr0 is None else {"lr0": lr0, "optimizer": "AdamW"}),
            **hardware_arguments(self._device),
        }
        caches = label_caches(Path(arguments["data"]).parent)
        arguments |= extra.model_dump() if extra else {}
        try:
            fit = partial(fit_once, arguments, self._loaded, on_epoch, on_step)
            gpus = len(self._devices)
            each = max(1, (batch_size or BATCH_SIZE) // gpus)
            return halving(lambda size: fit(size * gpus), each, "training")
        finally:
            for cache in label_caches(Path(arguments["data"]).parent) - caches:
                cache.unlink(missing_ok=True)

    def check_fit(
        self, *, extra: TrainingArguments | None, ignore_band: float, batch_size: int | None
    ) -> None:
        """Raise DiffugenError if pixels are to be left out of the loss, or GPUs would get unequal batches."""
        if batch_size is not None and batch_size % len(self._devices):
            raise DiffugenError(
                f"detector.batch_size is {batch_size}, for {len(self._devices)} GPUs together; give a "
                f"multiple of {len(self._devices)}"
            )
        if ignore_band:
            raise DiffugenError(
                f"detector.ignore_band is {ignore_band:g}, but YOLO's loss counts every pixel; set it to 0, "
                "or let detector.checkpoint be a Mask2Former"
            )

    def predict(
        self, images: Sequence[NDArray[np.uint8]], *, image_size: int, confidence: float = 0.25
    ) -> list[Instances]:
        """Return the instances detected in each image, highest confidence first.

        Images go through the model 16 at a time; the batch is halved when memory runs out.

        Args:
            images: N arrays uint8 (H, W, 3), RGB; sizes may differ.
            image_size: Longer side in pixels that images are scaled to; rounded up to a multiple of 32.
            confidence: Minimum confidence of an instance, in [0, 1].

        Returns:
            N `Instances` with masks at the image's own size and confidences as scores.

        Raises:
            DiffugenError: An image has another dtype or shape.
            ModelError: This detector has no classes, or memory runs out even with one image.
        """
        if self._loaded.model is None:
            raise ModelError(f"{self.checkpoint} {NO_CLASSES}; fit it and predict with the result")
        with contained():
            predictor = self._ready_predictor(image_size=image_size, confidence=confidence)
            found = predict_in_batches(images, partial(_predict, predictor))
        return [one.renamed(self.renamed) for one in found]

    def _ready_predictor(self, *, image_size: int, confidence: float) -> SegmentationPredictor:
        import torch
        from ultralytics.models.yolo.segment import SegmentationPredictor

        settings = {"imgsz": image_size, "conf": confidence, "iou": BOX_IOU}
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
            self._predictor.setup_model(self._loaded.model, verbose=False)
            torch.set_num_threads(threads)
        vars(self._predictor.args).update(settings)
        return self._predictor


def _predict(predictor: SegmentationPredictor, images: Sequence[NDArray[np.uint8]]) -> list[Instances]:
    # Ultralytics expects arrays in BGR.
    return [
        _instances(one) for one in predictor([np.ascontiguousarray(image[..., ::-1]) for image in images])
    ]


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
