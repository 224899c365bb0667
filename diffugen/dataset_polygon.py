"""Draw a mask as the one ring that a row of YOLO text holds. Knows masks and points; no classes, scores or files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from diffugen.labels import shapes
from diffugen.records import RLE


def yolo_polygon(rle: RLE) -> NDArray[np.float64]:
    """Return one ring, (P, 2) px, that stands for a mask with all its pieces and holes; empty for an empty mask.

    Each hole and each further piece is reached by a bridge of no width, there and back, from the nearest point of what is
    joined already; filled by the even-odd rule, as YOLO's rasteriser does it, holes stay open. A bridge between pieces draws
    a line one pixel wide. The ring runs close to the outer edge of the border pixels instead of through their centres, so
    that small objects keep their size when the image is scaled.
    """
    height, width = rle["size"]
    fine = max(2, min(4, 1024 // max(height, width, 1)))
    pieces = shapes.outlines(shapes.rescale(rle, (width * fine, height * fine)))
    if not pieces:
        return np.zeros((0, 2))
    rings = [_join([piece.outer, *piece.holes]) for piece in sorted(pieces, key=lambda piece: -len(piece.outer))]
    return _join(rings).astype(np.float64) / fine


def _join(rings: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Make one ring of several, the nearest first."""
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
    """The shortest way between two rings: squared length, the point of ``start``, the index into ``end``."""
    distances = ((start[:, None] - end[None]) ** 2).sum(axis=2)
    at, entry = np.unravel_index(int(distances.argmin()), distances.shape)
    return float(distances[at, entry]), start[at], int(entry)
