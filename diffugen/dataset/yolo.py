"""The YOLO-seg layout: write labelled images as a training set, find such a set again, and read one, whoever
wrote it.

A set of ours comes back exactly. Knows files and label rows; not where the labels come from, which of them
deserve to be trained on (`diffugen.dataset.policy`), or where `data.yaml` points
(`diffugen.dataset.yolo_layout`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from diffugen.dataset.files import (
    Item,
    check_plan,
    checked,
    read_image,
    whole_folder,
    write_image,
    write_text,
)
from diffugen.dataset.masks import rle_from_box, rle_from_coco, rle_from_rings, yolo_polygon
from diffugen.dataset.yolo_layout import (
    as_list,
    candidates,
    exact_of,
    label_of,
    list_images,
    read_about,
    read_layout,
)
from diffugen.errors import DiffugenError
from diffugen.records import RLE, Instances, content_id
from diffugen.run.codec import to_json


def write_yolo(folder: Path, splits: Mapping[str, Iterable[Item]], class_names: Sequence[str]) -> Path:
    """Write a training set: ``images/<split>``, ``labels/<split>``, ``instances/<split>`` and ``data.yaml``.

    The set appears as a whole or not at all; equal items give equal bytes; one image is in memory at a time.
    An image without objects gets an empty label file, so that it is trained on as background. YOLO text holds
    neither holes nor several pieces nor scores: `yolo_polygon` bridges the first two, and
    ``instances/<split>/<name>.json`` keeps everything for `diffugen.dataset.yolo.read_yolo`, a list with
    ``row`` (digest of the label row), ``segmentation`` (COCO RLE), ``score`` and, if there are any, ``terms``
    of each object. Masks without a pixel are left out. Without a ``val`` split, training validates on its own
    images.

    Args:
        folder: The set's folder; must not exist yet, or be empty.
        splits: Items of ``train``, and if wanted ``val`` and ``test``. No name may occur twice.
        class_names: The classes in the order of their numbers.

    Returns:
        The path of ``data.yaml``; the paths in it are relative to it, so that the folder can be moved.

    Raises:
        DiffugenError: If a split, class, name or image does not fit, or there is nothing to train on.
        StoreError: If the folder is in use or cannot be written.
    """
    folder = Path(folder)
    numbers = check_plan(splits, class_names)
    if "train" not in splits:
        raise DiffugenError(f"a training set needs a split 'train'; got only {', '.join(splits)}")
    names: set[str] = set()
    with whole_folder(folder) as partial:
        counts = {
            split: _write_split(partial, split, checked(items, numbers, names), numbers)
            for split, items in splits.items()
        }
        if not counts.get("train"):
            raise DiffugenError("a training set needs at least one image in its split 'train'; got none")
        paths = {"train": "images/train", "val": "images/train"} | {
            split: f"images/{split}" for split in splits
        }
        about = {**paths, "names": dict(enumerate(class_names))}
        write_text(partial / "data.yaml", yaml.safe_dump(about, sort_keys=False, allow_unicode=True))
    return folder / "data.yaml"


def find_yolo(dataset: Path) -> Path:
    """Return the ``data.yaml`` of a training set in the YOLO-seg layout after checking that it can be trained
    on.

    Args:
        dataset: The set's folder, or its ``data.yaml``; not necessarily one that `write_yolo` made.

    Raises:
        DiffugenError: If there is no such set, an image folder is missing, or no training image has a
            labelled object.
    """
    file, about = read_about(dataset)
    missing_keys = [key for key in ("train", "val", "names") if not about.get(key)]
    if missing_keys:
        raise DiffugenError(f"{file} is no training set: it lacks {', '.join(map(repr, missing_keys))}")
    # What trains takes a relative path from the working folder, so this does too.
    root = Path(about.get("path") or file.parent)
    entries = {
        split: [_entry(root, str(part)) for part in as_list(about[split])] for split in ("train", "val")
    }
    missing = [str(path) for paths in entries.values() for path in paths if not path.exists()]
    if missing:
        raise DiffugenError(f"{file} names image folders that do not exist: {', '.join(missing)}")
    images = [image for path in entries["train"] for image in list_images(path)]
    if not any(_is_labelled(image) for image in images):
        raise DiffugenError(
            f"nothing to train on in {file}: of {len(images)} training images none has a labelled object"
        )
    return file.resolve()


def row_digest(row: str) -> str:
    """Return 16 hex digits of a label row's text, spaces apart; they tell whether the row was edited."""
    return content_id(" ".join(row.split()))


