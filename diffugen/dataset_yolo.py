"""Read a labelled set in the YOLO-seg layout, whoever wrote it; a set of ours comes back exactly.

Knows label rows and images; not where `data.yaml` points (`diffugen.dataset_layout`), or what the objects are good for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffugen.dataset import row_digest
from diffugen.dataset_folder import Item
from diffugen.dataset_layout import exact_of, label_of, read_layout
from diffugen.dataset_shapes import rle_from_box, rle_from_coco, rle_from_rings
from diffugen.errors import DiffugenError
from diffugen.records import RLE, Instances

_ROUNDING = 0.01
"""Coordinates may lie outside [0, 1] by this much: what YOLO's own reader lets pass. They are cut to the image."""

Kept = tuple[RLE | None, float, Mapping[str, float]]
"""Mask (None if it is of another image size), score and score terms of an object."""


def read_yolo(dataset: Path, split: str | None = None) -> Iterator[Item]:
    """Yield the images of a set in the YOLO-seg layout with their objects, one in memory at a time, in the order of paths.

    Each row of a label file is an object: a class number and a polygon in parts of the image's width and height. A row of
    four numbers after the class number is a box (centre, width, height): **its object is the filled rectangle**. An image
    without a label file has no objects. Where `diffugen.dataset.write_yolo` made the set, rows that nobody has edited since
    give back the very masks (holes, pieces), scores and score terms; for an edited or added row its text counts, with
    score 1.

    Args:
        dataset: The set's folder, or its ``data.yaml``.
        split: ``train``, ``val`` or ``test``; None for every image of all of them, once.

    Raises:
        DiffugenError: If the set or the split is not there, when called; for an unreadable image or a broken label row,
            with file and line, when it is reached.
    """
    layout = read_layout(Path(dataset))
    return _items(layout.images(split), layout.class_names)


def read_image(path: Path) -> NDArray[np.uint8]:
    """Return an image file's pixels, uint8 (H, W, 3) RGB, turned the way it is meant to be seen.

    Raises:
        DiffugenError: If it cannot be read.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            return np.array(ImageOps.exif_transpose(image).convert("RGB"), dtype=np.uint8)
    except Exception as error:  # Pillow raises a dozen unrelated kinds over damaged bytes
        raise DiffugenError(
            f"cannot read the image {path} ({error}); replace it, or remove it and its labels"
        ) from error


def _items(images: list[tuple[str, Path]], names: Mapping[int, str]) -> Iterator[Item]:
    for name, path in images:
        rgb = read_image(path)
        yield name, rgb, _read_instances(path, names, (rgb.shape[1], rgb.shape[0]))


def _read_instances(image: Path, names: Mapping[int, str], size_wh: tuple[int, int]) -> Instances:
    label = label_of(image)
    rows = _read_rows(label)
    kept = _read_kept(exact_of(image), size_wh) if rows else {}
    found: list[tuple[str, RLE, float, Mapping[str, float]]] = []
    for number, row in rows.items():
        try:
            class_name, values = _parsed(row, names)
            same = kept.get(row_digest(row))
            # Two objects can have the same text; each row takes one.
            rle, score, term_values = same.pop(0) if same else (None, 1.0, {})
            found.append((class_name, rle or _drawn(values, size_wh), score, term_values))
        except ValueError as error:
            raise DiffugenError(f"{label}, line {number}: {error}") from error
    class_names, rles, scores, terms = zip(*found, strict=True) if found else ((), (), (), ())
    return Instances(size_wh, tuple(class_names), tuple(rles), np.array(scores), tuple(terms))


def _read_rows(label: Path) -> dict[int, str]:
    """The rows of a label file that are not blank, by line number."""
    try:
        lines = label.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise DiffugenError(f"cannot read the labels {label} ({error})") from error
    return {number: line for number, line in enumerate(lines, 1) if line.strip()}


def _parsed(row: str, names: Mapping[int, str]) -> tuple[str, NDArray[np.float64]]:
    """Class name and coordinates of a row."""
    try:
        number, *coordinates = map(float, row.split())
    except ValueError:
        raise ValueError(_shape_of(row)) from None
    values = np.array(coordinates)
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        raise ValueError(_shape_of(row))
    if number not in names:
        raise ValueError(f"class number {number:g}; data.yaml names {min(names)} to {max(names)}")
    outside = values[~((values >= -_ROUNDING) & (values <= 1 + _ROUNDING))]
    if len(outside):
        raise ValueError(f"coordinate {outside[0]:g}; expected parts of the image's width and height, in [0, 1]")
    return names[int(number)], values


def _shape_of(row: str) -> str:
    some = row if len(row) <= 40 else f"{row[:40]}..."
    return f"expected a class number and x y of at least three points, or a box's cx cy w h; got {some!r}"


def _drawn(values: NDArray[np.float64], size_wh: tuple[int, int]) -> RLE:
    if len(values) > 4:
        return rle_from_rings([values.reshape(-1, 2).clip(0, 1) * size_wh], size_wh)
    centre, size = values.reshape(2, 2) * size_wh
    return rle_from_box([*(centre - size / 2), *(centre + size / 2)], size_wh)


def _read_kept(file: Path | None, size_wh: tuple[int, int]) -> dict[str, list[Kept]]:
    """What the writer kept of an image's objects, by the digest of their label rows."""
    if file is None or not file.is_file():
        return {}
    kept: dict[str, list[Kept]] = {}
    try:
        for entry in json.loads(file.read_text(encoding="utf-8")):
            kept.setdefault(entry["row"], []).append(_kept(entry, size_wh))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DiffugenError(
            f"{file} does not hold the exact objects it should ({error!r}); remove it to read the label text alone"
        ) from error
    return kept


def _kept(entry: Mapping[str, Any], size_wh: tuple[int, int]) -> Kept:
    rle = entry["segmentation"]
    of_this_size = rle["size"] == [size_wh[1], size_wh[0]]
    score = float(entry["score"])
    if not 0 <= score <= 1:
        raise ValueError(f"score {score}")
    return rle_from_coco(rle, size_wh) if of_this_size else None, score, dict(entry.get("terms", {}))
