"""One training of a Mask2Former, which continues after its last finished epoch if it was killed.

Every epoch draws its random numbers from a seed of its own, so a continued training gives the same weights as
one that was not interrupted. Does not know the forms of a checkpoint, or what to do when memory runs out.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffugen.comparison.metrics import AveragePrecision, average_precision
from diffugen.dataset.files import Item
from diffugen.dataset.yolo import item_readers
from diffugen.detectors import OnEpoch, OnStep
from diffugen.detectors.mask2former_images import as_input, input_wh, padded, predict_batch, scaled
from diffugen.detectors.mask2former_loss import edge_band, ignore_bands, set_bands
from diffugen.diffusion.messages import quiet
from diffugen.errors import ModelError, first_line
from diffugen.labels import shapes
from diffugen.records import content_id

if TYPE_CHECKING:
    import torch
    from transformers import Mask2FormerForUniversalSegmentation

WEIGHT_DECAY, LARGEST_GRADIENT = 0.05, 0.01
"""Of AdamW, and the norm that gradients are clipped to (Cheng et al., section 4.1 and its code)."""

STATE = "unfinished.pt"
"""File in the folder of a training, until it is complete."""


@dataclass(frozen=True)
class Images:
    """The images of a split, each read again whenever it is needed.

    Attributes:
        readers: Read an image with its objects.
        labelled: The numbers of the images that have objects.
        digest: Changes when a pixel or a label does.
    """

    readers: Sequence[Callable[[], Item]]
    labelled: Sequence[int]
    digest: str


def open_images(dataset: Path, split: str) -> Images:
    """Read all images of a split once, so that a mistake in one of them is found before the training."""
    readers, labelled, hashed = item_readers(dataset, split), list[int](), hashlib.sha256()
    for number, read in enumerate(readers):
        name, rgb, instances = read()
        if len(instances):
            labelled.append(number)
        hashed.update(content_id(name, rgb.shape, instances.class_names, instances.rles).encode())
        hashed.update(rgb.tobytes())
    return Images(readers, labelled, hashed.hexdigest())


@dataclass(frozen=True)
class Training:
    """What decides the result of a training, except for the batch size.

    Attributes:
        images: Those of ``train`` and ``val``.
        classes: The classes, in the order of their ids.
        start: Changes when the weights do that the training starts from.
        epochs: Passes over the training images.
        image_size: Longer side in pixels that images are scaled to.
        seed: Determines initial weights, sample order, mirroring and the points of the loss.
        learning_rate: Of AdamW, constant.
        frozen: Whether the backbone is not trained.
        ignore_band: Width of the band on each side of a mask's edge that does not count in the mask losses,
            relative to the square root of the image area; at least a pixel, unless it is 0.
    """

    images: dict[str, Images] = field(repr=False)
    classes: Sequence[str]
    start: str
    epochs: int
    image_size: int
    seed: int
    learning_rate: float
    frozen: bool
    ignore_band: float

    def key(self, batch_size: int) -> str:
        """Return 16 hex digits that change when anything does that decides the result."""
        digests = [self.images[split].digest for split in ("train", "val")]
        others = {name: value for name, value in vars(self).items() if name != "images"}
        return content_id(digests, others, batch_size)


def fit_once(
    training: Training,
    new_model: Callable[[], Mask2FormerForUniversalSegmentation],
    folder: Path,
    on_epoch: OnEpoch | None,
    on_step: OnStep | None,
    batch_size: int,
) -> Path:
    """Train with a fixed batch size and return the folder of the best checkpoint, by mask AP50-95 on ``val``.

    Args:
        training: What to train on, and how.
        new_model: Returns the model to begin with, on its device; called with the seed set.
        folder: For the checkpoint, ``weights/best``, and until it is there `STATE`.
        on_epoch: Called after each epoch; not again for those of an earlier call.
        on_step: Called after each step with the epochs done, as a fraction.
        batch_size: Images per step.

    Raises:
        ModelError: The state of an interrupted training is damaged.
    """
    import torch

    file, best = folder / STATE, folder / "weights" / "best"
    shutil.rmtree(best, ignore_errors=True)
    with torch.random.fork_rng():
        torch.manual_seed(training.seed)
        state = _State.begin(training, new_model())
        state.resume(file, training.key(batch_size))
        for epoch in range(state.epochs, training.epochs):
            loss = _train_epoch(training, state, batch_size, on_step)
            found = _validate(training, state.model)
            state.finish_epoch(found.ap50_95 or 0.0)
            state.save(file, training.key(batch_size))
            if on_epoch is not None:
                on_epoch(
                    epoch + 1,
                    {
                        "train/loss": loss,
                        "metrics/mAP50(M)": found.ap50 or 0.0,
                        "metrics/mAP50-95(M)": found.ap50_95 or 0.0,
                    },
                )
        state.model.load_state_dict(state.best)
    _save(state.model, best)
    file.unlink()
    return best


@dataclass
class _State:
    """Everything that changes during a training.

    Attributes:
        model: The model.
        optimizer: AdamW, on the weights that are trained.
        epochs: Number of finished epochs.
        best: The weights of the best epoch, on the CPU.
        best_ap: Its mask AP50-95 on the validation images, in [0, 1]; -1 before the first.
    """

    model: Mask2FormerForUniversalSegmentation
    optimizer: torch.optim.Optimizer
    epochs: int = 0
    best: dict[str, torch.Tensor] = field(default_factory=dict)
    best_ap: float = -1.0

    @staticmethod
    def begin(training: Training, model: Mask2FormerForUniversalSegmentation) -> _State:
        """Return the state before the first step."""
        import torch

        model.model.pixel_level_module.encoder.requires_grad_(not training.frozen)
        if training.ignore_band:
            ignore_bands(model)
        trained = [weights for weights in model.parameters() if weights.requires_grad]
        return _State(model, torch.optim.AdamW(trained, training.learning_rate, weight_decay=WEIGHT_DECAY))

    def finish_epoch(self, ap50_95: float) -> None:
        """Count an epoch; of equal ones, the one that has learned longest is the best."""
        self.epochs += 1
        if ap50_95 >= self.best_ap:
            self.best_ap = ap50_95
            self.best = {name: one.cpu().clone() for name, one in self.model.state_dict().items()}

    def save(self, file: Path, key: str) -> None:
        """Write the state; a killed call leaves the previous one."""
        import torch

        file.parent.mkdir(parents=True, exist_ok=True)
        kept = {
            "key": key,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epochs": self.epochs,
            "best": self.best,
            "best_ap": self.best_ap,
        }
        partial = file.with_name(f"{file.name}.partial")
        torch.save(kept, partial)
        os.replace(partial, file)

    def resume(self, file: Path, key: str) -> None:
        """Restore the state from a file, if there is one of the same training.

        Raises:
            ModelError: The file is damaged.
        """
        import torch

        if not file.exists():
            return
        try:
            kept: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
            if kept["key"] != key:
                return
            self.model.load_state_dict(kept["model"])
            self.optimizer.load_state_dict(kept["optimizer"])
            self.epochs, self.best_ap = kept["epochs"], kept["best_ap"]
            self.best = kept["best"]
        except Exception as error:  # unpickling a damaged file can raise anything
            raise ModelError(
                f"cannot read the state of an interrupted training, {file} ({first_line(error)}); remove it "
                "to train from the beginning"
            ) from error


def _train_epoch(training: Training, state: _State, batch_size: int, on_step: OnStep | None) -> float:
    """Take the steps of an epoch and return their mean loss."""
    import torch

    seed = int(content_id(training.seed, state.epochs), 16) % 2**63
    torch.manual_seed(seed)
    order, images = random.Random(seed), training.images["train"]
    batches, losses = list(_batches(images, batch_size, order)), list[float]()
    for number, batch in enumerate(batches, start=1):
        mirrored = [order.random() < 0.5 for _ in batch]
        items = [images.readers[index]() for index in batch]
        losses.append(_step(training, state, items, mirrored))
        if on_step is not None:
            on_step(state.epochs + number / (len(batches) + 1))  # the validation counts as one more step
    return float(np.mean(losses))


def _batches(images: Images, batch_size: int, order: random.Random) -> Iterator[list[int]]:
    """Yield the numbers of all images in random order; a batch without any object gets an image with some.

    There is no loss without an object.
    """
    shuffled = order.sample(range(len(images.readers)), len(images.readers))
    for first in range(0, len(shuffled), batch_size):
        batch = shuffled[first : first + batch_size]
        if not set(batch).intersection(images.labelled):
            batch.append(order.choice(images.labelled))
        yield batch


def _step(training: Training, state: _State, batch: Sequence[Item], mirrored: Sequence[bool]) -> float:
    """Take one step and return the loss."""
    import torch

    model = state.model
    sizes = [input_wh(rgb, training.image_size) for _, rgb, _ in batch]
    largest = (max(width for width, _ in sizes), max(height for _, height in sizes))
    pixels, inside, masks, bands, labels = [], [], [], [], []
    for (_, rgb, instances), size, flip in zip(batch, sizes, mirrored, strict=True):
        turn = slice(None, None, -1) if flip else slice(None)
        pixels.append(padded(as_input(rgb[:, turn], size), largest))
        inside.append(padded(torch.ones(size[::-1]), largest))
        objects = [shapes.decode(rle)[:, turn] for rle in instances.rles]
        stack = np.stack(objects) if objects else np.zeros((0, *rgb.shape[:2]), dtype=np.bool_)
        shown = scaled(torch.from_numpy(stack.copy())[None].float(), size)[0].gt(0.5).float()
        masks.append(padded(shown, largest).to(model.device))
        if training.ignore_band:
            radius = max(1, round(training.ignore_band * (size[0] * size[1]) ** 0.5))
            bands.append(padded(edge_band(shown, radius), largest).to(model.device))
        labels.append(torch.tensor([training.classes.index(name) for name in instances.class_names]))
    if training.ignore_band:
        set_bands(model, bands)
    model.train()
    loss = model(
        pixel_values=torch.stack(pixels).to(model.device),
        pixel_mask=torch.stack(inside).to(model.device),
        mask_labels=masks,
        class_labels=[one.long().to(model.device) for one in labels],
    ).loss
    state.optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), LARGEST_GRADIENT)
    state.optimizer.step()
    return float(loss.detach())


def _validate(training: Training, model: Mask2FormerForUniversalSegmentation) -> AveragePrecision:
    """Return the average precision of a model's masks on the validation images."""
    pairs = []
    for read in training.images["val"].readers:
        _, rgb, truth = read()
        [found] = predict_batch(model, training.classes, training.image_size, 0.0, [rgb])
        pairs.append((truth, found))
    return average_precision(pairs)


def _save(model: Mask2FormerForUniversalSegmentation, folder: Path) -> None:
    """Write a checkpoint that is complete or absent."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with quiet():
        model.save_pretrained(partial)
    partial.rename(folder)
