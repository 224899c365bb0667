"""Decoders: what corrected masks teach, on made-up features of which one channel shows the object."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from diffugen.config.labelling import LabelSettings, ScoreWeights
from diffugen.errors import ModelError
from diffugen.labels.decoder import ABOUT_NAME, Decoder, Lesson, Projection
from diffugen.labels.heatmaps import combine, doubt, is_taught
from diffugen.labels.label import label
from diffugen.labels.shapes import decode, encode
from diffugen.records import Instances, Phrase, PixelFeatures

WIDTH, HEIGHT = 72, 48
PHRASES = (Phrase("car", "car"), Phrase("dog", "dog"), Phrase("road", None))


def disc(seed: int, name: str) -> NDArray[np.bool_]:
    """Return where the object of a class is; those of the two classes are in different halves."""
    rng = np.random.default_rng([seed, ord(name[0])])
    x = rng.uniform(0.15, 0.35) + (0.5 if name == "dog" else 0.0)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return np.asarray(
        (rows - rng.uniform(0.3, 0.7) * HEIGHT) ** 2 + (columns - x * WIDTH) ** 2 < (0.2 * HEIGHT) ** 2
    )


def small(array: NDArray[np.float64], height: int, width: int) -> NDArray[np.float16]:
    return cv2.resize(array, (width, height), interpolation=cv2.INTER_AREA).astype(np.float16)


def features(seed: int, phrases: tuple[Phrase, ...] = PHRASES) -> PixelFeatures:
    """Return features: heat that leaks onto the other object, and activations that know where objects end."""
    rng = np.random.default_rng(seed)
    car, dog = disc(seed, "car").astype(float), disc(seed, "dog").astype(float)
    heat = {"car": 0.3 * car + 0.25 * dog, "dog": 0.3 * dog + 0.25 * car}
    blurred = [cv2.GaussianBlur(heat.get(one.text, 0 * car), (0, 0), 4) for one in phrases]
    coarse = np.stack([np.stack([small(one, 6, 9)] * 2) for one in blurred])
    fine = np.stack([np.stack([small(one, 12, 18)] * 2) for one in blurred])
    objects = np.stack([small(car + dog, 24, 36), *rng.normal(size=(5, 24, 36))]).astype(np.float16)
    noise = rng.normal(size=(7, 12, 18)).astype(np.float16) * 50
    return PixelFeatures(
        (WIDTH, HEIGHT),
        phrases,
        {"down-6x9": coarse, "up-12x18": fine},
        {"up-0@0.2": objects, "mid@0.2": noise},
    )


def objects(seed: int, *names: str) -> Instances:
    masks = tuple(encode(disc(seed, name)) for name in names)
    return Instances((WIDTH, HEIGHT), names, masks, np.ones(len(names)))


def taught(corrected: range, weak: range = range(0), seed: int = 0) -> Decoder:
    projection = Projection.fit((features(number) for number in [*corrected, *weak]), 4, seed)
    lessons = [
        Lesson(
            projection.compact(features(number)), objects(number, "car", "dog"), corrected=number in corrected
        )
        for number in [*corrected, *weak]
    ]
    return Decoder.teach(projection, lessons, seed=seed)


@pytest.fixture(scope="module", name="decoder")
def decoder_fixture() -> Decoder:
    return taught(range(4))


def iou(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    return float((one & other).sum() / (one | other).sum())


def drawn_ious(decoder: Decoder) -> list[float]:
    ious = []
    for seed in range(100, 106):
        chances, _ = decoder.draw(features(seed))
        ious += [iou(chances[0] > 0.5, disc(seed, "car")), iou(chances[1] > 0.5, disc(seed, "dog"))]
    return ious


def test_it_draws_objects_that_it_has_not_seen_better_than_attention(decoder: Decoder) -> None:
    settings = LabelSettings(erode_frac=0, dilate_frac=0)
    ours, attention = list[float](), list[float]()
    for seed in range(100, 106):
        heat_maps = decoder.heat_maps("an-image", features(seed))
        plain = replace(
            heat_maps, maps={k: np.repeat(v, 2, axis=1)[:, :3] for k, v in features(seed).heats.items()}
        )
        for maps, ious in ((heat_maps, ours), (plain, attention)):
            found = label(maps, settings, ScoreWeights())
            for name in ("car", "dog"):
                masks = [decode(r) for n, r in zip(found.class_names, found.rles, strict=True) if n == name]
                ious.append(iou(np.any(masks, axis=0), disc(seed, name)))
    assert np.mean(ours) > 0.8 > 0.6 > np.mean(attention)


def test_masks_of_one_class_teach_all_classes(decoder: Decoder) -> None:
    projection = decoder.projection
    phrases = (PHRASES[0], Phrase("dog", None), PHRASES[2])  # of each two, one is a rival without a class
    lessons = [
        Lesson(projection.compact(replace(features(number), phrases=phrases)), objects(number, "car"), True)
        for number in range(4)
    ]
    cars_only = Decoder.teach(projection, lessons, seed=0)
    phrases = (Phrase("car", None), PHRASES[1], PHRASES[2])
    drawn = [cars_only.draw(replace(features(s), phrases=phrases))[0][1] for s in range(100, 106)]
    assert np.mean([iou(one > 0.5, disc(100 + n, "dog")) for n, one in enumerate(drawn)]) > 0.6


def test_attention_labels_alone_teach_too_and_steady_a_single_mask() -> None:
    assert np.mean(drawn_ious(taught(range(0), range(8)))) > 0.7
    assert np.mean(drawn_ious(taught(range(1), range(1, 8)))) > 0.7


def test_corrected_masks_outweigh_many_weak_ones_that_are_wrong() -> None:
    projection = Projection.fit((features(number) for number in range(12)), 12, 0)
    lessons = []
    for number in range(12):
        right = objects(number, "car", "dog")
        wrong = replace(right, rles=right.rles[::-1])  # each class on the other's place
        compact = projection.compact(features(number))
        lessons.append(Lesson(compact, right if number < 3 else wrong, corrected=number < 3))
    few = Decoder.teach(projection, lessons[:3], seed=0)
    both, weak = Decoder.teach(projection, lessons, seed=0), Decoder.teach(projection, lessons[3:], seed=0)
    assert np.mean(drawn_ious(weak)) < 0.2 < np.mean(drawn_ious(both)) <= np.mean(drawn_ious(few)) + 0.02


def test_background_words_and_doubts(decoder: Decoder) -> None:
    chances, doubts = decoder.draw(features(100))
    assert chances.shape == doubts.shape == (3, HEIGHT, WIDTH) and chances.dtype == np.float32
    assert chances.min() >= 0 and chances.max() <= 1 and doubts.min() >= 0 and doubts.max() <= 1
    assert not chances[2].any() and not doubts[2].any()
    strange = features(100)
    noise = np.random.default_rng(0).normal(size=strange.activations["up-0@0.2"].shape) * 3
    strange = replace(strange, activations={**strange.activations, "up-0@0.2": noise.astype(np.float16)})
    assert decoder.draw(strange)[1][:2].mean() > 2 * doubts[:2].mean() > 0


def test_its_maps_stand_alone_whatever_the_groups(decoder: Decoder) -> None:
    heat_maps = decoder.heat_maps("an-image", features(100), region=None)
    assert is_taught(heat_maps) and heat_maps.image_id == "an-image" and heat_maps.phrases == PHRASES
    assert list(heat_maps.maps) == [f"{place}-{HEIGHT}x{WIDTH}" for place in ("taught", "doubt")]
    assert all(array.shape == (3, 3, HEIGHT, WIDTH) for array in heat_maps.maps.values())
    assert doubt(heat_maps) == pytest.approx(decoder.draw(features(100))[1][:2].mean(), rel=0.01)
    heats = combine(heat_maps, {"up@1/7": 1.0}, (0.0, 1.0, 3.0), self_attention=2)
    np.testing.assert_allclose(heats, decoder.draw(features(100))[0], atol=1e-3)


def test_labels_are_the_more_certain_the_less_its_networks_disagree(decoder: Decoder) -> None:
    drawn = decoder.heat_maps("an-image", features(100))
    doubting = {name: maps + 0.25 * name.startswith("doubt") for name, maps in drawn.maps.items()}
    settings, weights = LabelSettings(), ScoreWeights(certainty=1.0)
    found, doubted = (label(one, settings, weights) for one in (drawn, replace(drawn, maps=doubting)))
    assert len(found) and found.rles == doubted.rles
    for one, other, *scores in zip(found.terms, doubted.terms, found.scores, doubted.scores, strict=True):
        assert one["certainty"] - other["certainty"] == pytest.approx(0.25, abs=2e-3)
        assert scores[0] - scores[1] == pytest.approx(0.25 / 6, abs=2e-3), "one of six equal weights"


def test_large_images_are_drawn_smaller(decoder: Decoder) -> None:
    large = replace(features(100), size_wh=(WIDTH * 100, HEIGHT * 100))
    assert decoder.draw(large)[0].shape == (3, 85, 128)


def test_it_is_repeatable_and_survives_a_round_trip(decoder: Decoder, tmp_path: Path) -> None:
    expected, _ = decoder.draw(features(100))
    again = taught(range(4))
    assert np.array_equal(again.draw(features(100))[0], expected)
    assert not np.array_equal(taught(range(4), seed=1).draw(features(100))[0], expected)
    Decoder(decoder.projection, decoder._state, {"model": "a"}).save(tmp_path / "decoder")
    loaded = Decoder.load(tmp_path / "decoder")
    assert loaded.about == {"model": "a"}
    assert np.array_equal(loaded.draw(features(100))[0], expected)


def test_features_of_another_model_are_refused(decoder: Decoder) -> None:
    other = features(0)
    for wrong in (
        replace(other, activations={**other.activations, "mid@0.2": np.zeros((8, 12, 18), np.float16)}),
        replace(other, activations={"mid@0.2": other.activations["mid@0.2"]}),
        replace(other, heats={**other.heats, "mid-6x9": other.heats["down-6x9"]}),
    ):
        with pytest.raises(ModelError, match="of another model than those that the decoder was taught on"):
            decoder.draw(wrong)
        with pytest.raises(ModelError, match="not all of the same model"):
            Projection.fit([other, wrong], 2, 0)


def test_the_same_model_at_another_size_is_fine(decoder: Decoder) -> None:
    small_one = features(0)
    large = replace(
        small_one,
        heats={
            "down-12x18": small_one.heats["down-6x9"].repeat(2, 2).repeat(2, 3),
            "up-24x36": small_one.heats["up-12x18"].repeat(2, 2).repeat(2, 3),
        },
    )
    np.testing.assert_allclose(decoder.draw(large)[0][0] > 0.5, decoder.draw(small_one)[0][0] > 0.5, atol=1)
    agree = (decoder.draw(large)[0][0] > 0.5) == (decoder.draw(small_one)[0][0] > 0.5)
    assert agree.mean() > 0.97


def test_layers_of_transformers_are_taken_together() -> None:
    def deep(seed: int, layers: int) -> PixelFeatures:
        fine = features(seed).heats["up-12x18"]
        heats = {f"joint-{number:02d}-12x18": fine for number in range(layers)}
        return replace(features(seed), heats=heats)

    projection = Projection.fit([deep(0, 3)], 1, 0)
    assert projection.groups == ("joint@1/1",)


def test_nothing_to_learn_is_an_error(decoder: Decoder) -> None:
    compact = decoder.projection.compact(features(0))
    nothing = Lesson(compact, objects(0), corrected=True)
    unnamed = Lesson(
        replace(compact, phrases=(PHRASES[2],), heats={k: v[2:] for k, v in compact.heats.items()}),
        objects(0, "car"),
        corrected=True,
    )
    for lessons in ([], [nothing], [unnamed]):
        with pytest.raises(ModelError, match="no image to learn from has an object that its prompt names"):
            Decoder.teach(decoder.projection, lessons, seed=0)
    with pytest.raises(ModelError, match="no features to learn from"):
        Projection.fit([], 0, 0)


def test_damaged_folders_are_refused(decoder: Decoder, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not contain a decoder"):
        Decoder.load(tmp_path)
    decoder.save(tmp_path)
    about = (tmp_path / ABOUT_NAME).read_text()
    (tmp_path / ABOUT_NAME).write_text(about.replace('"format": 1', '"format": 99'))
    with pytest.raises(ModelError, match="another version of DiffuGen; teach again"):
        Decoder.load(tmp_path)
    (tmp_path / ABOUT_NAME).write_text(about[:20])
    with pytest.raises(ModelError, match="does not contain a decoder"):
        Decoder.load(tmp_path)
