"""Sampling: counts, weights, balance of values and pairs, repeats only when due, and the seed."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence

import pytest

from diffugen.config.generation import SAMPLINGS
from diffugen.prompts.balance import apportion, due
from diffugen.prompts.sampling import Choice, Options, Space, Values, choose, weights_of


def space_of(template: str, lists: Mapping[str, Values]) -> Space:
    return Space.of(template, {name: Options.of(values) for name, values in lists.items()})


VALUES = {"a": ["a0", "a1"], "b": ["b0", "b1", "b2"], "c": ["c0", "c1", "c2"]}
SPACES = [space_of(template, VALUES) for template in ("x {a} {b}", "y {c} {b}", "z {a} {b} {c}", "plain")]
TOTAL = 6 + 9 + 18 + 1
COUNTS = [1, 5, 17, TOTAL // 2, TOTAL - 1, TOTAL, TOTAL + 1, 3 * TOTAL + 7]


def uses_by_field(choices: list[Choice]) -> dict[str, Counter[str]]:
    uses = {name: Counter(dict.fromkeys(values, 0)) for name, values in VALUES.items()}
    for number, values in choices:
        for name, value in SPACES[number].named(values).items():
            uses[name][value] += 1
    return uses


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("count", COUNTS)
def test_the_count_is_met_and_combinations_repeat_only_after_all_were_used(sampling: str, count: int) -> None:
    for seed in range(5):
        choices = choose(SPACES, count, sampling, random.Random(seed))
        uses = Counter(choices)
        assert len(choices) == count
        assert max(uses.values()) == -(-count // TOTAL)
        assert (
            count < TOTAL
            or min(uses[choice] for choice in choose(SPACES, TOTAL, "product", random.Random(0))) >= 1
        )


@pytest.mark.parametrize("count", COUNTS)
def test_balanced_uses_all_values_equally_often(count: int) -> None:
    for seed in range(5):
        for uses in uses_by_field(choose(SPACES, count, "balanced", random.Random(seed))).values():
            assert max(uses.values()) - min(uses.values()) <= 1


def test_sample_is_not_balanced() -> None:
    """The test above can fail: a plain sample does not have this balance."""
    spreads = []
    for seed in range(5):
        uses = uses_by_field(choose(SPACES, 17, "sample", random.Random(seed)))["b"]
        spreads.append(max(uses.values()) - min(uses.values()))
    assert max(spreads) > 1


def test_balanced_uses_templates_in_turn() -> None:
    uses = Counter(number for number, _ in choose(SPACES, 13, "balanced", random.Random(3)))
    assert sorted(uses.values()) == [1, 4, 4, 4]
    assert uses[3] == 1, "the template without fields has only one combination"


def test_product_keeps_the_order_of_templates_and_values() -> None:
    texts = [SPACES[number].fill(values) for number, values in choose(SPACES, 8, "product", random.Random(0))]
    assert texts == ["x a0 b0", "x a0 b1", "x a0 b2", "x a1 b0", "x a1 b1", "x a1 b2", "y c0 b0", "y c0 b1"]


@pytest.mark.parametrize("sampling", ["balanced", "sample"])
def test_the_choice_depends_on_the_seed(sampling: str) -> None:
    first, again, other = (choose(SPACES, 20, sampling, random.Random(seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_huge_space_is_not_enumerated(sampling: str) -> None:
    values = {name: [f"{name}{number}" for number in range(1000)] for name in "abcdef"}
    space = space_of("{a} {b} {c} {d} {e} {f}", values)
    assert space.size == 10**18
    assert len(set(choose([space], 50, sampling, random.Random(0)))) == 50


def test_a_field_used_twice_has_one_value() -> None:
    space = space_of("{a} and\n {a}", VALUES)
    assert space.fields == ("a",)
    assert space.fill(("a1",)) == "a1 and a1"


WEIGHTED: dict[str, Values] = {
    "a": {"a0": 3, "a1": 1},
    "b": ["b0", "b1", "b2"],
    "c": {"c0": 0.2, "c1": 0, "c2": 0.5},
}
WEIGHTED_SPACES = [
    space_of(template, WEIGHTED) for template in ("x {a} {b}", "y {c} {b}", "z {a} {b} {c}", "plain")
]


def deviations(
    spaces: Sequence[Space], choices: Sequence[Choice], lists: Mapping[str, Values]
) -> dict[str, dict[str, float]]:
    """For each value, its uses minus its share of the uses of its field."""
    uses: dict[str, Counter[str]] = {name: Counter() for name in lists}
    for number, values in choices:
        for name, value in spaces[number].named(values).items():
            uses[name][value] += 1
    weights = {name: weights_of(values) for name, values in lists.items()}
    return {
        name: {
            value: uses[name][value]
            - weights[name].get(value, 0) / sum(weights[name].values()) * uses[name].total()
            for value in {*lists[name], *uses[name]}
        }
        for name in lists
    }


@pytest.mark.parametrize("count", [1, 4, 16, 27, 60, 500])
def test_balanced_uses_values_in_proportion_to_their_weights(count: int) -> None:
    for seed in range(5):
        choices = choose(WEIGHTED_SPACES, count, "balanced", random.Random(seed))
        assert len(choices) == count
        off = deviations(WEIGHTED_SPACES, choices, WEIGHTED)
        assert all(abs(miss) < 1 for misses in off.values() for miss in misses.values()), off


def test_weights_are_met_exactly_where_the_count_allows() -> None:
    space = space_of("{a} {b}", {"a": {"a0": 3, "a1": 1}, "b": {"b0": 1, "b1": 2, "b2": 0}})
    uses = Counter(values for _, values in choose([space], 24, "balanced", random.Random(2)))
    assert uses == {("a0", "b0"): 6, ("a0", "b1"): 12, ("a1", "b0"): 2, ("a1", "b1"): 4}


def test_sample_draws_by_weight() -> None:
    space = space_of(
        "{a} {b}", {"a": {"a0": 3, "a1": 1, "a2": 0}, "b": [f"b{number}" for number in range(5000)]}
    )
    choices = choose([space], 2000, "sample", random.Random(0))
    uses = Counter(values[0] for _, values in choices)
    assert uses.keys() == {"a0", "a1"}
    assert 0.7 < uses["a0"] / 2000 < 0.8
    assert len(set(choices)) == 2000, "none of the 10,000 combinations is due twice"
    assert len(set(choose([space], 10, "sample", random.Random(0)))) == 10


def test_sample_repeats_combinations_only_as_often_as_due() -> None:
    space = space_of("{a}", {"a": {"a0": 9, "a1": 1}})
    uses = Counter(choose([space], 100, "sample", random.Random(1)))
    assert uses[0, ("a0",)] <= 90 and uses[0, ("a1",)] <= 10


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_equal_weights_change_nothing(sampling: str) -> None:
    equal = {name: dict.fromkeys(values, 0.1) for name, values in VALUES.items()}
    spaces = [space_of(space.template, equal) for space in SPACES]
    for count in (5, TOTAL + 3):
        plain = choose(SPACES, count, sampling, random.Random(4))
        assert choose(spaces, count, sampling, random.Random(4)) == plain


def test_values_of_weight_0_are_left_out() -> None:
    space = space_of("{a}", {"a": {"a0": 0, "a1": 2, "a2": 2}})
    assert [one.values for one in space.options] == [("a1", "a2")]
    assert space.size == 2 and space.even


def pair_spread(spaces: Sequence[Space], choices: Sequence[Choice]) -> dict[tuple[str, str], tuple[int, int]]:
    """The lowest and highest count of a pair of values, for each two fields."""
    lists = {
        name: one.values for space in spaces for name, one in zip(space.fields, space.options, strict=True)
    }
    counts: dict[tuple[str, str], Counter[tuple[str, str]]] = {}
    for number, values in choices:
        for (one, mine), (other, theirs) in itertools.combinations(
            sorted(spaces[number].named(values).items()), 2
        ):
            counts.setdefault(
                (one, other), Counter(dict.fromkeys(itertools.product(lists[one], lists[other]), 0))
            )[mine, theirs] += 1
    return {names: (min(count.values()), max(count.values())) for names, count in counts.items()}


@pytest.mark.parametrize(
    ("sizes", "count", "spread"),
    [((5, 5, 5), 25, 0), ((3, 5, 3, 2), 80, 1), ((4, 4, 4, 4), 200, 1), ((5,) * 6, 1000, 3)],
)
def test_balanced_uses_all_pairs_equally_often(sizes: tuple[int, ...], count: int, spread: int) -> None:
    names = "abcdef"[: len(sizes)]
    lists = {
        name: [f"{name}{number}" for number in range(size)] for name, size in zip(names, sizes, strict=True)
    }
    space = space_of(" ".join(f"{{{name}}}" for name in names), lists)
    for seed in range(3):
        balanced = choose([space], count, "balanced", random.Random(seed))
        sample = choose([space], count, "sample", random.Random(seed))
        widest = max(most - least for least, most in pair_spread([space], balanced).values())
        assert widest <= spread
        assert widest < max(most - least for least, most in pair_spread([space], sample).values()) - 1
        assert len(set(balanced)) == count


def test_pairs_are_balanced_across_templates_and_when_few_are_left_out() -> None:
    lists = {name: [f"{name}{number}" for number in range(4)] for name in "abcd"}
    spaces = [space_of(template, lists) for template in ("x {a} {b} {c}", "y {b} {a} {d}", "z {c}")]
    for count in (70, 120, 132, 300):
        choices = choose(spaces, count, "balanced", random.Random(count))
        spreads = pair_spread(spaces, choices)
        assert spreads.keys() == {("a", "b"), ("a", "c"), ("b", "c"), ("a", "d"), ("b", "d")}
        assert max(most - least for least, most in spreads.values()) <= 2, count


def test_weighted_pairs_occur_in_proportion_to_both_weights() -> None:
    lists: dict[str, Values] = {
        name: {f"{name}{number}": number + 1 for number in range(4)} for name in "abc"
    }
    space = space_of("{a} {b} {c}", lists)
    for seed in range(3):
        choices = choose([space], 500, "balanced", random.Random(seed))
        for first, second in itertools.combinations(range(3), 2):
            uses = Counter((values[first], values[second]) for _, values in choices)
            for (one, mine), (other, theirs) in itertools.product(
                zip(space.options[first].values, space.options[first].shares, strict=True),
                zip(space.options[second].values, space.options[second].shares, strict=True),
            ):
                assert abs(uses[one, other] - 500 * mine * theirs) < 2.5


def test_pairs_are_balanced_for_many_prompts_with_many_fields() -> None:
    """With 10,000 prompts of 6 fields, the bounded search still brings the pair counts close together."""
    lists = {name: [f"{name}{number}" for number in range(5)] for name in "abcdef"}
    space = space_of("{a} {b} {c} {d} {e} {f}", lists)
    choices = choose([space], 10_000, "balanced", random.Random(0))
    assert len(set(choices)) == 10_000
    assert all(least >= 398 and most <= 402 for least, most in pair_spread([space], choices).values())


@pytest.mark.parametrize(
    ("count", "shares", "expected"),
    [
        (10, [0.5, 0.5], [5, 5]),
        (4, [0.75, 0.25], [3, 1]),
        (49, [1 / 49] * 49, [1] * 49),
        (7, [0.7, 0.2, 0.1], [5, 1, 1]),
        (1, [0.1, 0.9], [0, 1]),
        (0, [1.0], [0]),
    ],
)
def test_apportion(count: int, shares: list[float], expected: list[int]) -> None:
    assert apportion(count, shares, random.Random(0)) == expected


def test_ties_between_remainders_are_broken_at_random() -> None:
    assert {tuple(apportion(4, [1 / 3] * 3, random.Random(seed))) for seed in range(20)} == {
        (2, 1, 1),
        (1, 2, 1),
        (1, 1, 2),
    }


def test_due_is_the_expectation_rounded_up() -> None:
    assert due(9, [1 / 3, 1 / 3]) == 1
    assert due(10, [1 / 3, 1 / 3]) == 2
    assert due(0.1, [0.5]) == 1
    assert due(5, []) == 5


def test_extreme_weights_do_not_overflow() -> None:
    space = space_of("{a} {b}", {"a": {"a0": 1e300, "a1": 1e-300}, "b": {"b0": 1, "b1": math.pi}})
    choices = choose([space], 20, "balanced", random.Random(0))
    assert Counter(values[0] for _, values in choices) == {"a0": 20}
