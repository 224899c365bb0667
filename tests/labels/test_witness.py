"""A witness: a detector that knows some of the classes helps to label the others."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray

from diffugen.config import LabelSettings, ScoreWeights
from diffugen.labels import label_combined
from diffugen.labels.shapes import decode, encode
from diffugen.labels.witness import Witness
from diffugen.records import Instances, Phrase

HEIGHT, WIDTH = 40, 60
SETTINGS = LabelSettings(method="paper", erode_frac=0, dilate_frac=0)
PIANO, CAR = Phrase("piano", "piano"), Phrase("car", "car")


def blob(x0: int, x1: int, y0: int = 10, y1: int = 30) -> NDArray[np.bool_]:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def heat(*parts: tuple[NDArray[np.bool_], float]) -> NDArray[np.float32]:
    found = np.full((HEIGHT, WIDTH), 0.01, np.float32)
    for mask, value in parts:
        found[mask] = value
    return found


def witness(*found: tuple[str, NDArray[np.bool_], float], knows: tuple[str, ...] = ("car", "dog")) -> Witness:
    seen = Instances(
        (WIDTH, HEIGHT),
        tuple(name for name, _, _ in found),
        tuple(encode(mask) for _, mask, _ in found),
        np.array([score for _, _, score in found]),
    )
    return Witness(seen, frozenset(knows))


def labelled(
    heats: list[NDArray[np.float32]], phrases: list[Phrase], seen: Witness | None, **changes: object
) -> dict[str, NDArray[np.bool_]]:
    made = label_combined(
        np.stack(heats), phrases, SETTINGS.changed(**changes), ScoreWeights(), None, None, seen
    )
    assert len(set(made.class_names)) == len(made)
    return dict(zip(made.class_names, map(decode, made.rles), strict=True))


def test_its_objects_are_cut_out_of_the_classes_that_it_does_not_know() -> None:
    """The piano's heat leaks onto the car beside it."""
    leaky = heat((blob(10, 30), 0.9), (blob(30, 45), 0.8))
    cars = heat((blob(30, 45), 0.9))
    both = [PIANO, CAR]
    assert labelled([leaky, cars], both, None)["piano"][:, 30:].any()
    found = labelled([leaky, cars], both, witness(("car", blob(30, 45), 0.9)))
    assert np.array_equal(found["piano"], blob(10, 30))


def test_its_masks_replace_the_labels_of_the_classes_that_it_knows() -> None:
    coarse, exact = heat((blob(28, 50, 5, 35), 0.9)), blob(30, 45)
    pianos = heat((blob(5, 20), 0.9))
    found = labelled([pianos, coarse], [PIANO, CAR], witness(("car", exact, 0.9)))
    assert np.array_equal(found["car"], exact) and np.array_equal(found["piano"], blob(5, 20))
    nothing = labelled([pianos, coarse], [PIANO, CAR], witness())
    assert np.array_equal(nothing["car"], blob(28, 50, 5, 35)), "it saw none: the attention label stays"


def test_what_the_prompt_does_not_name_is_labelled_with_its_confidence() -> None:
    made = label_combined(
        np.stack([heat((blob(5, 20), 0.9))]),
        [PIANO],
        SETTINGS,
        ScoreWeights(),
        None,
        None,
        witness(("dog", blob(40, 50), 0.7)),
    )
    assert made.class_names == ("piano", "dog")
    assert made.scores[1] == 0.7 and made.terms[0] and not made.terms[1]


@pytest.mark.parametrize("named", [True, False], ids=["named in the prompt", "not named"])
def test_a_rare_object_under_a_known_name_does_not_count(named: bool) -> None:
    """A detector that has never seen a piano calls it a car; the prompt and its heat know better."""
    heats, phrases = [heat((blob(10, 30), 0.9))], [PIANO]
    if named:
        heats, phrases = [*heats, heat((blob(40, 55), 0.9), (blob(10, 30), 0.2))], [*phrases, CAR]
    found = labelled(heats, phrases, witness(("car", blob(11, 30), 0.8)))
    assert np.array_equal(found["piano"], blob(10, 30))
    assert ("car" in found) == named and not (named and found["car"][:, :35].any())


def test_only_objects_in_the_painted_region_count() -> None:
    region = encode(blob(0, 35, 0, HEIGHT))
    seen = witness(("dog", blob(40, 50), 0.7), ("dog", blob(30, 34), 0.6))
    made = label_combined(
        np.stack([heat((blob(5, 20), 0.9))]), [PIANO], SETTINGS, ScoreWeights(), None, region, seen
    )
    assert made.class_names == ("piano", "dog") and made.scores[1] == 0.6


def test_a_perfect_rival_changes_nothing_where_there_is_no_witness() -> None:
    heats = np.stack([heat((blob(5, 20), 0.9)), heat((blob(30, 50), 0.9))])
    plain = label_combined(heats, [PIANO, CAR], SETTINGS, ScoreWeights())
    empty = label_combined(heats, [PIANO, CAR], SETTINGS, ScoreWeights(), None, None, witness())
    assert plain.rles == empty.rles and dataclasses.asdict(plain)["terms"] == empty.terms
