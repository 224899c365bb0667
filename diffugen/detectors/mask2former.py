"""Mask2Former (Cheng et al. 2022, "Masked-attention Mask Transformer") by transformers: fit and predict.

Knows dataset folders and image arrays. Does not know rounds, label sources or ground truth. It learns from
the exact masks of a dataset, with their holes and pieces.

A checkpoint is one of
- a folder as ``save_pretrained`` writes it; without weights, it is an architecture, to be fitted,
- the name of an instance-segmentation model on the Hub, such as
  ``facebook/mask2former-swin-tiny-coco-instance``.
"""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from diffugen.comparison.metrics import average_precision
from diffugen.config.foreign import parse_json, read_text
from diffugen.config.training import TrainingArguments
from diffugen.dataset.files import Item
from diffugen.dataset.yolo import find_yolo, read_yolo
from diffugen.dataset.yolo_layout import read_layout
from diffugen.detectors import SMALLEST_IMAGE, OnEpoch, OnStep
from diffugen.detectors.batches import halving, predict_in_batches
from diffugen.diffusion.devices import resolve_device
from diffugen.diffusion.hub import HUB_NAME, download
from diffugen.diffusion.messages import quiet
from diffugen.errors import DiffugenError, ModelError, first_line
from diffugen.labels import shapes
from diffugen.records import Instances

if TYPE_CHECKING:
    import torch
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

TYPE = "mask2former"
"""``model_type`` in the ``config.json`` of a checkpoint."""

OTHER_TASKS = ("semantic", "panoptic")
"""Tasks whose checkpoints have the same architecture; only their names tell."""

BATCH_SIZE = 8
"""Images per step where the caller sets none; halved when memory runs out."""

LEARNING_RATE, WEIGHT_DECAY, LARGEST_GRADIENT = 1e-4, 0.05, 0.01
"""Of AdamW, and the norm that gradients are clipped to (Cheng et al., section 4.1 and its code)."""

