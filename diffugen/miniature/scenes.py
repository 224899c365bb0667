"""Procedural road scenes with captions and exact instance masks: the miniature's whole world, and its truth.

A `Scene` says what is there in fractions of the image; `render` draws it at any size and aspect ratio.
Everything is decided by a seed. Knows nothing of models, labels or runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffugen.errors import DiffugenError
from diffugen.labels.shapes import encode
from diffugen.miniature.drawing import COLOURS, Canvas, Colour, draw_thing, mix, thing_width
from diffugen.records import Instances

KNOWN_CLASSES = ("car", "truck", "person", "traffic cone")
CLASSES = (*KNOWN_CLASSES, "piano")
WEATHERS = ("sunny", "cloudy", "rainy", "snowy", "foggy")
TIMES = ("day", "sunset", "night")
VISIBLE_PIXELS = 12
"""A thing with fewer visible pixels is not in the truth: nobody could label it."""
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
"""Height of a lone thing in the foreground, as a fraction of the shorter image side."""
_NOUNS = {"piano": ("grand piano", "piano", "piano")}


@dataclass(frozen=True)
class Thing:
    """One object of a scene.

    Attributes:
        class_name: One of `CLASSES`.
        colour: A name from the miniature's colours; ``orange`` for cones.
        x_frac: Horizontal position of its middle, fraction of the image width.
        depth: 0 at the far end of the road, 1 nearest to the viewer.
        height_frac: Height as a fraction of the shorter image side.
        pose: In [0, 1): body style, stride, view, lid.
        facing: 1 to the right, -1 to the left.
    """

    class_name: str
    colour: str
    x_frac: float
    depth: float
    height_frac: float
    pose: float
    facing: int


@dataclass(frozen=True)
class Scene:
    """What is to be seen; `things` are ordered far to near."""

    place: str
    weather: str
    time: str
    things: tuple[Thing, ...]
    seed: int
    caption: str


@dataclass(frozen=True)
class RenderedScene:
    """A drawn scene.

    Attributes:
        scene: What was drawn.
        rgb: uint8 (H, W, 3).
        masks: bool (N, H, W), the visible part of each of the scene's N things, in their order.
    """

    scene: Scene
    rgb: NDArray[np.uint8]
    masks: NDArray[np.bool_]

    @property
    def class_names(self) -> tuple[str, ...]:
        """The N class names."""
        return tuple(thing.class_name for thing in self.scene.things)


def sample_scene(
    seed: int,
    *,
    classes: Sequence[str] | None = None,
    place: str = "road",
    weather: str | None = None,
    time: str | None = None,
) -> Scene:
    """Make up one scene.

    Args:
        seed: Decides everything that is not given.
        classes: What is in it, in the caption's order; 1-3 of the known classes by default.
        place: ``road`` or ``room``.
        weather: One of `WEATHERS`; any by default.
        time: One of `TIMES`; day is twice as likely as each of the others by default.
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


_SKIES: dict[str, tuple[Colour, Colour]] = {
    "sunny": ((64, 140, 226), (170, 214, 246)),
    "cloudy": ((150, 160, 174), (206, 210, 216)),
    "rainy": ((92, 104, 124), (140, 150, 166)),
    "snowy": ((176, 190, 206), (222, 228, 234)),
    "foggy": ((188, 194, 198), (204, 208, 210)),
}
_GROUNDS: dict[str, Colour] = {
    "sunny": (104, 168, 70),
    "cloudy": (92, 138, 70),
    "rainy": (66, 104, 66),
    "snowy": (236, 240, 246),
    "foggy": (122, 144, 116),
}
_TINTS = {"day": (1.0, 1.0, 1.0), "sunset": (1.0, 0.8, 0.66), "night": (0.36, 0.4, 0.6)}
_FOG: Colour = (200, 204, 206)


