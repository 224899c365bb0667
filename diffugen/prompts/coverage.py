"""How evenly prompts cover the values of their attributes, one by one and in pairs."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from diffugen.prompts.sampling import Values, weights_of
from diffugen.records import Prompt


def coverage(prompts: Sequence[Prompt]) -> dict[str, dict[str, int]]:
    """Count how often each value of each attribute occurs in the prompts.

    Args:
        prompts: Prompts of one or several calls of ``make_prompts``.

    Returns:
        ``{attribute: {value: count}}``, names and values sorted; values that were never used are absent.
    """
    counts: dict[str, Counter[str]] = {}
    for prompt in prompts:
        for name, value in prompt.attributes.items():
            counts.setdefault(name, Counter())[value] += 1
    return {name: dict(sorted(counts[name].items())) for name in sorted(counts)}


@dataclass(frozen=True)
class PairCoverage:
    """How evenly the values of two attributes meet.

    Attributes:
        attributes: The two, sorted.
        possible: How many pairs of their values there are.
        used: How many of them occur.
        least: How often the rarest pair occurs.
        most: How often the most frequent pair occurs.
    """

    attributes: tuple[str, str]
    possible: int
    used: int
    least: int
    most: int


def pair_coverage(
    prompts: Sequence[Prompt], values: Mapping[str, Values] | None = None
) -> list[PairCoverage]:
    """Count how often the values of each two attributes meet in a prompt.

    Args:
        prompts: Prompts of one or several calls of ``make_prompts``.
        values: The values that an attribute or class could have, as given to ``make_prompts``; without them,
            those that occur.

    Returns:
        One entry for each two attributes that any prompt has together, sorted.
    """
    known = {name: dict.fromkeys(weights_of(given)) for name, given in (values or {}).items()}
    pairs: dict[tuple[str, str], Counter[tuple[str, str]]] = {}
    for prompt in prompts:
        for one, other in itertools.combinations(sorted(prompt.attributes.items()), 2):
            pairs.setdefault((one[0], other[0]), Counter())[one[1], other[1]] += 1
            for name, value in (one, other):
                known.setdefault(name, {})[value] = None
    found = []
    for names in sorted(pairs):
        counts, possible = pairs[names], len(known[names[0]]) * len(known[names[1]])
        least = min(counts.values()) if len(counts) == possible else 0
        found.append(PairCoverage(names, possible, len(counts), least, max(counts.values())))
    return found
