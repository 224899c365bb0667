"""Combine heat maps over layer groups and steps, threshold a map, and clean the resulting mask.

Treats each map separately; knows neither classes nor scores.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from diffugen.config.labelling import Threshold
from diffugen.errors import ConfigError
from diffugen.labels.shapes import decode
from diffugen.records import STEP_THIRDS, HeatMaps

TAUGHT, DOUBT = "taught", "doubt"
"""Places, in the names of their groups, of what a decoder drew, and of how doubtful that is."""

FLAT = 1e-3
"""A map whose range is below this fraction of its peak counts as constant: float16 resolves no finer."""

MOST_GROUPS = 12
"""The most layer groups that a message lists; large transformers have dozens, which differ in number only."""


def combine(
    heat_maps: HeatMaps,
    groups: Mapping[str, float],
    step_weights: tuple[float, float, float],
    self_attention: int = 0,
) -> NDArray[np.float32]:
    """Average the heat maps of each phrase over steps and layer groups, at image resolution.

    As in DAAM (Tang et al. 2023, section 2.2), each group is upsampled bicubically to the grid of the finest
    group, negative overshoot is clipped, and the maps are averaged without rescaling: all of them are softmax
    probabilities, so groups are directly comparable. Only the average is upsampled to the image size, which
    keeps this cheap. Values that are not finite (a half-precision model that overflowed) count as 0.

    With ``self_attention``, the average then takes that many steps of a random walk: each cell gets the mean
    heat of the cells that it attends to, weighted by the attention. So heat spreads over an object, and ends
    where the object does. It is multiplication with the self-attention, as in DiffSegmenter (Wang et al.
    2023, "Diffusion Model is Secretly a Training-free Open Vocabulary Semantic Segmenter"), repeated as in
    AffinityNet (Ahn and Kwak 2018, section 3.3), on the grid of the self-attention. In an image of which only
    a region was painted, no heat enters the walk from outside the region.

    Args:
        heat_maps: Heat maps of one image.
        groups: Weight of each layer group, by pattern; see `group_weights`. A group counts once, however many
            layers it holds: to weight layers equally, give each group its number of layers as weight.
        step_weights: Weights of the first, middle and last third of the denoising steps; >= 0, not all 0.
        self_attention: Steps of the random walk, >= 0; none on what a decoder drew.

    Returns:
        float32 (P, height, width), >= 0, in units of attention probability; P phrases as in
        ``heat_maps.phrases``. Outside the window that the heat maps cover, each phrase has its lowest value.

    Raises:
        ConfigError: A pattern matches no group, all weights are 0, or the heat maps lack the self-attention.

    Example:
        >>> combine(heat_maps, {"up@1/4": 1.0}, (0.0, 1.0, 1.0)).shape  # doctest: +SKIP
        (2, 512, 768)
    """
    weights = group_weights(heat_maps, groups)
    steps = np.asarray(step_weights, dtype=np.float32)
    if steps.shape != (STEP_THIRDS,) or not (steps >= 0).all() or not 0 < steps.sum() < math.inf:
        raise ConfigError([f"step_weights: {step_weights!r}; expected {STEP_THIRDS} numbers >= 0, not all 0"])
    steps /= steps.sum()
    total = sum(weights.values())
    width, height = heat_maps.size_wh
    grid_hw = max((array.shape[2:] for array in heat_maps.maps.values()), key=math.prod)
    mean = np.zeros((len(heat_maps.phrases), *grid_hw), dtype=np.float32)
    for name, weight in weights.items():
        array = np.nan_to_num(heat_maps.maps[name].astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
        mean += np.float32(weight / total) * _upsample(np.einsum("pshw,s->phw", array, steps), *grid_hw)
    if self_attention and not is_taught(heat_maps):
        mean = _walked(mean, heat_maps, self_attention)
    if heat_maps.window_xyxy is None:
        return _upsample(mean, height, width)
    left, upper, right, lower = heat_maps.window_xyxy
    inside = _upsample(mean, lower - upper, right - left)
    heats = np.repeat(inside.min(axis=(1, 2)), height * width).reshape(-1, height, width)
    heats[:, upper:lower, left:right] = inside
    return heats


def group_weights(heat_maps: HeatMaps, groups: Mapping[str, float]) -> dict[str, float]:
    """Return the weight of each layer group whose weight is above 0.

    A pattern (``*``, ``?``, ``[...]``) is matched against two names of each group: its key, such as
    ``up-16x24``, and its relative name, such as ``up@1/4``. Here ``1/4`` is the side of the group's grid
    relative to that of the finest group (``1/1``), rounded to a power of two, so a relative name means the
    same layers at every image size and in models of every size. A group's weight is the sum of the weights of
    all patterns that match it, so their order does not matter: ``{"*": 1, "up@*": 2}`` gives the up blocks a
    weight of 3 and all others 1. In a transformer, whose layers are groups of their own, ``joint-1?@*`` means
    the layers 10 to 19, and ``joint*`` all of them. What a decoder drew (`diffugen.labels.decoder`) is of no
    layer; it counts alone, whatever the patterns.

    Raises:
        ConfigError: A pattern matches no group or has a negative weight, or no group has a weight; lists the
            groups.
    """
    if is_taught(heat_maps):
        return {group: 1.0 for group in heat_maps.maps if group.startswith(f"{TAUGHT}-")}
    names = relative_names(heat_maps.maps)
    listed = [f"{key} ({relative})" for key, relative in names.items()]
    if len(listed) > MOST_GROUPS:
        listed[MOST_GROUPS - 1 : -1] = ["..."]
    known = ", ".join(listed) or "none"
    weights = dict.fromkeys(names, 0.0)
    mistakes = []
    for pattern, weight in groups.items():
        if not 0 <= weight < math.inf:
            mistakes.append(f"groups: weight {weight!r} of {pattern!r}; expected a number >= 0")
        matched = [
            key for key, name in names.items() if fnmatchcase(key, pattern) or fnmatchcase(name, pattern)
        ]
        if not matched:
            mistakes.append(
                f"groups: {pattern!r} matches no layer group of {heat_maps.image_id}; groups: {known}"
            )
        for key in matched:
            weights[key] += weight
    if not mistakes and not any(weights.values()):
        mistakes.append(f"groups: {dict(groups)!r} gives no layer group a weight; groups: {known}")
    if mistakes:
        raise ConfigError(mistakes)
    return {key: weight for key, weight in weights.items() if weight > 0}


def is_taught(heat_maps: HeatMaps) -> bool:
    """Return whether a decoder drew the maps; see `diffugen.labels.decoder`."""
    return any(group.startswith(f"{TAUGHT}-") for group in heat_maps.maps)


def doubt_maps(heat_maps: HeatMaps) -> NDArray[np.float32] | None:
    """Return how doubtful a decoder's drawing is, float32 (P, height, width), in [0, 1].

    None if no decoder drew the maps.
    """
    if not is_taught(heat_maps):
        return None
    width, height = heat_maps.size_wh
    small = _doubts(heat_maps)[:, 0].astype(np.float32)
    return np.stack([cv2.resize(array, (width, height), interpolation=cv2.INTER_LINEAR) for array in small])


def _doubts(heat_maps: HeatMaps) -> NDArray[Any]:
    [array] = [maps for group, maps in heat_maps.maps.items() if group.startswith(f"{DOUBT}-")]
    return array


def doubt(heat_maps: HeatMaps) -> float:
    """Return how doubtful a decoder's drawing is: the mean over the pixels of all classes, in [0, 1]."""
    array = _doubts(heat_maps)
    named = [index for index, phrase in enumerate(heat_maps.phrases) if phrase.class_name is not None]
    return float(array[named].mean(dtype=np.float64)) if named else 0.0


