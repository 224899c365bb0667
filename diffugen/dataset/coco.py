"""COCO's form: write images and one JSON of instances for each split, and read such a JSON, whoever wrote it.

Knows COCO's keys; not where the labels come from, or what the objects are good for.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np

from diffugen.dataset.files import Item, check_plan, checked, read_image, whole_folder, write_image, writing
from diffugen.dataset.masks import rings_from_lists, rle_from_box, rle_from_coco, rle_from_rings
from diffugen.errors import DiffugenError
from diffugen.labels import shapes
from diffugen.records import RLE, Instances
from diffugen.run.codec import to_json


def write_coco(folder: Path, splits: Mapping[str, Iterable[Item]], class_names: Sequence[str]) -> Path:
    """Write a set in COCO's form: ``images/<split>/<name>.png`` and ``annotations/instances_<split>.json``.

    The set appears as a whole or not at all; equal items give equal bytes; one image is in memory at a time.
    Masks are compressed RLE, so that `diffugen.dataset.coco.read_coco` gives back the very same objects;
    ``score`` and, if there are any, ``terms`` are extra keys of an annotation. Masks without a pixel are left
    out.

    Args:
        folder: The set's folder; must not exist yet, or be empty.
        splits: Items of ``train``, ``val`` or ``test``, at least one of them. No name may occur twice.
        class_names: The classes; category ids count from 1 in their order.

    Returns:
        The folder of the annotations.

    Raises:
        DiffugenError: If a split, class, name or image does not fit, or there is no image at all.
        StoreError: If the folder is in use or cannot be written.
    """
    folder = Path(folder)
    numbers = check_plan(splits, class_names)
    names: set[str] = set()
    with whole_folder(folder) as partial:
        for split, items in splits.items():
            _write_split(partial, split, checked(items, numbers, names), numbers)
        if not names:
            raise DiffugenError("a dataset needs at least one image; got none")
    return folder / "annotations"


def _write_split(folder: Path, split: str, items: Iterable[Item], numbers: Mapping[str, int]) -> None:
    """Write images and JSON of one split; the annotations wait in a second file, as they come after all
    images.
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


_LISTS = ("images", "annotations", "categories")
_PLAIN = (str, int, float)


def read_coco(annotations: Path, images: Path | None = None) -> Iterator[Item]:
    """Yield the images of a COCO instances JSON with their objects; `CocoSet.open` also tells the classes and
    the crowds.

    Args:
        annotations: The JSON file.
        images: The images' folder; see `CocoSet.open`.

    Raises:
        DiffugenError: As `CocoSet.open`, when called; as `CocoSet.items`, when a broken piece is reached.
    """
    return CocoSet.open(annotations, images).items()


