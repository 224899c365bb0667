"""Convert masks between arrays, COCO RLE, polygons and boxes, and compare them by area and IoU.

Knows no heat maps, classes or scores. A mask stays one instance, whatever holes and pieces it has.

Coordinates are continuous: pixel column ``i`` spans ``[i, i + 1)``, so a mask that covers columns 3 to 5 has
a box from x0 = 3 to x1 = 6. Polygons run through the *centres* of the border pixels (3.5 and 5.5 here).
Truncated to integers they are the border pixels themselves, so rasterisers that fill polygons including their
outline, such as cv2's and therefore YOLO's, reproduce the mask exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from diffugen.records import RLE


class Outline(NamedTuple):
    """One piece of a mask: its outer ring and its holes, each float32 (P, 2) in px.

    A piece that is one pixel wide has P < 3.
    """

    outer: NDArray[np.float32]
    holes: tuple[NDArray[np.float32], ...] = ()


def encode(mask: NDArray[np.bool_]) -> RLE:
    """Return the compressed COCO RLE of a bool (h, w) mask; ``counts`` is a str, so the RLE is valid JSON."""
    if mask.ndim != 2:
        raise ValueError(f"a mask must have two axes (h, w), got shape {mask.shape}")
    # RLE is column-major; cv2 transposes several times faster than numpy copies to column order.
    columns = (
        cv2.transpose(np.ascontiguousarray(mask).view(np.uint8)).T if mask.size else np.asfortranarray(mask)
    )
    rle = coco.encode(columns[:, :, None])[0]
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode(rle: RLE) -> NDArray[np.bool_]:
    """Return the bool (h, w) mask of an RLE."""
    # As in `encode`; cv2 transposes no array without pixels.
    columns = coco.decode(rle).T
    return (cv2.transpose(columns) if columns.size else np.ascontiguousarray(columns.T)).view(np.bool_)


def cropped(rle: RLE) -> tuple[NDArray[np.bool_], tuple[int, int]]:
    """Return the part of a mask inside its box, bool (h, w), and the left upper corner of the box in px."""
    left, upper, right, lower = boxes([rle])[0].astype(int).tolist()
    part = coco.decode(rle)[upper:lower, left:right]
    return np.ascontiguousarray(part).view(np.bool_), (left, upper)


def areas(rles: Sequence[RLE]) -> NDArray[np.int64]:
    """Return the areas of N masks in pixels, int64 (N,)."""
    return np.asarray(coco.area(list(rles)) if rles else [], dtype=np.int64).reshape(-1)


def boxes(rles: Sequence[RLE]) -> NDArray[np.float64]:
    """Return the xyxy boxes of N masks, float64 (N, 4) in px; zeros for an empty mask."""
    if not rles:
        return np.zeros((0, 4))
    xywh = np.asarray(coco.toBbox(list(rles)), dtype=np.float64).reshape(-1, 4)
    return np.hstack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]])


def iou_matrix(first: Sequence[RLE], second: Sequence[RLE]) -> NDArray[np.float64]:
    """Return the mask IoU of N with M masks, float64 (N, M) in [0, 1]; 0 wherever a mask is empty.

    Raises:
        ValueError: The masks differ in size.
    """
    sizes = {tuple(rle["size"]) for rle in [*first, *second]}
    if len(sizes) > 1:
        raise ValueError(
            f"masks of different sizes (h, w) cannot be compared: {sorted(sizes)}; rescale them first"
        )
    if not first or not second:
        return np.zeros((len(first), len(second)))
    ious = coco.iou(list(first), list(second), [0] * len(second))
    return np.asarray(ious, dtype=np.float64).reshape(len(first), len(second))


def polygons(rle: RLE) -> list[NDArray[np.float32]]:
    """Return the outer rings of a mask's pieces, float32 (P, 2) px each, as in the paper.

    These are external contours in simple chain approximation: lossless except for holes, which are filled.
    """
    return _rings(rle, cv2.RETR_EXTERNAL)[0]


def outlines(rle: RLE) -> list[Outline]:
    """Return the pieces of a mask with their holes, lossless; an island in a hole is a piece of its own."""
    rings, parents = _rings(rle, cv2.RETR_CCOMP)
    return [
        Outline(ring, tuple(hole for hole, owner in zip(rings, parents, strict=True) if owner == index))
        for index, ring in enumerate(rings)
        if parents[index] < 0
    ]


def mask_from_polygons(rings: Sequence[NDArray[np.floating]], size_wh: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the bool (height, width) union of filled polygons, each (P, 2) px; the inverse of `polygons`."""
    return mask_from_outlines([Outline(np.asarray(ring, dtype=np.float32)) for ring in rings], size_wh)


