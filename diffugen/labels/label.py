"""Label one image from its heat maps, by the paper's method or by letting phrases compete for pixels.

Reads the pixels of the image only to refine masks. Knows no other source of labels, except that it is handed
the objects of a witness and a segmenter that outlines objects; see `diffugen.labels.witness` and
`diffugen.labels.segmenter`.

``"paper"``: the combined map of each class is thresholded (Otsu), eroded and dilated; each external contour,
filled, is an instance. Holes are filled, and classes can overlap, as in the paper.

``"compete"``: every map is rescaled to [0, 1], and each class loses, at every pixel, ``rival_weight`` times
the hottest other class there, or ``background_weight`` times the hottest background word, whichever is more.
What is left is thresholded. With one class this is plain thresholding. With several, words that leak onto
each other's objects (the usual fault of cross-attention) are cut back, and so are weak words whose own
object others leak onto. Masks keep their holes, and can overlap.

With a witness, three things change: where it found objects of a class that the prompt names, its masks are
that class's labels; all its objects are cut out of the labels of classes that it does not know; and its
objects of classes that the prompt does not name are labels too, with its confidence as score.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from diffugen.config.labelling import LabelSettings, ScoreWeights, Threshold
from diffugen.labels.heatmaps import combine, doubt_maps, level, morphology, scaled
from diffugen.labels.refine import ColourTies, refine
from diffugen.labels.score import in_lab, measure, rescore
from diffugen.labels.segmenter import Segmenter, segmented
from diffugen.labels.shapes import decode, encode
from diffugen.labels.witness import Testimony, Witness, testify
from diffugen.records import RLE, HeatMaps, Instances, Phrase

Mask = NDArray[np.bool_]
Heat = NDArray[np.float32]


def label(
    heat_maps: HeatMaps,
    settings: LabelSettings,
    weights: ScoreWeights,
    rgb: NDArray[np.uint8] | None = None,
    witness: Witness | None = None,
    segmenter: Segmenter | None = None,
) -> Instances:
    """Label one image from its heat maps.

    Args:
        heat_maps: Heat maps of the image.
        settings: Method, thresholds and layer weights.
        weights: Weights of the score terms.
        rgb: uint8 (H, W, 3), the image; required unless ``settings.refine`` is ``"none"`` and
            ``weights.edge`` is 0.
        witness: What a detector found in the image; None without one.
        segmenter: Outlines objects; required if ``settings.refine`` is ``"sam"``, else not used.

    Returns:
        The instances with scores and their terms, grouped by class in the order of the phrases, large before
        small, then those that only the witness names, which have no terms; none if no phrase names a class or
        no map has a peak. The maps of phrases of the same class are joined by their maximum. If only a region
        of the image was painted, no instance of the prompt's classes extends beyond it.

    Raises:
        ConfigError: ``settings.groups`` or ``settings.self_attention`` does not match the heat maps.
        ValueError: The settings need the image, and it is missing or has another size, or a segmenter.

    Example:
        >>> label(heat_maps, LabelSettings(method="paper"), ScoreWeights(contrast=0))  # doctest: +SKIP
    """
    heats = combine(heat_maps, settings.groups, settings.step_weights, settings.self_attention)
    phrases, region, doubts = heat_maps.phrases, heat_maps.region, doubt_maps(heat_maps)
    return label_combined(heats, phrases, settings, weights, rgb, region, witness, segmenter, doubts)


def label_combined(
    heats: Heat,
    phrases: Sequence[Phrase],
    settings: LabelSettings,
    weights: ScoreWeights,
    rgb: NDArray[np.uint8] | None = None,
    region: RLE | None = None,
    witness: Witness | None = None,
    segmenter: Segmenter | None = None,
    doubts: Heat | None = None,
) -> Instances:
    """Label one image from combined maps: the part of `label` after `diffugen.labels.heatmaps.combine`.

    A search over thresholds and score weights combines the maps once and calls this many times. A search over
    score weights alone needs only `diffugen.labels.score.rescore`.

    Args:
        heats: float32 (P, h, w), >= 0, from `diffugen.labels.heatmaps.combine`.
        phrases: The P phrases.
        settings: Method and thresholds; those of `combine` are ignored.
        weights: Weights of the score terms.
        rgb: uint8 (h, w, 3), the image; required unless ``settings.refine`` is ``"none"`` and
            ``weights.edge`` is 0.
        region: The part of the image that was painted; None for all of it.
        witness: What a detector found in the image; None without one.
        segmenter: Outlines objects; required if ``settings.refine`` is ``"sam"``, else not used.
        doubts: float32 (P, h, w), from `diffugen.labels.heatmaps.doubt_maps`; None for maps of attention.

    Raises:
        ValueError: The settings need the image, and it is missing or has another size, or a segmenter.
    """
    if settings.refine != "none" and rgb is None:
        raise ValueError(f"labels.refine is {settings.refine!r}, which needs the image; pass rgb")
    if settings.refine == "sam" and segmenter is None:
        raise ValueError("labels.refine is 'sam', which needs a segmenter; pass segmenter")
    if weights.edge > 0 and rgb is None:
        raise ValueError(f"score.edge is {weights.edge}, which needs the image; pass rgb")
    lab = None if rgb is None else in_lab(rgb)
    ties = ColourTies(rgb) if settings.refine == "crf" and rgb is not None else None
    names, maps, own, limits, seen = contest(heats, phrases, settings, region, witness)
    masks = [
        within_limit(mask_of(heat, settings.threshold_of(name), settings, ties), limit)
        for name, heat, limit in zip(names, own, limits, strict=True)
    ]
    given = [[] if seen is None else seen.named.get(name, []) for name in names]
    objects = [[] if known else _separate(mask, settings) for known, mask in zip(given, masks, strict=True)]
    if settings.refine == "sam" and rgb is not None and segmenter is not None:
        objects = segmented(objects, own, limits, rgb, segmenter)
    doubted = [None] * len(names) if doubts is None else _maps_by_class(doubts, phrases)[1]
    found: list[tuple[str, Mask, dict[str, float]]] = []
    for index, name in enumerate(names):
        members = given[index] or objects[index]
        terms = measure(members, maps[index], maps[:index] + maps[index + 1 :], lab, doubted[index])
        found += [(name, *pair) for pair in zip(members, terms, strict=True)]
    instances = Instances(
        size_wh=(heats.shape[2], heats.shape[1]),
        class_names=tuple(name for name, _, _ in found),
        rles=tuple(encode(mask) for _, mask, _ in found),
        scores=np.zeros(len(found)),
        terms=tuple(terms for _, _, terms in found),
    )
    scored = rescore(instances, weights, settings.accept)
    return scored if seen is None else scored.joined(seen.others)


class Contest(NamedTuple):
    """The maps of an image's N classes, ready to be thresholded.

    Attributes:
        names: The N classes.
        maps: Their heat maps, float32 (h, w), joined by the maximum, followed by those of background words.
        own: What is left of the first N maps after classes competed for pixels.
        limits: bool (h, w), the pixels that the labels of each class must not leave; None for all pixels.
            Refinement and filled holes can reach out of a region again, and into what a witness named.
        seen: What the witness contributes; None without one.
    """

    names: list[str]
    maps: list[Heat]
    own: list[Heat]
    limits: list[Mask | None]
    seen: Testimony | None


def contest(
    heats: Heat,
    phrases: Sequence[Phrase],
    settings: LabelSettings,
    region: RLE | None = None,
    witness: Witness | None = None,
) -> Contest:
    """Return the maps of an image's classes, ready for thresholds; the arguments are `label_combined`'s."""
    painted = None if region is None else decode(region)
    if painted is not None:  # outside, phrases attend to what was there before
        heats = np.where(painted, heats, heats.min(axis=(1, 2), keepdims=True))
    names, maps = _maps_by_class(heats, phrases)
    how = {name: settings.threshold_of(name) for name in names}
    seen = None if witness is None else testify(witness, names, maps[: len(names)], how, painted)
    own = list(maps[: len(names)]) if settings.method == "paper" else _contested(maps, len(names), settings)
    if seen is not None:
        for index, name in enumerate(names):
            if name in seen.unknown:
                own[index] = np.where(seen.taken, own[index].min(), own[index])
    return Contest(names, maps, own, [_limit(name, painted, seen) for name in names], seen)


def _maps_by_class(heats: Heat, phrases: Sequence[Phrase]) -> tuple[list[str], list[Heat]]:
    """Return the N class names, and their maps (joined by the maximum) followed by the background's."""
    by_class: dict[str, Heat] = {}
    background = []
    for heat, phrase in zip(heats, phrases, strict=True):
        if phrase.class_name is None:
            background.append(heat)
        else:
            earlier = by_class.get(phrase.class_name)
            by_class[phrase.class_name] = heat if earlier is None else np.maximum(earlier, heat)
    return list(by_class), [*by_class.values(), *background]


