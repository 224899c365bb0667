"""The stage of `labels.threshold: adaptive` on the miniature: what it chooses, keeps, and changes."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

import diffugen as dg
from diffugen.errors import ConfigError
from diffugen.run.results import Thresholds
from diffugen.stages.verbs import OpenRun, labelling_of
from tests.support.command_line import run as run_command

stage = import_module("diffugen.stages.thresholds")  # the package gives the function of this name

QUICK = (
    "prompts.count=24",
    "diffusion.num_inference_steps=4",
    "diffusion.device=cpu",
    "labels.source=attention",
    "labels.threshold=adaptive",
)


@pytest.fixture(scope="module", name="generated")
def generated_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("thresholds") / "run"
    with dg.open_run(folder, dg.load_config("miniature", QUICK)) as run:
        dg.generate(run)
    return folder


@pytest.fixture(name="run")
def run_fixture(generated: Path, tmp_path: Path) -> OpenRun:
    import shutil

    shutil.copytree(generated, tmp_path / "run")
    return dg.open_run(tmp_path / "run", dg.load_config("miniature", QUICK))


def kept(run: OpenRun) -> Thresholds:
    found = run.store.result(0, "thresholds", Thresholds)
    assert found is not None
    return found


def test_label_chooses_thresholds_and_keeps_them(run: OpenRun, monkeypatch: pytest.MonkeyPatch) -> None:
    with run:
        plain = run.config.labelling.with_thresholds({})
        made = dg.label(run)
        found = kept(run)
        assert max(found.maps.values()) >= 8
        assert made.method == plain.with_thresholds(found.chosen).method != run.config.labelling.method
        assert made.settings.threshold == found.chosen
        assert labelling_of(run.run.newest_round(), run.config).method == made.method
        # What was chosen stands: no map is looked at again.
        monkeypatch.setattr(stage, "worths", None)
        for name in found.maps:
            assert run.config.prompts.classes[name]
        if set(found.maps) == set(run.run.class_names):
            assert dg.label(run).method == made.method


def test_a_class_waits_until_it_has_enough_maps(run: OpenRun, monkeypatch: pytest.MonkeyPatch) -> None:
    with run:
        labelling = run.config.labelling
        monkeypatch.setattr(stage, "LEAST_MAPS", 10_000)
        assert dg.label(run).settings.threshold == {}
        assert kept(run).maps == {}
        monkeypatch.setattr(stage, "LEAST_MAPS", 8)
        assert dg.label(run).images == len(list(run.store.image_ids()))
        assert kept(run).maps
        assert run.run.newest_round().chosen_thresholds(labelling) == kept(run)
        assert run.run.newest_round().chosen_thresholds(labelling.with_thresholds({})) is None


def test_thresholds_can_be_written_by_hand() -> None:
    config = dg.load_config("miniature", ["labels.threshold={piano: 0.4, car: otsu}"])
    assert [config.labels.threshold_of(name) for name in ("piano", "car", "person")] == [0.4, "otsu", "otsu"]
    with pytest.raises(
        ConfigError, match=r"labels.*threshold classes of prompts, not 'pianoo', did you mean 'piano'"
    ):
        dg.load_config("miniature", ["labels.threshold={pianoo: 0.4}"])
    with pytest.raises(ConfigError, match=r"labels\.threshold"):
        dg.load_config("miniature", ["labels.threshold={piano: 1.4}"])


def test_an_unknown_word_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_command(monkeypatch, "generate", "--set", "labels.threshold=adaptiv") == 2
    assert "did you mean 'adaptive'?" in capsys.readouterr().err