def mask_from_outlines(pieces: Sequence[Outline], size_wh: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the bool (height, width) union of outlines, holes left out; the inverse of `outlines`."""
    width, height = size_wh
    pixels = np.zeros((height, width), dtype=np.uint8)
    # Largest box first, so that a piece inside the hole of another is drawn after that hole.
    for piece in sorted(
        pieces, key=lambda piece: -math.prod(np.ptp(piece.outer, axis=0)) if len(piece.outer) else 0
    ):
        if not len(piece.outer):
            continue
        cv2.fillPoly(pixels, [_pixel_indices(piece.outer)], 1)
        for ring in map(_pixel_indices, piece.holes):
            cv2.fillPoly(pixels, [ring], 0)
            # The ring around a hole consists of pixels of the object.
            cv2.polylines(pixels, [ring], True, 1)
    return pixels.view(np.bool_)


def rescale(rle: RLE, size_wh: tuple[int, int]) -> RLE:
    """Return the mask at another image size.

    Each pixel takes the value of the nearest one; if a side shrinks, it is set where the mask covers at least
    half of it.
    """
    mask = decode(rle).view(np.uint8)
    width, height = size_wh
    if width >= mask.shape[1] and height >= mask.shape[0]:
        return encode(cv2.resize(mask, size_wh, interpolation=cv2.INTER_NEAREST_EXACT).view(np.bool_))
    return encode(cv2.resize(mask.astype(np.float32), size_wh, interpolation=cv2.INTER_AREA) >= 0.5 - 1e-6)


def placed(rle: RLE, window: Sequence[int], size_wh: tuple[int, int]) -> RLE:
    """Return the mask of a part of an image as one of the image, which is nowhere decoded.

    Args:
        rle: The mask, as large as the part.
        window: Left, upper, right and lower edge of the part in pixels.
        size_wh: Width and height of the image in pixels.

    Raises:
        ValueError: Mask and window differ in size, or the window leaves the image.
    """
    (left, upper, right, lower), (width, height) = window, size_wh
    if list(rle["size"]) != [lower - upper, right - left] or not (
        0 <= left <= right <= width and 0 <= upper <= lower <= height
    ):
        raise ValueError(f"a mask of size (h, w) = {rle['size']} in {tuple(window)} of an image of {size_wh}")
    rows_between = np.pad(decode(rle), ((1, 1), (0, 0))).view(np.int8)
    columns, rows = np.nonzero(np.diff(rows_between, axis=0).T)
    # Where runs begin and end. A run that goes on in the next column ends where that one begins.
    places, times = np.unique((left + columns) * height + upper + rows, return_counts=True)
    places = places[(times == 1) & (places < width * height)]
    runs = np.diff(np.concatenate([[0], places, [width * height]])).tolist()
    whole = coco.frPyObjects({"size": [height, width], "counts": runs}, height, width)
    return {"size": [height, width], "counts": whole["counts"].decode("ascii")}


def union(rles: Sequence[RLE]) -> RLE:
    """Return the pixels of one or more masks of one size as one mask."""
    whole = coco.merge(list(rles))
    return {"size": [int(side) for side in whole["size"]], "counts": whole["counts"].decode("ascii")}


def _rings(rle: RLE, mode: int) -> tuple[list[NDArray[np.float32]], list[int]]:
    part, corner = cropped(rle)
    if not part.size:
        return [], []
    contours, hierarchy = cv2.findContours(part.view(np.uint8), mode, cv2.CHAIN_APPROX_SIMPLE, offset=corner)
    rings = [contour.reshape(-1, 2).astype(np.float32) + np.float32(0.5) for contour in contours]
    return rings, ([] if hierarchy is None else hierarchy[0, :, 3].tolist())


def _pixel_indices(ring: NDArray[np.floating]) -> NDArray[np.int32]:
    return np.asarray(np.floor(ring), dtype=np.int32)
