"""Label one image from its heat maps, by the paper's method or by letting phrases compete for pixels.

Reads the pixels of the image only to refine masks. Knows no other source of labels.

``"paper"``: the combined map of each class is thresholded (Otsu), eroded and dilated; each external contour,
filled, is an instance. Holes are filled, and classes can overlap, as in the paper.

``"compete"``: every traced phrase, background words included, *claims* the pixels where its map exceeds its
own threshold. The claim is ``(map - level) / (peak - level)``: the closer the map is to its peak, the
stronger. A pixel goes to the strongest claim. With one phrase this is plain thresholding. With several, words
that leak onto each other's objects (the usual fault of cross-attention) are cut back, while a word whose map
is weak everywhere still keeps its own peak. Masks keep their holes, and classes never overlap.
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
        rgb: uint8 (H, W, 3), the image; required if ``settings.refine`` is ``"crf"``.

    Returns:
        The instances with scores and their terms, grouped by class in the order of the phrases, large before
        small; none if no phrase names a class or no map has a peak. The maps of phrases of the same class are
        joined by their maximum. If only a region of the image was painted, no instance extends beyond it.

    Raises:
        ConfigError: ``settings.groups`` does not match the heat maps.
        ValueError: The settings need the image, and it is missing or has another size.

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
    """Label one image from combined maps: the part of `label` after ``groups`` and ``step_weights``.

    A search over thresholds and score weights combines the maps once and calls this many times. A search over
    score weights alone needs only `diffugen.labels.score.rescore`.

    Args:
        heats: float32 (P, h, w), >= 0, from `diffugen.labels.heatmaps.combine`.
        phrases: The P phrases.
        settings: Method and thresholds; ``groups`` and ``step_weights`` are ignored.
        weights: Weights of the score terms.
        rgb: uint8 (h, w, 3), the image; required if ``settings.refine`` is ``"crf"``.
        region: The part of the image that was painted; None for all of it.

    Raises:
        ValueError: The settings need the image, and it is missing or has another size.
    """
    if settings.refine != "none" and rgb is None:
        raise ValueError(f"labels.refine is {settings.refine!r}, which needs the image; pass rgb")
    pixels = None if settings.refine == "none" else rgb
    painted = None if region is None else decode(region)
    if painted is not None:  # outside, phrases attend to what was there before
        heats = np.where(painted, heats, heats.min(axis=(1, 2), keepdims=True))
    names, maps = _maps_by_class(heats, phrases)
    masks_of = _paper_masks if settings.method == "paper" else _competing_masks
    found: list[tuple[str, Mask, dict[str, float]]] = []
    for index, mask in enumerate(masks_of(maps, len(names), settings, pixels)):
        objects = _separate(mask if painted is None else mask & painted, settings)
        terms = measure(objects, maps[index], maps[:index] + maps[index + 1 :])
        found += [(names[index], *pair) for pair in zip(objects, terms, strict=True)]
    instances = Instances(
        size_wh=(heats.shape[2], heats.shape[1]),
        class_names=tuple(name for name, _, _ in found),
        rles=tuple(encode(mask) for _, mask, _ in found),
        scores=np.zeros(len(found)),
        terms=tuple(terms for _, _, terms in found),
    )
    return rescore(instances, weights, settings.accept)


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


def _competing_masks(
    maps: Sequence[Heat], classes: int, settings: LabelSettings, rgb: NDArray[np.uint8] | None
) -> list[Mask]:
    levels = [level(heat, settings.threshold) for heat in maps]
    peaks = [value_range(heat)[1] for heat in maps]
    # Background masks only compete; refining them is not worth its time.
    masks = [
        _foreground(heat, levels[index], rgb if index < classes else None) for index, heat in enumerate(maps)
    ]
    _resolve_overlaps(masks, classes, maps, levels, peaks)
    cleaned = [morphology(mask, settings.erode_frac, settings.dilate_frac) for mask in masks[:classes]]
    # Dilation can make neighbours overlap again.
    _resolve_overlaps(cleaned, classes, maps, levels, peaks)
    return cleaned


def _foreground(heat: Heat, least: float, rgb: NDArray[np.uint8] | None) -> Mask:
    return np.asarray(heat > least) if rgb is None else refine(heat, least, rgb)


def _resolve_overlaps(
    masks: Sequence[Mask], classes: int, maps: Sequence[Heat], levels: Sequence[float], peaks: Sequence[float]
) -> None:
    """Leave each disputed pixel to the mask with the stronger claim, in place; ties go to the first mask."""
    # Each class against all later phrases: overlaps among background phrases do not matter.
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
