"""Deal values in proportion to their weights, with few repeated combinations and evenly used pairs of values.

Works on indices only; `diffugen.prompts.sampling` knows the texts behind them.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import accumulate

ABSENT = -1
"""Marks, in a row, a field that the template of the row does not have."""

_SWAPS_PER_REPEAT = 200
"""Attempts per combination that is used too often; enough for all of 8,000 small random spaces."""

_PATIENCE = 100
"""`even_pairs` stops after this many attempts without a gain, per value dealt."""

_SWAPS = 400_000
"""Maximum number of attempts in `even_pairs`: 2 to 3 s, near the optimum for 10,000 rows of 6 fields."""

_MOST_COMPARED = 40_000_000
"""Maximum number of fields that all these attempts look at; it counts where there are 100 fields or more."""


def deal(
    templates: Sequence[Sequence[int]],
    uses: Sequence[int],
    shares: Sequence[Sequence[float]],
    rng: random.Random,
) -> list[list[int]]:
    """Fill templates with values.

    The values of a field are used in proportion to their shares, rounded up or down. Under that constraint,
    few combinations are used more often than their shares imply, and each pair of values of two fields of a
    template is used about as often as the two shares imply.

    Args:
        templates: The fields of each template, as indices into ``shares``.
        uses: Number of uses of each template.
        shares: For each field, the shares of its values; each above 0, summing to 1.
        rng: Source of randomness.

    Returns:
        One row per use, in the order of the templates: the index of the value of each field, or ``ABSENT``.
    """
    table = _Table(templates, uses, shares, rng)
    table.separate_repeats()
    table.even_pairs()
    return table.indices()


def apportion(count: int, shares: Sequence[float], rng: random.Random) -> list[int]:
    """Split a count in proportion to shares that sum to 1, rounding up or down; ties are broken at random."""
    exact = [count * share for share in shares]
    parts = [math.floor(part) for part in exact]
    order = sorted(range(len(shares)), key=lambda place: (parts[place] - exact[place], rng.random()))
    for place in order[: count - sum(parts)]:
        parts[place] += 1
    return parts


def due(draws: float, shares: Iterable[float]) -> int:
    """Return the expected uses, rounded up, of a combination of values of these shares in ``draws`` draws."""
    return max(1, math.ceil(draws * math.prod(shares) - 1e-9))


class _Table:
    """Rows of values; every swap stays within a field, so the number of uses of each value never changes."""

    def __init__(
        self,
        templates: Sequence[Sequence[int]],
        uses: Sequence[int],
        shares: Sequence[Sequence[float]],
        rng: random.Random,
    ) -> None:
        self._templates, self._uses, self._rng = templates, uses, rng
        self._numbers = [number for number, times in enumerate(uses) for _ in range(times)]
        # Values are numbered across all fields, so that the number implies the field.
        self._first = list(accumulate((len(parts) for parts in shares[:-1]), initial=0))
        self._share = [share for parts in shares for share in parts]
        self._rarity = [1 / max(share * len(parts), 1e-12) for parts in shares for share in parts]
        self._rows = [[ABSENT] * len(shares) for _ in self._numbers]
        self._places: list[list[int]] = [[] for _ in shares]
        for place, number in enumerate(self._numbers):
            for field in templates[number]:
                self._places[field].append(place)
        for field, parts in enumerate(shares):
            times = apportion(len(self._places[field]), parts, rng)
            # Each value is spread evenly over the rows, so that every template gets its share of it.
            spread = sorted(
                ((turn + rng.random()) / n, value) for value, n in enumerate(times) for turn in range(n)
            )
            for place, (_, value) in zip(self._places[field], spread, strict=True):
                self._rows[place][field] = self._first[field] + value
        self._same = Counter(self._key(place) for place in range(len(self._rows)))

    def indices(self) -> list[list[int]]:
        """Return the rows, with the values numbered within their field."""
        pairs = [list(zip(row, self._first, strict=True)) for row in self._rows]
        return [[ABSENT if value == ABSENT else value - first for value, first in row] for row in pairs]

    def separate_repeats(self) -> None:
        """Swap values until no combination is used more often than due, or until the attempts run out."""
        seen: Counter[tuple[int, ...]] = Counter()
        repeats = []
        for place in range(len(self._rows)):
            key = self._key(place)
            seen[key] += 1
            if seen[key] > self._due(key):
                repeats.append(place)
        for _ in range(_SWAPS_PER_REPEAT * len(repeats)):
            if not repeats:
                return
            here = repeats.pop(self._rng.randrange(len(repeats)))
            if not self._is_repeat(here):
                continue
            field = self._rng.choice(self._templates[self._numbers[here]])
            there = self._rng.choice(self._places[field])
            # A swap that only moves the repeat is accepted too: it may be easier to resolve elsewhere.
            if self._exchange(here, there, field):
                repeats.append(there)
            repeats.append(here)

    def even_pairs(self) -> None:
        """Swap values to lower the sum of squared pair counts, each relative to its expectation."""
        paired = {field for fields in self._templates if len(fields) > 1 for field in fields}
        fields = sorted(field for field in paired if self._places[field])
        if not fields:
            return
        rows, rarity, draw, base = self._rows, self._rarity, self._rng.random, len(self._share)
        pairs = self._count_pairs()
        patience = _PATIENCE * sum(len(self._places[field]) for field in fields)
        gained_at = 0
        for tries in range(min(_SWAPS, _MOST_COMPARED // len(self._places))):
            if tries - gained_at > patience:
                break
            field = fields[int(draw() * len(fields))]
            places = self._places[field]
            here, there = places[int(draw() * len(places))], places[int(draw() * len(places))]
            mine, theirs = rows[here][field], rows[there][field]
            if mine == theirs:
                continue
            # Values that both rows share meet both swapped values, before and after.
            partners = [(x, y) for x, y in zip(rows[here], rows[there], strict=True) if x != y and x != mine]
            change = 0.0
            for x, y in partners:
                if x != ABSENT:
                    gained, lost = 2 * pairs[theirs * base + x] + 1, 2 * pairs[mine * base + x] - 1
                    change += rarity[x] * (rarity[theirs] * gained - rarity[mine] * lost)
                if y != ABSENT:
                    gained, lost = 2 * pairs[mine * base + y] + 1, 2 * pairs[theirs * base + y] - 1
                    change += rarity[y] * (rarity[mine] * gained - rarity[theirs] * lost)
            if change <= 0 and self._exchange(here, there, field):
                gained_at = tries if change < 0 else gained_at
                for x, y in partners:
                    for partner, old, new in ((x, mine, theirs), (y, theirs, mine)):
                        if partner != ABSENT:
                            for value, step in ((old, -1), (new, 1)):
                                pairs[value * base + partner] += step
                                pairs[partner * base + value] += step

    def _count_pairs(self) -> defaultdict[int, int]:
        pairs: defaultdict[int, int] = defaultdict(int)
        for row in self._rows:
            values = [value for value in row if value != ABSENT]
            for one in values:
                for other in values:
                    pairs[one * len(self._share) + other] += 1
        return pairs

    def _exchange(self, here: int, there: int, field: int) -> bool:
        """Swap a field's values between two rows unless that adds repeats; return whether it did."""
        if self._rows[here][field] == self._rows[there][field]:
            return False
        before = self._is_repeat(here) + self._is_repeat(there)
        self._swap(here, there, field)
        if self._is_repeat(here) + self._is_repeat(there) > before:
            self._swap(here, there, field)
            return False
        return True

    def _swap(self, here: int, there: int, field: int) -> None:
        self._same.subtract([self._key(here), self._key(there)])
        mine, theirs = self._rows[here], self._rows[there]
        mine[field], theirs[field] = theirs[field], mine[field]
        self._same.update([self._key(here), self._key(there)])

    def _key(self, place: int) -> tuple[int, ...]:
        return (self._numbers[place], *self._rows[place])

    def _is_repeat(self, place: int) -> bool:
        key = self._key(place)
        return self._same[key] > 1 and self._same[key] > self._due(key)

    def _due(self, key: tuple[int, ...]) -> int:
        return due(self._uses[key[0]], (self._share[value] for value in key[1:] if value != ABSENT))
