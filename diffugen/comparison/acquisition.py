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

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from diffugen.config.sections import ReviewOrder
from diffugen.errors import DiffugenError
from diffugen.records import KINDS, Disagreement, content_id

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
    for one in sorted(disagreements, key=_order):
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
    images = _images(by_image, order, families or {}, features or {}, doubts or {}, seed)
    return [one for image_id in images for one in by_image[image_id]]


def _images(
    by_image: Mapping[str, Sequence[Disagreement]],
    order: str,
    families: Mapping[str, str],
    features: Mapping[str, Features],
    doubts: Mapping[str, float],
    seed: int,
) -> list[str]:
    shuffled = sorted(by_image, key=lambda image_id: content_id(seed, image_id))
    if order == "random":
        return shuffled
    total = order == "change"
    worth = {
        image_id: sum(one.severity for one in found) if total else found[0].severity
        for image_id, found in by_image.items()
    }
    if order == "doubt":
        worth = {image_id: doubts[image_id] for image_id in by_image}
    ranked = _by_worth(worth, families)
    if order == "mixed":
        turns = [image_id for pair in zip(ranked, shuffled, strict=True) for image_id in pair]
        return list(dict.fromkeys(turns))
    if order == "diverse":
        pool = ranked[:DIVERSE_POOL]
        return [*_spread(pool, worth, features), *ranked[DIVERSE_POOL:]]
    return ranked


def _by_worth(worth: Mapping[str, float], families: Mapping[str, str]) -> list[str]:
    """Return the images by worth, that of the n-th of a family divided by n."""
    queue = sorted(worth, key=lambda image_id: (-worth[image_id], image_id))
    seen: Counter[str] = Counter()
    shared = {}
    for image_id in queue:
        family = families.get(image_id, image_id)
        seen[family] += 1
        shared[image_id] = worth[image_id] / seen[family]
    return sorted(queue, key=lambda image_id: -shared[image_id])


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