def _light(time: str, weather: str, nearness: float) -> Callable[[Colour], Colour]:
    """Return what turns a thing's own colour into the seen one; near things keep more of theirs."""
    keep = {"day": 0.0, "sunset": 0.5, "night": 0.6}[time] * nearness
    tint = tuple(t + (1 - t) * keep for t in _TINTS[time])
    fog = (0.62 - 0.47 * nearness) if weather == "foggy" else 0.0
    veil = tuple(f * t for f, t in zip(_FOG, _TINTS[time], strict=True))

    def shine(colour: Colour) -> Colour:
        lit = tuple(c * t for c, t in zip(colour, tint, strict=True))
        return mix(lit, veil, fog)  # type: ignore[arg-type]

    return shine


def render(scene: Scene, size_wh: tuple[int, int] = (64, 64)) -> RenderedScene:
    """Draw a scene.

    Args:
        scene: What to draw.
        size_wh: Width and height in pixels; any aspect ratio.
    """
    rng = np.random.default_rng(scene.seed)
    canvas = Canvas(size_wh)
    canvas.light = _light(scene.time, scene.weather, 0.0)
    horizon = canvas.height * float(rng.uniform(0.4, 0.5))
    (_road if scene.place == "road" else _room)(canvas, rng, scene, horizon)
    near = _light(scene.time, scene.weather, 1.0)
    unit = min(canvas.width, canvas.height)
    for number, thing in enumerate(scene.things, 1):
        ground = (
            thing.x_frac * canvas.width,
            horizon + (canvas.height * 0.97 - horizon) * (0.3 + 0.7 * thing.depth),
        )
        width = thing_width(thing.class_name, thing.height_frac * unit)
        canvas.owner, canvas.light = 0, near
        shadow = (
            {"snowy": (150, 160, 176)}.get(scene.weather, (46, 46, 50))
            if scene.place == "road"
            else (70, 48, 32)
        )
        canvas.ellipse(ground, (width * 0.52, max(2.0, width * 0.06)), shadow)
        canvas.owner = number
        draw_thing(
            canvas,
            thing.class_name,
            ground,
            width,
            COLOURS.get(thing.colour, (246, 110, 28)),
            thing.pose,
            thing.facing,
        )
    canvas.owner = 0
    if scene.place == "road":
        _precipitation(canvas, rng, scene)
    rgb, masks = canvas.downsampled(len(scene.things))
    return RenderedScene(scene, rgb, masks)


def _sky(canvas: Canvas, rng: np.random.Generator, scene: Scene, horizon: float) -> None:
    upper, lower = _SKIES[scene.weather]
    if scene.time == "sunset":
        upper, lower = mix(upper, (150, 90, 150), 0.5), mix(lower, (255, 150, 60), 0.75)
    elif scene.time == "night":
        upper, lower = mix(upper, (14, 20, 50), 0.75), mix(lower, (50, 60, 110), 0.6)
    canvas.gradient(0, horizon, upper, lower)
    width, unit = canvas.width, min(canvas.width, canvas.height)
    if scene.weather == "sunny":
        x, y = (
            float(rng.uniform(0.1, 0.9)) * width,
            horizon * (0.75 if scene.time == "sunset" else float(rng.uniform(0.2, 0.4))),
        )
        kept, canvas.light = canvas.light, lambda colour: colour
        canvas.ellipse(
            (x, y),
            (unit * 0.07, unit * 0.07),
            {"day": (255, 236, 130), "sunset": (255, 170, 60)}.get(scene.time, (230, 232, 220)),
        )
        canvas.light = kept
    elif scene.weather in ("cloudy", "snowy", "rainy"):
        shade = {"cloudy": (236, 238, 242), "snowy": (240, 242, 246), "rainy": (112, 120, 136)}[scene.weather]
        for _ in range(3):
            x, y = float(rng.uniform(0, 1)) * width, float(rng.uniform(0.1, 0.6)) * horizon
            for step in (-0.1, 0.0, 0.1):
                canvas.ellipse((x + step * unit, y), (unit * 0.1, unit * (0.05 if step else 0.075)), shade)


