"""The best trial is adopted only if its gain on held-out images exceeds the standard error."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from diffugen.tune.folds import choose, held_out, split, standard_error


def test_held_out_value_is_that_of_the_trial_the_other_folds_choose() -> None:
    values = np.array([[0.5, 0.5, 0.5, 0.5], [1.0, 1.0, 0.0, 0.1], [0.0, 0.0, 1.0, 1.0]])
    assert held_out(values, np.array([0, 0, 1, 1])).tolist() == [0.0, 0.0, 0.0, 0.1]
    # Outside fold 1 all trials are equal, so the first is taken.
    assert held_out(values, np.array([0, 1, 0, 1])).tolist() == [1.0, 0.5, 0.0, 0.5]
    assert held_out(np.zeros((3, 4)), np.array([0, 0, 1, 1])).tolist() == [0.0] * 4


def test_folds_keep_families_together_and_have_about_the_same_size() -> None:
    families = [f"{n % 7}" for n in range(60)] + ["big"] * 12
    folds = split(families, 4, seed=0)
    by_family = {
        family: {int(fold) for fold, other in zip(folds, families, strict=True) if other == family}
        for family in families
    }
    assert all(len(found) == 1 for found in by_family.values())
    assert sorted(np.unique(folds)) == [0, 1, 2, 3]
    assert max(np.bincount(folds)) - min(np.bincount(folds)) <= 12
    assert len(np.unique(split(["a", "b", "b"], 4, seed=0))) == 2
    assert (split(families, 4, seed=1) != folds).any()


def test_standard_error_takes_images_of_a_family_together() -> None:
    rng = np.random.default_rng(0)
    alone = rng.normal(size=40)
    expected = alone.std(ddof=1) / np.sqrt(40)
    assert standard_error(alone, [f"{n}" for n in range(40)]) == pytest.approx(expected)
    # Copies add no information.
    copies, families = np.repeat(alone, 5), [f"{n // 5}" for n in range(200)]
    assert standard_error(copies, families) == pytest.approx(expected)


def _values(gain: float, spread: float, level: float = 0.2) -> SimpleNamespace:
    rng = np.random.default_rng(0)
    first = np.full(40, level)
    second = first + gain + spread * rng.permutation(np.linspace(-1, 1, 40))
    return SimpleNamespace(values=np.stack([first, second]), families=[f"{n}" for n in range(40)])


CASES = {
    "better": (_values(0.1, 0.1), True, "exceeds"),
    "worse": (_values(-0.1, 0.1), False, "nothing was better"),
    "equal": (_values(0.0, 0.0), False, "nothing was better"),
    "within the error": (_values(0.01, 0.5), False, "does not exceed"),
    "better, but worthless": (_values(0.1, 0.1, -0.2), False, "worse than no labels"),
}


@pytest.mark.parametrize(("case", "adopted", "reason"), CASES.values(), ids=CASES.keys())
def test_adoption(case: SimpleNamespace, adopted: bool, reason: str) -> None:
    choice = choose(case.values, case.families, 4, 0, worthless=0.0)
    assert choice.adopted is adopted and reason in choice.reason


def test_what_has_no_worthless_value_is_adopted_below_0() -> None:
    """A squared error, negated, never exceeds 0."""
    case = _values(0.1, 0.1, -0.2)
    assert choose(case.values, case.families, 4, 0).adopted


def test_chance_is_rarely_adopted() -> None:
    """Of 40 trials that differ from the first by noise alone, the best looks good, but is rarely adopted."""
    adopted, looks = 0, []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        values = 0.2 + rng.normal(size=(41, 40)) * 0.1
        adopted += choose(values, [f"{n}" for n in range(40)], 4, seed).adopted
        looks.append(values.mean(axis=1).max() - values[0].mean())
    assert np.mean(looks) > 0.02
    assert adopted / 200 < 0.2
