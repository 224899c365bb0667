"""Label errors planted into exact labels: seven kinds, each as an annotator or a heat map might make them."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from diffugen.labels.shapes import areas, decode, encode
from diffugen.records import Instances

KINDS = ("dropped", "spurious", "shifted", "eroded", "dilated", "swapped", "merged")


def plant(labels: Instances, kind: str, class_names: tuple[str, ...], rng: np.random.Generator) -> Instances:
    """Return labels with one error of a kind; unchanged if they have no object that could get it.

    Args:
        labels: Exact labels of an image.
        kind: One of `KINDS`.
        class_names: Classes that a swapped or spurious object can get.
        rng: Chooses the object and the error.
    """
    count = len(labels)
    if kind == "spurious":
        return labels.joined(_spurious(labels, class_names, rng))
    if count < (2 if kind == "merged" else 1):
        return labels
    index = int(rng.integers(count))
    if kind == "dropped":
        return labels.take([other for other in range(count) if other != index])
    if kind == "merged":
        other = (index + 1) % count
        both = decode(labels.rles[index]) | decode(labels.rles[other])
        kept = labels.take([number for number in range(count) if number != other])
        return _with(kept, index - (other < index), both, labels.class_names[index])
    name = labels.class_names[index]
    if kind == "swapped":
        name = str(rng.choice([other for other in class_names if other != name]))
        return _with(labels, index, decode(labels.rles[index]), name)
    return _with(labels, index, _distorted(decode(labels.rles[index]), kind, rng), name)


def _distorted(mask: NDArray[np.bool_], kind: str, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return a mask shifted, eroded or dilated until its IoU with the true one falls below .5."""
    pixels = mask.astype(np.uint8)
    angle, height, width = rng.uniform(0, 2 * np.pi), *mask.shape
    found = pixels
    for step in range(1, max(mask.shape)):
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * step + 1,) * 2)
        if kind == "shifted":
            moved = np.array([[1, 0, step * np.cos(angle)], [0, 1, step * np.sin(angle)]], np.float32)
            found = cv2.warpAffine(pixels, moved, (width, height), flags=cv2.INTER_NEAREST)
        else:
            found = cv2.erode(pixels, disc) if kind == "eroded" else cv2.dilate(pixels, disc)
        if not found.any():
            return mask
        if (found & pixels).sum() < 0.5 * (found | pixels).sum():
            break
    return found.astype(bool)


def _spurious(labels: Instances, class_names: tuple[str, ...], rng: np.random.Generator) -> Instances:
    """Return an ellipse of the size of an object, somewhere."""
    width, height = labels.size_wh
    sizes = areas(labels.rles)
    side = float(np.sqrt(sizes.mean() if len(sizes) else 0.06 * width * height))
    mask = np.zeros((height, width), np.uint8)
    centre = int(rng.uniform(0.15, 0.85) * width), int(rng.uniform(0.3, 0.85) * height)
    axes = max(2, int(side * rng.uniform(0.4, 0.8))), max(2, int(side * rng.uniform(0.3, 0.6)))
    cv2.ellipse(mask, centre, axes, 0, 0, 360, 1, -1)
    return Instances(labels.size_wh, (str(rng.choice(class_names)),), (encode(mask > 0),), np.ones(1))


def _with(labels: Instances, index: int, mask: NDArray[np.bool_], name: str) -> Instances:
    names, rles = list(labels.class_names), list(labels.rles)
    names[index], rles[index] = name, encode(mask)
    return Instances(labels.size_wh, tuple(names), tuple(rles), labels.scores)
