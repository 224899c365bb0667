"""Decide which training images to hold back because a detector contradicts their labels most.

The noise filter of DiffuMask (Wu et al. 2023, section 3.4): every image is judged by a detector that was
trained on other images, and of each class, the labels that it contradicts most are left out. DiffuMask ranks
images of one object by IoU. Here an image may show several classes and lack objects, so the severities of
`diffugen.comparison.disagreement` rank it: of real attention labels, they find more wrong ones with a weak
detector than other measures do (reports/label-errors).

Knows severities and class names; does not know how the detector was trained. Every function is pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from diffugen.comparison.disagreement import Comparison
from diffugen.records import Instances


def contradictions(labels: Instances, model: Instances, comparison: Comparison) -> dict[str, float]:
    """Return the highest severity of each class in an image, in [0, 1].

    Args:
        labels: The labels in question.
        model: What the detector sees.
        comparison: Of the two, in this order. What is overlooked counts for the class that the model sees.
    """
    found: dict[str, float] = {}

    def count(name: str, severity: float) -> None:
        found[name] = max(severity, found.get(name, 0.0))

    for pair, doubt in zip(comparison.agreements, comparison.doubts, strict=True):
        if pair.first is not None:
            count(labels.class_names[pair.first], doubt)
    for one in comparison.disagreements:
        if one.attention is not None:
            count(labels.class_names[one.attention], one.severity)
        elif one.model is not None:
            count(model.class_names[one.model], one.severity)
    return found


def most_contradicted(
    judged: Mapping[str, Mapping[str, float]], share: float, labelled: Mapping[str, Collection[str]]
) -> list[str]:
    """Return the ids of the images to hold back, worst first; never the last image of a class.

    An image stands where it does in the class in which it stands worst, relative to the number of images of
    that class. So each class loses about the same share, however hard it is for a detector, and a class with
    few images does not vanish.

    Args:
        judged: From the id of an image to the severity of each class in it.
        share: Fraction of the judged images to hold back, in [0, 1).
        labelled: From the id of each training image, those that are not judged included, to the classes of
            its labels.

    Example:
        >>> judged = {"a": {"car": 0.9}, "b": {"car": 0.2}, "c": {"piano": 0.3}, "d": {"piano": 0.4}}
        >>> most_contradicted(judged, 0.5, {image_id: list(found) for image_id, found in judged.items()})
        ['a', 'd']
    """
    standing = dict.fromkeys(judged, 1.0)
    for name in {name for found in judged.values() for name in found}:
        ranked = sorted(
            (image_id for image_id, found in judged.items() if name in found),
            key=lambda image_id: (-judged[image_id][name], image_id),
        )
        for place, image_id in enumerate(ranked, start=1):
            standing[image_id] = min(standing[image_id], place / len(ranked))
    worst_first = sorted(
        judged, key=lambda image_id: (standing[image_id], -max(judged[image_id].values()), image_id)
    )
    left = Counter(name for names in labelled.values() for name in set(names))
    held_back: list[str] = []
    for image_id in worst_first:
        if len(held_back) == int(share * len(judged) + 0.5):
            break
        names = set(labelled[image_id])
        if all(left[name] > 1 for name in names):
            held_back.append(image_id)
            left.subtract(names)
    return held_back
