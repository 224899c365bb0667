"""The value of settings follows its definition, and images are read and labelled only when needed."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from numpy.typing import NDArray

from diffugen.comparison.matching import match
from diffugen.config.labelling import ScoreWeights
from diffugen.labels import label
from diffugen.records import HeatMaps, Instances
from diffugen.tune.evidence import Evidence, spread
from diffugen.tune.judge import Judge
from tests.support.label_world import SIZE_WH, WEIGHTS, WRONG, World, objects


def test_spread_takes_every_family_once_before_any_twice() -> None:
    world = World()
    evidence = [
        world.evidence(f"{family} {n}", family=f"{family}")
        for family, count in ((0, 30), (1, 4), (2, 1))
        for n in range(count)
    ]
    drawn = list(islice(spread(evidence, 0), 9))
    assert Counter(one.family for one in drawn) == {"0": 4, "1": 4, "2": 1}
    assert [one.family for one in drawn[:3]] != ["0", "0", "0"]
    assert len({one.image_id for one in drawn}) == 9
    assert drawn == list(islice(spread(evidence[::-1], 0), 9)) != list(islice(spread(evidence, 1), 9))
    assert len(list(spread(evidence, 0))) == 35


def test_what_counts_more_is_used_first() -> None:
    """Regression: with many images, hardly any that a person had decided was among those drawn."""
    world = World()
    model = [replace(world.evidence(f"{n}", family=f"{n}"), weight=0.25) for n in range(40)]
    human = [world.evidence(f"human {n}", family=f"{n % 2}") for n in range(6)]
    drawn = list(islice(spread([*model, *human], 0), 10))
    assert [one.weight for one in drawn] == 6 * [1.0] + 4 * [0.25]
    assert len({one.family for one in drawn[:2]}) == 2


def test_worth_and_miscalibration_computed_by_hand() -> None:
    world = World()
    settings = WRONG.changed(threshold="otsu", instances="pieces", accept=0.55)
    right_of_half = world.disc("b").copy()
    right_of_half[:, : SIZE_WH[0] // 2] = False
    evidence = [
        world.evidence("a"),
        Evidence("b", "p", objects(world.disc("b"), right_of_half)),
        Evidence("c", "p", objects()),
    ]
    judgement = Judge(evidence, world.heat_maps, world.image).judge(settings, WEIGHTS)
    labelled = 0
    for worth, miscalibration, one in zip(judgement.worth, judgement.miscalibration, evidence, strict=True):
        everything = label(world.heat_maps(one.image_id), settings.changed(accept=0), WEIGHTS)
        accepted = label(world.heat_maps(one.image_id), settings, WEIGHTS)
        quality = [_partner_ious(labels, one.instances) for labels in (everything, accepted)]
        expected = sum(iou - 0.5 for iou in quality[1]) / max(1, len(one.instances))
        assert worth == pytest.approx(expected, abs=1e-9)
        squares = [(score - iou) ** 2 for score, iou in zip(everything.scores, quality[0], strict=True)]
        assert miscalibration == pytest.approx(np.mean(squares) if squares else 0, abs=1e-9)
        labelled += len(accepted) > 0
    assert judgement.labelled == labelled > 0


def _partner_ious(labels: Instances, truth: Instances) -> list[float]:
    pairs = match(labels, truth, min_iou=0.0, min_iou_swapped=None)
    return [pair.iou if pair.second is not None else 0.0 for pair in pairs if pair.first is not None]


def test_other_score_weights_need_no_labelling() -> None:
    world = World()
    judge = Judge(world.correct(), world.heat_maps, world.image)
    first = judge.judge(WRONG, WEIGHTS)
    world.read.clear()
    again = judge.judge(WRONG, ScoreWeights(box_size=5.0))
    assert not world.read and (first.worth == again.worth).all(), "all labels are accepted"
    assert (first.miscalibration != again.miscalibration).any()
    changed = WRONG.changed(accept=0.7), ScoreWeights(box_size=5.0)
    fewer = judge.judge(*changed)
    assert not world.read and (fewer.worth != first.worth).any()
    fresh = Judge(world.correct(), world.heat_maps, world.image).judge(*changed)
    assert (fresh.worth == fewer.worth).all() and (fresh.miscalibration == fewer.miscalibration).all()
    assert (fewer.miscalibration == again.miscalibration).all(), "that of all labels, accepted or not"


def test_heat_walks_along_the_self_attention_in_tuning_too() -> None:
    world = World()
    bottom_up = np.eye(96).reshape(8, 12, 8, 12)[::-1].astype(np.float16)

    def heat_maps(image_id: str) -> HeatMaps:
        return replace(world.heat_maps(image_id), self_attention=bottom_up)

    judge = Judge(world.correct(), heat_maps, world.image)
    settings = WRONG.changed(groups={"up@*": 1.0}, threshold="otsu")
    still, once, back = (
        judge.judge(settings.changed(self_attention=steps), WEIGHTS).worth.mean() for steps in (0, 1, 2)
    )
    assert once < 0.5 * still and back == pytest.approx(still, rel=0.2)


def test_pixels_are_read_once() -> None:
    world, asked = World(), []

    def image(image_id: str) -> NDArray[np.uint8]:
        asked.append(image_id)
        return world.image(image_id)

    judge = Judge(world.correct(), world.heat_maps, image)
    judge.judge(WRONG, WEIGHTS)
    judge.judge(WRONG.changed(refine="crf"), WEIGHTS)
    judge.judge(WRONG.changed(refine="crf", threshold=0.5), WEIGHTS)
    assert len(asked) == len(set(asked)) == 16


def test_a_term_that_orders_labels_wrongly_is_contradicted() -> None:
    """Large discs are labelled badly here, small ones well, so a large box says nothing good."""
    world = World()
    settings = WRONG.changed(threshold="otsu", groups={"up@*": 1.0, "down@*": 0.0})
    evidence = []
    for number in range(40):
        name = f"image {number}"
        disc = world.disc(name, grow=1.0 if number % 2 else 2.5)
        evidence.append(world.evidence(name, disc))
    judge = Judge(evidence, world.heat_maps, world.image)
    everything = judge.contradicted(settings)
    few = Judge(evidence[:4], world.heat_maps, world.image).contradicted(settings)
    assert "heat_intensity" not in everything and few <= everything
    honest = Judge(world.correct(40), world.heat_maps, world.image)
    assert len(honest.contradicted(settings)) <= 2


def test_a_persons_labels_count_more_than_a_detectors() -> None:
    world = World()
    evidence = [world.evidence("a"), replace(world.evidence("b"), weight=0.25)]
    assert Judge(evidence, world.heat_maps, world.image).weights.tolist() == [1.6, 0.4]
