"""Whole loops at small size, with all real stages from diffusion to the report."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffugen import stages
from diffugen.config import ReviewSettings
from diffugen.config.labelling import by_detector
from diffugen.dataset.yolo import read_yolo, write_yolo
from diffugen.detectors.yolo_checkpoint import find_checkpoint
from diffugen.miniature.sets import exact_instances, scene_set
from diffugen.run.results import Promoted, Reviewed
from diffugen.run.store import RunStore
from tests.support.children import WAIT_SECONDS
from tests.support.command_line import run
from tests.support.rounds import round_of

ROUND_0 = ("generate", "teach", "label", "sift", "dataset", "train", "promote", "evaluate")
ROUND_1 = (
    "generate",
    "teach",
    "label",
    "relabel",
    "compare",
    "review",
    "tune",
    "sift",
    "dataset",
    "train",
    "promote",
    "evaluate",
)


def settings(truth: Path | str, **changes: object) -> list[str]:
    """Return overrides for a small loop that trusts attention, so its detector may learn little."""
    values: dict[str, object] = {
        "prompts.count": 12,
        "diffusion.num_inference_steps": 6,
        "detector.epochs": 2,
        "detector.steps": "null",
        "detector.image_size": 64,
        "detector.confidence": 0.01,
        "dataset.trust": "attention",
        "tune.trials": 6,
        "tune.min_decisions": 0,
        "loop.rounds": 2,
        "loop.truth": str(truth),
        **changes,
    }
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


def write_scenes(folder: Path, name: str, count: int, classes: list[str]) -> Path:
    items = [
        (f"scene-{number}", drawn.rgb, exact_instances(drawn).of_classes(classes))
        for number, drawn in enumerate(scene_set(name, count, (96, 64), start=500))
    ]
    write_yolo(folder, {"train": items}, classes)
    return folder


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("truth") / "pianos", "piano-on-road", 8, ["piano"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, truth: Path) -> Iterator[Path]:
    """Yield the folder of a finished run with two rounds."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "200")
        assert run(patch, "bootstrap", "--run", str(folder), *settings(truth)) == 0
    yield folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.slow
def test_bootstrap_runs_every_stage_of_every_round(finished: Path) -> None:
    with RunStore.open(finished, readonly=True) as store:
        rounds = store.summary().rounds
        assert {*ROUND_0, "evaluate-base"} == set(rounds[0].stages)
        assert set(ROUND_1) == set(rounds[1].stages)
        assert [rounds[number].images for number in (0, 1)] == [12, 12]
        first, second = ({record.id for record in store.records(number)} for number in (0, 1))
        assert not first & second
        for number in (0, 1):
            made = store.results(number).dataset
            assert made and made.train > 0 and made.val > 0
            names = {
                split: {name for name, _, _ in read_yolo(finished / made.folder, split)}
                for split in ("train", "val")
            }
            assert (len(names["train"]), len(names["val"])) == (made.train, made.val)
            prompts = {
                split: {store.record(name).prompt.id for name in found} for split, found in names.items()
            }
            assert not prompts["train"] & prompts["val"], "a prompt is in both splits"
        measured = store.results(1).evaluate
        assert measured and measured.images == 8 and measured.mask.ap50 is not None
        assert store.loop == "bootstrap"
    assert (finished / "report" / "index.html").stat().st_size > 20_000
    assert (finished / "report" / "report.md").is_file()
    assert (finished / "tune.sqlite").is_file()


@pytest.mark.slow
def test_relabelling_is_out_of_sample(finished: Path) -> None:
    trained = {path.stem for path in (finished / "datasets" / "round-0" / "images" / "train").iterdir()}
    with RunStore.open(finished, readonly=True) as store:
        relabelled = {labels.image_id for labels in store.labels("model")}
        new = set(store.image_ids(1))
    assert new <= relabelled
    assert relabelled - new, "held-out images of the first round were not relabelled"
    assert not relabelled & trained


