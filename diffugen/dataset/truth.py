"""Read ground truth, or any labelled set, with the classes of a run, whatever its format.

Knows which classes of a set correspond to which classes of the run; does not know the formats
(`diffugen.dataset.yolo`, `diffugen.dataset.coco`) or what is measured with the set.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from diffugen.dataset.coco import CocoSet
from diffugen.dataset.files import Item
from diffugen.dataset.yolo import read_yolo
from diffugen.dataset.yolo_layout import read_layout
from diffugen.errors import DiffugenError

_MEASURED = ("test", "val", "train")
"""Splits to measure with, in order of preference."""


@dataclass(frozen=True)
class Truth:
    """A labelled set with the classes of a run; its images are read lazily.

    Attributes:
        name: Name of the set: its folder or file, and the split.
        class_names: Classes of the run that the set labels, in the order of the run. Detections of other
            classes cannot be judged with it.
        unlabelled: Classes of the run that the set does not label.
        images: Number of images.
        source: Called for each pass over the items.
        crowds: Number of skipped crowd annotations (COCO).
    """

    name: str
    class_names: tuple[str, ...]
    unlabelled: tuple[str, ...]
    images: int
    source: Callable[[], Iterator[Item]] = field(repr=False, compare=False)
    crowds: int = 0

    def items(self) -> Iterator[Item]:
        """Yield the images and their objects of the run's classes, named as in the run, one image at a time.

        Raises:
            DiffugenError: While iterating, for an unreadable image or an invalid label.
        """
        return self.source()


def read_truth(source: str | Path, classes: Sequence[str], *, split: str | None = None) -> Truth:
    """Open a labelled set.

    Args:
        source: A folder in the YOLO-seg layout or its ``data.yaml``, or a COCO instances ``.json``.
        classes: Classes of the run.
        split: Split of a YOLO-seg set; None for the first of ``test``, ``val`` and ``train`` that exists.

    Raises:
        DiffugenError: There is no such set, it is damaged, or it labels none of the classes.

    Example:
        >>> truth = read_truth("truth/data.yaml", ["piano"])  # doctest: +SKIP
        >>> for name, rgb, instances in truth.items():  # doctest: +SKIP
        ...     print(name, len(instances))
    """
    path = Path(source)
    if not path.exists():
        raise DiffugenError(
            f"no labelled set at {path}: expected a YOLO-seg folder, its data.yaml, or a COCO .json"
        )
    if path.suffix.lower() == ".json":
        coco = CocoSet.open(path)
        return _truth(path.stem, coco.class_names, classes, len(coco.images), coco.crowds, coco.items)
    layout = read_layout(path)
    split = split or next(name for name in _MEASURED if name in layout.parts)
    name = f"{layout.file.absolute().parent.name}/{split}"
    names = tuple(layout.class_names.values())
    return _truth(name, names, classes, len(layout.images(split)), 0, partial(read_yolo, path, split))


def matching_classes(theirs: Sequence[str], ours: Sequence[str], where: str) -> dict[str, str]:
    """Map the classes of a set to equal classes of a run, ignoring case, white space, ``_`` and ``-``.

    Args:
        theirs: Classes of the set.
        ours: Classes of the run.
        where: Name of the set in the error message.

    Returns:
        The run's class for each class of the set that has one; an exact match takes precedence.

    Raises:
        DiffugenError: No class matches; the message lists both sides and the nearest names.
    """
    plain = {_plain(name): name for name in reversed(ours)}
    found = {name: name if name in ours else plain[_plain(name)] for name in theirs if _plain(name) in plain}
    if found:
        return found
    spelt = {_plain(name): name for name in theirs}
    near = [
        f"{name!r} looks like {spelt[other]!r}"
        for name in ours
        for other in difflib.get_close_matches(_plain(name), spelt, n=1)
    ]
    raise DiffugenError(
        f"{where} labels none of the run's classes: it has {_listed(theirs)}, the run has {_listed(ours)}"
        f"{'; ' + ', '.join(near) if near else ''}; use the same class names in both"
    )


def _truth(
    name: str,
    theirs: Sequence[str],
    ours: Sequence[str],
    images: int,
    crowds: int,
    open_items: Callable[[], Iterator[Item]],
) -> Truth:
    classes = matching_classes(theirs, ours, name)
    labelled = set(classes.values())
    return Truth(
        name=name,
        class_names=tuple(name for name in ours if name in labelled),
        unlabelled=tuple(name for name in ours if name not in labelled),
        images=images,
        source=partial(_renamed_items, open_items, classes),
        crowds=crowds,
    )


def _renamed_items(open_items: Callable[[], Iterator[Item]], classes: Mapping[str, str]) -> Iterator[Item]:
    for name, rgb, instances in open_items():
        ours = instances.of_classes(classes)
        yield name, rgb, replace(ours, class_names=tuple(classes[theirs] for theirs in ours.class_names))


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).casefold()


def _listed(names: Sequence[str]) -> str:
    some = ", ".join(map(repr, names[:20]))
    return f"{some} and {len(names) - 20} more" if len(names) > 20 else some
