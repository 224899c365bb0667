"""The teaching stage on the miniature: what decisions change, what is kept, and when nothing is taught."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

import diffugen as dg
from diffugen.dataset import read_yolo
from diffugen.dataset.files import write_image
from diffugen.labels.decoder import Decoder
from diffugen.labels.shapes import decode, encode
from diffugen.miniature.sets import scene_set
from diffugen.records import Instances
from diffugen.stages.verbs import OpenRun
from tests.support.command_line import run as run_command

QUICK = (
    "prompts.count=10",
    "diffusion.num_inference_steps=4",
    "diffusion.device=cpu",
    "labels.source=attention",
    "teach.min_decisions=4",
    "teach.images=0",
    "teach.folds=3",
)


def larger(instances: Instances, pixels: int = 8) -> Instances:
    """Return objects with a rim, as a person might draw them who always includes shadows."""
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * pixels + 1, 2 * pixels + 1))
    masks = [cv2.dilate(decode(rle).astype(np.uint8), disc).astype(np.bool_) for rle in instances.rles]
    return replace(instances, rles=tuple(encode(mask) for mask in masks))


def decide(run: OpenRun, count: int, pixels: int = 8) -> list[str]:
    ids = list(run.store.image_ids())[:count]
    method = run.config.labelling.method
    sets = [next(run.store.labels("attention", method, image_id=one)) for one in ids]
    dg.decide(
        run, [dg.Decision(one.image_id, "edited", larger(one.instances, pixels), "ann") for one in sets]
    )
    return ids


@pytest.fixture(scope="module", name="labelled")
def labelled_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teach") / "run"
    with dg.open_run(folder, dg.load_config("miniature", QUICK)) as run:
        dg.generate(run)
        dg.label(run)
    return folder


@pytest.fixture(scope="module", name="decided")
def decided_fixture(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run that was taught with 7 decided images."""
    folder = tmp_path_factory.mktemp("decided") / "run"
    with copied(labelled, folder) as run:
        decide(run, 7)
        dg.teach(run)
    return folder


def copied(source: Path, folder: Path) -> OpenRun:
    shutil.copytree(source, folder)
    return dg.open_run(folder, dg.load_config("miniature", QUICK))


@pytest.fixture(name="run")
def run_fixture(labelled: Path, tmp_path: Path) -> OpenRun:
    return copied(labelled, tmp_path / "run")


@pytest.fixture(name="taught_run")
def taught_run_fixture(decided: Path, tmp_path: Path) -> OpenRun:
    return copied(decided, tmp_path / "run")


def areas(run: OpenRun, method: str) -> dict[str, float]:
    return {
        one.image_id: float(sum(decode(rle).sum() for rle in one.instances.rles))
        for one in run.store.labels("attention", method)
    }


