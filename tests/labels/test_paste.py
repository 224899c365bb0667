"""Composed and painted-over training images: what is visible, and what is labelled."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from diffugen.labels.paint import painted_over
from diffugen.labels.paste import CutOut, composed
from diffugen.labels.shapes import decode, encode
from diffugen.records import Instances

HEIGHT, WIDTH = 48, 72
GREY, RED, BLUE = (120, 120, 120), (220, 30, 30), (30, 30, 220)


def image(
    *objects: tuple[str, tuple[int, int, int, int], tuple[int, int, int]],
) -> tuple[NDArray[np.uint8], Instances]:
    """Return a grey image with coloured boxes (x0, y0, x1, y1), and its labels."""
    rgb = np.full((HEIGHT, WIDTH, 3), GREY, np.uint8)
    rles = []
    for _, (x0, y0, x1, y1), colour in objects:
        mask = np.zeros((HEIGHT, WIDTH), bool)
        mask[y0:y1, x0:x1] = True
        rgb[mask] = colour
        rles.append(encode(mask))
    names = tuple(name for name, _, _ in objects)
    return rgb, Instances((WIDTH, HEIGHT), names, tuple(rles), np.full(len(names), 0.5))


FAR_PIANO = image(("piano", (10, 12, 30, 24), RED))
NEAR_CARS = image(("car", (0, 16, 72, 46), BLUE))
FAR_CARS = image(("car", (0, 8, 72, 20), BLUE))
EMPTY = image()
PIANO = [CutOut(0, 0, "piano")]


def compose(
    *images: tuple[NDArray[np.uint8], Instances], count: int = 60, seed: int = 0
) -> list[tuple[str, NDArray[np.uint8], Instances]]:
    return list(composed([one for _, one in images], lambda number: images[number][0], PIANO, count, seed))


def coloured(rgb: NDArray[np.uint8], colour: tuple[int, int, int]) -> NDArray[np.bool_]:
    return np.asarray(np.abs(rgb.astype(int) - colour).max(axis=2) < 60)


def test_pasted_objects_are_visible_where_they_are_labelled() -> None:
    made = compose(FAR_PIANO, EMPTY)
    assert len(made) == 60 and len({name for name, _, _ in made}) == 60
    seen = 0
    for _, rgb, found in made:
        mask = np.logical_or.reduce([decode(rle) for rle in found.rles])
        red = coloured(rgb, RED)
        assert not (red & ~mask).any(), "an object without a label"
        inner = mask & np.roll(mask, 1, 0) & np.roll(mask, -1, 0) & np.roll(mask, 1, 1) & np.roll(mask, -1, 1)
        assert red[inner].mean() > 0.9
        assert found.scores.tolist() == [0.5] * len(found)
        seen += len(found)
    assert 60 < seen <= 120, "in its own image it is one of two, unless they cover each other"


def test_nearer_objects_hide_farther_ones() -> None:
    behind = [found for _, _, found in compose(FAR_PIANO, NEAR_CARS) if "car" in found.class_names]
    in_front = [found for _, _, found in compose(FAR_PIANO, FAR_CARS) if "car" in found.class_names]
    assert behind and in_front
    _, car = NEAR_CARS
    assert all(found.rles[0] == car.rles[0] for found in behind), "the nearest is whole"
    assert any(found.rles[0] != FAR_CARS[1].rles[0] for found in in_front)
    for found in (*behind, *in_front):
        masks = [decode(rle) for rle in found.rles]
        assert np.sum(masks, axis=0).max() == 1, "masks show what is visible, so none overlap"


def test_places_and_sizes_vary_but_are_repeatable() -> None:
    first, again, other = compose(FAR_PIANO), compose(FAR_PIANO), compose(FAR_PIANO, seed=1)
    for (_, one, _), (_, two, _) in zip(first, again, strict=True):
        assert np.array_equal(one, two)
    assert any(not np.array_equal(one[1], two[1]) for one, two in zip(first, other, strict=True))
    areas = {int(decode(found.rles[-1]).sum()) for _, _, found in first}
    assert len(areas) > 20 and max(areas) > 2 * min(areas)


def test_every_class_is_pasted_equally_often() -> None:
    both = image(("piano", (4, 20, 14, 34), RED), ("car", (50, 20, 60, 34), BLUE))
    cut_outs = [CutOut(0, 0, "piano"), *[CutOut(0, 1, "car")] * 9]
    made = composed([both[1], EMPTY[1]], lambda number: (both, EMPTY)[number][0], cut_outs, 40, 0)
    pasted = [found.class_names[-1] for _, _, found in made]
    assert pasted.count("piano") == pasted.count("car") == 20
    assert list(composed([EMPTY[1]], lambda number: EMPTY[0], [], 5, 0)) == []


@pytest.mark.parametrize("size", [(96, 144), (24, 36)])
def test_objects_keep_their_share_of_an_image_of_another_size(size: tuple[int, int]) -> None:
    height, width = size
    target = (np.full((height, width, 3), GREY, np.uint8), Instances((width, height), (), (), np.zeros(0)))
    shares = [
        decode(found.rles[-1]).mean()
        for _, rgb, found in compose(FAR_PIANO, target)
        if rgb.shape == (height, width, 3)
    ]
    whole = decode(FAR_PIANO[1].rles[0]).mean()
    assert shares and 0.15 * whole < min(shares) and max(shares) < 1.6 * whole


def test_hidden_objects_disappear_and_shown_ones_stay() -> None:
    rgb, found = image(("car", (10, 10, 30, 30), RED), ("car", (28, 10, 50, 30), BLUE))
    painted = painted_over(rgb, found.rles[:1], found.rles[1:])
    blue = decode(found.rles[1])
    assert np.array_equal(painted[blue], rgb[blue])
    assert not coloured(painted, RED).any()
    assert np.array_equal(painted[:, 54:], rgb[:, 54:]), "nothing else changes"
    assert painted_over(rgb, (), found.rles) is rgb