def _entry(root: Path, part: str) -> Path:
    paths = list(candidates(root, part))
    return next((path for path in paths if path.exists()), paths[0])


def _is_labelled(image: Path) -> bool:
    label = label_of(image)
    return label.is_file() and bool(label.read_bytes().strip())


def _write_split(folder: Path, split: str, items: Iterable[Item], numbers: Mapping[str, int]) -> int:
    """Write the items of one split and return how many they are."""
    count = 0
    for name, image, instances in items:
        rows = list(_rows(instances, numbers))
        write_image(folder / "images" / split / f"{name}.png", image)
        write_text(folder / "labels" / split / f"{name}.txt", "".join(f"{row}\n" for row in rows))
        if rows:
            write_text(folder / "instances" / split / f"{name}.json", _exact(rows, instances))
        count += 1
    return count


def _rows(instances: Instances, numbers: Mapping[str, int]) -> Iterator[str]:
    for name, rle in zip(instances.class_names, instances.rles, strict=True):
        ring = yolo_polygon(rle)
        # A row of fewer than three points would be read as a box.
        ring = np.concatenate([ring, np.repeat(ring[-1:], max(0, 3 - len(ring)), axis=0)]) / instances.size_wh
        yield f"{numbers[name]} " + " ".join(f"{value:.6f}" for value in ring.ravel().tolist())


def _exact(rows: Sequence[str], instances: Instances) -> str:
    objects = zip(rows, instances.rles, instances.scores.tolist(), instances.terms, strict=True)
    lines = []
    for row, rle, score, terms in objects:
        kept = {"row": row_digest(row), "segmentation": rle, "score": score}
        if terms:
            kept["terms"] = {term: float(value) for term, value in terms.items()}
        lines.append(to_json(kept))
    return "[\n" + ",\n".join(lines) + "\n]\n"


_ROUNDING = 0.01
"""Coordinates may lie outside [0, 1] by this much: what YOLO's own reader lets pass. They are cut to the
image."""

Kept = tuple[RLE | None, float, Mapping[str, float]]
"""Mask (None if it is of another image size), score and score terms of an object."""


def read_yolo(dataset: Path, split: str | None = None) -> Iterator[Item]:
    """Yield the images of a set in the YOLO-seg layout with their objects, one in memory at a time, in the
    order of paths.

    Each row of a label file is an object: a class number and a polygon in parts of the image's width and
    height. A row of four numbers after the class number is a box (centre, width, height): **its object is the
    filled rectangle**. An image without a label file has no objects. Where `diffugen.dataset.yolo.write_yolo`
    made the set, rows that nobody has edited since give back the very masks (holes, pieces), scores and score
    terms; for an edited or added row its text counts, with score 1.

    Args:
        dataset: The set's folder, or its ``data.yaml``.
        split: ``train``, ``val`` or ``test``; None for every image of all of them, once.

    Raises:
        DiffugenError: If the set or the split is not there, when called; for an unreadable image or a broken
            label row, with file and line, when it is reached.
    """
    layout = read_layout(Path(dataset))
    return _items(layout.images(split), layout.class_names)


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
        raise ValueError(
            f"coordinate {outside[0]:g}; expected parts of the image's width and height, in [0, 1]"
        )
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
            f"{file} does not hold the exact objects it should ({error!r}); remove it to read the label text "
            "alone"
        ) from error
    return kept


def _kept(entry: Mapping[str, Any], size_wh: tuple[int, int]) -> Kept:
    rle = entry["segmentation"]
    of_this_size = rle["size"] == [size_wh[1], size_wh[0]]
    score = float(entry["score"])
    if not 0 <= score <= 1:
        raise ValueError(f"score {score}")
    return rle_from_coco(rle, size_wh) if of_this_size else None, score, dict(entry.get("terms", {}))
