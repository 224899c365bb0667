"""Mask2Former (Cheng et al. 2022, "Masked-attention Mask Transformer") by transformers: fit and predict.

Knows dataset folders and image arrays. Does not know rounds, label sources or ground truth. It learns from
the exact masks of a dataset, with their holes and pieces.

A checkpoint is one of
- a folder as ``save_pretrained`` writes it; without weights, it is an architecture, to be fitted,
- the name of an instance-segmentation model on the Hub, such as
  ``facebook/mask2former-swin-tiny-coco-instance``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from diffugen.config.foreign import parse_json, read_text
from diffugen.config.training import TrainingArguments
from diffugen.dataset.yolo import find_yolo
from diffugen.dataset.yolo_layout import read_layout
from diffugen.detectors import NO_CLASSES, SMALLEST_IMAGE, OnEpoch, OnStep
from diffugen.detectors.batches import halving, predict_in_batches
from diffugen.detectors.mask2former_fit import Training, fit_once, open_images
from diffugen.detectors.mask2former_images import predict_batch
from diffugen.diffusion.devices import resolve_devices
from diffugen.diffusion.hub import HUB_NAME, download
from diffugen.diffusion.messages import quiet
from diffugen.errors import DiffugenError, ModelError, first_line
from diffugen.records import Instances, content_id

if TYPE_CHECKING:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

TYPE = "mask2former"
"""``model_type`` in the ``config.json`` of a checkpoint."""

OTHER_TASKS = ("semantic", "panoptic")
"""Tasks whose checkpoints have the same architecture; only their names tell."""

BATCH_SIZE = 8
"""Images per step where the caller sets none; halved when memory runs out."""

LEARNING_RATE = 1e-4
"""Where the caller sets none (Cheng et al., section 4.1)."""


class Mask2FormerDetector:
    """A Mask2Former model for instance segmentation; implements `diffugen.detectors.Detector`.

    Attributes:
        checkpoint: Path of the checkpoint's folder.
        class_names: The classes in the order of their ids; empty for an architecture without weights.
        renamed: From the checkpoint's own names for classes to those that are used; see `rename`.
        image_size: Longer side in pixels that the checkpoint was trained at; None if unknown or untrained.
    """

    def __init__(self, checkpoint: Path | str, *, device: str = "auto") -> None:
        """Load a checkpoint.

        Args:
            checkpoint: One of the kinds listed in this module's docstring.
            device: ``auto``, ``cpu``, ``mps``, ``cuda`` or ``cuda:<number>``; with several GPUs, such as
                ``cuda:0,1``, it can predict, on the first, but not be trained.

        Raises:
            ModelError: There is no such checkpoint or device, or it is for another task.
        """
        self.checkpoint = _find(checkpoint)
        self._devices = resolve_devices(device)
        self._device = self._devices[0]
        self._config, self._model = _load(self.checkpoint)
        names = self._config.id2label if self._model is not None else {}
        self.class_names = tuple(names[number] for number in sorted(names))
        self.renamed: dict[str, str] = {}
        self.image_size: int | None = getattr(self._config, "image_size", None)

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
        """Train from this checkpoint and return the folder of the best new one, by mask AP50-95 on ``val``.

        Weights of matching shape are kept; classes of the same name keep theirs. Half of the images are
        mirrored. When memory runs out, training restarts with half the batch size. A call that was killed
        continues after its last finished epoch if it is repeated with the same arguments; with others, it
        begins again. On a CPU, the same arguments give the same weights on one thread, interrupted or not.
        One batch of images is in memory at a time, and two copies of the weights, one of them on the CPU.

        Args:
            dataset: A folder with ``data.yaml``, or such a file; see `diffugen.dataset.yolo.write_yolo`.
            out_folder: Folder for the checkpoint, ``weights/best``; during the training, ``unfinished.pt`` is
                there, four times as large.
            epochs: Passes over the training images.
            image_size: Longer side in pixels that images are scaled to, at least 64; sides are rounded to
                multiples of 32.
            seed: Determines initial weights, sample order, mirroring and the points of the loss.
            batch_size: Images per step; None means 8. Halved when memory runs out.
            on_epoch: Called after each epoch with its number, counted from 1, and losses and validation
                metrics.
            on_step: Called after each step with the epochs done, as a fraction.
            lr0: Learning rate; None means 1e-4.
            freeze: Above 0, the backbone is not trained.
            ignore_band: Width of a band on each side of a mask's edge, relative to the square root of the
                image area, whose pixels do not count in the mask losses; above 0, at least a pixel wide.
            extra: Arguments of Ultralytics; must be empty.

        Raises:
            DiffugenError: The dataset is missing or empty, or an argument is out of range.
            ModelError: Memory runs out even with one image per step, or ``unfinished.pt`` is damaged.
        """
        self.check_fit(extra=extra, ignore_band=ignore_band, batch_size=batch_size)
        if epochs < 1 or image_size < SMALLEST_IMAGE:
            raise DiffugenError(
                f"epochs must be at least 1 and image_size at least {SMALLEST_IMAGE}; got {epochs} and "
                f"{image_size}"
            )
        file = find_yolo(Path(dataset))
        names = read_layout(file).class_names
        classes = [names[number] for number in sorted(names)]
        training = Training(
            images={split: open_images(file, split) for split in ("train", "val")},
            classes=classes,
            start=self._digest(),
            epochs=epochs,
            image_size=image_size,
            seed=seed,
            learning_rate=lr0 or LEARNING_RATE,
            frozen=bool(freeze),
            ignore_band=ignore_band,
        )
        new_model = partial(self._new_model, classes, image_size)
        fit = partial(fit_once, training, new_model, Path(out_folder), on_epoch, on_step)
        return halving(fit, batch_size or BATCH_SIZE, "training")

    def check_fit(
        self, *, extra: TrainingArguments | None, ignore_band: float, batch_size: int | None
    ) -> None:
        """Raise DiffugenError if there are arguments for Ultralytics, or several GPUs."""
        if len(self._devices) > 1:
            raise DiffugenError(
                f"detector.device names {len(self._devices)} GPUs, but a Mask2Former trains on one; give "
                f"{self._device}"
            )
        if extra and extra.model_dump():
            raise DiffugenError(
                f"detector.extra ({', '.join(extra.model_dump())}) is for YOLO; with Mask2Former, it is {{}}"
            )

    def _digest(self) -> str:
        """Return text that changes when the checkpoint does, or the names of its classes."""
        hashed = hashlib.sha256()
        for file in sorted([*self.checkpoint.glob("*.json"), *self.checkpoint.glob("*.safetensors")]):
            hashed.update(file.read_bytes())
        return content_id(hashed.hexdigest(), self.class_names)

    def _new_model(self, classes: Sequence[str], image_size: int) -> Mask2FormerForUniversalSegmentation:
        """Return a model of other classes with this one's weights, as far as they fit, on its device."""
        from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

        ids = dict(enumerate(classes))
        about = self._config.to_dict()
        about.update(
            id2label=ids, label2id={name: number for number, name in ids.items()}, image_size=image_size
        )
        model = Mask2FormerForUniversalSegmentation(Mask2FormerConfig.from_dict(about))
        if self._model is not None:
            theirs, ours = self._model.state_dict(), model.state_dict()
            heads = ("class_predictor.weight", "class_predictor.bias")
            same = {name: one for name, one in theirs.items() if ours[name].shape == one.shape}
            ours.update({name: one for name, one in same.items() if name not in heads})
            for head in heads:
                for number, name in [*ids.items(), (len(classes), "")]:
                    # The last class is "no object".
                    known = len(self.class_names) if not name else _index(self.class_names, name)
                    if known is not None:
                        ours[head][number] = theirs[head][known]
            model.load_state_dict(ours)
        return model.to(self._device)

    def predict(
        self, images: Sequence[NDArray[np.uint8]], *, image_size: int, confidence: float = 0.25
    ) -> list[Instances]:
        """Return the instances detected in each image, highest confidence first.

        The confidence is that of the class times the mean certainty of the mask's pixels, as transformers
        computes it. Masks of different objects may overlap.

        Args:
            images: N arrays uint8 (H, W, 3), RGB; sizes may differ.
            image_size: Longer side in pixels that images are scaled to; sides are rounded to multiples of 32.
            confidence: Minimum confidence of an instance, in [0, 1].

        Returns:
            N `Instances` with masks at the image's own size and confidences as scores.

        Raises:
            DiffugenError: An image has another dtype or shape.
            ModelError: This detector is an architecture without weights, or memory runs out even with one
                image.
        """
        if self._model is None:
            raise ModelError(f"{self.checkpoint} {NO_CLASSES}; fit it and predict with the result")
        self._model.to(self._device)
        names = [self._config.id2label[number] for number in sorted(self._config.id2label)]
        predict = partial(predict_batch, self._model, names, image_size, confidence)
        return [one.renamed(self.renamed) for one in predict_in_batches(images, predict)]


