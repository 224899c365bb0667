"""Labels that are taken as correct, and which of them are used. Does not know what is judged by them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

from diffugen.errors import DiffugenError
from diffugen.records import Instances, content_id
from diffugen.run.spool import Names, Ranking


@dataclass(frozen=True)
class Evidence:
    """Labels of one image that are taken as correct: a person's, or a detector's that was not trained on it.

    Attributes:
        image_id: The image.
        family: The prompt or photo it goes back to; images of a family look alike and stay in one fold.
        instances: *All* objects of the labelled classes; a label without an object counts as false.
        weight: How much it counts, above 0: a person's word more than a detector's.
    """

    image_id: str
    family: str
    instances: Instances
    weight: float = 1.0


class Candidate(Protocol):
    """An image that may become evidence."""

    @property
    def image_id(self) -> str:
        """The image."""

    @property
    def family(self) -> str:
        """Its family."""

    @property
    def weight(self) -> float:
        """How much its labels would count."""


C = TypeVar("C", bound=Candidate)


def spread(candidates: Iterable[C], seed: int) -> Iterator[C]:
    """Yield candidates in the order in which they should be used, however many of them are.

    Those with the greatest weight come first, and among these one of each family before a second of any. The
    order does not depend on that of the candidates, which are on disk meanwhile, not in memory.

    Raises:
        DiffugenError: An image occurs twice.
    """
    ranking, names, numbers = Ranking[C](), Names(), dict[float, int]()
    repeated = 0
    for one in candidates:
        if names.add(one.image_id):
            number = numbers.setdefault(one.weight, len(numbers))
            ranking.add(number, content_id(seed, one.image_id), 1.0, one.family, "", one)
        else:
            repeated += 1
    if repeated:
        raise DiffugenError(f"{repeated} images occur more than once in the evidence; pass each image once")
    for _, number in sorted(numbers.items(), reverse=True):
        yield from (one for _, one in ranking.by_worth(number))
