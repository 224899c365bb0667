"""Heat maps are combined as in DAAM, thresholded and cleaned; checked against cv2 on non-square images."""

from __future__ import annotations

import dataclasses
import math

import cv2
import numpy as np
import pytest
from scipy import ndimage

from diffugen.errors import ConfigError
from diffugen.labels.heatmaps import combine, group_weights, level, morphology, threshold
from diffugen.labels.shapes import encode
from diffugen.records import HeatMaps, Phrase

PHRASES = (Phrase("grand piano", "piano"), Phrase("road", None))
ALL = {"*": 1.0}
EVEN = (1.0, 1.0, 1.0)


def blob(height, width, x, y, radius):
    """A Gaussian at (x, y), relative to the image's sides; the radius is relative to its height."""
    rows, columns = np.mgrid[:height, :width]
    dx, dy = ((columns + 0.5) / width - x) * width / height, (rows + 0.5) / height - y
    return np.exp(-(dx**2 + dy**2) / (2 * radius**2))


def make_maps(size_wh=(96, 64), seed=0, scales=(4, 8, 16), places=("down", "up")):
    """Random heat maps around 1e-3, as float16, in several layer groups."""
    rng = np.random.default_rng(seed)
    maps = {}
    for place in places:
        for scale in scales:
            h, w = math.ceil(size_wh[1] / scale), math.ceil(size_wh[0] / scale)
            maps[f"{place}-{h}x{w}"] = (1e-3 * rng.random((2, 3, h, w))).astype(np.float16)
    return HeatMaps("image", size_wh, PHRASES, maps)


def test_combine_is_the_mean_of_upsampled_maps_as_in_daam():
    import torch

    heat_maps = make_maps()

    def upsample(array, size_hw):
        tensor = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))[:, None]
        return torch.nn.functional.interpolate(tensor, size_hw, mode="bicubic").clamp(min=0)[:, 0].numpy()

    layers = [upsample(array.astype(np.float32).mean(axis=1), (16, 24)) for array in heat_maps.maps.values()]
    expected = upsample(np.mean(layers, axis=0), (64, 96))
    heats = combine(heat_maps, ALL, EVEN)
    assert heats.shape == (2, 64, 96) and heats.dtype == np.float32
    np.testing.assert_allclose(heats, expected, atol=2e-8)


def test_combine_keeps_width_and_height_apart():
    maps = {"up-16x24": np.zeros((2, 3, 16, 24), np.float16), "up-8x12": np.zeros((2, 3, 8, 12), np.float16)}
    for array in maps.values():
        array[0] = 1e-3 * blob(*array.shape[2:], x=0.85, y=0.25, radius=0.1)
        array[1] = 1e-3 * blob(*array.shape[2:], x=0.1, y=0.9, radius=0.1)
    heats = combine(HeatMaps("image", (96, 64), PHRASES, maps), ALL, EVEN)
    peaks = [np.unravel_index(np.argmax(heat), heat.shape) for heat in heats]
    assert np.allclose(peaks, [(15.5, 81.1), (57.1, 9.1)], atol=2)


def test_combine_puts_a_window_where_it_belongs():
    whole = make_maps(size_wh=(96, 64))
    part = HeatMaps("image", (300, 200), PHRASES, whole.maps, window_xyxy=(20, 30, 116, 94))
    heats, inside = combine(part, ALL, EVEN), combine(whole, ALL, EVEN)
    assert heats.shape == (2, 200, 300)
    np.testing.assert_array_equal(heats[:, 30:94, 20:116], inside)
    for heat, seen in zip(heats, inside, strict=True):
        heat[30:94, 20:116] = seen.min()
        assert (heat == seen.min()).all()


def test_combine_weights_steps_and_groups():
    shape = (2, 3, 4, 6)
    thirds = np.array([1.0, 2.0, 4.0], dtype=np.float16)[None, :, None, None]
    maps = {"down-4x6": np.broadcast_to(thirds, shape), "up-4x6": np.broadcast_to(10 * thirds, shape)}
    heat_maps = HeatMaps("image", (12, 8), PHRASES, maps)

    def value(groups, steps):
        return combine(heat_maps, groups, steps)[1, 3, 3]

    assert value({"down-*": 1}, (0, 0, 5)) == pytest.approx(4)
    assert value({"down-*": 1}, (1, 1, 0)) == pytest.approx(1.5)
    assert value({"up-*": 3, "down-*": 1}, (0, 1, 0)) == pytest.approx((3 * 20 + 2) / 4)


