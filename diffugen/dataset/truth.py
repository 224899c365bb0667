"""Read truth, or any labelled set, in the classes of a run: the one door to the readers of each format.

Knows which classes of a set are which of the run; not the formats (`diffugen.dataset.yolo`,
`diffugen.dataset.coco`), or what is measured with it.
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
"""Which split of a set is the truth, the first that it has."""


@dataclass(frozen=True)
class Truth:
    """A labelled set in the classes of a run; its images are read when they are asked for.

    Attributes:
        name: What to call it: its folder or file, and the split.
        class_names: The run's classes that the set labels, in the run's order. What a detector says of other
            classes can be neither right nor wrong here.
        unlabelled: The run's classes that the set does not label.
        images: How many images it has.
        source: Called for each pass over the items.
        crowds: How many annotations of crowds are skipped (COCO).
    """

    name: str
    class_names: tuple[str, ...]
    unlabelled: tuple[str, ...]
    images: int
    source: Callable[[], Iterator[Item]] = field(repr=False, compare=False)
    crowds: int = 0

    def items(self) -> Iterator[Item]:
        """Yield the images with the objects of the run's classes, under the run's names, one image in memory
        at a time.

        Raises:
            DiffugenError: For a broken image or label, when it is reached.
        """
        return self.source()


def read_truth(source: str | Path, classes: Sequence[str], *, split: str | None = None) -> Truth:
    """Open a labelled set to measure with.

    Args:
        source: A folder in the YOLO-seg layout or its ``data.yaml``, or a ``.json`` of COCO instances.
        classes: The run's classes.
        split: Which split of a YOLO-seg set; None for ``test``, else ``val``, else ``train``.

    Raises:
        DiffugenError: If there is no such set, it is damaged, or labels none of the classes.

    Example:
        >>> truth = read_truth("truth/data.yaml", ["piano"])  # doctest: +SKIP
        >>> for name, rgb, instances in truth.items():  # doctest: +SKIP
        ...     print(name, len(instances))
    """
    path = Path(source)
    if not path.exists():
        raise DiffugenError(
            f"no truth at {path}: expected a folder with data.yaml (YOLO-seg), that file, or a .json of COCO "
            "instances"
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
    """Return which of a set's classes is which of the run's: the same name, or the same but for case, space,
    ``_`` and ``-``.

    Args:
        theirs: The set's classes.
        ours: The run's classes.
        where: What to call the set in the message.

    Returns:
        From a class of the set to a class of the run; classes without a partner are absent.

    Raises:
        DiffugenError: If no class has a partner; the message has both lists and the nearest names.
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
        f"{'; ' + ', '.join(near) if near else ''}; use one name for a class in both"
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
