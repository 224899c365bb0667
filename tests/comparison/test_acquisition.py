"""The review queue: which images come first, in one possible order."""

from __future__ import annotations

import random

import numpy as np
import pytest

from diffugen.comparison.acquisition import ORDERS, rank
from diffugen.errors import DiffugenError
from diffugen.labels.features import features_of
from diffugen.records import Disagreement


def flagged(image_id: str, worst: float, kind: str = "overlooked", index: int = 0) -> Disagreement:
    attention, model = None if kind == "overlooked" else index, None if kind == "spurious" else index
    return Disagreement(image_id, kind, worst, attention, model, 0.0)


def test_the_queue_is_sorted_by_severity_whatever_the_order_of_the_input() -> None:
    expected = [
        flagged("b", 0.9),
        flagged("b", 0.5, "overlooked", 0),
        flagged("a", 0.5, "overlooked", 1),
        flagged("a", 0.5, "overlooked", 2),
        flagged("a", 0.5, "spurious", 0),
        flagged("a", 0.1),
    ]
    for seed in range(5):
        shuffled = random.Random(seed).sample(expected, len(expected))
        assert rank(iter(shuffled)) == expected
    assert rank([]) == []


def test_a_single_family_does_not_fill_the_queue() -> None:
    bad = [flagged(f"bad{number}", 0.9) for number in range(50)]
    others = [flagged(f"other{number}", 0.4) for number in range(5)]
    families = {item.image_id: "p" if item in bad else item.image_id for item in [*bad, *others]}
    assert [item.image_id[:3] for item in rank([*bad, *others])[:10]] == ["bad"] * 10
    head = rank([*bad, *others], families=families)[:10]
    # .9, .45 (the second of its family), five times .4, then .3, .225 and .18.
    assert [item.image_id[:3] for item in head] == ["bad"] * 2 + ["oth"] * 5 + ["bad"] * 3
    assert len(rank(bad, families=families)) == 50


def ids(queue: list[Disagreement]) -> list[str]:
    return list(dict.fromkeys(one.image_id for one in queue))


CROWD = [
    flagged("one", 0.8),
    *(flagged("many", 0.4, index=index) for index in range(3)),
    flagged("none", 0.1),
]


def test_change_prefers_many_doubtful_labels_to_a_bad_one() -> None:
    assert ids(rank(CROWD)) == ["one", "many", "none"]
    assert ids(rank(CROWD, "change")) == ["many", "one", "none"]


def test_diverse_prefers_what_looks_unlike_what_came_before() -> None:
    items = [flagged("a", 0.9), flagged("a-twin", 0.85), flagged("b", 0.5), flagged("c", 0.2)]
    places = {"a": 0.0, "a-twin": 0.1, "b": 5.0, "c": 9.0}
    features = {name: np.array([place], np.float32) for name, place in places.items()}
    assert ids(rank(items, "diverse", features=features)) == ["a", "b", "c", "a-twin"]


def test_mixed_takes_turns_and_random_depends_on_the_seed_alone() -> None:
    items = [flagged(f"{number:02}", number / 100) for number in range(40)]
    worst, mixed = ids(rank(items)), ids(rank(items, "mixed", seed=3))
    at_random = ids(rank(items, "random", seed=3))
    assert mixed[0] == worst[0] and mixed[1] == at_random[0]
    assert len(set(mixed[:20]) & set(worst[:20])) >= 10
    assert at_random == ids(rank(reversed(items), "random", seed=3)) != ids(rank(items, "random", seed=4))


@pytest.mark.parametrize("order", ORDERS)
def test_every_order_keeps_every_disagreement_once(order: str) -> None:
    items = [flagged(f"{number % 30:02}", number / 90, index=number) for number in range(90)]
    features = {one.image_id: np.full(2, float(one.image_id), np.float32) for one in items}
    doubts = {one.image_id: float(one.image_id) / 30 for one in items}
    queue = rank(items, order, features=features, doubts=doubts)
    assert sorted(queue, key=items.index) == items
    assert queue == rank(random.Random(0).sample(items, 90), order, features=features, doubts=doubts)
    assert rank([], order, features={}) == []


def test_features_tell_dark_from_light_and_left_from_right() -> None:
    dark, light = (np.full((24, 40, 3), value, np.uint8) for value in (20, 230))
    left = dark.copy()
    left[:, :20] = 230
    names = {"dark": dark, "light": light, "left": left, "right": left[:, ::-1]}
    found = {name: features_of(rgb) for name, rgb in names.items()}
    assert {one.shape for one in found.values()} == {(192,)}
    assert np.linalg.norm(found["left"] - found["right"]) > 100
    assert np.linalg.norm(found["dark"] - found["light"]) > 100


def test_errors_name_the_mistake() -> None:
    with pytest.raises(DiffugenError, match="1 of the images to rank have no family, the first is b"):
        rank([flagged("a", 0.5), flagged("b", 0.5)], families={"a": "p"})
    with pytest.raises(DiffugenError, match="unknown order 'best'; one of severity"):
        rank([], "best")


def test_doubt_alone_decides_where_it_is_asked_for() -> None:
    items = [flagged(f"image {number}", number / 10) for number in range(5)]
    doubts = {f"image {number}": 0.5 - number / 20 for number in range(5)}
    assert ids(rank(items, "doubt", doubts=doubts)) == [f"image {number}" for number in range(5)]
    with pytest.raises(DiffugenError, match="1 of the images to rank have no doubt"):
        rank(items, "doubt", doubts={one: value for one, value in doubts.items() if one != "image 3"})
