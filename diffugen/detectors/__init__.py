"""The interface of a detector: fit it to a dataset folder, predict instances in images.

Knows no implementation. Each implementation has a module of its own and keeps its library to itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from diffugen.config.training import TrainingArguments
from diffugen.records import Instances

OnEpoch = Callable[[int, Mapping[str, float]], None]
"""Called after each epoch with its number, counted from 1, and the current losses and validation metrics."""

OnStep = Callable[[float], None]
"""Called after each step with the epochs done, as a fraction."""

NO_CLASSES = (
    "has no classes: it is an architecture without weights, or a YOLOE model that was saved without prompts "
    "(Ultralytics' set_classes)"
)
"""What errors say of a detector that can be fitted, but cannot predict."""

SMALLEST_IMAGE = 64
"""Below 64 px, YOLO's coarsest feature map is a single cell and batch norm fails on a batch of one."""

USUAL_IMAGE = 640
"""The size that YOLO's published checkpoints were trained at; assumed where a checkpoint does not say."""


def suited_image_size(trained_at: int | None, longest_side: int) -> int:
    """Return the image size, in pixels, at which to run a detector on images of a given size.

    This is the size that the checkpoint was trained at, because a detector is most accurate for objects as
    large as those it has seen. It is at most twice the images' own size: enlarging them further costs time
    and invents no detail.

    Args:
        trained_at: Longer side in pixels that the checkpoint was trained at; None if unknown.
        longest_side: Longest side of the images in pixels.

    Returns:
        At least `SMALLEST_IMAGE`; at most twice ``longest_side``, rounded up to a multiple of 32.

    Example:
        >>> suited_image_size(640, 1920), suited_image_size(640, 64), suited_image_size(None, 512)
        (640, 128, 640)
    """
    twice = -(-2 * longest_side // 32) * 32
    return max(SMALLEST_IMAGE, min(USUAL_IMAGE if trained_at is None else trained_at, twice))


def epoch_note(values: Mapping[str, float]) -> str:
    """Return the losses, summed, and the mask AP50 of an epoch as a short text; see `OnEpoch`."""
    loss = sum(value for name, value in values.items() if name.startswith("train/"))
    return f"loss {loss:.2f}, AP50 {values.get('metrics/mAP50(M)', 0.0):.3f}"


class Detector(Protocol):
    """Detects and outlines objects.

    A detector starts from a checkpoint. Fitting writes a new checkpoint and leaves the detector unchanged.

    Attributes:
        checkpoint: Path of the checkpoint, a file or a folder.
        class_names: The classes in the order of their ids; empty for a detector that has not been trained.
        image_size: Longer side in pixels that the checkpoint was trained at; None if unknown or untrained.
        renamed: From the checkpoint's own names for classes to those that are used; see `rename`.
    """

    checkpoint: Path
    class_names: tuple[str, ...]
    image_size: int | None
    renamed: dict[str, str]

    def rename(self, names: Mapping[str, str]) -> None:
        """Call classes by other names from now on; those that are not in ``names`` keep theirs."""
        ...

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
        """Train from this detector's checkpoint and return the path of the best new checkpoint.

        Args:
            dataset: Folder in the YOLO-seg layout, as written by `diffugen.dataset.yolo.write_yolo`.
            out_folder: Folder for checkpoints and training records.
            epochs: Passes over the training images.
            image_size: Longer side in pixels that images are scaled to.
            seed: Determines initial weights, sample order and augmentation.
            batch_size: Images per step; None leaves the choice to the detector.
            on_epoch: Called after each epoch.
            on_step: Called after each step.
            lr0: Initial learning rate; None leaves the choice to the detector.
            freeze: How much of the network, from the input on, is not trained.
            ignore_band: Width of a band on each side of a mask's edge whose pixels do not count in the loss,
                relative to the square root of the image area.
            extra: Further arguments of the detector's library.

        Raises:
            DiffugenError: The dataset is missing or empty, the checkpoint does not fit, or as in `check_fit`.
        """
        ...

    def check_fit(
        self, *, extra: TrainingArguments | None, ignore_band: float, batch_size: int | None
    ) -> None:
        """Raise DiffugenError if this detector cannot be trained with such arguments of `fit`."""
        ...

    def predict(
        self, images: Sequence[NDArray[np.uint8]], *, image_size: int, confidence: float = 0.25
    ) -> list[Instances]:
        """Return the instances detected in each image, highest confidence first.

        Args:
            images: N arrays uint8 (H, W, 3), RGB; sizes may differ.
            image_size: Longer side in pixels that images are scaled to; masks have the image's own size.
            confidence: Minimum confidence of an instance, in [0, 1].
        """
        ...
