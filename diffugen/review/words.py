"""The words in which a reviewer is told why an image is in the queue; the same on the page and in the App.

A *disagreement* is one contradiction about one object. The *queue* holds the images to review: those with a
disagreement, and audits.
"""

from __future__ import annotations

AUDITED = "{labeller} and model agree; are both right?"
"""What is said of an image on which the sources agree."""

_MEANINGS = {
    "overlooked": "the model sees an object that {labeller} missed",
    "spurious": "{labeller} sees an object that the model does not",
    "swapped": "same place, different classes",
    "badly_located": "same class, but the masks hardly overlap",
}


def meaning(kind: str, labeller: str) -> str:
    """Return what a kind of disagreement means.

    Args:
        kind: One of `diffugen.records.KINDS`.
        labeller: What made the labels whose source is called ``attention``.
    """
    return _MEANINGS[kind].format(labeller=labeller)