STRIDE = 32
"""Sides of the network's input are multiples of it."""

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's colours in [0, 1], which the backbones were trained on."""


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
            device: ``auto``, ``cpu``, ``mps``, ``cuda`` or ``cuda:<number>``.

        Raises:
            ModelError: There is no such checkpoint or device, or it is for another task.
        """
        self.checkpoint = _find(checkpoint)
        self._device = resolve_device(device)
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
        extra: TrainingArguments | None = None,
    ) -> Path:
        """Train from this checkpoint and return the folder of the best new one, by mask AP50-95 on ``val``.

        Weights of matching shape are kept; classes of the same name keep theirs. Half of the images are
        mirrored. When memory runs out, training restarts with half the batch size. On a CPU, the same
        arguments give the same weights on one thread.

        Args:
            dataset: A folder with ``data.yaml``, or such a file; see `diffugen.dataset.yolo.write_yolo`.
            out_folder: Folder for the checkpoint, ``weights/best``.
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
            extra: Arguments of Ultralytics; must be empty.

        Raises:
            DiffugenError: The dataset is missing or empty, or an argument is out of range.
            ModelError: Memory runs out even with one image per step.
        """
        if epochs < 1 or image_size < SMALLEST_IMAGE:
            raise DiffugenError(
                f"epochs must be at least 1 and image_size at least {SMALLEST_IMAGE}; got {epochs} and "
                f"{image_size}"
            )
        if extra and extra.model_dump():
            raise DiffugenError(
                f"detector.extra ({', '.join(extra.model_dump())}) is for YOLO; with Mask2Former, it is {{}}"
            )
        file = find_yolo(Path(dataset))
        names = read_layout(file).class_names
        classes = [names[number] for number in sorted(names)]
        splits = {split: list(read_yolo(file, split)) for split in ("train", "val")}
        fit = partial(
            self._fit,
            splits,
            classes,
            Path(out_folder),
            epochs,
            image_size,
            seed,
            lr0 or LEARNING_RATE,
            bool(freeze),
            on_epoch,
            on_step,
        )
        return halving(fit, batch_size or BATCH_SIZE, "training")

    def _fit(
        self,
        splits: Mapping[str, Sequence[Item]],
        classes: Sequence[str],
        out_folder: Path,
        epochs: int,
        image_size: int,
        seed: int,
        learning_rate: float,
        frozen: bool,
        on_epoch: OnEpoch | None,
        on_step: OnStep | None,
        batch_size: int,
    ) -> Path:
        import torch

        best, best_ap, order = out_folder / "weights" / "best", -1.0, random.Random(seed)
        shutil.rmtree(best, ignore_errors=True)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = self._new_model(classes, image_size).to(self._device)
            model.model.pixel_level_module.encoder.requires_grad_(not frozen)
            trained = [weights for weights in model.parameters() if weights.requires_grad]
            optimizer = torch.optim.AdamW(trained, learning_rate, weight_decay=WEIGHT_DECAY)
            for epoch in range(epochs):
                batches = list(_batches(splits["train"], batch_size, order))
                losses = []
                for number, batch in enumerate(batches, start=1):
                    mirrored = [order.random() < 0.5 for _ in batch]
                    losses.append(self._step(model, optimizer, batch, mirrored, classes, image_size))
                    if on_step is not None:
                        # The validation counts as one more step.
                        on_step(epoch + number / (len(batches) + 1))
                found = average_precision(
                    [
                        (truth, one)
                        for _, rgb, truth in splits["val"]
                        for one in self._predict(model, classes, image_size, 0.0, [rgb])
                    ]
                )
                if (found.ap50_95 or 0.0) >= best_ap:  # of equal epochs, the one that has learned longest
                    best_ap = found.ap50_95 or 0.0
                    _save(model, best)
                if on_epoch is not None:
                    on_epoch(
                        epoch + 1,
                        {
                            "train/loss": float(np.mean(losses)),
                            "metrics/mAP50(M)": found.ap50 or 0.0,
                            "metrics/mAP50-95(M)": found.ap50_95 or 0.0,
                        },
                    )
        return best

    def _new_model(self, classes: Sequence[str], image_size: int) -> Mask2FormerForUniversalSegmentation:
        """Return a model of other classes with this one's weights, as far as they fit."""
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
        return model

    def _step(
        self,
        model: Mask2FormerForUniversalSegmentation,
        optimizer: torch.optim.Optimizer,
        batch: Sequence[Item],
        mirrored: Sequence[bool],
        classes: Sequence[str],
        image_size: int,
    ) -> float:
        """Take one step and return the loss."""
        import torch

        sizes = [_input_wh(rgb, image_size) for _, rgb, _ in batch]
        largest = (max(width for width, _ in sizes), max(height for _, height in sizes))
        pixels, inside, masks, labels = [], [], [], []
        for (_, rgb, instances), size, flip in zip(batch, sizes, mirrored, strict=True):
            turn = slice(None, None, -1) if flip else slice(None)
            pixels.append(_padded(_as_input(rgb[:, turn], size), largest))
            inside.append(_padded(torch.ones(size[::-1]), largest))
            objects = [shapes.decode(rle)[:, turn] for rle in instances.rles]
            stack = np.stack(objects) if objects else np.zeros((0, *rgb.shape[:2]), dtype=np.bool_)
            scaled = _scaled(torch.from_numpy(stack.copy())[None].float(), size)[0]
            masks.append(_padded(scaled.gt(0.5).float(), largest))
            labels.append(torch.tensor([classes.index(name) for name in instances.class_names]))
        model.train()
        loss = model(
            pixel_values=torch.stack(pixels).to(self._device),
            pixel_mask=torch.stack(inside).to(self._device),
            mask_labels=[one.to(self._device) for one in masks],
            class_labels=[one.long().to(self._device) for one in labels],
        ).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), LARGEST_GRADIENT)
        optimizer.step()
        return float(loss.detach())

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
            raise ModelError(
                f"{self.checkpoint} is an architecture without weights; fit it and predict with the result"
            )
        self._model.to(self._device)
        names = [self._config.id2label[number] for number in sorted(self._config.id2label)]
        predict = partial(self._predict, self._model, names, image_size, confidence)
        return [one.renamed(self.renamed) for one in predict_in_batches(images, predict)]

    def _predict(
        self,
        model: Mask2FormerForUniversalSegmentation,
        names: Sequence[str],
        image_size: int,
        confidence: float,
        images: Sequence[NDArray[np.uint8]],
    ) -> list[Instances]:
        import torch
        from transformers import Mask2FormerImageProcessor

        height, width = images[0].shape[:2]
        size = _input_wh(images[0], image_size)
        pixels = torch.stack([_as_input(rgb, size) for rgb in images]).to(self._device)
        model.eval()
        with torch.inference_mode(), quiet():
            found = Mask2FormerImageProcessor().post_process_instance_segmentation(
                model(pixel_values=pixels),
                threshold=confidence,
                target_sizes=[(height, width)] * len(images),
                return_binary_maps=True,
            )
        return [_instances(one, names, (width, height)) for one in found]


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


