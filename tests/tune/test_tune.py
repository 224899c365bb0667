"""Tuning: real Optuna on made-up heat maps, of which one layer group is right and one wrong; on fresh images,
and resumed."""

from __future__ import annotations

import dataclasses
import json
import logging
import sqlite3
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
from numpy.typing import NDArray

from diffugen.comparison.metrics import label_quality
from diffugen.errors import ConfigError, DiffugenError, StoreError
from diffugen.labels.label import LabelSettings, label
from diffugen.labels.score import TERMS, ScoreWeights
from diffugen.labels.shapes import encode
from diffugen.records import HeatMaps, Instances, Phrase
from diffugen.tune.folds import choose, held_out, split, standard_error
from diffugen.tune.judge import Evidence, Judge, spread
from diffugen.tune.space import fixed_params, from_params, search_space, to_params
from diffugen.tune.study import Tuned, tune

SIZE_WH = (36, 24)
TRIALS = 18
WRONG = LabelSettings(method="paper", threshold=0.3, groups={"up@*": 1.0, "down@*": 3.0})
WEIGHTS = ScoreWeights()


class World:
    """Images of one disc each: the maps of "up" show where it is, those of "down" show another place."""

    def __init__(self, size_wh: tuple[int, int] = SIZE_WH) -> None:
        self.size_wh = size_wh
        self.read: Counter[str] = Counter()

    def disc(self, name: str, grow: float = 1.0) -> NDArray[np.bool_]:
        return self._blob(np.random.default_rng(_seed(name)), *self.size_wh, grow) > 0.5

    def heat_maps(self, image_id: str) -> HeatMaps:
        self.read[image_id] += 1
        width, height = self.size_wh
        maps = {}
        for place, name in (("up", image_id), ("down", f"elsewhere {image_id}")):
            rng = np.random.default_rng(_seed(name))
            blob = self._blob(rng, width // 2, height // 2)
            noise = np.random.default_rng(_seed(f"noise {image_id}")).random((3, height // 2, width // 2))
            array = 1e-3 * (0.1 + 0.8 * np.stack([blob] * 3) + 0.1 * noise)
            maps[f"{place}-{height // 2}x{width // 2}"] = array[None].astype(np.float16)
        return HeatMaps(image_id, self.size_wh, (Phrase("piano", "piano"),), maps)

    def image(self, image_id: str) -> NDArray[np.uint8]:
        rgb = np.full((*self.size_wh[::-1], 3), 90, dtype=np.uint8)
        rgb[self.disc(image_id)] = (200, 120, 60)
        return rgb

    def evidence(
        self, image_id: str, mask: NDArray[np.bool_] | None = None, prompt: str | None = None
    ) -> Evidence:
        mask = self.disc(image_id) if mask is None else mask
        return Evidence(image_id, prompt or f"prompt {image_id}", objects(mask))

    def fresh_iou(self, settings: LabelSettings, weights: ScoreWeights) -> float:
        names = [f"fresh {number}" for number in range(24)]
        pairs = [
            (objects(self.disc(name)), label(self.heat_maps(name), settings, weights, self.image(name)))
            for name in names
        ]
        found = label_quality(pairs).object_iou
        assert found is not None
        return found

    @staticmethod
    def _blob(rng: np.random.Generator, width: int, height: int, grow: float = 1.0) -> NDArray[np.float64]:
        x, y, radius = rng.uniform(0.25, 0.75), rng.uniform(0.3, 0.7), rng.uniform(0.15, 0.25) * grow
        rows, columns = np.mgrid[:height, :width]
        distance = np.hypot(((columns + 0.5) / width - x) * width / height, (rows + 0.5) / height - y)
        return 1 / (1 + np.exp((distance - radius) * 20))


def _seed(name: str) -> list[int]:
    return list(name.encode())


def objects(*masks: NDArray[np.bool_]) -> Instances:
    height, width = masks[0].shape if masks else SIZE_WH[::-1]
    return Instances((width, height), ("piano",) * len(masks), tuple(map(encode, masks)), np.ones(len(masks)))


def run(
    world: World, evidence: list[Evidence], storage: Path, settings: LabelSettings = WRONG, **more: object
) -> Tuned:
    arguments = {"trials": TRIALS, **more}
    return tune(evidence, world.heat_maps, world.image, settings, WEIGHTS, storage=storage, **arguments)  # type: ignore[arg-type]


def right(world: World, count: int = 16) -> list[Evidence]:
    return [world.evidence(f"image {number}") for number in range(count)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tuned, Path]:
    """A study that was not interrupted, and its file."""
    storage = tmp_path_factory.mktemp("whole") / "tune.sqlite"
    return run(World(), right(World()), storage), storage


# ---------------------------------------------------------------- what is learnt


def test_learns_which_group_to_trust_and_labels_fresh_images_better(whole: tuple[Tuned, Path]) -> None:
    world, tuned = World(), whole[0]
    assert tuned.adopted and "exceeds" in tuned.reason
    assert tuned.settings.groups["up@*"] > tuned.settings.groups["down@*"]
    assert world.fresh_iou(tuned.settings, tuned.weights) > world.fresh_iou(WRONG, WEIGHTS) + 0.2
    assert (
        tuned.held_out_before is not None
        and tuned.held_out_after is not None
        and tuned.value_after is not None
    )
    assert tuned.value_before == tuned.held_out_before < tuned.held_out_after <= tuned.value_after
    assert (tuned.images, tuned.trials, len(tuned.history)) == (16, TRIALS, TRIALS)
    assert tuned.history[0] == tuned.value_before and max(tuned.history) == tuned.value_after
    untouched = ("min_area_frac", "max_area_frac", "instances")
    assert all(getattr(tuned.settings, name) == getattr(WRONG, name) for name in untouched)
    json.dumps(
        [tuned.settings.asdict(), dataclasses.asdict(tuned.weights), tuned.history, tuned.held_out_after]
    )


@pytest.mark.parametrize("start", [0.25, 0.8])
def test_moves_a_threshold_that_is_off_either_way(tmp_path: Path, start: float) -> None:
    world = World((24, 36))
    settings = LabelSettings(method="paper", threshold=start, groups={"up@*": 1.0})
    tuned = run(world, right(world), tmp_path / "tune.sqlite", settings)
    assert tuned.adopted and tuned.settings.groups == settings.groups
    assert world.fresh_iou(tuned.settings, tuned.weights) > world.fresh_iou(settings, WEIGHTS) + 0.1


@pytest.mark.parametrize("seeds", [range(1), pytest.param(range(1, 12), marks=pytest.mark.slow)])
def test_evidence_of_noise_is_never_adopted(tmp_path: Path, seeds: range) -> None:
    world = World()
    for seed in seeds:
        noise = [world.evidence(f"image {n}", world.disc(f"{seed} noise {n}")) for n in range(16)]
        tuned = run(world, noise, tmp_path / "tune.sqlite", seed=seed)
        assert not tuned.adopted and tuned.settings is WRONG and tuned.weights is WEIGHTS
        assert tuned.value_after == tuned.value_before


def test_evidence_without_objects_does_not_end_in_accepting_nothing(tmp_path: Path) -> None:
    world = World()
    empty = [Evidence(f"image {n}", f"prompt {n}", objects()) for n in range(16)]
    tuned = run(world, empty, tmp_path / "tune.sqlite")
    assert not tuned.adopted and tuned.value_before is not None and tuned.value_before < -0.5
    assert "no labels" in tuned.reason or "no other settings" in tuned.reason


@pytest.mark.slow
def test_not_worse_on_fresh_images_when_evidence_is_scarce_and_rough(tmp_path: Path) -> None:
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
        tuned = run(world, rough, tmp_path / "tune.sqlite", settings, seed=seed)
        gains.append(world.fresh_iou(tuned.settings, tuned.weights) - before)
        if not tuned.adopted:
            assert gains[-1] == 0
    assert np.mean(gains) > -0.005 and min(gains) > -0.05


# ---------------------------------------------------------------- the study


def parameters(storage: Path) -> list[tuple[dict[str, object], float]]:
    (name,) = optuna.get_all_study_names(f"sqlite:///{storage}")
    study = optuna.load_study(study_name=name, storage=f"sqlite:///{storage}")
    assert all(trial.state is optuna.trial.TrialState.COMPLETE for trial in study.trials)
    return [(trial.params, trial.value) for trial in study.trials]


def test_same_arguments_give_the_same_study_whatever_the_order_of_evidence(
    tmp_path: Path, whole: tuple[Tuned, Path]
) -> None:
    world = World()
    assert run(world, right(world)[::-1], tmp_path / "same.sqlite") == whole[0]
    assert parameters(tmp_path / "same.sqlite") == parameters(whole[1])
    assert (
        run(world, right(world), tmp_path / "other.sqlite", seed=1, trials=4).history != whole[0].history[:4]
    )


class Killed(BaseException):
    pass


@pytest.mark.parametrize("after", [1, 11])
def test_killed_study_ends_as_if_it_had_not_been(
    tmp_path: Path, whole: tuple[Tuned, Path], after: int
) -> None:
    world, storage = World(), tmp_path / "tune.sqlite"

    def kill(done: int, total: int) -> None:
        if done == after:
            raise Killed

    with pytest.raises(Killed):
        run(world, right(world), storage, on_progress=kill)
    assert parameters(storage) == parameters(whole[1])[:after]
    seen: list[int] = []
    resumed = run(world, right(world), storage, on_progress=lambda done, total: seen.append(done))
    assert seen == list(range(after, TRIALS + 1))
    assert resumed == whole[0] and parameters(storage) == parameters(whole[1])


def test_killed_inside_a_trial_leaves_nothing_half_done(tmp_path: Path, whole: tuple[Tuned, Path]) -> None:
    world, storage, left = World(), tmp_path / "tune.sqlite", [100]

    def heat_maps(image_id: str) -> HeatMaps:
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return world.heat_maps(image_id)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr("diffugen.tune.judge.KEPT_BYTES", 0)
        tune(right(world), heat_maps, world.image, WRONG, WEIGHTS, storage=storage, trials=TRIALS)
    assert 0 < len(parameters(storage)) < TRIALS
    assert run(world, right(world), storage) == whole[0] and parameters(storage) == parameters(whole[1])


def test_finished_study_goes_on_with_more_trials_and_answers_for_fewer(
    tmp_path: Path, whole: tuple[Tuned, Path]
) -> None:
    world, storage = World(), tmp_path / "tune.sqlite"
    short = run(world, right(world), storage, trials=5)
    assert short.trials == 5 and short.history == whole[0].history[:5]
    assert run(world, right(world), storage, trials=10).history == whole[0].history[:10]
    world.read.clear()
    assert run(world, right(world), storage, trials=5) == short and not world.read


def test_other_evidence_settings_folds_or_seed_begin_another_study(tmp_path: Path) -> None:
    world, storage = World(), tmp_path / "tune.sqlite"
    other = [*right(world)[:-1], world.evidence("image 15", world.disc("image 15", 1.3))]
    run(world, right(world), storage, trials=2)
    run(world, other, storage, trials=2)
    run(world, right(world), storage, dataclasses.replace(WRONG, min_area_frac=0.01), trials=2)
    run(world, right(world), storage, trials=2, folds=3)
    run(world, right(world), storage, trials=2, seed=1)
    run(world, right(world), storage, trials=2, study="other")
    names = optuna.get_all_study_names(f"sqlite:///{storage}")
    assert len(set(names)) == 6 and sum(name.startswith("labels-") for name in names) == 5


def test_first_trial_is_the_current_settings_to_the_letter(tmp_path: Path) -> None:
    world = World()
    # Thirds that no rounded part of the largest weight gives back, and values beyond the usual ranges.
    settings = dataclasses.replace(
        WRONG,
        groups={"up@*": 7.0, "down@*": 3.0},
        threshold=0.9,
        erode_frac=0.04,
        step_weights=(1.0, 3.0, 7.0),
    )
    tuned = run(world, right(world), tmp_path / "tune.sqlite", settings, trials=2)
    judgement = Judge(spread(right(world), 300, 0), world.heat_maps, world.image).judge(settings, WEIGHTS)
    assert tuned.history[0] == pytest.approx(judgement.values.mean(), abs=1e-4)
    first = parameters(tmp_path / "tune.sqlite")[0][0]
    assert (first["fraction"], first["erode_frac"], first["groups.down@*"]) == (0.9, 0.04, 3 / 7)


def test_silent_and_without_warnings(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    optuna.logging.set_verbosity(logging.INFO)
    world = World()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(world, right(world), tmp_path / "tune.sqlite", trials=12)
    assert capfd.readouterr() == ("", "")
    assert optuna.logging.get_verbosity() == logging.INFO


@pytest.mark.parametrize("name", ["my run/tune.sqlite", "50% {x} #1?.sqlite", "ü's/new folder/tune.sqlite"])
def test_storage_of_any_name(tmp_path: Path, name: str) -> None:
    world = World()
    run(world, right(world), tmp_path / name, trials=2)
    assert (tmp_path / name).is_file()
    assert run(world, right(world), tmp_path / name, trials=3).trials == 3
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name]


def _foreign(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE images (id TEXT)")
    connection.close()


def _shortened(path: Path) -> None:
    world = World()
    run(world, right(world), path, trials=2)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "text": (lambda path: path.write_text("no database " * 1000), "not a database.*move it away"),
    "cut off": (_shortened, "malformed.*move it away"),
    "another program's": (_foreign, r"another program \(tables: images\).*file of its own"),
    "a folder": (lambda path: path.mkdir(), "unable to open.*permissions"),
}


@pytest.mark.parametrize(("make", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_storage_that_cannot_be_used(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    world, storage = World(), tmp_path / "tune.sqlite"
    make(storage)
    before = storage.read_bytes() if storage.is_file() else None
    with pytest.raises(StoreError, match=f"(?s){message}") as caught:
        run(world, right(world), storage, trials=2)
    assert str(storage) in str(caught.value) and "\n" not in str(caught.value)
    assert (storage.read_bytes() if storage.is_file() else None) == before


def test_storage_below_a_file(tmp_path: Path) -> None:
    world = World()
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be read or written"):
        run(world, right(world), tmp_path / "file" / "tune.sqlite", trials=2)


# ---------------------------------------------------------------- evidence


def _wrong_size(evidence: list[Evidence]) -> list[Evidence]:
    return [*evidence[:-1], Evidence("image 15", "prompt", objects(np.ones((36, 24), dtype=bool)))]


BAD = {
    "no trials": ({"trials": -1}, lambda evidence: evidence, "trials is -1; expected a whole number from 0"),
    "no images": ({"images": 0}, lambda evidence: evidence, "images is 0; expected a whole number from 1"),
    "one fold": ({"folds": 1}, lambda evidence: evidence, "folds is 1; expected a whole number from 2"),
    "half a fold": ({"folds": 2.5}, lambda evidence: evidence, "folds is 2.5"),
    "twice": ({}, lambda evidence: [*evidence, evidence[3]], "1 images occur more than once"),
    "other size": ({}, _wrong_size, r"evidence for image image 15 is of \(24, 36\) px .* \(36, 24\)"),
}


@pytest.mark.parametrize(("arguments", "change", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input(
    tmp_path: Path,
    arguments: dict[str, object],
    change: Callable[[list[Evidence]], list[Evidence]],
    message: str,
) -> None:
    world = World()
    with pytest.raises(DiffugenError, match=message):
        run(world, change(right(world)), tmp_path / "tune.sqlite", **arguments)


def test_groups_that_do_not_fit(tmp_path: Path) -> None:
    world = World()
    with pytest.raises(ConfigError, match="'mid@"):
        run(world, right(world), tmp_path / "tune.sqlite", dataclasses.replace(WRONG, groups={"mid@*": 1.0}))


LITTLE = {
    "nothing": (0, 1, 25, "0 images of 0 prompts"),
    "few images": (11, 11, 25, "11 images of 11 prompts; tuning needs at least 12 images of 2 prompts"),
    "one prompt": (30, 1, 25, "30 images of 1 prompts"),
    "tuning is off": (24, 24, 0, "0 trials"),
    "one trial": (24, 24, 1, "1 trials"),
}


@pytest.mark.parametrize(("count", "prompts", "trials", "reason"), LITTLE.values(), ids=LITTLE.keys())
def test_too_little_for_a_study(tmp_path: Path, count: int, prompts: int, trials: int, reason: str) -> None:
    world = World()
    evidence = [world.evidence(f"image {n}", prompt=f"prompt {n % prompts}") for n in range(count)]
    tuned = run(world, evidence, tmp_path / "tune.sqlite", trials=trials)
    assert (
        not tuned.adopted and tuned.settings is WRONG and tuned.weights is WEIGHTS and reason in tuned.reason
    )
    assert (tuned.value_before, tuned.held_out_after, tuned.trials, tuned.history) == (None, None, 0, ())
    assert not list(tmp_path.iterdir()) and not world.read


def test_of_much_evidence_few_images_are_read_and_each_once(tmp_path: Path) -> None:
    world = World()
    shape = objects(world.disc("any"))
    many = [Evidence(f"image {n:05d}", f"prompt {n % 700}", shape) for n in range(20_000)]
    tuned = run(world, many, tmp_path / "tune.sqlite", images=20, trials=5)
    assert tuned.images == len(world.read) == 20 and set(world.read.values()) == {1}
    assert len({int(name.split()[1]) % 700 for name in world.read}) == 20


def test_heat_maps_beyond_the_memory_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    kept = run(world, right(world), tmp_path / "kept.sqlite", trials=6)
    monkeypatch.setattr(
        "diffugen.tune.judge.KEPT_BYTES", 5 * world.heat_maps("image 0").maps["up-12x18"].nbytes
    )
    world.read.clear()
    assert run(world, right(world), tmp_path / "again.sqlite", trials=6) == kept
    assert sorted(set(world.read.values()))[0] == 1 and max(world.read.values()) > 5


def test_spread_takes_every_prompt_before_any_twice() -> None:
    world = World()
    evidence = [
        world.evidence(f"{p} {n}", prompt=f"{p}")
        for p, count in ((0, 30), (1, 4), (2, 1))
        for n in range(count)
    ]
    drawn = spread(evidence, 9, 0)
    assert Counter(one.prompt_id for one in drawn) == {"0": 4, "1": 4, "2": 1}
    assert [one.prompt_id for one in drawn[:3]] != ["0", "0", "0"] and len(
        {one.image_id for one in drawn}
    ) == 9
    assert drawn == spread(evidence[::-1], 9, 0) != spread(evidence, 9, 1)
    assert len(spread(evidence, 300, 0)) == 35


# ---------------------------------------------------------------- the objective


def test_value_by_hand() -> None:
    world = World()
    settings = dataclasses.replace(WRONG, threshold="otsu", instances="pieces", accept=0.55)
    right_of_half = world.disc("b").copy()
    right_of_half[:, : SIZE_WH[0] // 2] = False
    evidence = [
        world.evidence("a"),
        Evidence("b", "p", objects(world.disc("b"), right_of_half)),
        Evidence("c", "p", objects()),
    ]
    judgement = Judge(evidence, world.heat_maps, world.image).judge(settings, WEIGHTS)
    labelled = 0
    for value, one in zip(judgement.values, evidence, strict=True):
        everything = label(world.heat_maps(one.image_id), dataclasses.replace(settings, accept=0), WEIGHTS)
        accepted = label(world.heat_maps(one.image_id), settings, WEIGHTS)
        quality = [_partner_ious(labels, one.instances) for labels in (everything, accepted)]
        worth = sum(iou - 0.5 for iou in quality[1]) / max(1, len(one.instances))
        squares = [(score - iou) ** 2 for score, iou in zip(everything.scores, quality[0], strict=True)]
        assert value == pytest.approx(worth - (np.mean(squares) if squares else 0), abs=1e-9)
        labelled += len(accepted) > 0
    assert judgement.labelled == labelled > 0


def _partner_ious(labels: Instances, truth: Instances) -> list[float]:
    from diffugen.comparison.matching import match

    pairs = match(labels, truth, min_iou=0.0, min_iou_swapped=None)
    return [pair.iou if pair.second is not None else 0.0 for pair in pairs if pair.first is not None]


def test_other_score_weights_do_not_label_again() -> None:
    world = World()
    judge = Judge(right(world), world.heat_maps, world.image)
    first = judge.judge(WRONG, WEIGHTS).values
    world.read.clear()
    again = judge.judge(dataclasses.replace(WRONG, accept=0.5), ScoreWeights(box_size=5.0)).values
    assert not world.read and (first != again).any()
    fresh = Judge(right(world), world.heat_maps, world.image)
    assert (
        fresh.judge(dataclasses.replace(WRONG, accept=0.5), ScoreWeights(box_size=5.0)).values == again
    ).all()


def test_pixels_are_read_for_refined_masks_alone() -> None:
    world, asked = World(), []

    def image(image_id: str) -> NDArray[np.uint8]:
        asked.append(image_id)
        return world.image(image_id)

    judge = Judge(right(world), world.heat_maps, image)
    judge.judge(WRONG, WEIGHTS)
    assert not asked
    judge.judge(dataclasses.replace(WRONG, refine="crf"), WEIGHTS)
    judge.judge(dataclasses.replace(WRONG, refine="crf", threshold=0.5), WEIGHTS)
    assert len(asked) == len(set(asked)) == 16


# ---------------------------------------------------------------- search space


@pytest.mark.parametrize(
    "settings",
    [
        LabelSettings(),
        LabelSettings(
            method="paper", refine="crf", threshold=0.1, erode_frac=0.1, groups={"a": 2.0, "b": 1.0, "c": 0.0}
        ),
        LabelSettings(threshold=0.85, dilate_frac=0.05, accept=1.0, step_weights=(0.0, 0.0, 4.0)),
    ],
)
def test_parameters_there_and_back(settings: LabelSettings) -> None:
    params = to_params(settings, ScoreWeights(box_size=4.0, margin=0.0))
    groups = search_space(settings)
    space = {name: limits for group in groups for name, limits in group.items()}
    assert sum(map(len, groups)) == len(space)
    assert space.keys() == params.keys()
    for name, limits in space.items():
        if isinstance(limits[0], str):
            assert params[name] in limits
        else:
            assert limits[0] <= params[name] <= limits[1]
    back, weights = from_params(params, settings)
    scale = max(settings.step_weights)
    assert back.step_weights == tuple(weight / scale for weight in settings.step_weights)
    same = dataclasses.replace(back, step_weights=settings.step_weights, groups=settings.groups)
    assert same == settings
    assert weights == ScoreWeights(1.0, 0.25, 0.25, 0.25, 0.0)
    largest = max(settings.groups.values())
    if len(settings.groups) > 1:
        assert back.groups == {name: weight / largest for name, weight in settings.groups.items()}
    assert {f"score.{term}" for term in TERMS} < space.keys()


def test_each_choice_is_switched_once_then_groups_take_turns() -> None:
    settings = LabelSettings(method="paper", groups={"a": 1.0, "b": 1.0})
    spaces, start = search_space(settings), to_params(settings, WEIGHTS)
    best = {**start, "accept": 0.5}
    plans = [fixed_params(number, start, best, spaces) for number in range(24)]
    assert plans[0] == start
    switched = [{name: value for name, value in plan.items() if value != best[name]} for plan in plans[1:4]]
    assert switched == [{"method": "compete"}, {"refine": "crf"}, {"threshold": "fraction"}]
    free = [
        next(index for index, space in enumerate(spaces) if space.keys() == start.keys() - plan)
        for plan in plans[4:]
    ]
    assert free == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4 + [0] * 4
    assert all(best[name] == value for plan in plans[4:] for name, value in plan.items())


def test_weights_that_are_all_0_count_as_equal() -> None:
    settings = LabelSettings(groups={"a": 1.0, "b": 1.0})
    zeros = {name: 0.0 if "." in name else value for name, value in to_params(settings, WEIGHTS).items()}
    back, weights = from_params(zeros, settings)
    assert (back.groups, back.step_weights, weights) == (
        {"a": 1.0, "b": 1.0},
        (1.0, 1.0, 1.0),
        ScoreWeights(),
    )


# ---------------------------------------------------------------- adoption


def test_held_out_value_is_that_of_the_trial_the_other_folds_choose() -> None:
    values = np.array([[0.5, 0.5, 0.5, 0.5], [1.0, 1.0, 0.0, 0.1], [0.0, 0.0, 1.0, 1.0]])
    assert held_out(values, np.array([0, 0, 1, 1])).tolist() == [0.0, 0.0, 0.0, 0.1]
    # Outside fold 1 all trials are equal, so the first is taken.
    assert held_out(values, np.array([0, 1, 0, 1])).tolist() == [1.0, 0.5, 0.0, 0.5]
    assert held_out(np.zeros((3, 4)), np.array([0, 0, 1, 1])).tolist() == [0.0] * 4


def test_folds_keep_prompts_together_and_are_about_equally_large() -> None:
    prompts = [f"{n % 7}" for n in range(60)] + ["big"] * 12
    folds = split(prompts, 4, seed=0)
    by_prompt = {
        prompt: {int(f) for f, p in zip(folds, prompts, strict=True) if p == prompt} for prompt in prompts
    }
    assert all(len(found) == 1 for found in by_prompt.values())
    assert (
        sorted(np.unique(folds)) == [0, 1, 2, 3] and max(np.bincount(folds)) - min(np.bincount(folds)) <= 12
    )
    assert len(np.unique(split(["a", "b", "b"], 4, seed=0))) == 2
    assert (split(prompts, 4, seed=1) != folds).any()


def test_standard_error_takes_images_of_a_prompt_together() -> None:
    rng = np.random.default_rng(0)
    alone = rng.normal(size=40)
    expected = alone.std(ddof=1) / np.sqrt(40)
    assert standard_error(alone, [f"{n}" for n in range(40)]) == pytest.approx(expected)
    # Copies add nothing to what is known.
    copies, prompts = np.repeat(alone, 5), [f"{n // 5}" for n in range(200)]
    assert standard_error(copies, prompts) == pytest.approx(expected)


def _choice(gain: float, spread: float, level: float = 0.2) -> SimpleNamespace:
    rng = np.random.default_rng(0)
    first = np.full(40, level)
    second = first + gain + spread * rng.permutation(np.linspace(-1, 1, 40))
    return SimpleNamespace(values=np.stack([first, second]), prompts=[f"{n}" for n in range(40)])


CHOICES = {
    "better": (_choice(0.1, 0.1), True, "exceeds"),
    "worse": (_choice(-0.1, 0.1), False, "no other settings"),
    "equal": (_choice(0.0, 0.0), False, "no other settings"),
    "within the error": (_choice(0.01, 0.5), False, "does not exceed"),
    "better, but worthless": (_choice(0.1, 0.1, -0.2), False, "worse than no labels"),
}


@pytest.mark.parametrize(("case", "adopted", "reason"), CHOICES.values(), ids=CHOICES.keys())
def test_adoption(case: SimpleNamespace, adopted: bool, reason: str) -> None:
    choice = choose(case.values, case.prompts, 4, 0)
    assert choice.adopted is adopted and reason in choice.reason


def test_chance_is_seldom_adopted() -> None:
    """Trials that differ from the first by noise alone: the best of 40 looks good, and is rarely believed."""
    adopted, looks = 0, []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        values = 0.2 + rng.normal(size=(41, 40)) * 0.1
        adopted += choose(values, [f"{n}" for n in range(40)], 4, seed).adopted
        looks.append(values.mean(axis=1).max() - values[0].mean())
    assert np.mean(looks) > 0.02
    assert adopted / 200 < 0.2
