"""Choose combinations of templates and values: all in order, a weighted sample, or a balanced choice.

Does not know what the values mean; prompts and classes belong to `diffugen.prompts.make`.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Space:
    """A template with the possible values of each of its fields.

    Attributes:
        template: Text with fields.
        fields: Names of the fields, in the order of their first use.
        values: Values of each field.
        shares: Share of each value in the uses of its field; the shares of a field sum to 1.
    """

    template: str
    fields: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]
    shares: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, template: str, lists: Mapping[str, Values]) -> Space:
        """Look up the fields of a template in lists of values, without values of weight 0."""
        fields = tuple(dict.fromkeys(FIELD.findall(template)))
        weights = [weights_of(lists[name]) for name in fields]
        shares = (tuple(weight / sum(one.values()) for weight in one.values()) for one in weights)
        return cls(template, fields, tuple(map(tuple, weights)), tuple(shares))

    @property
    def size(self) -> int:
        """Number of combinations."""
        return math.prod(len(values) for values in self.values)

    @property
    def even(self) -> bool:
        """Whether all values of each field have the same weight."""
        return all(len(set(shares)) == 1 for shares in self.shares)

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
        for values in reversed(self.values):
            index, place = divmod(index, len(values))
            found.append(values[place])
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
        return [_locate(spaces, index % total) for index in range(count)]
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
    choices = [_locate(spaces, index) for index in indices]
    return choices + (_balanced(spaces, missing, rng) if sampling == "balanced" else [])


def _locate(spaces: Sequence[Space], index: int) -> Choice:
    for number, space in enumerate(spaces):
        if index < space.size:
            return number, space.at(index)
        index -= space.size
    raise IndexError(index)


def _by_weight(spaces: Sequence[Space], count: int, rng: random.Random) -> list[Choice]:
    """Draw combinations by weight; one that was already used as often as due is drawn again."""
    sizes = [space.size for space in spaces]
    uses: Counter[Choice] = Counter()
    choices = []
    for _ in range(count):
        for _ in range(_DRAWS):
            [number] = rng.choices(range(len(spaces)), sizes)
            space = spaces[number]
            drawn = [rng.choices(range(len(shares)), shares)[0] for shares in space.shares]
            choice = (number, tuple(values[place] for values, place in zip(space.values, drawn, strict=True)))
            parts = (shares[place] for shares, place in zip(space.shares, drawn, strict=True))
            if uses[choice] < due(count * space.size / sum(sizes), parts):
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
    turns = [0] * len(sizes)
    for place, number in enumerate(sorted(rng.sample(range(len(sizes)), len(sizes)), key=sizes.__getitem__)):
        turns[number] = min(sizes[number], (count - sum(turns)) // (len(sizes) - place))
    return turns


def _deal(spaces: Sequence[Space], uses: Sequence[int], rng: random.Random) -> list[Choice]:
    """Fill each template the given number of times, with values and pairs of values in balance."""
    values = {name: known for space in spaces for name, known in zip(space.fields, space.values, strict=True)}
    shares = {name: parts for space in spaces for name, parts in zip(space.fields, space.shares, strict=True)}
    fields = {name: field for field, name in enumerate(values)}
    rows = deal(
        [[fields[name] for name in space.fields] for space in spaces], uses, list(shares.values()), rng
    )
    numbers = [number for number, times in enumerate(uses) for _ in range(times)]
    return [
        (number, tuple(values[name][row[fields[name]]] for name in spaces[number].fields))
        for number, row in zip(numbers, rows, strict=True)
    ]
