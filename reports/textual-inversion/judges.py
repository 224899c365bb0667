"""Judges of generated images: the oracle for pianos, a network for place, weather and time, mean colours.

Each judge learns from renders, whose ground truth is exact, and sees only the pixels of a generated image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from diffugen.miniature.autoencoder import to_unit
from diffugen.miniature.measure import WEIGHTS
from diffugen.miniature.oracle import FOUND_AREA_FRAC, load_oracle
from diffugen.miniature.scenery import render
from diffugen.miniature.scenes import CLASSES, PIANO_COLOURS, TIMES, WEATHERS, sample_scene

SIZE_WH = (64, 64)
PIANO = 1 + CLASSES.index("piano")
FIRST_RENDER = 80_000_000
"""First seed of the renders for thresholds and judges; no other set of scenes uses these seeds."""
LOOKS = {"place": ("road", "room"), "weather": WEATHERS, "time": TIMES}


@dataclass(frozen=True)
class Seen:
    """The oracle's view of N images.

    Attributes:
        mask: bool (N, H, W), the piano.
        area: float (N,), the piano's share of the image.
        other: int (N,), pixels of other classes in the piano or within 2 pixels of it: a hybrid.
        sure: float (N,), the oracle's mean probability for the piano's pixels.
    """

    mask: NDArray[np.bool_]
    area: NDArray[np.float64]
    other: NDArray[np.int64]
    sure: NDArray[np.float64]


def look(oracle: Any, images: NDArray[np.uint8]) -> Seen:
    """Return the oracle's view of images, uint8 (N, H, W, 3)."""
    import torch

    with torch.no_grad():
        parts = [
            oracle(to_unit(images[first : first + 32]), 0).sample.softmax(1)
            for first in range(0, len(images), 32)
        ]
    chances = torch.cat(parts).numpy()
    labels = chances.argmax(1)
    mask = labels == PIANO
    size = np.maximum(1, mask.sum((1, 2)))
    near = np.stack([cv2.dilate(one.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0 for one in mask])
    other = (near & (labels > 0) & ~mask).sum((1, 2))
    sure = (chances[:, PIANO] * mask).sum((1, 2)) / size
    return Seen(mask, mask.mean((1, 2)), other, sure)


def train_scene_judge(steps: int = 400) -> Callable[[NDArray[np.uint8]], dict[str, NDArray[np.int64]]]:
    """Train a small network on renders, randomly softened, to recognise place, weather and time."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    sizes = [len(names) for names in LOOKS.values()]
    net = nn.Sequential(
        nn.Conv2d(3, 16, 5, 2, 2),
        nn.SiLU(),
        nn.Conv2d(16, 32, 3, 2, 1),
        nn.SiLU(),
        nn.Conv2d(32, 64, 3, 2, 1),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(1024, sum(sizes)),
    )
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    random = torch.Generator().manual_seed(0)
    for step in range(steps):
        rgb, truth = judged_renders(32, 1_000_000 + 32 * step)
        pixels = to_unit(rgb)
        soft = nn.functional.avg_pool2d(pixels, 3, 1, 1, count_include_pad=False)
        share = torch.rand((len(pixels), 1, 1, 1), generator=random)
        noise = 0.1 * share * torch.randn(pixels.shape, generator=random)
        heads = net(pixels + share * (soft - pixels) + noise).split(sizes, 1)
        losses = {
            name: nn.functional.cross_entropy(head, torch.from_numpy(truth[name]), reduction="none")
            for name, head in zip(LOOKS, heads, strict=True)
        }
        outside = torch.from_numpy(truth["place"] == 0)  # in a room, the weather is hardly visible
        losses["weather"] = losses["weather"] * outside
        loss = torch.stack(list(losses.values())).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()

    def judge(images: NDArray[np.uint8]) -> dict[str, NDArray[np.int64]]:
        with torch.no_grad():
            heads = net(to_unit(images)).split(sizes, 1)
        return {name: head.argmax(1).numpy() for name, head in zip(LOOKS, heads, strict=True)}

    return judge


def judged_renders(count: int, start: int) -> tuple[NDArray[np.uint8], dict[str, NDArray[np.int64]]]:
    """Return renders of all places and looks, uint8 (N, H, W, 3), half with pianos, and their truth."""
    random = np.random.default_rng(start)
    rgb, truth = [], []
    for number in range(count):
        place = str(random.choice(LOOKS["place"]))
        classes = ["piano"] if random.random() < 0.5 else None
        scene = sample_scene(FIRST_RENDER + start + number, classes=classes, place=place)
        rgb.append(render(scene, SIZE_WH).rgb)
        truth.append(
            [LOOKS["place"].index(scene.place), WEATHERS.index(scene.weather), TIMES.index(scene.time)]
        )
    return np.stack(rgb), {name: np.array(truth)[:, column] for column, name in enumerate(LOOKS)}


def piano_renders(
    count: int, start: int = 0
) -> list[tuple[NDArray[np.uint8], dict[str, str], NDArray[np.bool_]]]:
    """Return renders of one piano on a road: pixels, the values of their prompt, and the exact mask."""
    made = []
    for number in range(count):
        drawn = render(sample_scene(FIRST_RENDER + start + number, classes=["piano"]), SIZE_WH)
        scene = drawn.scene
        fill = {"colour": scene.things[0].colour, "weather": scene.weather, "time": scene.time}
        made.append((drawn.rgb, fill, drawn.masks[0]))
    return made


class ColourJudge:
    """Recognises a piano's colour: the nearest mean colour of renders in the same weather and time."""

    def __init__(self, renders: int = 1800) -> None:
        pixels: dict[tuple[str, ...], list[NDArray[Any]]] = {}
        for rgb, fill, mask in piano_renders(renders, start=500_000):
            pixels.setdefault(tuple(fill.values()), []).append(rgb[mask].mean(0))
        self._means = {cell: np.mean(found, 0) for cell, found in pixels.items()}

    def right(self, rgb: NDArray[np.uint8], mask: NDArray[np.bool_], fill: dict[str, str]) -> bool:
        """Return whether the piano has the colour of the prompt."""
        if not mask.any():
            return False
        mean = rgb[mask].mean(0)
        rest = (fill["weather"], fill["time"])
        return fill["colour"] == min(
            PIANO_COLOURS, key=lambda one: float(np.abs(mean - self._means[(one, *rest)]).sum())
        )


class Judges:
    """All judges, made from renders only.

    Attributes:
        limits: Thresholds for ``area`` and ``sure`` of `Seen`; 95% of rendered pianos on roads exceed each.
    """

    def __init__(self) -> None:
        self._oracle = load_oracle(WEIGHTS / "oracle")
        self._scenes = train_scene_judge()
        self._colours = ColourJudge()
        truth = look(self._oracle, np.stack([rgb for rgb, _, _ in piano_renders(400)]))
        self.limits = {
            "area": float(np.percentile(truth.area, 5)),
            "sure": float(np.percentile(truth.sure, 5)),
        }

    def judge(
        self, rgb: NDArray[np.uint8], masks: NDArray[np.bool_], fills: Sequence[dict[str, str]]
    ) -> dict[str, NDArray[Any]]:
        """Judge images against their prompts.

        Args:
            rgb: uint8 (N, H, W, 3).
            masks: bool (N, H, W), the attention labels.
            fills: The values of the prompts: colour, weather, time.

        Returns:
            Each criterion, bool (N,); and ``iou`` of the attention labels with the oracle's masks, float
            (N,), NaN where no piano was found.
        """
        seen, looks = look(self._oracle, rgb), self._scenes(rgb)
        asked = {
            name: np.array([LOOKS[name].index(fill[name]) for fill in fills]) for name in ("weather", "time")
        }
        result: dict[str, NDArray[Any]] = {
            "found": seen.area >= FOUND_AREA_FRAC,
            "on a road": looks["place"] == 0,
            "whole": seen.area >= self.limits["area"],
            "no hybrid": seen.other == 0,
            "sure": seen.sure >= self.limits["sure"],
        }
        result["strict"] = np.all(list(result.values()), axis=0)
        result["weather and time as asked"] = np.all([looks[name] == asked[name] for name in asked], axis=0)
        right = [self._colours.right(*one) for one in zip(rgb, seen.mask, fills, strict=True)]
        result["colour as asked"] = np.array(right)
        overlap, union = (seen.mask & masks).sum((1, 2)), (seen.mask | masks).sum((1, 2))
        result["iou"] = np.where(result["found"], overlap / np.maximum(1, union), np.nan)
        return result

    def yardstick(self) -> dict[str, NDArray[Any]]:
        """Return the criteria for fresh renders of pianos on roads; ``iou`` is that of the oracle."""
        fresh = piano_renders(200, start=400)
        rgb, masks = np.stack([rgb for rgb, _, _ in fresh]), np.stack([mask for _, _, mask in fresh])
        return self.judge(rgb, masks, [fill for _, fill, _ in fresh])

    def scenes_right(self) -> dict[str, float]:
        """Return the accuracy on fresh renders for place, weather (outside only) and time."""
        rgb, truth = judged_renders(500, 0)
        right = {name: seen == truth[name] for name, seen in self._scenes(rgb).items()}
        right["weather"] = right["weather"][truth["place"] == 0]
        return {name: round(float(hits.mean()), 3) for name, hits in right.items()}
