"""The images a round trains on, and what it compares and tunes with."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffugen import stages
from diffugen.config import (
    DatasetSettings,
    DetectorSettings,
    DisagreementSettings,
    Labelling,
    LabelSettings,
    ScoreWeights,
    TrainingPolicy,
    TuneSettings,
)
from diffugen.dataset.yolo import read_yolo
from diffugen.errors import DiffugenError
from diffugen.labels.shapes import decode
from diffugen.miniature.truth import FIRST_TRAINING_SCENE, exact_labels, find_truth
from diffugen.records import Decision
from diffugen.run import RunStore
from diffugen.run.results import Compared
from diffugen.stages.dataset import chosen_labels
from diffugen.stages.train import epochs_of
from tests.support.planted import METHOD, NOTHING, box, plant
from tests.support.rounds import round_of


def policy(val_frac: float = 0.3) -> TrainingPolicy:
    return TrainingPolicy(DatasetSettings(val_frac=val_frac, mask="model"), DisagreementSettings())


def test_the_dataset_follows_the_policy(store: RunStore) -> None:
    agreed = [plant(store, number, box(20), box(22, score=0.9)) for number in range(8)]
    differing = plant(store, 10, box(10), box(60))
    unseen = [plant(store, number, box(30)) for number in range(20, 24)]
    empty = plant(store, 30, NOTHING, NOTHING)
    human = plant(store, 40, box(10), box(60))
    store.add_decisions([Decision(human, "edited", box(35), "ann")])
    made = stages.choose(round_of(store), METHOD, policy())
    assert made.by_origin == {"agreed": 8, "attention": 4, "negative": 1, "human": 1}
    assert made.left_out == {"disagreement": 1}
    folder = store.folder / made.folder
    written = {name: labels for split in ("train", "val") for name, _, labels in read_yolo(folder, split)}
    assert set(written) == {*agreed, *unseen, empty, human}
    assert (made.train, made.val) == tuple(len(list(read_yolo(folder, split))) for split in ("train", "val"))
    assert differing not in written
    assert written[human].rles == box(35).rles
    assert all(written[image_id].rles == box(22).rles for image_id in agreed)


def test_doubtful_objects_are_painted_over_and_good_ones_pasted(store: RunStore) -> None:
    for number in range(6):
        plant(store, number, box(20), box(22, score=0.9))
    labels = box(20).joined(box(60, score=0.1))
    disputed = plant(store, 10, labels, box(22, score=0.9), painted=True)
    dataset = DatasetSettings(val_frac=0.3, trust="evidence", paste=2.0, mask="model")
    made = stages.choose(round_of(store), METHOD, TrainingPolicy(dataset, DisagreementSettings()))
    assert (made.by_origin, made.left_out) == ({"agreed": 6, "evidence": 1}, {})
    assert made.pasted == 2 * made.train
    written = {
        name: (rgb, labels)
        for split in ("train", "val")
        for name, rgb, labels in read_yolo(store.folder / made.folder, split)
    }
    assert len(written) == made.train + made.val + made.pasted
    rgb, labels = written[disputed]
    before = store.image(disputed)
    hidden, shown = decode(box(60).rles[0]), decode(box(22).rles[0])
    assert labels.rles == box(22).rles and (rgb[shown] == before[shown]).all()
    assert (before[hidden] == 250).all() and rgb[hidden].max() < 130, "nothing white is left of it"
    pasted = [labels for name, (_, labels) in written.items() if name.startswith("pasted-")]
    assert all(1 <= len(one) <= 2 and set(one.class_names) == {"piano"} for one in pasted)


def test_decisions_calibrate_what_is_doubtful(store: RunStore) -> None:
    """Ten times the person finds that what only attention labels is right: then it is doubtful no longer."""
    for number in range(10):
        image_id = plant(store, number, box(20, score=0.4), NOTHING)
        store.add_decisions([Decision(image_id, "attention", box(20), "ann")])
    disputed = plant(store, 20, box(20, score=0.4), NOTHING)
    dataset = DatasetSettings(val_frac=0.3, trust="evidence")
    policy_, round = TrainingPolicy(dataset, DisagreementSettings()), round_of(store)
    assert dict(chosen_labels(round.run, METHOD, policy_))[disputed].origin == "evidence"
    made = stages.compare(round, METHOD, DisagreementSettings())
    assert made.outcomes == 10
    severities = {one.image_id: one.severity for one in store.disagreements()}
    assert severities[disputed] < 0.4 < 0.6


def test_steps_replace_epochs(store: RunStore, tmp_path: Path) -> None:
    folder = tmp_path / "images" / "train"
    folder.mkdir(parents=True)
    for number in range(20):
        (folder / f"{number}.png").touch()
    settings = DetectorSettings(epochs=7, batch_size=8)
    for steps, expected in ((None, 7), (3, 1), (29, 10), (1, 1)):
        assert epochs_of(tmp_path, settings.changed(steps=steps)) == expected


def test_nothing_to_train_on_is_an_error(store: RunStore) -> None:
    for number in range(3):
        plant(store, number, box(10), box(60))
    with pytest.raises(DiffugenError, match=r"nothing to train on \(3 disagreement\).*diffugen review"):
        stages.choose(round_of(store), METHOD, policy())
    assert not (store.folder / "datasets" / "round-0").exists()


def test_other_classes_of_the_detector_cause_no_disagreement(store: RunStore) -> None:
    plant(store, 0, box(20), box(21).joined(box(60, name="car")))
    made = stages.compare(round_of(store), METHOD, DisagreementSettings())
    assert made == Compared(1, 1, dict.fromkeys(made.kinds, 0))
    made = stages.compare(round_of(store, ["piano", "car"]), METHOD, DisagreementSettings())
    assert sum(made.kinds.values()) == 1


def test_tuning_sees_verdicts_and_agreement(store: RunStore) -> None:
    for number in range(16):
        image_id = plant(store, number, box(20), box(22))
        if number < 14:
            store.add_decisions([Decision(image_id, "model", box(22), "ann")])
    labelling = Labelling(LabelSettings(groups={"up-*": 1.0}), ScoreWeights())
    settings = TuneSettings(trials=2, images=50, folds=2)
    made = stages.tune(round_of(store), METHOD, labelling, settings)
    assert (made.evidence, made.images, made.trials) == ("both", 16, 2)
    assert (made.before.settings, made.before.weights) == (labelling.settings, labelling.weights)


def test_people_s_labels_come_first_and_rejected_images_are_no_evidence(store: RunStore) -> None:
    """Regression: images were drawn whatever they count, so that the detector's could be all there were."""
    for number in range(40):
        image_id = plant(store, number, box(20), box(22))
        if number % 4 == 0:
            store.add_decisions([Decision(image_id, "reject", None, "ann")])
        elif number % 4 == 1:
            store.add_decisions([Decision(image_id, "model", box(22), "ann")])
    labelling = Labelling(LabelSettings(groups={"up-*": 1.0}), ScoreWeights())
    for images, expected in ((10, ("verdicts", 10)), (12, ("both", 12)), (50, ("both", 30))):
        settings = TuneSettings(trials=2, images=images, folds=2, min_decisions=0)
        made = stages.tune(round_of(store), METHOD, labelling, settings)
        assert (made.evidence, made.images) == expected


