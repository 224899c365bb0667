"""How often attention and model are wrong together, by audits: agreed images that a person decided."""

from __future__ import annotations

from diffugen.comparison.shares import Share
from diffugen.comparison.verdicts import is_wrong
from diffugen.config.sections import DisagreementSettings
from diffugen.review.queue import attention_labels, compared_method, configured_classes, decided_audits
from diffugen.run.store import RunStore


def audit_errors(store: RunStore) -> Share:
    """Return on how many of the decided audits the labels turned out wrong.

    An audit is an image of the queue on which both sources agree. Its labels are wrong if an object is
    missing, superfluous, of another class, or elsewhere. Rejected images say nothing about labels and do not
    count.
    """
    good_iou, class_names, errors = _good_iou(store), configured_classes(store), Share()
    decisions = [one for one in map(store.decision, decided_audits(store)) if one is not None]
    method = compared_method(store) if decisions else None
    for decision in decisions:
        attention = attention_labels(store, decision.image_id, method)
        if decision.instances is None or attention is None:
            continue
        labels, human = attention.instances, decision.instances
        if class_names:
            labels, human = labels.of_classes(class_names), human.of_classes(class_names)
        errors = errors.plus(is_wrong(labels, human, good_iou=good_iou))
    return errors


def _good_iou(store: RunStore) -> float:
    """Return the configured IoU from which two masks are of the same object."""
    section = (store.config or {}).get("disagreement")
    found = section.get("good_iou") if isinstance(section, dict) else None
    return float(found) if isinstance(found, (int, float)) else DisagreementSettings().good_iou
