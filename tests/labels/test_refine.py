"""Refinement moves mask edges to where the colours of the image change."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from diffugen.config.labelling import LabelSettings, Method, ScoreWeights
from diffugen.labels import label
from diffugen.labels.refine import LARGEST_SIDE, ColourTies, consensus, refine
from diffugen.labels.shapes import decode, encode
from diffugen.records import HeatMaps, Phrase


def scene(height: int, width: int, noise: float = 4.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The image and mask of a brown table with two legs on grey ground, and a blurred heat map of it."""
    mask = np.zeros((height, width), dtype=np.bool_)
    mask[height // 4 : height // 2, width // 4 : 3 * width // 4] = True
    for left in (0.28, 0.66):
        mask[height // 2 : 3 * height // 4, round(left * width) : round((left + 0.08) * width)] = True
    rng = np.random.default_rng(0)
    colours = np.where(mask[..., None], (120, 70, 30), (128, 128, 132)) + rng.normal(
        0, noise, (height, width, 3)
    )
    heat = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), height / 8)
    return np.clip(colours, 0, 255).astype(np.uint8), mask, heat


def iou(first: np.ndarray, second: np.ndarray) -> float:
    return float((first & second).sum() / (first | second).sum())


@pytest.mark.parametrize(("height", "width"), [(48, 80), (90, 64), (200, 340)])
def test_edges_move_to_those_of_the_object(height: int, width: int) -> None:
    rgb, mask, heat = scene(height, width)
    level = float(heat.max()) / 2
    assert max(height, width) > LARGEST_SIDE or height < 100
    assert iou(heat > level, mask) < 0.7
    assert iou(refine(heat, level, ColourTies(rgb)), mask) > 0.85


def test_an_image_without_edges_keeps_the_hottest_part() -> None:
    rgb, _, heat = scene(48, 80)
    level = float(heat.max()) / 2
    found = refine(heat, level, ColourTies(np.full_like(rgb, 90)))
    assert found.any()
    assert not (found & (heat <= level)).any()


def test_no_heat_above_the_level_gives_an_empty_mask() -> None:
    rgb, _, heat = scene(48, 80)
    assert not refine(np.zeros_like(heat), 0.0, ColourTies(rgb)).any()
    assert not refine(heat, float(heat.max()), ColourTies(rgb)).any()


def test_an_image_of_another_size_is_refused() -> None:
    rgb, _, heat = scene(48, 80)
    with pytest.raises(ValueError, match=r"\(48, 80\).*\(80, 48, 3\)"):
        refine(heat, 0.1, ColourTies(rgb.transpose(1, 0, 2)))


def test_where_two_masks_differ_the_colours_decide() -> None:
    rgb, mask, _ = scene(48, 80)
    kernel = np.ones((5, 5), np.uint8)
    small = cv2.erode(mask.astype(np.uint8), kernel).astype(np.bool_)
    large = cv2.dilate(mask.astype(np.uint8), kernel).astype(np.bool_)
    ties = ColourTies(rgb)
    for pair in ((small, large), (large, small)):
        found = decode(consensus(encode(pair[0]), encode(pair[1]), ties))
        assert iou(found, mask) > 0.95 > max(iou(small, mask), iou(large, mask)) + 0.2
    flat = ColourTies(np.full_like(rgb, 90))
    for same in (small, large):
        assert iou(decode(consensus(encode(same), encode(same), flat)), same) > 0.9


def test_a_consensus_that_would_vanish_is_the_second_mask() -> None:
    rgb, mask, _ = scene(48, 80)
    none, all_of_it = encode(np.zeros_like(mask)), encode(mask)
    assert consensus(all_of_it, none, ColourTies(np.full_like(rgb, 90))) == none
    assert consensus(none, none, ColourTies(rgb)) == none


@pytest.mark.parametrize("method", ["paper", "compete"])
def test_labels_are_refined_if_the_settings_say_so(method: Method) -> None:
    rgb, mask, heat = scene(48, 80)
    small = cv2.resize(heat, (20, 12), interpolation=cv2.INTER_AREA)
    other = np.ascontiguousarray(small[::-1, ::-1]) * 0.5
    maps = np.repeat(np.stack([small, other])[:, None], 3, axis=1).astype(np.float16)
    heat_maps = HeatMaps(
        "one", (80, 48), (Phrase("table", "table"), Phrase("ground", None)), {"up-12x20": maps}
    )
    settings = LabelSettings(method=method, erode_frac=0, dilate_frac=0)
    rough, sharp = (
        label(heat_maps, settings.changed(refine=refine), ScoreWeights(), rgb) for refine in ("none", "crf")
    )
    assert len(rough) == len(sharp) == 1
    assert iou(decode(sharp.rles[0]), mask) > iou(decode(rough.rles[0]), mask) + 0.1
    with pytest.raises(ValueError, match="needs the image"):
        label(heat_maps, settings.changed(refine="crf"), ScoreWeights())
