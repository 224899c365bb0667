"""Agreement between reviewers: each image once, once for each of its kinds, and once for each pair."""

from __future__ import annotations

import numpy as np

from diffugen.comparison.reviewers import reviewer_agreement
from diffugen.comparison.shares import Share
from diffugen.comparison.verdicts import is_wrong
from diffugen.labels.shapes import encode
from diffugen.records import Decision, Instances
from diffugen.run.votes import newest_votes

SIZE_WH = (40, 24)


def labels(*objects: tuple[str, int]) -> Instances:
    """Squares of 10 px, by class and left edge."""
    masks = []
    for _, left in objects:
        mask = np.zeros(SIZE_WH[::-1], dtype=np.bool_)
        mask[5:15, left : left + 10] = True
        masks.append(encode(mask))
    return Instances(SIZE_WH, tuple(name for name, _ in objects), tuple(masks), np.ones(len(objects)))


def vote(image_id: str, reviewer: str, *objects: tuple[str, int], verdict: str = "edited") -> Decision:
    found = None if verdict in ("reject", "open") else labels(*objects)
    return Decision(image_id, verdict, found, reviewer)


CAR, SAME_CAR, FAR_CAR = ("car", 5), ("car", 6), ("car", 9)


def test_each_image_counts_once_for_each_kind() -> None:
    votes = [
        vote("agreed", "ann", CAR), vote("agreed", "ben", SAME_CAR),
        vote("apart", "ann", CAR), vote("apart", "ben", FAR_CAR),
        vote("audit", "ann", verdict="reject"), vote("audit", "ben", verdict="reject"),
        vote("one", "ann", CAR),
        vote("open", "ann", CAR), vote("open", "ben", verdict="open"),
    ]  # fmt: skip
    kinds = {"agreed": ["swapped", "swapped", "spurious"], "apart": ["swapped"], "audit": ["audit"]}
    found = reviewer_agreement(newest_votes(votes), kinds)
    assert found.images == Share(2, 3)
    assert found.by_kind == {"swapped": Share(1, 2), "spurious": Share(1, 1), "audit": Share(1, 1)}
    assert found.by_pair == {("ann", "ben"): Share(2, 3)}


def test_only_the_newest_vote_of_each_counts() -> None:
    votes = [vote("x", "ann", CAR), vote("x", "ben", FAR_CAR), vote("x", "ann", FAR_CAR)]
    assert reviewer_agreement(newest_votes(votes), {}).images == Share(1, 1)


def test_an_image_is_agreed_if_all_its_reviewers_agree() -> None:
    votes = [vote("x", "cleo", CAR), vote("x", "ben", SAME_CAR), vote("x", "ann", verdict="reject")]
    found = reviewer_agreement(newest_votes(votes), {"x": ["swapped"]})
    assert (found.images, found.by_kind) == (Share(0, 1), {"swapped": Share(0, 1)})
    assert found.by_pair == {
        ("ann", "ben"): Share(0, 1), ("ann", "cleo"): Share(0, 1), ("ben", "cleo"): Share(1, 1)
    }  # fmt: skip


def test_labels_are_wrong_unless_they_are_those_of_a_person_one_to_one() -> None:
    assert not is_wrong(labels(CAR), labels(SAME_CAR))
    assert not is_wrong(labels(), labels())
    assert is_wrong(labels(CAR), labels(CAR, ("car", 25))), "one is missing"
    assert is_wrong(labels(CAR, ("car", 25)), labels(CAR)), "one is superfluous"
    assert is_wrong(labels(CAR), labels(("person", 5)))
    assert is_wrong(labels(CAR), labels(FAR_CAR)) and not is_wrong(labels(CAR), labels(FAR_CAR), good_iou=0.4)
