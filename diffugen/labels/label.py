"""Label one image from its heat maps: the paper's method, and one in which phrases compete for pixels.

Looks at the pixels of the image only where masks are to be refined; combining with other label sources comes
later.

``"paper"``: each class's combined map -> threshold (Otsu) -> erosion, dilation -> each external contour,
filled, is an instance. Holes are filled and classes may overlap, as in the paper.

``"compete"``: every traced phrase, background words included, *claims* the pixels where its map exceeds its
own threshold, the more strongly the nearer the map is to its peak: ``(map - level) / (peak - level)``. A
pixel goes to the strongest claim. With one phrase this is plain thresholding; with several, words that leak
onto each other's objects (the usual fault of cross-attention) are cut back, and a word whose map is weak
everywhere still holds its own peak. Masks keep their holes and classes never overlap.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from diffugen.config.labelling import LabelSettings, ScoreWeights
from diffugen.labels.heatmaps import combine, level, morphology, value_range
from diffugen.labels.refine import refine
from diffugen.labels.score import measure, rescore
from diffugen.labels.shapes import decode, encode
from diffugen.records import RLE, HeatMaps, Instances, Phrase

Mask = NDArray[np.bool_]
Heat = NDArray[np.float32]


def label(
    heat_maps: HeatMaps, settings: LabelSettings, weights: ScoreWeights, rgb: NDArray[np.uint8] | None = None
) -> Instances:
    """Label one image from its heat maps.

    Args:
        heat_maps: Heat maps of the image.
        settings: Method, thresholds and layer weights.
        weights: Weights of the score terms.
        rgb: uint8 (H, W, 3), the image; needed where ``settings.refine`` is ``"crf"``.

    Returns:
        The instances, class by class in the order of the phrases, large before small, with scores and their
        terms; none if no phrase names a class or no map has a peak. Phrases of the same class are joined by
        their maximum. Where only a region of the image was painted, none reaches beyond it.

    Raises:
        ConfigError: ``settings.groups`` does not fit the heat maps.
        ValueError: The settings need the image and it was not given, or it has another size.

    Example:
        >>> label(heat_maps, LabelSettings(method="paper"), ScoreWeights(contrast=0))  # doctest: +SKIP
    """
    heats = combine(heat_maps, settings.groups, settings.step_weights)
    return label_combined(heats, heat_maps.phrases, settings, weights, rgb, heat_maps.region)


def label_combined(
    heats: Heat,
    phrases: Sequence[Phrase],
    settings: LabelSettings,
    weights: ScoreWeights,
    rgb: NDArray[np.uint8] | None = None,
    region: RLE | None = None,
) -> Instances:
    """Label one image from maps that are already combined: what depends on neither ``groups`` nor
    ``step_weights``.

    A search over thresholds and score weights combines once and calls this many times; one over score weights
    alone needs only `diffugen.labels.score.rescore`.

    Args:
        heats: float32 (P, h, w), >= 0, from `diffugen.labels.heatmaps.combine`.
        phrases: The P phrases.
        settings: ``groups`` and ``step_weights`` are not looked at.
        weights: Weights of the score terms.
        rgb: As in `label`.
        region: What was painted over; None for the whole image.
    """
    if settings.refine != "none" and rgb is None:
        raise ValueError(f"labels.refine is {settings.refine!r}, which needs the image; none was given")
    pixels = None if settings.refine == "none" else rgb
    size_wh = (heats.shape[2], heats.shape[1])
    painted = None if region is None else decode(region)
    if painted is not None:  # what a phrase attends to elsewhere was there before
        heats = np.where(painted, heats, heats.min(axis=(1, 2), keepdims=True))
    names, maps = _maps_by_name(heats, phrases)
    classes = sum(name is not None for name in names)
    method = _paper_masks if settings.method == "paper" else _compete
    masks = method(maps, classes, settings, pixels)
    found: list[tuple[str, Mask, dict[str, float]]] = []
    for index, mask in enumerate(masks):
        objects = _separate(mask if painted is None else mask & painted, settings)
        terms = measure(objects, maps[index], maps[:index] + maps[index + 1 :])
        found += [(str(names[index]), *pair) for pair in zip(objects, terms, strict=True)]
    instances = Instances(
        size_wh=size_wh,
        class_names=tuple(name for name, _, _ in found),
        rles=tuple(encode(mask) for _, mask, _ in found),
        scores=np.zeros(len(found)),
        terms=tuple(terms for _, _, terms in found),
    )
    return rescore(instances, weights, settings.accept)


def _maps_by_name(heats: Heat, phrases: Sequence[Phrase]) -> tuple[list[str | None], list[Heat]]:
    """Join the maps of each class by their maximum; classes first, then each background phrase (name
    None).
    """
    by_class: dict[str, Heat] = {}
    for heat, phrase in zip(heats, phrases, strict=True):
        if phrase.class_name is not None:
            known = by_class.get(phrase.class_name)
            by_class[phrase.class_name] = heat if known is None else np.maximum(known, heat)
    background = [heat for heat, phrase in zip(heats, phrases, strict=True) if phrase.class_name is None]
    return [*by_class, *(None for _ in background)], [*by_class.values(), *background]


def _paper_masks(
    maps: Sequence[Heat], classes: int, settings: LabelSettings, rgb: NDArray[np.uint8] | None
) -> list[Mask]:
    masks = []
    for heat in maps[:classes]:
        rough = _foreground(heat, level(heat, settings.threshold), rgb)
        mask = morphology(rough, settings.erode_frac, settings.dilate_frac)
        contours, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        cv2.drawContours(mask.view(np.uint8), contours, -1, 1, cv2.FILLED)
        masks.append(mask)
    return masks


def _compete(
    maps: Sequence[Heat], classes: int, settings: LabelSettings, rgb: NDArray[np.uint8] | None
) -> list[Mask]:
    levels = [level(heat, settings.threshold) for heat in maps]
    peaks = [value_range(heat)[1] for heat in maps]
    masks = [_foreground(heat, least, rgb) for heat, least in zip(maps[:classes], levels, strict=False)]
    masks += [
        _foreground(heat, least, None) for heat, least in zip(maps[classes:], levels[classes:], strict=True)
    ]
    _settle(masks, classes, maps, levels, peaks)
    cleaned = [morphology(mask, settings.erode_frac, settings.dilate_frac) for mask in masks[:classes]]
    # Dilation makes neighbours overlap again.
    _settle(cleaned, classes, maps, levels, peaks)
    return cleaned


def _foreground(heat: Heat, least: float, rgb: NDArray[np.uint8] | None) -> Mask:
    return np.asarray(heat > least) if rgb is None else refine(heat, least, rgb)


def _settle(
    masks: Sequence[Mask], classes: int, maps: Sequence[Heat], levels: Sequence[float], peaks: Sequence[float]
) -> None:
    """Leave each disputed pixel to the mask with the stronger claim, in place; of equal ones to the first."""
    # A class against every later phrase; what background phrases hold among themselves does not matter.
    for first, second in ((i, j) for i in range(classes) for j in range(i + 1, len(masks))):
        disputed = masks[first] & masks[second]
        x, y, w, h = cv2.boundingRect(disputed.view(np.uint8))
        if not w:
            continue
        part = np.s_[y : y + h, x : x + w]
        claims = [
            (maps[k][part] - np.float32(levels[k])) / np.float32(peaks[k] - levels[k])
            for k in (first, second)
        ]
        stronger = claims[0] >= claims[1]
        masks[first][part] &= ~disputed[part] | stronger
        masks[second][part] &= ~disputed[part] | ~stronger


def _separate(mask: Mask, settings: LabelSettings) -> list[Mask]:
    """Return the masks of the instances in a class's mask, large before small."""
    least, most = settings.min_area_frac * mask.size, settings.max_area_frac * mask.size
    x, y, w, h = cv2.boundingRect(mask.view(np.uint8))
    if not w:
        return []
    part = np.s_[y : y + h, x : x + w]
    pixels = np.ascontiguousarray(mask[part]).view(np.uint8)
    _, pieces, stats, _ = cv2.connectedComponentsWithStats(pixels, connectivity=8)
    sizes = stats[:, cv2.CC_STAT_AREA]
    # Piece 0 is what is outside the mask.
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