def _contested(maps: Sequence[Heat], classes: int, settings: LabelSettings) -> list[Heat]:
    """Return the first ``classes`` maps, rescaled, less the weighted heat of their hottest rival."""
    weights = [settings.rival_weight] * classes + [settings.background_weight] * (len(maps) - classes)
    if not any(weights[1:]):
        return list(maps[:classes])
    ranged = [scaled(heat) for heat in maps[:classes]]
    rivals = {
        number: np.float32(weight) * (ranged[number] if number < classes else scaled(maps[number]))
        for number, weight in enumerate(weights)
        if weight
    }
    contested = []
    for index, heat in enumerate(ranged):
        others = [taken for number, taken in rivals.items() if number != index]
        contested.append(np.maximum(heat - np.maximum.reduce(others), 0) if others else heat)
    return contested


def mask_of(heat: Heat, how: Threshold, settings: LabelSettings, ties: ColourTies | None) -> Mask:
    """Return the mask of a class, bool (h, w), from its map, float32 (h, w).

    Args:
        heat: The map.
        how: How it is thresholded.
        settings: How the mask is cleaned and filled.
        ties: The colours of the image, to refine the mask by; None for no such refinement.
    """
    least = level(heat, how)
    rough = np.asarray(heat > least) if ties is None else refine(heat, least, ties)
    mask = morphology(rough, settings.erode_frac, settings.dilate_frac)
    if settings.method == "paper":
        contours, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        cv2.drawContours(mask.view(np.uint8), contours, -1, 1, cv2.FILLED)
    return mask


