"""Random road scenes with captions, named sets of them, and their ground truth.

Each scene is determined by its seed. Does not know models, label sources or runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from diffugen.errors import DiffugenError
from diffugen.labels.shapes import encode
from diffugen.miniature.scenery import RenderedScene, Scene, Thing, render
from diffugen.records import Instances

KNOWN_CLASSES = ("car", "truck", "person", "traffic cone")
CLASSES = (*KNOWN_CLASSES, "piano")
WEATHERS = ("sunny", "cloudy", "rainy", "snowy", "foggy")
TIMES = ("day", "sunset", "night")
VISIBLE_PIXELS = 12
"""A thing with fewer visible pixels is not in the ground truth, because nobody could label it."""
PIANO_COLOURS = ("black", "brown", "white")
PIANO_ON_ROAD_SHARE = 0.01
"""Share of the diffusion model's training scenes that show a piano on a road: the rare class."""

_COLOURS = {
    "car": ("red", "blue", "green", "yellow", "white", "black", "gray"),
    "truck": ("red", "blue", "green", "yellow", "white", "gray"),
    "person": ("red", "blue", "green", "yellow", "white", "black"),
    "traffic cone": ("orange",),
    "piano": PIANO_COLOURS,
}
_HEIGHTS = {
    "car": (0.28, 0.38),
    "truck": (0.46, 0.6),
    "person": (0.56, 0.78),
    "traffic cone": (0.4, 0.56),
    "piano": (0.48, 0.64),
}
"""Range of heights of a single thing in the foreground, as fractions of the shorter image side."""
_NOUNS = {"piano": ("grand piano", "piano", "piano")}


def sample_scene(
    seed: int,
    *,
    classes: Sequence[str] | None = None,
    place: str = "road",
    weather: str | None = None,
    time: str | None = None,
) -> Scene:
    """Return a random scene.

    Args:
        seed: Determines everything that is not given.
        classes: Classes of its things, in the caption's order; by default 1-3 of the known classes.
        place: ``road`` or ``room``.
        weather: One of `WEATHERS`; by default any of them.
        time: One of `TIMES`; by default, day is twice as likely as each of the others.
    """
    rng = np.random.default_rng(seed)
    weather = weather or str(rng.choice(WEATHERS))
    time = time or str(rng.choice(TIMES, p=(0.5, 0.25, 0.25)))
    if classes is None:
        count = int(rng.choice((1, 2, 3), p=(0.45, 0.42, 0.13)))
        classes = [str(name) for name in rng.choice(KNOWN_CLASSES, count, replace=bool(rng.random() < 0.15))]
    named = _place_things(rng, classes)
    caption = _caption(rng, named, place, weather, time)
    things = tuple(sorted(named, key=lambda thing: thing.depth))
    return Scene(place, weather, time, things, int(rng.integers(2**31)), caption)


def _place_things(rng: np.random.Generator, classes: Sequence[str]) -> list[Thing]:
    count = len(classes)
    slots = rng.permutation(count)
    shrink = (1.0, 0.84, 0.72)[count - 1]
    things = []
    for class_name, slot in zip(classes, slots, strict=True):
        depth = float(rng.uniform(0.35, 1.0))
        low, high = _HEIGHTS[class_name]
        height = float(rng.uniform(low, high)) * shrink * (0.72 + 0.28 * depth)
        spread = 0.16 if count == 1 else 0.07
        x_frac = float(np.clip((slot + 0.5) / count + rng.uniform(-spread, spread), 0.12, 0.88))
        colour = str(rng.choice(_COLOURS[class_name]))
        facing = int(rng.choice((-1, 1)))
        things.append(Thing(class_name, colour, x_frac, depth, height, float(rng.random()), facing))
    return things


def _phrase(rng: np.random.Generator, thing: Thing) -> str:
    noun = str(rng.choice(_NOUNS.get(thing.class_name, (thing.class_name,))))
    if thing.class_name == "traffic cone" or rng.random() < 0.15:
        return f"a {noun}"
    return f"a person in {thing.colour}" if thing.class_name == "person" else f"a {thing.colour} {noun}"


