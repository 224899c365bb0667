"""Random scenes with captions, of one to three well separated things. `crowds` makes fuller ones.

Each scene is determined by its seed. Does not know the sets that it serves, models, label sources or runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diffugen.miniature.scenery import Scene, Thing

KNOWN_CLASSES = ("car", "truck", "person", "traffic cone")
CLASSES = (*KNOWN_CLASSES, "piano", "bus")
WEATHERS = ("sunny", "cloudy", "rainy", "snowy", "foggy")
TIMES = ("day", "sunset", "night")
PIANO_COLOURS = ("black", "brown", "white")
COLOURS_OF = {
    "car": ("red", "blue", "green", "yellow", "white", "black", "gray"),
    "truck": ("red", "blue", "green", "yellow", "white", "gray"),
    "person": ("red", "blue", "green", "yellow", "white", "black"),
    "traffic cone": ("orange",),
    "piano": PIANO_COLOURS,
    "bus": ("red", "blue", "green", "yellow", "white"),
    "bench": ("brown", "black", "gray", "white"),
    "crate": ("brown", "black", "gray"),
}
HEIGHTS = {
    "car": (0.28, 0.38),
    "truck": (0.46, 0.6),
    "person": (0.56, 0.78),
    "traffic cone": (0.4, 0.56),
    "piano": (0.48, 0.64),
    "bus": (0.44, 0.58),
    "bench": (0.3, 0.46),
    "crate": (0.3, 0.5),
}
"""Range of heights of a single thing in the foreground, as fractions of the shorter image side."""
NOUNS = {"piano": ("grand piano", "piano", "piano")}


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
        low, high = HEIGHTS[class_name]
        height = float(rng.uniform(low, high)) * shrink * (0.72 + 0.28 * depth)
        spread = 0.16 if count == 1 else 0.07
        x_frac = float(np.clip((slot + 0.5) / count + rng.uniform(-spread, spread), 0.12, 0.88))
        colour = str(rng.choice(COLOURS_OF[class_name]))
        facing = int(rng.choice((-1, 1)))
        things.append(Thing(class_name, colour, x_frac, depth, height, float(rng.random()), facing))
    return things


def phrase(rng: np.random.Generator, thing: Thing) -> str:
    """Return what a caption calls a thing: an article, mostly its colour, its noun."""
    noun = str(rng.choice(NOUNS.get(thing.class_name, (thing.class_name,))))
    if thing.class_name == "traffic cone" or rng.random() < 0.15:
        return f"a {noun}"
    return f"a person in {thing.colour}" if thing.class_name == "person" else f"a {thing.colour} {noun}"


def _caption(rng: np.random.Generator, things: Sequence[Thing], place: str, weather: str, time: str) -> str:
    phrases = [phrase(rng, thing) for thing in things]
    joints = [" and ", " next to "] if len(things) == 2 else [" and "]
    if len(things) == 2 and things[0].depth > things[1].depth:
        joints.append(" in front of ")
    text = str(rng.choice(["a photo of ", "a picture of ", ""])) + str(rng.choice(joints)).join(phrases)
    text += " on a road" if place == "road" else " in a room"
    return text + caption_end(rng, place, weather, time)


def caption_end(rng: np.random.Generator, place: str, weather: str, time: str) -> str:
    """Return the words for weather and time, each left out in some captions."""
    text = ""
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


def piano_on_road_scene(seed: int) -> Scene:
    """Return a scene with a piano on a road, alone or with one thing of the known classes."""
    rng = np.random.default_rng((seed, 2))
    others = [str(rng.choice(KNOWN_CLASSES))] if rng.random() < 0.3 else []
    return sample_scene(seed, classes=["piano", *others] if rng.random() < 0.5 else [*others, "piano"])
