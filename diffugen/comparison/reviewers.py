"""How often several reviewers agree about the same images. Knows votes and kinds, not a run."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from diffugen.comparison.shares import Share
from diffugen.records import OPEN, Decision
from diffugen.run.votes import agree


@dataclass(frozen=True)
class ReviewerAgreement:
    """What the votes of several reviewers on the same images say.

    Attributes:
        images: Images on which all reviewers agree, of those with votes of two or more.
        by_kind: The same by kind; an image counts once for each of its kinds.
        by_pair: The same by pair of reviewers, in the order of their names.
    """

    images: Share
    by_kind: Mapping[str, Share]
    by_pair: Mapping[tuple[str, str], Share]


def reviewer_agreement(
    votes: Mapping[str, Sequence[Decision]], kinds: Mapping[str, Collection[str]]
) -> ReviewerAgreement:
    """Return how often reviewers agree; votes that leave an image open do not count.

    Args:
        votes: From an image id to the newest vote of each reviewer.
        kinds: From an image id to what it counts as: kinds of disagreement, or an audit.
    """
    images, by_kind, by_pair = Share(), dict[str, Share](), dict[tuple[str, str], Share]()
    for image_id, of_image in votes.items():
        meant = sorted((one for one in of_image if one.verdict != OPEN), key=lambda one: one.reviewer)
        if len(meant) < 2:
            continue
        same = {
            (first.reviewer, second.reviewer): agree(first, second)
            for first, second in combinations(meant, 2)
        }
        images = images.plus(all(same.values()))
        for kind in dict.fromkeys(kinds.get(image_id, ())):
            by_kind[kind] = by_kind.get(kind, Share()).plus(all(same.values()))
        for pair, hit in same.items():
            by_pair[pair] = by_pair.get(pair, Share()).plus(hit)
    return ReviewerAgreement(images, by_kind, dict(sorted(by_pair.items())))
