"""Learn from corrected masks how heat and a denoiser's activations become masks: a decoder, and its training.

A decoder looks at one pixel and one phrase at a time: at the phrase's heat in each layer and noise level, at
that of its rivals, and at the activations there, of which principal components are kept. It says how likely
the phrase's object covers the pixel. It knows no classes, so every corrected mask teaches all of them, and
what it draws takes the place of heat maps; thresholds, refinement, and scores stay what they were.

It learns from two kinds of lessons: corrected masks, which are few, and attention labels, which are many and
wrong in places. Both count the same in total. The many keep it from learning the few by heart; the few
correct what is wrong with all of the many.

An ensemble of small networks is trained on different pixels. Their mean is the probability. Where they
disagree, by the Jensen-Shannon divergence, the decoder is in doubt.

Knows features, masks and phrases. Does not know images, runs, or how features are read.
Method: Baranchuk et al. (2022, "Label-Efficient Semantic Segmentation with Diffusion Models", section 4.1)
and DatasetGAN (Zhang et al., 2021, section 3.1); conditioning on a phrase, and weak lessons, are ours.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from diffugen.errors import ModelError
from diffugen.labels.heatmaps import DOUBT, TAUGHT, relative_names, scaled
from diffugen.labels.shapes import decode
from diffugen.records import RLE, STEP_THIRDS, HeatMaps, Instances, PixelFeatures

if TYPE_CHECKING:
    import torch

COMPONENTS = 32
"""Principal components of the activations that are kept."""

SAMPLED_CELLS = 4096
"""Cells, of all images together, whose activations decide the principal components."""

MEMBERS, HIDDEN, STEPS, BATCH = 5, 48, 400, 1024
"""Networks of the ensemble, hidden units of each, optimiser steps, and pixels of each kind in a step."""

LEARNING_RATE, WEIGHT_DECAY = 2e-3, 0.1

SAMPLED_PIXELS = 2048
"""Pixels of each class of an image that are learned from; neighbours tell little more."""

LARGEST_SIDE = 128
"""Longer side in pixels of what a decoder draws: heat is coarser anyway, and refinement finds the edges."""

FORMAT = 1
WEIGHTS_NAME, ABOUT_NAME = "decoder.safetensors", "decoder.json"

Float = NDArray[np.float32]


@dataclass(frozen=True)
class Lesson:
    """An image to learn from.

    Attributes:
        features: Its features, compact; see `Projection`.
        labels: Its objects.
        corrected: Whether a person has decided that these are all its objects, and their masks.
    """

    features: PixelFeatures
    labels: Instances
    corrected: bool


@dataclass(frozen=True)
class Projection:
    """Principal components of the activations of a model.

    Attributes:
        means: From a block and noise level to float32 (C,), the mean of each channel.
        axes: From the same to float32 (C, `COMPONENTS`): centred activations times these, summed over all
            blocks and levels, are components of about unit variance.
        groups: Relative names of the model's layer groups.
    """

    means: Mapping[str, Float]
    axes: Mapping[str, Float]
    groups: tuple[str, ...]

    @classmethod
    def fit(cls, images: Iterable[PixelFeatures], count: int, seed: int) -> Projection:
        """Find the principal components.

        Args:
            images: The features of some images; one at a time is in memory, and of each only a sample is
                kept.
            count: Number of the images.
            seed: Decides which cells are sampled.

        Raises:
            ModelError: The features are not all of the same model.
        """
        import torch

        rng = np.random.default_rng(seed)
        share = max(1, SAMPLED_CELLS // max(1, count))
        rows: dict[str, list[Float]] = {}
        layout: tuple[tuple[str, ...], dict[str, int]] | None = None
        for features in images:
            layout = layout or _layout(features)
            if layout != _layout(features):
                raise ModelError("the features are not all of the same model; read them again")
            points = rng.random((share, 2))
            for name, array in features.activations.items():
                h, w = array.shape[1:]
                y, x = (points * (h, w)).astype(int).T
                rows.setdefault(name, []).append(array[:, y, x].T.astype(np.float32))
        if layout is None:
            raise ModelError("there are no features to learn from")
        samples = {name: np.concatenate(parts) for name, parts in rows.items()}
        means = {name: values.mean(axis=0) for name, values in samples.items()}
        spreads = {name: values.std(axis=0) + 1e-3 for name, values in samples.items()}
        centred = np.concatenate([(samples[name] - means[name]) / spreads[name] for name in samples], axis=1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            kept = min(COMPONENTS, *centred.shape)
            _, values, axes = torch.pca_lowrank(torch.from_numpy(centred), q=kept, center=False)
        unit = axes.numpy() / np.maximum(values.numpy() / math.sqrt(len(centred)), 1e-6)
        unit = np.pad(unit, ((0, 0), (0, COMPONENTS - kept))).astype(np.float32)
        ends = np.cumsum([len(mean) for mean in means.values()])[:-1]
        parts = zip(means, np.split(unit, ends), strict=True)
        return cls(means, {name: part / spreads[name][:, None] for name, part in parts}, layout[0])

    def compact(self, features: PixelFeatures) -> PixelFeatures:
        """Return features whose activations are the principal components alone, in one small array.

        Raises:
            ModelError: The features are of another model.
        """
        if _layout(features) != (self.groups, {name: len(mean) for name, mean in self.means.items()}):
            raise ModelError(
                "these features are of another model than those that the decoder was taught on; use that "
                "model, or teach again"
            )
        h, w = max((array.shape[1:] for array in features.activations.values()), key=math.prod)
        total = np.zeros((COMPONENTS, h, w), dtype=np.float32)
        for name, array in features.activations.items():
            centred = array.astype(np.float32) - self.means[name][:, None, None]
            total += _resized(np.einsum("chw,ck->khw", centred, self.axes[name]), (w, h))
        return PixelFeatures(
            features.size_wh, features.phrases, features.heats, {"components": total.astype(np.float16)}
        )


class Decoder:
    """An ensemble of networks that draws the objects of phrases from features.

    Args:
        projection: Of the model that it was taught on.
        state: The networks' weights, as `save` writes them.
        about: Notes that are kept with it, such as the model and the number of lessons; JSON values.

    Attributes:
        projection: As given.
        about: As given.
    """

    def __init__(
        self, projection: Projection, state: Mapping[str, torch.Tensor], about: Mapping[str, Any]
    ) -> None:
        self.projection = projection
        self.about = dict(about)
        self._state = dict(state)

    @classmethod
    def teach(
        cls, projection: Projection, lessons: Sequence[Lesson], *, seed: int, about: Mapping[str, Any] = {}
    ) -> Decoder:
        """Train a decoder.

        Args:
            projection: Of the model.
            lessons: Corrected images and attention labels of others; one kind is enough.
            seed: Decides initial weights and which pixels are seen.
            about: Notes that are kept with it.

        Raises:
            ModelError: No lesson has an object that its prompt names.

        Example:
            >>> Decoder.teach(projection, lessons, seed=0).heat_maps("an-id", features)  # doctest: +SKIP
        """
        import torch

        rng = np.random.default_rng(seed)
        sides = [_examples([one for one in lessons if one.corrected is kind], rng) for kind in (True, False)]
        if not any(side is not None and side[1].any() for side in sides):
            raise ModelError("no image to learn from has an object that its prompt names")
        everything = np.concatenate([side[0] for side in sides if side is not None])
        mean, spread = everything.mean(axis=0), everything.std(axis=0) + 1e-2
        kinds = [
            (torch.from_numpy((side[0] - mean) / spread), torch.from_numpy(side[1].astype(np.float32)))
            for side in sides
            if side is not None
        ]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            weights = _initial(everything.shape[1])
            optimiser = torch.optim.AdamW(weights.values(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
            for _ in range(STEPS):
                loss = torch.zeros(())
                for inputs, targets in kinds:
                    seen = torch.randint(len(inputs), (MEMBERS, BATCH))
                    loss = loss + torch.nn.functional.binary_cross_entropy_with_logits(
                        _logits(weights, inputs[seen]), targets[seen]
                    )
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
        state = {name: value.detach() for name, value in weights.items()}
        state |= {"mean": torch.from_numpy(mean), "spread": torch.from_numpy(spread)}
        return cls(projection, state, about)

    def draw(self, features: PixelFeatures) -> tuple[Float, Float]:
        """Return how likely each pixel belongs to the object of each phrase, and how doubtful that is.

        Args:
            features: Of one image, compact or not.

        Returns:
            Probabilities in [0, 1] and Jensen-Shannon divergences of the networks in bits, in [0, 1]: float32
            (P, h, w) each, of the image's proportions and at most `LARGEST_SIDE` px. Both are 0 for phrases
            that name no class.

        Raises:
            ModelError: The features are of another model.
        """
        import torch

        compact = features if "components" in features.activations else self.projection.compact(features)
        w, h = _drawn_wh(compact.size_wh)
        chances = np.zeros((len(compact.phrases), h, w), dtype=np.float32)
        doubts = np.zeros_like(chances)
        mean, spread = self._state["mean"].numpy(), self._state["spread"].numpy()
        with torch.no_grad():
            for name, inputs in _inputs(compact).items():
                given = torch.from_numpy((inputs - mean) / spread)
                votes = torch.sigmoid(_logits(self._state, given.expand(MEMBERS, -1, -1))).numpy()
                chance = votes.mean(axis=0)
                doubt = _entropy(chance) - _entropy(votes).mean(axis=0)
                for index, phrase in enumerate(compact.phrases):
                    if phrase.class_name == name:
                        chances[index], doubts[index] = chance.reshape(h, w), doubt.reshape(h, w)
        return chances, np.maximum(doubts, 0)

    def heat_maps(self, image_id: str, features: PixelFeatures, region: RLE | None = None) -> HeatMaps:
        """Return what the decoder draws as heat maps: ``taught-<h>x<w>``, and ``doubt-<h>x<w>`` beside it.

        Args:
            image_id: The image.
            features: Its features, compact or not.
            region: The region that was painted over, as RLE of the image's size; None for all of it.

        Raises:
            ModelError: The features are of another model.
        """
        drawn = dict(zip((TAUGHT, DOUBT), self.draw(features), strict=True))
        maps = {
            f"{place}-{array.shape[1]}x{array.shape[2]}": np.repeat(
                array[:, None].astype(np.float16), STEP_THIRDS, axis=1
            )
            for place, array in drawn.items()
        }
        return HeatMaps(image_id, features.size_wh, features.phrases, maps, region)

    def save(self, folder: Path) -> None:
        """Write the decoder to a folder, which is made."""
        import torch
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"network.{name}": value.contiguous() for name, value in self._state.items()}
        for kind, arrays in (("mean", self.projection.means), ("axes", self.projection.axes)):
            tensors |= {f"{kind}.{name}": torch.from_numpy(array) for name, array in arrays.items()}
        save_file(tensors, folder / WEIGHTS_NAME)
        notes = {"format": FORMAT, "groups": list(self.projection.groups), "about": self.about}
        (folder / ABOUT_NAME).write_text(json.dumps(notes, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Decoder:
        """Read the decoder that `save` wrote.

        Raises:
            ModelError: The folder does not contain a decoder, or one of another version.
        """
        from safetensors.torch import load_file

        try:
            notes = json.loads((folder / ABOUT_NAME).read_text(encoding="utf-8"))
            tensors = load_file(folder / WEIGHTS_NAME)
            if notes["format"] != FORMAT:
                raise ModelError(f"{folder} holds a decoder of another version of DiffuGen; teach again")
            parts: dict[str, dict[str, torch.Tensor]] = {"network": {}, "mean": {}, "axes": {}}
            for key, value in tensors.items():
                kind, name = key.split(".", 1)
                parts[kind][name] = value
            means, axes = ({k: v.numpy() for k, v in parts[kind].items()} for kind in ("mean", "axes"))
            projection = Projection(means, axes, tuple(notes["groups"]))
            return cls(projection, parts["network"], notes["about"])
        except ModelError:
            raise
        except Exception as error:  # safetensors, json and the file system raise many unrelated types
            raise ModelError(f"{folder} does not contain a decoder: {error}") from error


def _layout(features: PixelFeatures) -> tuple[tuple[str, ...], dict[str, int]]:
    """Return the names of the rows of `_heats`, and the channels of each block; they identify a model."""
    groups = sorted({_depthless(name) for name in relative_names(features.heats).values()})
    return tuple(groups), {name: len(array) for name, array in features.activations.items()}


def _depthless(name: str) -> str:
    """Return the relative name of a layer group without the number of its layer: a large model has dozens."""
    return re.sub(r"-[0-9]+(?=@)", "", name)


def _heats(features: PixelFeatures, size_wh: tuple[int, int]) -> Float:
    """Return each phrase's heat in each layer group and noise level, rescaled to [0, 1]: (P, K, h, w)."""
    together: dict[str, list[NDArray[np.float16]]] = {}
    for group, name in relative_names(features.heats).items():
        together.setdefault(_depthless(name), []).append(features.heats[group])
    w, h = size_wh
    rows = []
    for _, arrays in sorted(together.items()):
        mean = np.nan_to_num(np.mean([array.astype(np.float32) for array in arrays], axis=0))
        phrases, levels = mean.shape[:2]
        large = _resized(mean.reshape(phrases * levels, *mean.shape[2:]), (w, h), cv2.INTER_CUBIC)
        rows.append(np.stack([scaled(np.maximum(one, 0)) for one in large]).reshape(phrases, levels, h, w))
    return np.concatenate(rows, axis=1)


