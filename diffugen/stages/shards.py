"""Which part of the planned work a shard does, so that all shards together do exactly the whole.

Knows an order of batches, not what they are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from diffugen.errors import DiffugenError


@dataclass(frozen=True)
class Shard:
    """One of several parts.

    Attributes:
        number: Its number, from 1 to ``count``.
        count: How many parts there are, at least 1.
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Return the shard that a text such as ``2/8`` means: the second of eight.

        Raises:
            DiffugenError: It means none.
        """
        found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise DiffugenError(
                f"--shard {text!r} is not a shard: give its number and how many there are, such as 1/4 to 4/4"
            )
        return cls(int(found[1]), int(found[2]))

    def part(self, count: int) -> slice:
        """Return this shard's part of a sequence: consecutive, so that the parts in order are the whole."""
        first, end = (count * number // self.count for number in (self.number - 1, self.number))
        return slice(first, end)

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


WHOLE = Shard(1, 1)
"""All of the work."""
