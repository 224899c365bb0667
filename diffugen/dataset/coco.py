"""COCO datasets: write images with one instances JSON per split, and read the instances JSON of any tool.

A set written here is read back without loss. Knows COCO's keys; does not know where labels come from or what
they are used for.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np

from diffugen.config.foreign import as_path, parse_json, read_text
from diffugen.dataset.files import (
    Item,
    OnMistake,
    check_plan,
    checked,
    is_turned,
    read_image,
    whole_folder,
    without_mistakes,
    write_image,
    writing,
)
from diffugen.dataset.masks import rings_from_lists, rle_from_box, rle_from_coco, rle_from_rings
from diffugen.errors import DiffugenError, brief
from diffugen.labels import shapes
from diffugen.records import RLE, Instances
from diffugen.run.codec import to_json
from diffugen.run.spool import Names

_MOST_BYTES = 2 << 30
"""The largest JSON; that of COCO's own training images has 0.45 GB."""

_LISTS = ("images", "annotations", "categories")

Numbered = tuple[int, Mapping[str, Any]]
"""An annotation with its position in the file, counted from 1."""


def write_coco(folder: Path, splits: Mapping[str, Iterable[Item]], class_names: Sequence[str]) -> Path:
    """Write a COCO dataset: ``images/<split>/<name>.png`` and ``annotations/instances_<split>.json``.

    The folder appears complete or not at all, equal items give equal bytes, and one image is in memory at a
    time. Masks are compressed RLE, so that `read_coco` gives back the exact objects; masks without pixels are
    left out. ``score`` and, where present, ``terms`` are additional keys of an annotation.

    Args:
        folder: Folder of the set; must not exist yet, or be empty.
        splits: Items of at least one of ``train``, ``val`` and ``test``. Names must be unique across splits.
        class_names: The classes; category ids count from 1 in their order.

    Returns:
        The folder of the annotations.

    Raises:
        DiffugenError: A split, class, name or image is invalid, or there are no images.
        StoreError: The folder is in use or cannot be written.
    """
    folder = Path(folder)
    numbers = check_plan(splits, class_names)
    names = Names()
    with whole_folder(folder) as partial:
        for split, items in splits.items():
            _write_split(partial, split, checked(items, numbers, names), numbers)
        if not names:
            raise DiffugenError("a dataset needs at least one image; got none")
    return folder / "annotations"


def read_coco(annotations: Path, images: Path | None = None) -> Iterator[Item]:
    """Yield the images of a COCO instances JSON with their objects.

    `CocoSet.open` takes the same arguments, and also gives the classes and the number of crowds.

    Args:
        annotations: The JSON file.
        images: Folder of the images; None searches the usual places.

    Raises:
        DiffugenError: On the call, as in `CocoSet.open`; while iterating, as in `CocoSet.items`.
    """
    return CocoSet.open(annotations, images).items()


