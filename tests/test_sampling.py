"""Sampling: counts, balance, no repetition before it is due, and the seed."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from diffugen.sampling import SAMPLINGS, Choice, Space, choose

VALUES = {"a": ["a0", "a1"], "b": ["b0", "b1", "b2"], "c": ["c0", "c1", "c2"]}
SPACES = [Space.of(template, VALUES) for template in ("x {a} {b}", "y {c} {b}", "z {a} {b} {c}", "plain")]
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
def test_gives_the_count_and_repeats_only_when_all_are_used(sampling: str, count: int) -> None:
    for seed in range(5):
        choices = choose(SPACES, count, sampling, random.Random(seed))
        uses = Counter(choices)
        assert len(choices) == count
        assert max(uses.values()) == -(-count // TOTAL)
        assert count < TOTAL or min(uses[choice] for choice in choose(SPACES, TOTAL, "product", random.Random(0))) >= 1


@pytest.mark.parametrize("count", COUNTS)
def test_balanced_uses_every_value_alike(count: int) -> None:
    for seed in range(5):
        for uses in uses_by_field(choose(SPACES, count, "balanced", random.Random(seed))).values():
            assert max(uses.values()) - min(uses.values()) <= 1


def test_random_is_not_balanced() -> None:
    """The balance above is the doing of ``balanced``, not of any sample."""
    spreads = []
    for seed in range(5):
        uses = uses_by_field(choose(SPACES, 17, "random", random.Random(seed)))["b"]
        spreads.append(max(uses.values()) - min(uses.values()))
    assert max(spreads) > 1


def test_balanced_lets_templates_take_turns() -> None:
    uses = Counter(number for number, _ in choose(SPACES, 13, "balanced", random.Random(3)))
    assert sorted(uses.values()) == [1, 4, 4, 4]
    assert uses[3] == 1, "the template without fields has one combination only"


def test_product_keeps_the_order_of_templates_and_values() -> None:
    texts = [SPACES[number].fill(values) for number, values in choose(SPACES, 8, "product", random.Random(0))]
    assert texts == ["x a0 b0", "x a0 b1", "x a0 b2", "x a1 b0", "x a1 b1", "x a1 b2", "y c0 b0", "y c0 b1"]


@pytest.mark.parametrize("sampling", ["balanced", "random"])
def test_the_seed_decides(sampling: str) -> None:
    first, again, other = (choose(SPACES, 20, sampling, random.Random(seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_huge_space_is_not_listed(sampling: str) -> None:
    values = {name: [f"{name}{number}" for number in range(1000)] for name in "abcdef"}
    space = Space.of("{a} {b} {c} {d} {e} {f}", values)
    assert space.size == 10**18
    assert len(set(choose([space], 50, sampling, random.Random(0)))) == 50


def test_a_field_used_twice_has_one_value() -> None:
    space = Space.of("{a} and\n {a}", VALUES)
    assert space.fields == ("a",)
    assert space.fill(("a1",)) == "a1 and a1"
