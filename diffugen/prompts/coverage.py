"""Count how evenly prompts cover the values of their attributes, alone and in pairs.

Knows prompts and the possible values; does not know how they were combined.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from diffugen.prompts.sampling import Values, weights_of
from diffugen.records import Prompt


def coverage(prompts: Sequence[Prompt]) -> dict[str, dict[str, int]]:
    """Count how often each value of each attribute occurs in prompts.

    Returns:
        ``{attribute: {value: count}}`` with sorted names and values; unused values are absent.
    """
    counts: dict[str, Counter[str]] = {}
    for prompt in prompts:
        for name, value in prompt.attributes.items():
            counts.setdefault(name, Counter())[value] += 1
    return {name: dict(sorted(counts[name].items())) for name in sorted(counts)}


@dataclass(frozen=True)
class PairCoverage:
    """How evenly the pairs of values of two attributes occur.

    Attributes:
        attributes: Names of the two attributes, sorted.
        possible: Number of possible pairs of values.
        used: Number of pairs that occur.
        least: Number of prompts with the rarest pair.
        most: Number of prompts with the most frequent pair.
    """

    attributes: tuple[str, str]
    possible: int
    used: int
    least: int
    most: int


def pair_coverage(
    prompts: Sequence[Prompt], values: Mapping[str, Values] | None = None
) -> list[PairCoverage]:
    """Count how often the values of two attributes occur together in a prompt.

    Args:
        prompts: Prompts of one or more calls of `diffugen.prompts.make.make_prompts`.
        values: Possible values of attributes and classes, as given to ``make_prompts``; for others, the
            values that occur.

    Returns:
        One entry for each pair of attributes that occurs in a prompt, sorted.
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
