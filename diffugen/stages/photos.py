"""Label any images with a detector or a decoder, as a dataset. Not a stage: no run keeps it.

What was found is kept beside the dataset, image by image, until the dataset is complete: a call that was
killed continues.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffugen.dataset.files import Item, read_image
from diffugen.errors import DiffugenError, StoreError, did_you_mean, some_lines
from diffugen.labels.pictures import Panel, contact_sheet, enlarged, label_overlay
from diffugen.records import Instances
from diffugen.run.found import FoundObjects
from diffugen.run.ledger import LEDGER_NAME
from diffugen.run.rounds import Run
from diffugen.run.store import RunStore
from diffugen.run.temporary import temporary_folder
from diffugen.stages.export import check_format, dataset_writer
from diffugen.stages.finders import Finder
from diffugen.stages.sources import check_source, source_files

SHEET_IMAGES, PANEL_HEIGHT = 12, 160
"""Images on the contact sheet, and the height of each in pixels."""


@dataclass(frozen=True)
class _Image:
    """An image to label.

    Attributes:
        read: Reads its pixels, uint8 (H, W, 3) RGB.
        mark: Changes when the image does.
    """

    read: Callable[[], NDArray[np.uint8]]
    mark: str = ""


Images = Mapping[str, _Image]
"""From the name of an image in the dataset to the image."""


@dataclass(frozen=True)
class LabelledImages:
    """A dataset that was labelled.

    Attributes:
        folder: The folder of the dataset.
        images: Number of images.
        objects: From a class to the number of its objects.
        empty: Number of images without an object.
        sheet: The contact sheet.
    """

    folder: Path
    images: int
    objects: Mapping[str, int]
    empty: int
    sheet: Path


def label_images(
    run: Run,
    source: str,
    finder: Finder,
    out: Path,
    format: str,
    *,
    renamed: Mapping[str, str],
    only: Sequence[str] = (),
) -> LabelledImages:
    """Label images, and write them as a dataset with one split, ``train``.

    Args:
        run: Shows the progress, and is not written to.
        source: A folder of photos, an image file, a labelled set, whose labels are ignored, or a run.
        finder: Finds the objects.
        out: The folder to write, new or empty.
        format: ``yolo-seg``, ``coco`` or ``fiftyone``.
        renamed: From the finder's name of a class to its name in the dataset, where that is another;
            several can become one.
        only: The classes, by their names in the dataset, whose objects are kept; empty for all.

    Raises:
        DiffugenError: There are no images, some cannot be read, or a class or the format is unknown.
        StoreError: The folder is in use or cannot be written.
    """
    check_format(format)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise StoreError(f"{out} is in use; remove it or choose another folder for the dataset")
    names = _names(finder.class_names, renamed)
    kept = _kept(list(dict.fromkeys(names.values())), only)
    with _images(source) as images:
        keys = {name: f"{finder.method} {one.mark}" for name, one in images.items()}
        found = FoundObjects(out.absolute().with_name(f".{out.name}.found"), keys)
        _find(run, images, found, finder)

        def labels(name: str) -> Instances:
            return found.instances(name).renamed(names).of_classes(kept)

        def items() -> Iterator[Item]:
            yield from ((name, one.read(), labels(name)) for name, one in images.items())

        with temporary_folder("label") as folder, dataset_writer(format, folder) as write:
            write(out, {"train": items()}, kept)
        counts = Counter(name for image in images for name in labels(image).class_names)
        empty = sum(not len(labels(image)) for image in images)
        sheet = _sheet(images, labels, kept, out / "contact-sheet.png")
    found.remove()
    return LabelledImages(out, len(images), {name: counts[name] for name in kept}, empty, sheet)


def _names(known: Sequence[str], renamed: Mapping[str, str]) -> dict[str, str]:
    """Return the name in the dataset of each of the finder's classes."""
    for theirs, name in renamed.items():
        if theirs not in known:
            raise DiffugenError(
                f"--class-map {name}={theirs}: there is no class {theirs!r} to rename"
                f"{did_you_mean(theirs, known)}; there are {', '.join(known)}"
            )
    return {**{name: name for name in known}, **renamed}


def _kept(names: Sequence[str], only: Sequence[str]) -> list[str]:
    for name in only:
        if name not in names:
            raise DiffugenError(
                f"--only {name}: there is no such class{did_you_mean(name, names)}; there are "
                f"{', '.join(names)}"
            )
    return [name for name in names if not only or name in only]


@contextmanager
def _images(source: str) -> Iterator[Images]:
    """Open a source; photos of one stem keep their suffixes in their names."""
    path = check_source(source)
    if (path / LEDGER_NAME).is_file():
        with RunStore.open(path, readonly=True) as store:
            yield {one: _Image(partial(store.image, one)) for one in store.image_ids()}
        return
    files = source_files(source)
    if not files:
        raise DiffugenError(f"{source} has no images")
    base = Path(os.path.commonpath([file.parent for file in files]))
    inside = {file: "-".join(file.relative_to(base).parts) for file in files}
    stems = Counter(Path(name).stem for name in inside.values())
    images: dict[str, _Image] = {}
    for file, name in inside.items():
        stem, suffix = os.path.splitext(name)
        called = stem if stems[stem] == 1 else f"{stem}-{suffix[1:]}"
        if called in images:
            raise DiffugenError(f"two images would be called {called!r} in the dataset; rename {file}")
        stat = file.stat()
        images[called] = _Image(partial(read_image, file), f"{stat.st_size} {stat.st_mtime_ns}")
    yield images


def _find(run: Run, images: Images, found: FoundObjects, finder: Finder) -> None:
    """Find the objects in the images that lack them; all are read before the first is labelled."""
    missing, mistakes = found.missing(), list[str]()
    with run.progress("check the images", "image") as on_progress:
        for done, name in enumerate(missing, start=1):
            try:
                images[name].read()
            except DiffugenError as error:
                mistakes.append(str(error))
            on_progress(done, len(missing))
    if mistakes:
        raise DiffugenError("\n".join(some_lines(mistakes)))
    with run.progress("label", "image") as on_progress:
        on_progress(0, len(missing))
        for first in range(0, len(missing), finder.at_a_time):
            part = missing[first : first + finder.at_a_time]

            def on_share(share: float, first: int = first) -> None:
                on_progress(first + share, len(missing))

            pixels = [images[name].read() for name in part]
            found.add(dict(zip(part, finder.find(pixels, on_share), strict=True)))
            on_progress(first + len(part), len(missing))


def _sheet(images: Images, labels: Callable[[str], Instances], classes: Sequence[str], path: Path) -> Path:
    """Write a contact sheet of images spread evenly over all: each as it is, and with its objects."""
    names = list(images)
    stride = max(1.0, len(names) / SHEET_IMAGES)
    panels = []
    for name in (names[int(number * stride)] for number in range(min(SHEET_IMAGES, len(names)))):
        rgb = images[name].read()
        marked = label_overlay(rgb, labels(name), PANEL_HEIGHT, classes)
        panels.append(Panel([enlarged(rgb, PANEL_HEIGHT), marked], name))
    return contact_sheet(
        panels, path, columns=3, height=PANEL_HEIGHT, title=f"{path.parent.name}: {', '.join(classes)}"
    )