@pytest.mark.parametrize(("decisions", "least", "trials"), [(0, 12, 0), (11, 12, 0), (12, 12, 2), (0, 0, 2)])
def test_nothing_is_tuned_on_few_decisions(store: RunStore, decisions: int, least: int, trials: int) -> None:
    for number in range(16):
        image_id = plant(store, number, box(20), box(22))
        if number < decisions:
            store.add_decisions([Decision(image_id, "model", box(22), "ann")])
    labelling = Labelling(LabelSettings(groups={"up-*": 1.0}), ScoreWeights())
    settings = TuneSettings(trials=2, images=50, folds=2, min_decisions=least)
    made = stages.tune(round_of(store), METHOD, labelling, settings)
    assert made.trials == trials
    if not trials:
        assert f"only {decisions} images are decided" in made.reason and not made.adopted
        assert made.before == made.after and made.before.settings == labelling.settings
    none = settings.changed(trials=0)
    assert "tune.trials is 0" in stages.tune(round_of(store), METHOD, labelling, none).reason


def test_ground_truth_of_the_miniature() -> None:
    truth, exact = find_truth("piano-on-road", ["piano"]), exact_labels("piano-on-road", ["piano"], 3)
    assert truth is not None and exact is not None
    assert (truth.images, exact.images) == (320, 3)
    names = [name for name, _, _ in exact.items()]
    assert names[0] == f"piano-on-road-{FIRST_TRAINING_SCENE}"
    first = next(iter(truth.items()))
    assert first[0] == "piano-on-road-0" and set(first[2].class_names) == {"piano"}
    assert find_truth(None, ["piano"]) is None and exact_labels("some/folder", ["piano"], 3) is None
    with pytest.raises(DiffugenError, match=r"none of the classes harp.*piano"):
        find_truth("piano-on-road", ["harp"])
