"""Each term changes the score: one scene per term, with everything else equal."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from diffugen.config.labelling import HEAT_TERMS, TERMS, ScoreWeights
from diffugen.labels.score import in_lab, measure, rescore, score
from diffugen.labels.shapes import encode
from diffugen.records import Instances

SIZE_HW = (64, 96)


def rectangle(x0, y0, x1, y1):
    mask = np.zeros(SIZE_HW, dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def heat_of(mask, inside=6e-4, outside=2e-4, peak=1e-3):
    """A map of two values, with one hot pixel in the mask that fixes the map's peak."""
    heat = np.where(mask, inside, outside).astype(np.float32)
    heat[tuple(np.argwhere(mask)[0])] = peak
    return heat


BASE = rectangle(30, 20, 60, 40)
RIVAL = np.full(SIZE_HW, 1e-4, dtype=np.float32)
RIVAL[40:, :] = 5e-4


GREY = np.full((*SIZE_HW, 3), 128, dtype=np.uint8)
DOUBT = np.full(SIZE_HW, 0.4, dtype=np.float32)


def base_terms():
    return measure([BASE], heat_of(BASE), [RIVAL], in_lab(GREY), DOUBT)[0]


def weights(*values):
    return ScoreWeights(**dict(zip(TERMS, values, strict=True)))


def only(term):
    """Weights of one term; of certainty, which cannot be alone, with next to nothing of another."""
    return ScoreWeights(**{name: float(name == term) for name in TERMS} | least(term))


def least(term):
    return {"box_size": 1e-9} if term == "certainty" else {}


def scene_with_larger_box():
    mask = rectangle(20, 15, 70, 38)
    return measure([mask], heat_of(mask), [np.where(mask, RIVAL[0, 0], RIVAL)], in_lab(GREY), DOUBT)[0]


def scene_with_hotter_inside():
    # The ratio of inside to outside and the peak stay the same.
    return measure([BASE], heat_of(BASE, inside=9e-4, outside=3e-4), [RIVAL], in_lab(GREY), DOUBT)[0]


def scene_with_colder_surroundings():
    return measure([BASE], heat_of(BASE, outside=1e-4), [RIVAL], in_lab(GREY), DOUBT)[0]


def scene_with_hole():
    mask = BASE & ~rectangle(40, 26, 50, 34)
    return measure([mask], heat_of(mask), [RIVAL], in_lab(GREY), DOUBT)[0]


def scene_with_rival_inside():
    rival = RIVAL.copy()
    rival[BASE] = 4e-4
    return measure([BASE], heat_of(BASE), [rival], in_lab(GREY), DOUBT)[0]


def scene_with_less_even_heat():
    """The object and its surroundings stay; far away, the heat is uneven."""
    heat = heat_of(BASE)
    heat[:10, ::2] = 3.5e-4
    return measure([BASE], heat, [RIVAL], in_lab(GREY), DOUBT)[0]


def scene_with_colour():
    picture = np.where(BASE[..., None], np.array([150, 110, 110], np.uint8), GREY)
    return measure([BASE], heat_of(BASE), [RIVAL], in_lab(picture), DOUBT)[0]


def scene_with_agreement():
    return measure([BASE], heat_of(BASE), [RIVAL], in_lab(GREY), np.where(BASE, DOUBT / 4, DOUBT))[0]


@pytest.mark.parametrize(
    ("term", "scene", "better"),
    [
        ("box_size", scene_with_larger_box, True),
        ("heat_intensity", scene_with_hotter_inside, True),
        ("contrast", scene_with_colder_surroundings, True),
        ("compactness", scene_with_hole, False),
        ("margin", scene_with_rival_inside, False),
        ("separation", scene_with_less_even_heat, False),
        ("edge", scene_with_colour, True),
        ("certainty", scene_with_agreement, True),
    ],
)
def test_each_term_moves_the_score(term, scene, better):
    before, after = base_terms(), scene()
    sign = 1 if better else -1
    assert sign * (after[term] - before[term]) > 0.05
    assert sign * (score(after, only(term)) - score(before, only(term))) > 0.05
    # With equal weights, too, when only this term changes.
    equal = weights(*[1.0] * len(TERMS))
    assert sign * (score({**before, term: after[term]}, equal) - score(before, equal)) > 0.01