def test_combine_clips_bicubic_overshoot():
    array = np.zeros((1, 3, 8, 12), dtype=np.float16)
    array[..., 2:4, 5:9] = 1e-3
    heats = combine(HeatMaps("image", (96, 64), PHRASES[:1], {"up-8x12": array}), ALL, EVEN)
    assert heats.min() == 0


def with_self_attention(heat_maps, affinity, **changes):
    return dataclasses.replace(heat_maps, self_attention=affinity.astype(np.float16), **changes)


def test_heat_walks_along_the_self_attention():
    """Each cell gets the mean heat of the cells that it attends to, for each phrase, so many times."""
    heat_maps = make_maps(scales=(8,), places=("up",))
    affinity = np.random.default_rng(1).random((8, 12, 8, 12)) ** 8
    walks = with_self_attention(heat_maps, affinity)
    rows = walks.self_attention.reshape(96, 96).astype(np.float64)
    rows /= rows.sum(axis=1, keepdims=True)
    heat = heat_maps.maps["up-8x12"].astype(np.float64).mean(axis=1).reshape(2, 96)
    assert np.array_equal(combine(walks, ALL, EVEN, 0), combine(heat_maps, ALL, EVEN))
    for steps in (1, 3):
        expected = np.array([np.linalg.matrix_power(rows, steps) @ one for one in heat]).reshape(2, 8, 12)
        upsampled = [cv2.resize(one, (96, 64), interpolation=cv2.INTER_CUBIC) for one in expected]
        np.testing.assert_allclose(combine(walks, ALL, EVEN, steps), upsampled, atol=2e-8)


def test_heat_fills_the_object_that_its_cells_attend_to():
    """On a coarser grid than the maps: two bars, one of them warm at its end, attend to themselves alone."""
    bars = np.zeros((8, 12), dtype=int)
    bars[2:6, 1:5], bars[2:6, 8:10] = 1, 2
    same = (bars[:, :, None, None] == bars).astype(float)
    maps = {"up-16x24": np.zeros((2, 3, 16, 24), np.float16), "up-8x12": np.zeros((2, 3, 8, 12), np.float16)}
    maps["up-16x24"][0, :, 4:8, 2:4] = 4e-3
    heat_maps = with_self_attention(HeatMaps("image", (96, 64), PHRASES, maps), same / 3)
    heats = combine(heat_maps, {"up-16x24": 1}, EVEN, 1)
    found, truth = threshold(heats[0], 0.5), np.kron(bars == 1, np.ones((8, 8), bool))
    assert (found != truth).mean() < 0.02 < truth.mean()
    assert heats[0, 32, 24] == pytest.approx(4e-3 * 2 / 16, rel=0.1), "the mean of the bar"
    assert not heats[1].any()


def test_no_heat_walks_into_the_region_from_outside():
    """The region is the left half of a window; what is hot outside was there before."""
    maps = {"up-8x12": np.full((2, 3, 8, 12), 1e-3, np.float16)}
    maps["up-8x12"][0, :, :, 6:] = 9e-3
    region = np.zeros((84, 126), dtype=bool)
    region[10:74, 20:68] = True
    everywhere = with_self_attention(
        HeatMaps("image", (126, 84), PHRASES, maps, window_xyxy=(20, 10, 116, 74)), np.ones((8, 12, 8, 12))
    )
    inside = dataclasses.replace(everywhere, region=encode(region))
    assert combine(everywhere, ALL, EVEN, 1)[0] == pytest.approx(5e-3, rel=1e-3)
    assert combine(inside, ALL, EVEN, 1)[0] == pytest.approx(1e-3, rel=1e-3)


