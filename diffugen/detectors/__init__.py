"""What a detector is to the rest of DiffuGen: something that is fitted to a dataset folder and then predicts
instances.

Knows no implementation; each lives in a module of its own and keeps its library to itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from diffugen.records import Instances

OnEpoch = Callable[[int, Mapping[str, float]], None]
"""Called after each epoch with its number, from 1, and the losses and validation metrics so far."""


class Detector(Protocol):
    """Finds and outlines objects. Starts from a checkpoint; fitting makes another one and leaves the detector
    as it is.

    Attributes:
        class_names: The classes that it finds, in the order of their numbers; empty where it has learned
            nothing yet.
    """

    class_names: tuple[str, ...]

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
    ) -> Path:
        """Train from this detector's checkpoint and return the path of the best new checkpoint.

        Args:
            dataset: Folder in the YOLO-seg layout, as `diffugen.dataset.yolo.write_yolo` writes it.
            out_folder: Where checkpoints and training records go.
            epochs: Passes over the training images.
            image_size: Longer side, in pixels, that images are scaled to.
            seed: Decides initial weights, order and augmentation.
            batch_size: Images a step; None lets the detector choose.
            on_epoch: Called after each epoch.

        Raises:
            DiffugenError: If the dataset is missing or empty, or the checkpoint does not fit.
        """
        ...

    def predict(
        self,
        images: Sequence[NDArray[np.uint8]],
        *,
        image_size: int,
        confidence: float = 0.25,
    ) -> list[Instances]:
        """Return the instances found in each image, surest first.

        Args:
            images: N arrays uint8 (H, W, 3), RGB; sizes may differ.
            image_size: Longer side, in pixels, that images are scaled to; masks come back at the original
                size.
            confidence: Least confidence of an instance, in [0, 1].
        """
        ...