@pytest.mark.slow
def test_ground_truth_does_not_affect_promotion(finished: Path) -> None:
    with RunStore.open(finished, readonly=True) as store:
        for number in (0, 1):
            vote = store.results(number).promote
            assert vote and vote.evidence == "agreed"
            assert vote.promoted == ((vote.candidate.ap50_95 or 0) > (vote.incumbent.ap50_95 or 0))


@pytest.mark.slow
def test_a_finished_run_says_so_and_suggests_more_rounds(
    copied: Path, truth: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    before = contents(copied / "training") | contents(copied / "datasets") | contents(copied / "images")
    assert run(monkeypatch, "bootstrap", "--run", str(copied), *settings(truth)) == 0
    said = capsys.readouterr().out
    assert "all 2 rounds are already done" in said and "--rounds 4" in said
    assert (
        contents(copied / "training") | contents(copied / "datasets") | contents(copied / "images") == before
    )
    lost = next((copied / "images").rglob("*.png"))
    lost.unlink()
    assert run(monkeypatch, "bootstrap", "--run", str(copied), *settings(truth)) == 0
    capsys.readouterr()
    assert (
        contents(copied / "training") | contents(copied / "datasets") | contents(copied / "images") == before
    )
    assert run(monkeypatch, "status", str(copied)) == 0
    assert re.search(r"^1 +12 ", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.slow
def test_a_stopped_run_says_how_to_continue(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with RunStore.open(copied) as store:
        vote = store.result(1, "promote", Promoted)
        assert vote is not None
        store.finish_stage(1, "promote", dataclasses.replace(vote, promoted=False), 1.0)
    known = write_scenes(tmp_path / "known #1", "piano-photos", 3, ["piano"])
    given = ("--set", f'dataset.known="{known}"', "--set", "loop.patience=1")
    assert run(monkeypatch, "bootstrap", "--run", str(copied), "--rounds", "3", *given) == 0
    said = capsys.readouterr().out
    assert "Stopped: no better detector in 1 round." in said
    detector = re.search(r"^detector: (.*)$", said, re.MULTILINE)
    assert detector and find_checkpoint(detector[1]).exists()
    more = re.search(r"^more rounds: diffugen (.*)$", said, re.MULTILINE)
    assert more and more[1].endswith("--set loop.patience=3 --rounds 4")
    # The command works from anywhere: the run keeps the settings that it was made with, and it repeats those
    # that came later.
    assert more[1].count("--set") == 2
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, *shlex.split(more[1])) == 0
    with RunStore.open(copied, readonly=True) as store:
        counts = {number: one.images for number, one in store.summary().rounds.items()}
        chosen = [store.results(number).dataset for number in counts]
    assert counts == dict.fromkeys(range(len(counts)), 12) and len(counts) >= 3
    assert [one.known for one in chosen if one] == [0, 0, *(3 for _ in chosen[2:])]


def review(store: RunStore) -> Reviewed:
    return stages.review(round_of(store, number=2), ReviewSettings(mode="static"))


@pytest.mark.slow
def test_a_decisions_file_is_imported_once_and_renamed(
    copied: Path, truth: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunStore.open(copied) as store:
        image_id = next(iter(store.image_ids(1)))
        decisions = {"run": copied.name, "decisions": [{"image_id": image_id, "verdict": "reject"}]}
        (copied / "review").mkdir(exist_ok=True)
        file = copied / "review" / "decisions.json"
        file.write_text(json.dumps(decisions))
        with monkeypatch.context() as broken:
            # As if the process were killed while it renames the file.
            broken.setattr(Path, "rename", lambda self, target: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                review(store)
        assert [(one.image_id, one.verdict) for one in store.decisions()] == [(image_id, "reject")]
        assert review(store).decisions == {}, "no decision is imported twice"
        assert not file.exists() and (copied / "review" / "decisions-round-2.json").is_file()


@pytest.mark.slow
def test_every_stage_runs_on_its_own_and_repeatedly(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    there = ("--run", str(copied))
    for _ in range(2):
        for command in ("relabel", "compare", "tune", "train", "evaluate", "report"):
            assert run(monkeypatch, command, *there) == 0, command
        assert run(monkeypatch, "review", "--static", *there) == 0
    said = capsys.readouterr().out
    assert "mask AP50" in said and "objects agreed on" in said

    with RunStore.open(copied, readonly=True) as store:
        image_id, other = list(store.image_ids(1))[:2]
    decisions = {
        "decisions": [
            {"image_id": image_id, "verdict": "attention"},
            {"image_id": other, "verdict": "reject"},
        ]
    }
    (tmp_path / "mine.json").write_text(json.dumps({"run": copied.name, **decisions}))
    assert (
        run(monkeypatch, "review", *there, "--decisions", str(tmp_path / "mine.json"), "--reviewer", "ann")
        == 0
    )
    assert "1 attention, 1 reject" in capsys.readouterr().out
    for format, folder in (("yolo-seg", "yolo"), ("coco", "coco")):
        assert (
            run(monkeypatch, "export", str(copied), "--out", str(tmp_path / folder), "--format", format) == 0
        )
    exported = {
        name: instances
        for split in ("train", "val")
        for name, _, instances in read_yolo(tmp_path / "yolo", split)
    }
    assert image_id in exported and other not in exported
    with RunStore.open(copied, readonly=True) as store:
        human = next(store.labels("human", image_id=image_id)).instances
        assert exported[image_id].rles == human.rles


@pytest.mark.slow
def test_improve_starts_from_a_dataset(
    tmp_path: Path, truth: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = write_scenes(tmp_path / "known", "training", 20, ["piano"])
    folder = tmp_path / "run"
    small = settings(truth, **{"prompts.count": 6, "loop.rounds": 1})
    assert run(monkeypatch, "improve", "--run", str(folder), "--known", str(known), *small) == 0
    with RunStore.open(folder, readonly=True) as store:
        kept = store.results(0)
        assert kept.train_known and kept.dataset and kept.dataset.known == 20
        assert kept.train and kept.train.start == kept.train_known.checkpoint
        assert store.loop == "improve"
        assert len(list(store.labels("model"))) == 6
    alone = settings(known, **{"prompts.classes": "{piano: [piano]}", "prompts.templates": "['a {piano}']"})
    alone += ["--set", "prompts.attributes={}", "--set", "labels.source=attention"]
    assert run(monkeypatch, "improve", "--run", str(tmp_path / "other"), *alone) == 2
    assert re.search(r"knows none of the classes piano.*--known", capsys.readouterr().err)


MOMENTS = (  # (round, stage): killed at a random moment after this stage
    (0, "generate"),
    (0, "dataset"),
    (0, "train"),
    (1, "generate"),
    (1, "relabel"),
    (1, "tune"),
    (1, "train"),
)


@pytest.mark.slow
def test_a_detector_labels_the_classes_that_it_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    folder = tmp_path / "run"
    changes: dict[str, object] = {
        "labels.source": "detector",
        "prompts.classes": "{car: [car], truck: [truck]}",
        "prompts.attributes": "{weather: [sunny, rainy, snowy], vehicle: [car, truck]}",
        "prompts.templates": '["a photo of a {vehicle} on a road, {weather}"]',
        "prompts.count": 6,
        "loop.images_per_prompt": 2,
    }
    assert run(monkeypatch, "bootstrap", "--run", str(folder), *settings("null", **changes)) == 0
    told = capsys.readouterr().out
    assert "the labels are those of miniature itself" in " ".join(told.split())
    with RunStore.open(folder, readonly=True) as store:
        first, second = store.results(0), store.results(1)
        assert first.label and second.label and first.label.method == second.label.method
        assert by_detector(first.label.method) and second.label.images == 24 and second.label.objects > 6
        for labels in store.labels("attention", second.label.method):
            assert set(labels.instances.class_names) <= {"car", "truck"}
            assert (labels.instances.scores >= 0.5).all()
        assert first.promote and (first.promote.evidence, first.promote.promoted) == ("none", True)
        assert second.relabel and second.relabel.checkpoint == first.promote.checkpoint
        assert second.compare and second.compare.images > 0
        assert second.tune and "no heat map" in second.tune.reason
        assert second.teach and "labels.source is detector" in second.teach.reason
    assert run(monkeypatch, "status", str(folder)) == 0
    said = capsys.readouterr().out
    assert re.search(r"detector 12 \(\d+\)", said) and "attention" not in said
    page = (folder / "report" / "index.html").read_text(encoding="utf-8")
    assert "all by the starting detector; heat maps were not used" in page
    assert "attention labels" not in page and "heat map of" not in page
    for command in ("label", "compare", "tune", "teach"):
        assert run(monkeypatch, command, "--run", str(folder)) == 0, command
    with RunStore.open(folder, readonly=True) as store:
        assert by_detector(store.latest_method("attention"))


@pytest.mark.slow
def test_bootstrap_continues_after_kill(tmp_path: Path, truth: Path) -> None:
    small = settings(truth, **{"prompts.count": 8, "detector.epochs": 1, "diffusion.num_inference_steps": 4})
    command = [sys.executable, "-m", "diffugen.cli", "bootstrap", *small, "--run"]
    # With one thread, results are bit-identical in every process.
    environment = {"OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    whole, broken = tmp_path / "whole" / "run", tmp_path / "broken" / "run"
    subprocess.run(
        [*command, str(whole)], check=True, capture_output=True, env=environment, timeout=WAIT_SECONDS
    )

    moments = random.Random(3)
    for round, stage in MOMENTS:
        process = subprocess.Popen(
            [*command, str(broken)], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and not stage_is_done(broken, round, stage):
            time.sleep(0.05)
        time.sleep(moments.uniform(0, 1.5))
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=WAIT_SECONDS)
        assert stage_is_done(broken, round, stage)
    subprocess.run(
        [*command, str(broken)], check=True, capture_output=True, env=environment, timeout=WAIT_SECONDS
    )

    with RunStore.open(whole, readonly=True) as expected, RunStore.open(broken, readonly=True) as found:
        assert list(found.image_ids()) == list(expected.image_ids())
        assert found.summary().rounds[1].label_sets == expected.summary().rounds[1].label_sets
        assert found.results(1).tune == expected.results(1).tune
    assert contents(broken / "images") == contents(whole / "images")
    assert contents(broken / "datasets") == contents(whole / "datasets")
    assert not [path for path in broken.rglob("*") if ".partial" in path.name or path.suffix == ".tmp"]


def stage_is_done(folder: Path, round: int, stage: str) -> bool:
    if not (folder / "ledger.sqlite").is_file():
        return False
    try:
        with RunStore.open(folder, readonly=True) as store:
            return stage in store.summary().rounds[round].stages
    except Exception:  # the ledger is being created
        return False


@pytest.mark.slow
def test_decisions_in_fiftyone_select_the_training_images(
    copied: Path, truth: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from diffugen.review.database import database
    from diffugen.review.session import push
    from diffugen.stages.review import review_folder

    monkeypatch.delenv("FIFTYONE_DATABASE_URI", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    assert run(monkeypatch, "review", "--no-wait", "--run", str(copied)) == 0
    assert "decisions on 0 images" in capsys.readouterr().out
    with RunStore.open(copied) as store, database(review_folder(store)):
        dataset = push(store)
        sample, other = dataset.load_saved_view("queue").limit(2)
        for one, tag in ((sample, "accept_attention"), (other, "reject")):
            one.tags.append(tag)
            one.save()
        accepted, rejected = sample.image_id, other.image_id
    more = settings(truth, **{"loop.rounds": 3, "loop.patience": 4})
    assert run(monkeypatch, "bootstrap", "--review", "fiftyone", "--run", str(copied), *more) == 0
    with RunStore.open(copied, readonly=True) as store:
        kept = store.results(2)
        reviewed, made = kept.review, kept.dataset
        assert reviewed and reviewed.decisions == {"attention": 1, "reject": 1}
        assert made and made.by_origin["human"] == 1 and made.left_out["rejected"] == 1
        assert kept.tune and kept.tune.evidence == "both", "one verdict, and what both sides agree on"
        names = {name for split in ("train", "val") for name, _, _ in read_yolo(copied / made.folder, split)}
    assert accepted in names and rejected not in names