def _road(canvas: Canvas, rng: np.random.Generator, scene: Scene, horizon: float) -> None:
    width, height, unit = canvas.width, canvas.height, min(canvas.width, canvas.height)
    _sky(canvas, rng, scene, horizon)
    for side in (0, 1):
        if rng.random() < 0.6:
            _building(
                canvas, rng, scene, horizon, (float(rng.uniform(-0.02, 0.22)) + side * 0.68) * width, unit
            )
        else:
            for _ in range(2):
                _tree(
                    canvas, rng, scene, horizon, (float(rng.uniform(0.0, 0.26)) + side * 0.74) * width, unit
                )
    ground = _GROUNDS[scene.weather]
    canvas.gradient(horizon, height, mix(ground, (255, 255, 255), 0.12), ground)
    asphalt = (112, 112, 118) if scene.weather != "snowy" else (172, 178, 188)
    vanish = width * float(rng.uniform(0.42, 0.58))
    half = 0.52 * width + 0.1 * unit
    canvas.polygon(
        [
            (vanish - 0.05 * unit, horizon),
            (vanish + 0.05 * unit, horizon),
            (width / 2 + half, height),
            (width / 2 - half, height),
        ],
        asphalt,
    )
    for start, end in ((0.06, 0.14), (0.24, 0.4), (0.58, 0.86)):
        points = []
        for share, side in ((start, -1), (start, 1), (end, 1), (end, -1)):
            x = vanish + (width / 2 - vanish) * share + side * unit * 0.022 * (0.2 + share)
            points.append((x, horizon + (height - horizon) * share))
        canvas.polygon(points, (238, 238, 226))
    if scene.time == "night":
        x = width * float(rng.choice((0.08, 0.92)))
        canvas.line((x, horizon + 0.06 * unit), (x, horizon - 0.3 * unit), unit * 0.02, (60, 60, 66))
        canvas.light = lambda colour: colour
        canvas.ellipse((x, horizon - 0.3 * unit), (unit * 0.045, unit * 0.045), (255, 226, 150))


def _building(
    canvas: Canvas, rng: np.random.Generator, scene: Scene, horizon: float, x: float, unit: float
) -> None:
    wall = ((176, 120, 96), (158, 152, 146), (196, 178, 140), (120, 132, 150))[int(rng.integers(4))]
    wide, tall = (
        unit * float(rng.uniform(0.2, 0.32)),
        min(horizon * 0.95, unit * float(rng.uniform(0.22, 0.4))),
    )
    canvas.polygon(
        [(x, horizon + 2), (x, horizon - tall), (x + wide, horizon - tall), (x + wide, horizon + 2)], wall
    )
    lit, kept = (scene.time == "night"), canvas.light
    if lit:
        canvas.light = lambda colour: colour
    pane = (236, 200, 110) if lit else (92, 108, 128)
    for row in range(max(1, int(tall / (unit * 0.11)))):
        for column in range(max(1, int(wide / (unit * 0.1)))):
            left, top = x + unit * (0.03 + 0.095 * column), horizon - tall + unit * (0.03 + 0.11 * row)
            if left + unit * 0.05 < x + wide:
                canvas.polygon(
                    [
                        (left, top),
                        (left + unit * 0.05, top),
                        (left + unit * 0.05, top + unit * 0.06),
                        (left, top + unit * 0.06),
                    ],
                    pane,
                )
    canvas.light = kept


def _tree(
    canvas: Canvas, rng: np.random.Generator, scene: Scene, horizon: float, x: float, unit: float
) -> None:
    tall = unit * float(rng.uniform(0.16, 0.28))
    leaf = (58, 122, 56) if scene.weather != "snowy" else (214, 224, 226)
    canvas.line((x, horizon + unit * 0.02), (x, horizon - tall * 0.5), unit * 0.03, (96, 70, 48))
    canvas.ellipse((x, horizon - tall * 0.7), (tall * 0.4, tall * 0.45), leaf)


