"""Write labelled images as a training set in the YOLO-seg layout, and find such a set again.

Knows files and polygons; not where the labels come from, which of them deserve to be trained on, or how they were split.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from diffugen.errors import DiffugenError, StoreError
from diffugen.labels import shapes
from diffugen.records import RLE, Instances

SPLITS = ("train", "val", "test")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")

Item = tuple[str, NDArray[np.uint8], Instances]
"""Name of an image (its file name without the ending), uint8 (H, W, 3) RGB pixels, and the objects in it."""


def write_yolo(folder: Path, splits: Mapping[str, Iterable[Item]], class_names: Sequence[str]) -> Path:
    """Write a training set: ``images/<split>``, ``labels/<split>``, ``data.yaml`` and ``scores.json``.

    The set appears as a whole or not at all. An image without objects gets an empty label file, so that it is trained on as
    background. YOLO text holds neither holes nor several pieces nor scores: `yolo_polygon` bridges the first two, and
    ``scores.json`` keeps the last, ``{split: {name: [score of each row]}}``. Without a ``val`` split, training validates on
    its own images.

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
    _check_plan(folder, splits, class_names)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # what an interrupted call left
    names: set[str] = set()
    try:
        scores = {split: _write_split(partial, split, items, class_names, names) for split, items in splits.items()}
        if not scores["train"]:
            raise DiffugenError("a training set needs at least one image in its split 'train'; got none")
        _write_text(partial / "scores.json", json.dumps(scores, indent=1))
        paths = {"train": "images/train", "val": "images/train"} | {split: f"images/{split}" for split in splits}
        about = {**paths, "names": dict(enumerate(class_names))}
        _write_text(partial / "data.yaml", yaml.safe_dump(about, sort_keys=False, allow_unicode=True))
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder / "data.yaml"


def find_yolo(dataset: Path) -> Path:
    """Return the ``data.yaml`` of a training set in the YOLO-seg layout after checking that it can be trained on.

    Args:
        dataset: The set's folder, or its ``data.yaml``; not necessarily one that `write_yolo` made.

    Raises:
        DiffugenError: If there is no such set, an image folder is missing, or no training image has a labelled object.
    """
    file = dataset / "data.yaml" if dataset.is_dir() else dataset
    try:
        about = yaml.safe_load(file.read_text(encoding="utf-8"))
        root = Path(about.get("path") or file.parent)
        folders = {split: [root / part for part in _as_list(about[split])] for split in ("train", "val")}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        raise DiffugenError(
            f"no training set at {dataset}: expected a data.yaml with 'train', 'val' and 'names' ({error})"
        ) from error
    missing = [str(folder) for parts in folders.values() for folder in parts if not folder.is_dir()]
    if missing:
        raise DiffugenError(f"{file} names image folders that do not exist: {', '.join(missing)}")
    files = [path for folder in folders["train"] for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES]
    if not any(_is_labelled(path) for path in files):
        raise DiffugenError(
            f"nothing to train on in {file}: of {len(files)} training images none has a labelled object"
        )
    return file.resolve()


def yolo_polygon(rle: RLE) -> NDArray[np.float64]:
    """Return one ring, (P, 2) px, that stands for a mask with all its pieces and holes; empty for an empty mask.

    Each hole and each further piece is reached by a bridge of no width, there and back, from the nearest point of what is
    joined already; filled by the even-odd rule, as YOLO's rasteriser does it, holes stay open. A bridge between pieces draws
    a line one pixel wide. The ring runs close to the outer edge of the border pixels instead of through their centres, so
    that small objects keep their size when the image is scaled.
    """
    height, width = rle["size"]
    fine = max(1, min(4, 1024 // max(height, width)))
    pieces = shapes.outlines(shapes.rescale(rle, (width * fine, height * fine)))
    if not pieces:
        return np.zeros((0, 2))
    rings = [_join([piece.outer, *piece.holes]) for piece in sorted(pieces, key=lambda piece: -len(piece.outer))]
    return _join(rings).astype(np.float64) / fine


def _is_labelled(image: Path) -> bool:
    """Whether an image's label file has a row. It lies where the last folder ``images`` of the path is ``labels``."""
    before, _, after = str(image).rpartition(f"{os.sep}images{os.sep}")
    label = Path(before, "labels", after).with_suffix(".txt")
    return label.is_file() and bool(label.read_text(encoding="utf-8").strip())


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


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


def _check_plan(folder: Path, splits: Mapping[str, Iterable[Item]], class_names: Sequence[str]) -> None:
    unknown = sorted(set(splits) - set(SPLITS))
    if unknown or "train" not in splits:
        raise DiffugenError(f"splits are {', '.join(SPLITS)}, and 'train' is needed; got {', '.join(splits) or 'none'}")
    if not class_names or len(set(class_names)) < len(class_names):
        raise DiffugenError(f"a training set needs class names, each once; got {list(class_names)}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StoreError(f"{folder} is in use; remove it or choose another folder for the training set")


def _write_split(
    folder: Path, split: str, items: Iterable[Item], class_names: Sequence[str], names: set[str]
) -> dict[str, list[float]]:
    """Write the items of one split and return the scores of their rows; ``names`` collects the names used so far."""
    numbers = {name: number for number, name in enumerate(class_names)}
    scores = {}
    for name, image, instances in items:
        _check_item(name, image, instances, numbers)
        if name in names:
            raise DiffugenError(f"image {name!r} occurs twice in the training set; give each image to one split, once")
        names.add(name)
        rows, scores[name] = _rows(instances, numbers)
        _write_image(folder / "images" / split / f"{name}.png", image)
        _write_text(folder / "labels" / split / f"{name}.txt", "".join(f"{row}\n" for row in rows))
    return scores


def _rows(instances: Instances, numbers: Mapping[str, int]) -> tuple[list[str], list[float]]:
    """The label rows of one image and their scores; an empty mask gives no row."""
    rows, scores = [], []
    for name, rle, score in zip(instances.class_names, instances.rles, instances.scores.tolist(), strict=True):
        ring = yolo_polygon(rle)
        if not len(ring):
            continue
        # A row of fewer than three points would be read as a box.
        ring = np.concatenate([ring, np.repeat(ring[-1:], max(0, 3 - len(ring)), axis=0)]) / instances.size_wh
        rows.append(f"{numbers[name]} " + " ".join(f"{value:.6f}" for value in ring.ravel().tolist()))
        scores.append(score)
    return rows, scores


def _check_item(name: str, image: NDArray[np.uint8], instances: Instances, numbers: Mapping[str, int]) -> None:
    if not name or Path(name).name != name or name.startswith("."):
        raise DiffugenError(f"{name!r} cannot be the name of an image file; use letters, digits, '-' and '_'")
    width, height = instances.size_wh
    if image.dtype != np.uint8 or image.shape != (height, width, 3):
        raise DiffugenError(
            f"image {name!r} is {image.dtype} {image.shape}; its labels need uint8 (H, W, 3) = {(height, width, 3)}"
        )
    unknown = sorted(set(instances.class_names) - set(numbers))
    if unknown:
        raise DiffugenError(
            f"image {name!r} has labels of {', '.join(map(repr, unknown))}, not among the classes {', '.join(numbers)}; "
            "add the class or leave the labels out"
        )


def _write_image(path: Path, image: NDArray[np.uint8]) -> None:
    from PIL import Image

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    except OSError as error:
        raise _unwritable(path, error) from error


def _write_text(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> StoreError:
    return StoreError(f"cannot write {path}: {error.strerror or error}; free space or choose another folder")
