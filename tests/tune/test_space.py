"""Settings survive the way to parameters and back, and each trial varies what it should."""

from __future__ import annotations

from typing import Any

import pytest

from diffugen.config.labelling import HEAT_TERMS, TERMS, LabelSettings, ScoreWeights
from diffugen.tune.space import (
    fixed_params,
    label_params,
    label_space,
    score_params,
    score_space,
    to_settings,
    to_weights,
)


@pytest.mark.parametrize(
    "settings",
    [
        LabelSettings(),
        LabelSettings(
            method="paper", refine="crf", threshold=0.1, erode_frac=0.1, groups={"a": 2.0, "b": 1.0, "c": 0.0}
        ),
        LabelSettings(refine="sam"),
        LabelSettings(threshold=0.85, dilate_frac=0.05, accept=1.0, step_weights=(0.0, 0.0, 4.0)),
    ],
)
def test_parameters_round_trip(settings: LabelSettings) -> None:
    params = label_params(settings)
    groups = label_space(settings)
    space = {name: limits for group in groups for name, limits in group.items()}
    assert sum(map(len, groups)) == len(space)
    assert space.keys() == params.keys()
    for name, limits in space.items():
        if isinstance(limits[0], str):
            assert params[name] in limits
        else:
            assert limits[0] <= params[name] <= limits[1]
    back = to_settings(params, settings)
    scale = max(settings.step_weights)
    assert back.step_weights == tuple(weight / scale for weight in settings.step_weights)
    same = back.changed(step_weights=settings.step_weights, groups=settings.groups)
    assert same == settings
    largest = max(settings.groups.values())
    if len(settings.groups) > 1:
        assert back.groups == {name: weight / largest for name, weight in settings.groups.items()}
    assert "accept" not in space, "a dropped label leaves its object to be learned as background"


def test_only_ratios_of_score_weights_matter() -> None:
    given = ScoreWeights(box_size=4.0, margin=0.0, certainty=2.0)
    found = ScoreWeights(
        box_size=1.0,
        heat_intensity=0.25,
        contrast=0.25,
        compactness=0.25,
        margin=0.0,
        separation=0.25,
        certainty=0.5,
    )
    for terms in (TERMS, HEAT_TERMS):
        params = score_params(given, terms)
        assert set(params) == set(score_space(terms)[0]) == set(terms)
        assert to_weights(params, given) == found, "what is not searched is kept on the same scale"


@pytest.mark.parametrize(
    "extreme",
    [{"erode_frac": 0.199999, "dilate_frac": 0.199999}, {"threshold": 0.999999}, {"threshold": 0.000001}],
)
def test_rounding_never_leaves_the_range_of_a_setting(extreme: dict[str, Any]) -> None:
    settings = LabelSettings(**extreme)
    assert to_settings(label_params(settings), settings) == settings


def test_each_choice_is_switched_once_then_groups_take_turns() -> None:
    settings = LabelSettings(method="paper", groups={"a": 1.0, "b": 1.0})
    spaces, start = label_space(settings), label_params(settings)
    best = {**start, "erode_frac": 0.01}
    plans = [fixed_params(number, start, best, spaces) for number in range(28)]
    assert plans[0] == start
    switched = [{name: value for name, value in plan.items() if value != best[name]} for plan in plans[1:4]]
    assert switched == [{"method": "compete"}, {"refine": "crf"}, {"threshold": "fraction"}]
    free = [
        next(index for index, space in enumerate(spaces) if space.keys() == start.keys() - plan)
        for plan in plans[4:]
    ]
    assert free == ([0] * 4 + [1] * 4 + [2] * 4) * 2
    assert all(best[name] == value for plan in plans[4:] for name, value in plan.items())


def test_scores_are_searched_in_all_weights_at_once() -> None:
    start, space = score_params(ScoreWeights(), TERMS), score_space(TERMS)
    assert fixed_params(0, start, start, space) == start
    assert [fixed_params(number, start, start, space) for number in range(1, 9)] == [{}] * 8


def test_weights_that_are_all_0_count_as_equal() -> None:
    settings = LabelSettings(groups={"a": 1.0, "b": 1.0})
    zeros = {name: 0.0 if "." in name else value for name, value in label_params(settings).items()}
    back = to_settings(zeros, settings)
    assert (back.groups, back.step_weights) == ({"a": 1.0, "b": 1.0}, (1.0, 1.0, 1.0))
    equal = ScoreWeights(**dict.fromkeys(TERMS, 1.0))
    assert to_weights(dict.fromkeys(TERMS, 0.0), ScoreWeights()) == equal
