"""Choose combinations of templates and values: all in order, a weighted sample, or a balanced choice.

Does not know what the values mean; prompts and classes belong to `diffugen.prompts.make`.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from diffugen.prompts.balance import deal, due
from diffugen.records import FIELD, one_line

Choice = tuple[int, tuple[str, ...]]
"""Index of a template, and a value for each of its fields."""

Values = Sequence[str] | Mapping[str, float]
"""Values of a field: texts, or texts with weights."""

_DRAWS = 50
"""Maximum number of draws to find a combination that is not used as often as due."""


def weights_of(values: Values) -> dict[str, float]:
    """Return the usable values, those with a weight above 0, and their weights (1 each in a plain list)."""
    weights = values if isinstance(values, Mapping) else dict.fromkeys(values, 1.0)
    return {value: float(weight) for value, weight in weights.items() if weight > 0}


@dataclass(frozen=True, eq=False)
class Options:
    """The possible values of a field, shared by all templates that have it.

    Attributes:
        values: The values.
        shares: Share of each value in the uses of the field; they sum to 1.
    """

    values: tuple[str, ...]
    shares: tuple[float, ...]

    @classmethod
    def of(cls, values: Values) -> Options:
        """Return the values of a field, without those of weight 0."""
        weights = weights_of(values)
        total = sum(weights.values())
        return cls(tuple(weights), tuple(weight / total for weight in weights.values()))

    @cached_property
    def even(self) -> bool:
        """Whether all values have the same weight."""
        return len(set(self.shares)) == 1

    @cached_property
    def running_shares(self) -> list[float]:
        """Of each value, the sum of its share and of all before it."""
        return list(accumulate(self.shares))


@dataclass(frozen=True)
class Space:
    """A template with the possible values of each of its fields.

    Attributes:
        template: Text with fields.
        fields: Names of the fields, in the order of their first use.
        options: Values of each field.
    """

    template: str
    fields: tuple[str, ...]
    options: tuple[Options, ...]

    @classmethod
    def of(cls, template: str, options: Mapping[str, Options]) -> Space:
        """Look up the fields of a template."""
        fields = tuple(dict.fromkeys(FIELD.findall(template)))
        return cls(template, fields, tuple(options[name] for name in fields))

    @cached_property
    def size(self) -> int:
        """Number of combinations."""
        return math.prod(len(one.values) for one in self.options)

    @property
    def even(self) -> bool:
        """Whether all values of each field have the same weight."""
        return all(one.even for one in self.options)

    def named(self, values: tuple[str, ...]) -> dict[str, str]:
        """Return the values by field."""
        return dict(zip(self.fields, values, strict=True))

    def fill(self, values: tuple[str, ...]) -> str:
        """Return the text of a combination, without line breaks."""
        named = self.named(values)
        return one_line(FIELD.sub(lambda match: named[match[1]], self.template))

    def at(self, index: int) -> tuple[str, ...]:
        """Return the combination at an index, the last field changing fastest, without listing the others."""
        found = []
        for one in reversed(self.options):
            index, place = divmod(index, len(one.values))
            found.append(one.values[place])
        return tuple(reversed(found))


def choose(spaces: Sequence[Space], count: int, sampling: str, rng: random.Random) -> list[Choice]:
    """Choose ``count`` combinations; with equal weights, in full passes over all of them plus a partial one.

    Args:
        spaces: At least one template; fields of the same name have the same values.
        count: Number of combinations, at least 0.
        sampling: One of ``SAMPLINGS``; ``product`` ignores weights.
        rng: Source of randomness for the choice and its order.
    """
    total = sum(space.size for space in spaces)
    if sampling == "product":
        return _located(spaces, (index % total for index in range(count)))
    passes, missing = divmod(count, total)
    if not all(space.even for space in spaces):
        if sampling == "sample":
            return _by_weight(spaces, count, rng)
        turns = _turns([space.size for space in spaces], missing, rng)
        uses = [passes * space.size + more for space, more in zip(spaces, turns, strict=True)]
        choices = _deal(spaces, uses, rng)
        rng.shuffle(choices)
        return choices
    indices = [index for _ in range(passes) for index in rng.sample(range(total), total)]
    if sampling == "sample":
        indices += rng.sample(range(total), missing)
    choices = _located(spaces, indices)
    return choices + (_balanced(spaces, missing, rng) if sampling == "balanced" else [])


def _located(spaces: Sequence[Space], indices: Iterable[int]) -> list[Choice]:
    """Return the combinations at indices into all combinations of all templates."""
    ends = list(accumulate(space.size for space in spaces))
    choices = []
    for index in indices:
        number = bisect_right(ends, index)
        choices.append((number, spaces[number].at(index - ends[number] + spaces[number].size)))
    return choices


def _by_weight(spaces: Sequence[Space], count: int, rng: random.Random) -> list[Choice]:
    """Draw combinations by weight; one that was already used as often as due is drawn again."""
    ends = list(accumulate(space.size for space in spaces))
    uses: Counter[Choice] = Counter()
    choices = []
    for _ in range(count):
        for _ in range(_DRAWS):
            [number] = rng.choices(range(len(spaces)), cum_weights=ends)
            space = spaces[number]
            drawn = [
                (one, rng.choices(range(len(one.values)), cum_weights=one.running_shares)[0])
                for one in space.options
            ]
            choice = (number, tuple(one.values[place] for one, place in drawn))
            if uses[choice] < due(count * space.size / ends[-1], (one.shares[place] for one, place in drawn)):
                break
        uses[choice] += 1
        choices.append(choice)
    return choices


def _balanced(spaces: Sequence[Space], count: int, rng: random.Random) -> list[Choice]:
    """Choose distinct combinations that use templates, values and pairs of values as evenly as possible."""
    used = _turns([space.size for space in spaces], count, rng)
    left = [space.size - uses for space, uses in zip(spaces, used, strict=True)]
    drawn = [uses if rest else 0 for uses, rest in zip(used, left, strict=True)]
    # All combinations of a template together are balanced, so leaving out a balanced few leaves the rest
    # balanced.
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
    """Split ``count`` uses among templates as evenly as their sizes allow."""
    turns, left = [0] * len(sizes), count
    for place, number in enumerate(sorted(rng.sample(range(len(sizes)), len(sizes)), key=sizes.__getitem__)):
        turns[number] = min(sizes[number], left // (len(sizes) - place))
        left -= turns[number]
    return turns


def _deal(spaces: Sequence[Space], uses: Sequence[int], rng: random.Random) -> list[Choice]:
    """Fill each template the given number of times, with values and pairs of values in balance."""
    options = {name: one for space in spaces for name, one in zip(space.fields, space.options, strict=True)}
    fields = {name: field for field, name in enumerate(options)}
    rows = deal(
        [[fields[name] for name in space.fields] for space in spaces],
        uses,
        [one.shares for one in options.values()],
        rng,
    )
    numbers = [number for number, times in enumerate(uses) for _ in range(times)]
    return [
        (number, tuple(options[name].values[row[fields[name]]] for name in spaces[number].fields))
        for number, row in zip(numbers, rows, strict=True)
    ]
