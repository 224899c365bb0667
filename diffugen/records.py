"""Plain validated records that pass between stages.

Depends only on numpy: no record contains a tensor, a PIL image or the result object of a library.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

STEP_THIRDS = 3
"""Heat maps are stored separately for the first, middle and last third of the denoising steps."""

SOURCES = ("attention", "model", "human", "carried", "witness", "candidate")
"""Sources of a label set.

``carried``: from the image's parent, outside the region that was painted over; ``witness``: what the detector
that the run begins with found; ``candidate``: what a detector found and is not sure enough of to label.
"""

TASKS = ("txt2img", "img2img", "inpaint")
"""How an image is generated: from a prompt alone, from another image, or in a region of another image."""

KINDS = ("overlooked", "spurious", "swapped", "badly_located")
"""Kinds of disagreement between the attention and the model labels of an image; see `Disagreement`."""

VERDICTS = ("attention", "model", "edited", "empty", "reject")
"""Verdicts that settle an image; see `Decision`."""

OPEN = "open"
"""The verdict that settles nothing: an image that is decided in part, or no longer."""

FIELD = re.compile(r"\{([^{}]*)\}")
"""Matches a ``{field}`` of a template; group 1 is the name of the field."""

RLE = dict[str, Any]
"""COCO run-length encoding of one mask: ``{"size": [height, width], "counts": str}`` (compressed, ASCII)."""


def one_line(text: str) -> str:
    """Return the text with each run of whitespace, including line breaks, replaced by one space.

    Characters that can be written in two ways, such as accented letters, are composed (Unicode NFC).
    """
    return unicodedata.normalize("NFC", " ".join(text.split()))


def content_id(*parts: Any) -> str:
    """Return 16 hex digits that depend only on the JSON form of ``parts``, on every machine."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Phrase:
    """Words of a prompt whose attention is traced.

    Attributes:
        text: The words as they stand in the prompt, e.g. ``"grand piano"``.
        class_name: The class they name; None for a background word (``"road"``), which only competes.
    """

    text: str
    class_name: str | None


@dataclass(frozen=True)
class Prompt:
    """One text prompt with the phrases to trace.

    Attributes:
        text: The text that the model reads.
        phrases: The phrases to trace.
        negative: The negative prompt.
        attributes: The values that fill the template's fields.
        template: The text with its ``{field}`` placeholders; empty if there is none.
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
    """A generated image: everything that determines it, and thus its identity.

    Attributes:
        prompt: The prompt it was generated from.
        seed: Seed of its noise, in [0, 2**63).
        size_wh: Width and height in pixels.
        model: Name or folder of the diffusion model, as configured.
        task: ``txt2img``, ``img2img`` or ``inpaint``.
        settings: All other settings that affect the pixels (``num_inference_steps``, ``guidance_scale``,
            ``scheduler`` ...); JSON values.
        round: The round of the loop that generated it.
        parent: The image it was made from: an image's id, or ``photo-`` and a hash of the pixels; None for
            ``txt2img``.
        region: The region that was painted over, as RLE of the image's size; None unless ``inpaint``.
        origin: The `family` of its parent; empty for ``txt2img``.
        source: Where the parent came from, for display: a file, or a run's folder.
        step: Name of the configured task that made it; empty if the task has no name.
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
        """Hash of everything that determines the pixels; the round is not part of it."""
        made_from = [] if self.parent is None else [self.parent, self.region]
        return content_id(
            self.prompt.id,
            self.seed,
            list(self.size_wh),
            self.model,
            self.task,
            dict(self.settings),
            *made_from,
        )

    @property
    def family(self) -> str:
        """The prompt or photo that the image goes back to, shared with all images that look like it.

        Images of one family must not be split between training and validation.
        """
        return self.origin or self.prompt.id


