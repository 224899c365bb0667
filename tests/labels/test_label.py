"""Labels from synthetic heat maps: both methods, several classes and instances, and cases without labels."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from pydantic import ValidationError

from diffugen.config.labelling import HEAT_TERMS, DecoderRef, Labelling, LabelSettings, ScoreWeights
from diffugen.errors import ConfigError
from diffugen.labels import label
from diffugen.labels.shapes import areas, boxes, decode, encode, iou_matrix
from diffugen.records import HeatMaps, Phrase, content_id

WEIGHTS = ScoreWeights()
PAPER = LabelSettings(method="paper")
COMPETE = LabelSettings(method="compete", rival_weight=0.4)
BOTH = pytest.mark.parametrize("settings", [PAPER, COMPETE], ids=["paper", "compete"])


def disc(height, width, x, y, radius):
    """1 in a disc around (x, y), falling softly to 0; x, y and radius (in heights) are relative."""
    rows, columns = np.mgrid[:height, :width]
    distance = np.hypot(((columns + 0.5) / width - x) * width / height, (rows + 0.5) / height - y)
    return 1 / (1 + np.exp((distance - radius) * 60))


def make_maps(scenes, size_wh=(96, 64), background=(), seed=0, peak=2e-3):
    """Heat maps of phrases: ``scenes`` are pairs of a class name and a function (h, w) -> map in [0, 1]."""
    rng = np.random.default_rng(seed)
    drawn = [(Phrase(name, name), draw) for name, draw in scenes]
    drawn += [(Phrase(name, None), draw) for name, draw in background]
    maps = {}
    for place, scale in (("down", 4), ("up", 4), ("up", 8)):
        h, w = math.ceil(size_wh[1] / scale), math.ceil(size_wh[0] / scale)
        stack = np.stack([np.stack([draw(h, w)] * 3) for _, draw in drawn])
        maps[f"{place}-{h}x{w}"] = (peak * (0.1 + 0.8 * stack + 0.05 * rng.random(stack.shape))).astype(
            np.float16
        )
    return HeatMaps("image", size_wh, tuple(phrase for phrase, _ in drawn), maps)


def at(x, y, radius):
    return lambda h, w: disc(h, w, x, y, radius)


def both(*draws):
    return lambda h, w: np.maximum.reduce([draw(h, w) for draw in draws])


def truth(size_wh, x, y, radius):
    return disc(size_wh[1], size_wh[0], x, y, radius) > 0.5


def iou(rle, mask):
    found = decode(rle)
    return (found & mask).sum() / (found | mask).sum()


@BOTH
@pytest.mark.parametrize("size_wh", [(96, 64), (64, 96), (200, 88), (512, 320)])
def test_two_classes_are_found_where_they_are(settings, size_wh):
    heat_maps = make_maps([("car", at(0.25, 0.6, 0.2)), ("piano", at(0.75, 0.4, 0.25))], size_wh)
    instances = label(heat_maps, settings, WEIGHTS)
    assert instances.class_names == ("car", "piano") and instances.size_wh == size_wh
    assert iou(instances.rles[0], truth(size_wh, 0.25, 0.6, 0.2)) > 0.75
    assert iou(instances.rles[1], truth(size_wh, 0.75, 0.4, 0.25)) > 0.75
    assert all((*terms, "edge") == HEAT_TERMS for terms in instances.terms), "no image, no edges"
    assert all(0.4 < value < 1 for value in instances.scores)


@BOTH
def test_the_instances_setting_splits_or_joins_pieces(settings):
    heat_maps = make_maps([("car", both(at(0.2, 0.5, 0.16), at(0.7, 0.5, 0.25)))])

    def by(rule):
        return label(heat_maps, LabelSettings(method=settings.method, instances=rule), WEIGHTS)

    pieces, one, largest = by("pieces"), by("one"), by("largest")
    assert pieces.class_names == ("car", "car")
    assert boxes(pieces.rles)[0, 0] > 40 > boxes(pieces.rles)[1, 2], "large before small"
    assert len(one) == 1 and areas(one.rles)[0] == areas(pieces.rles).sum()
    assert largest.rles == pieces.rles[:1]
    assert one.terms[0]["compactness"] < pieces.terms[0]["compactness"]


def ring(h, w):
    return disc(h, w, 0.5, 0.5, 0.4) - disc(h, w, 0.5, 0.5, 0.2)


def test_holes_are_filled_by_the_paper_and_kept_by_compete():
    heat_maps = make_maps([("tyre", ring)], (192, 128))
    filled, kept = (label(heat_maps, settings, WEIGHTS) for settings in (PAPER, COMPETE))
    assert len(filled) == len(kept) == 1
    assert decode(filled.rles[0])[64, 96] and not decode(kept.rles[0])[64, 96]
    np.testing.assert_array_equal(boxes(filled.rles), boxes(kept.rles))


def leaky_scene():
    """The car's word leaks onto the piano at two thirds of its strength, enough to pass any threshold."""
    car, piano = at(0.25, 0.5, 0.2), at(0.75, 0.5, 0.25)
    return make_maps([("car", lambda h, w: np.maximum(car(h, w), 0.66 * piano(h, w))), ("piano", piano)])


