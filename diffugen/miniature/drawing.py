"""Anti-aliased drawing with exact instance masks, and the things that stand in a scene.

Knows shapes and colours, not scenes or captions. Everything is painted far to near on a supersampled canvas;
each stroke of a thing also writes the thing's number into an id map, so that what is left of it at the end is
its visible part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Colour = tuple[float, float, float]
Point = tuple[float, float]

SUPERSAMPLING = 2
_SHIFT = 4  # fractional bits of OpenCV's fixed-point coordinates

COLOURS: dict[str, Colour] = {
    "red": (208, 44, 40),
    "blue": (40, 86, 206),
    "green": (44, 150, 72),
    "yellow": (240, 204, 48),
    "white": (240, 240, 236),
    "black": (40, 38, 44),
    "brown": (134, 78, 38),
    "gray": (136, 138, 144),
}
"""Named colours, RGB in [0, 255]."""


def mix(colour: Colour, other: Colour, share: float) -> Colour:
    """Blend ``share`` in [0, 1] of ``other`` into ``colour``."""
    return tuple(a + (b - a) * share for a, b in zip(colour, other, strict=True))  # type: ignore[return-value]


class Canvas:
    """An RGB image and an id map of the same supersampled size, painted together.

    Args:
        size_wh: Width and height of the final image in pixels.

    Attributes:
        rgb: uint8 (H * s, W * s, 3).
        ids: uint8 (H * s, W * s): 0 is background, k the k-th thing.
        owner: The id that strokes are written with; 0 leaves the id map alone.
        light: Maps a stroke's colour to what the scene's light makes of it.
    """

    def __init__(self, size_wh: tuple[int, int]) -> None:
        self.size_wh = size_wh
        self.width, self.height = (side * SUPERSAMPLING for side in size_wh)
        self.rgb = np.zeros((self.height, self.width, 3), np.uint8)
        self.ids = np.zeros((self.height, self.width), np.uint8)
        self.owner = 0
        self.light: Callable[[Colour], Colour] = lambda colour: colour

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        """Fill the polygon through ``points`` (x, y in supersampled pixels)."""
        fixed = np.round((np.asarray(points, np.float64) - 0.5) * (1 << _SHIFT)).astype(np.int32)
        cv2.fillPoly(self.rgb, [fixed], self.light(colour), cv2.LINE_AA, _SHIFT)
        if self.owner:
            cv2.fillPoly(self.ids, [fixed], self.owner, cv2.LINE_8, _SHIFT)

    def ellipse(self, centre: Point, radii: Point, colour: Colour) -> None:
        """Fill an upright ellipse."""
        at = tuple(round((c - 0.5) * (1 << _SHIFT)) for c in centre)
        axes = tuple(max(1, round(r * (1 << _SHIFT))) for r in radii)
        cv2.ellipse(self.rgb, at, axes, 0, 0, 360, self.light(colour), -1, cv2.LINE_AA, _SHIFT)
        if self.owner:
            cv2.ellipse(self.ids, at, axes, 0, 0, 360, self.owner, -1, cv2.LINE_8, _SHIFT)

    def line(self, start: Point, end: Point, width: float, colour: Colour) -> None:
        """Draw a straight stroke ``width`` supersampled pixels wide."""
        (x0, y0), (x1, y1) = start, end
        length = max(1e-6, float(np.hypot(x1 - x0, y1 - y0)))
        dx, dy = (y1 - y0) / length * width / 2, (x0 - x1) / length * width / 2
        self.polygon([(x0 + dx, y0 + dy), (x1 + dx, y1 + dy), (x1 - dx, y1 - dy), (x0 - dx, y0 - dy)], colour)

    def gradient(self, top: float, bottom: float, upper: Colour, lower: Colour) -> None:
        """Fill the rows from ``top`` to ``bottom`` with a vertical gradient."""
        first, last = max(0, int(top)), min(self.height, int(np.ceil(bottom)))
        if last > first:
            share = np.linspace(0, 1, last - first)[:, None]
            rows = np.array(self.light(upper)) * (1 - share) + np.array(self.light(lower)) * share
            self.rgb[first:last] = np.clip(rows, 0, 255)[:, None].astype(np.uint8)

    def haze(self, colour: Colour, share: float) -> None:
        """Blend ``share`` in [0, 1] of ``colour`` over the whole image."""
        veil = np.full_like(self.rgb, 0)
        veil[:] = colour
        cv2.addWeighted(self.rgb, 1 - share, veil, share, 0, dst=self.rgb)

    def downsampled(self, count: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Return the image, uint8 (H, W, 3), and the visible masks of the things 1..count, bool (count, H,
        W).
        """
        rgb = cv2.resize(self.rgb, self.size_wh, interpolation=cv2.INTER_AREA)
        width, height = self.size_wh
        masks = np.zeros((count, height, width), bool)
        taken = np.zeros((height, width), bool)
        for k in reversed(range(count)):  # a pixel that two things share in halves belongs to the nearer one
            cover = cv2.resize(
                (self.ids == k + 1).astype(np.uint8) * 255, self.size_wh, interpolation=cv2.INTER_AREA
            )
            masks[k] = (cover >= 128) & ~taken
            taken |= masks[k]
        return rgb, masks


Place = Callable[[float, float], Point]
"""From local (u in [-1, 1] to the thing's front, v in [0, 1] up) to canvas pixels."""


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
}
"""Class name -> (painter, height of the thing divided by its width)."""


def draw_thing(
    canvas: Canvas, class_name: str, ground: Point, width: float, colour: Colour, pose: float, facing: int
) -> None:
    """Paint one thing standing on ``ground``.

    Args:
        canvas: Where; its ``owner`` decides which mask the thing gets.
        class_name: car, truck, person, traffic cone or piano.
        ground: Middle of its foot, x and y in supersampled pixels.
        width: Its width in supersampled pixels.
        colour: RGB in [0, 255].
        pose: In [0, 1): body style, stride, view, lid.
        facing: 1 to the right, -1 to the left.
    """
    paint, ratio = _THINGS[class_name]
    height = width * ratio
    x, y = ground
    paint(canvas, lambda u, v: (x + facing * u * width / 2, y - v * height), height, colour, pose)


def thing_width(class_name: str, height: float) -> float:
    """Return the width of a thing of this class that is ``height`` tall (same unit)."""
    return height / _THINGS[class_name][1]