@dataclass(frozen=True)
class HeatMaps:
    """Cross-attention of one image, per phrase, third of the steps, and layer group.

    Attributes:
        image_id: The image they belong to.
        size_wh: Width and height of that image in pixels.
        phrases: The P traced phrases, in the order of the arrays' first axis.
        maps: From a layer group to a float16 array (P, 3, h, w): attention probability in [0, 1], averaged
            over heads, layers of the group, steps of the third, and the tokens of the phrase; or, of
            concepts, how much a cell resembles each, which adds up to 1 over all of them. A group is named
            ``"<place>-<h>x<w>"`` with place ``down``, ``mid`` or ``up`` in a UNet, and ``joint-`` with the
            number of the layer, as in ``joint-07-32x32``, in a transformer; earlier versions averaged all
            its layers to ``joint-32x32``. Or ``"taught-<h>x<w>"`` and ``"doubt-<h>x<w>"`` alone: the
            probability of the phrase's object, as a decoder drew it, and its doubt in [0, 1], three times.
        region: The region that was painted over, as RLE of the image's size; the maps locate objects only
            there. None: everywhere.
        window_xyxy: Left, upper, right and lower edge, in pixels, of the crop that the maps cover. None: the
            whole image.
        self_attention: float16 (h, w, h, w), from each cell of a grid to the cells that it attends to:
            probability in [0, 1], averaged over heads, layers and late steps; adds up to 1 over the last two
            axes. None: it was not kept.
    """

    image_id: str
    size_wh: tuple[int, int]
    phrases: tuple[Phrase, ...]
    maps: Mapping[str, NDArray[np.float16]]
    region: RLE | None = None
    window_xyxy: tuple[int, int, int, int] | None = None
    self_attention: NDArray[np.float16] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that the arrays take in memory."""
        kept = 0 if self.self_attention is None else self.self_attention.nbytes
        return kept + sum(array.nbytes for array in self.maps.values())

    def __post_init__(self) -> None:
        if self.self_attention is not None:
            shape = self.self_attention.shape
            if len(shape) != 4 or shape[:2] != shape[2:]:
                raise ValueError(f"self-attention has shape {shape}; expected (h, w, h, w)")
        for group, array in self.maps.items():
            if array.ndim != 4 or array.shape[:2] != (len(self.phrases), STEP_THIRDS):
                raise ValueError(
                    f"heat maps of group {group!r} have shape {array.shape}; "
                    f"expected ({len(self.phrases)} phrases, {STEP_THIRDS} thirds, h, w)"
                )


@dataclass(frozen=True)
class PixelFeatures:
    """What a denoiser sees in one finished image, at each of L noise levels.

    Attributes:
        size_wh: Width and height of the image in pixels.
        phrases: The P traced phrases.
        heats: From a layer group to float16 (P, L, h, w), the attention of the phrases in [0, 1].
        activations: From a block and a noise level, ``"up-1@0.2"``, to float16 (C, h, w).
    """

    size_wh: tuple[int, int]
    phrases: tuple[Phrase, ...]
    heats: Mapping[str, NDArray[np.float16]]
    activations: Mapping[str, NDArray[np.float16]]


GeneratedImage = tuple[ImageRecord, NDArray[np.uint8], HeatMaps, float]
"""A generated image: its record, pixels uint8 (H, W, 3), heat maps, and generation time in seconds."""


@dataclass(frozen=True)
class Instances:
    """The N labelled objects of one image, from one source.

    Attributes:
        size_wh: Width and height of the image in pixels.
        class_names: N class names.
        rles: N masks as COCO RLE of size (height, width): lossless, so an instance can have holes and
            several pieces.
        scores: float64 (N,), label score (attention, human) or detector confidence (model), in [0, 1].
        terms: N mappings from score term to its value in [0, 1]; empty mappings if the source has no terms.
        rivals: N mappings from another class that the detector gave to the same object to its confidence in
            it, in [0, 1]; empty mappings where there is none.
        crowds: Regions of ground truth in which objects of a class are not told apart (COCO's ``iscrowd``),
            as class name and mask. They are no instances: what is found there is neither right nor wrong.
    """

    size_wh: tuple[int, int]
    class_names: tuple[str, ...]
    rles: tuple[RLE, ...]
    scores: NDArray[np.float64]
    terms: tuple[Mapping[str, float], ...] = ()
    rivals: tuple[Mapping[str, float], ...] = ()
    crowds: tuple[tuple[str, RLE], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "scores", np.asarray(self.scores, dtype=np.float64).reshape(-1))
        for name in ("terms", "rivals"):
            if not getattr(self, name):
                object.__setattr__(self, name, tuple({} for _ in self.class_names))
        counts = [len(each) for each in (self.class_names, self.rles, self.scores, self.terms, self.rivals)]
        if len(set(counts)) != 1:
            raise ValueError(
                "Instances needs equally many class names, masks, scores, terms and rivals; got "
                + ", ".join(map(str, counts))
            )
        size_hw = [self.size_wh[1], self.size_wh[0]]
        for rle in (*self.rles, *(rle for _, rle in self.crowds)):
            if list(rle["size"]) != size_hw:
                raise ValueError(f"a mask of size (h, w) = {list(rle['size'])} in an image of size {size_hw}")
        if len(self.scores) and not (self.scores.min() >= 0 and self.scores.max() <= 1):
            raise ValueError(f"scores must lie in [0, 1], got {self.scores.tolist()}")

    def __len__(self) -> int:
        return len(self.class_names)

    def renamed(self, names: Mapping[str, str]) -> Instances:
        """Return the same instances with other class names; those that are not in ``names`` stay."""
        return replace(
            self,
            class_names=tuple(names.get(name, name) for name in self.class_names),
            rivals=tuple({names.get(name, name): one for name, one in each.items()} for each in self.rivals),
            crowds=tuple((names.get(name, name), rle) for name, rle in self.crowds),
        )

    def take(self, indices: Sequence[int]) -> Instances:
        """Return the instances with these indices, in this order."""
        return Instances(
            self.size_wh,
            tuple(self.class_names[index] for index in indices),
            tuple(self.rles[index] for index in indices),
            self.scores[list(indices)],
            tuple(self.terms[index] for index in indices),
            tuple(self.rivals[index] for index in indices),
            self.crowds,
        )

    def joined(self, others: Instances) -> Instances:
        """Return these instances followed by others of the same image."""
        return Instances(
            self.size_wh,
            self.class_names + others.class_names,
            self.rles + others.rles,
            np.concatenate([self.scores, others.scores]),
            self.terms + others.terms,
            self.rivals + others.rivals,
            self.crowds + others.crowds,
        )

    def of_classes(self, class_names: Collection[str]) -> Instances:
        """Return the instances and crowds of these classes."""
        kept = self.take([index for index, name in enumerate(self.class_names) if name in class_names])
        crowds = tuple((name, rle) for name, rle in self.crowds if name in class_names)
        return kept if crowds == self.crowds else replace(kept, crowds=crowds)


@dataclass(frozen=True)
class LabelSet:
    """All labels of one source for one image.

    Attributes:
        image_id: The image.
        source: One of `SOURCES`.
        instances: The labelled objects; may be empty.
        method: Provenance: hash of the label settings, the checkpoint's id, or the reviewer.
        round: The round that made the labels.
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
    """One object on which the attention labels and the model labels of an image disagree.

    Attributes:
        image_id: The image.
        kind: ``overlooked`` (the model sees it, attention missed it), ``spurious`` (the reverse), ``swapped``
            (same place, different classes) or ``badly_located`` (same class, low IoU).
        severity: In [0, 1]; higher is worse. See `diffugen.comparison.disagreement`.
        attention: Index in the attention labels; None if overlooked.
        model: Index in the model labels; None if spurious.
        iou: Mask IoU of the two instances; for a single instance, its highest IoU with any instance of the
            other side. In [0, 1].
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
class Judged:
    """What a reviewer said about one object of an image.

    Attributes:
        source: ``attention`` or ``model``, whose label it is; ``human`` for an object that the reviewer drew.
        index: The label's place in its label set; for ``human`` among the drawn objects.
        kept: Whether it belongs to the correct labels.
        class_name: Its correct class; None for the label's own, never for ``human``.
        mask: Its correct mask; None for the label's own, never for ``human``.
        method: Provenance of its label set; empty for ``human``.
    """

    source: str
    index: int
    kept: bool
    class_name: str | None = None
    mask: RLE | None = None
    method: str = ""

    def __post_init__(self) -> None:
        if self.source not in ("attention", "model", "human"):
            raise ValueError(f"an object of {self.source!r}; expected attention, model or human")
        if self.index < 0:
            raise ValueError(f"an object at place {self.index}")
        if self.source == "human" and (self.class_name is None or self.mask is None):
            raise ValueError("a drawn object needs a class and a mask")
        if self.class_name == "":
            raise ValueError("an object with an empty class")


@dataclass(frozen=True)
class Decision:
    """The decision of a reviewer about one image.

    Attributes:
        image_id: The image.
        verdict: ``attention`` or ``model`` (the labels of that source are right), ``edited`` (corrected
            labels), ``empty`` (nothing to label), ``reject`` (unusable: do not train on the image) or
            ``open`` (not decided: only some of its objects are, or the reviewer took a decision back).
        instances: The correct labels from now on; None if and only if the image is rejected or open.
        reviewer: Name of the reviewer.
        round: The round in which the decision was made.
        judged: What was said about single objects, for the record, and to continue with an open image.
        made_at: When it was stored, UTC, ISO 8601; empty before. Does not count in a comparison.
    """

    image_id: str
    verdict: str
    instances: Instances | None
    reviewer: str
    round: int = 0
    judged: tuple[Judged, ...] = ()
    made_at: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if self.verdict not in (*VERDICTS, OPEN):
            raise ValueError(f"unknown verdict {self.verdict!r}; one of {', '.join((*VERDICTS, OPEN))}")
        if (self.instances is None) != (self.verdict in ("reject", OPEN)):
            raise ValueError(
                f"a decision {self.verdict!r} {'needs' if self.instances is None else 'has no'} labels"
            )
        if self.verdict == "empty" and self.instances:
            raise ValueError("a decision 'empty' cannot have objects")


RECALLS = tuple(step / 100 for step in range(101))
"""The recalls at which COCO samples precision."""


@dataclass(frozen=True)
class Curve:
    """Precision by recall of one class at IoU .50, as COCO samples it.

    Attributes:
        precision: Precision at each of `RECALLS`: the highest at that recall or a higher one; 0 where the
            recall is not reached.
        confidence: The confidence of the detection at which the recall is reached; 0 where it is not.
    """

    precision: tuple[float, ...]
    confidence: tuple[float, ...]

    def best(self) -> tuple[float, float, float]:
        """Return the confidence with the highest F1 score, and precision and recall there."""
        scores = [
            2 * precision * recall / (precision + recall) if precision else 0.0
            for precision, recall in zip(self.precision, RECALLS, strict=True)
        ]
        index = int(np.argmax(scores))
        return self.confidence[index], self.precision[index], RECALLS[index]


@dataclass(frozen=True)
class FalseFinds:
    """How often a class is found where there is none.

    Attributes:
        images: Images without an object of the class.
        found: Those among them in which the class is found.
    """

    images: int
    found: int

    @property
    def share(self) -> float | None:
        """``found / images``, in [0, 1]; None without images."""
        return self.found / self.images if self.images else None


@dataclass(frozen=True)
class SizeBin:
    """How well objects of a size are found.

    Attributes:
        low: Smallest size: the square root of an object's share of the image area, in [0, 1].
        high: Largest size.
        objects: Objects of this size.
        found: Those that a detection of their class has an IoU of at least .5 with.
        iou: Mean IoU of the objects with their detections, 0 for those without; None without objects.
    """

    low: float
    high: float
    objects: int
    found: int
    iou: float | None


@dataclass(frozen=True)
class SeverityBin:
    """How often labels of a severity turned out wrong.

    Attributes:
        low: Lowest severity, in [0, 1].
        high: Highest severity.
        severity: Mean severity of the labels.
        labels: Labels whose image was decided.
        wrong: Those that were wrong.
    """

    low: float
    high: float
    severity: float
    labels: int
    wrong: int
