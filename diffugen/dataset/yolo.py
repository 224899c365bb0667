"""The YOLO-seg layout: write labelled images as a training set, find a training set, and read any such set.

A set written here is read back without loss. Knows files and label rows; does not know where labels come
from, which of them are fit for training (`diffugen.dataset.policy`), or what paths a ``data.yaml`` refers to
(`diffugen.dataset.yolo_layout`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffugen.config.foreign import as_path, parse_json, read_text
from diffugen.config.yaml_text import dump_yaml
from diffugen.dataset.files import (
    Item,
    OnMistake,
    check_plan,
    checked,
    read_image,
    whole_folder,
    without_mistakes,
    write_image,
    write_text,
)
from diffugen.dataset.masks import rle_from_box, rle_from_coco, rle_from_rings, yolo_polygon
from diffugen.dataset.yolo_layout import (
    as_list,
    candidates,
    label_of,
    list_images,
    read_about,
    read_layout,
    sidecar_of,
)
from diffugen.errors import DiffugenError
from diffugen.records import RLE, Instances, content_id
from diffugen.run.codec import to_json
from diffugen.run.spool import Names

_MOST_BYTES = 64 << 20
"""The largest file with the objects of an image."""

_TOLERANCE = 0.01
"""Coordinates may lie outside [0, 1] by this much, as in YOLO's own reader; they are clipped to the image."""

Exact = tuple[RLE | None, float, Mapping[str, float]]
"""Mask (None if the image size has changed), score and score terms of an object in a sidecar file."""


def write_yolo(folder: Path, splits: Mapping[str, Iterable[Item]], class_names: Sequence[str]) -> Path:
    """Write a training set: ``images/<split>``, ``labels/<split>``, ``instances/<split>`` and ``data.yaml``.

    The folder appears complete or not at all, equal items give equal bytes, and one image is in memory at a
    time. Masks without pixels are left out. An image without objects gets an empty label file, so that it is
    trained on as background. Without a ``val`` split, or with an empty one, training
    validates on the training images.

    YOLO text has no holes, pieces or scores. `diffugen.dataset.masks.yolo_polygon` bridges holes and pieces,
    and a sidecar file, ``instances/<split>/<name>.json``, keeps everything for `read_yolo`: a list with
    ``row`` (digest of the label row), ``segmentation`` (COCO RLE), ``score`` and, where present, ``terms`` of
    each object.

    Args:
        folder: Folder of the set; must not exist yet, or be empty.
        splits: Items of ``train`` and optionally of ``val`` and ``test``. Names must be unique across splits.
        class_names: The classes in the order of their numbers.

    Returns:
        The path of ``data.yaml``. The paths in it are relative to it, so the folder can be moved.

    Raises:
        DiffugenError: A split, class, name or image is invalid, or there is no training image.
        StoreError: The folder is in use or cannot be written.
    """
    folder = Path(folder)
    numbers = check_plan(splits, class_names)
    if "train" not in splits:
        raise DiffugenError(f"a training set needs a split 'train'; got only {', '.join(splits)}")
    names = Names()
    with whole_folder(folder) as partial:
        counts = {
            split: _write_split(partial, split, checked(items, numbers, names), numbers)
            for split, items in splits.items()
        }
        if not counts["train"]:
            raise DiffugenError("a training set needs at least one image in its split 'train'; got none")
        paths = {split: f"images/{split}" for split in splits if counts[split]}
        about = {
            "train": paths["train"],
            "val": paths["train"],
            **paths,
            "names": dict(enumerate(class_names)),
        }
        write_text(partial / "data.yaml", dump_yaml(about))
    return folder / "data.yaml"


def read_yolo(dataset: Path, split: str | None = None, on_mistake: OnMistake | None = None) -> Iterator[Item]:
    """Yield the images of a set in the YOLO-seg layout with their objects, sorted by path, one at a time.

    Each row of a label file is an object: a class number and a polygon, relative to the image's width and
    height. Four numbers after the class number are a box (centre, width, height), and its object is **the
    filled rectangle**. An image without a label file has no objects.

    If `write_yolo` wrote the set, rows that were not edited since give back the exact masks (with holes and
    pieces), scores and score terms. Edited and added rows are read as text, with score 1.

    Args:
        dataset: Folder of the set, or its ``data.yaml``.
        split: ``train``, ``val`` or ``test``; None for the images of all splits, each once.
        on_mistake: Takes the mistakes that are found while iterating; None raises them.

    Raises:
        DiffugenError: On the call, if the set or the split is missing; while iterating, for an unreadable
            image or an invalid label row, with file and line.
    """
    return without_mistakes(item_readers(dataset, split), on_mistake)


