"""Tuning finds better settings on fresh images, continues after interruptions, and refuses bad input."""

from __future__ import annotations

import dataclasses
import json
import logging
import sqlite3
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from diffugen.config.labelling import TERMS, LabelSettings, ScoreWeights
from diffugen.errors import ConfigError, DiffugenError, StoreError
from diffugen.records import HeatMaps
from diffugen.tune import Change, Evidence, Outcome, tune
from diffugen.tune.evidence import spread
from diffugen.tune.judge import Judge
from tests.support.colour_segmenter import ColourSegmenter
from tests.support.label_world import TRIALS, WEIGHTS, WRONG, World, objects


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    """The outcome of a study that was not interrupted, and its file."""
    storage = tmp_path_factory.mktemp("whole") / "tune.sqlite"
    return World().tune(World().correct(), storage), storage


def drawn_by_a_decoder(maps: HeatMaps) -> HeatMaps:
    """Return heat maps as a decoder draws the place that "up" shows, with some doubt in the left half."""
    [up] = [array * 500 for name, array in maps.maps.items() if name.startswith("up")]
    doubt = np.zeros_like(up)
    doubt[..., : up.shape[-1] // 2] = 0.3
    grid = "x".join(map(str, up.shape[-2:]))
    return dataclasses.replace(maps, maps={f"taught-{grid}": up, f"doubt-{grid}": doubt})


# ---------------------------------------------------------------- what tuning finds


def test_finds_the_right_layer_group_and_labels_fresh_images_better(tmp_path: Path) -> None:
    world, trials = World(), 30
    tuned = world.tune(world.correct(), tmp_path / "tune.sqlite", trials=trials)
    assert tuned.adopted and "exceeds" in tuned.reason
    assert tuned.settings.groups["up@*"] > tuned.settings.groups["down@*"]
    assert world.fresh_iou(tuned.settings, tuned.weights) > world.fresh_iou(WRONG, WEIGHTS) + 0.2
    assert tuned.worth.before is not None and tuned.worth.after is not None
    assert tuned.worth.after > tuned.worth.before + 0.1
    assert (tuned.images, tuned.trials) == (16, 2 * trials)
    untouched = ("min_area_frac", "max_area_frac", "instances", "accept")
    assert all(getattr(tuned.settings, name) == getattr(WRONG, name) for name in untouched)
    json.dumps([dict(tuned.settings), dict(tuned.weights), tuned.worth.after], allow_nan=False)


@pytest.mark.parametrize("start", [0.25, 0.8])
def test_corrects_a_threshold_that_is_too_low_or_too_high(tmp_path: Path, start: float) -> None:
    world = World((24, 36))
    settings = LabelSettings(method="paper", threshold=start, groups={"up@*": 1.0})
    tuned = world.tune(world.correct(), tmp_path / "tune.sqlite", settings)
    assert tuned.adopted and tuned.settings.groups == settings.groups
    assert world.fresh_iou(tuned.settings, tuned.weights) > world.fresh_iou(settings, WEIGHTS) + 0.1


@pytest.mark.parametrize("seeds", [range(1), pytest.param(range(1, 12), marks=pytest.mark.slow)])
def test_nothing_is_adopted_if_the_evidence_is_noise(tmp_path: Path, seeds: range) -> None:
    world = World()
    for seed in seeds:
        noise = [world.evidence(f"image {n}", world.disc(f"{seed} noise {n}")) for n in range(16)]
        tuned = world.tune(noise, tmp_path / "tune.sqlite", seed=seed)
        assert not tuned.adopted and tuned.settings is WRONG and tuned.weights is WEIGHTS
        assert tuned.worth.after == tuned.worth.before


def test_evidence_without_objects_does_not_lead_to_accepting_nothing(tmp_path: Path) -> None:
    world = World()
    empty = [Evidence(f"image {n}", f"prompt {n}", objects()) for n in range(16)]
    tuned = world.tune(empty, tmp_path / "tune.sqlite")
    assert not tuned.adopted and tuned.worth.before is not None and tuned.worth.before <= -0.5
    assert tuned.settings is WRONG and tuned.weights is WEIGHTS
    assert "no labels" in tuned.reason or "nothing was better" in tuned.reason


@pytest.mark.slow
def test_scarce_and_rough_evidence_does_not_make_fresh_images_worse(tmp_path: Path) -> None:
    world = World()
    settings = LabelSettings(method="paper", threshold=0.55, groups={"up@*": 1.0, "down@*": 0.0})
    before, gains = world.fresh_iou(settings, WEIGHTS), []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        rough = [
            world.evidence(
                f"{seed} {n}",
                np.roll(world.disc(f"{seed} {n}", rng.uniform(0.7, 1.3)), rng.integers(-2, 3), 1),
            )
            for n in range(14)
        ]
        tuned = world.tune(rough, tmp_path / "tune.sqlite", settings, seed=seed)
        gains.append(world.fresh_iou(tuned.settings, tuned.weights) - before)
        if not tuned.adopted:
            assert gains[-1] == 0
    assert np.mean(gains) > -0.005 and min(gains) > -0.05


def test_with_a_segmenter_only_the_score_weights_are_searched(tmp_path: Path) -> None:
    world, segmenter = World(), ColourSegmenter()
    settings = WRONG.changed(refine="sam", threshold=0.7, groups={"up@*": 1.0})
    done: list[tuple[int, int]] = []
    tuned = world.tune(
        world.correct(),
        tmp_path / "tune.sqlite",
        settings,
        segmenter=segmenter,
        on_progress=lambda number, total: done.append((number, total)),
    )
    assert tuned.settings is settings and tuned.trials == 1 + TRIALS
    assert "label settings: kept, because labels.refine is sam" in tuned.reason
    assert tuned.worth.before == tuned.worth.after
    assert len(segmenter.asked) <= 16, "each image is segmented once"
    assert done[0] == (0, 1 + TRIALS) and done[-1] == (1 + TRIALS, 1 + TRIALS)
    rough = world.tune(world.correct(), tmp_path / "tune.sqlite", settings.changed(refine="none"), trials=2)
    assert rough.worth.before is not None and tuned.worth.before is not None
    assert tuned.worth.before > rough.worth.before + 0.1, "outlines are judged, not the masks before"


# ---------------------------------------------------------------- the study


def parameters(storage: Path) -> list[tuple[dict[str, object], float]]:
    """The trials of both searches, those for labels first."""
    trials = []
    for name in sorted(optuna.get_all_study_names(f"sqlite:///{storage}")):
        trials += optuna.load_study(study_name=name, storage=f"sqlite:///{storage}").trials
    assert all(trial.state is optuna.trial.TrialState.COMPLETE for trial in trials)
    return [(trial.params, trial.value) for trial in trials]


def test_the_same_arguments_give_the_same_study_in_any_order_of_the_evidence(
    tmp_path: Path, whole: tuple[Outcome, Path]
) -> None:
    world = World()
    assert world.tune(world.correct()[::-1], tmp_path / "same.sqlite") == whole[0]
    assert parameters(tmp_path / "same.sqlite") == parameters(whole[1])
    world.tune(world.correct(), tmp_path / "other.sqlite", seed=1)
    assert parameters(tmp_path / "other.sqlite") != parameters(whole[1])


class Killed(BaseException):
    pass


@pytest.mark.parametrize("after", [1, 11, TRIALS + 7])
def test_a_killed_study_ends_as_if_it_had_not_been_interrupted(
    tmp_path: Path, whole: tuple[Outcome, Path], after: int
) -> None:
    world, storage = World(), tmp_path / "tune.sqlite"

    def kill(done: int, total: int) -> None:
        if done == after:
            raise Killed

    with pytest.raises(Killed):
        world.tune(world.correct(), storage, on_progress=kill)
    assert parameters(storage) == parameters(whole[1])[:after]
    seen: list[int] = []
    resumed = world.tune(world.correct(), storage, on_progress=lambda done, total: seen.append(done))
    rest = [*range(min(after, TRIALS), TRIALS + 1), *range(max(after, TRIALS), 2 * TRIALS + 1)]
    assert seen == rest, "what was done is not done again"
    assert resumed == whole[0] and parameters(storage) == parameters(whole[1])


def test_a_study_killed_within_a_trial_leaves_nothing_half_done(
    tmp_path: Path, whole: tuple[Outcome, Path]
) -> None:
    world, storage, left = World(), tmp_path / "tune.sqlite", [100]

    def heat_maps(image_id: str) -> HeatMaps:
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return world.heat_maps(image_id)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr("diffugen.tune.matcher.CACHE_BYTES", 0)
        tune(world.correct(), heat_maps, world.image, WRONG, WEIGHTS, storage=storage, trials=TRIALS)
    assert 0 < len(parameters(storage)) < 2 * TRIALS
    assert world.tune(world.correct(), storage) == whole[0] and parameters(storage) == parameters(whole[1])


def test_a_finished_study_continues_with_more_trials_and_answers_for_fewer(
    tmp_path: Path, whole: tuple[Outcome, Path]
) -> None:
    world, storage = World(), tmp_path / "tune.sqlite"
    short = world.tune(world.correct(), storage, trials=5)
    assert short.trials == 10 and parameters(storage)[:5] == parameters(whole[1])[:5]
    world.tune(world.correct(), storage, trials=10)
    assert parameters(storage)[:10] == parameters(whole[1])[:10]
    world.read.clear()
    assert world.tune(world.correct(), storage, trials=5) == short and not world.read


def test_other_evidence_settings_folds_or_seed_start_another_study(tmp_path: Path) -> None:
    world, storage = World(), tmp_path / "tune.sqlite"
    other = [*world.correct()[:-1], world.evidence("image 15", world.disc("image 15", 1.3))]
    right = WRONG.changed(threshold="otsu", groups={"up@*": 1.0, "down@*": 0.5})
    world.tune(world.correct(), storage, right, trials=2)
    world.tune(other, storage, right, trials=2)
    world.tune(world.correct(), storage, right.changed(min_area_frac=0.01), trials=2)
    world.tune(world.correct(), storage, right, trials=2, folds=3)
    world.tune(world.correct(), storage, right, trials=2, seed=1)
    names = optuna.get_all_study_names(f"sqlite:///{storage}")
    assert sorted(name.split("-")[0] for name in names) == ["labels"] * 5 + ["scores"] * 5
    assert len(set(names)) == 10


def test_studies_of_earlier_versions_continue(tmp_path: Path) -> None:
    """The name of a study must not change, or every study would start over."""
    masks = np.zeros((12, 24, 36), dtype=np.bool_)
    for number, mask in enumerate(masks):
        mask[4:14, number : number + 12] = True
    evidence = [Evidence(f"image {n}", f"prompt {n // 2}", objects(mask)) for n, mask in enumerate(masks)]
    World().tune(evidence, tmp_path / "tune.sqlite", trials=2)
    names = optuna.get_all_study_names(f"sqlite:///{tmp_path / 'tune.sqlite'}")
    assert names == ["labels-6a34171dbc561b4d"]


def test_certainty_is_searched_only_where_a_decoder_drew_the_maps(tmp_path: Path) -> None:
    world, storage = World(), tmp_path / "tune.sqlite"
    weights = ScoreWeights(certainty=0.5)
    by_attention = world.tune(world.correct(), storage, trials=3)
    assert all("certainty" not in params for params, _ in parameters(storage))
    assert by_attention.weights.certainty == 0
    drawn = tune(
        world.correct(),
        lambda image_id: drawn_by_a_decoder(world.heat_maps(image_id)),
        world.image,
        LabelSettings(),
        weights,
        storage=tmp_path / "drawn.sqlite",
        terms=TERMS,
        trials=3,
    )
    found = [params["certainty"] for params, _ in parameters(tmp_path / "drawn.sqlite") if "margin" in params]
    assert drawn.trials == 6 and found[0] == 0.5 and len(set(found)) == 3


def test_the_first_trial_is_exactly_the_current_settings(tmp_path: Path) -> None:
    world = World()
    # Thirds that rounding to parts of the largest weight would change, and values beyond the usual ranges.
    settings = WRONG.changed(
        groups={"up@*": 7.0, "down@*": 3.0}, threshold=0.9, erode_frac=0.04, step_weights=(1.0, 3.0, 7.0)
    )
    tuned = world.tune(world.correct(), tmp_path / "tune.sqlite", settings, trials=2)
    judgement = Judge(list(spread(world.correct(), 0)), world.heat_maps, world.image).judge(settings, WEIGHTS)
    assert tuned.worth.before == pytest.approx(judgement.worth.mean(), abs=1e-4)
    first = parameters(tmp_path / "tune.sqlite")[0][0]
    assert (first["fraction"], first["erode_frac"], first["groups.down@*"]) == (0.9, 0.04, 3 / 7)


def test_a_study_prints_and_warns_of_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    optuna.logging.set_verbosity(logging.INFO)
    world = World()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        world.tune(world.correct(), tmp_path / "tune.sqlite", trials=12)
    assert capfd.readouterr() == ("", "")
    assert optuna.logging.get_verbosity() == logging.INFO


@pytest.mark.parametrize("name", ["my run/tune.sqlite", "50% {x} #1?.sqlite", "ü's/new folder/tune.sqlite"])
def test_the_storage_can_have_any_name(tmp_path: Path, name: str) -> None:
    world = World()
    world.tune(world.correct(), tmp_path / name, trials=2)
    assert (tmp_path / name).is_file()
    assert world.tune(world.correct(), tmp_path / name, trials=3).trials == 6
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name]


