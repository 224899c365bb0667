"""Labelled images as a folder that FiftyOne imports, and back, with exact masks, scores and score terms.

FiftyOne itself writes the folder, as type ``FiftyOneDataset``, so its format follows FiftyOne's versions.
Expects FiftyOne to be connected (`diffugen.review.database`) and leaves nothing in its database.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from diffugen.dataset.files import Item, check_plan, checked, read_image, whole_folder, write_image
from diffugen.errors import DiffugenError
from diffugen.records import Instances, LabelSet
from diffugen.review.detections import to_detections, to_instances
from diffugen.review.judged import Unclear
from diffugen.run.spool import Names

FIELD = "ground_truth"
"""The label field; FiftyOne uses the same name when it imports other formats."""

_TERMS = "score_terms"
"""Key of the dataset's info with the names of the score terms, which are stored as attributes of labels."""


def write_fiftyone(folder: Path, splits: Mapping[str, Iterable[Item]], class_names: Sequence[str]) -> Path:
    """Write a set that ``fiftyone.Dataset.from_dir(dataset_type=fiftyone.types.FiftyOneDataset)`` reads.

    The set is written as a whole or not at all, with one image in memory at a time. Each image is a sample
    tagged with its split; each object is a detection in the field ``ground_truth`` with box, mask, class,
    score as ``confidence``, and the score terms as attributes. The classes are the dataset's
    ``default_classes``. Empty masks are left out.

    Args:
        folder: Folder of the set; must be missing or empty.
        splits: Items of ``train``, ``val`` or ``test``, at least one of them. Names must be unique.
        class_names: The classes, in the order of their numbers.

    Returns:
        The folder.

    Raises:
        DiffugenError: A split, class, name or image is invalid, there is no image, or FiftyOne fails.
        StoreError: The folder is in use or cannot be written.
    """
    import fiftyone as fo
    from pymongo.errors import PyMongoError

    folder = Path(folder)
    failing = f"cannot write {folder}"
    numbers = check_plan(splits, class_names)
    names = Names()
    terms: set[str] = set()
    with whole_folder(folder) as partial, _failures(failing, PyMongoError), _temporary_dataset() as dataset:
        for split, items in splits.items():
            samples = (_sample(partial, split, item, terms) for item in checked(items, numbers, names))
            dataset.add_samples(samples, progress=False)
        if not names:
            raise DiffugenError("a dataset needs at least one image; got none")
        dataset.default_classes = list(class_names)
        dataset.info = {_TERMS: sorted(terms)}
        dataset.save()
        dataset.add_dynamic_sample_fields()
        with _failures(failing):
            dataset.export(
                str(partial),
                fo.types.FiftyOneDataset,
                export_media=False,
                rel_dir=str(partial),
                progress=False,
            )
    return folder


def read_fiftyone(folder: Path, split: str | None = None) -> Iterator[Item]:
    """Yield the images of a FiftyOne dataset folder with their objects, in its order.

    One image is in memory at a time. A detection without a mask becomes a **filled rectangle**, as in
    `diffugen.dataset.yolo.read_yolo`; one without a confidence gets the score 1. For a set made by
    `write_fiftyone`, masks, scores and score terms are exactly those that were written.

    Args:
        folder: Folder of the set, with ``metadata.json`` and ``samples.json``.
        split: A tag of the samples, such as ``train``, ``val`` or ``test``; None for all images.

    Raises:
        DiffugenError: When called: the set, its labels or the split are missing, or a label is invalid. When
            an image is reached: it cannot be read.
    """
    return _items(_entries(Path(folder), split))


@dataclass(frozen=True)
class _Entry:
    name: str
    path: Path
    label: Any  # fiftyone.Detections, or None
    terms: Sequence[str]


def _items(entries: Sequence[_Entry]) -> Iterator[Item]:
    for entry in entries:
        rgb = read_image(entry.path)
        yield entry.name, rgb, _instances(entry, (rgb.shape[1], rgb.shape[0]))


