"""Thresholds by class: what they are worth on drawn maps, and when one replaces Otsu's."""

from __future__ import annotations

import numpy as np
import pytest

from diffugen.config import LabelSettings
from diffugen.labels.thresholds import FRACTIONS, LEAST_MAPS, choose, worths
from diffugen.labels.witness import Witness
from diffugen.records import Instances, Phrase

SIZE = 64
PHRASES = (Phrase("grand piano", "piano"), Phrase("road", None))


def scene(radius: float, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """A bright disc on dark ground, and maps whose heat falls off evenly to `spread` times its radius."""
    y, x = np.mgrid[:SIZE, :SIZE]
    distance = np.hypot(x - SIZE / 2, y - SIZE / 2)
    rgb = np.where(distance[..., None] < radius, 220, 40).astype(np.uint8).repeat(3, axis=2)
    heat = np.clip(1 - distance / (radius * spread), 0, 1).astype(np.float32)
    return np.stack([heat, np.zeros_like(heat)]), rgb


def test_the_threshold_whose_mask_ends_where_the_object_does_is_worth_most() -> None:
    # The heat at the rim of the disc is 1 - 1 / 2.5.
    heats, rgb = scene(12, 2.5)
    [found] = worths(heats, PHRASES, LabelSettings(method="compete"), rgb).values()
    assert found.shape == (1 + len(FRACTIONS),) and found.min() >= 0 and found.max() <= 1
    assert FRACTIONS[found[1:].argmax()] == pytest.approx(0.6, abs=0.05)
    assert found[1:].max() > 2 * found[0], "Otsu's mask is far too large here"


def test_classes_that_the_witness_knows_have_no_threshold() -> None:
    heats, rgb = scene(12, 2.5)
    nothing = Instances((SIZE, SIZE), (), (), np.zeros(0))
    settings = LabelSettings()
    assert worths(heats, PHRASES, settings, rgb, None, Witness(nothing, frozenset({"piano"}))) == {}
    assert list(worths(heats, PHRASES, settings, rgb, None, Witness(nothing, frozenset({"car"})))) == [
        "piano"
    ]
    assert worths(np.zeros_like(heats), PHRASES, settings, rgb) == {}, "a map without a peak says nothing"


def test_otsu_stays_unless_another_threshold_is_clearly_better() -> None:
    rng = np.random.default_rng(0)
    better = np.zeros(1 + len(FRACTIONS))
    better[1 + FRACTIONS.index(0.5)] = 0.2
    clear = [0.3 + better + rng.normal(0, 0.01, better.shape) for _ in range(LEAST_MAPS)]
    noisy = [0.3 + better + rng.normal(0, 2.0, better.shape) for _ in range(LEAST_MAPS)]
    worse = [0.3 - better for _ in range(LEAST_MAPS)]
    few = clear[:-1]
    assert choose({"clear": clear, "noisy": noisy, "worse": worse, "few": few, "none": []}) == {"clear": 0.5}