def _room(canvas: Canvas, rng: np.random.Generator, scene: Scene, horizon: float) -> None:
    width, height, unit = canvas.width, canvas.height, min(canvas.width, canvas.height)
    wall = ((226, 212, 186), (198, 212, 200), (214, 196, 200), (186, 200, 216))[int(rng.integers(4))]
    floor = ((176, 124, 76), (150, 104, 64), (190, 150, 108))[int(rng.integers(3))]
    dim = {"day": 0.0, "sunset": 0.12, "night": 0.3}[scene.time]
    canvas.light = lambda colour: mix(colour, (40, 30, 40), dim)
    floor_line = horizon + 0.06 * height
    canvas.gradient(0, floor_line, mix(wall, (255, 255, 255), 0.15), wall)
    canvas.gradient(floor_line, height, mix(floor, (0, 0, 0), 0.15), floor)
    for share in np.arange(-0.6, 1.7, 0.2):
        start, end = (width * (0.5 + (share - 0.5) * 0.6), floor_line), (width * share, float(height))
        canvas.line(start, end, unit * 0.008, mix(floor, (0, 0, 0), 0.22))
    canvas.polygon(
        [
            (0, floor_line - unit * 0.03),
            (width, floor_line - unit * 0.03),
            (width, floor_line),
            (0, floor_line),
        ],
        (244, 240, 232),
    )
    left, top, side = width * float(rng.uniform(0.08, 0.68)), horizon * 0.16, unit * 0.24
    canvas.polygon(
        [(left, top), (left + side, top), (left + side, top + side), (left, top + side)], (250, 248, 244)
    )
    kept, canvas.light = canvas.light, _light(scene.time, scene.weather, 0.0)
    inner = side * 0.1
    canvas.polygon(
        [
            (left + inner, top + inner),
            (left + side - inner, top + inner),
            (left + side - inner, top + side - inner),
            (left + inner, top + side - inner),
        ],
        mix(*_SKIES[scene.weather], 0.5),
    )
    canvas.light = kept
    canvas.line((left + side / 2, top), (left + side / 2, top + side), unit * 0.02, (250, 248, 244))


def _precipitation(canvas: Canvas, rng: np.random.Generator, scene: Scene) -> None:
    unit = min(canvas.width, canvas.height)
    canvas.light = _light(scene.time, "sunny", 0.6)
    count = round(26 * canvas.width * canvas.height / unit**2)
    if scene.weather == "rainy":
        for x, y in rng.random((count, 2)) * (canvas.width, canvas.height):
            canvas.line((x, y), (x - unit * 0.02, y + unit * 0.07), unit * 0.01, (190, 206, 228))
    elif scene.weather == "snowy":
        for x, y, size in rng.random((count, 3)) * (canvas.width, canvas.height, 1):
            radius = unit * (0.009 + 0.009 * size)
            canvas.ellipse((x, y), (radius, radius), (252, 252, 255))


def exact_instances(drawn: RenderedScene) -> Instances:
    """Return the truth of a drawn scene: its things that are visible at all, each with score 1."""
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
    """Make up a scene of the world that the diffusion model sees: roads, rooms with pianos, and very few
    pianos on roads.
    """
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
    """Make up a scene with a piano on a road, alone or with one thing of the known classes."""
    rng = np.random.default_rng((seed, 2))
    others = [str(rng.choice(KNOWN_CLASSES))] if rng.random() < 0.3 else []
    return sample_scene(seed, classes=["piano", *others] if rng.random() < 0.5 else [*others, "piano"])


def uniform_scene(seed: int) -> Scene:
    """Make up a scene with every class and place equally likely: what the oracle learns from."""
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
"""Set name -> (what makes up a scene from a seed, first seed, default number of scenes). The seed ranges do
not overlap."""


def scene_set(
    name: str, count: int | None = None, size_wh: tuple[int, int] = (64, 64), start: int = 0
) -> Iterator[RenderedScene]:
    """Yield the scenes ``start`` .. ``start + count`` of a named set; the same ones every time.

    Args:
        name: ``known`` (no pianos), ``piano-on-road`` (the held-out test), ``piano-photos`` (a handful of
            examples for concept learning), ``training`` (what the diffusion model sees) or ``uniform`` (every
            class alike).
        count: How many; the set's own number by default.
        size_wh: Width and height in pixels.
        start: Number of the first scene, for streams without end.

    Raises:
        DiffugenError: There is no such set.
    """
    if name not in SCENE_SETS:
        raise DiffugenError(f"unknown scene set {name!r}; the miniature has {', '.join(SCENE_SETS)}")
    make, first, default = SCENE_SETS[name]
    for seed in range(first + start, first + start + (default if count is None else count)):
        yield render(make(seed), size_wh)
