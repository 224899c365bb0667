"""Pictures for people: contact sheets of images, heat maps and labels.

Draws records; knows no files but the one it is told to write.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from diffugen.errors import StoreError
from diffugen.records import Instances

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

RGB = NDArray[np.uint8]
BACKGROUND = (250, 250, 250)
INK = (40, 42, 46)
PALETTE = ((230, 25, 75), (0, 130, 200), (60, 180, 75), (245, 130, 48), (145, 30, 180), (0, 128, 128))
"""Colours of classes, in the order in which they first appear."""


@dataclass(frozen=True)
class Panel:
    """One image of a sheet with its pictures side by side and a line of text below.

    Attributes:
        pictures: uint8 (h, w, 3) each; scaled to the sheet's tile height.
        caption: The text.
    """

    pictures: Sequence[RGB]
    caption: str


def enlarged(rgb: RGB, height: int) -> RGB:
    """Return the picture at another height, its aspect ratio kept; small pictures keep their square pixels'
    edges soft.
    """
    import cv2

    width = max(1, round(rgb.shape[1] * height / rgb.shape[0]))
    return cv2.resize(
        rgb, (width, height), interpolation=cv2.INTER_CUBIC if height > rgb.shape[0] else cv2.INTER_AREA
    )


def heat_overlay(rgb: RGB, heat: NDArray[np.float32], height: int) -> RGB:
    """Return the picture under its heat map.

    Args:
        rgb: uint8 (H, W, 3).
        heat: float32 (H, W); scaled from its own minimum to its maximum.
        height: Height of the result in pixels.
    """
    import cv2

    spread = float(heat.max() - heat.min())
    scaled = (heat - heat.min()) / spread if spread > 0 else np.zeros_like(heat)
    colours = cv2.applyColorMap((scaled * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    grey = np.repeat(rgb.mean(-1, keepdims=True), 3, -1)
    return enlarged((0.4 * grey + 0.6 * colours).astype(np.uint8), height)


def outlined(rgb: RGB, region: NDArray[np.bool_], height: int) -> RGB:
    """Return the picture with the outline of a region.

    Args:
        rgb: uint8 (H, W, 3).
        region: bool (H, W).
        height: Height of the result in pixels.
    """
    import cv2

    canvas = np.ascontiguousarray(enlarged(rgb, height))
    large = cv2.resize(region.astype(np.uint8), canvas.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    outline, _ = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    for colour, width in (((255, 255, 255), 3), (INK, 1)):
        cv2.drawContours(canvas, outline, -1, colour, width, cv2.LINE_AA)
    return canvas


def label_overlay(rgb: RGB, instances: Instances, height: int, classes: Sequence[str]) -> RGB:
    """Return the picture with each instance's mask, outline, box, class and score.

    Args:
        rgb: uint8 (H, W, 3).
        instances: What to draw; of the picture's size.
        height: Height of the result in pixels.
        classes: Decides the colours.
    """
    import cv2
    from PIL import Image, ImageDraw

    from diffugen.labels.shapes import boxes, decode

    canvas = enlarged(rgb, height)
    scale = height / rgb.shape[0]
    texts = []
    for name, rle, score, box in zip(
        instances.class_names, instances.rles, instances.scores, boxes(instances.rles), strict=True
    ):
        colour = PALETTE[classes.index(name) % len(PALETTE)] if name in classes else INK
        soft = cv2.resize(decode(rle).astype(np.float32), canvas.shape[1::-1], interpolation=cv2.INTER_CUBIC)
        mask = (soft > 0.5).astype(np.uint8)
        canvas = np.where(mask[..., None] > 0, 0.6 * canvas + 0.4 * np.array(colour), canvas).astype(np.uint8)
        outline, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(canvas, outline, -1, colour, 2, cv2.LINE_AA)
        x0, y0, x1, y1 = (round(float(edge) * scale) for edge in box)
        cv2.rectangle(canvas, (x0, y0), (x1 - 1, y1 - 1), (255, 255, 255), 1)
        texts.append((x0, y0, f"{name} {score:.2f}", colour))
    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    for x, y, text, colour in texts:
        _tag(draw, x, y, text, colour, canvas.shape[1])
    return np.asarray(picture)


def _tag(draw: ImageDraw, x: int, y: int, text: str, colour: tuple[int, int, int], width: int) -> None:
    font = _font(13)
    left, top, right, bottom = (round(edge) for edge in draw.textbbox((0, 0), text, font=font))
    x = max(0, min(x, width - (right - left) - 6))
    y = max(0, y - (bottom - top) - 6)
    draw.rectangle((x, y, x + right - left + 5, y + bottom - top + 5), fill=colour)
    draw.text((x + 3 - left, y + 3 - top), text, fill=(255, 255, 255), font=font)


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def contact_sheet(
    panels: Iterable[Panel], path: Path, *, columns: int = 3, height: int = 160, title: str = ""
) -> Path:
    """Write a sheet of panels as a PNG.

    Args:
        panels: What to show, row by row.
        path: Where to write.
        columns: Panels in a row.
        height: Height of each picture in pixels.
        title: Line above everything.

    Returns:
        ``path``.

    Raises:
        StoreError: The file cannot be written.
    """
    from PIL import Image, ImageDraw

    strips = [
        (np.concatenate([enlarged(one, height) for one in panel.pictures], 1), panel.caption)
        for panel in panels
    ]
    gap, line = 14, 22
    cell = max((strip.shape[1] for strip, _ in strips), default=1) + gap
    rows = -(-len(strips) // columns)
    top = 34 if title else gap
    size = (cell * min(columns, max(1, len(strips))) + gap, top + rows * (height + line + gap))
    sheet = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((gap, 8), title, fill=INK, font=_font(16))
    for number, (strip, caption) in enumerate(strips):
        x, y = gap + number % columns * cell, top + number // columns * (height + line + gap)
        sheet.paste(Image.fromarray(strip), (x, y))
        draw.text((x, y + height + 3), _shortened(draw, caption, cell - gap), fill=INK, font=_font(13))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path)
    except OSError as error:
        raise StoreError(
            f"cannot write the picture {path}: {error.strerror or error}. Free space or choose another folder"
        ) from error
    return path


def _shortened(draw: ImageDraw, text: str, width: int) -> str:
    font = _font(13)
    while len(text) > 4 and draw.textlength(text, font=font) > width:
        text = text[:-2].rstrip() + "…"
    return text