@dataclass(frozen=True)
class CocoSet:
    """A COCO instances JSON; its images are read lazily.

    Attributes:
        file: The JSON file.
        folder: Folder of the images.
        class_names: Names of the categories, in the order of the file.
        images: The image entries of the file.
        objects: Annotations of each image id, with their positions in the file.
        groups: The same of those that outline a crowd (``iscrowd``), not an object.
        categories: Name of each category id.
    """

    file: Path
    folder: Path
    class_names: tuple[str, ...]
    images: tuple[Mapping[str, Any], ...]
    objects: Mapping[Any, Sequence[Numbered]]
    groups: Mapping[Any, Sequence[Numbered]]
    categories: Mapping[Any, str]

    @classmethod
    def open(cls, annotations: Path, images: Path | None = None) -> CocoSet:
        """Read a COCO instances JSON and find its images.

        Args:
            annotations: The JSON file.
            images: Folder of the images. None searches, for a file ``instances_<split>.json``, its own folder
                and the parent folder, and ``images``, ``<split>``, ``images/<split>`` and ``<split>2017``
                below them.

        Raises:
            DiffugenError: The file is not such a JSON, an annotation has an unknown image or category, or the
                images are not found.
        """
        file = as_path(annotations, "the annotations")
        about = _read_json(file)
        entries = _entries(file, about, "images", "id", "file_name")
        named = _entries(file, about, "categories", "id", "name")
        for number, entry in enumerate(entries, 1):
            _check_inside(f"{file}: number {number} of 'images'", str(entry["file_name"]))
        categories = {item["id"]: str(item["name"]) for item in named}
        if not entries or not categories:
            raise DiffugenError(
                f"{file} has {len(entries)} images and {len(categories)} categories; nothing to read"
            )
        objects: dict[Any, list[Numbered]] = {entry["id"]: [] for entry in entries}
        groups: dict[Any, list[Numbered]] = {}
        if len(objects) < len(entries):
            raise DiffugenError(f"{file}: {len(entries)} images share {len(objects)} ids; give each its own")
        for number, item in enumerate(_entries(file, about, "annotations", "image_id", "category_id"), 1):
            where = _where(file, number, item)
            _check_known(where, "image_id", item["image_id"], objects, "images")
            _check_known(where, "category_id", item["category_id"], categories, "categories")
            if item.get("iscrowd"):
                groups.setdefault(item["image_id"], []).append((number, item))
            else:
                objects[item["image_id"]].append((number, item))
        folder = _images_folder(file, str(entries[0]["file_name"]), images)
        names = tuple(dict.fromkeys(categories.values()))
        return cls(file, folder, names, tuple(entries), objects, groups, categories)

    @property
    def files(self) -> tuple[Path, ...]:
        """The image files, in the order of the JSON."""
        return tuple(self.folder / str(entry["file_name"]) for entry in self.images)

    @property
    def crowds(self) -> int:
        """Number of annotations that outline a crowd."""
        return sum(map(len, self.groups.values()))

    @property
    def counts(self) -> dict[str, int]:
        """Number of objects of each class."""
        found = dict.fromkeys(self.class_names, 0)
        for _, item in chain.from_iterable(self.objects.values()):
            found[self.categories[item["category_id"]]] += 1
        return found

    def items(self, on_mistake: OnMistake | None = None) -> Iterator[Item]:
        """Yield the images with their objects, in the order of the file.

        An object without ``segmentation`` is the filled rectangle of its ``bbox``; without ``score``, its
        score is 1. The name of an image in a sub-folder is prefixed by the folders.

        Args:
            on_mistake: Takes the mistakes that are found; None raises them.

        Raises:
            DiffugenError: An image is missing, unreadable or not of the size that the file gives, or an
                annotation has no valid mask.
        """
        return without_mistakes((partial(self._item, entry) for entry in self.images), on_mistake)

    def _item(self, entry: Mapping[str, Any]) -> Item:
        relative = Path(str(entry["file_name"]))
        path = self.folder / relative
        if not path.is_file():
            raise DiffugenError(f"{self.file} names the image {relative}, which is not in {self.folder}")
        rgb = read_image(path)
        size_wh = (rgb.shape[1], rgb.shape[0])
        width, height = entry.get("width", size_wh[0]), entry.get("height", size_wh[1])
        if (width, height) != size_wh:
            turned = (width, height) == size_wh[::-1] and is_turned(path)
            why = (
                "its EXIF data turns it, which was ignored when it was annotated: remove that data, or turn "
                "the annotations"
                if turned
                else "use the images that were annotated"
            )
            raise DiffugenError(
                f"{path} is {size_wh[0]} x {size_wh[1]} px, but {self.file} says {width} x {height}; {why}"
            )
        name = "-".join(relative.with_suffix("").parts)
        return name, rgb, self._instances(entry["id"], size_wh)

    def _instances(self, image_id: Any, size_wh: tuple[int, int]) -> Instances:
        items, groups = self.objects[image_id], self.groups.get(image_id, ())
        return Instances(
            size_wh,
            tuple(self.categories[item["category_id"]] for _, item in items),
            tuple(self._mask(number, item, size_wh) for number, item in items),
            np.array([self._score(number, item) for number, item in items]),
            tuple(_terms(item) for _, item in items),
            crowds=tuple(
                (self.categories[item["category_id"]], self._mask(number, item, size_wh))
                for number, item in groups
            ),
        )

    def _mask(self, number: int, item: Mapping[str, Any], size_wh: tuple[int, int]) -> RLE:
        try:
            outline = item.get("segmentation")
            if isinstance(outline, Mapping):
                return rle_from_coco(outline, size_wh)
            if outline:
                return rle_from_rings(rings_from_lists(outline), size_wh)
            if not item.get("bbox"):
                raise ValueError("neither 'segmentation' nor 'bbox'")
            x, y, width, height = map(float, item["bbox"])
            return rle_from_box([x, y, x + width, y + height], size_wh)
        except (TypeError, ValueError, OverflowError) as error:
            raise DiffugenError(f"{_where(self.file, number, item)} has no valid mask: {error}") from error

    def _score(self, number: int, item: Mapping[str, Any]) -> float:
        score = item.get("score", 1.0)
        if not isinstance(score, (int, float)) or not 0 <= score <= 1:
            where = _where(self.file, number, item)
            raise DiffugenError(f"{where} has the score {brief(score)}; expected a number in [0, 1]")
        return float(score)