def test_self_attention_that_is_missing_or_not_finite():
    heat_maps = make_maps(scales=(8,))
    with pytest.raises(ConfigError, match=r"image image .*set it to 0, or .*keep_self_attention: true"):
        combine(heat_maps, ALL, EVEN, 2)
    affinity = np.ones((8, 12, 8, 12))
    affinity[0, 0], affinity[:, :, 7, 11] = np.nan, np.inf
    heats = combine(with_self_attention(heat_maps, affinity), ALL, EVEN, 2)
    assert np.isfinite(heats).all() and heats.min() == 0 < heats[:, 32, 48].min()
    nothing = HeatMaps("image", (96, 64), (), {"up-8x12": np.zeros((0, 3, 8, 12), np.float16)})
    assert combine(with_self_attention(nothing, affinity), ALL, EVEN, 2).shape == (0, 64, 96)


def test_combine_counts_non_finite_values_as_zero():
    heat_maps = make_maps()
    heat_maps.maps["up-8x12"][0] = np.nan
    heat_maps.maps["up-4x6"][0] = np.inf
    heats = combine(heat_maps, ALL, EVEN)
    assert np.isfinite(heats).all() and 0 < heats[0].mean() < heats[1].mean()


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ({"up-*": 2.0}, {"up-16x24": 2, "up-8x12": 2, "up-4x6": 2}),
        ({"*@1/4": 1.0}, {"down-4x6": 1, "up-4x6": 1}),
        ({"up@1/2": 1.0, "down-16x24": 0.5}, {"up-8x12": 1, "down-16x24": 0.5}),
        ({"*@1/1": 1.0, "up@*": 2.0}, {"down-16x24": 1, "up-16x24": 3, "up-8x12": 2, "up-4x6": 2}),
        ({"*-8x12": 1.0, "down-*": 0.0}, {"down-8x12": 1, "up-8x12": 1}),
    ],
)
def test_group_weights_match_by_key_and_relative_scale(groups, expected):
    assert group_weights(make_maps(), groups) == expected
    assert group_weights(make_maps(), dict(reversed(groups.items()))) == expected


def test_layers_of_a_transformer_have_numbers():
    """A run can also have images of earlier versions, with one group for all layers."""
    array = np.zeros((2, 3, 8, 12), dtype=np.float16)
    numbered = HeatMaps("image", (96, 64), PHRASES, {f"joint-{n:02}-8x12": array for n in range(57)})
    assert group_weights(numbered, {"joint-1?@*": 1.0, "joint-07-8x12": 2.0}) == {
        "joint-07-8x12": 2.0,
        **{f"joint-{n}-8x12": 1.0 for n in range(10, 20)},
    }
    old = HeatMaps("image", (96, 64), PHRASES, {"joint-8x12": array})
    for heat_maps in (numbered, old):
        for pattern in ("*", "joint*", "joint*@1/1", "joint*-8x12"):
            assert group_weights(heat_maps, {pattern: 1.0}) == dict.fromkeys(heat_maps.maps, 1.0)
    assert group_weights(old, {"joint@1/1": 1.0, "joint-8x12": 1.0}) == {"joint-8x12": 2.0}
    with pytest.raises(
        ConfigError, match=r"joint-10-8x12 \(joint-10@1/1\), \.\.\., joint-56-8x12"
    ) as failure:
        group_weights(numbered, {"up@*": 1.0})
    assert "joint-11-" not in str(failure.value)


def test_relative_scale_survives_odd_sizes():
    # 100 x 36 px at factor 4: 25 x 9, 13 x 5, 7 x 3.
    assert group_weights(make_maps(size_wh=(100, 36)), {"up@1/4": 1.0}) == {"up-3x7": 1.0}


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ({"up@1/8": 1.0, "*": 1.0}, ["'up@1/8'", "up-4x6 (up@1/4)", "down-16x24 (down@1/1)"]),
        ({"*": 0.0}, ["no layer group a weight", "up-8x12 (up@1/2)"]),
        ({}, ["no layer group a weight"]),
        ({"up-*": -1.0}, ["-1.0", "'up-*'"]),
    ],
)
def test_wrong_groups_are_refused_with_a_list_of_groups(groups, words):
    with pytest.raises(ConfigError) as failure:
        combine(make_maps(), groups, EVEN)
    assert all(word in str(failure.value) for word in words), str(failure.value)


@pytest.mark.parametrize("steps", [(0, 0, 0), (1, -1, 1), (1, 1)])
def test_wrong_step_weights_are_refused(steps):
    with pytest.raises(ConfigError, match="step_weights"):
        combine(make_maps(), ALL, steps)


