"""Named sets of scenes, and the ground truth of a rendered scene.

Does not know models, label sources or runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from diffugen.errors import DiffugenError
from diffugen.labels.shapes import encode
from diffugen.miniature.crowds import among_scene, street_scene, training_scene, uniform_scene
from diffugen.miniature.scenery import RenderedScene, Scene, render
from diffugen.miniature.scenes import CLASSES, piano_on_road_scene, sample_scene
from diffugen.records import Instances

VISIBLE_PIXELS = 12
"""A thing with fewer visible pixels is not in the ground truth, because nobody could label it."""


def exact_instances(drawn: RenderedScene) -> Instances:
    """Return the ground truth of a rendered scene: its visible things of a class, each with score 1."""
    seen = [
        (name, encode(mask))
        for name, mask in zip(drawn.class_names, drawn.masks, strict=True)
        if name in CLASSES and mask.sum() >= VISIBLE_PIXELS
    ]
    height, width = drawn.rgb.shape[:2]
    return Instances(
        (width, height), tuple(name for name, _ in seen), tuple(rle for _, rle in seen), np.ones(len(seen))
    )


SCENE_SETS: dict[str, tuple[Callable[[int], Scene], int, int]] = {
    "known": (sample_scene, 10_000_000, 1000),
    "piano-on-road": (piano_on_road_scene, 20_000_000, 320),
    "piano-photos": (
        lambda seed: sample_scene(seed, classes=["piano"], place="room", weather="sunny", time="day"),
        30_000_000,
        8,
    ),
    "training": (training_scene, 40_000_000, 1000),
    "uniform": (uniform_scene, 60_000_000, 1000),
    "streets": (street_scene, 70_000_000, 1000),
    "piano-among": (partial(among_scene, rare="piano"), 80_000_000, 360),
    "bus-among": (partial(among_scene, rare="bus"), 90_000_000, 360),
}
"""Set name -> (function from seed to scene, first seed, default number of scenes); seeds do not overlap."""


def scene_set(
    name: str, count: int | None = None, size_wh: tuple[int, int] = (64, 64), start: int = 0
) -> Iterator[RenderedScene]:
    """Yield the rendered scenes ``start`` to ``start + count - 1`` of a named set, the same every time.

    Args:
        name: ``streets`` (no rare class, for the base detector), ``piano-among`` and ``bus-among`` (held-out
            tests of the rare classes, a third of the scenes without them), ``piano-photos`` (a few examples
            for textual inversion), ``training`` (for the diffusion model), ``uniform`` (for the oracle); and
            of an earlier miniature, with few objects a scene, ``known`` and ``piano-on-road``.
        count: Number of scenes; by default the set's own number.
        size_wh: Width and height in pixels.
        start: Index of the first scene.

    Raises:
        DiffugenError: There is no such set.
    """
    if name not in SCENE_SETS:
        raise DiffugenError(f"unknown scene set {name!r}; the miniature has {', '.join(SCENE_SETS)}")
    make, first, default = SCENE_SETS[name]
    for seed in range(first + start, first + start + (default if count is None else count)):
        yield render(make(seed), size_wh)
