"""Labels that are taken as correct, and which of them are used. Does not know what is judged by them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from diffugen.errors import DiffugenError
from diffugen.records import Instances


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


def spread(evidence: Sequence[Evidence], images: int, seed: int) -> list[Evidence]:
    """Draw at most ``images`` of the evidence, from as many families as possible.

    The result does not depend on the order of the evidence.

    Raises:
        DiffugenError: An image occurs twice.
    """
    by_family: dict[str, list[Evidence]] = {}
    for one in sorted(evidence, key=lambda one: one.image_id):
        by_family.setdefault(one.family, []).append(one)
    repeated = len(evidence) - len({one.image_id for one in evidence})
    if repeated:
        raise DiffugenError(f"{repeated} images occur more than once in the evidence; pass each image once")
    rng = random.Random(seed)
    piles = [rng.sample(pile, len(pile)) for _, pile in sorted(by_family.items())]
    rng.shuffle(piles)
    # The first image of every family, then the second, and so on.
    turns = sorted((turn, number) for number, pile in enumerate(piles) for turn in range(len(pile)))
    return [piles[number][turn] for turn, number in turns[:images]]
