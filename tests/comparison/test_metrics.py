"""The measures match values computed by hand, on images that are not square."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, replace

import numpy as np
import pytest
from scipy import stats

from diffugen.comparison.metrics import (
    AveragePrecision,
    ClassQuality,
    average_precision,
    false_finds,
    image_error,
    label_quality,
    lead_error,
    reliability,
    spearman,
)
from diffugen.errors import DiffugenError
from diffugen.records import Instances
from tests.support.boxes import HEIGHT, WIDTH, approx, box_mask, instances

# Near the right edge, so swapping width and height would lose them.
EIGHT, FIVE_OF_EIGHT = (30, 10, 38, 20), (30, 10, 35, 20)
SMALL, AWAY = (2, 2, 6, 6), (12, 3, 18, 9)


def test_average_precision_computed_by_hand() -> None:
    pairs = [
        (
            instances(("car", SMALL, 1), ("car", EIGHT, 1)),
            instances(("car", SMALL, 0.9), ("car", FIVE_OF_EIGHT, 0.7)),
        ),
        (instances(("car", EIGHT, 1)), instances(("car", AWAY, 0.8))),
    ]
    # By falling confidence: a true positive, a false positive, and a detection with IoU .625. Precision is 1
    # up to recall 1/3 (34 of COCO's 101 recall points: 0 to .33) and, up to IoU .60, 2/3 up to recall 2/3 (33
    # points: .34 to .66). The third object is never detected.
    upto60, above = (34 + 33 * 2 / 3) / 101, 34 / 101
    for of in ("mask", "box"):
        result = average_precision(pairs, of=of)
        assert result.ap50 == approx(upto60)
        assert result.ap50_95 == approx((3 * upto60 + 7 * above) / 10)
        assert result.ap50_by_class == {"car": result.ap50}


def test_holes_matter_for_masks_but_not_for_boxes() -> None:
    ring = box_mask((20, 4, 34, 18), holes=((21, 5, 33, 17),))
    pairs = [(instances(("car", ring, 1)), instances(("car", (20, 4, 34, 18), 0.9)))]
    assert average_precision(pairs).ap50 == 0
    assert average_precision(pairs, of="box").ap50_95 == approx(1)
    assert average_precision([(pairs[0][0], instances(("car", ring, 0.2)))]).ap50_95 == approx(1)


def test_each_class_has_its_own_ap_and_absent_classes_have_none() -> None:
    truth = instances(("car", EIGHT, 1), ("piano", SMALL, 1))
    predicted = instances(("car", EIGHT, 0.9), ("cone", SMALL, 0.8))
    result = average_precision([(truth, predicted)])
    assert result.ap50_by_class == {"car": approx(1), "cone": None, "piano": 0}
    assert result.ap50_95_by_class == {"car": approx(1), "cone": None, "piano": 0}
    assert result.ap50 == approx(0.5)


def test_standard_error_of_a_lead_computed_by_hand() -> None:
    """Of four images with an object each, one detector misses the first; the other misses none."""
    found = (instances(("car", EIGHT, 1)), instances(("car", EIGHT, 0.9)))
    missed = (found[0], instances())
    lag = 34 / 101  # without one of the other images: recall 2/3 reaches 67 of COCO's 101 points
    assert lead_error([missed, *[found] * 3], [found] * 4) == approx(0.75 * lag)
    assert lead_error([found] * 4, [found] * 4) == 0
    assert lead_error([missed], [found]) == lead_error([], []) == 1


NOTHING = AveragePrecision(None, None, {}, {})
EMPTY_CASES = {
    "no images": ([], NOTHING),
    "nothing on either side": ([(instances(), instances())], NOTHING),
    "no truth": (
        [(instances(), instances(("car", SMALL, 1)))],
        AveragePrecision(None, None, {"car": None}, {"car": None}),
    ),
    "no predictions": (
        [(instances(("car", SMALL, 1)), instances())],
        AveragePrecision(0, 0, {"car": 0}, {"car": 0}),
    ),
}


@pytest.mark.parametrize(("pairs", "expected"), EMPTY_CASES.values(), ids=EMPTY_CASES.keys())
@pytest.mark.parametrize("of", ["mask", "box"])
def test_empty_sides(pairs: list[tuple[Instances, Instances]], expected: AveragePrecision, of: str) -> None:
    assert average_precision(pairs, of=of) == expected  # type: ignore[arg-type]


def test_false_positives_in_images_without_objects_lower_precision() -> None:
    good = (instances(("car", EIGHT, 1)), instances(("car", EIGHT, 0.5)))
    background = (instances(), instances(("car", SMALL, 0.9)))
    assert average_precision([good]).ap50 == approx(1)
    assert average_precision([good, background]).ap50 == approx(0.5)


def test_a_second_detection_of_an_object_is_a_false_positive() -> None:
    truth, twice = (
        instances(("car", EIGHT, 1), ("car", SMALL, 1)),
        instances(("car", EIGHT, 0.9), ("car", EIGHT, 0.8)),
    )
    # Precision 1 up to recall 1/2: 51 of the 101 recall points.
    assert average_precision([(truth, twice)]).ap50 == approx(51 / 101)


def test_average_precision_prints_nothing_and_does_not_change_its_input(
    capsys: pytest.CaptureFixture[str],
) -> None:
    truth, predicted = instances(("car", EIGHT, 1)), instances(("car", EIGHT, 0.9))
    before = json.dumps([truth.rles, predicted.rles])
    average_precision([(truth, predicted)])
    assert capsys.readouterr() == ("", "")
    assert json.dumps([truth.rles, predicted.rles]) == before


def test_label_quality_computed_by_hand() -> None:
    pairs = [
        (
            instances(("car", EIGHT, 1), ("car", SMALL, 1), ("piano", AWAY, 1)),
            instances(("car", FIVE_OF_EIGHT, 0.9), ("piano", AWAY, 0.8), ("cone", SMALL, 0.7)),
        ),
        (instances(), instances(("piano", (20, 2, 26, 14), 0.6))),
    ]
    quality = label_quality(iter(pairs))
    assert quality.by_class == {
        # 50 of the 80 + 16 pixels covered by ground truth or labels.
        "car": ClassQuality(2, 1, approx(50 / 96), approx(0.625), approx(0.3125)),
        "cone": ClassQuality(0, 1, None, None, None),
        "piano": ClassQuality(1, 2, approx(36 / (36 + 72)), 0.5, 1.0),
    }
    assert quality.pixel_iou == approx((50 / 96 + 36 / 108) / 2)
    assert quality.label_iou == approx((0.625 + 0.5) / 2)
    assert quality.object_iou == approx((0.3125 + 1) / 2)


def test_label_quality_respects_holes_and_counts_overlapping_labels_once() -> None:
    ring = box_mask((20, 4, 30, 14), holes=((22, 6, 28, 12),))
    truth = instances(("car", ring, 1))
    filled = label_quality([(truth, instances(("car", (20, 4, 30, 14), 1)))]).by_class["car"]
    assert (filled.pixel_iou, filled.object_iou) == (approx(0.64), approx(0.64))
    twice = label_quality([(truth, instances(("car", ring, 1), ("car", ring, 1)))]).by_class["car"]
    assert (twice.pixel_iou, twice.label_iou, twice.object_iou) == (1.0, 0.5, 1.0)


def test_a_label_is_matched_within_its_class_even_if_another_class_overlaps_more() -> None:
    truth = instances(("car", FIVE_OF_EIGHT, 1), ("truck", EIGHT, 1))
    quality = label_quality([(truth, instances(("car", EIGHT, 1)))]).by_class
    assert quality["car"].label_iou == approx(0.625)
    assert quality["truck"] == ClassQuality(1, 0, 0.0, None, 0.0)


def test_empty_masks_do_not_give_nan() -> None:
    nothing = instances(("car", box_mask(), 0.5))
    assert label_quality([(nothing, nothing)]).by_class["car"] == ClassQuality(1, 1, None, 0.0, 0.0)
    assert label_quality([]).pixel_iou is None
    assert average_precision([(nothing, nothing)]).ap50 == 0


def test_reliability_computed_by_hand() -> None:
    truth = instances(("car", EIGHT, 1), ("piano", SMALL, 1))
    pairs = [
        (truth, instances(("car", EIGHT, 1.0), ("piano", SMALL, 0.8))),  # IoU 1, 1
        (truth, instances(("car", FIVE_OF_EIGHT, 0.5), ("piano", AWAY, 0.1))),  # IoU .625, 0
        (instances(), instances(("car", AWAY, 0.3))),  # 0
    ]
    result = reliability(iter(pairs), bins=4)
    assert [(b.low, b.high, b.count) for b in result.bins] == [
        (0, 0.25, 1),
        (0.25, 0.5, 1),
        (0.5, 0.75, 1),
        (0.75, 1, 2),
    ]
    assert [b.mean_score for b in result.bins] == approx([0.1, 0.3, 0.5, 0.9])
    assert [b.mean_iou for b in result.bins] == approx([0, 0, 0.625, 1])
    assert result.count == 5
    assert result.calibration_error == approx((0.1 + 0.3 + 0.125 + 2 * 0.1) / 5)
    assert result.spearman == approx(stats.spearmanr([1, 0.8, 0.5, 0.1, 0.3], [1, 1, 0.625, 0, 0]).statistic)


def test_reliability_without_labels() -> None:
    result = reliability([(instances(("car", EIGHT, 1)), instances())], bins=2)
    assert (result.count, result.calibration_error, result.spearman) == (0, None, None)
    assert [(b.count, b.mean_score, b.mean_iou) for b in result.bins] == [(0, None, None)] * 2


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([], [], None),
        ([0.5], [0.5], None),
        ([0.2, 0.2], [0.1, 0.9], None),
        ([0.1, 0.2, 0.9], [0.3, 0.4, 0.41], 1.0),
        ([0.1, 0.2, 0.9], [3, 2, 1], -1.0),
        ([0.1, 0.9], [0.2, 0.4], 1.0),
        # Ranks 1, 2.5, 2.5, 4 and 1.5, 1.5, 3.5, 3.5: covariance 3, variances 4.5 and 4.
        ([1, 2, 2, 3], [1, 1, 2, 2], 3 / 18**0.5),
    ],
)
def test_spearman(first: list[float], second: list[float], expected: float | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = spearman(np.array(first), np.array(second))
    assert found == (expected if expected is None else approx(expected))


def test_results_can_be_written_as_json_without_nan() -> None:
    pairs = [(instances(("car", EIGHT, 1)), instances(("cone", SMALL, 0.8), ("car", FIVE_OF_EIGHT, 0.25)))]
    for result in (average_precision(pairs), label_quality(pairs), reliability(pairs)):
        plain = asdict(result)
        assert json.loads(json.dumps(plain, allow_nan=False)) == json.loads(json.dumps(plain))


def test_errors_name_the_mistake() -> None:
    turned = Instances((HEIGHT, WIDTH), (), (), np.zeros(0))
    pairs = [(instances(("car", EIGHT, 1)), turned)]
    for measure in (average_precision, label_quality, reliability):
        with pytest.raises(DiffugenError, match="40 x 24 and 24 x 40"):
            measure(pairs)
    with pytest.raises(DiffugenError, match="at least one bin, got 0"):
        reliability([], bins=0)


def test_the_curve_and_its_best_confidence_computed_by_hand() -> None:
    """By falling confidence: right (.9), wrong (.8), right (.6), of three objects."""
    pairs = [
        (
            instances(("car", SMALL, 1), ("car", EIGHT, 1)),
            instances(("car", SMALL, 0.9), ("car", EIGHT, 0.6)),
        ),
        (instances(("car", EIGHT, 1)), instances(("car", AWAY, 0.8))),
    ]
    curve = average_precision(pairs).curves["car"]
    assert curve.precision[:34] == approx((1.0,) * 34) and curve.precision[67:] == (0.0,) * 34
    assert curve.precision[34:67] == approx((2 / 3,) * 33)
    assert {curve.confidence[index] for index in (0, 33)} == {0.9} and curve.confidence[66] == 0.6
    confidence, precision, recall = curve.best()
    assert (confidence, precision, recall) == (0.6, approx(2 / 3), 0.66)
    assert average_precision([(instances(), instances(("car", SMALL, 1)))]).curves == {}


def test_false_finds_count_images_without_the_class() -> None:
    empty, car = instances(), instances(("car", SMALL, 1))
    pairs = [
        (car, instances(("car", SMALL, 0.9), ("car", AWAY, 0.9))),
        (empty, instances(("car", SMALL, 0.5), ("car", AWAY, 0.5))),
        (empty, instances(("car", SMALL, 0.49), ("piano", AWAY, 0.9))),
        (empty, empty),
    ]
    found = false_finds(pairs, ["car", "piano", "cone"], 0.5)
    assert [(one.images, one.found) for one in found.values()] == [(3, 1), (4, 1), (4, 0)]
    assert found["car"].share == approx(1 / 3) and false_finds([], ["car"], 0.5)["car"].share is None


def test_rank_correlation_with_weights() -> None:
    values = np.array([1.0, 2.0, 3.0, 4.0])
    turned = np.array([1.0, 2.0, 4.0, 3.0])
    assert spearman(values, -values, np.array([1.0, 2.0, 3.0, 4.0])) == approx(-1)
    light, heavy = (spearman(values, turned, np.array([1.0, 1.0, one, one])) for one in (0.1, 10.0))
    assert light is not None and heavy is not None and heavy < 0.8 < light
    assert spearman(values, np.ones(4), np.ones(4)) is None is spearman(values[:1], values[:1])


def test_what_is_found_in_a_crowd_is_neither_right_nor_wrong() -> None:
    [crowd] = instances(("car", (10, 0, 30, 12), 1)).rles
    truth = replace(instances(("car", EIGHT, 1)), crowds=(("car", crowd),))
    found = instances(("car", AWAY, 0.9), ("car", EIGHT, 0.8))
    assert AWAY < (30, 12) and average_precision([(instances(("car", EIGHT, 1)), found)]).ap50 == approx(0.5)
    for of in ("mask", "box"):
        assert average_precision([(truth, found)], of=of).ap50_95 == approx(1)
    assert image_error(truth, found) == 0 and image_error(replace(truth, crowds=()), found) == 1
    # Of another class, or outside of the crowd, it is wrong all the same.
    wrong = instances(("car", SMALL, 0.9), ("piano", AWAY, 0.9), ("car", EIGHT, 0.8))
    assert average_precision([(truth, wrong)]).ap50 == approx(0.5) and image_error(truth, wrong) == 2
    empty = replace(instances(), crowds=truth.crowds)
    counts = false_finds([(empty, found), (instances(), instances())], ["car", "piano"], 0.5)
    assert (counts["car"].images, counts["car"].found, counts["piano"].images) == (1, 0, 2)
    assert average_precision([(empty, found)]).ap50 is None