def item_readers(dataset: Path, split: str | None = None) -> list[Callable[[], Item]]:
    """Return functions that each read one image of a set and its objects: those of `read_yolo`, in any order.

    Raises:
        DiffugenError: The set or the split is missing. The functions raise it as `read_yolo` does.
    """
    layout = read_layout(Path(dataset))
    return [partial(_item, name, path, layout.class_names) for name, path in layout.images(split)]


def count_objects(images: Iterable[tuple[str, Path]], names: Mapping[int, str]) -> tuple[dict[str, int], int]:
    """Count the objects of each class from the label files alone, and the images without a label file.

    Args:
        images: From `diffugen.dataset.yolo_layout.Layout.images`.
        names: Class name of each class number; rows with other numbers are not counted.

    Raises:
        DiffugenError: A label file cannot be read.
    """
    counts, unlabelled = dict.fromkeys(names.values(), 0), 0
    for _, image in images:
        label = label_of(image)
        unlabelled += not label.exists()
        for row in _read_rows(label).values():
            number = row.split()[0]
            if number.isdecimal() and len(number) < 10 and int(number) in names:
                counts[names[int(number)]] += 1
    return counts, unlabelled


def find_yolo(dataset: Path) -> Path:
    """Return the ``data.yaml`` of a training set in the YOLO-seg layout, after checking the set.

    Args:
        dataset: Folder of the set, or its ``data.yaml``; `write_yolo` need not have written it.

    Raises:
        DiffugenError: There is no such set, an image folder is missing, or no training image has an object.
    """
    file, about = read_about(dataset)
    missing_keys = [key for key in ("train", "val", "names") if not about.get(key)]
    if missing_keys:
        raise DiffugenError(f"{file} is not a training set: it lacks {', '.join(map(repr, missing_keys))}")
    # Ultralytics resolves a relative path from the working directory, so this does too.
    root = as_path(about.get("path") or file.parent, str(file))
    entries = {
        split: [_entry(root, str(as_path(part, str(file)))) for part in as_list(about[split])]
        for split in ("train", "val")
    }
    missing = [str(path) for paths in entries.values() for path in paths if not path.exists()]
    if missing:
        raise DiffugenError(f"{file} names image folders that do not exist: {', '.join(missing)}")
    images = [image for path in entries["train"] for image in list_images(path)]
    if not any(_has_objects(image) for image in images):
        raise DiffugenError(
            f"nothing to train on in {file}: none of its {len(images)} training images has a labelled object"
        )
    return file.resolve()


def _write_split(folder: Path, split: str, items: Iterable[Item], numbers: Mapping[str, int]) -> int:
    """Write the items of one split and return their number."""
    count = 0
    for name, image, instances in items:
        rows = list(_rows(instances, numbers))
        write_image(folder / "images" / split / f"{name}.png", image)
        write_text(folder / "labels" / split / f"{name}.txt", "".join(f"{row}\n" for row in rows))
        if rows:
            write_text(folder / "instances" / split / f"{name}.json", _sidecar(rows, instances))
        count += 1
    return count


def _rows(instances: Instances, numbers: Mapping[str, int]) -> Iterator[str]:
    for name, rle in zip(instances.class_names, instances.rles, strict=True):
        ring = yolo_polygon(rle)
        # A row with fewer than three points would be read as a box.
        ring = np.concatenate([ring, np.repeat(ring[-1:], max(0, 3 - len(ring)), axis=0)]) / instances.size_wh
        yield f"{numbers[name]} " + " ".join(f"{value:.6f}" for value in ring.ravel().tolist())


def _sidecar(rows: Sequence[str], instances: Instances) -> str:
    objects = zip(rows, instances.rles, instances.scores.tolist(), instances.terms, strict=True)
    lines = []
    for row, rle, score, terms in objects:
        entry = {"row": _row_digest(row), "segmentation": rle, "score": score}
        if terms:
            entry["terms"] = {term: float(value) for term, value in terms.items()}
        lines.append(to_json(entry))
    return "[\n" + ",\n".join(lines) + "\n]\n"