def _save(model: Mask2FormerForUniversalSegmentation, folder: Path) -> None:
    """Write a checkpoint that is complete or absent."""
    partial_folder = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial_folder, ignore_errors=True)
    with quiet():
        model.save_pretrained(partial_folder)
    shutil.rmtree(folder, ignore_errors=True)
    partial_folder.rename(folder)


def _batches(items: Sequence[Item], batch_size: int, order: random.Random) -> Iterator[list[Item]]:
    """Yield all items in random order; a batch without any object gets an image with some as well.

    There is no loss without an object.
    """
    shuffled = order.sample(items, len(items))
    for first in range(0, len(shuffled), batch_size):
        batch = shuffled[first : first + batch_size]
        if not any(len(instances) for _, _, instances in batch):
            batch.append(order.choice([item for item in items if len(item[2])]))
        yield batch


def _index(names: Sequence[str], name: str) -> int | None:
    return names.index(name) if name in names else None


def _input_wh(rgb: NDArray[np.uint8], image_size: int) -> tuple[int, int]:
    """Return width and height of the network's input for an image: its shape, in multiples of the stride."""
    height, width = rgb.shape[:2]
    scale = image_size / max(height, width)
    return max(STRIDE, round(width * scale / STRIDE) * STRIDE), max(
        STRIDE, round(height * scale / STRIDE) * STRIDE
    )


def _scaled(images: torch.Tensor, size_wh: tuple[int, int]) -> torch.Tensor:
    """Return float images (N, C, H, W) at another size."""
    import torch

    if not images.shape[1]:
        return images.new_zeros((len(images), 0, size_wh[1], size_wh[0]))
    return torch.nn.functional.interpolate(images, size_wh[::-1], mode="bilinear", antialias=True)


def _padded(image: torch.Tensor, size_wh: tuple[int, int]) -> torch.Tensor:
    """Return a float image (..., H, W) with zeros on its right and below it, so that it has a size."""
    import torch

    height, width = image.shape[-2:]
    return torch.nn.functional.pad(image, (0, size_wh[0] - width, 0, size_wh[1] - height))


def _as_input(rgb: NDArray[np.uint8], size_wh: tuple[int, int]) -> torch.Tensor:
    """Return an image as the network sees it, float32 (3, H, W)."""
    import torch

    mean, deviation = (torch.tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
    image = torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1))).float() / 255
    return (_scaled(image[None], size_wh)[0] - mean) / deviation


def _instances(found: Mapping[str, Any], names: Sequence[str], size_wh: tuple[int, int]) -> Instances:
    segments = found["segments_info"]
    if not segments:
        return Instances(size_wh, (), (), np.zeros(0))
    scores = np.array([one["score"] for one in segments], dtype=np.float64)
    order = np.argsort(-scores, kind="stable")
    masks = found["segmentation"].cpu().numpy().astype(np.bool_)
    return Instances(
        size_wh=size_wh,
        class_names=tuple(names[segments[index]["label_id"]] for index in order),
        rles=tuple(shapes.encode(masks[index]) for index in order),
        scores=scores[order].clip(0, 1),
    )
