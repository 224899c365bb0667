"""Crowded scenes: several objects, some of one class, some behind others, among things that look like pianos.

Each scene is determined by its seed. Does not know the sets that it serves, models, label sources or runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diffugen.miniature.drawing import thing_width
from diffugen.miniature.scenery import Scene, Thing
from diffugen.miniature.scenes import COLOURS_OF, HEIGHTS, KNOWN_CLASSES, TIMES, WEATHERS, caption_end, phrase

DISTRACTORS = ("bench", "crate")
"""Things of no class, and so without a mask; in the dark they look like pianos."""
RARE_ON_ROAD_SHARES = {"piano": 0.03, "bus": 0.06}
"""Share of the diffusion model's training scenes that show a rare class on a road."""
OCCLUDED_SHARE = 0.5
"""Share of the scenes with several things in which one is placed partly in front of another."""
_SMALLEST = 0.15
"""Least height of a thing, as a fraction of the shorter image side."""
_PLURALS = {
    "car": "cars",
    "truck": "trucks",
    "bus": "buses",
    "person": "people",
    "traffic cone": "traffic cones",
    "piano": "pianos",
    "bench": "benches",
    "crate": "crates",
}


def crowded_scene(
    seed: int,
    classes: Sequence[str],
    *,
    place: str = "road",
    occluded_share: float = OCCLUDED_SHARE,
    behind: int | None = None,
) -> Scene:
    """Return a scene with these things, at most four, in random sizes and places.

    Args:
        seed: Determines everything that is not given.
        classes: Classes of the things, in the order in which the caption names them; may be empty.
        place: ``road`` or ``room``.
        occluded_share: Probability that one of several things stands partly in front of another.
        behind: Index of the thing that then stands behind; None for any.
    """
    rng = np.random.default_rng((seed, 10))
    weather = str(rng.choice(WEATHERS))
    time = str(rng.choice(TIMES, p=(0.5, 0.25, 0.25)))
    things = _place_things(rng, classes, occluded_share, behind)
    text = _caption(rng, things, place) + caption_end(rng, place, weather, time)
    nearest_last = tuple(sorted(things, key=lambda thing: thing.depth))
    return Scene(place, weather, time, nearest_last, int(rng.integers(2**31)), text)


def _place_things(
    rng: np.random.Generator, classes: Sequence[str], occluded_share: float, behind: int | None
) -> list[Thing]:
    count = len(classes)
    depths = rng.uniform(0.0, 1.0, count)
    order = [int(number) for number in rng.permutation(count)]
    if behind is not None:
        order = [behind, *(number for number in order if number != behind)]
    pair = order[:2] if count > 1 and rng.random() < occluded_share else []
    if pair:  # (behind, in front): the nearer one of two is in front
        far, near = sorted(float(depths[number]) for number in pair)
        depths[pair] = far, min(1.0, near + 0.1)
    shrink = (1.0, 0.88, 0.76, 0.68)[max(0, count - 1)]
    heights = [
        max(_SMALLEST, float(rng.uniform(*HEIGHTS[name])) * shrink * (0.5 + 0.5 * float(depth)))
        for name, depth in zip(classes, depths, strict=True)
    ]
    spread = 0.16 if count == 1 else 0.1
    slots = (rng.permutation(count) + 0.5) / max(1, count) + rng.uniform(-spread, spread, count)
    centres = np.clip(slots, 0.12, 0.88)
    if pair:
        hidden, front = pair
        widths = [thing_width(classes[number], heights[number]) for number in pair]
        # From the centre of the hidden one; the edge of the front one covers 25-65% of its width.
        shift = widths[0] * (0.5 - float(rng.uniform(0.25, 0.65))) + widths[1] / 2
        side = -1 if centres[hidden] > 0.5 else 1
        centres[front] = np.clip(centres[hidden] + side * shift, 0.05, 0.95)
    return [
        Thing(
            name,
            str(rng.choice(COLOURS_OF[name])),
            float(centres[number]),
            float(depths[number]),
            heights[number],
            float(rng.random()),
            int(rng.choice((-1, 1))),
        )
        for number, name in enumerate(classes)
    ]


