"""Learn from masks the embedding of a token for each class, and trace it in noised images.

The token of a class takes the place of its phrase's tokens among the keys of the prompt; its attention, at
the layers that labels are made from, is compared with the masks by cross-entropy. Embeddings start from the
mean of the class's tokens.
Method: OVAM (Marcos-Manchón et al., 2024, section 3.3), but beside the other tokens of the image's prompt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
from heads import Float, Masks, Read

from diffugen.diffusion.families import attention_modules, denoiser_of

STEPS, BATCH = 150, 6
"""Optimiser steps, and masks of each side in a step."""

RATE, CALIBRATION_RATE, PULL = 0.02, 0.1, 1e-3
"""Learning rates of embeddings, and of slope and bias of the logit; pull of embeddings to their start."""


class Tokens:
    """Prepares images for learned tokens.

    Args:
        pipeline: A Stable Diffusion pipeline.
    """

    def __init__(self, pipeline: Any) -> None:
        # The layers of `labels.groups` in configs/miniature.yaml: those of up and down at the coarser grid.
        coarse = ("down_blocks.1", "up_blocks.0")
        self._layers = {
            name: module.to_k.weight.detach().float()
            for name, module in attention_modules(denoiser_of(pipeline)).items()
            if name.startswith(coarse) and "attn2" in name
        }
        self._prepared: dict[tuple[int, str], tuple[list[Any], Any]] = {}

    def _prepare(self, image: Read, name: str) -> tuple[list[Any], Any]:
        """Return queries and log-sum-exp of the other tokens for each layer, and the class's embedding."""
        import torch

        if (id(image), name) not in self._prepared:
            own = image.tokens_of(name)
            others = [index for index in range(len(image.text)) if index not in own]
            text, layers = torch.from_numpy(image.text), []
            for layer, projection in self._layers.items():
                queries = torch.from_numpy(image.queries[layer]).float()
                queries = queries / math.sqrt(queries.shape[-1])
                keys = (text[others] @ projection.T).unflatten(1, (queries.shape[1], -1))
                logits = torch.einsum("lhcd,thd->lhct", queries, keys)
                layers.append((projection, queries, logits.logsumexp(-1)))
            self._prepared[id(image), name] = layers, text[own].mean(dim=0)
        return self._prepared[id(image), name]

    def _attention(self, layers: list[Any], embedding: Any) -> Any:
        """Return the mean attention of a token, (cells,)."""
        import torch

        found = []
        for projection, queries, others in layers:
            keys = (projection @ embedding).unflatten(0, (queries.shape[1], -1))
            logits = torch.einsum("lhcd,hd->lhc", queries, keys)
            found.append((logits - others).sigmoid().mean(dim=(0, 1)))
        return torch.stack(found).mean(dim=0)

    def teach(
        self, sides: Sequence[Sequence[tuple[Read, Masks]]], everything: Sequence[Read], seed: int
    ) -> Callable[[Read], dict[str, Float]]:
        """Learn an embedding for each class, with one slope and bias that turn attention into a logit.

        Args:
            sides: Corrected images, and others with attention labels. Both sides count the same in total.
            everything: The images whose tokens embeddings start from.
            seed: Decides the order of the masks.

        Returns:
            What draws the logit of each pixel of an image (pixels,), by class.
        """
        import torch

        rng = np.random.default_rng(seed)
        found: dict[str, list[Any]] = {}
        for image in everything:
            for name in image.class_names():
                own = torch.from_numpy(image.text[image.tokens_of(name)]).mean(dim=0)
                found.setdefault(name, []).append(own)
        start = {name: torch.stack(every).mean(dim=0) for name, every in found.items()}
        change = {name: torch.zeros_like(one, requires_grad=True) for name, one in start.items()}
        line = torch.tensor([4.0, -2.0], requires_grad=True)
        optimiser = torch.optim.Adam(
            [{"params": list(change.values()), "lr": RATE}, {"params": [line], "lr": CALIBRATION_RATE}]
        )
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, [STEPS * 2 // 3], 0.2)

        def logits(image: Read, name: str) -> Any:
            layers, _ = self._prepare(image, name)
            return line[0] * self._attention(layers, start[name] + change[name]) + line[1]

        pools = [
            [(image, name, mask) for image, masks in side for name, mask in masks.items()] for side in sides
        ]
        for _ in range(STEPS):
            loss = PULL * sum(one.square().sum() for one in change.values())
            for pool in filter(None, pools):
                chosen = rng.choice(len(pool), min(BATCH, len(pool)), replace=False)
                for image, name, mask in (pool[index] for index in chosen):
                    drawn = logits(image, name)
                    target = torch.from_numpy(_shrunk(mask, len(drawn)))
                    entropy = torch.nn.functional.binary_cross_entropy_with_logits(drawn, target)
                    loss = loss + entropy / len(chosen)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()

        def draw(image: Read) -> dict[str, Float]:
            with torch.no_grad():
                drawn = {name: logits(image, name).numpy() for name in image.class_names()}
            return {name: _grown(one, image.features.size_wh) for name, one in drawn.items()}

        return draw


def _side(cells: int) -> int:
    return math.isqrt(cells)  # the miniature's latents are square


def _shrunk(mask: Any, cells: int) -> Float:
    size_wh = (_side(cells), _side(cells))
    return cv2.resize(mask.astype(np.float32), size_wh, interpolation=cv2.INTER_AREA).reshape(-1)


def _grown(logits: Float, size_wh: tuple[int, int]) -> Float:
    side = _side(len(logits))
    return cv2.resize(logits.reshape(side, side), size_wh, interpolation=cv2.INTER_CUBIC).reshape(-1)
