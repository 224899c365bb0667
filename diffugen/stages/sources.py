"""Source images of a task: images of this run or another one, a folder of photos, or a labelled dataset.

Knows where they are and how they are labelled; does not know what is made from them. The pixels of sources
from outside the run are copied into it, so that it stays complete when they are gone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffugen.config.foreign import as_path
from diffugen.dataset.coco import CocoSet
from diffugen.dataset.files import IMAGE_SUFFIXES, Item, read_image, strays
from diffugen.dataset.yolo import read_yolo
from diffugen.dataset.yolo_layout import list_images, read_layout
from diffugen.errors import DiffugenError
from diffugen.records import Instances, Prompt
from diffugen.run.ledger import LEDGER_NAME
from diffugen.run.store import RunStore

RGB = NDArray[np.uint8]


@dataclass(frozen=True)
class SourceImage:
    """An image to start from; `RunStore.source` returns its pixels.

    Attributes:
        id: The id that the images made from it record as their parent.
        name: Its name without a suffix: an image's id, or a file's stem.
        place: Where it came from, for display: a file or a folder.
        size_wh: Width and height in pixels.
        family: The prompt or photo it goes back to; see `diffugen.records.ImageRecord.family`.
        prompt: The prompt it was generated from; None for a photo.
        instances: The objects in it; None if it has no labels.
    """

    id: str
    name: str
    place: str
    size_wh: tuple[int, int]
    family: str
    prompt: Prompt | None
    instances: Instances | None


def images_of_task(store: RunStore, step: str, round: int, method: str) -> Iterator[SourceImage]:
    """Yield the images that a task of this round made, oldest first.

    Args:
        store: The run.
        step: Name of the task.
        round: Number of the round.
        method: Provenance of the attention labels to use. Review decisions are ignored: they come later, so
            an interrupted task that is continued would make other images from the same sources.
    """
    for record in list(store.records(round)):
        if (record.step or record.task) == step:
            labels = _labels(store, record.id, method)
            yield SourceImage(
                record.id, record.id, str(store.folder), record.size_wh, record.family, record.prompt, labels
            )


def check_source(source: str, tasks: Collection[str] = ()) -> Path:
    """Return the path of a source from outside the run.

    Args:
        source: See `sources_outside`.
        tasks: Names of earlier tasks, for the error message.

    Raises:
        DiffugenError: The path does not exist.
    """
    path = as_path(source, "the source").expanduser()
    if not path.exists():
        names = f" ({', '.join(tasks)})" if tasks else ""
        raise DiffugenError(
            f"source {source!r} not found (looked in {path.parent.absolute()}): give a folder of photos, a "
            "labelled dataset (a YOLO-seg folder or a COCO .json file), the folder of a run, or the name of "
            f"an earlier task{names}"
        )
    return path


def sources_outside(
    store: RunStore, source: str, count: int | None, notify: Callable[[str], None] = lambda text: None
) -> Iterator[SourceImage]:
    """Yield images from outside the run and copy their pixels into it.

    Photos are sorted by name; labelled datasets and runs keep their own order. Duplicate photos are yielded
    once.

    Args:
        store: The run, open for writing.
        source: The folder of another run, a YOLO-seg folder or its ``data.yaml``, a COCO ``.json`` file, an
            image file, or a folder of photos.
        count: Maximum number of images; None for all.
        notify: Called with what the user should know about a dataset.

    Raises:
        DiffugenError: The path does not exist, contains no images, or an image or label cannot be read.
    """
    path = check_source(source)
    found: set[str] = set()
    for one, rgb in _read(path, notify):
        if one.id in found:  # the same photo twice
            continue
        if len(found) == count:
            break
        store.put_source(one.id, rgb)
        found.add(one.id)
        yield one
    if not found:
        raise DiffugenError(
            f"the source {path} contains no images; expected files ending in {', '.join(IMAGE_SUFFIXES)}"
        )


def _read(path: Path, notify: Callable[[str], None]) -> Iterator[tuple[SourceImage, RGB]]:
    if (path / LEDGER_NAME).is_file():
        yield from _from_run(path)
    elif path.suffix.lower() == ".json":
        coco = CocoSet.open(path)
        _tell(path, strays(coco.folder, coco.files), notify)
        yield from (_labelled(path, item) for item in coco.items())
    elif path.suffix.lower() in (".yaml", ".yml") or (path / "data.yaml").is_file():
        layout = read_layout(path)
        files = [file for _, file in layout.images()]
        _tell(path, strays(layout.file.absolute().parent, files), notify)
        yield from (_labelled(path, item) for item in read_yolo(path))
    elif path.is_dir():
        for file in list_images(path):
            rgb = read_image(file)
            photo = _photo_id(rgb)
            yield SourceImage(photo, file.stem, str(file), _size_wh(rgb), photo, None, None), rgb
    elif path.suffix.lower() in IMAGE_SUFFIXES:
        rgb = read_image(path)
        photo = _photo_id(rgb)
        yield SourceImage(photo, path.stem, str(path), _size_wh(rgb), photo, None, None), rgb
    else:
        raise DiffugenError(f"the source {path} is neither a folder, nor a labelled dataset, nor an image")


def _from_run(folder: Path) -> Iterator[tuple[SourceImage, RGB]]:
    with RunStore.open(folder, readonly=True) as other:
        decided = {one.image_id: one for one in other.decisions()}
        for record in list(other.records()):
            decision = decided.get(record.id)
            if decision is not None and decision.instances is None:
                continue
            labels = decision.instances if decision else _labels(other, record.id, None)
            place = str(folder)
            yield (
                SourceImage(
                    record.id, record.id, place, record.size_wh, record.family, record.prompt, labels
                ),
                other.image(record.id),
            )


def _tell(path: Path, notes: Sequence[str], notify: Callable[[str], None]) -> None:
    for note in notes:
        notify(f"the source {path} has {note}")


def _labelled(path: Path, item: Item) -> tuple[SourceImage, RGB]:
    name, rgb, instances = item
    photo = _photo_id(rgb)
    return SourceImage(photo, Path(name).stem, f"{path}: {name}", _size_wh(rgb), photo, None, instances), rgb


def _labels(store: RunStore, image_id: str, method: str | None) -> Instances | None:
    newest: Sequence[Instances] = [
        one.instances for one in store.labels("attention", method, image_id=image_id)
    ]
    return newest[-1] if newest else None


def _photo_id(rgb: RGB) -> str:
    return f"photo-{hashlib.sha256(f'{rgb.shape}'.encode() + rgb.tobytes()).hexdigest()[:16]}"


def _size_wh(rgb: RGB) -> tuple[int, int]:
    return rgb.shape[1], rgb.shape[0]
