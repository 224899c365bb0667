"""Cut a large image into overlapping tiles, and join what was found in each of them and in the whole image.

As in SAHI (Akyon et al. 2022, "Slicing Aided Hyper Inference and Fine-tuning for Small Object Detection",
section 3), small objects are found in tiles, and those that are larger than a tile in the whole image, scaled
down. SAHI keeps the most confident of boxes that overlap, so an object that every tile cuts off loses a part;
here, such parts are joined. Knows windows, masks, classes and confidences; does not know who found them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from diffugen.labels.objects import SAME_OBJECT_IOU, contained
from diffugen.labels.shapes import areas, boxes, decode, encode, iou_matrix, placed, rescale, union
from diffugen.records import RLE, Instances

Window = tuple[int, int, int, int]
"""Left, upper, right and lower edge of a part of an image, in pixels."""

OVERLAP_FRAC = 0.2
"""Neighbouring tiles share at least this part of their side: every smaller object is whole in one of them."""

CUT_FRAC = 0.02
"""A mask this close to an inner edge of its tile, relative to the tile's side, counts as cut off: masks of
detectors end a few pixels early."""

COVERED_FRAC = 0.5
"""An object of which others of its class, seen whole, cover at least this share is several of them."""


def tile_windows(size_wh: tuple[int, int], side: int) -> list[Window]:
    """Return the windows of the tiles that cover an image, row by row.

    They are squares of the given side, spread evenly, or as high or wide as the image where that is less.

    Args:
        size_wh: Width and height of the image in pixels.
        side: Side of a tile in pixels.

    Example:
        >>> tile_windows((160, 90), 100)
        [(0, 0, 100, 90), (60, 0, 160, 90)]
    """
    columns, rows = (_starts(length, side) for length in size_wh)
    width, height = (min(side, length) for length in size_wh)
    return [(x, y, x + width, y + height) for y in rows for x in columns]


def _starts(length: int, side: int) -> list[int]:
    steps = math.ceil(max(0, length - side) / (side * (1 - OVERLAP_FRAC)))
    return [round(step * (length - side) / steps) for step in range(steps + 1)] if steps else [0]


def scaled_down(rgb: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Return an image, uint8 (H, W, 3), scaled down so that its longer side has that many pixels."""
    height, width = rgb.shape[:2]
    scale = side / max(height, width)
    size_wh = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(cv2.resize(rgb, size_wh, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def merged(
    size_wh: tuple[int, int], whole: Instances, tiles: Sequence[tuple[Window, Instances]]
) -> Instances:
    """Return the objects of an image, each once, from what was found in it and in its tiles.

    Two windows show the same object if its masks have an IoU of at least `SAME_OBJECT_IOU` where both windows
    look. Its mask comes from the tile that shows it whole, with the most confidence; if every tile cuts it
    off, it consists of all its parts, and of what the whole image shows beyond their tiles.

    Of objects of one class that overlap like duplicates (see `diffugen.labels.objects`) and do not come from
    the same window, one stays: first those that are too large for a tile, then those that a tile shows whole,
    then the others, each in order of confidence. What no tile shows whole is dropped if it is covered by
    objects that tiles show whole: in a coarse view, or at an edge, several look like one.

    Args:
        size_wh: Width and height of the image in pixels.
        whole: What was found in the image, scaled down or not.
        tiles: The windows of `tile_windows`, each with what was found in it, with confidences as scores.

    Returns:
        Masks of the image's size, most confident first. An object has the highest confidence that it was
        found with. The objects of ``whole``, scaled up, if there are no tiles.

    Raises:
        ValueError: A tile's masks are not of its size.
    """
    windows = np.array([(0, 0, *size_wh), *(window for window, _ in tiles)])
    parts = [
        tuple(rescale(rle, size_wh) for rle in whole.rles),
        *(tuple(placed(rle, window, size_wh) for rle in found.rles) for window, found in tiles),
    ]
    views = [whole, *(found for _, found in tiles)]
    seen = Instances(
        size_wh,
        tuple(name for view in views for name in view.class_names),
        tuple(rle for part in parts for rle in part),
        np.concatenate([view.scores for view in views]),
        rivals=tuple(one for view in views for one in view.rivals),
    )
    origins = np.repeat(np.arange(len(views)), [len(view) for view in views])
    objects = [_joined(seen, members, origins, windows) for members in _groups(seen, origins, windows)]
    kept = [one for name in dict.fromkeys(seen.class_names) for one in _settled(objects, name, windows)]
    kept.sort(key=lambda one: -one.score)
    return Instances(
        size_wh,
        tuple(one.class_name for one in kept),
        tuple(one.rle for one in kept),
        np.array([one.score for one in kept]),
        rivals=tuple(one.rivals for one in kept),
    )


@dataclass(frozen=True)
class _Object:
    """An object, as all windows together show it.

    Attributes:
        class_name: Its class.
        rle: Its mask, of the image's size.
        score: Its highest confidence.
        rivals: As in `Instances`.
        origins: The windows that show it.
        whole: Whether a tile shows it whole.
    """

    class_name: str
    rle: RLE
    score: float
    rivals: dict[str, float]
    origins: frozenset[int]
    whole: bool


def _groups(seen: Instances, origins: NDArray[np.int_], windows: NDArray[np.int_]) -> Iterable[list[int]]:
    """Return the views of each object: views of the same object, and those of the same as these."""
    group = list(range(len(seen)))
    edges, names = boxes(seen.rles), np.array(seen.class_names, dtype=object)
    for first in range(len(seen)):
        later = slice(first + 1, None)
        meet = (edges[later, :2] < edges[first, 2:]).all(axis=1) & (edges[first, :2] < edges[later, 2:]).all(
            axis=1
        )
        candidates = meet & (names[later] == names[first]) & (origins[later] != origins[first])
        for second in (np.flatnonzero(candidates) + first + 1).tolist():
            pair = windows[origins[[first, second]]]
            shared = [*pair[:, :2].max(axis=0).tolist(), *pair[:, 2:].min(axis=0).tolist()]
            if _agree(seen.rles[first], seen.rles[second], shared, seen.size_wh):
                old, new = group[second], group[first]
                group = [new if one == old else one for one in group]
    members: dict[int, list[int]] = {}
    for index, number in enumerate(group):
        members.setdefault(number, []).append(index)
    return members.values()


def _agree(first: RLE, second: RLE, window: Sequence[int], size_wh: tuple[int, int]) -> bool:
    """Return whether two masks are of one object, judged by a window that both were found in."""
    left, upper, right, lower = window
    if left >= right or upper >= lower:
        return False
    frame = placed(encode(np.ones((lower - upper, right - left), dtype=np.bool_)), window, size_wh)
    shown = [coco.merge([rle, frame], intersect=True) for rle in (first, second)]
    return bool(iou_matrix(shown[:1], shown[1:])[0, 0] >= SAME_OBJECT_IOU)


def _joined(
    seen: Instances, members: Sequence[int], origins: NDArray[np.int_], windows: NDArray[np.int_]
) -> _Object:
    """Make one object of its views."""
    views = sorted(members, key=lambda index: -seen.scores[index])
    in_tiles = [index for index in views if origins[index] > 0]
    uncut = [
        index for index in in_tiles if _shows_whole(boxes([seen.rles[index]])[0], windows)[origins[index]]
    ]
    if uncut:
        rle = seen.rles[uncut[0]]
    else:
        beyond = [
            _without(seen.rles[index], windows[origins[in_tiles]]) for index in views if origins[index] == 0
        ]
        rle = union([*beyond[:1], *(seen.rles[index] for index in in_tiles)])
    rivals: dict[str, float] = {}
    for index in views:
        for name, confidence in seen.rivals[index].items():
            rivals[name] = max(confidence, rivals.get(name, 0.0))
    return _Object(
        class_name=seen.class_names[views[0]],
        rle=rle,
        score=float(seen.scores[views[0]]),
        rivals=rivals,
        origins=frozenset(origins[views].tolist()),
        whole=bool(uncut),
    )


def _shows_whole(box: NDArray[np.float64], windows: NDArray[np.int_]) -> NDArray[np.bool_]:
    """Return which of K windows, int (K, 4), shows all of a box: bool (K,). The first is the image's own."""
    margin = np.maximum(1, CUT_FRAC * (windows[:, 2:] - windows[:, :2]).max(axis=1, keepdims=True))
    inner = windows != windows[0]
    room = np.hstack([box[:2] - windows[:, :2], windows[:, 2:] - box[2:]])
    return np.asarray((room >= np.where(inner, margin, 0)).all(axis=1))


def _without(rle: RLE, windows: NDArray[np.int_]) -> RLE:
    """Return a mask without its pixels in some windows."""
    mask = decode(rle)
    for left, upper, right, lower in windows:
        mask[upper:lower, left:right] = False
    return encode(mask)


def _settled(objects: Sequence[_Object], class_name: str, windows: NDArray[np.int_]) -> list[_Object]:
    """Return the objects of a class, without those that are duplicates or parts of others, or several."""
    ours = [one for one in objects if one.class_name == class_name]
    singles = [one.rle for one in ours if one.whole]
    if singles:
        cover = union(singles)
        ours = [one for one in ours if one.whole or _share(one.rle, cover) < COVERED_FRAC]

    def rank(one: _Object) -> tuple[int, float]:
        fits = _shows_whole(boxes([one.rle])[0], windows)[1:].any()
        return (1 if one.whole else 2 if fits else 0), -one.score

    ours.sort(key=rank)
    rles = [one.rle for one in ours]
    alike = contained(rles) | (iou_matrix(rles, rles) >= SAME_OBJECT_IOU)
    kept: list[int] = []
    for index, one in enumerate(ours):
        if not any(alike[index, other] and one.origins.isdisjoint(ours[other].origins) for other in kept):
            kept.append(index)
    return [ours[index] for index in kept]


def _share(rle: RLE, cover: RLE) -> float:
    """Return which share of a mask lies in another one, in [0, 1]."""
    return float(areas([coco.merge([rle, cover], intersect=True)])[0] / max(1, areas([rle])[0]))
