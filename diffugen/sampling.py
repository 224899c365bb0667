"""Which combinations of templates and values to use: all in order, a random sample, or a balanced one.

Does not know what the values mean, nor prompts and classes: `diffugen.prompts` does.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

SAMPLINGS = ("balanced", "random", "product")
"""Ways to choose, explained at ``diffugen.prompts.make_prompts``."""

FIELD = re.compile(r"\{([^{}]*)\}")
"""A ``{field}`` of a template; its first group is the field's name."""

Choice = tuple[int, tuple[str, ...]]
"""A template's number and a value for each of its fields."""

_SWAPS_PER_TWIN = 200
"""Tries to part equal choices; in 8,000 random small spaces none was left with them."""


def one_line(text: str) -> str:
    """Return the text with every run of white space, line breaks included, made one blank."""
    return " ".join(text.split())


@dataclass(frozen=True)
class Space:
    """A template with the values that each of its fields can take."""

    template: str
    fields: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, template: str, lists: Mapping[str, Sequence[str]]) -> Space:
        """Look up the template's fields, in the order of their first use, in lists of values."""
        fields = tuple(dict.fromkeys(FIELD.findall(template)))
        return cls(template, fields, tuple(tuple(lists[name]) for name in fields))

    @property
    def size(self) -> int:
        """Number of combinations."""
        return math.prod(len(values) for values in self.values)

    def named(self, values: tuple[str, ...]) -> dict[str, str]:
        """Return ``{field: value}``."""
        return dict(zip(self.fields, values, strict=True))

    def fill(self, values: tuple[str, ...]) -> str:
        """Return the text of a combination, on one line."""
        named = self.named(values)
        return one_line(FIELD.sub(lambda match: named[match[1]], self.template))

    def at(self, index: int) -> tuple[str, ...]:
        """Return the combination of that number, the last field changing fastest, without listing the others."""
        found = []
        for values in reversed(self.values):
            index, place = divmod(index, len(values))
            found.append(values[place])
        return tuple(reversed(found))


def choose(spaces: Sequence[Space], count: int, sampling: str, rng: random.Random) -> list[Choice]:
    """Choose combinations: whole passes over all of them, then as many as are missing.

    Args:
        spaces: At least one template; fields of the same name have the same values.
        count: How many combinations, at least 0.
        sampling: One of ``SAMPLINGS``.
        rng: Source of the choice and of its order.

    Returns:
        ``count`` choices.
    """
    total = sum(space.size for space in spaces)
    if sampling == "product":
        return [_locate(spaces, index % total) for index in range(count)]
    passes, missing = divmod(count, total)
    indices = [index for _ in range(passes) for index in rng.sample(range(total), total)]
    if sampling == "random":
        indices += rng.sample(range(total), missing)
    choices = [_locate(spaces, index) for index in indices]
    return choices + (_balanced(spaces, missing, rng) if sampling == "balanced" else [])


def _locate(spaces: Sequence[Space], index: int) -> Choice:
    for number, space in enumerate(spaces):
        if index < space.size:
            return number, space.at(index)
        index -= space.size
    raise IndexError(index)


def _balanced(spaces: Sequence[Space], count: int, rng: random.Random) -> list[Choice]:
    """Choose combinations so that templates, and the values of each field, are used as evenly as possible."""
    used = _turns([space.size for space in spaces], count, rng)
    left = [space.size - uses for space, uses in zip(spaces, used, strict=True)]
    drawn = [uses if rest else 0 for uses, rest in zip(used, left, strict=True)]
    # All combinations of a template use its values evenly, so leaving out an even few is as good as choosing many.
    if sum(left) < sum(drawn):
        out = set(_deal(spaces, left, rng))
        choices = [choice for choice in _all_of(spaces, range(len(spaces))) if choice not in out][:count]
    else:
        choices = _deal(spaces, drawn, rng)
        choices += _all_of(spaces, [number for number, rest in enumerate(left) if not rest])
    rng.shuffle(choices)
    return choices


def _all_of(spaces: Sequence[Space], numbers: Iterable[int]) -> list[Choice]:
    return [(number, spaces[number].at(index)) for number in numbers for index in range(spaces[number].size)]


def _turns(sizes: Sequence[int], count: int, rng: random.Random) -> list[int]:
    """Share ``count`` turns among templates as evenly as their sizes allow."""
    turns = [0] * len(sizes)
    for place, number in enumerate(sorted(rng.sample(range(len(sizes)), len(sizes)), key=sizes.__getitem__)):
        turns[number] = min(sizes[number], (count - sum(turns)) // (len(sizes) - place))
    return turns


def _deal(spaces: Sequence[Space], uses: Sequence[int], rng: random.Random) -> list[Choice]:
    """Draw each template ``uses`` times, with values from one deck a field, dealt out before it is shuffled again."""
    lists = {name: values for space in spaces for name, values in zip(space.fields, space.values, strict=True)}
    decks = {name: _shuffled_for_ever(values, rng) for name, values in lists.items()}
    choices = [
        (number, tuple(next(decks[name]) for name in spaces[number].fields))
        for number, times in enumerate(uses)
        for _ in range(times)
    ]
    _part_twins(choices, spaces, rng)
    return choices


def _shuffled_for_ever(values: Sequence[str], rng: random.Random) -> Iterator[str]:
    while True:
        yield from rng.sample(values, len(values))


def _part_twins(choices: list[Choice], spaces: Sequence[Space], rng: random.Random) -> None:
    """Swap single values between prompts until no two are the same; how often a value is used does not change."""
    uses = Counter(choices)
    twins = [place for place, choice in enumerate(choices) if uses[choice] > 1]
    for _ in range(_SWAPS_PER_TWIN * len(twins)):
        if not twins:
            return
        here, there = twins.pop(rng.randrange(len(twins))), rng.randrange(len(choices))
        if uses[choices[here]] == 1:
            continue
        swapped = _swap(choices[here], choices[there], rng.choice(spaces[choices[here][0]].fields), spaces)
        # A swap that only moves the trouble is taken too: from elsewhere it may be mended.
        if swapped and sum(uses[choice] > 0 for choice in swapped) <= 1 + (uses[choices[there]] > 1):
            uses.subtract([choices[here], choices[there]])
            uses.update(swapped)
            choices[here], choices[there] = swapped
            twins.append(there)
        twins.append(here)


def _swap(one: Choice, other: Choice, field: str, spaces: Sequence[Space]) -> tuple[Choice, Choice] | None:
    """Exchange the two choices' values of a field; None where that changes nothing or the field is not in both."""
    if field not in spaces[other[0]].fields:
        return None
    first, second = spaces[one[0]].fields.index(field), spaces[other[0]].fields.index(field)
    mine, theirs = one[1][first], other[1][second]
    if mine == theirs:
        return None
    return (
        (one[0], (*one[1][:first], theirs, *one[1][first + 1 :])),
        (other[0], (*other[1][:second], mine, *other[1][second + 1 :])),
    )
