"""Find the truth that a configuration names: a set of the miniature's scenes, or a labelled set on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from diffugen.dataset.files import Item
from diffugen.dataset.truth import Truth, read_truth
from diffugen.errors import DiffugenError
from diffugen.miniature.scenes import CLASSES, SCENE_SETS, exact_instances, scene_set

FIRST_TRAINING_SCENE = 100_000
"""Scenes of a set from this number on are for training; the truth's own come before."""


def find_truth(source: str | None, classes: Sequence[str]) -> Truth | None:
    """Open the labelled images that a name or path stands for; None stands for none.

    Args:
        source: The name of a set of the miniature's scenes, a folder in the YOLO-seg layout or its
            ``data.yaml``, or a ``.json`` of COCO instances.
        classes: The run's classes.

    Raises:
        DiffugenError: There is no such set, it is damaged, or it labels none of the classes.
    """
    if source is None:
        return None
    if source not in SCENE_SETS:
        if not Path(source).exists():
            raise DiffugenError(
                f"no truth {source!r}: give a folder in the YOLO-seg layout, a COCO .json, or one of the "
                "miniature's scene sets: "
                f"{', '.join(SCENE_SETS)}"
            )
        return read_truth(source, classes)
    return _scenes(source, classes, SCENE_SETS[source][2], 0)


def exact_labels(source: str | None, classes: Sequence[str], count: int) -> Truth | None:
    """Return exactly labelled images of the same kind as a truth, none of them part of it, to train a
    reference on.

    Args:
        source: As in `find_truth`.
        classes: The run's classes.
        count: How many images.

    Returns:
        The images; None where the truth is a fixed set, which has no more of its kind.
    """
    return _scenes(source, classes, count, FIRST_TRAINING_SCENE) if source in SCENE_SETS else None


def _scenes(name: str, classes: Sequence[str], count: int, start: int) -> Truth:
    known = tuple(one for one in classes if one in CLASSES)
    if not known:
        raise DiffugenError(
            f"the scenes of {name!r} have none of the classes {', '.join(classes)}; they have "
            f"{', '.join(CLASSES)}"
        )
    unlabelled = tuple(one for one in classes if one not in CLASSES)
    return Truth(name, known, unlabelled, count, partial(_items, name, known, count, start))


def _items(name: str, classes: Sequence[str], count: int, start: int) -> Iterator[Item]:
    for number, drawn in enumerate(scene_set(name, count, start=start)):
        yield f"{name}-{start + number}", drawn.rgb, exact_instances(drawn).of_classes(classes)
