"""Write labelled images in COCO's form: images, and one JSON of instances for each split.

Knows COCO's keys; not where the labels come from, or how they are read back (`diffugen.dataset_coco_read`).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from diffugen.codec import to_json
from diffugen.dataset_folder import Item, check_plan, checked, whole_folder, write_image, writing
from diffugen.errors import DiffugenError
from diffugen.labels import shapes
from diffugen.records import Instances


def write_coco(folder: Path, splits: Mapping[str, Iterable[Item]], class_names: Sequence[str]) -> Path:
    """Write a set in COCO's form: ``images/<split>/<name>.png`` and ``annotations/instances_<split>.json``.

    The set appears as a whole or not at all; equal items give equal bytes; one image is in memory at a time. Masks are
    compressed RLE, so that `diffugen.dataset_read.read_coco` gives back the very same objects; ``score`` and, if there are
    any, ``terms`` are extra keys of an annotation. Masks without a pixel are left out.

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
    """Write images and JSON of one split; the annotations wait in a second file, as they come after all images."""
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
