"""Very many values, templates, classes or phrases: the planner ends soon; quadratic work takes minutes."""

from __future__ import annotations

from typing import Any

import pytest

from diffugen.errors import MOST_LINES, PromptError
from diffugen.prompts.make import make_prompts
from tests.support.hostile import no_hang

MANY = 50_000
TEXTS = [f"v{number}" for number in range(MANY)]
CAR = {"car": ["car"]}

PLANS: list[tuple[str, dict[str, Any], int]] = [
    (
        "values",
        {"templates": ["a {c} car", "the {c} {car}"], "attributes": {"c": TEXTS}, "classes": CAR},
        2 * MANY,
    ),
    (
        "few of them",
        {"templates": ["a {c} car"], "attributes": {"c": TEXTS}, "classes": CAR, "count": 500},
        500,
    ),
    (
        "weights",
        {
            "templates": ["a {c} car"],
            "attributes": {"c": {text: number % 7 + 1 for number, text in enumerate(TEXTS)}},
            "classes": CAR,
            "count": 500,
            "sampling": "sample",
        },
        500,
    ),
    (
        "templates",
        {
            "templates": [f"a {{c}} car {text}" for text in TEXTS[:20_000]],
            "attributes": {"c": ["red", "blue"]},
            "classes": CAR,
        },
        40_000,
    ),
    (
        "weighted templates",
        {
            "templates": [f"a {{c}} car {text}" for text in TEXTS[:20_000]],
            "attributes": {"c": {"red": 1, "blue": 2}},
            "classes": CAR,
            "count": 20_000,
            "sampling": "sample",
        },
        20_000,
    ),
    (
        "product",
        {
            "templates": [f"a {{c}} car {text}" for text in TEXTS[:20_000]],
            "attributes": {"c": ["red", "blue"]},
            "classes": CAR,
            "sampling": "product",
        },
        40_000,
    ),
    (
        "classes",
        {
            "templates": ["a {c} car"],
            "attributes": {"c": TEXTS},
            "classes": {one: [one] for one in TEXTS},
            "count": 500,
        },
        500,
    ),
    (
        "phrases",
        {"templates": ["a {car} on a road"], "attributes": {}, "classes": {"car": TEXTS}, "count": 500},
        500,
    ),
]


@pytest.mark.parametrize(("plan", "count"), [plan[1:] for plan in PLANS], ids=[plan[0] for plan in PLANS])
def test_a_large_plan_is_made(plan: dict[str, Any], count: int) -> None:
    with no_hang():
        assert len(make_prompts(**plan)) == count


def test_very_many_mistakes_are_cut() -> None:
    with no_hang(), pytest.raises(PromptError, match=f"more than {MOST_LINES} mistakes") as caught:
        make_prompts([f"a {{{text}}}" for text in TEXTS], {f"x{text}": ["a"] for text in TEXTS}, CAR)
    assert len(str(caught.value)) < 20_000
