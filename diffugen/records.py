"""Plain validated records that pass between stages.

Knows numpy and nothing else of the package's dependencies: no record holds a tensor, a PIL image or a
library's result object.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

STEP_THIRDS = 3
"""Heat maps are kept apart for the first, middle and last third of the denoising steps."""

SOURCES = ("attention", "model", "human", "carried")
"""Where a label set can come from; ``carried``: from the image that this one was made of, where nothing was
painted over."""

TASKS = ("txt2img", "img2img", "inpaint")
"""How an image can be made: from a prompt alone, from another image, or in a region of another image."""

KINDS = ("overlooked", "spurious", "swapped", "badly_located")
"""Kinds of disagreement between the attention labels and the model labels of an image; see `Disagreement`."""

VERDICTS = ("attention", "model", "edited", "empty", "reject")
"""What a person can decide about an image; see `Decision`."""

FIELD = re.compile(r"\{([^{}]*)\}")
"""A ``{field}`` of a template; its first group is the field's name."""

RLE = dict[str, Any]
"""COCO run-length encoding of one mask: ``{"size": [height, width], "counts": str}`` (compressed, ASCII)."""


def one_line(text: str) -> str:
    """Return the text with every run of white space, line breaks included, made one blank."""
    return " ".join(text.split())


def content_id(*parts: Any) -> str:
    """Return 16 hex digits that depend on the JSON form of ``parts`` alone (stable over processes and
    machines).
    """
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Phrase:
    """Words of a prompt whose attention is traced.

    Attributes:
        text: The words as they stand in the prompt, e.g. ``"grand piano"``.
        class_name: The class they name, or None for a background word (``"road"``) that only competes.
    """

    text: str
    class_name: str | None


@dataclass(frozen=True)
class Prompt:
    """One text prompt with the phrases to trace.

    Attributes:
        text: What the model reads.
        phrases: What is traced.
        negative: What the image should not show.
        attributes: The values that the template's fields were filled with.
        template: The text with its ``{field}`` places; empty where there is none.
    """

    text: str
    phrases: tuple[Phrase, ...]
    negative: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
    template: str = ""

    @property
    def id(self) -> str:
        """Hash of text, negative text and phrases."""
        return content_id(self.text, self.negative, [[p.text, p.class_name] for p in self.phrases])


@dataclass(frozen=True)
class ImageRecord:
    """A generated image: what made it, and thereby its identity.

    Attributes:
        prompt: The prompt it was generated from.
        seed: Seed of its own noise, in [0, 2**63).
        size_wh: Width and height in pixels.
        model: Name or folder of the diffusion model, as configured.
        task: ``txt2img``, ``img2img`` or ``inpaint``.
        settings: What else decides its pixels (``num_inference_steps``, ``guidance_scale``, ``scheduler``
            ...); JSON values.
        round: The round of the loop that generated it.
        parent: The image it was made of: an image's id, or ``photo-`` and a hash of the pixels; None for
            ``txt2img``.
        region: What was painted over, as RLE of its own size; None unless ``inpaint``.
        origin: The `family` of its parent; empty for ``txt2img``.
        source: Where the parent lies, for a reader: a file, or a run's folder.
        step: Name of the configured task that made it; empty where tasks have no names.
    """

    prompt: Prompt
    seed: int
    size_wh: tuple[int, int]
    model: str
    task: str = "txt2img"
    settings: Mapping[str, Any] = field(default_factory=dict)
    round: int = 0
    parent: str | None = None
    region: RLE | None = None
    origin: str = ""
    source: str = ""
    step: str = ""

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"unknown task {self.task!r}; one of {', '.join(TASKS)}")
        if (self.parent is not None, self.region is not None) != (
            self.task != "txt2img",
            self.task == "inpaint",
        ):
            raise ValueError(
                f"an image of task {self.task} cannot have parent={self.parent}, region={self.region}"
            )
        if self.region is not None and list(self.region["size"]) != [self.size_wh[1], self.size_wh[0]]:
            raise ValueError(f"a region of size (h, w) = {self.region['size']} in an image of {self.size_wh}")

    @property
    def id(self) -> str:
        """Hash of everything that decides the pixels; the round is not part of it."""
        made_of = [] if self.parent is None else [self.parent, self.region]
        return content_id(
            self.prompt.id,
            self.seed,
            list(self.size_wh),
            self.model,
            self.task,
            dict(self.settings),
            *made_of,
        )

    @property
    def family(self) -> str:
        """What it shares with the images that look like it: the prompt or photo it goes back to.

        Images of one family must not be parted between training and validation.
        """
        return self.origin or self.prompt.id


@dataclass(frozen=True)
class HeatMaps:
    """Cross-attention of one image, per phrase, third of the steps, and layer group.

    Attributes:
        image_id: The image they belong to.
        size_wh: Width and height of that image in pixels.
        phrases: The P traced phrases, in the order of the arrays' first axis.
        maps: From a layer group, ``"<place>-<h>x<w>"`` with place ``down``, ``mid``, ``up`` or ``joint``, to
            a float16 array (P, 3, h, w): attention probability in [0, 1], averaged over heads, layers of the
            group, steps of the third, and the tokens of the phrase.
        region: What was painted over, as RLE of the image's size: only there can they tell objects. None:
            everywhere.
        window_xyxy: Left, upper, right and lower edge, in pixels, of the part of the image that they cover;
            None: all of it.
    """

    image_id: str
    size_wh: tuple[int, int]
    phrases: tuple[Phrase, ...]
    maps: Mapping[str, NDArray[np.float16]]
    region: RLE | None = None
    window_xyxy: tuple[int, int, int, int] | None = None

    def __post_init__(self) -> None:
        for group, array in self.maps.items():
            if array.ndim != 4 or array.shape[:2] != (len(self.phrases), STEP_THIRDS):
                raise ValueError(
                    f"heat maps of group {group!r} have shape {array.shape}; "
                    f"expected ({len(self.phrases)} phrases, {STEP_THIRDS} thirds, h, w)"
                )


