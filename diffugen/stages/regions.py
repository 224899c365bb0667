"""The part of an image that is painted over: an object's place, a polygon, a named part, or a mask image.

Knows masks and labels; not where images come from, or what is painted.
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

LEAST_AREA_FRAC = 0.005
"""A smaller region, relative to the image area, leaves no room for an object."""

LEAST_ROOM_FRAC = 0.5
"""Where spared objects take more of a region than this leaves, the source is not used: too little room beside
them."""

ALMOST_ALL_FRAC = 0.75
"""A window that covers more of the image than this might as well be all of it."""

KEPT_FRAC = 0.5
"""An object of which less remains outside the region is no longer labelled."""


def region_mask(
    region: Region, size_wh: tuple[int, int], name: str, instances: Instances | None
) -> Mask | None:
    """Return the part of an image that is painted over.

    Args:
        region: How to find it.
        size_wh: Width and height of the image in pixels.
        name: The image's file name without the ending, by which a folder of masks is searched.
        instances: The objects in it: its labels, or, for ``region.detector``, what the detector found. None
            where unknown.

    Returns:
        bool (H, W); None where there is nothing to paint over: no object of the class, or too little room.

    Raises:
        DiffugenError: The mask image is missing, unreadable or of another size.
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
    """Return the part of an image shown to the model, so that small regions get as many pixels as large.

    Args:
        region: bool (H, W), what is painted over.
        context_frac: Pixels around it on each side, relative to its own width and height.
        proportions_wh: The window is widened or heightened to these proportions as far as the image goes, so
            that windows of different regions are worked on at one size, and in one batch.

    Returns:
        Left, upper, right and lower edge in pixels; None for all of the image.
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
    """Return where a mask image or a folder of masks lies.

    Raises:
        DiffugenError: There is none.
    """
    found = Path(path).expanduser()
    if not found.exists():
        raise DiffugenError(
            f"no mask image at {found}; give an image that is bright where it is painted over"
        )
    return found


def outside(instances: Instances, region: Mask) -> Instances:
    """Return what is left of objects outside a region; those of which less than half is left are gone.

    Args:
        instances: The objects of the source.
        region: bool (H, W), what was painted over.
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
        # The last pixel's centre lies half a pixel before the edge.
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
        raise DiffugenError(
            f"no mask for {name!r} in {path}: expected {name}.png, bright where it is painted over"
        )
    return found


def _read_mask(path: Path, size_wh: tuple[int, int]) -> Mask:
    mask = read_image(path).max(axis=2) >= 128
    if mask.shape != (size_wh[1], size_wh[0]):
        raise DiffugenError(
            f"the mask {path} has {mask.shape[1]}x{mask.shape[0]} pixels, the image "
            f"{size_wh[0]}x{size_wh[1]}; they must be "
            "of one size"
        )
    return np.asarray(mask)