def _write_split(folder: Path, split: str, items: Iterable[Item], numbers: Mapping[str, int]) -> None:
    """Write the images and the JSON of one split.

    In the JSON the annotations follow all images, so they wait in a temporary file until the images are
    written.
    """
    path = folder / "annotations" / f"instances_{split}.json"
    categories = [{"id": number + 1, "name": name} for name, number in numbers.items()]
    with ExitStack() as files:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            out = files.enter_context(path.open("w", encoding="utf-8", newline="\n"))
            waiting = files.enter_context(TemporaryFile("w+", encoding="utf-8", newline="\n", dir=folder))
        _put(path, out, f'{{"categories":{to_json(categories)},\n"images":[')
        written = 0
        for image_id, (name, image, instances) in enumerate(items, 1):
            width, height = instances.size_wh
            about = {"id": image_id, "file_name": f"{name}.png", "width": width, "height": height}
            write_image(folder / "images" / split / f"{name}.png", image)
            _put(path, out, ",\n" if image_id > 1 else "\n", to_json(about))
            for annotation in _annotations(instances, image_id, numbers):
                written += 1
                _put(path, waiting, ",\n" if written > 1 else "\n", to_json({"id": written, **annotation}))
        _put(path, out, '],\n"annotations":[')
        with writing(path):
            waiting.seek(0)
            shutil.copyfileobj(waiting, out)
            out.write("]}\n")
            out.flush()


def _put(path: Path, file: IO[str], *texts: str) -> None:
    with writing(path):
        file.writelines(texts)


def _annotations(instances: Instances, image_id: int, numbers: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    areas, boxes = shapes.areas(instances.rles).tolist(), shapes.boxes(instances.rles).tolist()
    for index, name in enumerate(instances.class_names):
        x0, y0, x1, y1 = boxes[index]
        terms = instances.terms[index]
        yield {
            "image_id": image_id,
            "category_id": numbers[name] + 1,
            "segmentation": instances.rles[index],
            "area": areas[index],
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "iscrowd": 0,
            "score": float(instances.scores[index]),
            **({"terms": {term: float(value) for term, value in terms.items()}} if terms else {}),
        }


def _terms(item: Mapping[str, Any]) -> Mapping[str, float]:
    """Return the score terms; a key of this name that another tool wrote means something else."""
    terms = item.get("terms")
    if isinstance(terms, dict) and all(
        isinstance(value, float) and math.isfinite(value) for value in terms.values()
    ):
        return terms
    return {}


def _read_json(file: Path) -> dict[str, Any]:
    try:
        about = parse_json(read_text(file, _MOST_BYTES))
    except (OSError, ValueError) as error:
        raise DiffugenError(f"cannot read {file} as a COCO JSON ({error})") from error
    missing = [key for key in _LISTS if not isinstance(about, dict) or not isinstance(about.get(key), list)]
    if missing:
        lists = ", ".join(map(repr, missing))
        raise DiffugenError(f"{file} is not a COCO instances JSON: missing lists: {lists}")
    return about


def _entries(file: Path, about: Mapping[str, Any], key: str, *needed: str) -> list[Mapping[str, Any]]:
    """Return a list of the file after checking that its entries have a number or text for each needed key."""
    for number, item in enumerate(about[key], 1):
        given = item if isinstance(item, dict) else {}
        missing = [name for name in needed if not isinstance(given.get(name), (str, int, float))]
        if missing:
            raise DiffugenError(f"{file}: number {number} of {key!r} lacks {', '.join(map(repr, missing))}")
    return about[key]


def _check_inside(where: str, name: str) -> None:
    path = as_path(name, where)
    if path.is_absolute() or ".." in path.parts:
        raise DiffugenError(
            f"{where} has the file_name {brief(name)}, which leads out of the folder of the images; "
            "write it relative to that folder, without '..'"
        )


def _check_known(where: str, key: str, value: Any, known: Mapping[Any, Any], place: str) -> None:
    if value not in known:
        raise DiffugenError(
            f"{where} has the {key} {brief(value)}, which is not in {place!r}; add it, or "
            "remove the annotation"
        )


def _where(file: Path, number: int, item: Mapping[str, Any]) -> str:
    name = brief(item["id"]) if "id" in item else "without id"
    return f"{file}: annotation {name} (number {number})"


def _images_folder(file: Path, first: str, images: Path | None) -> Path:
    """Return the folder that contains the first image."""
    split = file.stem.removeprefix("instances_")
    below = ("", "images", split, f"images/{split}", f"{split}2017")
    usual = [base / part for base in (file.parent, file.parent.parent) for part in below]
    places = [images] if images else usual
    for place in places:
        if (place / first).is_file():
            return place
    tried = ", ".join(map(str, dict.fromkeys(places)))
    raise DiffugenError(f"no image {first} of {file} in {tried}; put the images there, or name their folder")
