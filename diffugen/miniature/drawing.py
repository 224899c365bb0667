"""The things in a scene, painted on a canvas: vehicles, people, cones, pianos, benches and crates.

Knows their shapes and poses. Does not know where they stand, or captions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from diffugen.miniature.canvas import Canvas, Colour, Point, mix

Place = Callable[[float, float], Point]
"""Maps local coordinates (u in [-1, 1] towards the front, v in [0, 1] upwards) to canvas pixels."""


def _wheel(canvas: Canvas, at: Point, radius: float) -> None:
    canvas.ellipse(at, (radius, radius), (28, 28, 30))
    canvas.ellipse(at, (radius * 0.5, radius * 0.5), (170, 172, 178))


def _car(canvas: Canvas, place: Place, height: float, colour: Colour, pose: float) -> None:
    rear = -0.95 if pose < 0.4 else -0.7  # hatchback or saloon
    body = [(-0.98, 0.16), (-1, 0.54), (-0.62, 0.62), (0.58, 0.62), (0.96, 0.5), (1, 0.16)]
    cabin = [(rear, 0.56), (-0.48, 1), (0.2, 1), (0.56, 0.58)]
    canvas.polygon([place(u, v) for u, v in cabin], colour)
    canvas.polygon([place(u, v) for u, v in body], colour)
    canvas.polygon(
        [place(u, v) for u, v in [(-0.99, 0.16), (-1, 0.3), (1, 0.3), (1, 0.16)]],
        mix(colour, (0, 0, 0), 0.35),
    )
    glass = (176, 214, 232)
    canvas.polygon(
        [place(u, v) for u, v in [(rear + 0.2, 0.62), (-0.42, 0.92), (-0.12, 0.92), (-0.12, 0.62)]], glass
    )
    canvas.polygon(
        [place(u, v) for u, v in [(-0.04, 0.62), (-0.04, 0.92), (0.16, 0.92), (0.42, 0.62)]], glass
    )
    canvas.ellipse(place(0.92, 0.44), (height * 0.07, height * 0.07), (255, 240, 170))
    canvas.ellipse(place(-0.95, 0.46), (height * 0.06, height * 0.06), (190, 20, 20))
    for u in (-0.58, 0.6):
        _wheel(canvas, place(u, 0.2), height * 0.22)


def _truck(canvas: Canvas, place: Place, height: float, colour: Colour, pose: float) -> None:
    cab = mix(colour, (255, 255, 255), 0.45) if pose < 0.5 else mix(colour, (0, 0, 0), 0.3)
    canvas.polygon(
        [place(u, v) for u, v in [(-0.98, 0.12), (-0.98, 0.22), (0.98, 0.22), (0.98, 0.12)]], (52, 52, 56)
    )
    canvas.polygon([place(u, v) for u, v in [(-1, 0.2), (-1, 1), (0.4, 1), (0.4, 0.2)]], colour)
    for v in (0.45, 0.72):
        canvas.polygon(
            [place(-1, v), place(-1, v + 0.035), place(0.4, v + 0.035), place(0.4, v)],
            mix(colour, (0, 0, 0), 0.25),
        )
    canvas.polygon(
        [place(u, v) for u, v in [(0.46, 0.16), (0.46, 0.8), (0.8, 0.8), (0.98, 0.46), (1, 0.16)]], cab
    )
    canvas.polygon(
        [place(u, v) for u, v in [(0.58, 0.48), (0.58, 0.73), (0.77, 0.73), (0.9, 0.48)]], (176, 214, 232)
    )
    canvas.ellipse(place(0.95, 0.28), (height * 0.045, height * 0.045), (255, 240, 170))
    for u in (-0.74, -0.36, 0.68):
        _wheel(canvas, place(u, 0.13), height * 0.13)


def _bus(canvas: Canvas, place: Place, height: float, colour: Colour, pose: float) -> None:
    """A truck's size and wheels, but one long body with a row of windows."""
    body = [(-1, 0.12), (-1, 0.94), (-0.95, 1), (0.93, 1), (1, 0.86), (1, 0.12)]
    canvas.polygon([place(u, v) for u, v in body], colour)
    stripe = mix(colour, (255, 255, 255), 0.5) if pose < 0.5 else mix(colour, (0, 0, 0), 0.35)
    canvas.polygon([place(u, v) for u, v in [(-1, 0.36), (-1, 0.44), (1, 0.44), (1, 0.36)]], stripe)
    glass = (176, 214, 232)
    for left in (-0.92, -0.56, -0.2, 0.16):
        pane = [(left, 0.54), (left, 0.84), (left + 0.29, 0.84), (left + 0.29, 0.54)]
        canvas.polygon([place(u, v) for u, v in pane], glass)
    canvas.polygon([place(u, v) for u, v in [(0.52, 0.16), (0.52, 0.84), (0.7, 0.84), (0.7, 0.16)]], glass)
    canvas.polygon([place(u, v) for u, v in [(0.78, 0.52), (0.78, 0.86), (0.95, 0.84), (1, 0.52)]], glass)
    canvas.ellipse(place(0.96, 0.25), (height * 0.05, height * 0.05), (255, 240, 170))
    for u in (-0.6, 0.34):
        _wheel(canvas, place(u, 0.14), height * 0.15)