def test_compete_gives_leaked_heat_to_its_owner():
    paper, compete = (label(leaky_scene(), settings, WEIGHTS) for settings in (PAPER, COMPETE))
    assert sorted(paper.class_names) == ["car", "car", "piano"]
    assert sorted(compete.class_names) == ["car", "piano"]
    assert iou(compete.rles[0], truth((96, 64), 0.25, 0.5, 0.2)) > 0.75
    assert iou(compete.rles[1], truth((96, 64), 0.75, 0.5, 0.25)) > 0.75


def test_background_words_compete_but_are_not_labelled():
    car, road = at(0.3, 0.5, 0.2), at(0.8, 0.6, 0.35)
    scene = [("car", lambda h, w: np.maximum(car(h, w), 0.7 * road(h, w)))]
    against = COMPETE.changed(background_weight=0.4)
    alone = label(make_maps(scene), against, WEIGHTS)
    against_road = label(make_maps(scene, background=[("road", road)]), against, WEIGHTS)
    ignored = label(make_maps(scene, background=[("road", road)]), COMPETE, WEIGHTS)
    assert len(ignored) == len(alone) == 2 and against_road.class_names == ("car",)
    assert iou(against_road.rles[0], truth((96, 64), 0.3, 0.5, 0.2)) > 0.7


@pytest.mark.parametrize("noise", ["flat", "rough"])
def test_a_background_word_without_a_place_takes_little(noise):
    rng = np.random.default_rng(3)
    night = (lambda h, w: np.full((h, w), 0.5)) if noise == "flat" else (lambda h, w: rng.random((h, w)))
    instances = label(
        make_maps([("piano", at(0.6, 0.5, 0.3))], background=[("night", night)]),
        COMPETE.changed(background_weight=0.4),
        WEIGHTS,
    )
    assert iou(instances.rles[0], truth((96, 64), 0.6, 0.5, 0.3)) > (0.75 if noise == "flat" else 0.6)


@BOTH
def test_phrases_of_one_class_are_joined(settings):
    scenes = [("piano", at(0.2, 0.5, 0.2)), ("piano", at(0.75, 0.5, 0.2))]
    instances = label(make_maps(scenes), settings, WEIGHTS)
    assert instances.class_names == ("piano", "piano")
    assert all(terms["margin"] == 1 for terms in instances.terms), "phrases of one class do not compete"


@BOTH
def test_empty_and_constant_maps_give_no_instances(settings):
    for value in (0.0, 1e-3):
        maps = {"up-16x24": np.full((2, 3, 16, 24), value, np.float16)}
        phrases = (Phrase("car", "car"), Phrase("road", None))
        instances = label(HeatMaps("image", (96, 64), phrases, maps), settings, WEIGHTS)
        assert len(instances) == 0 and instances.size_wh == (96, 64)


@BOTH
def test_an_empty_map_does_not_disturb_the_others(settings):
    heat_maps = make_maps([("car", at(0.3, 0.5, 0.2)), ("piano", at(0.7, 0.5, 0.2))])
    alone = make_maps([("piano", at(0.7, 0.5, 0.2))])
    for array in heat_maps.maps.values():
        array[0] = 0
    instances = label(heat_maps, settings, WEIGHTS)
    assert instances.class_names == ("piano",)
    assert iou(instances.rles[0], decode(label(alone, settings, WEIGHTS).rles[0])) > 0.9


@BOTH
def test_background_phrases_alone_give_no_instances(settings):
    assert len(label(make_maps([], background=[("road", at(0.5, 0.5, 0.3))]), settings, WEIGHTS)) == 0


