"""Tests of the miniature's scenes: determined by seeds, with exact masks and true captions."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np
import pytest

from diffugen.errors import DiffugenError
from diffugen.miniature.crowds import (
    DISTRACTORS,
    RARE_ON_ROAD_SHARES,
    among_scene,
    crowded_scene,
    training_scene,
)
from diffugen.miniature.scenery import RenderedScene, Scene, render
from diffugen.miniature.scenes import (
    CLASSES,
    KNOWN_CLASSES,
    TIMES,
    WEATHERS,
    piano_on_road_scene,
    sample_scene,
)
from diffugen.miniature.sets import SCENE_SETS, VISIBLE_PIXELS, exact_instances, scene_set

PLURALS = {"person": "people", "bus": "buses", "bench": "benches"}


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
    hidden = 0
    for seed in range(40):
        scene = sample_scene(seed, classes=["truck", "person", "car"])
        together = render(scene)
        for number, thing in enumerate(scene.things):
            alone = render(dataclasses.replace(scene, things=(thing,)))
            assert not (together.masks[number] & ~alone.masks[0]).any()
            hidden += int(together.masks[number].sum() < alone.masks[0].sum())
    assert hidden > 10


@pytest.mark.parametrize("make", [sample_scene, training_scene, lambda seed: among_scene(seed, "bus")])
def test_captions_name_exactly_the_things_in_the_scene(make: Callable[[int], Scene]) -> None:
    """Also the things of no class: what a caption leaves out, the diffusion model would draw unasked."""
    for seed in range(200):
        scene = make(seed)
        named = {thing.class_name for thing in scene.things}
        for name in (*CLASSES, *DISTRACTORS):
            words = {name, PLURALS.get(name, name)}
            assert any(word in scene.caption for word in words) == (name in named), scene.caption
        assert ("on a road" if scene.place == "road" else "in a room") in scene.caption or (
            not scene.things and f"a {scene.place}" in scene.caption
        )


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
    for rare, share in RARE_ON_ROAD_SHARES.items():
        seen = [
            scene.place == "road" and any(thing.class_name == rare for thing in scene.things)
            for scene in scenes
        ]
        assert share / 2 < np.mean(seen) < share * 2
    assert {scene.weather for scene in scenes} == set(WEATHERS) and {scene.time for scene in scenes} == set(
        TIMES
    )


def visible(drawn: RenderedScene, name: str) -> list[int]:
    """Return the visible pixels of each thing of a class."""
    pairs = zip(drawn.class_names, drawn.masks, strict=True)
    return [int(mask.sum()) for one, mask in pairs if one == name]


@pytest.mark.parametrize("rare", ["piano", "bus"])
def test_a_third_of_the_test_scenes_has_no_rare_thing_and_a_third_is_crowded(rare: str) -> None:
    name = f"{rare}-among"
    alone, crowded, without = (
        [drawn for seed, drawn in enumerate(scene_set(name, 90), SCENE_SETS[name][1]) if seed % 3 == kind]
        for kind in range(3)
    )
    assert all(drawn.class_names == (rare,) for drawn in alone)
    assert all(rare in drawn.class_names and len(drawn.class_names) == 3 for drawn in crowded)
    assert all(rare not in drawn.class_names and drawn.class_names for drawn in without)
    lookalikes = [bool(set(drawn.class_names) & set(DISTRACTORS)) for drawn in without]
    assert 0.4 < np.mean(lookalikes) < 0.8
    hidden = [
        min(visible(drawn, rare)) < 0.85 * visible(render(among_alone(drawn.scene, rare)), rare)[0]
        for drawn in crowded
    ]
    assert np.mean(hidden) > 0.3, "hardly any is partly hidden"


def among_alone(scene: Scene, name: str) -> Scene:
    """Return the scene without all things but the farthest of a class."""
    return dataclasses.replace(
        scene, things=(next(thing for thing in scene.things if thing.class_name == name),)
    )


def test_crowds_hide_the_thing_that_is_asked_for() -> None:
    for seed in range(40):
        scene = crowded_scene(seed, ["piano", "truck"], occluded_share=1.0, behind=0)
        assert [thing.class_name for thing in scene.things] == ["piano", "truck"], "the nearer one is last"
        assert visible(render(scene), "piano")[0] <= visible(render(among_alone(scene, "piano")), "piano")[0]


def test_the_base_detector_sees_neither_rare_class() -> None:
    names = {name for drawn in scene_set("streets", 300) for name in drawn.class_names}
    assert names == {*KNOWN_CLASSES, *DISTRACTORS}
    labelled = {name for drawn in scene_set("streets", 60) for name in exact_instances(drawn).class_names}
    assert labelled == set(KNOWN_CLASSES), "things of no class are background"


def test_hardly_visible_things_are_not_in_the_truth() -> None:
    drawn = next(iter(scene_set("streets", 1)))
    assert all(name in CLASSES for name in drawn.class_names)
    mask = drawn.masks[0]
    mask[:] = False
    mask.flat[: VISIBLE_PIXELS - 1] = True
    assert len(exact_instances(drawn)) == len(drawn.masks) - 1
    mask.flat[VISIBLE_PIXELS - 1] = True
    assert len(exact_instances(drawn)) == len(drawn.masks)


def test_seed_ranges_do_not_overlap() -> None:
    starts = sorted((first, default) for _, first, default in SCENE_SETS.values())
    for (first, default), (following, _) in itertools.pairwise(starts):
        assert first + 1000 * default < following + 1, "a long stream would run into another set"


def test_poses_and_colours_vary() -> None:
    pianos = [piano_on_road_scene(seed).things for seed in range(60)]
    colours = {thing.colour for things in pianos for thing in things if thing.class_name == "piano"}
    assert colours == {"black", "brown", "white"}
    fixed = [render(sample_scene(3, classes=["piano"], weather="sunny", time="day"))]
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