def _bench(canvas: Canvas, place: Place, height: float, colour: Colour, pose: float) -> None:
    dark = mix(colour, (0, 0, 0), 0.4)
    for u in (-0.78, 0.78):
        legs = [(u - 0.08, 0.5), (u + 0.08, 0.5), (u + 0.05, 0), (u - 0.05, 0)]
        canvas.polygon([place(*corner) for corner in legs], dark)
    slabs = [(0.42, 0.56)]
    if pose < 0.6:  # with a back
        slabs += [(0.64, 0.76), (0.82, 1.0)]
        for u in (-0.66, 0.66):
            canvas.line(place(u, 0.5), place(u, 0.96), height * 0.07, dark)
    for low, high in slabs:
        slab = [(-1, low), (-1, high), (1, high), (1, low)]
        canvas.polygon([place(u, v) for u, v in slab], colour)
    canvas.line(place(-1, 0.56), place(1, 0.56), height * 0.03, mix(colour, (255, 255, 255), 0.3))


def _crate(canvas: Canvas, place: Place, height: float, colour: Colour, pose: float) -> None:
    dark = mix(colour, (0, 0, 0), 0.4)
    top = 1.0 if pose < 0.5 else 0.6
    canvas.polygon([place(u, v) for u, v in [(-1, 0), (-1, top), (1, top), (1, 0)]], colour)
    if pose >= 0.5:  # a smaller one on top
        corners = [(-0.7, 0.6), (-0.7, 1), (0.5, 1), (0.5, 0.6)]
        canvas.polygon([place(u, v) for u, v in corners], mix(colour, (255, 255, 255), 0.12))
    for share in (0.03, 0.34, 0.66, 0.97):
        canvas.line(place(-1, top * share), place(1, top * share), height * 0.035, dark)
    canvas.line(place(-0.95, 0.02), place(0.95, top * 0.97), height * 0.05, dark)


def _person(canvas: Canvas, place: Place, height: float, colour: Colour, pose: float) -> None:
    skin, stride = ((236, 190, 156), (150, 100, 70))[pose > 0.6], 0.15 + 0.6 * abs(pose - 0.5)
    trousers = ((50, 56, 92), (64, 60, 56))[pose > 0.35]
    for side in (-1, 1):
        hip, foot = 0.22 * side, side * (0.2 + stride)
        canvas.polygon(
            [place(hip - 0.22, 0.48), place(hip + 0.22, 0.48), place(foot + 0.16, 0), place(foot - 0.16, 0)],
            trousers,
        )
    for side in (-1, 1):
        canvas.line(
            place(0.5 * side, 0.78),
            place(side * (0.7 + 0.2 * stride), 0.46),
            height * 0.075,
            mix(colour, (0, 0, 0), 0.2),
        )
    canvas.polygon([place(-0.46, 0.44), place(-0.56, 0.82), place(0.56, 0.82), place(0.46, 0.44)], colour)
    canvas.ellipse(place(0, 0.91), (height * 0.085, height * 0.09), skin)
    canvas.ellipse(place(-0.05, 0.96), (height * 0.085, height * 0.05), (58, 38, 26))


