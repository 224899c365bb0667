"""What a sample of the review dataset holds: labels as they were pushed, and what a person made of them.

Knows FiftyOne's samples and the meaning of tags; neither runs nor the App.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from diffugen.records import Disagreement, LabelSet
from diffugen.review.detections import to_detections, to_instances
from diffugen.review.judged import Unclear
from diffugen.review.queue import fingerprint
from diffugen.review.tags import ACCEPT, VERDICT_OF, verdict_of

SHOWN = ("attention", "model", "human")
"""The sources whose labels a sample has."""


def value(sample: Any, name: str) -> Any:
    """Return a field of a sample; None if it has no such field."""
    return sample[name] if sample.has_field(name) else None


def detections(sample: Any, source: str) -> list[Any]:
    """Return the labels of one source, ``fiftyone.Detection`` objects, as a person left them."""
    field = value(sample, source)
    return [] if field is None else list(field.detections)


def label_field(labels: LabelSet, disagreements: Iterable[Disagreement], masks_folder: Path) -> Any:
    """Return a ``fiftyone.Detections`` that remembers what it was made of, to recognise changes later."""
    import fiftyone as fo

    found = [fo.Detection(**values) for values in to_detections(labels, disagreements, masks_folder)]
    return fo.Detections(detections=found, method=labels.method, pushed=fingerprint(labels.instances))


def is_as_pushed(field: Any, size_wh: tuple[int, int]) -> bool:
    """Return whether a label field still holds the labels that it was made of."""
    try:
        return fingerprint(to_instances(field.detections, size_wh, None)) == field["pushed"]
    except (Unclear, AttributeError, KeyError):
        return False


def is_touched(sample: Any, size_wh: tuple[int, int]) -> bool:
    """Return whether a person left a verdict, a tag on a label, or changed labels on an image."""
    fields = [value(sample, source) for source in SHOWN]
    return any(tag in VERDICT_OF for tag in sample.tags) or any(
        field is not None and (any(one.tags for one in field.detections) or not is_as_pushed(field, size_wh))
        for field in fields
    )


def verdict(sample: Any) -> str | None:
    """Return the verdict that the tags of a sample and of its labels express; None if there is none.

    Raises:
        Unclear: They express two verdicts.
    """
    accepted = sum(ACCEPT in one.tags for source in SHOWN for one in detections(sample, source))
    return verdict_of(sample.tags, accepted)


def is_decided() -> Any:
    """Return the FiftyOne expression that is true for samples with a verdict, clear or not."""
    from fiftyone import ViewField

    found = ViewField("tags").contains(list(VERDICT_OF))
    for source in SHOWN:
        found |= ViewField(f"{source}.detections").filter(ViewField("tags").contains(ACCEPT)).length() > 0
    return found