GeneratedImage = tuple[ImageRecord, NDArray[np.uint8], HeatMaps, float]
"""A generated image: its record, pixels uint8 (H, W, 3), heat maps, and the seconds that it took."""


@dataclass(frozen=True)
class Instances:
    """The N objects that one label set places in one image.

    Attributes:
        size_wh: Width and height of the image in pixels.
        class_names: N class names.
        rles: N masks as COCO RLE of size (height, width): lossless, so holes and several pieces stay one
            instance.
        scores: float64 (N,), label score (attention, human) or detector confidence (model), in [0, 1].
        terms: N mappings from score term to its value in [0, 1]; empty mappings where a source has none.
    """

    size_wh: tuple[int, int]
    class_names: tuple[str, ...]
    rles: tuple[RLE, ...]
    scores: NDArray[np.float64]
    terms: tuple[Mapping[str, float], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "scores", np.asarray(self.scores, dtype=np.float64).reshape(-1))
        if not self.terms:
            object.__setattr__(self, "terms", tuple({} for _ in self.class_names))
        counts = {len(self.class_names), len(self.rles), len(self.scores), len(self.terms)}
        if len(counts) != 1:
            raise ValueError(
                f"an Instances needs as many class names ({len(self.class_names)}), masks "
                f"({len(self.rles)}), "
                f"scores ({len(self.scores)}) and terms ({len(self.terms)})"
            )
        size_hw = [self.size_wh[1], self.size_wh[0]]
        for rle in self.rles:
            if list(rle["size"]) != size_hw:
                raise ValueError(f"a mask of size (h, w) = {list(rle['size'])} in an image of size {size_hw}")
        if len(self.scores) and not (self.scores.min() >= 0 and self.scores.max() <= 1):
            raise ValueError(f"scores must lie in [0, 1], got {self.scores.tolist()}")

    def __len__(self) -> int:
        return len(self.class_names)

    def take(self, indices: Sequence[int]) -> Instances:
        """Return the instances of these indices, in their order."""
        return Instances(
            self.size_wh,
            tuple(self.class_names[index] for index in indices),
            tuple(self.rles[index] for index in indices),
            self.scores[list(indices)],
            tuple(self.terms[index] for index in indices),
        )

    def joined(self, others: Instances) -> Instances:
        """Return these instances and then others of the same image."""
        return Instances(
            self.size_wh,
            self.class_names + others.class_names,
            self.rles + others.rles,
            np.concatenate([self.scores, others.scores]),
            self.terms + others.terms,
        )

    def of_classes(self, class_names: Collection[str]) -> Instances:
        """Return the instances of these classes."""
        return self.take([index for index, name in enumerate(self.class_names) if name in class_names])


@dataclass(frozen=True)
class LabelSet:
    """All labels of one source for one image.

    Attributes:
        image_id: The image.
        source: ``attention``, ``model`` or ``human``.
        instances: The labelled objects; may be empty.
        method: Provenance: hash of the label settings, the checkpoint's id, or the reviewer.
        round: The round that made them.
    """

    image_id: str
    source: str
    instances: Instances
    method: str
    round: int = 0

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise ValueError(f"unknown label source {self.source!r}; one of {', '.join(SOURCES)}")


@dataclass(frozen=True, slots=True)
class Disagreement:
    """One point at which the two label sets of an image contradict each other.

    Attributes:
        image_id: The image.
        kind: ``overlooked`` (the model sees it, attention missed it), ``spurious`` (the reverse), ``swapped``
            (one place, two classes) or ``badly_located`` (one class, low IoU).
        severity: In [0, 1]; higher is worse. See `diffugen.comparison.disagreement`.
        attention: Index in the attention labels; None if overlooked.
        model: Index in the model labels; None if spurious.
        iou: Mask IoU of the two; of an instance alone, its highest IoU with anything on the other side. In
            [0, 1].
    """

    image_id: str
    kind: str
    severity: float
    attention: int | None
    model: int | None
    iou: float

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind of disagreement {self.kind!r}; one of {', '.join(KINDS)}")
        if not 0 <= self.severity <= 1:
            raise ValueError(f"the severity of a disagreement must lie in [0, 1], got {self.severity}")
        if (self.attention is None, self.model is None) != (
            self.kind == "overlooked",
            self.kind == "spurious",
        ):
            raise ValueError(
                f"a disagreement {self.kind!r} cannot have attention={self.attention}, model={self.model}"
            )


@dataclass(frozen=True)
class Decision:
    """What a person decided about one image.

    Attributes:
        image_id: The image.
        verdict: ``attention`` or ``model`` (the labels of that source are right), ``edited`` (other labels are), ``empty``
            (there is nothing to label) or ``reject`` (the image is of no use and must not be trained on).
        instances: The labels that are right from now on; None if and only if the image is rejected.
        reviewer: Who decided.
        round: The round in which it was decided.
    """

    image_id: str
    verdict: str
    instances: Instances | None
    reviewer: str
    round: int = 0

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"unknown verdict {self.verdict!r}; one of {', '.join(VERDICTS)}")
        if (self.instances is None) != (self.verdict == "reject"):
            raise ValueError(
                f"a decision {self.verdict!r} {'needs' if self.instances is None else 'has no'} labels"
            )
        if self.verdict == "empty" and self.instances:
            raise ValueError("a decision 'empty' has no objects")