def _cone(canvas: Canvas, place: Place, height: float, colour: Colour, pose: float) -> None:
    orange = (246, 110, 28) if pose < 0.7 else (232, 84, 30)
    canvas.polygon(
        [place(u, v) for u, v in [(-1, 0), (-1, 0.1), (1, 0.1), (1, 0)]], mix(orange, (0, 0, 0), 0.4)
    )
    canvas.polygon([place(u, v) for u, v in [(-0.7, 0.1), (-0.12, 1), (0.12, 1), (0.7, 0.1)]], orange)
    for v in (0.34, 0.64):
        half = [0.7 - 0.58 * (w - 0.1) / 0.9 for w in (v, v + 0.14)]
        canvas.polygon(
            [place(-half[0], v), place(-half[1], v + 0.14), place(half[1], v + 0.14), place(half[0], v)],
            (246, 246, 246),
        )


def _keys(canvas: Canvas, place: Place, corners: Sequence[Point], count: int, width: float) -> None:
    near_left, near_right, far_right, far_left = corners
    canvas.polygon([place(u, v) for u, v in corners], (250, 248, 240))
    for k in range(1, count):
        share = k / count
        near = tuple(a + (b - a) * share for a, b in zip(near_left, near_right, strict=True))
        far = tuple(a + (b - a) * share for a, b in zip(far_left, far_right, strict=True))
        middle = tuple((a + 2 * b) / 3 for a, b in zip(near, far, strict=True))
        canvas.line(place(*middle), place(*far), width, (24, 22, 24))


def _piano_side(canvas: Canvas, place: Place, height: float, colour: Colour, lid_open: bool) -> None:
    edge, dark = mix(colour, (255, 255, 255), 0.35), mix(colour, (0, 0, 0), 0.4)
    for u in (-0.8, 0.0, 0.8):
        canvas.polygon(
            [place(u - 0.06, 0.34), place(u + 0.06, 0.34), place(u + 0.035, 0), place(u - 0.035, 0)], dark
        )
    case = [(-1, 0.3), (-1, 0.44), (-0.6, 0.54), (0.7, 0.54), (0.93, 0.5), (1, 0.42), (0.95, 0.3)]
    canvas.polygon([place(u, v) for u, v in case], colour)
    if lid_open:
        canvas.polygon(
            [place(u, v) for u, v in [(-0.5, 0.54), (-0.42, 0.66), (0.8, 0.62), (0.9, 0.52)]], (206, 158, 72)
        )
        lid = [
            (-0.5, 0.56),
            (-0.62, 0.95),
            (-0.4, 1),
            (0.45, 0.86),
            (0.82, 0.7),
            (0.9, 0.56),
            (0.5, 0.64),
            (-0.3, 0.68),
        ]
        canvas.polygon([place(u, v) for u, v in lid], mix(colour, (255, 255, 255), 0.12))
        canvas.line(place(-0.62, 0.95), place(-0.4, 1.0), height * 0.02, edge)
        canvas.line(place(-0.4, 0.99), place(0.45, 0.86), height * 0.02, edge)
        canvas.line(place(0.45, 0.85), place(0.86, 0.66), height * 0.02, edge)
    else:
        canvas.polygon(
            [place(u, v) for u, v in [(-0.6, 0.54), (-0.42, 0.68), (0.62, 0.66), (0.93, 0.5)]],
            mix(colour, edge, 0.5),
        )
    _keys(canvas, place, [(-1, 0.4), (-0.6, 0.5), (-0.54, 0.6), (-0.92, 0.5)], 7, height * 0.025)
    canvas.line(place(-0.6, 0.53), place(0.9, 0.5), height * 0.02, edge)