def _inputs(features: PixelFeatures) -> dict[str, Float]:
    """Return, for each class that the prompt names, what the networks see of each pixel: (pixels, D)."""
    w, h = size_wh = _drawn_wh(features.size_wh)
    heats = _heats(features, size_wh)
    components = _resized(features.activations["components"].astype(np.float32), size_wh)
    names = [phrase.class_name for phrase in features.phrases]
    nothing = np.zeros_like(heats[0])
    inputs = {}
    for name in dict.fromkeys(name for name in names if name is not None):
        sides = (
            [index for index, other in enumerate(names) if other == name],
            [index for index, other in enumerate(names) if other not in (name, None)],
            [index for index, other in enumerate(names) if other is None],
        )
        seen = [heats[list(side)].max(axis=0) if side else nothing for side in sides]
        inputs[name] = np.concatenate([*seen, components]).reshape(-1, h * w).T
    return inputs


def _examples(lessons: Sequence[Lesson], rng: np.random.Generator) -> tuple[Float, NDArray[np.bool_]] | None:
    """Return what the networks see of a sample of pixels (N, D), and whether the object is there (N,)."""
    inputs, targets = [], []
    for lesson in lessons:
        size_wh = _drawn_wh(lesson.features.size_wh)
        for name, given in _inputs(lesson.features).items():
            covered = np.zeros(size_wh[::-1], dtype=np.bool_)
            for other, rle in zip(lesson.labels.class_names, lesson.labels.rles, strict=True):
                if other == name:
                    mask = decode(rle).astype(np.uint8)
                    covered |= cv2.resize(mask, size_wh, interpolation=cv2.INTER_NEAREST).astype(np.bool_)
            chosen = rng.permutation(len(given))[:SAMPLED_PIXELS]
            inputs.append(given[chosen])
            targets.append(covered.reshape(-1)[chosen])
    return (np.concatenate(inputs), np.concatenate(targets)) if inputs else None


