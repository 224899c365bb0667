"""Evaluate labels and detections against ground truth: average precision, IoU, and calibration of the score.

Works on ``(truth, predicted)`` pairs of instances, one pair per image, and does not know where either side
comes from. Results are frozen records of plain values that ``json.dumps(dataclasses.asdict(result))`` can
write; a measure that is undefined is None, never NaN.
"""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from diffugen.comparison.matching import check_same_size, match
from diffugen.errors import DiffugenError
from diffugen.labels import shapes
from diffugen.records import RLE, Curve, FalseFinds, Instances, SizeBin

Pair = tuple[Instances, Instances]
"""Ground truth and predictions (or labels) of one image, both of the same size; either may be empty."""

SIZES = (0.0, 0.15, 0.25, 0.35, 1.0)
"""Limits of object sizes: the square root of an object's share of the image area."""

JACKKNIFE_GROUPS = 20
"""Groups of images that are left out in turn to see how much chance there is in a difference."""

MAX_DETECTIONS = 100
"""COCO's limit: only the most confident predictions count, this many per class and image."""


@dataclass(frozen=True)
class AveragePrecision:
    """COCO average precision, each value in [0, 1].

    Attributes:
        ap50: Mean over the classes of the ground truth at IoU 0.50; None if it has no objects.
        ap50_95: COCO's "AP": the same, averaged over the IoU thresholds 0.50, 0.55 ... 0.95.
        ap50_by_class: AP50 of each class; None for a class that is predicted but absent from the ground
            truth.
        ap50_95_by_class: AP50-95 of each class.
        curves: Of each class with objects, precision by recall at IoU .50.
    """

    ap50: float | None
    ap50_95: float | None
    ap50_by_class: Mapping[str, float | None]
    ap50_95_by_class: Mapping[str, float | None]
    curves: Mapping[str, Curve] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class ClassQuality:
    """Quality of the labels of one class; IoUs in [0, 1], None for a class absent from the ground truth.

    Attributes:
        objects: Number of ground-truth objects.
        labels: Number of labels.
        pixel_iou: Intersection over union in pixels, both summed over all images, with the instances of the
            class merged: the per-class IoU that the literature on attention masks averages to "mIoU".
        label_iou: Mean over the labels of the IoU with the matched object, 0 if unmatched; false labels lower
            it. None without labels.
        object_iou: Mean over the objects of the IoU with the matched label, 0 if unmatched; missed objects
            lower it.
    """

    objects: int
    labels: int
    pixel_iou: float | None
    label_iou: float | None
    object_iou: float | None


@dataclass(frozen=True)
class LabelQuality:
    """Label quality of each class, and the means over the classes for which the measure is defined."""

    pixel_iou: float | None
    label_iou: float | None
    object_iou: float | None
    by_class: Mapping[str, ClassQuality]


@dataclass(frozen=True)
class ReliabilityBin:
    """Labels with a score in [low, high), or [low, high] in the last bin; means are None if it is empty."""

    low: float
    high: float
    count: int
    mean_score: float | None
    mean_iou: float | None


@dataclass(frozen=True)
class Reliability:
    """How well the score predicts the quality of a label.

    Attributes:
        count: Number of labels.
        bins: The reliability diagram.
        calibration_error: Expected calibration error (Naeini et al. 2015) with IoU in place of accuracy: mean
            over the labels of ``|mean score - mean IoU|`` of their bin, in [0, 1]; None without labels.
        spearman: Rank correlation of score and IoU in [-1, 1], which ignores their scale; None for fewer than
            two labels, or if all scores or all IoUs are equal.
    """

    count: int
    bins: tuple[ReliabilityBin, ...]
    calibration_error: float | None
    spearman: float | None