def _piano_front(canvas: Canvas, place: Place, height: float, colour: Colour, lid_open: bool) -> None:
    edge, dark = mix(colour, (255, 255, 255), 0.35), mix(colour, (0, 0, 0), 0.4)
    for u in (-0.84, 0.84):
        canvas.polygon(
            [place(u - 0.08, 0.34), place(u + 0.08, 0.34), place(u + 0.05, 0), place(u - 0.05, 0)], dark
        )
    canvas.polygon([place(u, v) for u, v in [(-0.05, 0.34), (0.05, 0.34), (0.05, 0.1), (-0.05, 0.1)]], dark)
    if lid_open:
        canvas.polygon(
            [place(u, v) for u, v in [(-0.9, 0.56), (-0.6, 0.72), (0.9, 0.72), (0.96, 0.56)]], (206, 158, 72)
        )
        lid = [(-0.92, 0.56), (-0.8, 0.96), (-0.2, 1), (0.5, 0.93), (0.86, 0.76), (0.5, 0.7), (-0.5, 0.7)]
        canvas.polygon([place(u, v) for u, v in lid], mix(colour, (255, 255, 255), 0.12))
        canvas.line(place(-0.8, 0.95), place(-0.2, 0.99), height * 0.02, edge)
        canvas.line(place(-0.2, 0.99), place(0.5, 0.92), height * 0.02, edge)
    else:
        canvas.polygon(
            [place(u, v) for u, v in [(-0.94, 0.56), (-0.7, 0.72), (0.5, 0.74), (0.94, 0.56)]],
            mix(colour, edge, 0.5),
        )
    canvas.polygon([place(u, v) for u, v in [(-1, 0.32), (-1, 0.58), (1, 0.58), (1, 0.32)]], colour)
    _keys(canvas, place, [(-0.86, 0.4), (0.86, 0.4), (0.84, 0.53), (-0.84, 0.53)], 14, height * 0.025)
    canvas.line(place(-1, 0.57), place(1, 0.57), height * 0.02, edge)


def _piano(canvas: Canvas, place: Place, height: float, colour: Colour, pose: float) -> None:
    draw = _piano_side if pose < 0.6 else _piano_front
    draw(canvas, place, height, colour, (pose * 10) % 1 < 0.7)


_THINGS: dict[str, tuple[Callable[[Canvas, Place, float, Colour, float], None], float]] = {
    "car": (_car, 0.45),
    "truck": (_truck, 0.64),
    "person": (_person, 2.6),
    "traffic cone": (_cone, 1.35),
    "piano": (_piano, 0.78),
    "bus": (_bus, 0.6),
    "bench": (_bench, 0.6),
    "crate": (_crate, 0.85),
}
"""Class name -> (function that paints the thing, its height divided by its width)."""


def draw_thing(
    canvas: Canvas, class_name: str, ground: Point, width: float, colour: Colour, pose: float, facing: int
) -> None:
    """Paint one thing standing on ``ground``.

    Args:
        canvas: The canvas; its ``owner`` is the id of the thing.
        class_name: A class or one of `diffugen.miniature.crowds.DISTRACTORS`.
        ground: Centre of its lower edge, x and y in supersampled pixels.
        width: Its width in supersampled pixels.
        colour: RGB in [0, 255].
        pose: In [0, 1): determines body style, stride, view or lid.
        facing: 1 to the right, -1 to the left.
    """
    paint, ratio = _THINGS[class_name]
    height = width * ratio
    x, y = ground
    paint(canvas, lambda u, v: (x + facing * u * width / 2, y - v * height), height, colour, pose)


def thing_width(class_name: str, height: float) -> float:
    """Return the width of a thing of this class and height, in the same unit."""
    return height / _THINGS[class_name][1]
