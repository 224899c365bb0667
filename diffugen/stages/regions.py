"""Find the region of an image to paint over: an object, a polygon, a named part, or a mask image.

Knows masks and labels; does not know where images come from or what is painted.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffugen.config.generation import PARTS, Region
from diffugen.dataset.files import IMAGE_SUFFIXES, read_image
from diffugen.errors import DiffugenError
from diffugen.labels.heatmaps import morphology
from diffugen.labels.shapes import areas, decode, encode, mask_from_polygons
from diffugen.records import Instances

Mask = NDArray[np.bool_]

BRIGHT = 128
"""Pixels of a mask image from this value on, of 255, are painted over."""

LEAST_AREA_FRAC = 0.005
"""Smallest usable region, relative to the image area; a smaller one has no room for an object."""

LEAST_ROOM_FRAC = 0.5
"""Share of a region that must remain after sparing the labelled objects; else the source is skipped."""

ALMOST_ALL_FRAC = 0.75
"""A window that covers more than this share of the image becomes the whole image."""

KEPT_FRAC = 0.5
"""An object keeps its label if at least this share of its mask is left outside the region."""


def region_mask(
    region: Region, size_wh: tuple[int, int], name: str, instances: Instances | None
) -> Mask | None:
    """Return the region of an image to paint over.

    Args:
        region: The configured region.
        size_wh: Width and height of the image in pixels.
        name: File name of the image without its suffix; a folder of masks is searched for this name.
        instances: The objects in the image: its labels, or the detections of ``region.detector``. None if
            unknown.

    Returns:
        bool (H, W); None if there is nothing to paint over: no object of the class, or too little room.

    Raises:
        DiffugenError: The mask image is missing, cannot be read, or has another size than the image.
    """
    wanted = region.label or region.find
    if wanted is not None:
        mask = _largest(instances, wanted)
        mask = None if mask is None else morphology(mask, 0, region.grow_frac)
    else:
        mask = morphology(_drawn(region, size_wh, name), 0, region.grow_frac if region.part is None else 0)
        if region.spare and instances is not None:
            whole = mask.sum()
            for rle in instances.rles:
                mask &= ~morphology(decode(rle), 0, region.grow_frac)
            if mask.sum() < LEAST_ROOM_FRAC * whole:
                return None
    return mask if mask is not None and mask.sum() >= max(1, LEAST_AREA_FRAC * mask.size) else None


def window_around(
    region: Mask, context_frac: float, proportions_wh: tuple[int, int]
) -> tuple[int, int, int, int] | None:
    """Return the crop that the model works on, so that small regions get as many pixels as large ones.

    Args:
        region: bool (H, W), the region to paint over.
        context_frac: Margin on each side, relative to the region's own width and height.
        proportions_wh: Width and height whose aspect ratio the window gets, as far as the image allows, so
            that the windows of different regions can be resized to the same size and share a batch.

    Returns:
        Left, upper, right and lower edge in pixels; None for the whole image.
    """
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    spans = [(int(found[0]), int(found[-1]) + 1) for found in (columns, rows)]
    sides = (region.shape[1], region.shape[0])
    sizes = [
        min(side, (1 + 2 * context_frac) * (last - first))
        for (first, last), side in zip(spans, sides, strict=True)
    ]
    scale = max(size / proportion for size, proportion in zip(sizes, proportions_wh, strict=True))
    edges = []
    for (first, last), proportion, side in zip(spans, proportions_wh, sides, strict=True):
        length = min(side, round(scale * proportion))
        start = min(max(0, round((first + last - length) / 2)), side - length)
        edges.append((start, start + length))
    (left, right), (upper, lower) = edges
    covered = (right - left) * (lower - upper) / region.size
    return None if covered > ALMOST_ALL_FRAC else (left, upper, right, lower)


def check_mask(path: str) -> Path:
    """Return the path of a mask image or a folder of masks.

    Raises:
        DiffugenError: It does not exist.
    """
    found = Path(path).expanduser()
    if not found.exists():
        raise DiffugenError(f"no mask image at {found}; give an image that is bright where to paint")
    return found


def outside(instances: Instances, region: Mask) -> Instances:
    """Return what is left of each object outside a region; objects cut by more than half are dropped.

    Args:
        instances: The objects of the source.
        region: bool (H, W), the region that was painted over.
    """
    kept, rles = [], []
    before = areas(instances.rles)
    for index, rle in enumerate(instances.rles):
        rest = decode(rle) & ~region
        if rest.sum() >= max(1, KEPT_FRAC * before[index]):
            kept.append(index)
            rles.append(encode(rest))
    chosen = instances.take(kept)
    return Instances(chosen.size_wh, chosen.class_names, tuple(rles), chosen.scores, chosen.terms)


def _largest(instances: Instances | None, class_name: str) -> Mask | None:
    if instances is None:
        return None
    objects = instances.of_classes([class_name])
    return decode(objects.rles[int(np.argmax(areas(objects.rles)))]) if len(objects) else None


def _drawn(region: Region, size_wh: tuple[int, int], name: str) -> Mask:
    width, height = size_wh
    if region.mask is not None:
        return _read_mask(_mask_file(check_mask(region.mask), name), size_wh)
    if region.polygon is not None:
        # The centre of the last pixel is half a pixel before the edge.
        return mask_from_polygons([np.array(region.polygon) * (width - 1, height - 1)], size_wh)
    left, upper, right, lower = PARTS[str(region.part)]
    mask = np.zeros((height, width), dtype=np.bool_)
    mask[
        math.floor(upper * height) : math.ceil(lower * height),
        math.floor(left * width) : math.ceil(right * width),
    ] = 1
    return mask


def _mask_file(path: Path, name: str) -> Path:
    if not path.is_dir():
        return path
    found = next((file for suffix in IMAGE_SUFFIXES if (file := path / f"{name}{suffix}").is_file()), None)
    if found is None:
        raise DiffugenError(f"no mask for {name!r} in {path}: expected {name}.png, bright where to paint")
    return found


def _read_mask(path: Path, size_wh: tuple[int, int]) -> Mask:
    grey = read_image(path).max(axis=2)
    if grey.max() == 1:  # 0 and 1, as many tools write masks
        grey = grey * np.uint8(255)
    mask = grey >= BRIGHT
    if not mask.any():
        raise DiffugenError(
            f"the mask {path} has no bright pixel to paint over: its brightest is {grey.max()} of 255, and "
            f"{BRIGHT} is needed"
        )
    if mask.shape != (size_wh[1], size_wh[0]):
        raise DiffugenError(
            f"the mask {path} has {mask.shape[1]}x{mask.shape[0]} pixels, the image "
            f"{size_wh[0]}x{size_wh[1]}; both must have the same size"
        )
    return np.asarray(mask)
