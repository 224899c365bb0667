"""Choose which images a person reviews first: the order of the review queue.

Knows disagreements, families and, for diversity, features of images; not what is in the images, or files.

=============  =======================================================================================
order          images come first
=============  =======================================================================================
``severity``   whose worst disagreement is most severe: the most label errors per image reviewed
``change``     in which most labels are expected to change: the sum of the severities
``diverse``    severe ones that look unlike those before them (greedy k-center, weighted by severity)
``mixed``      by turns the most severe one and a random one
``doubt``      about which a decoder is most in doubt; see `diffugen.labels.decoder`. On the miniature, that
               finds images with errors worse than the lowest score does (reports/labellers)
``random``     in random order: what every other order has to beat
=============  =======================================================================================

In all but ``random``, the n-th image of a family (of one prompt or photo) counts with a worth of 1/n of its
own, so that one prompt that always fails does not fill the queue.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from diffugen.config.sections import ReviewOrder
from diffugen.errors import DiffugenError
from diffugen.records import KINDS, Disagreement, content_id
from diffugen.run.spool import Ranking

Features = NDArray[np.float32]

ORDERS: tuple[ReviewOrder, ...] = get_args(ReviewOrder)

DIVERSE_POOL = 500
"""Images that ``diverse`` chooses among, the most severe ones; the others follow by severity."""


def rank(
    disagreements: Iterable[Disagreement],
    order: str = "severity",
    *,
    families: Mapping[str, str] | None = None,
    features: Mapping[str, Features] | None = None,
    doubts: Mapping[str, float] | None = None,
    seed: int = 0,
) -> list[Disagreement]:
    """Return the review queue: image by image, the most severe disagreement of each image first.

    The order does not depend on the order of the input.

    Args:
        disagreements: Disagreements of any number of images; an iterator is read once.
        order: One of `ORDERS`.
        families: Family (`diffugen.records.ImageRecord.family`) of each image id; None for one image each.
        features: Features of each image id, float32 (F,); needed for ``diverse``, see
            `diffugen.labels.features.features_of`.
        doubts: Doubt of each image id, in [0, 1]; needed for ``doubt``.
        seed: Seed of ``random`` and ``mixed``.

    Raises:
        DiffugenError: The order is unknown, or an image has no family, features or doubt.
    """
    if order not in ORDERS:
        raise DiffugenError(f"unknown order {order!r}; one of {', '.join(ORDERS)}")
    by_image: dict[str, list[Disagreement]] = {}
    for one in disagreements:
        by_image.setdefault(one.image_id, []).append(one)
    needed = (
        ("family", families, families is not None),
        ("features", features, order == "diverse"),
        ("doubt", doubts, order == "doubt"),
    )
    for name, given, wanted in needed:
        missing = sorted(set(by_image) - set(given or ())) if wanted else []
        if missing:
            raise DiffugenError(
                f"{len(missing)} of the images to rank have no {name}, the first is {missing[0]}; "
                "give those of all images"
            )
    ranker = Ranker(order, seed)
    for image_id, found in by_image.items():
        family = image_id if families is None else families[image_id]
        ranker.add(0, found, family, doubts[image_id] if order == "doubt" and doubts else 0.0)
    return list(ranker.queue(0, lambda image_id: (features or {})[image_id]))


class Ranker:
    """Ranks the images of a large run one by one, with none of them in memory; see `rank`."""

    def __init__(self, order: str, seed: int) -> None:
        """Rank no images yet.

        Args:
            order: One of `ORDERS`.
            seed: Seed of ``random`` and ``mixed``.
        """
        self._order = order
        self._seed = seed
        self._ranking: Ranking[list[Disagreement]] = Ranking()

    def add(self, round: int, found: Iterable[Disagreement], family: str, doubt: float = 0.0) -> None:
        """Add an image.

        Args:
            round: The round whose queue it belongs to.
            found: All disagreements of the image, at least one.
            family: Its family.
            doubt: What counts in the order ``doubt``.
        """
        worst_first = sorted(found, key=_order)
        image_id, worth = worst_first[0].image_id, worst_first[0].severity
        if self._order == "change":
            worth = sum(one.severity for one in worst_first)
        if self._order == "doubt":
            worth = doubt
        self._ranking.add(round, image_id, worth, family, content_id(self._seed, image_id), worst_first)

    def queue(self, round: int, features_of: Callable[[str], Features]) -> Iterator[Disagreement]:
        """Yield the disagreements of a round's images in the order of its queue.

        Args:
            round: The round.
            features_of: Returns the features of an image; called for a few only, and for ``diverse`` only.
        """
        if self._order == "random":
            images = self._ranking.at_random(round)
        elif self._order == "mixed":
            images = self._ranking.by_turns(round)
        else:
            images = self._ranking.by_worth(round)
        if self._order == "diverse":
            pool = dict(islice(images, DIVERSE_POOL))
            worth = {image_id: found[0].severity for image_id, found in pool.items()}
            features = {image_id: features_of(image_id) for image_id in pool}
            for image_id in _spread(list(pool), worth, features):
                yield from pool[image_id]
        for _, found in images:
            yield from found


def _spread(pool: Sequence[str], worth: Mapping[str, float], features: Mapping[str, Features]) -> list[str]:
    """Return the pool in the order in which each image is farthest, times its worth, from those before it."""
    if not pool:
        return []
    table = np.stack([features[image_id] for image_id in pool])
    weights = np.array([worth[image_id] for image_id in pool])
    nearest = np.full(len(pool), np.inf)
    chosen = [0]  # the most severe
    while len(chosen) < len(pool):
        nearest = np.minimum(nearest, np.linalg.norm(table - table[chosen[-1]], axis=1))
        gains = weights * nearest
        gains[chosen] = -1
        chosen.append(int(gains.argmax()))
    return [pool[index] for index in chosen]


def _order(item: Disagreement) -> tuple[float, str, int, int, int]:
    indices = [-1 if index is None else index for index in (item.attention, item.model)]
    return -item.severity, item.image_id, KINDS.index(item.kind), indices[0], indices[1]