@pytest.mark.parametrize(
    ("scene", "same"),
    [
        (scene_with_hotter_inside, ("box_size", "contrast", "compactness")),
        (scene_with_colder_surroundings, ("box_size", "heat_intensity", "compactness")),
        (scene_with_hole, ("box_size", "margin")),
        (scene_with_rival_inside, ("box_size", "heat_intensity", "contrast", "compactness", "separation")),
        (scene_with_less_even_heat, ("box_size", "heat_intensity", "contrast", "compactness", "edge")),
        (scene_with_colour, tuple(term for term in TERMS if term != "edge")),
        (scene_with_agreement, HEAT_TERMS),
    ],
)
def test_other_terms_do_not_change(scene, same):
    before, after = base_terms(), scene()
    for name in same:
        assert after[name] == pytest.approx(before[name], abs=0.01), name


@pytest.mark.parametrize("weight", [0.5, 3.0])
@pytest.mark.parametrize("term", TERMS)
def test_each_weight_changes_the_score(term, weight):
    terms = {name: 0.9 if name == term else 0.3 for name in TERMS}
    equal = weights(*[1.0] * len(TERMS))
    assert (score(terms, equal.changed(**{term: weight})) > score(terms, equal)) == (weight > 1)


def test_heat_intensity_does_not_saturate():
    values = []
    for inside in np.linspace(1e-4, 1e-3, 12):
        values.append(measure([BASE], heat_of(BASE, inside=inside, outside=0), [])[0]["heat_intensity"])
    np.testing.assert_allclose(values, np.linspace(0.1, 1.0, 12), atol=0.01)


def test_terms_do_not_depend_on_the_magnitude_of_the_maps():
    small, large = (measure([BASE], scale * heat_of(BASE), [scale * RIVAL])[0] for scale in (1e-3, 1e2))
    assert small == pytest.approx(large, abs=1e-4)


def test_box_size_grows_to_one():
    sizes = [rectangle(0, 0, 96 * k // 8, 64 * k // 8) for k in range(1, 9)]
    values = [measure([mask], heat_of(mask), [])[0]["box_size"] for mask in sizes]
    assert np.all(np.diff(values) > 0) and values[-1] == 1
    assert np.all(np.diff(values, 2) < 0), "fastest where boxes are small"


def test_other_instances_of_the_class_are_not_surroundings():
    left, right = rectangle(20, 20, 40, 40), rectangle(41, 20, 61, 40)
    heat = heat_of(left | right)
    together = measure([left, right], heat, [])
    assert together[1]["contrast"] == pytest.approx(2 / 3, abs=0.01)
    assert measure([right], heat, [])[0]["contrast"] < 0.6


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (rectangle(3, 3, 4, 4), 1.0),
        (rectangle(3, 3, 50, 4), 1.0),
        (np.eye(*SIZE_HW, dtype=bool), 1.0),
        (rectangle(10, 10, 20, 20) | rectangle(30, 10, 40, 20), 200 / 300),
        (rectangle(10, 10, 20, 20) & ~rectangle(12, 12, 18, 18), 64 / 100),
    ],
)
def test_compactness_is_the_share_of_the_convex_hull(mask, expected):
    assert measure([mask], heat_of(mask), [])[0]["compactness"] == pytest.approx(expected)


def test_margin_is_a_half_on_equal_maps_and_one_without_rivals():
    heat = heat_of(BASE)
    assert measure([BASE], heat, [heat])[0]["margin"] == pytest.approx(0.5)
    assert measure([BASE], heat, [])[0]["margin"] == 1
    weaker, stronger = 0.5 * heat + 3e-4 * rectangle(0, 0, 9, 9), heat
    assert measure([BASE], heat, [weaker, stronger])[0]["margin"] == pytest.approx(0.5, abs=0.02)


def test_terms_stay_in_range_on_unusual_scenes():
    rng = np.random.default_rng(0)
    full, empty = np.ones(SIZE_HW, dtype=bool), np.zeros(SIZE_HW, dtype=bool)
    picture = rng.integers(0, 256, (*SIZE_HW, 3), dtype=np.uint8)
    zero, noise = np.zeros(SIZE_HW, dtype=np.float32), rng.random(SIZE_HW, dtype=np.float32)
    for mask in (full, empty, rectangle(0, 0, 1, 1), rectangle(95, 0, 96, 64), noise > 0.5):
        for heat in (zero, noise, np.full_like(noise, 0.3)):
            for rivals in ([], [zero], [noise, zero]):
                (terms,) = measure([mask], heat, rivals, in_lab(picture), noise)
                assert tuple(terms) == TERMS
                assert all(0 <= value <= 1 for value in terms.values()), terms
    assert measure([], noise, []) == []
    assert set(measure([empty], noise, [])[0].values()) == {0.0}


