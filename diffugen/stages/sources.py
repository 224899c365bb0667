"""Source images of a task: images of this run or another one, a folder of photos, or a labelled dataset.

Knows where they are and how they are labelled; does not know what is made from them. The pixels of sources
from outside the run are copied into it, so that it stays complete when they are gone.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffugen.config.foreign import as_path
from diffugen.dataset.coco import CocoSet
from diffugen.dataset.files import IMAGE_SUFFIXES, Item, read_image, strays
from diffugen.dataset.truth import by_class, chosen_split, refuse_misspelt, split_of
from diffugen.dataset.yolo import read_yolo
from diffugen.dataset.yolo_layout import about_file, list_images, read_layout
from diffugen.errors import DiffugenError, counted
from diffugen.prompts.names import matching_names
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
    for record in store.records(round):
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
    path = as_path(str(split_of(source)[0]), "the source").expanduser()
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
        source: The folder of another run, a YOLO-seg folder or its ``data.yaml`` (of which the training
            split is used, unless another one is named: ``folder:val``), a COCO ``.json`` file, an image file,
            or a folder of photos.
        count: Maximum number of images; None for all.
        notify: Called with what the user should know about a dataset.

    Raises:
        DiffugenError: The path does not exist, contains no images, or an image or label cannot be read.
    """
    path = check_source(source)
    found: set[str] = set()
    for one, rgb in _read(path, split_of(source)[1], notify):
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


def with_classes(
    source: str, images: Sequence[SourceImage], classes: Sequence[str], region: str | None
) -> tuple[list[SourceImage], str]:
    """Return images with the labels that a run has a use for, named as in the run, and a census of all.

    Args:
        source: What the images come from, for messages.
        images: The images.
        classes: Classes of the run; objects of these keep their labels.
        region: Class of the objects to paint over, which need not be one of the run; None for none.

    Raises:
        DiffugenError: Labels would be left out because of the spelling of their class.
    """
    labelled = [one for one in images if one.instances is not None]
    counts = Counter(name for one in images if one.instances for name in one.instances.class_names)
    wanted = list(dict.fromkeys([*classes, *([region] if region else [])]))
    ours = matching_names(counts, wanted)
    dropped = {name: count for name, count in counts.items() if name not in ours}
    refuse_misspelt(source, dropped, [name for name in wanted if name not in ours.values()])
    told = [counted(len(images), "image")]
    if labelled:
        kept = Counter[str]()
        for name, count in counts.items():
            if name in ours:
                kept[ours[name]] += count
        told.append(f"objects: {by_class(kept) or 'none of the run'}")
        crowds = sum(len(one.instances.crowds) for one in images if one.instances)
        if crowds:
            told.append(f"{counted(crowds, 'crowd')} (iscrowd) left out")
        if dropped:
            told.append(f"left out, of no class of the run: {by_class(dropped)}")
        if len(labelled) < len(images):
            told.append(f"{counted(len(images) - len(labelled), 'image')} without labels")
    named = [replace(one, instances=one.instances and one.instances.renamed(ours)) for one in images]
    return named, f"{source}: {'; '.join(told)}"


def source_files(source: str) -> Sequence[Path]:
    """Return the photos of a source; none for another run, whose images are generated.

    Raises:
        DiffugenError: As in `sources_outside`.
    """
    path, split = check_source(source), split_of(source)[1]
    if (path / LEDGER_NAME).is_file():
        return ()
    if path.suffix.lower() == ".json":
        return CocoSet.open(path).files
    if _is_yolo(path):
        layout = read_layout(path)
        return [image for _, image in layout.images(split or chosen_split(layout, "train")[0])]
    return list_images(path) if path.is_dir() else [path]


def _is_yolo(path: Path) -> bool:
    return path.suffix.lower() in (".yaml", ".yml") or about_file(path).is_file()


def _read(path: Path, split: str | None, notify: Callable[[str], None]) -> Iterator[tuple[SourceImage, RGB]]:
    if (path / LEDGER_NAME).is_file():
        yield from _from_run(path)
    elif path.suffix.lower() == ".json":
        coco = CocoSet.open(path)
        _tell(path, strays(coco.folder, coco.files), notify)
        yield from (_labelled(path, item) for item in coco.items())
    elif _is_yolo(path):
        layout = read_layout(path)
        chosen = split or chosen_split(layout, "train")[0]
        files = [file for _, file in layout.images(chosen)]
        _tell(path, strays(layout.file.absolute().parent, files), notify)
        yield from (_labelled(path, item) for item in read_yolo(path, chosen))
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