def _foreign(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE images (id TEXT)")
    connection.close()


def _shortened(path: Path) -> None:
    world = World()
    world.tune(world.correct(), path, trials=2)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "text": (lambda path: path.write_text("no database " * 1000), "not a database.*move it away"),
    "cut off": (_shortened, "malformed.*move it away"),
    "another program's": (_foreign, r"another program \(tables: images\).*file of its own"),
    "a folder": (lambda path: path.mkdir(), "unable to open.*permissions"),
}


@pytest.mark.parametrize(("make", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_unusable_storage_is_refused_and_left_unchanged(
    tmp_path: Path, make: Callable[[Path], object], message: str
) -> None:
    world, storage = World(), tmp_path / "tune.sqlite"
    make(storage)
    before = storage.read_bytes() if storage.is_file() else None
    with pytest.raises(StoreError, match=f"(?s){message}") as caught:
        world.tune(world.correct(), storage, trials=2)
    assert str(storage) in str(caught.value) and "\n" not in str(caught.value)
    assert (storage.read_bytes() if storage.is_file() else None) == before


def test_storage_in_a_folder_that_cannot_be_created(tmp_path: Path) -> None:
    world = World()
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be read or written"):
        world.tune(world.correct(), tmp_path / "file" / "tune.sqlite", trials=2)


# ---------------------------------------------------------------- arguments and evidence


def _wrong_size(evidence: list[Evidence]) -> list[Evidence]:
    return [*evidence[:-1], Evidence("image 15", "prompt", objects(np.ones((36, 24), dtype=bool)))]


BAD = {
    "no trials": ({"trials": -1}, lambda evidence: evidence, "trials is -1; expected an integer >= 0"),
    "no images": ({"images": 0}, lambda evidence: evidence, "images is 0; expected an integer >= 1"),
    "one fold": ({"folds": 1}, lambda evidence: evidence, "folds is 1; expected an integer >= 2"),
    "half a fold": ({"folds": 2.5}, lambda evidence: evidence, "folds is 2.5"),
    "twice": ({}, lambda evidence: [*evidence, evidence[3]], "1 images occur more than once"),
    "other size": ({}, _wrong_size, r"evidence for image image 15 has size \(24, 36\) px .* has \(36, 24\)"),
}


@pytest.mark.parametrize(("arguments", "change", "message"), BAD.values(), ids=BAD.keys())
def test_wrong_arguments_are_refused(
    tmp_path: Path,
    arguments: dict[str, Any],
    change: Callable[[list[Evidence]], list[Evidence]],
    message: str,
) -> None:
    world = World()
    with pytest.raises(DiffugenError, match=message):
        world.tune(change(world.correct()), tmp_path / "tune.sqlite", **arguments)


def test_groups_that_match_no_heat_map_are_refused(tmp_path: Path) -> None:
    world = World()
    with pytest.raises(ConfigError, match="'mid@"):
        world.tune(world.correct(), tmp_path / "tune.sqlite", WRONG.changed(groups={"mid@*": 1.0}))


LITTLE = {
    "nothing": (0, 1, 25, "0 images from 0 prompts or photos"),
    "few images": (11, 11, 25, "11 images from 11 prompts or photos; tuning needs at least 12 images from 2"),
    "one family": (30, 1, 25, "30 images from 1 prompts or photos"),
    "tuning is off": (24, 24, 0, "tune.trials is 0"),
    "one trial": (24, 24, 1, "tune.trials is 1"),
}


@pytest.mark.parametrize(("count", "families", "trials", "reason"), LITTLE.values(), ids=LITTLE.keys())
def test_too_little_for_a_study(tmp_path: Path, count: int, families: int, trials: int, reason: str) -> None:
    world = World()
    evidence = [world.evidence(f"image {n}", family=f"prompt {n % families}") for n in range(count)]
    tuned = world.tune(evidence, tmp_path / "tune.sqlite", trials=trials)
    assert (
        not tuned.adopted and tuned.settings is WRONG and tuned.weights is WEIGHTS and reason in tuned.reason
    )
    assert (tuned.worth, tuned.miscalibration, tuned.trials) == (Change(), Change(), 0)
    assert not list(tmp_path.iterdir()) and not world.read


def test_only_the_images_in_use_are_read_and_each_once(tmp_path: Path) -> None:
    world = World()
    shape = objects(world.disc("any"))
    many = [Evidence(f"image {n:05d}", f"prompt {n % 700}", shape) for n in range(20_000)]
    tuned = world.tune(many, tmp_path / "tune.sqlite", images=20, trials=5)
    assert tuned.images == len(world.read) == 20 and set(world.read.values()) == {1}
    assert len({int(name.split()[1]) % 700 for name in world.read}) == 20


def test_heat_maps_that_exceed_the_cache_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World()
    kept = world.tune(world.correct(), tmp_path / "kept.sqlite", trials=6)
    monkeypatch.setattr(
        "diffugen.tune.matcher.CACHE_BYTES", 5 * world.heat_maps("image 0").maps["up-12x18"].nbytes
    )
    world.read.clear()
    assert world.tune(world.correct(), tmp_path / "again.sqlite", trials=6) == kept
    assert sorted(set(world.read.values()))[0] == 1 and max(world.read.values()) > 5