def test_what_a_person_corrects_changes_the_labels_of_all_images(
    taught_run: OpenRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    with taught_run as run:
        before = areas(run, run.config.labelling.method)
        decided = {one.image_id for one in run.store.decisions()}
        monkeypatch.setattr(Decoder, "teach", None)  # it is not needed while nothing is decided anew
        taught = dg.teach(run)
        monkeypatch.undo()
        assert taught.adopted and taught.decoder is not None
        assert (taught.worth.after or 0) > (taught.worth.before or 0)
        assert (taught.corrected, taught.weak) == (len(decided), 0) == (7, 0)
        method = run.store.latest_method("attention")
        assert method is not None and method.startswith("taught-")
        after = areas(run, method)
        assert after.keys() == before.keys() and len(after) == 10
        undecided = before.keys() - decided
        assert sum(after[one] for one in undecided) > 1.2 * sum(before[one] for one in undecided)
        assert dg.label(run).method == method, "the decoder stays in use"

        decide(run, 8)
        again = dg.teach(run)
        assert again.decoder is not None and again.decoder.id != taught.decoder.id
        assert again.corrected == 8


def test_a_decoder_that_is_no_better_is_not_used(run: OpenRun) -> None:
    with run:
        decide(run, 6, pixels=0)  # a person who accepts all attention labels as they are
        taught = dg.teach(run)
        assert not taught.adopted and taught.decoder is not None
        assert taught.worth.before == pytest.approx(0.5), "the IoU of attention with itself is 1"
        assert run.store.latest_method("attention") == run.config.labelling.method
        assert not (run.folder / "taught").exists()


def test_rejected_images_teach_nothing(run: OpenRun) -> None:
    run.close()
    with dg.open_run(run.folder, dg.load_config("miniature", [*QUICK, "teach.images=100"])) as other:
        decided = decide(other, 5)
        rejected = [one for one in other.store.image_ids() if one not in decided][:3]
        dg.decide(other, [dg.Decision(one, "reject", None, "ann") for one in rejected])
        taught = dg.teach(other)
        assert (taught.corrected, taught.weak) == (5, 2)


def test_empty_images_alone_teach_nothing(run: OpenRun) -> None:
    with run:
        nothing = Instances((64, 64), (), (), np.zeros(0))
        dg.decide(run, [dg.Decision(one, "empty", nothing, "ann") for one in run.store.image_ids()])
        taught = dg.teach(run)
        assert taught.decoder is None and "with objects go back to fewer than two prompts" in taught.reason


def test_an_interrupted_drawing_continues(taught_run: OpenRun) -> None:
    with taught_run as run:
        decoder = dg.teach(run).decoder
        assert decoder is not None
        path = run.store.taught_path(decoder.id, next(run.store.image_ids()))
        drawn = run.store.taught(decoder.id, path.stem)
        others = {one: one.stat().st_mtime_ns for one in path.parent.iterdir() if one != path}
        path.unlink()
        dg.teach(run)
        for group, array in run.store.taught(decoder.id, path.stem).maps.items():
            np.testing.assert_allclose(array, drawn.maps[group], atol=0.02)
        assert others == {one: one.stat().st_mtime_ns for one in path.parent.iterdir() if one != path}


def test_without_decisions_nothing_is_taught(run: OpenRun) -> None:
    with run:
        decide(run, 3)
        taught = dg.teach(run)
        assert not taught.adopted and taught.decoder is None
        assert taught.reason == "only 3 images with labels decided, and teach.min_decisions is 4"
        rejected = [dg.Decision(one, "reject", None, "ann") for one in list(run.store.image_ids())[3:]]
        dg.decide(run, rejected)
        assert "only 3 images with labels" in dg.teach(run).reason
    never = dg.load_config("miniature", [*QUICK, "teach.min_decisions=null"])
    with dg.open_run(run.folder, never) as other:
        assert dg.teach(other).reason == "teach.min_decisions is null"


def test_photos_are_labelled_by_what_a_run_was_taught(
    run: OpenRun,
    decided: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    photos = tmp_path / "photos"
    for number, drawn in enumerate(scene_set("streets", 3, (120, 80))):
        write_image(photos / f"{number}.png", drawn.rgb)
    given = ("label", str(photos), "--decoder", str(decided), "--out", str(tmp_path / "set"))
    untaught = ("label", str(photos), "--decoder", str(run.folder), "--out", str(tmp_path / "set"))
    says = ("--prompt", "a photo of a grand piano and a car on a road")
    with run:
        assert run_command(monkeypatch, *untaught, *says) == 2
        assert "has no decoder in use; diffugen teach makes one" in capsys.readouterr().err
    assert run_command(monkeypatch, *given, "--prompt", "a photo of a harp") == 2
    assert "names no class of the run" in capsys.readouterr().err
    assert run_command(monkeypatch, *given) == 2
    assert "diffugen label FOLDER --decoder RUN --prompt TEXT" in capsys.readouterr().err
    assert run_command(monkeypatch, *given, *says, "--tile-size", "64") == 2
    assert "--tile-size needs --detector" in capsys.readouterr().err
    assert run_command(monkeypatch, *given, *says) == 0
    assert "3 images in" in capsys.readouterr().out
    labels = [instances for _, _, instances in read_yolo(tmp_path / "set")]
    assert [one.size_wh for one in labels] == [(120, 80)] * 3
    assert {name for one in labels for name in one.class_names} == {"piano", "car"}
