"""Measure labels and predictions against the truth: average precision, IoU, and whether a score can be
trusted.

Knows pairs of ``(truth, predicted)`` instances of one image each; not where either comes from. All results
are frozen records of plain values: ``json.dumps(dataclasses.asdict(result))`` works, and what cannot be
measured is None, never NaN.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from diffugen.comparison.matching import check_same_size, match
from diffugen.errors import DiffugenError
from diffugen.labels import shapes
from diffugen.records import RLE, Instances

Pair = tuple[Instances, Instances]
"""Truth and prediction (or label) of one image, of one size; either may be empty."""

MAX_DETECTIONS = 100
"""As COCO has it: of the predictions of one class in one image, this many count, the surest ones."""


@dataclass(frozen=True)
class AveragePrecision:
    """COCO average precision, each value in [0, 1].

    Attributes:
        ap50: Mean over the classes that the truth has, at IoU .50; None if the truth has no object.
        ap50_95: The same, as the mean over the IoU thresholds .50, .55 ... .95: COCO's "AP".
        ap50_by_class: By class; None for a class that is predicted but absent in the truth.
        ap50_95_by_class: The same for AP50-95.
    """

    ap50: float | None
    ap50_95: float | None
    ap50_by_class: Mapping[str, float | None]
    ap50_95_by_class: Mapping[str, float | None]


@dataclass(frozen=True)
class ClassQuality:
    """How good the labels of one class are; IoUs in [0, 1], None for a class that is absent in the truth.

    Attributes:
        objects: Objects of the class in the truth.
        labels: Labels of the class.
        pixel_iou: Shared pixels over covered pixels, both summed over all images, instances of a class taken
            together: the per-class IoU behind "mIoU" in the literature on attention masks.
        label_iou: Mean over the labels of the IoU with the object they match, 0 for none: falls with what is
            made up. None without labels.
        object_iou: Mean over the objects of the IoU with the label they match, 0 for none: falls with what is
            missed.
    """

    objects: int
    labels: int
    pixel_iou: float | None
    label_iou: float | None
    object_iou: float | None


@dataclass(frozen=True)
class LabelQuality:
    """How good labels are: the means over the classes that have a value, and each class by itself."""

    pixel_iou: float | None
    label_iou: float | None
    object_iou: float | None
    by_class: Mapping[str, ClassQuality]


@dataclass(frozen=True)
class ReliabilityBin:
    """Labels whose score lies in [low, high), the last bin with its upper end; means are None in an empty
    bin.
    """

    low: float
    high: float
    count: int
    mean_score: float | None
    mean_iou: float | None


@dataclass(frozen=True)
class Reliability:
    """Whether a score tells how good a label is.

    Attributes:
        count: Number of labels.
        bins: The reliability diagram.
        calibration_error: Expected calibration error (Naeini et al. 2015) with the IoU in the place of the
            hit rate: mean over the labels of ``|mean score - mean IoU|`` of their bin, in [0, 1]; None
            without labels.
        spearman: Rank correlation of score and IoU in [-1, 1]: whether the order is right, whatever the
            scale; None for fewer than two labels, or if all scores or all IoUs are equal.
    """

    count: int
    bins: tuple[ReliabilityBin, ...]
    calibration_error: float | None
    spearman: float | None


def average_precision(pairs: Sequence[Pair], *, of: Literal["mask", "box"] = "mask") -> AveragePrecision:
    """Return COCO average precision (Lin et al. 2014, by pycocotools) of predictions, objects of any size
    together.

    As in COCO, a class that the truth does not have takes no part in the means; its false finds go unpunished
    there.

    Args:
        pairs: Truth and predictions of each image; images without objects count, for what is falsely found in
            them.
        of: Compare masks, or the boxes around them.

    Raises:
        DiffugenError: If truth and prediction of a pair differ in size.
    """
    names = sorted({name for pair in pairs for side in pair for name in side.class_names})
    if not any(len(truth) for truth, _ in pairs):
        return AveragePrecision(None, None, dict.fromkeys(names), dict.fromkeys(names))
    # Axes: 10 IoU thresholds, 101 recalls, classes, area ranges (one), numbers of detections (one). -1 is "no
    # truth".
    precision = _coco_precision(pairs, names, "segm" if of == "mask" else "bbox")[:, :, :, 0, 0]
    known = {name: bool((precision[:, :, index] > -1).any()) for index, name in enumerate(names)}
    ap50 = {
        name: float(precision[0, :, index].mean()) if known[name] else None
        for index, name in enumerate(names)
    }
    ap = {
        name: float(precision[:, :, index].mean()) if known[name] else None
        for index, name in enumerate(names)
    }
    return AveragePrecision(_mean(ap50.values()), _mean(ap.values()), ap50, ap)


def label_quality(pairs: Iterable[Pair]) -> LabelQuality:
    """Compare labels with the truth by IoU, class by class; an image at a time, so ``pairs`` may be an
    iterator.

    A label is matched only to an object of its own class, one to one, with any overlap; see
    `diffugen.comparison.matching.match`.

    Raises:
        DiffugenError: If truth and labels of a pair differ in size.
    """
    tallies: dict[str, _Tally] = {}
    for truth, labels in pairs:
        object_ious, label_ious = _paired_ious(truth, labels)
        for name in {*truth.class_names, *labels.class_names}:
            objects, marks = (
                [i for i, other in enumerate(side.class_names) if other == name] for side in (truth, labels)
            )
            tally = tallies.setdefault(name, _Tally())
            tally.objects += object_ious[objects].tolist()
            tally.labels += label_ious[marks].tolist()
            tally.count_pixels([truth.rles[i] for i in objects], [labels.rles[i] for i in marks])
    by_class = {name: tallies[name].quality() for name in sorted(tallies)}
    return LabelQuality(
        pixel_iou=_mean(each.pixel_iou for each in by_class.values()),
        label_iou=_mean(each.label_iou for each in by_class.values()),
        object_iou=_mean(each.object_iou for each in by_class.values()),
        by_class=by_class,
    )


def reliability(pairs: Iterable[Pair], *, bins: int = 10) -> Reliability:
    """Compare each label's score with its IoU with the truth; ``pairs`` may be an iterator.

    Args:
        pairs: Truth and scored labels of each image. A label that matches no object of its class has IoU 0.
        bins: Number of equally wide score bins.

    Raises:
        DiffugenError: If truth and labels of a pair differ in size, or ``bins`` is not positive.
    """
    if bins < 1:
        raise DiffugenError(f"reliability needs at least one bin, got {bins}")
    found = [(labels.scores, _paired_ious(truth, labels)[1]) for truth, labels in pairs]
    scores = np.concatenate([np.zeros(0), *(score for score, _ in found)])
    ious = np.concatenate([np.zeros(0), *(iou for _, iou in found)])
    number = np.minimum((scores * bins).astype(np.int64), bins - 1)
    diagram = tuple(
        ReliabilityBin(
            index / bins,
            (index + 1) / bins,
            int((number == index).sum()),
            _mean(scores[number == index].tolist()),
            _mean(ious[number == index].tolist()),
        )
        for index in range(bins)
    )
    gaps = [each.count * abs((each.mean_score or 0.0) - (each.mean_iou or 0.0)) for each in diagram]
    error = sum(gaps) / len(scores) if len(scores) else None
    return Reliability(len(scores), diagram, error, spearman(scores, ious))


def spearman(first: NDArray[np.floating], second: NDArray[np.floating]) -> float | None:
    """Return the rank correlation of two (N,) arrays, in [-1, 1], ties sharing their mean rank.

    None if it is not defined: for fewer than two values, or if all values of one array are equal.
    """
    ranks = [_ranks(np.asarray(values)) for values in (first, second)]
    centred = [rank - rank.mean() if len(rank) else rank for rank in ranks]
    spread = float(np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum()))
    return float(np.clip((centred[0] * centred[1]).sum() / spread, -1, 1)) if spread else None


@dataclass
class _Tally:
    """What `label_quality` sums up for one class."""

    objects: list[float] = field(default_factory=list)
    labels: list[float] = field(default_factory=list)
    shared_px: int = 0
    covered_px: int = 0

    def count_pixels(self, truth: Sequence[RLE], labels: Sequence[RLE]) -> None:
        covers = [coco.merge(list(side)) for side in (truth, labels) if side]
        self.covered_px += int(coco.area(coco.merge(covers)))
        if len(covers) == 2:
            self.shared_px += int(coco.area(coco.merge(covers, intersect=True)))

    def quality(self) -> ClassQuality:
        counts = len(self.objects), len(self.labels)
        if not self.objects:
            return ClassQuality(*counts, None, None, None)
        pixel_iou = self.shared_px / self.covered_px if self.covered_px else None
        return ClassQuality(*counts, pixel_iou, _mean(self.labels), _mean(self.objects))


def _paired_ious(truth: Instances, labels: Instances) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """IoU of each object and of each label with its partner of the same class, 0 for none."""
    ious = np.zeros(len(truth)), np.zeros(len(labels))
    for pair in match(truth, labels, min_iou=0.0, min_iou_swapped=None):
        if pair.first is not None and pair.second is not None:
            ious[0][pair.first] = ious[1][pair.second] = pair.iou
    return ious


def _coco_precision(pairs: Sequence[Pair], names: Sequence[str], iou_type: str) -> NDArray[np.float64]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    for pair in pairs:
        check_same_size(*pair)
    sides = []
    # Both classes report every step on standard output and have no switch for it.
    with contextlib.redirect_stdout(io.StringIO()):
        for side in zip(*pairs, strict=True):
            sides.append(COCO())
            sides[-1].dataset = _coco_dataset(side, names)
            sides[-1].createIndex()
        evaluation = COCOeval(*sides, iou_type)
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.params.maxDets = [MAX_DETECTIONS]
        evaluation.evaluate()
        evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"], dtype=np.float64)


def _coco_dataset(images: Sequence[Instances], names: Sequence[str]) -> dict[str, Any]:
    numbers = {name: number for number, name in enumerate(names)}
    annotations: list[dict[str, Any]] = []
    for image_number, instances in enumerate(images):
        xyxy = shapes.boxes(instances.rles)
        xywh = np.hstack([xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]]).tolist()
        areas = shapes.areas(instances.rles).tolist()
        for index, name in enumerate(instances.class_names):
            annotations.append(
                {
                    "id": 1 + len(annotations),  # COCOeval takes the id 0 for "no match"
                    "image_id": image_number,
                    "category_id": numbers[name],
                    "segmentation": dict(instances.rles[index]),
                    "bbox": xywh[index],
                    "area": areas[index],
                    "iscrowd": 0,
                    "score": float(instances.scores[index]),
                }
            )
    return {
        "images": [
            {"id": number, "width": image.size_wh[0], "height": image.size_wh[1]}
            for number, image in enumerate(images)
        ],
        "categories": [{"id": number, "name": name} for name, number in numbers.items()],
        "annotations": annotations,
    }


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _ranks(values: NDArray[np.floating]) -> NDArray[np.float64]:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[place], dtype=np.float64)
