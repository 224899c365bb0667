"""The teaching stage on the miniature: what decisions change, what is kept, and when nothing is taught."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

import diffugen as dg
from diffugen.labels.decoder import Decoder
from diffugen.labels.shapes import decode, encode
from diffugen.records import Instances
from diffugen.stages.verbs import OpenRun

QUICK = (
    "prompts.count=10",
    "diffusion.num_inference_steps=4",
    "diffusion.device=cpu",
    "labels.witness=none",
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


@pytest.fixture(name="run")
def run_fixture(labelled: Path, tmp_path: Path) -> OpenRun:
    import shutil

    shutil.copytree(labelled, tmp_path / "run")
    return dg.open_run(tmp_path / "run", dg.load_config("miniature", QUICK))


def areas(run: OpenRun, method: str) -> dict[str, float]:
    return {
        one.image_id: float(sum(decode(rle).sum() for rle in one.instances.rles))
        for one in run.store.labels("attention", method)
    }


def test_what_a_person_corrects_changes_the_labels_of_all_images(
    run: OpenRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    with run:
        before = areas(run, run.config.labelling.method)
        decided = decide(run, 7)
        taught = dg.teach(run)
        assert taught.adopted and taught.decoder is not None
        assert taught.worth.after > taught.worth.before
        assert (taught.corrected, taught.weak) == (7, 0)
        method = run.store.latest_method("attention")
        assert method is not None and method.startswith("taught-")
        after = areas(run, method)
        assert after.keys() == before.keys() and len(after) == 10
        undecided = before.keys() - set(decided)
        assert sum(after[one] for one in undecided) > 1.2 * sum(before[one] for one in undecided)
        assert dg.label(run).method == method, "the decoder stays in use"

        monkeypatch.setattr(Decoder, "teach", None)  # it is not needed while nothing is decided anew
        assert dg.teach(run) == taught
        monkeypatch.undo()
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


def test_an_interrupted_drawing_continues(run: OpenRun) -> None:
    with run:
        decide(run, 7)
        decoder = dg.teach(run).decoder
        assert decoder is not None
        path = run.store.taught_path(decoder.id, next(run.store.image_ids()))
        drawn = run.store.taught(decoder.id, path.stem)
        others = {one: one.stat().st_mtime_ns for one in path.parent.iterdir() if one != path}
        path.unlink()
        dg.teach(run)
        [(group, array)] = run.store.taught(decoder.id, path.stem).maps.items()
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