def average_precision(pairs: Sequence[Pair], *, of: Literal["mask", "box"] = "mask") -> AveragePrecision:
    """Return COCO average precision over objects of all sizes (Lin et al. 2014, computed by pycocotools).

    As in COCO, classes absent from the ground truth are left out of the means, so their false positives do
    not lower them, and what is found in a crowd of the ground truth is neither right nor wrong.

    Args:
        pairs: Ground truth and predictions of each image. Images without objects matter: predictions there
            are false positives.
        of: Compare masks, or the boxes around them.

    Raises:
        DiffugenError: The two sides of a pair differ in image size.
    """
    names = sorted({name for pair in pairs for side in pair for name in _classes_in(side)})
    if not any(len(truth) for truth, _ in pairs):
        return AveragePrecision(None, None, dict.fromkeys(names), dict.fromkeys(names))
    # Axes: 10 IoU thresholds, 101 recalls, classes, 1 area range, 1 detection limit. -1: no ground truth.
    precision, confidence = (
        array[:, :, :, 0, 0] for array in _coco_tables(pairs, names, "segm" if of == "mask" else "bbox")
    )
    known = {name: bool((precision[:, :, index] > -1).any()) for index, name in enumerate(names)}
    ap50 = {
        name: float(precision[0, :, index].mean()) if known[name] else None
        for index, name in enumerate(names)
    }
    ap = {
        name: float(precision[:, :, index].mean()) if known[name] else None
        for index, name in enumerate(names)
    }
    curves = {
        name: Curve(tuple(precision[0, :, index].tolist()), tuple(confidence[0, :, index].tolist()))
        for index, name in enumerate(names)
        if known[name]
    }
    return AveragePrecision(_mean(ap50.values()), _mean(ap.values()), ap50, ap, curves)


def lead_error(candidate: Sequence[Pair], incumbent: Sequence[Pair]) -> float:
    """Return the standard error of the difference between two detectors' AP50-95, by the jackknife.

    The images are dealt out to `JACKKNIFE_GROUPS` groups, and the difference is measured without one of them
    at a time (the delete-a-group jackknife; Kott 2001).

    Args:
        candidate: Ground truth and one detector's predictions of each image.
        incumbent: The same images with the other detector's.

    Returns:
        At least 0; 1, as large as a difference can be, for fewer than two images.
    """
    groups = min(JACKKNIFE_GROUPS, len(candidate))
    if groups < 2:
        return 1.0
    leads = []
    for left_out in range(groups):
        scores = [
            average_precision([pair for number, pair in enumerate(pairs) if number % groups != left_out])
            for pairs in (candidate, incumbent)
        ]
        leads.append((scores[0].ap50_95 or 0.0) - (scores[1].ap50_95 or 0.0))
    return float(np.sqrt((groups - 1) * np.var(leads)))


def false_finds(
    pairs: Sequence[Pair], class_names: Iterable[str], confidence: float
) -> dict[str, FalseFinds]:
    """Count, for each class, the images without an object of it in which it is found all the same.

    Average precision hardly sees these: one false find costs the same in a thousand images as in ten.

    Args:
        pairs: Ground truth and predictions of each image.
        class_names: The classes.
        confidence: Predictions below this confidence do not count.
    """
    counts = {}
    for name in class_names:
        free = [found for truth, found in pairs if name not in _classes_in(truth)]
        hits = [
            any(
                other == name and score >= confidence
                for other, score in zip(found.class_names, found.scores, strict=True)
            )
            for found in free
        ]
        counts[name] = FalseFinds(len(free), sum(hits))
    return counts


def by_size(pairs: Iterable[Pair], confidence: float) -> tuple[SizeBin, ...]:
    """Return how well objects of different sizes are found; the sizes are `SIZES`.

    Args:
        pairs: Ground truth and predictions of each image.
        confidence: Predictions below this confidence do not count.
    """
    sizes, ious = [np.zeros(0)], [np.zeros(0)]
    for truth, found in pairs:
        sure = found.take(np.flatnonzero(found.scores >= confidence).tolist())
        ious.append(_paired_ious(truth, sure)[0])
        width, height = truth.size_wh
        sizes.append(np.sqrt(shapes.areas(truth.rles) / (width * height)))
    size, iou = np.concatenate(sizes), np.concatenate(ious)
    bins = []
    for low, high in itertools.pairwise(SIZES):
        inside = iou[(size >= low) & ((size < high) | (high == SIZES[-1]))]
        mean = float(inside.mean()) if len(inside) else None
        bins.append(SizeBin(low, high, len(inside), int((inside >= 0.5).sum()), mean))
    return tuple(bins)