def test_score_is_the_weighted_mean():
    terms = dict(zip(TERMS, (0.2, 0.4, 0.6, 0.8, 1.0, 0.0, 0.5, 0.9), strict=True))
    assert score(terms, weights(*[1.0] * 8)) == pytest.approx(4.4 / 8)
    assert score(terms, weights(1, 3, 0, 0, 0, 0, 0, 0)) == pytest.approx((0.2 + 1.2) / 4)
    assert score(dict.fromkeys(TERMS, 1.0), weights(0.1, 0.2, 0.3, 0.7, 0.1, 0.3, 0.9, 0.7)) <= 1


def test_the_papers_score_is_size_and_intensity():
    assert ScoreWeights.model_validate("paper") == only("box_size").changed(heat_intensity=1.0)
    with pytest.raises(ValidationError):
        ScoreWeights.model_validate("papr")


def test_edge_is_the_colour_difference_across_the_outline():
    """Between two grey levels, the CIELAB distance is the difference of their lightness."""
    lightness = [float(in_lab(np.full((1, 1, 3), grey, np.uint8))[0, 0, 0]) for grey in (128, 90)]
    picture = np.where(BASE[..., None], np.uint8(90), GREY)
    (terms,) = measure([BASE], heat_of(BASE), [], in_lab(picture))
    assert terms["edge"] == pytest.approx(1 - np.exp(-(lightness[0] - lightness[1]) / 20), abs=1e-4)
    shifted = rectangle(36, 20, 66, 40)
    assert measure([shifted], heat_of(shifted), [], in_lab(picture))[0]["edge"] < 0.8 * terms["edge"]
    assert "edge" not in measure([BASE], heat_of(BASE), [])[0], "no image, no edge"


def test_separation_is_otsus_criterion():
    """Two levels and nothing else: all variance lies between them; noise without levels: less."""
    two = np.where(BASE, 6e-4, 2e-4).astype(np.float32)
    assert measure([BASE], two, [])[0]["separation"] == pytest.approx(1, abs=1e-4)
    noise = np.random.default_rng(1).random(SIZE_HW, dtype=np.float32)
    assert measure([BASE], noise, [])[0]["separation"] == pytest.approx(0.75, abs=0.03), "of a uniform one"


def test_missing_terms_are_named():
    with pytest.raises(ValueError, match="margin"):
        score({"box_size": 0.5}, weights(1, 0, 0, 0, 1, 0, 0, 0))
    assert score({"box_size": 0.5}, weights(1, 0, 0, 0, 0, 0, 0, 0)) == 0.5


def test_certainty_does_not_count_for_labels_of_attention():
    assert "certainty" not in measure([BASE], heat_of(BASE), [])[0]
    assert score({"box_size": 0.5}, weights(1, 0, 0, 0, 0, 0, 0, 9)) == 0.5
    assert score({"box_size": 0.5, "certainty": 1.0}, weights(1, 0, 0, 0, 0, 0, 0, 3)) == 0.875


@pytest.mark.parametrize(
    ("wrong", "keys", "word"),
    [
        ({"margin": -0.1}, [("margin",)], "-0.1"),
        ({"contrast": float("nan")}, [("contrast",)], "nan"),
        (dict.fromkeys(TERMS, 0.0), [()], "at least one weight above 0"),
        (
            {**dict.fromkeys(TERMS, 0.0), "certainty": 1.0},
            [()],
            "besides certainty, which labels of attention",
        ),
        ({"box_size": -1, "margin": float("inf")}, [("box_size",), ("margin",)], "inf"),
    ],
)
def test_wrong_weights_are_refused_together(wrong, keys, word):
    with pytest.raises(ValidationError, match=word) as failure:
        ScoreWeights(**wrong)
    assert [error["loc"] for error in failure.value.errors()] == keys


def test_rescore_changes_scores_and_drops_low_ones():
    terms = [dict.fromkeys(TERMS, 0.2), {**dict.fromkeys(TERMS, 0.2), "margin": 0.9}]
    rles = (encode(BASE), encode(rectangle(0, 0, 5, 5)))
    instances = Instances((96, 64), ("car", "piano"), rles, np.zeros(2), tuple(terms))
    assert rescore(instances, only("margin")).scores.tolist() == pytest.approx([0.2, 0.9])
    kept = rescore(instances, only("margin"), accept=0.5)
    assert kept.class_names == ("piano",) and kept.rles == rles[1:] and kept.terms == (terms[1],)
