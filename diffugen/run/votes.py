"""Which decision about an image counts, when there are several, of one reviewer or of many.

Knows decisions, not where they are stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from diffugen.records import OPEN, Decision, Instances

SAME_OBJECT_IOU = 0.75
"""Two reviewers mean the same mask if theirs overlap by at least this much: nobody draws a pixel twice."""


def settled(votes: Iterable[Decision], consensus: int = 1) -> dict[str, Decision]:
    """Return, from an image id, the decision that counts of each image that is decided.

    With a consensus of 1 that is an image's newest vote. With n, it is the newest vote that n reviewers
    agree on, each represented by the newest vote of theirs. An image whose vote is ``open`` is not decided.

    Args:
        votes: All decisions, oldest first.
        consensus: How many reviewers must agree.

    Returns:
        The decisions in the order in which they were made.
    """
    newest = newest_votes(votes)
    found = (_settled(of_image, consensus) for of_image in newest.values())
    made = {one.image_id: one for one in found if one is not None}
    return dict(sorted(made.items(), key=lambda item: item[1].made_at))


def newest_votes(votes: Iterable[Decision]) -> dict[str, tuple[Decision, ...]]:
    """Return, from an image id, the newest vote of each reviewer, oldest first.

    Args:
        votes: All decisions, oldest first.
    """
    newest: dict[str, dict[str, Decision]] = {}
    for vote in votes:
        of_image = newest.setdefault(vote.image_id, {})
        of_image.pop(vote.reviewer, None)
        of_image[vote.reviewer] = vote
    return {image_id: tuple(of_image.values()) for image_id, of_image in newest.items()}


def _settled(votes: Sequence[Decision], consensus: int) -> Decision | None:
    if consensus == 1:
        return votes[-1] if votes[-1].verdict != OPEN else None
    meant = [one for one in votes if one.verdict != OPEN]
    return next(
        (one for one in reversed(meant) if sum(agree(one, other) for other in meant) >= consensus), None
    )


def agree(first: Decision, second: Decision) -> bool:
    """Return whether two decisions mean the same: both reject the image, or both give it the same objects.

    Objects are the same if their classes are, and their masks overlap by `SAME_OBJECT_IOU`.
    """
    if OPEN in (first.verdict, second.verdict):
        return False
    if first.instances is None or second.instances is None:
        return first.instances is second.instances
    return _same_objects(first.instances, second.instances)


def _same_objects(first: Instances, second: Instances) -> bool:
    from pycocotools import mask as coco

    if sorted(first.class_names) != sorted(second.class_names):
        return False
    if not len(first):
        return True
    overlaps = coco.iou(list(first.rles), list(second.rles), [0] * len(second))
    free = set(range(len(second)))
    for index, name in enumerate(first.class_names):
        partners = [
            other
            for other in free
            if second.class_names[other] == name and overlaps[index][other] >= SAME_OBJECT_IOU
        ]
        if not partners:
            return False
        free.remove(max(partners, key=lambda other: float(overlaps[index][other])))
    return True