def relative_names(maps: Mapping[str, NDArray[Any]]) -> dict[str, str]:
    """Return the relative name of each layer group, as in `group_weights`; arrays end with axes (h, w)."""
    finest = max((math.prod(array.shape[-2:]) for array in maps.values()), default=1)
    names = {}
    for key, array in maps.items():
        # Each level halves both sides and rounds odd ones up, so the ratio is only close to a power of two.
        halvings = round(math.log2(finest / math.prod(array.shape[-2:])) / 2)
        names[key] = f"{re.sub(r'-[0-9]+x[0-9]+$', '', key)}@1/{2**halvings}"
    return names


def level(heat: NDArray[np.float32], how: Threshold) -> float:
    """Return the level of a map above which pixels belong to the object.

    Args:
        heat: float32 (h, w).
        how: ``"otsu"`` (Otsu 1979, on the map rescaled to 8 bits), or a fraction of the way from the map's
            minimum to its maximum, in (0, 1).

    Returns:
        The level in the units of the map; infinity for an empty or constant map.

    Raises:
        ConfigError: ``how`` is neither.
    """
    if how != "otsu" and not (isinstance(how, (int, float)) and 0 < how < 1):
        raise ConfigError([f"threshold: {how!r}; expected 'otsu' or a number between 0 and 1"])
    low, high = value_range(heat)
    if low == high:
        return math.inf
    if isinstance(how, (int, float)):
        return low + how * (high - low)
    scale = 255 / (high - low)
    gray = cv2.convertScaleAbs(heat, alpha=scale, beta=-low * scale)
    otsu, _ = cv2.threshold(gray, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    # Conversion rounds to the nearest 8-bit value, so pixels exceed `otsu` from half a step above it.
    return low + (float(otsu) + 0.5) / scale


def threshold(heat: NDArray[np.float32], how: Threshold) -> NDArray[np.bool_]:
    """Return the bool (h, w) mask of the pixels above `level`; all False for an empty or constant map."""
    return np.asarray(heat > level(heat, how))


def morphology(mask: NDArray[np.bool_], erode_frac: float, dilate_frac: float) -> NDArray[np.bool_]:
    """Erode, then dilate a mask with discs, as the paper does to remove specks and restore the rest.

    Args:
        mask: bool (h, w).
        erode_frac: Radius of the erosion relative to ``sqrt(h * w)``, so that it means the same at every
            image size; rounded to whole pixels. The image border does not erode: an object that it cuts off
            keeps its edge there.
        dilate_frac: Radius of the dilation, in the same unit. Equal radii are a morphological opening.

    Returns:
        A new bool (h, w) mask.
    """
    side = math.sqrt(mask.size)
    erosion, dilation = round(erode_frac * side), round(dilate_frac * side)
    pixels = mask.astype(np.uint8)
    x, y, w, h = cv2.boundingRect(pixels)
    # Work in the mask's box only: nothing changes far from it, and discs are the costly part of labelling.
    pad = max(erosion, dilation) + 1
    box = np.s_[max(y - pad, 0) : y + h + pad, max(x - pad, 0) : x + w + pad]
    part = np.ascontiguousarray(pixels[box])
    if erosion and part.size:
        part = cv2.erode(part, _disc(erosion))
    if dilation and part.size:
        part = cv2.dilate(part, _disc(dilation))
    pixels[box] = part
    return pixels.view(np.bool_)


def value_range(heat: NDArray[np.float32]) -> tuple[float, float]:
    """Return the minimum and maximum of a float32 (h, w) map >= 0.

    A constant map (see `FLAT`) has its maximum as minimum, too, so that its range is exactly 0.
    """
    low, high, _, _ = cv2.minMaxLoc(heat)
    return (low, high) if high - low > FLAT * high else (high, high)


def scaled(heat: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a float32 (h, w) map >= 0 rescaled to [0, 1] by its range; zeros for a constant map."""
    low, high = value_range(heat)
    if low == high:
        return np.zeros_like(heat)
    return np.asarray((heat - np.float32(low)) / np.float32(high - low), dtype=np.float32)


def _walked(heats: NDArray[np.float32], heat_maps: HeatMaps, steps: int) -> NDArray[np.float32]:
    """Return heats (P, h, w) after a random walk, on the grid of the self-attention."""
    if heat_maps.self_attention is None:
        raise ConfigError(
            [
                f"labels.self_attention: {steps}, but image {heat_maps.image_id} was generated without its "
                "self-attention; set it to 0, or generate a new run with diffusion.keep_self_attention: true"
            ]
        )
    h, w = heat_maps.self_attention.shape[:2]
    affinity = np.nan_to_num(
        heat_maps.self_attention.reshape(h * w, h * w).astype(np.float32), nan=0.0, posinf=0.0
    )
    affinity /= np.maximum(affinity.sum(axis=1, keepdims=True), np.finfo(np.float32).tiny)
    if heat_maps.region is not None:
        painted = decode(heat_maps.region)
        if heat_maps.window_xyxy is not None:
            left, upper, right, lower = heat_maps.window_xyxy
            painted = painted[upper:lower, left:right]
        share = _resized(painted.astype(np.float32), heats.shape[1], heats.shape[2])
        low = heats.min(axis=(1, 2), keepdims=True)
        heats = low + share * (heats - low)
    walked = np.array([_resized(heat, h, w) for heat in heats]).reshape(len(heats), h * w)
    for _ in range(steps):
        walked = walked @ affinity.T
    return walked.reshape(-1, h, w)


def _resized(array: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    return np.asarray(cv2.resize(array, (width, height), interpolation=cv2.INTER_AREA), dtype=np.float32)


def _upsample(maps: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    if maps.shape[1:] == (height, width):
        return np.maximum(maps, 0)
    large = np.empty((len(maps), height, width), dtype=np.float32)
    for source, target in zip(maps, large, strict=True):
        cv2.resize(source, (width, height), dst=target, interpolation=cv2.INTER_CUBIC)
    return np.maximum(large, 0, out=large)


def _disc(radius: int) -> NDArray[np.uint8]:
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return np.asarray(kernel, dtype=np.uint8)