@BOTH
def test_area_limits_drop_specks_and_large_instances(settings):
    heat_maps = make_maps([("car", both(at(0.2, 0.5, 0.1), at(0.7, 0.5, 0.35)))])

    def sizes(**limits):
        chosen = LabelSettings(method=settings.method, erode_frac=0, dilate_frac=0, **limits)
        return areas(label(heat_maps, chosen, WEIGHTS).rles)

    everything = sizes(min_area_frac=0)
    least, most = (everything.min() + 1) / (96 * 64), (everything.max() - 1) / (96 * 64)
    assert sizes(min_area_frac=least).tolist() == everything[:1].tolist()
    assert sizes(max_area_frac=most).tolist() == everything[1:].tolist()
    assert sizes(max_area_frac=most, instances="largest").tolist() == []


def test_threshold_and_morphology_change_the_area():
    heat_maps = make_maps([("car", at(0.5, 0.5, 0.3))])

    def area(**changes):
        return areas(label(heat_maps, LabelSettings(**changes), WEIGHTS).rles).sum()

    assert area(threshold=0.3) > area(threshold=0.6) > area(threshold=0.9) > 0
    assert area(dilate_frac=0.05) > area() > area(erode_frac=0.05)


def test_groups_and_step_weights_decide_the_place():
    heat_maps = make_maps([("car", at(0.3, 0.5, 0.2))])
    heat_maps.maps["up-16x24"][:, 2] = 2e-3 * disc(16, 24, 0.8, 0.5, 0.2)
    late = label(heat_maps, LabelSettings(groups={"up@1/1": 1.0}, step_weights=(0.0, 0.0, 1.0)), WEIGHTS)
    early = label(heat_maps, LabelSettings(groups={"up@1/1": 1.0}, step_weights=(1.0, 1.0, 0.0)), WEIGHTS)
    assert boxes(late.rles)[0, 0] > 48 > boxes(early.rles)[0, 2]
    with pytest.raises(ConfigError, match="up-16x24"):
        label(heat_maps, LabelSettings(groups={"joint-*": 1.0}), WEIGHTS)


def test_self_attention_decides_the_place_and_the_name_of_the_labels():
    maps = {"up-8x12": np.zeros((1, 3, 8, 12), np.float16)}
    maps["up-8x12"][..., 1:3, 2:6] = 4e-3
    upside_down = np.eye(96).reshape(8, 12, 8, 12)[::-1].astype(np.float16)
    heat_maps = HeatMaps("a", (96, 64), (Phrase("car", "car"),), maps, self_attention=upside_down)
    [(_, upper, _, lower)] = boxes(label(heat_maps, PAPER, WEIGHTS).rles)
    [(_, other, _, end)] = boxes(label(heat_maps, PAPER.changed(self_attention=1), WEIGHTS).rles)
    assert (64 - end, 64 - other) == pytest.approx((upper, lower), abs=1) and other > upper
    with pytest.raises(ConfigError, match="keep_self_attention"):
        label(dataclasses.replace(heat_maps, self_attention=None), PAPER.changed(self_attention=1), WEIGHTS)


def test_the_name_of_a_labelling_has_self_attention_only_if_it_is_used():
    methods = [Labelling(PAPER.changed(self_attention=steps), WEIGHTS).method for steps in (0, 1, 2)]
    assert len(set(methods)) == 3
    later = {"source", "detector_confidence", "self_attention", "segmenter"}
    known = PAPER.model_dump(mode="json", exclude={*later, "rival_weight", "background_weight"})
    weights = WEIGHTS.model_dump(exclude={"edge", "certainty"})
    assert methods[0] == f"attention-{content_id(known, weights)}", "as before there was any"


def test_the_name_of_a_labelling_has_certainty_only_if_a_decoder_draws():
    certain, decoder = WEIGHTS.changed(certainty=1.0), DecoderRef("decoders/a", "a")
    assert Labelling(PAPER, certain).method == Labelling(PAPER, WEIGHTS).method
    drawn = [Labelling(PAPER, each, decoder=decoder).method for each in (certain, WEIGHTS)]
    assert len(set(drawn)) == 2


def test_weights_decide_the_scores_and_accept_drops_low_ones():
    heat_maps = make_maps([("car", both(at(0.2, 0.5, 0.14), at(0.7, 0.5, 0.3)))])
    by_size = ScoreWeights(box_size=1, heat_intensity=0, contrast=0, compactness=0, margin=0)
    scores = label(heat_maps, COMPETE, by_size).scores
    assert scores[0] > scores[1]
    kept = label(heat_maps, LabelSettings(accept=float(scores.mean())), by_size)
    assert kept.scores.tolist() == scores[:1].tolist()