def _sample(folder: Path, split: str, item: Item, terms: set[str]) -> Any:
    """Write the image of an item and return its sample; adds the names of its score terms to ``terms``."""
    import fiftyone as fo

    name, image, instances = item
    path = folder / "data" / f"{name}.png"
    write_image(path, image)
    terms.update(*instances.terms)
    # Masks that are too large for the database go where FiftyOne looks for the files of this field.
    labels = LabelSet(name, "human", instances, "export")
    detections = to_detections(labels, (), folder / "fields" / f"{FIELD}.detections")
    for values in detections:
        values.pop("index")  # in FiftyOne, the number of a track
        values["bounding_box"] = _placed(values["bounding_box"], instances.size_wh)
    return fo.Sample(
        filepath=str(path),
        tags=[split],
        metadata=fo.ImageMetadata(
            size_bytes=path.stat().st_size,
            mime_type="image/png",
            width=image.shape[1],
            height=image.shape[0],
            num_channels=3,
        ),
        **{FIELD: fo.Detections(detections=[fo.Detection(**values) for values in detections])},
    )


def _placed(box: Sequence[float], size_wh: tuple[int, int]) -> list[float]:
    """Return the box, its edges enlarged just enough that FiftyOne, which truncates, gets the same pixels."""
    starts, spans = [], []
    for start, span, side in zip(box[:2], box[2:], size_wh, strict=True):
        first, end = round(start * side), round((start + span) * side)
        while int(start * side) < first:
            start = math.nextafter(start, math.inf)
        while int((start + span) * side) < end:
            span = math.nextafter(span, math.inf)
        starts.append(start)
        spans.append(span)
    return starts + spans


def _entries(folder: Path, split: str | None) -> list[_Entry]:
    import fiftyone as fo

    folder = folder.absolute()
    if not (folder / "metadata.json").is_file():
        raise DiffugenError(
            f"no FiftyOne dataset at {folder}: metadata.json is missing; export one with diffugen export "
            "--format fiftyone, or with dataset.export(folder, fiftyone.types.FiftyOneDataset)"
        )
    with _temporary_dataset() as dataset:
        with _failures(f"cannot read the FiftyOne dataset {folder}"):
            dataset.add_dir(dataset_dir=str(folder), dataset_type=fo.types.FiftyOneDataset, progress=False)
        field, tags = _label_field(dataset, folder), dataset.distinct("tags")
        if split is not None and split not in tags:
            raise DiffugenError(
                f"no sample of {folder} has the tag {split!r}; its tags are {', '.join(tags) or 'none'}"
            )
        terms = dataset.info.get(_TERMS, [])
        return [
            _Entry(_name(Path(sample.filepath), folder), Path(sample.filepath), sample[field], terms)
            for sample in (dataset if split is None else dataset.match_tags(split))
        ]


def _label_field(dataset: Any, folder: Path) -> str:
    """Return the name of the field with the detections."""
    import fiftyone as fo

    schema = dataset.get_field_schema(ftype=fo.EmbeddedDocumentField, embedded_doc_type=fo.Detections)
    if FIELD in schema or len(schema) == 1:
        return FIELD if FIELD in schema else next(iter(schema))
    found = f"several fields with detections ({', '.join(schema)})" if schema else "no field with detections"
    raise DiffugenError(
        f"{folder} has {found}; its labels must be in the field {FIELD!r}, or in its only field"
    )


def _instances(entry: _Entry, size_wh: tuple[int, int]) -> Instances:
    detections = [] if entry.label is None else entry.label.detections
    for detection in detections:
        if detection.mask is None and not detection.mask_path:
            detection.mask = np.ones((1, 1), dtype=bool)
    try:
        instances = to_instances(detections, size_wh, None)
    except Unclear as error:
        raise DiffugenError(f"{entry.path}: {error}") from error
    found = [
        {name: detection[name] for name in entry.terms if detection.has_field(name)}
        for detection in detections
    ]
    terms = tuple({name: float(value) for name, value in one.items() if value is not None} for one in found)
    return replace(instances, terms=terms)


def _name(path: Path, folder: Path) -> str:
    inside = path.relative_to(folder / "data") if path.is_relative_to(folder / "data") else Path(path.name)
    return inside.with_suffix("").as_posix()


@contextmanager
def _temporary_dataset() -> Iterator[Any]:
    """Yield an empty dataset, deleted at the end; if the process is killed, FiftyOne deletes it later."""
    import fiftyone as fo

    dataset = fo.Dataset(f"diffugen-{uuid.uuid4().hex}", persistent=False)
    try:
        yield dataset
    finally:
        dataset.delete()


@contextmanager
def _failures(what: str, kinds: type[Exception] = Exception) -> Iterator[None]:
    try:
        yield
    except DiffugenError:
        raise
    except kinds as error:  # FiftyOne, its database, and damaged files raise a dozen unrelated kinds
        raise DiffugenError(f"{what}: {error or type(error).__name__}") from error
