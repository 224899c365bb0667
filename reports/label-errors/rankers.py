"""Rankings of images by how likely their labels are wrong: ours, cleanlab's, FiftyOne's."""

from __future__ import annotations

import contextlib
import io
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffugen.comparison.disagreement import compare
from diffugen.labels.shapes import boxes
from diffugen.records import Instances

Scores = NDArray[np.float64]

CONFIDENCE = 0.25
"""Detections from here on are labels of ours, as in the configuration; those below are candidates."""


def ours(given: Sequence[Instances], found: Sequence[Instances]) -> Scores:
    """Return the highest severity of each image's objects."""
    worst = []
    for labels, detected in zip(given, found, strict=True):
        sure = detected.scores >= CONFIDENCE
        model = detected.take(np.flatnonzero(sure).tolist())
        candidates = detected.take(np.flatnonzero(~sure).tolist())
        worst.append(compare("", labels, model, candidates).worst)
    return np.array(worst)


def object_lab(
    given: Sequence[Instances], found: Sequence[Instances], class_names: Sequence[str], *, stretch: bool
) -> Scores:
    """Return 1 - the label quality score of ObjectLab (Tkachenko et al. 2023), as cleanlab computes it.

    Args:
        given: Labels of N images.
        found: Detections in them.
        class_names: The classes.
        stretch: Whether confidences are replaced by their rank, so that they fill [0, 1]: ObjectLab's
            thresholds suppose a detector that is often surer than .95.
    """
    from cleanlab.object_detection.rank import get_label_quality_scores

    numbers = {name: number for number, name in enumerate(class_names)}
    confidences = stretched(found) if stretch else [one.scores for one in found]
    labels = [
        {
            "bboxes": boxes(one.rles).astype(np.float32),
            "labels": np.array([numbers[name] for name in one.class_names], dtype=int),
        }
        for one in given
    ]
    predictions = []
    for one, scores in zip(found, confidences, strict=True):
        table = np.column_stack([boxes(one.rles), scores]).astype(np.float32).reshape(-1, 5)
        classes = np.array([numbers[name] for name in one.class_names], dtype=int)
        per_class = np.empty(len(class_names), dtype=object)
        for number in range(len(class_names)):
            per_class[number] = table[classes == number]
        predictions.append(per_class)
    with contextlib.redirect_stdout(io.StringIO()):
        quality = get_label_quality_scores(labels, predictions, verbose=False)
    return 1 - np.asarray(quality, dtype=np.float64)


def mistakenness(
    given: Sequence[Instances], found: Sequence[Instances], images: Sequence[Path], *, combined: bool
) -> Scores:
    """Return FiftyOne's mistakenness of each image, computed by FiftyOne itself; needs its database.

    Args:
        given: Labels of N images.
        found: Detections in them.
        images: The image files.
        combined: Whether to stretch the confidences and to count missing and spurious objects as well: all
            that FiftyOne says about an image, added up.
    """
    import fiftyone as fo
    import fiftyone.brain as fob

    confidences = stretched(found) if combined else [one.scores for one in found]
    dataset = fo.Dataset(f"label-errors-{uuid.uuid4().hex}")
    try:
        samples = []
        for path, labels, detected, scores in zip(images, given, found, confidences, strict=True):
            sample = fo.Sample(filepath=str(path))
            sample["given"] = _detections(labels, None)
            sample["found"] = _detections(detected, scores)
            samples.append(sample)
        dataset.add_samples(samples, progress=False)
        fob.compute_mistakenness(dataset, "found", label_field="given", progress=False)
        values = {
            name: np.array([value or 0.0 for value in dataset.values(name)])
            for name in ("mistakenness", "possible_missing", "possible_spurious")
        }
    finally:
        dataset.delete()
    if not combined:
        return values["mistakenness"]
    return np.asarray(sum(values.values()), dtype=np.float64)


def _detections(instances: Instances, scores: Scores | None) -> object:
    import fiftyone as fo

    width, height = instances.size_wh
    xyxy = boxes(instances.rles) / [width, height, width, height]
    return fo.Detections(
        detections=[
            fo.Detection(
                label=name,
                bounding_box=[float(x0), float(y0), float(x1 - x0), float(y1 - y0)],
                confidence=None if scores is None else float(scores[index]),
            )
            for index, (name, (x0, y0, x1, y1)) in enumerate(zip(instances.class_names, xyxy, strict=True))
        ]
    )


def stretched(found: Sequence[Instances]) -> list[Scores]:
    """Return all confidences replaced by their rank among all detections, in (0, 1]."""
    scores = np.concatenate([one.scores for one in found]) if found else np.zeros(0)
    order = np.sort(scores)
    return [np.searchsorted(order, one.scores, side="right") / max(1, len(order)) for one in found]
