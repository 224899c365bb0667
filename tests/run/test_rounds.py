"""A stage of a round runs once, and a round uses the decisions of earlier rounds."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from diffugen.config import Labelling, LabelSettings, ScoreWeights, load_config
from diffugen.errors import Interrupted, StoreError
from diffugen.run import OnProgress, Round, Run, RunStore, stage
from diffugen.run.ledger import LEDGER_NAME
from diffugen.run.results import Chosen, Precision, Promoted, Trained, Tuned, TunedSide
from diffugen.stages.evaluate import epochs_of_equal_length


@dataclass(frozen=True)
class Counted:
    images: int
    names: tuple[str, ...] = ()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with RunStore.create_or_open(tmp_path / "run", config={"seed": 0}) as store:
        yield Run(store, ("piano",), seed=0)


def test_a_stage_is_run_once(run: Run) -> None:
    calls: list[int] = []

    @stage("count", Counted)
    def count(round: Round, on_progress: OnProgress, least: int) -> Counted:
        calls.append(least)
        return Counted(least + len(calls), ("a", "b"))

    assert count(run.round(0), 10) == Counted(11, ("a", "b"))
    assert count(run.round(0), 20) == Counted(11, ("a", "b")), "the stored result, whatever the arguments"
    assert count(run.round(1), 10) == Counted(12, ("a", "b"))
    assert list(run.store.summary().rounds[0].stages) == ["count"]
    assert calls == [10, 10]


def test_stages_are_in_the_order_in_which_they_finished_even_if_the_clock_was_set_back(run: Run) -> None:
    names = ["generate", "label", "dataset"]
    for name in names:
        run.store.finish_stage(0, name, Counted(1), 1.0)
        with contextlib.closing(sqlite3.connect(run.folder / LEDGER_NAME)) as ledger, ledger:
            ledger.execute(
                "UPDATE stages SET created_at = '2099-01-01T00:00:00+00:00' WHERE name = 'generate'"
            )
    assert list(run.store.summary().rounds[0].stages) == names
    run.store.finish_stage(0, "generate", Counted(1), 1.0)
    assert list(run.store.summary().rounds[0].stages) == ["label", "dataset", "generate"]


def test_ctrl_c_in_a_stage_tells_what_is_kept(run: Run) -> None:
    @stage("count", Counted, kept="The counts are kept.")
    def count(round: Round, on_progress: OnProgress, stop: KeyboardInterrupt) -> Counted:
        raise stop

    run.planned = 3
    for stop, said in (
        (KeyboardInterrupt(), "Interrupted in round 1 (2 of 3): count. The counts are kept."),
        (KeyboardInterrupt(2), "Interrupted in round 1 (2 of 3): count. The counts are kept."),
        (Interrupted("Half of it is kept."), "Interrupted in round 1 (2 of 3): count. Half of it is kept."),
    ):
        with pytest.raises(Interrupted) as caught:
            count(run.round(1), stop)
        assert str(caught.value) == said
    assert run.store.result(1, "count", Counted) is None


def test_a_command_repeats_a_stage_and_stores_its_result_or_not(run: Run) -> None:
    calls: list[int] = []

    @stage("count", Counted)
    def count(round: Round, on_progress: OnProgress) -> Counted:
        calls.append(1)
        return Counted(len(calls))

    count(run.round(0))
    assert count(run.round(0, redo=True, keep=False)) == Counted(2)
    assert count(run.round(0)) == Counted(1)
    assert count(run.round(0, redo=True)) == Counted(3)
    assert count(run.round(0)) == Counted(3)


def test_a_stage_whose_output_is_lost_runs_again(run: Run) -> None:
    lost: list[bool] = [False]

    @stage("count", Counted, unless=lambda round: lost[0])
    def count(round: Round, on_progress: OnProgress) -> Counted:
        return Counted(len(run.store.summary().rounds) + int(lost[0]))

    first = count(run.round(0))
    assert count(run.round(0)) == first
    lost[0] = True
    assert count(run.round(0)) != first


def test_an_unreadable_result_names_stage_and_round(run: Run) -> None:
    run.store.finish_stage(2, "promote", Counted(1), 1.0)
    with pytest.raises(
        StoreError, match=r"'promote of round 2' of the table stages cannot be read \(promoted: "
    ):
        run.store.result(2, "promote", Promoted)


def test_each_round_has_its_own_seed(run: Run) -> None:
    seeds = [Run(run.store, (), seed).round(number).seed for seed in (0, 1, 2) for number in range(5)]
    assert len(set(seeds)) == len(seeds)
    assert Run(run.store, (), 7).round(0).seed == 7


def tuned(adopted: bool, settings: LabelSettings, weights: ScoreWeights) -> Tuned:
    after = TunedSide(settings, weights)
    return Tuned(adopted, "because", "agreement", TunedSide(LabelSettings(), ScoreWeights()), after)


BETTER = (LabelSettings(threshold=0.4, refine="crf"), ScoreWeights(margin=0.2))


def test_a_round_labels_with_the_settings_that_an_earlier_round_adopted(run: Run) -> None:
    run.store.finish_stage(1, "tune", tuned(True, *BETTER), 1.0)
    run.store.finish_stage(2, "tune", tuned(False, LabelSettings(), ScoreWeights()), 1.0)
    configured = Labelling(LabelSettings(), ScoreWeights())
    assert run.round(1).tuned_labelling(configured) == configured
    for number in (2, 3):
        found = run.round(number).tuned_labelling(configured)
        assert (found.settings, found.weights) == BETTER
        assert found.method != configured.method


def test_settings_of_the_user_override_tuned_ones(run: Run) -> None:
    """Regression: --set labels.refine=none was silently ignored in a tuned run."""
    run.store.finish_stage(0, "tune", tuned(True, *BETTER), 1.0)
    given = load_config("miniature", ["labels.refine=none", "score.margin=3"]).labelling
    found = run.round(1).tuned_labelling(given)
    assert (found.settings.refine, found.settings.threshold) == ("none", 0.4)
    assert (found.weights.margin, found.weights.contrast) == (3.0, 1.0)
    whole = load_config("miniature", ["labels={method: paper}"]).labelling
    assert run.round(1).tuned_labelling(whole).settings == whole.settings


def promoted(better: bool, checkpoint: str) -> Promoted:
    return Promoted(better, checkpoint, "agreed", 3, Precision(0.5, 0.3), Precision(0.4, 0.2))


def test_promoted_detectors_are_found_in_later_rounds(run: Run) -> None:
    assert run.round(0).promoted_detector("base.pt") == "base.pt"
    for number, better in enumerate((True, True, False, False)):
        checkpoint = f"training/round-{min(number, 1)}/best.pt"
        run.store.finish_stage(number, "promote", promoted(better, checkpoint), 1.0)
        assert run.rounds_without_gain(number) == max(0, number - 1)
        assert run.round(number + 1).promoted_detector("base.pt") == checkpoint
        assert run.round(number).latest_detector("base.pt") == checkpoint
    assert run.finished_rounds() == 4


@pytest.mark.parametrize(("patience", "expected"), [(1, 2), (2, 3), (9, 4)])
def test_rounds_stop_when_patience_runs_out(run: Run, patience: int, expected: int) -> None:
    seen: list[int] = []
    run.on_round = lambda round: seen.append(round.number)
    for round in run.rounds(at_most=4, patience=patience):
        run.store.finish_stage(round.number, "promote", promoted(round.number == 0, "best.pt"), 1.0)
    assert seen == list(range(expected))


def test_the_reference_trains_on_as_many_images_as_the_loop(run: Run) -> None:
    for number, images in enumerate((10, 20, 30)):
        run.store.finish_stage(number, "dataset", Chosen("d", images, 0), 1.0)
        run.store.finish_stage(number, "train", Trained("c", "s", 6, 64), 1.0)
    assert epochs_of_equal_length(run.round(2)) == (10 + 20 + 30) * 6 // 30


def test_a_notice_is_shown_once(run: Run) -> None:
    said: list[str] = []
    run.notify = said.append
    for text in ("a", "a", "b", "a"):
        run.notify_once(text)
    assert said == ["a", "b"]


def test_a_run_keeps_the_loop_that_makes_its_rounds_and_no_other(run: Run) -> None:
    """A review session on a run of bootstrap must not become the loop that continues it."""
    run.store.keep_loop("bootstrap")
    run.loop = "review"
    run.newest_round(redo=True, keep=False)
    assert run.store.loop == "bootstrap"
    run.loop = "mine.py"
    next(run.rounds(at_most=1, patience=1))
    assert run.store.loop == "mine.py"
