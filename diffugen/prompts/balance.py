"""Balance: values in proportion to their weights, few equal combinations, and pairs of values as even as
possible.

Everything is numbers here: `diffugen.prompts.sampling` knows which texts they stand for.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

ABSENT = -1
"""Stands in a row for the value of a field that its template does not have."""

_SWAPS_PER_TWIN = 200
"""Tries to part combinations that are equal without need; in 8,000 random small spaces none was left with
them."""

_PATIENCE = 100
"""Tries to even out the pairs that may gain nothing, for each value that was dealt, before it is left at
that."""

_SWAPS = 400_000
"""Most tries to even out the pairs: 2 to 3 s, which brings 10,000 rows of 6 fields close to the best there
is."""


def deal(
    templates: Sequence[Sequence[int]],
    uses: Sequence[int],
    shares: Sequence[Sequence[float]],
    rng: random.Random,
) -> list[list[int]]:
    """Fill templates with values.

    Each value of a field is used as often as its share of the field's uses, rounded up or down. Subject to
    that, few combinations are used more often than they are due, and each pair of values of two fields of one
    template is used about as often as the shares of the two make it due.

    Args:
        templates: The fields of each template, as indices of ``shares``.
        uses: How often each template is used.
        shares: For each field, how often each of its values is due, as parts of 1, all above 0.
        rng: Source of the choice.

    Returns:
        For each use, the templates in their order, a row: the index of the value of each field, or
        ``ABSENT``.
    """
    table = _Table(templates, uses, shares, rng)
    table.part_twins()
    table.even_pairs()
    return table.indices()


def apportion(count: int, shares: Sequence[float], rng: random.Random) -> list[int]:
    """Split a count in proportion to shares of 1, each part rounded up or down; chance decides between equal
    remainders.
    """
    exact = [count * share for share in shares]
    parts = [math.floor(part) for part in exact]
    order = sorted(range(len(shares)), key=lambda place: (parts[place] - exact[place], rng.random()))
    for place in order[: count - sum(parts)]:
        parts[place] += 1
    return parts


def due(draws: float, shares: Iterable[float]) -> int:
    """Return how often a combination of values of these shares is due among so many draws, rounded up."""
    return max(1, math.ceil(draws * math.prod(shares) - 1e-9))


class _Table:
    """Rows that exchange values of one field, so that how often each value is used never changes."""

    def __init__(
        self,
        templates: Sequence[Sequence[int]],
        uses: Sequence[int],
        shares: Sequence[Sequence[float]],
        rng: random.Random,
    ) -> None:
        self._templates, self._uses, self._rng = templates, uses, rng
        self._numbers = [number for number, times in enumerate(uses) for _ in range(times)]
        # Values are numbered over all fields, so that a number alone says which field it belongs to.
        self._first = [sum(len(parts) for parts in shares[:field]) for field in range(len(shares))]
        self._share = [share for parts in shares for share in parts]
        self._rarity = [1 / max(share * len(parts), 1e-12) for parts in shares for share in parts]
        self._rows = [[ABSENT] * len(shares) for _ in self._numbers]
        self._places = [
            [place for place, number in enumerate(self._numbers) if field in templates[number]]
            for field in range(len(shares))
        ]
        for field, parts in enumerate(shares):
            times = apportion(len(self._places[field]), parts, rng)
            # Spread evenly from the first row to the last, so that each template gets its part of every
            # value.
            spread = sorted(
                ((turn + rng.random()) / n, value) for value, n in enumerate(times) for turn in range(n)
            )
            for place, (_, value) in zip(self._places[field], spread, strict=True):
                self._rows[place][field] = self._first[field] + value
        self._same = Counter(self._key(place) for place in range(len(self._rows)))

    def indices(self) -> list[list[int]]:
        """Return the rows, with values numbered in each field by itself."""
        pairs = [list(zip(row, self._first, strict=True)) for row in self._rows]
        return [[ABSENT if value == ABSENT else value - first for value, first in row] for row in pairs]

    def part_twins(self) -> None:
        """Swap values until no combination is used more often than it is due, or for long enough."""
        seen: Counter[tuple[int, ...]] = Counter()
        twins = []
        for place in range(len(self._rows)):
            key = self._key(place)
            seen[key] += 1
            if seen[key] > self._due(key):
                twins.append(place)
        for _ in range(_SWAPS_PER_TWIN * len(twins)):
            if not twins:
                return
            here = twins.pop(self._rng.randrange(len(twins)))
            if not self._is_twin(here):
                continue
            field = self._rng.choice(self._templates[self._numbers[here]])
            there = self._rng.choice(self._places[field])
            # A swap that only moves the trouble is taken too: from elsewhere it may be mended.
            if self._exchange(here, there, field):
                twins.append(there)
            twins.append(here)

    def even_pairs(self) -> None:
        """Swap values while that lowers the sum of the squared counts of pairs, each relative to how often it
        is due.
        """
        fields = sorted(
            {
                field
                for fields in self._templates
                if len(fields) > 1
                for field in fields
                if self._places[field]
            }
        )
        if not fields:
            return
        rows, rarity, draw, base = self._rows, self._rarity, self._rng.random, len(self._share)
        pairs = self._count_pairs()
        patience = _PATIENCE * sum(len(self._places[field]) for field in fields)
        gained_at = 0
        for tries in range(_SWAPS):
            if tries - gained_at > patience:
                break
            field = fields[int(draw() * len(fields))]
            places = self._places[field]
            here, there = places[int(draw() * len(places))], places[int(draw() * len(places))]
            mine, theirs = rows[here][field], rows[there][field]
            if mine == theirs:
                continue
            # Whatever both rows have in common meets both values after the swap as before.
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
        """Swap the two rows' values of a field, unless more rows than before would be used too often."""
        if self._rows[here][field] == self._rows[there][field]:
            return False
        before = self._is_twin(here) + self._is_twin(there)
        self._swap(here, there, field)
        if self._is_twin(here) + self._is_twin(there) > before:
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

    def _is_twin(self, place: int) -> bool:
        key = self._key(place)
        return self._same[key] > 1 and self._same[key] > self._due(key)

    def _due(self, key: tuple[int, ...]) -> int:
        return due(self._uses[key[0]], (self._share[value] for value in key[1:] if value != ABSENT))
