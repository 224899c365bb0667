"""Write labelled images as a training set in the YOLO-seg layout, and find such a set again.

Knows files and label rows; not where the labels come from, which of them deserve to be trained on (`diffugen.dataset_policy`),
or how a set is read back (`diffugen.dataset_read`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml

from diffugen.codec import to_json
from diffugen.dataset_folder import (
    IMAGE_SUFFIXES,
    SPLITS,
    Item,
    check_plan,
    checked,
    whole_folder,
    write_image,
    write_text,
)
from diffugen.dataset_layout import as_list, candidates, label_of, list_images, read_about
from diffugen.dataset_polygon import yolo_polygon
from diffugen.errors import DiffugenError
from diffugen.records import Instances, content_id

__all__ = ["IMAGE_SUFFIXES", "SPLITS", "Item", "find_yolo", "row_digest", "write_yolo"]


def write_yolo(folder: Path, splits: Mapping[str, Iterable[Item]], class_names: Sequence[str]) -> Path:
    """Write a training set: ``images/<split>``, ``labels/<split>``, ``instances/<split>`` and ``data.yaml``.

    The set appears as a whole or not at all; equal items give equal bytes; one image is in memory at a time. An image
    without objects gets an empty label file, so that it is trained on as background. YOLO text holds neither holes nor
    several pieces nor scores: `yolo_polygon` bridges the first two, and ``instances/<split>/<name>.json`` keeps everything
    for `diffugen.dataset_read.read_yolo`, a list with ``row`` (digest of the label row), ``segmentation`` (COCO RLE),
    ``score`` and, if there are any, ``terms`` of each object. Masks without a pixel are left out. Without a ``val`` split,
    training validates on its own images.

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
        paths = {"train": "images/train", "val": "images/train"} | {split: f"images/{split}" for split in splits}
        about = {**paths, "names": dict(enumerate(class_names))}
        write_text(partial / "data.yaml", yaml.safe_dump(about, sort_keys=False, allow_unicode=True))
    return folder / "data.yaml"


def find_yolo(dataset: Path) -> Path:
    """Return the ``data.yaml`` of a training set in the YOLO-seg layout after checking that it can be trained on.

    Args:
        dataset: The set's folder, or its ``data.yaml``; not necessarily one that `write_yolo` made.

    Raises:
        DiffugenError: If there is no such set, an image folder is missing, or no training image has a labelled object.
    """
    file, about = read_about(dataset)
    missing_keys = [key for key in ("train", "val", "names") if not about.get(key)]
    if missing_keys:
        raise DiffugenError(f"{file} is no training set: it lacks {', '.join(map(repr, missing_keys))}")
    # What trains takes a relative path from the working folder, so this does too.
    root = Path(about.get("path") or file.parent)
    entries = {split: [_entry(root, str(part)) for part in as_list(about[split])] for split in ("train", "val")}
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
