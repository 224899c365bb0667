"""Which images the noise filter holds back, from how much a detector contradicts their labels."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given, strategies as st

from diffugen.comparison.disagreement import compare
from diffugen.dataset.noise import contradictions, most_contradicted
from tests.support.planted import NOTHING, box


def classes_of(judged: Mapping[str, Mapping[str, float]]) -> dict[str, list[str]]:
    return {image_id: list(found) for image_id, found in judged.items()}


def test_each_class_gets_the_severity_of_its_worst_object() -> None:
    labels = box(5, 20).joined(box(60, 20, score=0.3)).joined(box(30, 20, name="car"))
    model = box(5, 20, score=0.9).joined(box(30, 20, score=0.7, name="bus"))
    found = contradictions(labels, model, compare("i", labels, model))
    assert set(found) == {"piano", "car"}, "a swapped class speaks against the label's"
    assert found["piano"] == pytest.approx(0.7) and found["car"] > 0.7
    overlooked = box(40, 20, score=0.6, name="truck")
    assert contradictions(NOTHING, overlooked, compare("i", NOTHING, overlooked)) == {"truck": 0.6}


def test_every_class_loses_the_same_share() -> None:
    """By severity alone, only images of the hard class would be held back."""
    judged = {f"hard-{number}": {"piano": 0.5 + number / 100} for number in range(10)}
    judged |= {f"easy-{number:02}": {"car": number / 100} for number in range(30)}
    held_back = most_contradicted(judged, 0.2, classes_of(judged))
    assert set(held_back) == {"hard-9", "hard-8", *(f"easy-{number}" for number in range(24, 30))}


def test_an_image_counts_by_the_class_in_which_it_stands_worst() -> None:
    judged = {str(number): {"piano": number / 10, "car": 0.1} for number in range(4)}
    judged["both"] = {"piano": 0.0, "car": 0.9}
    assert most_contradicted(judged, 0.4, classes_of(judged)) == ["both", "3"]


def test_the_last_image_of_a_class_stays() -> None:
    judged = {"a": {"piano": 0.9, "car": 0.9}, "b": {"car": 0.5}, "c": {"car": 0.1}}
    assert most_contradicted(judged, 0.4, classes_of(judged)) == ["b"]
    confirmed = {**classes_of(judged), "d": ["piano"]}
    assert most_contradicted(judged, 0.4, confirmed) == ["a"], "a confirmed image shows a piano too"


@given(
    st.dictionaries(
        st.text("abcdef", min_size=1, max_size=4),
        st.dictionaries(st.sampled_from(["car", "bus", "piano"]), st.floats(0, 1), min_size=1),
        max_size=20,
    ),
    st.floats(0, 0.99),
)
def test_never_more_than_the_share_and_no_class_vanishes(
    judged: dict[str, dict[str, float]], share: float
) -> None:
    labelled = classes_of(judged)
    held_back = most_contradicted(judged, share, labelled)
    assert len(held_back) == len(set(held_back)) <= share * len(judged) + 0.5
    kept = [names for image_id, names in labelled.items() if image_id not in held_back]
    assert {name for names in kept for name in names} == {name for found in judged.values() for name in found}
