"""Label any images with a detector alone, as a dataset. Not a stage: no run keeps it.

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

from diffugen.config.sections import DetectorSettings
from diffugen.dataset.files import Item, read_image
from diffugen.errors import DiffugenError, StoreError, did_you_mean, some_lines
from diffugen.labels.objects import one_mask_per_object
from diffugen.labels.pictures import Panel, contact_sheet, enlarged, label_overlay
from diffugen.labels.tiles import Window, merged, scaled_down, tile_windows
from diffugen.records import Instances
from diffugen.run.found import FoundObjects
from diffugen.run.ledger import LEDGER_NAME
from diffugen.run.rounds import OnProgress, Run
from diffugen.run.store import RunStore
from diffugen.stages.detector import OpenDetector, open_detector
from diffugen.stages.export import check_format, dataset_writer
from diffugen.stages.sources import check_source, source_files

PREDICTED_AT_A_TIME = 16
"""Images or tiles of an image in memory at a time; images of 12 megapixels take 0.6 GB."""

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
    """A dataset that a detector labelled.

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
    checkpoint: str,
    settings: DetectorSettings,
    out: Path,
    format: str,
    *,
    renamed: Mapping[str, str],
    only: Sequence[str] = (),
    tile_size: int | None = None,
) -> LabelledImages:
    """Label images with a detector, and write them as a dataset with one split, ``train``.

    With tiles, one image is in memory at a time, with `PREDICTED_AT_A_TIME` tiles and their masks. Masks of
    the image's size are run lengths, of which one is decoded at a time. The peak is reading and writing the
    image: at most about 20 bytes a pixel; 2.4 GB in all were measured with 100 megapixels.

    Args:
        run: A run whose classes are the detector's; it shows the progress and is not written to.
        source: A folder of photos, an image file, a labelled set, whose labels are ignored, or a run.
        checkpoint: The detector.
        settings: Device, prediction size, least confidence, and whether its output is post-processed.
        out: The folder to write, new or empty.
        format: ``yolo-seg``, ``coco`` or ``fiftyone``.
        renamed: From the detector's name of a class to its name in the dataset, where that is another;
            several can become one.
        only: The classes, by their names in the dataset, whose objects are kept; empty for all.
        tile_size: Side in pixels of the tiles that larger images are cut into; see `diffugen.labels.tiles`.
            None for no tiles.

    Raises:
        DiffugenError: There are no images, some cannot be read, or a class or the format is unknown.
        ModelError: The checkpoint cannot be loaded.
        StoreError: The folder is in use or cannot be written.
    """
    check_format(format)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise StoreError(f"{out} is in use; remove it or choose another folder for the dataset")
    names = _names(run.class_names, renamed)
    kept = _kept(list(dict.fromkeys(names.values())), only)
    with _images(source) as images:
        detector = open_detector(run, checkpoint, settings)
        method = detector.method({}, settings.confidence)
        tiles = "" if tile_size is None else f" {tile_size}px"
        keys = {name: f"{method}{tiles} {one.mark}" for name, one in images.items()}
        found = FoundObjects(out.absolute().with_name(f".{out.name}.found"), keys)
        _find(run, images, found, detector, tile_size)

        def labels(name: str) -> Instances:
            return found.instances(name).renamed(names).of_classes(kept)

        def items() -> Iterator[Item]:
            yield from ((name, one.read(), labels(name)) for name, one in images.items())

        with dataset_writer(format, run.folder) as write:
            write(out, {"train": items()}, kept)
        counts = Counter(name for image in images for name in labels(image).class_names)
        empty = sum(not len(labels(image)) for image in images)
        sheet = _sheet(images, labels, kept, out / "contact-sheet.png")
    found.remove()
    return LabelledImages(out, len(images), {name: counts[name] for name in kept}, empty, sheet)


def _names(known: Sequence[str], renamed: Mapping[str, str]) -> dict[str, str]:
    """Return the name in the dataset of each of the detector's classes."""
    for theirs, name in renamed.items():
        if theirs not in known:
            raise DiffugenError(
                f"--class-map {name}={theirs}: the detector has no class {theirs!r}"
                f"{did_you_mean(theirs, known)}; it has {', '.join(known)}"
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
            yield {one.id: _Image(partial(store.image, one.id)) for one in store.records()}
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


def _find(
    run: Run, images: Images, found: FoundObjects, detector: OpenDetector, tile_size: int | None
) -> None:
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
        if tile_size is not None:
            for number, name in enumerate(missing):
                on_share = partial(_report_share, on_progress, number, len(missing))
                found.add({name: _predict_tiles(detector, images[name].read(), tile_size, on_share)})
                on_progress(number + 1, len(missing))
            return
        for first in range(0, len(missing), PREDICTED_AT_A_TIME):
            part = missing[first : first + PREDICTED_AT_A_TIME]
            pixels = [images[name].read() for name in part]
            found.add(dict(zip(part, detector.predict(pixels, detector.settings.confidence), strict=True)))
            on_progress(first + len(part), len(missing))


def _report_share(on_progress: OnProgress, number: int, images: int, share: float) -> None:
    on_progress(number + share, images)


def _predict_tiles(
    detector: OpenDetector, rgb: NDArray[np.uint8], tile_size: int, on_share: Callable[[float], None]
) -> Instances:
    """Return the objects in an image, found in its tiles and in the whole, scaled down to a tile's size."""
    confidence = detector.settings.confidence
    size_wh = (rgb.shape[1], rgb.shape[0])
    windows = tile_windows(size_wh, tile_size)
    if len(windows) == 1:
        return detector.predict([rgb], confidence)[0]
    [whole] = detector.predict([scaled_down(rgb, tile_size)], confidence)
    tiles: list[tuple[Window, Instances]] = []
    for first in range(0, len(windows), PREDICTED_AT_A_TIME):
        part = windows[first : first + PREDICTED_AT_A_TIME]
        pixels = [rgb[upper:lower, left:right] for left, upper, right, lower in part]
        tiles += zip(part, detector.predict(pixels, confidence), strict=True)
        on_share(len(tiles) / (len(windows) + 1))
    found = merged(size_wh, whole, tiles)
    return one_mask_per_object(found) if detector.settings.postprocess else found


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
