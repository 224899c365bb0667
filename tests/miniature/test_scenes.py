"""Tests of the miniature's scenes: determined by seeds, with exact masks and true captions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from diffugen.errors import DiffugenError
from diffugen.miniature.scenery import render
from diffugen.miniature.scenes import (
    CLASSES,
    KNOWN_CLASSES,
    PIANO_ON_ROAD_SHARE,
    SCENE_SETS,
    TIMES,
    WEATHERS,
    exact_instances,
    piano_on_road_scene,
    sample_scene,
    scene_set,
    training_scene,
)


def test_same_seed_same_pixels() -> None:
    first, again = (list(scene_set("training", 3, (96, 64))) for _ in range(2))
    other = list(scene_set("training", 3, (96, 64), start=3))
    for one, two, three in zip(first, again, other, strict=True):
        assert np.array_equal(one.rgb, two.rgb) and np.array_equal(one.masks, two.masks)
        assert one.scene.caption == two.scene.caption
        assert not np.array_equal(one.rgb, three.rgb)


@pytest.mark.parametrize("size_wh", [(64, 64), (128, 64), (48, 96), (33, 57)])
def test_any_size_and_aspect_ratio(size_wh: tuple[int, int]) -> None:
    for drawn in scene_set("uniform", 12, size_wh):
        width, height = size_wh
        assert drawn.rgb.shape == (height, width, 3) and drawn.rgb.dtype == np.uint8
        assert drawn.masks.shape == (len(drawn.scene.things), height, width)
        assert drawn.masks.sum(0).max() <= 1, "visible parts of two things overlap"
        assert drawn.masks.any()


def test_masks_coincide_with_the_thing() -> None:
    """Recolouring a thing only changes pixels in or next to its mask."""
    import dataclasses

    import cv2

    for seed in range(12):
        scene = sample_scene(seed, classes=["car"], weather="sunny", time="day")
        car = scene.things[0]
        swapped = dataclasses.replace(car, colour="blue" if car.colour != "blue" else "yellow")
        one, two = render(scene, (96, 80)), render(dataclasses.replace(scene, things=(swapped,)), (96, 80))
        changed = np.abs(one.rgb.astype(int) - two.rgb).max(-1) > 40
        near = cv2.dilate(one.masks[0].astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        assert changed.sum() > 50
        assert not (changed & ~near).any()


def test_nearer_things_occlude_farther_ones() -> None:
    """Without the other things, a thing's visible part is at least as large, and in some scenes larger."""
    import dataclasses

    hidden = 0
    for seed in range(40):
        scene = sample_scene(seed, classes=["truck", "person", "car"])
        together = render(scene)
        for number, thing in enumerate(scene.things):
            alone = render(dataclasses.replace(scene, things=(thing,)))
            assert not (together.masks[number] & ~alone.masks[0]).any()
            hidden += int(together.masks[number].sum() < alone.masks[0].sum())
    assert hidden > 10


def test_captions_name_exactly_the_things_in_the_scene() -> None:
    for seed in range(60):
        scene = training_scene(seed)
        for thing in scene.things:
            assert thing.class_name in scene.caption
        for absent in set(CLASSES) - {thing.class_name for thing in scene.things}:
            assert absent not in scene.caption
        assert ("on a road" if scene.place == "road" else "in a room") in scene.caption


def test_sets_contain_their_classes_and_shares() -> None:
    known = [make_class for drawn in scene_set("known", 60) for make_class in drawn.class_names]
    assert set(known) == set(KNOWN_CLASSES)
    assert all(
        "piano" in drawn.class_names and drawn.scene.place == "road"
        for drawn in scene_set("piano-on-road", 40)
    )
    assert all(
        drawn.class_names == ("piano",) and drawn.scene.place == "room" for drawn in scene_set("piano-photos")
    )
    assert SCENE_SETS["piano-on-road"][2] >= 300
    scenes = [training_scene(seed) for seed in range(4000)]
    rare = np.mean(
        [
            scene.place == "road" and any(thing.class_name == "piano" for thing in scene.things)
            for scene in scenes
        ]
    )
    assert PIANO_ON_ROAD_SHARE / 2 < rare < PIANO_ON_ROAD_SHARE * 2
    assert {scene.weather for scene in scenes} == set(WEATHERS) and {scene.time for scene in scenes} == set(
        TIMES
    )


def test_seed_ranges_do_not_overlap() -> None:
    starts = sorted((first, default) for _, first, default in SCENE_SETS.values())
    for (first, default), (following, _) in itertools.pairwise(starts):
        assert first + 1000 * default < following + 1, "a long stream would run into another set"


def test_poses_and_colours_vary() -> None:
    pianos = [piano_on_road_scene(seed).things for seed in range(60)]
    colours = {thing.colour for things in pianos for thing in things if thing.class_name == "piano"}
    assert colours == {"black", "brown", "white"}
    fixed = [render(sample_scene(3, classes=["piano"], weather="sunny", time="day"))]
    import dataclasses

    for pose in (0.01, 0.09, 0.65, 0.79):  # side and front, lid open and closed
        scene = fixed[0].scene
        posed = dataclasses.replace(scene, things=(dataclasses.replace(scene.things[0], pose=pose),))
        fixed.append(render(posed))
    areas = {int(drawn.masks[0].sum()) for drawn in fixed[1:]}
    assert len(areas) == 4


def test_exact_instances_omit_invisible_things() -> None:
    drawn = next(iter(scene_set("known", 1, (96, 64))))
    drawn.masks[0][:] = False
    instances = exact_instances(drawn)
    assert len(instances) == len(drawn.scene.things) - 1
    assert instances.size_wh == (96, 64)
    assert (instances.scores == 1).all()


def test_unknown_set() -> None:
    with pytest.raises(DiffugenError, match="unknown scene set 'pianos'; the miniature has known"):
        next(scene_set("pianos"))