def _initial(inputs: int) -> dict[str, torch.Tensor]:
    """Return the initial weights of the ensemble, drawn from torch's global generator."""
    import torch

    shapes = {"first": (inputs, HIDDEN), "second": (HIDDEN, 1)}
    weights: dict[str, torch.Tensor] = {}
    for name, (ins, outs) in shapes.items():
        bound = 1 / math.sqrt(ins)
        weights[f"{name}_weight"] = (torch.rand(MEMBERS, ins, outs) * 2 - 1) * bound
        weights[f"{name}_bias"] = (torch.rand(MEMBERS, 1, outs) * 2 - 1) * bound
    return {name: value.requires_grad_() for name, value in weights.items()}


def _logits(weights: Mapping[str, torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
    """Return the logits (members, N) of inputs (members, N, D)."""
    hidden = (inputs @ weights["first_weight"] + weights["first_bias"]).relu()
    return (hidden @ weights["second_weight"] + weights["second_bias"])[..., 0]


def _entropy(chance: Float) -> Float:
    """Return the entropy of a binary outcome in bits."""
    safe = np.clip(chance, 1e-7, 1 - 1e-7)
    return np.asarray(-(safe * np.log2(safe) + (1 - safe) * np.log2(1 - safe)), dtype=np.float32)


def _drawn_wh(size_wh: tuple[int, int]) -> tuple[int, int]:
    shrink = min(1.0, LARGEST_SIDE / max(size_wh))
    return max(1, round(size_wh[0] * shrink)), max(1, round(size_wh[1] * shrink))


def _resized(maps: Float, size_wh: tuple[int, int], how: int = cv2.INTER_LINEAR) -> Float:
    """Return maps (N, h, w), or as many of another size, resized to width and height."""
    w, h = size_wh
    large = np.empty((len(maps), h, w), dtype=np.float32)
    for source, target in zip(maps.astype(np.float32), large, strict=True):
        cv2.resize(source, (w, h), dst=target, interpolation=how)
    return large