@BOTH
def test_labels_are_the_same_every_time(settings):
    first, second = (label(leaky_scene(), settings, WEIGHTS) for _ in range(2))
    assert first.rles == second.rles and first.terms == second.terms
    assert np.allclose(np.diag(iou_matrix(first.rles, second.rles)), 1)


def test_settings_as_json_round_trip_and_do_not_depend_on_the_order_of_groups():
    settings = LabelSettings(groups={"up@1/2": 1.0, "down-*": 0.5}, threshold=0.4)
    reordered = LabelSettings(groups={"down-*": 0.5, "up@1/2": 1.0}, threshold=0.4)
    values = settings.model_dump(mode="json")
    assert json.loads(json.dumps(values)) == values
    assert content_id(values) == content_id(reordered.model_dump(mode="json"))
    assert content_id(values) != content_id(LabelSettings().model_dump(mode="json"))
    assert LabelSettings.model_validate_json(json.dumps(values)) == settings == reordered


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        ({"method": "papr"}, "method", ["'papr'", "'paper' or 'compete'"]),
        ({"refine": "grabcut"}, "refine", ["'grabcut'", "'none', 'crf' or 'sam'"]),
        ({"instances": "all"}, "instances", ["'all'", "'pieces', 'one' or 'largest'"]),
        ({"threshold": 1.5}, "threshold", ["1.5", "'otsu'", "less than 1"]),
        ({"threshold": 0.0}, "threshold", ["0.0", "'otsu'", "greater than 0"]),
        ({"erode_frac": -0.1}, "erode_frac", ["-0.1"]),
        ({"erode_frac": 0.2}, "erode_frac", ["less than 0.2"]),
        ({"dilate_frac": 0.2}, "dilate_frac", ["less than 0.2"]),
        ({"dilate_frac": float("nan")}, "dilate_frac", ["nan"]),
        ({"min_area_frac": 0.5, "max_area_frac": 0.4}, "max_area_frac", ["min_area_frac", "0.5", "0.4"]),
        ({"groups": {}}, "groups", ["at least one weight above 0"]),
        ({"groups": {"*": 0.0}}, "groups", ["at least one weight above 0"]),
        ({"groups": {"*": float("inf")}}, "groups", ["inf"]),
        ({"step_weights": (1, 1)}, "step_weights", ["required"]),
        ({"step_weights": (1, 1, -1)}, "step_weights", ["-1"]),
        ({"step_weights": (0, 0, 0)}, "step_weights", ["at least one weight above 0"]),
        ({"accept": 2}, "accept", ["2", "less than or equal to 1"]),
    ],
)
def test_wrong_settings_are_refused(changes, key, words):
    with pytest.raises(ValidationError) as failure:
        LabelSettings(**changes)
    assert {error["loc"][0] for error in failure.value.errors()} == {key}
    assert all(word in str(failure.value) for word in words), str(failure.value)


def test_all_wrong_settings_are_reported_together():
    with pytest.raises(ValidationError) as failure:
        LabelSettings(method="x", threshold=7, accept=-1)  # type: ignore[arg-type]
    assert {error["loc"][0] for error in failure.value.errors()} == {"method", "threshold", "accept"}


def test_labels_stay_within_the_region() -> None:
    """Of an object in the region and a hotter one outside, only the first is labelled."""
    heat = np.zeros((40, 60), dtype=np.float32)
    heat[5:15, 40:55] = 4e-3
    heat[25:37, 10:30] = 2e-3
    region = np.zeros((40, 60), dtype=bool)
    region[20:, :40] = True
    maps = {"up-40x60": np.repeat(heat[None, None], 3, axis=1).astype(np.float16)}
    settings = LabelSettings(method="paper", erode_frac=0, dilate_frac=0.1)
    for method in ("paper", "compete"):
        settings = settings.changed(method=method)
        everywhere = label(HeatMaps("a", (60, 40), (Phrase("car", "car"),), maps), settings, ScoreWeights())
        inside = label(
            HeatMaps("a", (60, 40), (Phrase("car", "car"),), maps, region=encode(region)),
            settings,
            ScoreWeights(),
        )
        assert any(decode(rle)[10, 47] for rle in everywhere.rles)
        [mask] = [decode(rle) for rle in inside.rles]
        assert mask[25:37, 10:30].all() and not mask[~region].any()