def _caption(rng: np.random.Generator, things: Sequence[Thing], place: str) -> str:
    start = str(rng.choice(["a photo of ", "a picture of ", ""]))
    if not things:
        return start + f"a {place}"
    names = [thing.class_name for thing in things]
    twins = len(names) > 1 and names[0] == names[1]
    if twins and rng.random() < 0.5:
        phrases = [f"two {_PLURALS[names[0]]}", *(phrase(rng, thing) for thing in things[2:])]
    else:
        phrases = [phrase(rng, thing) for thing in things]
    joints = [" and "]
    if len(phrases) == 2 and len(things) == 2:
        order = " in front of " if things[0].depth > things[1].depth else " behind "
        joints = [" and ", " and ", " next to ", order]
    return start + str(rng.choice(joints)).join(phrases) + (" on a road" if place == "road" else " in a room")


def _others(rng: np.random.Generator, count: int, distractor_share: float = 0.2) -> list[str]:
    """Return random known classes, a share of them replaced by things of no class."""
    names = [str(name) for name in rng.choice(KNOWN_CLASSES, count)]
    return [str(rng.choice(DISTRACTORS)) if rng.random() < distractor_share else name for name in names]


def street_scene(seed: int) -> Scene:
    """Return a road with one to three things, one of them of a known class; a fifth of pairs are twins."""
    rng = np.random.default_rng((seed, 11))
    count = int(rng.choice((1, 2, 3), p=(0.3, 0.45, 0.25)))
    first = str(rng.choice(KNOWN_CLASSES))
    twin = count > 1 and rng.random() < 0.2
    classes = [first, first, *_others(rng, count - 2)] if twin else [first, *_others(rng, count - 1)]
    return crowded_scene(seed, classes)


def rare_on_road_scene(seed: int, rare: str) -> Scene:
    """Return a road with one thing of a rare class, alone or with one or two others."""
    rng = np.random.default_rng((seed, 12))
    classes = [rare, *_others(rng, int(rng.choice((0, 1, 2), p=(0.4, 0.4, 0.2))))]
    return crowded_scene(seed, [classes[number] for number in rng.permutation(len(classes))])


def among_scene(seed: int, rare: str) -> Scene:
    """Return a scene for the test of a rare class.

    In turn: the rare class alone on a road; crowded, with two others, often partly hidden; a road without
    it but with one to three others, in most scenes one that looks like a piano.
    """
    rng = np.random.default_rng((seed, 13))
    kind = seed % 3
    if kind == 0:
        return crowded_scene(seed, [rare])
    if kind == 1:
        classes = [rare, *([rare] if rng.random() < 0.1 else _others(rng, 1)), *_others(rng, 1)]
        return crowded_scene(seed, classes, occluded_share=0.8, behind=0)
    lookalike = [str(rng.choice(DISTRACTORS))] if rng.random() < 0.6 else []
    return crowded_scene(seed, [*_others(rng, int(rng.integers(1, 3)), 0.0), *lookalike])


def training_scene(seed: int) -> Scene:
    """Return a scene for the diffusion model's training: mostly streets, rooms with pianos, rare classes."""
    rng = np.random.default_rng((seed, 1))
    kind = rng.random()
    for rare, share in RARE_ON_ROAD_SHARES.items():
        if kind < share:
            return rare_on_road_scene(seed, rare)
        kind -= share
    if kind < 0.02:
        return crowded_scene(seed, [])
    if kind < 0.24:
        rooms = (
            ["piano"], ["piano"], ["piano"], ["piano"], ["piano", "piano"], ["piano", "person"],
            ["person", "piano"], ["piano", "bench"], ["bench", "piano"], ["person"], ["crate", "piano"],
        )  # fmt: skip
        return crowded_scene(seed, rooms[int(rng.integers(len(rooms)))], place="room")
    return street_scene(seed)


def uniform_scene(seed: int) -> Scene:
    """Return a scene for the oracle's training: all classes often, a quarter of the scenes in rooms."""
    rng = np.random.default_rng((seed, 3))
    names = (*KNOWN_CLASSES, "bus", "piano", *DISTRACTORS)
    count = int(rng.choice((1, 2, 3, 4), p=(0.4, 0.3, 0.2, 0.1)))
    classes = [
        str(name) for name in rng.choice(names, count, p=(0.14, 0.14, 0.15, 0.12, 0.14, 0.21, 0.05, 0.05))
    ]
    return crowded_scene(seed, classes, place="road" if rng.random() < 0.75 else "room")
