"""Draw images with their heat maps and labels, and write pictures side by side as a contact sheet.

Draws what it is given; knows no run. `diffugen.labels.sheets` chooses which images of a run to show.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from diffugen.errors import StoreError
from diffugen.labels.shapes import boxes, cropped
from diffugen.records import Instances
from diffugen.run.codec import rgb_to_png
from diffugen.run.files import write_file

RGB = NDArray[np.uint8]
BACKGROUND = (250, 250, 250)
INK = (40, 42, 46)
PALETTE = ((230, 25, 75), (0, 130, 200), (60, 180, 75), (245, 130, 48), (145, 30, 180), (0, 128, 128))
"""Colours of classes, by their number."""


@dataclass(frozen=True)
class Panel:
    """Pictures of one image, side by side, with a line of text below.

    Attributes:
        pictures: uint8 (h, w, 3) each; the sheet scales them to its height.
        caption: The text.
    """

    pictures: Sequence[RGB]
    caption: str


def enlarged(rgb: RGB, height: int) -> RGB:
    """Return the picture at another height, with its aspect ratio; enlarging is bicubic."""
    width = max(1, round(rgb.shape[1] * height / rgb.shape[0]))
    return cv2.resize(
        rgb, (width, height), interpolation=cv2.INTER_CUBIC if height > rgb.shape[0] else cv2.INTER_AREA
    )


def heat_overlay(rgb: RGB, heat: NDArray[np.float32], height: int) -> RGB:
    """Return the picture in grey with its heat map on top.

    Args:
        rgb: uint8 (H, W, 3).
        heat: float32 (H, W); rescaled from its minimum and maximum to the range of colours.
        height: Height of the result in pixels.
    """
    colours = heat_picture(heat)
    grey = np.repeat(rgb.mean(-1, keepdims=True), 3, -1)
    return enlarged((0.4 * grey + 0.6 * colours).astype(np.uint8), height)


def heat_picture(heat: NDArray[np.float32]) -> RGB:
    """Return a heat map in colours, uint8 (H, W, 3), from its minimum, dark, to its maximum, bright.

    Args:
        heat: float32 (H, W).
    """
    spread = float(heat.max() - heat.min())
    scaled = (heat - heat.min()) / spread if spread > 0 else np.zeros_like(heat)
    return cv2.applyColorMap((scaled * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]


def outlined(rgb: RGB, region: NDArray[np.bool_], height: int) -> RGB:
    """Return the picture with the outline of a region.

    Args:
        rgb: uint8 (H, W, 3).
        region: bool (H, W).
        height: Height of the result in pixels.
    """
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
        instances: Labels of the picture.
        height: Height of the result in pixels.
        classes: Class names; the position of a class decides its colour.
    """
    canvas = enlarged(rgb, height)
    scale = height / rgb.shape[0]
    texts = []
    for name, rle, score, box in zip(
        instances.class_names, instances.rles, instances.scores, boxes(instances.rles), strict=True
    ):
        colour = PALETTE[classes.index(name) % len(PALETTE)] if name in classes else INK
        part, corner = cropped(rle)
        if not part.size:
            continue
        # Pixel centres map to pixel centres, as in cv2.resize, which would need the whole mask.
        place = [[scale, 0, (corner[0] + 0.5) * scale - 0.5], [0, scale, (corner[1] + 0.5) * scale - 0.5]]
        soft = cv2.warpAffine(
            part.astype(np.float32), np.array(place), canvas.shape[1::-1], flags=cv2.INTER_CUBIC
        )
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


def _tag(
    draw: ImageDraw.ImageDraw, x: int, y: int, text: str, colour: tuple[int, int, int], width: int
) -> None:
    font = _font(13)
    left, top, right, bottom = (round(edge) for edge in draw.textbbox((0, 0), text, font=font))
    x = max(0, min(x, width - (right - left) - 6))
    y = max(0, y - (bottom - top) - 6)
    draw.rectangle((x, y, x + right - left + 5, y + bottom - top + 5), fill=colour)
    draw.text((x + 3 - left, y + 3 - top), text, fill=(255, 255, 255), font=font)


def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def contact_sheet(
    panels: Iterable[Panel], path: Path, *, columns: int = 3, height: int = 160, title: str = ""
) -> Path:
    """Write panels as a contact sheet.

    Args:
        panels: The panels, row by row.
        path: The PNG file; its folder is created if needed.
        columns: Panels per row.
        height: Height of each picture in pixels.
        title: A line of text at the top.

    Returns:
        ``path``.

    Raises:
        StoreError: The file cannot be written.
    """
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
        write_file(path, rgb_to_png(np.asarray(sheet)))
    except OSError as error:
        raise StoreError(
            f"cannot write the picture {path}: {error.strerror or error}. Free space or choose another folder"
        ) from error
    return path


def _shortened(draw: ImageDraw.ImageDraw, text: str, width: int) -> str:
    font = _font(13)
    while len(text) > 4 and draw.textlength(text, font=font) > width:
        text = text[:-2].rstrip() + "…"
    return text