def is_mask2former(checkpoint: str | Path) -> bool:
    """Return whether a checkpoint is one of this module's kinds, rather than one of YOLO's."""
    path = Path(checkpoint)
    if path.is_dir():
        return (path / "config.json").is_file()
    return re.fullmatch(HUB_NAME, str(checkpoint)) is not None and not path.suffix and not path.exists()


def _find(checkpoint: Path | str) -> Path:
    path = Path(checkpoint)
    if path.is_dir() or not is_mask2former(checkpoint):
        return path
    from huggingface_hub import snapshot_download

    files = ["*.json", "*.safetensors"]
    return download(
        "detector", str(checkpoint), lambda: snapshot_download(str(checkpoint), allow_patterns=files)
    )


def _load(folder: Path) -> tuple[Mask2FormerConfig, Mask2FormerForUniversalSegmentation | None]:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

    try:
        about = parse_json(read_text(folder / "config.json"))
        kind = about.get("model_type") if isinstance(about, dict) else None
    except (OSError, ValueError) as error:
        raise ModelError(
            f"no checkpoint at {folder}: it needs a config.json ({first_line(error)})"
        ) from error
    told = " ".join(
        [folder.name, *(part for part in folder.parts if part.startswith("models--"))]
    )  # the Hub's
    other = next((task for task in OTHER_TASKS if task in told.lower()), None)
    if kind != TYPE or other:
        raise ModelError(
            f"{folder} is a model for another task ({other or kind}); DiffuGen needs a Mask2Former for "
            "instance segmentation, such as facebook/mask2former-swin-tiny-coco-instance"
        )
    try:
        with quiet():
            if not list(folder.glob("*.safetensors")):
                return Mask2FormerConfig.from_dict(about), None
            model = Mask2FormerForUniversalSegmentation.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers and safetensors raise anything on broken files
        raise ModelError(f"cannot load {folder}: {first_line(error)} Save or download it again.") from error
    return model.config, model.float().eval()


def _index(names: Sequence[str], name: str) -> int | None:
    return names.index(name) if name in names else None
