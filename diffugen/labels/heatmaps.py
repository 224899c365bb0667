"""Combine heat maps over layer groups and steps; turn one into a mask; clean the mask.

Knows neither classes nor scores: each map is treated alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase

import cv2
import numpy as np
from numpy.typing import NDArray

from diffugen.config.labelling import Threshold
from diffugen.errors import ConfigError
from diffugen.records import STEP_THIRDS, HeatMaps

FLAT = 1e-3
"""A map whose range is below this part of its peak is constant: float16 resolves no more than that."""


def combine(
    heat_maps: HeatMaps, groups: Mapping[str, float], step_weights: tuple[float, float, float]
) -> NDArray[np.float32]:
    """Average the heat maps of every phrase over steps and layer groups, at image resolution.

    As in DAAM (Tang et al. 2023, section 2.2) each group is enlarged bicubically to the finest group's grid,
    negative overshoot is cut off, and the maps are averaged as they are: they are probabilities of the same
    softmax, so groups are comparable without further scaling. The average is then enlarged once, which is
    also what makes it cheap. Values that are not finite (a half-precision model that overflowed) count as 0.

    Args:
        heat_maps: Heat maps of one image.
        groups: Weight of each layer group, by pattern; see `group_weights`. A group counts once however many
            layers it holds: to weigh layers equally, give the groups the number of their layers as weights.
        step_weights: Weights of the first, middle and last third of the denoising steps; >= 0, not all 0.

    Returns:
        float32 (P, height, width), >= 0, in units of attention probability; P phrases as in
        ``heat_maps.phrases``. Outside the window that the heat maps cover, each phrase has its lowest value.

    Raises:
        ConfigError: A pattern matches no group, or all weights are 0.

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
        mean += np.float32(weight / total) * _enlarge(np.einsum("pshw,s->phw", array, steps), *grid_hw)
    if heat_maps.window_xyxy is None:
        return _enlarge(mean, height, width)
    left, upper, right, lower = heat_maps.window_xyxy
    inside = _enlarge(mean, lower - upper, right - left)
    heats = np.repeat(inside.min(axis=(1, 2)), height * width).reshape(-1, height, width)
    heats[:, upper:lower, left:right] = inside
    return heats


def group_weights(heat_maps: HeatMaps, groups: Mapping[str, float]) -> dict[str, float]:
    """Return the weight of each layer group that has one.

    A pattern (``*``, ``?``, ``[...]``) is compared with two names of each group: its key, such as
    ``up-16x24``, and its relative name ``up@1/4``, where ``1/4`` is the group's side relative to the finest
    group's (``1/1``), a power of two. The relative name means the same layers at every image size and in
    models of every size. A group's weight is the sum of the weights of all patterns that match it, so the
    patterns' order does not matter: ``{"*": 1, "up@*": 2}`` weighs the up blocks 3 and all others 1. Groups
    without a pattern, or of weight 0, are left out.

    Raises:
        ConfigError: A pattern matches no group or has a negative weight, or no group has a weight; lists the
            groups.
    """
    names = _relative_names(heat_maps)
    known = ", ".join(f"{key} ({relative})" for key, relative in names.items()) or "none"
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


def level(heat: NDArray[np.float32], how: Threshold) -> float:
    """Return the value above which a pixel of the map belongs to the object.

    Args:
        heat: float32 (h, w).
        how: ``"otsu"`` (Otsu 1979, on the map scaled from its minimum and maximum to 8 bits), or a part of
            the way from the map's minimum to its maximum, in (0, 1).

    Returns:
        The level in the map's units; infinity for an empty or constant map.

    Raises:
        ConfigError: ``how`` is neither.
    """
    if not _is_threshold(how):
        raise ConfigError([f"threshold: {how!r}; expected 'otsu' or a number between 0 and 1"])
    low, high = value_range(heat)
    if low == high:
        return math.inf
    if isinstance(how, (int, float)):
        return low + how * (high - low)
    scale = 255 / (high - low)
    gray = cv2.convertScaleAbs(heat, alpha=scale, beta=-low * scale)
    otsu, _ = cv2.threshold(gray, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    # The 8-bit value rounds to the nearest: it exceeds `otsu` from half a step above it.
    return low + (float(otsu) + 0.5) / scale


def _is_threshold(how: object) -> bool:
    """Tell whether a value is ``"otsu"`` or a number in (0, 1)."""
    return how == "otsu" or (isinstance(how, (int, float)) and 0 < how < 1)


def threshold(heat: NDArray[np.float32], how: Threshold) -> NDArray[np.bool_]:
    """Return the bool (h, w) mask of the pixels above `level`; empty for an empty or constant map."""
    return np.asarray(heat > level(heat, how))


def morphology(mask: NDArray[np.bool_], erode_frac: float, dilate_frac: float) -> NDArray[np.bool_]:
    """Erode, then dilate a mask with discs, as the paper does to drop specks and restore the rest.

    Args:
        mask: bool (h, w).
        erode_frac: Radius of the erosion relative to ``sqrt(h * w)``, so that it means the same at every
            image size; rounded to whole pixels. The image's border does not erode: an object cut by it keeps
            its edge there.
        dilate_frac: The same for the dilation. Equal radii are a morphological opening.

    Returns:
        A new bool (h, w) mask.
    """
    side = math.sqrt(mask.size)
    erosion, dilation = round(erode_frac * side), round(dilate_frac * side)
    pixels = mask.astype(np.uint8)
    x, y, w, h = cv2.boundingRect(pixels)
    # Only the mask's box takes part: far from it nothing changes, and discs are the costly part of a label.
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
    """Return the minimum and maximum of a float32 (h, w) map >= 0; twice the maximum if it is constant (see
    `FLAT`).
    """
    low, high, _, _ = cv2.minMaxLoc(heat)
    return (low, high) if high - low > FLAT * high else (high, high)


def _relative_names(heat_maps: HeatMaps) -> dict[str, str]:
    finest = max((math.prod(array.shape[2:]) for array in heat_maps.maps.values()), default=1)
    names = {}
    for key, array in heat_maps.maps.items():
        # Each level halves both sides and rounds odd ones up, so only the nearest power of two is meant.
        halvings = round(math.log2(finest / math.prod(array.shape[2:])) / 2)
        names[key] = f"{re.sub(r'-[0-9]+x[0-9]+$', '', key)}@1/{2**halvings}"
    return names


def _enlarge(maps: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    if maps.shape[1:] == (height, width):
        return np.maximum(maps, 0)
    large = np.empty((len(maps), height, width), dtype=np.float32)
    for source, target in zip(maps, large, strict=True):
        cv2.resize(source, (width, height), dst=target, interpolation=cv2.INTER_CUBIC)
    return np.maximum(large, 0, out=large)


def _disc(radius: int) -> NDArray[np.uint8]:
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return np.asarray(kernel, dtype=np.uint8)