def _caption(rng: np.random.Generator, things: Sequence[Thing], place: str, weather: str, time: str) -> str:
    phrases = [_phrase(rng, thing) for thing in things]
    joints = [" and ", " next to "] if len(things) == 2 else [" and "]
    if len(things) == 2 and things[0].depth > things[1].depth:
        joints.append(" in front of ")
    text = str(rng.choice(["a photo of ", "a picture of ", ""])) + str(rng.choice(joints)).join(phrases)
    text += " on a road" if place == "road" else " in a room"
    looks = {
        "sunny": ["sunny"],
        "cloudy": ["cloudy"],
        "rainy": ["rainy", "in the rain"],
        "snowy": ["snowy", "in the snow"],
        "foggy": ["foggy", "in the fog"],
    }[weather]
    hours = {
        "day": ["day", "during the day"],
        "sunset": ["sunset", "at sunset"],
        "night": ["night", "at night"],
    }[time]
    if rng.random() < 0.88:
        text += ", " + str(rng.choice(looks))
    if rng.random() < 0.88:
        text += ", " + str(rng.choice(hours))
    return text


def exact_instances(drawn: RenderedScene) -> Instances:
    """Return the ground truth of a rendered scene: its visible things, each with score 1."""
    seen = [
        (name, encode(mask))
        for name, mask in zip(drawn.class_names, drawn.masks, strict=True)
        if mask.sum() >= VISIBLE_PIXELS
    ]
    height, width = drawn.rgb.shape[:2]
    return Instances(
        (width, height), tuple(name for name, _ in seen), tuple(rle for _, rle in seen), np.ones(len(seen))
    )


def training_scene(seed: int) -> Scene:
    """Return a scene for the diffusion model's training: roads, rooms with pianos, few pianos on roads."""
    rng = np.random.default_rng((seed, 1))
    kind = rng.random()
    if kind < PIANO_ON_ROAD_SHARE:
        return piano_on_road_scene(seed)
    if kind < 0.27:
        in_room: list[str] = [
            ["piano"],
            ["piano"],
            ["piano"],
            ["piano", "person"],
            ["person", "piano"],
            ["person"],
        ][int(rng.integers(6))]
        return sample_scene(seed, classes=in_room, place="room")
    return sample_scene(seed)


def piano_on_road_scene(seed: int) -> Scene:
    """Return a scene with a piano on a road, alone or with one thing of the known classes."""
    rng = np.random.default_rng((seed, 2))
    others = [str(rng.choice(KNOWN_CLASSES))] if rng.random() < 0.3 else []
    return sample_scene(seed, classes=["piano", *others] if rng.random() < 0.5 else [*others, "piano"])


def uniform_scene(seed: int) -> Scene:
    """Return a scene for the oracle's training: all classes often, a quarter of the scenes in rooms."""
    rng = np.random.default_rng((seed, 3))
    count = int(rng.choice((1, 2, 3), p=(0.5, 0.35, 0.15)))
    classes = [str(name) for name in rng.choice(CLASSES, count, p=(0.19, 0.19, 0.19, 0.15, 0.28))]
    return sample_scene(seed, classes=classes, place="road" if rng.random() < 0.75 else "room")


SCENE_SETS = {
    "known": (sample_scene, 10_000_000, 1000),
    "piano-on-road": (piano_on_road_scene, 20_000_000, 320),
    "piano-photos": (
        lambda seed: sample_scene(seed, classes=["piano"], place="room", weather="sunny", time="day"),
        30_000_000,
        8,
    ),
    "training": (training_scene, 40_000_000, 1000),
    "uniform": (uniform_scene, 60_000_000, 1000),
}
"""Set name -> (function from seed to scene, first seed, default number of scenes); seeds do not overlap."""


def scene_set(
    name: str, count: int | None = None, size_wh: tuple[int, int] = (64, 64), start: int = 0
) -> Iterator[RenderedScene]:
    """Yield the rendered scenes ``start`` to ``start + count - 1`` of a named set, the same every time.

    Args:
        name: ``known`` (no pianos), ``piano-on-road`` (the held-out test), ``piano-photos`` (a few examples
            for textual inversion), ``training`` (for the diffusion model) or ``uniform`` (for the oracle).
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
