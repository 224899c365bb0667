"""What goes to an annotation tool and what comes back: images with labels, in no tool's format.

Written are the attention labels, then those model labels that do not say the same: where both sources have an
object of one class with an IoU above `SAME_OBJECT_IOU`, only the attention label is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffugen.labels.shapes import areas, iou_matrix
from diffugen.records import RLE, Instances, content_id
from diffugen.review.judged import SAME_OBJECT_IOU
from diffugen.review.queue import Entry

REVIEWED, REJECT = "reviewed", "reject"
"""Marks that a person can give an image in a tool: its labels are right as they are; it is useless."""

SIDES = ("attention", "model")


@dataclass(frozen=True)
class Drawn:
    """A labelled object in a tool.

    Attributes:
        class_name: Its class.
        mask: Its mask, of the image's size.
        source: ``attention`` or ``model``, whose label it was when it was written; another text if unknown.
        score: Its score in [0, 1]; not read back.
    """

    class_name: str
    mask: RLE
    source: str = ""
    score: float = 1.0


@dataclass(frozen=True)
class Sent:
    """An image for a tool.

    Attributes:
        image_id: The image, and the name of its file without suffix.
        rgb: Its pixels, uint8 (H, W, 3).
        prompt: What it was generated from.
        objects: Its labels.
    """

    image_id: str
    rgb: NDArray[np.uint8]
    prompt: str
    objects: tuple[Drawn, ...]

    @property
    def size_wh(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.rgb.shape[1], self.rgb.shape[0]


@dataclass(frozen=True)
class Answer:
    """What a person left of an image in a tool.

    Attributes:
        image_id: The image.
        objects: Its labels.
        mark: `REVIEWED`, `REJECT` or empty. Without a mark, an image counts as decided only if its labels are
            not those that were written.
        annotator: Who did it, as the tool calls the person; empty if the tool does not say.
        at: When, in ISO 8601; empty if the tool does not say.
    """

    image_id: str
    objects: tuple[Drawn, ...]
    mark: str = ""
    annotator: str = ""
    at: str = ""


SizeOf = Callable[[str], tuple[int, int]]
"""Returns width and height of an image of the run; raises `Unclear` if it has no such image."""

Reader = Callable[[], Answer | None]
"""Reads one image of a file; None if the tool says that nobody has decided it.

It raises a ValueError or `Unclear`, which names the image, if there is a mistake.
"""


@dataclass(frozen=True)
class Package:
    """The images for a tool.

    Attributes:
        run: Name of the run.
        classes: The classes, in the order of their colours.
        images: The images; may be read once only.
    """

    run: str
    classes: Sequence[str]
    images: Iterable[Sent]


def written_labels(entry: Entry) -> tuple[Drawn, ...]:
    """Return the labels of an image that are written: attention's, then what only the model says."""
    sides = [None if one is None else one.instances for one in (entry.attention, entry.model)]
    attention, model = sides
    objects = [] if attention is None else _drawn(attention, "attention", range(len(attention)))
    if model is not None:
        objects += _drawn(model, "model", _new(model, attention))
    return tuple(objects)


def _drawn(labels: Instances, source: str, indices: Iterable[int]) -> list[Drawn]:
    sizes = areas(labels.rles)
    return [
        Drawn(labels.class_names[index], labels.rles[index], source, float(labels.scores[index]))
        for index in indices
        if sizes[index]  # a mask without pixels cannot be seen, and no tool keeps it
    ]


def _new(model: Instances, attention: Instances | None) -> list[int]:
    """Return the indices of the model labels that no attention label repeats."""
    if attention is None or not len(attention):
        return list(range(len(model)))
    overlaps = iou_matrix(model.rles, attention.rles) > SAME_OBJECT_IOU
    return [
        index
        for index, name in enumerate(model.class_names)
        if not any(overlaps[index, other] for other, own in enumerate(attention.class_names) if own == name)
    ]


def outcome(objects: Iterable[Drawn]) -> str:
    """Return 16 hex digits that depend on the classes and masks of an image's labels, in any order."""
    return content_id(sorted([one.class_name, one.mask["counts"]] for one in objects))


def hex_colours(classes: Sequence[str]) -> list[str]:
    """Return a colour such as ``#e6194b`` for each class, that of the package's pictures."""
    from diffugen.labels.pictures import PALETTE

    colours = (PALETTE[number % len(PALETTE)] for number in range(len(classes)))
    return ["#{:02x}{:02x}{:02x}".format(*colour) for colour in colours]


def image_of(name: str) -> str:
    """Return the image id in the name or address of an image file, such as ``images/<id>.png``."""
    return Path(name.replace("\\", "/").split("?")[-1]).stem