def _row_digest(row: str) -> str:
    """Return 16 hex digits that change when a label row is edited, whatever its white space."""
    return content_id(" ".join(row.split()))


def _entry(root: Path, part: str) -> Path:
    paths = list(candidates(root, part))
    return next((path for path in paths if path.exists()), paths[0])


def _has_objects(image: Path) -> bool:
    label = label_of(image)
    return label.is_file() and bool(label.read_bytes().strip())


def _item(name: str, path: Path, names: Mapping[int, str]) -> Item:
    rgb = read_image(path)
    return name, rgb, _read_instances(path, names, (rgb.shape[1], rgb.shape[0]))


def _read_instances(image: Path, names: Mapping[int, str], size_wh: tuple[int, int]) -> Instances:
    label = label_of(image)
    rows = _read_rows(label)
    exact = _read_sidecar(sidecar_of(image), size_wh) if rows else {}
    objects: list[tuple[str, RLE, float, Mapping[str, float]]] = []
    for number, row in rows.items():
        try:
            class_name, values = _parsed(row, names)
            unedited = exact.get(_row_digest(row))
            # Two objects can have the same row; each takes one of the exact objects.
            rle, score, terms = unedited.pop(0) if unedited else (None, 1.0, {})
            objects.append((class_name, rle or _mask(values, size_wh), score, terms))
        except ValueError as error:
            raise DiffugenError(f"{label}, line {number}: {error}") from error
    class_names, rles, scores, all_terms = zip(*objects, strict=True) if objects else ((), (), (), ())
    return Instances(size_wh, tuple(class_names), tuple(rles), np.array(scores), tuple(all_terms))


def _read_rows(label: Path) -> dict[int, str]:
    """Return the rows of a label file by line number, without blank lines."""
    try:
        lines = read_text(label, _MOST_BYTES).splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DiffugenError(f"cannot read the labels {label} ({error})") from error
    return {number: line for number, line in enumerate(lines, 1) if line.strip()}


def _parsed(row: str, names: Mapping[int, str]) -> tuple[str, NDArray[np.float64]]:
    """Return the class name and the coordinates of a row."""
    try:
        number, *coordinates = map(float, row.split())
    except ValueError:
        raise ValueError(_expected(row)) from None
    values = np.array(coordinates)
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        raise ValueError(_expected(row))
    if number not in names:
        raise ValueError(
            f"class number {number:g} is not in data.yaml, which has {min(names)} to {max(names)}"
        )
    outside = values[~((values >= -_TOLERANCE) & (values <= 1 + _TOLERANCE))]
    if len(outside):
        raise ValueError(f"coordinate {outside[0]:g}; expected values in [0, 1], relative to the image size")
    return names[int(number)], values


def _expected(row: str) -> str:
    shown = row if len(row) <= 40 else f"{row[:40]}..."
    return f"expected a class number and x y of at least three points, or a box's cx cy w h; got {shown!r}"


def _mask(values: NDArray[np.float64], size_wh: tuple[int, int]) -> RLE:
    if len(values) > 4:
        return rle_from_rings([values.reshape(-1, 2) * size_wh], size_wh)
    centre, size = values.reshape(2, 2) * size_wh
    return rle_from_box([*(centre - size / 2), *(centre + size / 2)], size_wh)


def _read_sidecar(file: Path | None, size_wh: tuple[int, int]) -> dict[str, list[Exact]]:
    """Return the exact objects of an image by the digest of their label row."""
    if file is None or not file.is_file():
        return {}
    exact: dict[str, list[Exact]] = {}
    try:
        for entry in parse_json(read_text(file, _MOST_BYTES)):
            exact.setdefault(entry["row"], []).append(_exact(entry, size_wh))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DiffugenError(
            f"{file} does not contain valid exact objects ({error!r}); remove it to read the label text alone"
        ) from error
    return exact


def _exact(entry: Mapping[str, Any], size_wh: tuple[int, int]) -> Exact:
    rle = entry["segmentation"]
    same_size = rle["size"] == [size_wh[1], size_wh[0]]
    score = float(entry["score"])
    if not 0 <= score <= 1:
        raise ValueError(f"score {score}")
    terms = dict(entry.get("terms", {}))
    if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in terms.values()):
        raise ValueError(f"terms {terms}")
    return rle_from_coco(rle, size_wh) if same_size else None, score, terms
