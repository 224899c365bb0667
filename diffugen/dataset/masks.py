"""Convert the masks of label files: polygons, boxes and run lengths to RLE, and RLE to a single YOLO polygon.

Knows points and run lengths; does not know classes, images or files. A mistake is a ValueError that says what
is wrong; the reader of the file adds where. A pixel belongs to a polygon if its centre is inside (even-odd
rule), as in COCO's own rasteriser.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from diffugen.labels import shapes
from diffugen.records import RLE
from diffugen.run.rle import check_rle

_FARTHEST = 1e12
"""No coordinate is as far from the image; C code takes larger ones for anything."""


def rle_from_rings(rings: Sequence[NDArray[np.float64]], size_wh: tuple[int, int]) -> RLE:
    """Return the union of filled rings, each (P, 2) px with P >= 3, clipped to the image.

    If the rings are too thin to contain any pixel centre, the mask has the pixels that they cross.

    Raises:
        ValueError: All rings lie outside the image, or a coordinate is not one of any image.
    """
    width, height = size_wh
    if not all((np.abs(ring) < _FARTHEST).all() for ring in rings):  # false for NaN, too
        raise ValueError(f"a coordinate is not a number between -{_FARTHEST:g} and {_FARTHEST:g}")
    size = np.array(size_wh, dtype=np.float64)
    inside = [_clipped(ring, size) for ring in rings]
    if not any(map(len, inside)):
        raise ValueError(f"it lies outside the image of {width} x {height} px")
    flat = [ring.ravel().tolist() for ring in inside if len(ring) >= 3]
    rle = _text_form(coco.merge(coco.frPyObjects(flat, height, width))) if flat else None
    if rle is not None and coco.area(rle):
        return rle
    return shapes.encode(shapes.mask_from_polygons([_clipped(ring, size - 0.5) for ring in inside], size_wh))


def _clipped(ring: NDArray[np.float64], size: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the part of a filled ring in the image (Sutherland and Hodgman 1974), (P, 2) px, maybe empty.

    Its pieces stay joined along the border of the image, where they enclose nothing.
    """
    if (ring >= 0).all() and (ring <= size).all():
        return ring
    for axis, sign, limit in ((0, 1, 0.0), (0, -1, -size[0]), (1, 1, 0.0), (1, -1, -size[1])):
        depth = sign * ring[:, axis] - limit  # at least 0 on the side to keep
        kept: list[NDArray[np.float64]] = []
        for index, point in enumerate(ring):
            before = depth[index - 1]
            if (depth[index] >= 0) != (before >= 0):
                crossing = ring[index - 1] + (point - ring[index - 1]) * (before / (before - depth[index]))
                crossing[axis] = sign * limit
                kept.append(crossing)
            if depth[index] >= 0:
                kept.append(point)
        ring = np.array(kept, dtype=np.float64).reshape(-1, 2)
    return ring


def rle_from_box(xyxy: Sequence[float], size_wh: tuple[int, int]) -> RLE:
    """Return the filled rectangle of a box in px, clipped to the image.

    Raises:
        ValueError: The box has no area, or lies outside the image.
    """
    x0, y0, x1, y1 = xyxy
    if not (x1 > x0 and y1 > y0):
        raise ValueError(f"a box of {x1 - x0:g} x {y1 - y0:g} px has no area")
    return rle_from_rings([np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])], size_wh)


def rle_from_coco(value: Any, size_wh: tuple[int, int]) -> RLE:
    """Return a COCO RLE, compressed or not, in compressed form, after checking that it covers the image.

    Raises:
        ValueError: It is damaged, or its size is not that of the image.
    """
    try:
        size, counts = [int(side) for side in value["size"]], value["counts"]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"not a run-length encoding with 'size' and 'counts' ({error})") from error
    check_rle(size, counts, size_wh)  # pycocotools reads past its buffer if the runs do not fit
    if isinstance(counts, str):
        return {"size": size, "counts": counts}
    return _text_form(coco.frPyObjects({"size": size, "counts": counts}, *size))


def rings_from_lists(lists: Sequence[Sequence[float]]) -> list[NDArray[np.float64]]:
    """Return COCO polygons, each ``[x, y, x, y, ...]`` in px, as float64 (P, 2) arrays.

    Raises:
        ValueError: A polygon has fewer than three points, an odd number of values, or a value that is not a
            number.
    """
    rings = []
    for values in lists:
        try:
            points = np.array(values, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError("a polygon has a value that is not a number") from error
        if points.ndim != 1 or len(points) < 6 or len(points) % 2 or not np.isfinite(points).all():
            raise ValueError(
                f"a polygon has {points.size} numbers; expected x and y of at least three points"
            )
        rings.append(points.reshape(-1, 2))
    return rings


def yolo_polygon(rle: RLE) -> NDArray[np.float64]:
    """Return a single ring, (P, 2) px, for a mask with all its pieces and holes; empty for an empty mask.

    Holes and further pieces are joined by bridges of zero width, there and back, between the nearest points.
    YOLO's rasteriser fills by the even-odd rule, so holes stay open; a bridge between pieces leaves a line
    one pixel wide. The ring follows the outer edge of the border pixels, not their centres, so that small
    objects keep their size when the image is scaled.
    """
    height, width = rle["size"]
    fine = max(2, min(4, 1024 // max(height, width, 1)))
    part, corner = shapes.cropped(rle)  # whole, the mask of a large image would fill the memory
    enlarged = np.kron(part, np.ones((fine, fine), dtype=np.bool_))
    pieces = shapes.outlines(shapes.encode(enlarged))
    if not pieces:
        return np.zeros((0, 2))
    rings = [
        _join([piece.outer, *piece.holes]) for piece in sorted(pieces, key=lambda piece: -len(piece.outer))
    ]
    return _join(rings).astype(np.float64) / fine + corner


def _text_form(rle: dict[str, Any]) -> RLE:
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def _join(rings: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Join rings into one, the nearest first."""
    joined, rest = rings[0], list(rings[1:])
    bridges = [_bridge(joined, ring) for ring in rest]
    while rest:
        nearest = min(range(len(rest)), key=lambda index: bridges[index][0])
        ring, (_, anchor, entry) = rest.pop(nearest), bridges.pop(nearest)
        at = int(np.flatnonzero((joined == anchor).all(axis=1))[0])
        joined = np.concatenate([joined[: at + 1], ring[entry:], ring[: entry + 1], joined[at:]])
        found = [_bridge(ring, other) for other in rest]
        bridges = [min(pair, key=lambda bridge: bridge[0]) for pair in zip(bridges, found, strict=True)]
    return joined


def _bridge(start: NDArray[np.float32], end: NDArray[np.float32]) -> tuple[float, NDArray[np.float32], int]:
    """Return the shortest bridge of two rings: squared length, point of ``start``, and index into ``end``."""
    distances = ((start[:, None] - end[None]) ** 2).sum(axis=2)
    at, entry = np.unravel_index(int(distances.argmin()), distances.shape)
    return float(distances[at, entry]), start[at], int(entry)
