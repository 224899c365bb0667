"""Scenes and how to draw them: sky, road or room, the things in it, weather and light.

A `Scene` describes positions and sizes as fractions of the image; `render` draws it at any size and aspect
ratio, with exact masks. Does not know how scenes are made up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffugen.miniature.canvas import COLOURS, Canvas, Colour, mix
from diffugen.miniature.drawing import draw_thing, thing_width


@dataclass(frozen=True)
class Thing:
    """One object of a scene.

    Attributes:
        class_name: One of `diffugen.miniature.scenes.CLASSES` or `diffugen.miniature.crowds.DISTRACTORS`.
        colour: A key of `diffugen.miniature.canvas.COLOURS`; ``orange`` for cones.
        x_frac: Horizontal position of its centre, as a fraction of the image width.
        depth: 0 at the far end of the road, 1 nearest to the viewer.
        height_frac: Height as a fraction of the shorter image side.
        pose: In [0, 1): determines body style, stride, view or lid.
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
    """The content of an image; `things` are ordered from far to near."""

    place: str
    weather: str
    time: str
    things: tuple[Thing, ...]
    seed: int
    caption: str


@dataclass(frozen=True)
class RenderedScene:
    """A rendered scene with its masks.

    Attributes:
        scene: The scene.
        rgb: uint8 (H, W, 3).
        masks: bool (N, H, W), the visible part of each of the scene's N things, in their order.
    """

    scene: Scene
    rgb: NDArray[np.uint8]
    masks: NDArray[np.bool_]

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes of the N things, in their order."""
        return tuple(thing.class_name for thing in self.scene.things)


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
    """Return a function from a thing's own colour to its visible colour; near things keep more of theirs."""
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
        scene: The scene.
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
