"""Read the attention of single heads in noised images, and learn from masks how to weight the heads.

The probe is a logistic regression on the logarithms of the maps of all heads at all noise levels: of the
phrase, of its hottest rival, and of the background. Its weights can be negative. A penalty pulls them towards
a multiple of those that `labels.groups` gives to layers today.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
from numpy.typing import NDArray

from diffugen.diffusion import tracing
from diffugen.diffusion.families import attention_modules
from diffugen.diffusion.features import read_features
from diffugen.diffusion.layout import cells_hw
from diffugen.diffusion.tokens import index_tokens
from diffugen.records import PixelFeatures, Prompt

Float = NDArray[np.float32]
Masks = Mapping[str, NDArray[np.bool_]]

LEAST = 1e-3
"""Probabilities below this count as this much: bicubic overshoot can be negative."""

TODAY = {"up": 2.0, "down": 1.0}
"""Weights of the layers of the coarsest grid today, by place; `labels.groups` in configs/miniature.yaml."""


@dataclass(frozen=True)
class Read:
    """What a denoiser sees in an image, with the attention of each head apart.

    Attributes:
        features: As `diffugen.diffusion.features` reads them.
        heads: From a head, ``"<place>.<layer>.<head>"``, to float32 (P, L, h, w) at L noise levels.
        queries: From the name of an attention layer to float16 (L, heads, cells, channels).
        text: float32 (tokens, width), the encoded prompt.
        positions: The tokens of each phrase.
    """

    features: PixelFeatures
    heads: Mapping[str, Float]
    queries: Mapping[str, NDArray[np.float16]]
    text: Float
    positions: tuple[tuple[int, ...], ...]

    def class_names(self) -> list[str]:
        """Return the classes that the prompt names."""
        return [name for name in dict.fromkeys(one.class_name for one in self.features.phrases) if name]

    def tokens_of(self, class_name: str) -> list[int]:
        """Return the tokens of the phrases of a class."""
        pairs = zip(self.features.phrases, self.positions, strict=True)
        return [index for phrase, found in pairs if phrase.class_name == class_name for index in found]


class _HeadTrace(tracing.AttentionTrace):
    """Also keeps the attention and the queries of each head in a single run of a UNet."""

    def __init__(self, pipeline: Any, *given: Any) -> None:
        super().__init__(pipeline, *given)
        self.names = {id(module): name for name, module in attention_modules(self._denoiser).items()}
        self.heads: dict[tuple[str, int, int], Any] = {}
        self.queries: dict[str, NDArray[np.float16]] = {}

    def _record(self, attend: Any, query: Any, *given: Any, **named: Any) -> None:
        super()._record(attend, query, *given, **named)
        if self._running is not None and self._running.reads_text:
            self.queries[self.names[id(self._running.module)]] = query[self._rows].half().numpy()

    def _add(self, found: Any) -> None:
        super()._add(found)
        assert self._running is not None and self._grid_hw is not None
        h, w = cells_hw(found.shape[2], self._grid_hw)
        self.heads[f"{self._running.layer}.{len(self.heads)}", h, w] = found[..., : self._phrases].float()


def read(pipeline: Any, images: Sequence[tuple[NDArray[np.uint8], Prompt]]) -> list[Read]:
    """Read a few images of the same size."""
    traces: list[_HeadTrace] = []

    def make(*given: Any) -> _HeadTrace:
        traces.append(_HeadTrace(*given))
        return traces[-1]

    with patch.object(tracing, "AttentionTrace", make):
        everything = list(read_features(pipeline, images, batch_size=len(images)))
    texts = pipeline.encode_prompt([prompt.text for _, prompt in images], pipeline.device, 1, False)[0]
    found = []
    for index, (features, (_, prompt)) in enumerate(zip(everything, images, strict=True)):
        phrases = [phrase.text for phrase in prompt.phrases]
        heads = {
            f"{name}.{head}": np.stack(
                [one.heads[name, h, w][index, head, :, : len(phrases)].T.numpy() for one in traces], axis=1
            ).reshape(len(phrases), len(traces), h, w)
            for name, h, w in traces[0].heads
            for head in range(traces[0].heads[name, h, w].shape[1])
        }
        queries = {name: np.stack([one.queries[name][index] for one in traces]) for name in traces[0].queries}
        positions = index_tokens(pipeline, prompt.text, phrases).positions
        found.append(Read(features, heads, queries, texts[index].detach().float().numpy(), positions))
    return found


def inputs(image: Read) -> dict[str, Float]:
    """Return what the probe sees of each pixel, for each class of the prompt: (pixels, 3 * heads * L)."""
    size_wh = image.features.size_wh
    logs = np.concatenate(
        [
            np.stack([[_log(level, size_wh) for level in phrase] for phrase in maps])
            for _, maps in sorted(image.heads.items())
        ],
        axis=1,
    )
    names = [phrase.class_name for phrase in image.features.phrases]
    nothing = np.full_like(logs[0], math.log(LEAST))
    found = {}
    for name in image.class_names():
        sides = (
            [index for index, other in enumerate(names) if other == name],
            [index for index, other in enumerate(names) if other not in (name, None)],
            [index for index, other in enumerate(names) if other is None],
        )
        seen = [logs[side].max(axis=0) if side else nothing for side in sides]
        found[name] = np.concatenate(seen).reshape(-1, math.prod(size_wh)).T
    return found


def _log(heat: Float, size_wh: tuple[int, int]) -> Float:
    return np.log(np.maximum(cv2.resize(heat, size_wh, interpolation=cv2.INTER_CUBIC), LEAST))


def today(image: Read) -> Float:
    """Return a weight for each input of the probe: today's for the phrase's own heads, 0 for all others."""
    least = min(maps.shape[-1] for maps in image.heads.values())
    own = [
        TODAY.get(name.split(".")[0], 0.0) if maps.shape[-1] == least else 0.0
        for name, maps in sorted(image.heads.items())
        for _ in range(maps.shape[1])
    ]
    return np.array([*own, *[0.0] * 2 * len(own)], dtype=np.float32)


def teach(
    sides: Sequence[Sequence[tuple[Mapping[str, Float], Masks]]],
    prior: Float,
    *,
    penalty: float,
    sampled: Sequence[int],
    seed: int,
) -> Callable[[Mapping[str, Float]], dict[str, Float]]:
    """Teach a probe.

    Args:
        sides: Corrected images, and others with attention labels; `inputs` and the masks of each. Both sides
            count the same in total.
        prior: The weights that the penalty pulls towards a multiple of.
        penalty: Its factor.
        sampled: Pixels of each class of an image that are learned from, for each side.
        seed: Decides which pixels.

    Returns:
        What turns the inputs of an image into the logit of each pixel (pixels,), by class.
    """
    import torch

    rng = np.random.default_rng(seed)
    examples = [_examples(side, count, rng) for side, count in zip(sides, sampled, strict=True) if side]
    everything = np.concatenate([one[0] for one in examples])
    mean, spread = everything.mean(axis=0), everything.std(axis=0) + 1e-2
    given = [(torch.from_numpy((x - mean) / spread), torch.from_numpy(y)) for x, y in examples]
    start = torch.from_numpy(prior * spread)
    start = start / start.norm()
    change, factor, bias = (torch.zeros(count, requires_grad=True) for count in (len(mean), 1, 1))
    optimiser = torch.optim.LBFGS([change, factor, bias], max_iter=40, line_search_fn="strong_wolfe")

    def closure() -> Any:
        optimiser.zero_grad()
        loss = penalty * change.square().sum()
        for x, y in given:
            logits = x @ (change + factor * start) + bias
            loss = loss + torch.nn.functional.binary_cross_entropy_with_logits(logits, y)
        loss.backward()
        return loss

    optimiser.step(closure)
    weights = (change + factor * start).detach().numpy() / spread
    offset = bias.item() - float(mean @ weights)
    return lambda seen: {name: pixels @ weights + offset for name, pixels in seen.items()}


def _examples(
    side: Sequence[tuple[Mapping[str, Float], Masks]], count: int, rng: np.random.Generator
) -> tuple[Float, Float]:
    pixels, targets = [], []
    for seen, masks in side:
        for name, one in seen.items():
            chosen = rng.permutation(len(one))[:count]
            pixels.append(one[chosen])
            targets.append(masks[name].reshape(-1)[chosen].astype(np.float32))
    return np.concatenate(pixels), np.concatenate(targets)