def _limit(name: str, painted: Mask | None, seen: Testimony | None) -> Mask | None:
    """Return the pixels that the labels of a class must not leave; None for all pixels."""
    if seen is None or name not in seen.unknown:
        return painted
    return ~seen.taken if painted is None else painted & ~seen.taken


def within_limit(mask: Mask, limit: Mask | None) -> Mask:
    """Return the part of a mask that its class may have: all of it if ``limit`` is None."""
    return mask if limit is None else mask & limit


def _separate(mask: Mask, settings: LabelSettings) -> list[Mask]:
    """Split the mask of a class into the masks of its instances, large before small."""
    least, most = settings.min_area_frac * mask.size, settings.max_area_frac * mask.size
    x, y, w, h = cv2.boundingRect(mask.view(np.uint8))
    if not w:
        return []
    part = np.s_[y : y + h, x : x + w]
    pixels = np.ascontiguousarray(mask[part]).view(np.uint8)
    _, pieces, stats, _ = cv2.connectedComponentsWithStats(pixels, connectivity=8)
    sizes = stats[:, cv2.CC_STAT_AREA]
    # Component 0 is the background.
    kept = [int(index) for index in np.argsort(-sizes, kind="stable") if index and sizes[index] >= least]
    if settings.instances == "largest":
        kept = kept[:1]
    objects = [kept] if settings.instances == "one" and kept else [[index] for index in kept]
    masks = []
    for members in objects:
        if sizes[members].sum() <= most:
            chosen = np.zeros(len(sizes), dtype=np.bool_)
            chosen[members] = True
            masks.append(np.zeros_like(mask))
            masks[-1][part] = chosen[pieces]
    return masks
