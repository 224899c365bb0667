"""Read ground truth, or any labelled set, with the classes of a run, whatever its format.

Knows which classes of a set correspond to which classes of the run; does not know the formats
(`diffugen.dataset.yolo`, `diffugen.dataset.coco`) or what is measured with the set.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from diffugen.config.foreign import as_path
from diffugen.dataset.coco import CocoSet
from diffugen.dataset.files import SPLITS, Item, OnMistake, strays
from diffugen.dataset.yolo import count_objects, read_yolo
from diffugen.dataset.yolo_layout import Layout, read_layout
from diffugen.errors import DiffugenError, counted
from diffugen.prompts.names import matching_names, plain

Purpose = Literal["train", "decide", "measure"]

_SPLITS_FOR: Mapping[Purpose, Sequence[str]] = {
    "train": ("train", "val"),
    "decide": ("val", "test", "train"),
    "measure": ("test", "val", "train"),
}
"""Splits of a YOLO-seg set for each purpose, in order of preference. Nothing trains on ``test`` unasked."""


@dataclass(frozen=True)
class Truth:
    """A labelled set with the classes of a run; its images are read lazily.

    Attributes:
        name: Name of the set: its folder or file, and the split.
        class_names: Classes of the run that the set labels, in the order of the run. Detections of other
            classes cannot be judged with it.
        unlabelled: Classes of the run that the set does not label.
        images: Number of images.
        source: Called for each pass over the items, with what takes the mistakes or None.
        crowds: Number of crowds (COCO's ``iscrowd``), of any class, which are no objects.
        objects: Objects of each class of the run; empty where counting them is not worth the time.
        notes: What a user has to know about the set: what is left out, or which split stands in for another.
        files: The image files; empty for images that are drawn.
    """

    name: str
    class_names: tuple[str, ...]
    unlabelled: tuple[str, ...]
    images: int
    source: Callable[[OnMistake | None], Iterator[Item]] = field(repr=False, compare=False)
    crowds: int = 0
    objects: Mapping[str, int] = field(default_factory=dict, compare=False)
    notes: tuple[str, ...] = ()
    files: tuple[Path, ...] = field(default=(), repr=False, compare=False)

    @property
    def census(self) -> str:
        """What is in the set, in one line."""
        parts = [counted(self.images, "image")]
        if self.objects:
            parts.append(f"objects: {by_class(self.objects)}")
        if self.unlabelled:
            parts.append(f"without labels for {', '.join(self.unlabelled)}")
        return f"{self.name}: {'; '.join([*parts, *self.notes])}"

    def items(self, on_mistake: OnMistake | None = None) -> Iterator[Item]:
        """Yield the images and their objects of the run's classes, named as in the run, one image at a time.

        Args:
            on_mistake: Takes the mistakes that are found; None raises them.

        Raises:
            DiffugenError: While iterating, for an unreadable image or an invalid label.
        """
        return self.source(on_mistake)


def read_truth(
    source: str | Path, classes: Sequence[str], *, split: str | None = None, purpose: Purpose = "measure"
) -> Truth:
    """Open a labelled set.

    Args:
        source: A folder in the YOLO-seg layout or its ``data.yaml``, or a COCO instances ``.json``; with
            ``:train``, ``:val`` or ``:test`` behind it, that split of a YOLO-seg set.
        classes: Classes of the run.
        split: Split of a YOLO-seg set; None for the one that ``source`` names or, if it names none, the one
            that is there and fits the purpose best.
        purpose: What the set is for.

    Raises:
        DiffugenError: There is no such set, it is damaged, has no split for this purpose or no object of the
            classes, or a class that would be left out looks like a misspelt one of the run.

    Example:
        >>> truth = read_truth("truth/data.yaml", ["piano"])  # doctest: +SKIP
        >>> for name, rgb, instances in truth.items():  # doctest: +SKIP
        ...     print(name, len(instances))
    """
    path, named = split_of(str(as_path(source, "the labelled set")))
    split = split or named
    notes: tuple[str, ...] = ()
    if not path.exists():
        raise DiffugenError(
            f"no labelled set at {path}: expected a YOLO-seg folder, its data.yaml, or a COCO .json"
        )
    if path.suffix.lower() == ".json":
        if split is not None:
            raise DiffugenError(
                f"{path} is one split; give the .json of the split {split!r} instead of naming it"
            )
        coco = CocoSet.open(path)
        if coco.crowds:
            notes = (f"{counted(coco.crowds, 'crowd')} (iscrowd), no objects but ignored regions",)
        notes += strays(coco.folder, coco.files)
        return _truth(
            path.stem, coco.class_names, classes, coco.files, coco.items, coco.counts, notes, coco.crowds
        )
    layout = read_layout(path)
    if split is None:
        split, notes = chosen_split(layout, purpose)
    images = layout.images(split)
    counts, without = count_objects(images, layout.class_names)
    if without:
        notes = (*notes, f"{counted(without, 'image')} without a label file taken as background")
    notes += strays(layout.file.absolute().parent, (image for _, image in images))
    return _truth(
        f"{layout.file.absolute().parent.name}/{split}",
        tuple(layout.class_names.values()),
        classes,
        tuple(image for _, image in images),
        partial(read_yolo, layout.file, split),
        counts,
        notes,
    )


def split_of(source: str) -> tuple[Path, str | None]:
    """Return the path of a set and the split that is named behind it, as in ``sets/cars:val``, or None."""
    path, colon, split = source.rpartition(":")
    if colon and split in SPLITS and not Path(source).exists():
        return Path(path), split
    return Path(source), None


def common_images(first: Sequence[Path], second: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Return pairs of image files, one of each list, that are the same file or have the same content."""
    theirs = {path.resolve(): path for path in second}
    by_size: dict[int, list[Path]] = {}
    for path in filter(Path.is_file, second):
        by_size.setdefault(path.stat().st_size, []).append(path)
    digests: dict[Path, bytes] = {}

    def digest(path: Path) -> bytes:
        if path not in digests:
            with path.open("rb") as file:
                digests[path] = hashlib.file_digest(file, "sha256").digest()
        return digests[path]

    found = []
    for path in filter(Path.is_file, first):
        same = theirs.get(path.resolve())
        if same is None:
            alike = by_size.get(path.stat().st_size, [])
            same = next((other for other in alike if digest(other) == digest(path)), None)
        if same is not None:
            found.append((path, same))
    return found


def chosen_split(layout: Layout, purpose: Purpose) -> tuple[str, tuple[str, ...]]:
    """Return the split for a purpose, and what to say about it if it is not the usual one.

    Raises:
        DiffugenError: The set has no split that fits the purpose, or its images are missing.
    """
    wanted = _SPLITS_FOR[purpose]
    found = next((name for name in wanted if layout.exists(name)), None)
    if found is None:
        named = next((name for name in wanted if name in layout.parts), None)
        if named is not None:
            layout.images(named)  # says what is missing
        raise DiffugenError(
            f"{layout.file} has no split to {purpose} with, only {', '.join(layout.parts)}; to use that all "
            f"the same, name it: {layout.file.parent}:{next(iter(layout.parts))}"
        )
    missed = [name for name in wanted[: wanted.index(found)] if name in layout.parts]
    if found == wanted[0]:
        return found, ()
    why = f"its images do not exist ({', '.join(missed)})" if missed else f"there is no split {wanted[0]}"
    return found, (f"{found} is used, because {why}",)


def matching_classes(theirs: Sequence[str], ours: Sequence[str], where: str) -> dict[str, str]:
    """Map the classes of a set to the same classes of a run; see `diffugen.prompts.names.matching_names`.

    Args:
        theirs: Classes of the set.
        ours: Classes of the run.
        where: Name of the set in the error message.

    Returns:
        The run's class for each class of the set that has one; an exact match takes precedence.

    Raises:
        DiffugenError: No class matches; the message lists both sides and the nearest names.
    """
    found = matching_names(theirs, ours)
    if found:
        return found
    spelt = {plain(name): name for name in theirs}
    near = [
        f"{name!r} looks like {spelt[other]!r}"
        for name in ours
        for other in difflib.get_close_matches(plain(name), spelt, n=1)
    ]
    raise DiffugenError(
        f"{where} labels none of the run's classes: it has {_listed(theirs)}, the run has {_listed(ours)}"
        f"{'; ' + ', '.join(near) if near else ''}; use the same class names in both"
    )


def refuse_misspelt(where: str, dropped: Mapping[str, int], lacking: Sequence[str]) -> None:
    """Refuse labels that would be left out because of the spelling of their class.

    Args:
        where: Name of the set in the error message.
        dropped: Number of objects of each class that the run does not have.
        lacking: Classes of the run that the set has no labels of.

    Raises:
        DiffugenError: A class of ``dropped`` with an object looks like one of ``lacking``.
    """
    for wanted in lacking:
        alike = next((one for one in dropped if dropped[one] and _resembles(one, wanted)), None)
        if alike is not None:
            raise DiffugenError(
                f"{where} has no class {wanted!r}, but {counted(dropped[alike], 'object')} of a class "
                f"{alike!r}, which would be left out; use the same name in both, or a clearly different one"
            )


def _truth(
    name: str,
    theirs: Sequence[str],
    ours: Sequence[str],
    files: tuple[Path, ...],
    open_items: Callable[[OnMistake | None], Iterator[Item]],
    counts: Mapping[str, int],
    notes: tuple[str, ...],
    crowds: int = 0,
) -> Truth:
    classes = matching_classes(theirs, ours, name)
    labelled = set(classes.values())
    unlabelled = tuple(name for name in ours if name not in labelled)
    dropped = {one: counts.get(one, 0) for one in theirs if one not in classes}
    refuse_misspelt(name, dropped, unlabelled)
    objects = dict.fromkeys((one for one in ours if one in labelled), 0)
    for one, count in counts.items():
        if one in classes:
            objects[classes[one]] += count
    if not any(objects.values()):
        raise DiffugenError(
            f"{name} has {counted(len(files), 'image')}, but no object of the run's classes {_listed(ours)}"
            f"{'; ' + '; '.join(notes) if notes else ''}"
        )
    left = by_class(dropped)
    other = ", ".join(f"{one} as {run}" for one, run in classes.items() if one != run)
    return Truth(
        name=name,
        class_names=tuple(objects),
        unlabelled=unlabelled,
        images=len(files),
        source=partial(_renamed_items, open_items, classes),
        crowds=crowds,
        objects=objects,
        notes=(
            *notes,
            *([f"read {other}"] if other else []),
            *([f"left out, of no class of the run: {left}"] if left else []),
        ),
        files=files,
    )


def _renamed_items(
    open_items: Callable[[OnMistake | None], Iterator[Item]],
    classes: Mapping[str, str],
    on_mistake: OnMistake | None,
) -> Iterator[Item]:
    for name, rgb, instances in open_items(on_mistake):
        yield name, rgb, instances.of_classes(classes).renamed(classes)


def by_class(counts: Mapping[str, int]) -> str:
    """Return numbers of objects by class as text; classes without one are left out."""
    return ", ".join(f"{name} {count:,}" for name, count in counts.items() if count)


def _resembles(first: str, second: str) -> bool:
    """Return whether two class names differ by a plural's ending or by a slip of the pen."""
    first, second = sorted((plain(first), plain(second)), key=len)
    slip = difflib.SequenceMatcher(None, first, second).ratio() >= 0.85 and len(first) >= 5
    return slip or second in (f"{first}s", f"{first}es")


def _listed(names: Sequence[str]) -> str:
    some = ", ".join(map(repr, names[:20]))
    return f"{some} and {len(names) - 20} more" if len(names) > 20 else some