@dataclass(frozen=True)
class CocoSet:
    """A COCO instances JSON; its images are read when they are asked for.

    Attributes:
        file: The JSON file.
        folder: The images' folder.
        class_names: The categories' names in the file's order.
        crowds: How many annotations were skipped because they outline a crowd (``iscrowd``), not an object.
        images: The file's image entries.
        objects: From image id to its annotations, with their places in the file.
        categories: From category id to name.
    """

    file: Path
    folder: Path
    class_names: tuple[str, ...]
    crowds: int
    images: tuple[Mapping[str, Any], ...]
    objects: Mapping[Any, Sequence[tuple[int, Mapping[str, Any]]]]
    categories: Mapping[Any, str]

    @classmethod
    def open(cls, annotations: Path, images: Path | None = None) -> CocoSet:
        """Read a COCO instances JSON, and find its images.

        Args:
            annotations: The JSON file.
            images: The images' folder; None looks beside the JSON and in the usual places: ``images``,
                ``<split>`` and ``<split>2017``, there and one folder up, where the file is called
                ``instances_<split>.json``.

        Raises:
            DiffugenError: If the file is no such JSON, an annotation is of an unknown image or category, or
                the images are not there.
        """
        annotations = Path(annotations)
        about = _read_json(annotations)
        entries = _entries(annotations, about, "images", "id", "file_name")
        categories = {
            item["id"]: str(item["name"]) for item in _entries(annotations, about, "categories", "id", "name")
        }
        if not entries or not categories:
            counts = f"{len(entries)} images and {len(categories)} categories"
            raise DiffugenError(f"{annotations} has {counts}; nothing to read")
        objects: dict[Any, list[tuple[int, Mapping[str, Any]]]] = {entry["id"]: [] for entry in entries}
        if len(objects) < len(entries):
            raise DiffugenError(
                f"{annotations}: {len(entries)} images share {len(objects)} ids; give each its own"
            )
        crowds = 0
        for number, item in enumerate(
            _entries(annotations, about, "annotations", "image_id", "category_id"), 1
        ):
            _check_known(_where(annotations, number, item), item, objects, categories)
            if item.get("iscrowd"):
                crowds += 1
            else:
                objects[item["image_id"]].append((number, item))
        folder = _images_folder(annotations, str(entries[0]["file_name"]), images)
        names = tuple(dict.fromkeys(categories.values()))
        return cls(annotations, folder, names, crowds, tuple(entries), objects, categories)

    def items(self) -> Iterator[Item]:
        """Yield the images in the file's order, with their objects.

        An object without a segmentation is the filled rectangle of its ``bbox``; one without a ``score`` has
        score 1. The name of an image in a sub-folder has the folders in front of it.

        Raises:
            DiffugenError: For an image that is missing, unreadable or of another size than the file says, and
                for an annotation that is no mask.
        """
        for entry in self.images:
            path = self.folder / str(entry["file_name"])
            if not path.is_file():
                raise DiffugenError(
                    f"{self.file} names the image {entry['file_name']}, which is not in {self.folder}"
                )
            rgb = read_image(path)
            size_wh = (rgb.shape[1], rgb.shape[0])
            said = (entry.get("width", size_wh[0]), entry.get("height", size_wh[1]))
            if said != size_wh:
                raise DiffugenError(
                    f"{path} is {size_wh[0]} x {size_wh[1]} px, but {self.file} says {said[0]} x {said[1]}; "
                    "use the images that were annotated"
                )
            name = "-".join(
                part
                for part in Path(str(entry["file_name"])).with_suffix("").parts
                if part not in ("/", "..")
            )
            yield name, rgb, self._instances(entry["id"], size_wh)

    def _instances(self, image_id: Any, size_wh: tuple[int, int]) -> Instances:
        items = self.objects[image_id]
        return Instances(
            size_wh,
            tuple(self.categories[item["category_id"]] for _, item in items),
            tuple(self._mask(number, item, size_wh) for number, item in items),
            np.array([self._score(number, item) for number, item in items]),
            tuple(_terms(item) for _, item in items),
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
        except (TypeError, ValueError) as error:
            raise DiffugenError(f"{_where(self.file, number, item)} is no mask: {error}") from error

    def _score(self, number: int, item: Mapping[str, Any]) -> float:
        score = item.get("score", 1.0)
        if not isinstance(score, (int, float)) or not 0 <= score <= 1:
            raise DiffugenError(
                f"{_where(self.file, number, item)} has the score {score!r}; expected a number in [0, 1]"
            )
        return float(score)


def _terms(item: Mapping[str, Any]) -> Mapping[str, float]:
    """Our score terms; a key of this name in the file of others means something else."""
    terms = item.get("terms")
    return (
        terms if isinstance(terms, dict) and all(isinstance(value, float) for value in terms.values()) else {}
    )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        about = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DiffugenError(f"cannot read {file} as a COCO JSON ({error})") from error
    missing = [key for key in _LISTS if not isinstance(about, dict) or not isinstance(about.get(key), list)]
    if missing:
        raise DiffugenError(
            f"{file} is no COCO instances JSON: it has no list {', '.join(map(repr, missing))}"
        )
    return about


def _entries(file: Path, about: Mapping[str, Any], key: str, *needed: str) -> list[Mapping[str, Any]]:
    """The entries of one of the file's lists, each of which has a number or a text under the keys that are
    needed.
    """
    for number, item in enumerate(about[key], 1):
        missing = [
            name for name in needed if not isinstance(item, dict) or not isinstance(item.get(name), _PLAIN)
        ]
        if missing:
            raise DiffugenError(f"{file}: number {number} of {key!r} lacks {', '.join(map(repr, missing))}")
    return about[key]


def _check_known(
    where: str, item: Mapping[str, Any], image_ids: Mapping[Any, Any], category_ids: Mapping[Any, Any]
) -> None:
    for key, known in (("image_id", image_ids), ("category_id", category_ids)):
        if item[key] not in known:
            place = "images" if key == "image_id" else "categories"
            raise DiffugenError(
                f"{where} has the {key} {item[key]!r}, which is not in {place!r}; add it or remove the "
                "annotation"
            )


def _where(file: Path, number: int, item: Mapping[str, Any]) -> str:
    return f"{file}: annotation {item.get('id', 'without id')} (number {number})"


def _images_folder(annotations: Path, first: str, images: Path | None) -> Path:
    """The folder in which the first image lies."""
    split = annotations.stem.removeprefix("instances_")
    below = ("", "images", split, f"images/{split}", f"{split}2017")
    places = (
        [images]
        if images
        else [base / part for base in (annotations.parent, annotations.parent.parent) for part in below]
    )
    for place in places:
        if (place / first).is_file():
            return place
    tried = ", ".join(map(str, dict.fromkeys(places)))
    raise DiffugenError(
        f"no image {first} of {annotations} in {tried}; put the images there, or name their folder"
    )