def image_error(truth: Instances, found: Instances) -> float:
    """Return how wrong predictions are: missed and false objects, plus what pairs lack of an IoU of 1.

    Predictions of which at least half lies in a crowd of their class are not false.
    """
    objects, predictions = _paired_ious(truth, found)
    false = [
        not any(
            name == found.class_names[index] and coco.iou([found.rles[index]], [rle], [True])[0, 0] >= 0.5
            for name, rle in truth.crowds
        )
        for index in np.flatnonzero(predictions == 0)
    ]
    return float((1 - objects).sum() + sum(false))


def _classes_in(truth: Instances) -> set[str]:
    return {*truth.class_names, *(name for name, _ in truth.crowds)}


def label_quality(pairs: Iterable[Pair]) -> LabelQuality:
    """Return the IoU of labels with ground truth, overall and by class.

    Labels are matched one to one with objects of the same class, whatever the overlap; see
    `diffugen.comparison.matching.match`.

    Args:
        pairs: Ground truth and labels of each image; may be an iterator, which is read one image at a time.

    Raises:
        DiffugenError: The two sides of a pair differ in image size.
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
    """Compare the score of each label with its IoU.

    Args:
        pairs: Ground truth and scored labels of each image; may be an iterator. An unmatched label has IoU 0.
        bins: Number of score bins of equal width.

    Raises:
        DiffugenError: The two sides of a pair differ in image size, or ``bins`` is not positive.
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


def spearman(
    first: NDArray[np.floating], second: NDArray[np.floating], weights: NDArray[np.floating] | None = None
) -> float | None:
    """Return Spearman's rank correlation of two (N,) arrays, in [-1, 1]; tied values share their mean rank.

    None where it is undefined: fewer than two values, or all values of one array equal.

    Args:
        first: N values.
        second: N values.
        weights: How much each pair counts, (N,), above 0; None for equal weights.
    """
    from scipy.stats import rankdata

    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    covariance = np.cov(rankdata(first), rankdata(second), aweights=weights)
    return float(covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1]))


@dataclass
class _Tally:
    """Running sums of `label_quality` for one class."""

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
    """Return the IoU of each object and of each label with its match of the same class, 0 if unmatched."""
    ious = np.zeros(len(truth)), np.zeros(len(labels))
    for pair in match(truth, labels, min_iou=0.0, min_iou_swapped=None):
        if pair.first is not None and pair.second is not None:
            ious[0][pair.first] = ious[1][pair.second] = pair.iou
    return ious


def _coco_tables(
    pairs: Sequence[Pair], names: Sequence[str], iou_type: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return precision and confidence, float64 (10 IoU thresholds, 101 recalls, K classes, 1, 1) each."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    for pair in pairs:
        check_same_size(*pair)
    sides = []
    # Both classes print every step to standard output, and neither has a switch for it.
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
    tables = (np.asarray(evaluation.eval[key], dtype=np.float64) for key in ("precision", "scores"))
    precision, confidence = tables
    return precision, confidence


def _coco_dataset(images: Sequence[Instances], names: Sequence[str]) -> dict[str, Any]:
    numbers = {name: number for number, name in enumerate(names)}
    annotations: list[dict[str, Any]] = []
    for image_number, instances in enumerate(images):
        names_here = [*instances.class_names, *(name for name, _ in instances.crowds)]
        rles = [*instances.rles, *(rle for _, rle in instances.crowds)]
        xyxy = shapes.boxes(rles)
        xywh = np.hstack([xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]]).tolist()
        areas = shapes.areas(rles).tolist()
        scores = [*instances.scores.tolist(), *(1.0 for _ in instances.crowds)]
        for index, name in enumerate(names_here):
            annotations.append(
                {
                    "id": 1 + len(annotations),  # COCOeval reads id 0 as "no match"
                    "image_id": image_number,
                    "category_id": numbers[name],
                    "segmentation": dict(rles[index]),
                    "bbox": xywh[index],
                    "area": areas[index],
                    "iscrowd": int(index >= len(instances)),
                    "score": scores[index],
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