@pytest.mark.parametrize("peak", [1.0, 1e-3, 1e-5])
def test_otsu_finds_the_object_at_any_magnitude(peak):
    truth = np.zeros((64, 96), dtype=bool)
    truth[20:40, 50:90] = True
    rng = np.random.default_rng(0)
    heat = (peak * (0.2 + 0.6 * truth + 0.1 * rng.random(truth.shape))).astype(np.float32)
    assert np.array_equal(threshold(heat, "otsu"), truth)
    assert np.array_equal(threshold(heat, 0.5), truth)


def test_otsu_equals_cv2_on_the_8_bit_map():
    heat = np.float32(3e-3) * blob(64, 96, 0.3, 0.6, 0.2).astype(np.float32) + np.float32(1e-3)
    low, high = heat.min(), heat.max()
    gray = np.rint((heat.astype(np.float64) - low) / (high - low) * 255).astype(np.uint8)
    _, expected = cv2.threshold(gray, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    assert np.mean(threshold(heat, "otsu") == expected.astype(bool)) > 0.999


def test_numeric_threshold_is_a_fraction_of_the_range():
    heat = np.linspace(2.0, 4.0, 101, dtype=np.float32).reshape(1, 101)
    assert level(heat, 0.25) == pytest.approx(2.5)
    assert threshold(heat, 0.25).sum() == pytest.approx(75, abs=1)


@pytest.mark.parametrize("how", ["otsu", 0.4])
@pytest.mark.parametrize("value", [0.0, 1e-3, 0.77])
def test_constant_map_gives_an_empty_mask(how, value):
    array = np.full((1, 3, 5, 7), value, dtype=np.float16)
    heats = combine(HeatMaps("image", (77, 55), PHRASES[:1], {"up-5x7": array}), ALL, EVEN)
    assert not threshold(heats[0], how).any()


@pytest.mark.parametrize("how", ["ostu", 0, 1.0, -0.2, None, float("nan")])
def test_wrong_thresholds_are_refused(how):
    with pytest.raises(ConfigError, match="otsu"):
        threshold(np.eye(4, dtype=np.float32), how)


def test_morphology_removes_specks_and_restores_the_rest():
    mask = np.zeros((64, 96), dtype=bool)
    mask[20:50, 30:80] = True
    mask[5, 5] = True
    cleaned = morphology(mask, 2 / math.sqrt(mask.size), 2 / math.sqrt(mask.size))
    assert not cleaned[:10].any()
    assert cleaned.sum() == pytest.approx(30 * 50, abs=16)
    assert mask[5, 5], "the given mask must not change"


def test_morphology_has_the_same_effect_at_every_size():
    small = np.zeros((64, 96), dtype=bool)
    small[20:50, 30:80] = True
    large = np.kron(small, np.ones((4, 4), dtype=bool))
    fractions = [morphology(mask, 0.05, 0.0).mean() for mask in (small, large)]
    assert fractions[0] == pytest.approx(fractions[1], rel=0.03)
    assert fractions[0] < 0.8 * small.mean()


def test_morphology_does_not_erode_the_image_border():
    mask = np.zeros((64, 96), dtype=bool)
    mask[40:, 60:] = True
    eroded = morphology(mask, 0.05, 0.0)
    assert eroded[-1, -1] and not eroded[40, 60]


def test_morphology_in_the_box_equals_that_on_the_whole_image():
    rng = np.random.default_rng(1)
    for _ in range(20):
        y, x = rng.integers(0, 40), rng.integers(0, 60)
        mask = np.zeros((64, 96), dtype=bool)
        mask[y : y + 24, x : x + 36] = ndimage.gaussian_filter(rng.random((24, 36)), 2) > 0.5
        erosion, dilation = (int(radius) for radius in rng.integers(0, 5, 2))
        expected = mask.astype(np.uint8)
        for operation, radius in ((cv2.erode, erosion), (cv2.dilate, dilation)):
            kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2)
            expected = operation(expected, kernel)
        side = math.sqrt(mask.size)
        assert np.array_equal(morphology(mask, erosion / side, dilation / side), expected.astype(bool))


def test_morphology_keeps_an_empty_mask_empty():
    assert not morphology(np.zeros((64, 96), dtype=bool), 0.02, 0.05).any()
