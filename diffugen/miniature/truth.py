"""Open the ground truth that a configuration names: a set of the miniature's scenes, or a dataset on disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from diffugen.config.foreign import as_path
from diffugen.dataset.files import Item, OnMistake
from diffugen.dataset.truth import Purpose, Truth, read_truth, split_of
from diffugen.errors import DiffugenError
from diffugen.miniature.scenes import CLASSES
from diffugen.miniature.sets import SCENE_SETS, exact_instances, scene_set

FIRST_TRAINING_SCENE = 100_000
"""Scenes of a set with at least this index are for training."""

_FIRST_SCENE: Mapping[Purpose, int] = {"measure": 0, "decide": 50_000, "train": FIRST_TRAINING_SCENE}
"""The scenes for different purposes are different ones."""


def find_truth(source: str | None, classes: Sequence[str], purpose: Purpose = "measure") -> Truth | None:
    """Open a set of images with ground truth.

    Args:
        source: The name of a set of the miniature's scenes, a folder in the YOLO-seg layout or its
            ``data.yaml``, either of them with ``:<split>`` behind it, or a ``.json`` of COCO instances; None
            for no ground truth.
        classes: The run's classes.
        purpose: What the set is for; see `diffugen.dataset.truth.read_truth`.

    Returns:
        The set; None if ``source`` is None.

    Raises:
        DiffugenError: There is no such set, it is damaged, or it contains none of the classes.
    """
    if source is None:
        return None
    if source not in SCENE_SETS:
        if not as_path(split_of(source)[0], "the labelled set").exists():
            raise DiffugenError(
                f"no truth {source!r}: give a folder in the YOLO-seg layout, a COCO .json, or one of the "
                f"miniature's scene sets: {', '.join(SCENE_SETS)}"
            )
        return read_truth(source, classes, purpose=purpose)
    found = _scenes(source, classes, SCENE_SETS[source][2], _FIRST_SCENE[purpose])
    return found if purpose == "measure" else replace(found, name=f"{source}, scenes to {purpose} with")


def exact_labels(source: str | None, classes: Sequence[str], count: int) -> Truth | None:
    """Return images like those of a ground truth, but disjoint from it, for training a reference.

    Args:
        source: The name or path of the ground truth, as for `find_truth`.
        classes: The run's classes.
        count: Number of images.

    Returns:
        The images with exact labels; None unless ``source`` is a set of the miniature's scenes.
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


def _items(
    name: str, classes: Sequence[str], count: int, start: int, on_mistake: OnMistake | None
) -> Iterator[Item]:
    """Yield drawn scenes; there are no mistakes in them."""
    for number, drawn in enumerate(scene_set(name, count, start=start)):
        yield f"{name}-{start + number}", drawn.rgb, exact_instances(drawn).of_classes(classes)
