"""The label stage with a segmenter: images of the miniature, labelled by a tiny model with random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import diffugen as dg
from diffugen import stages
from diffugen.config import DetectorSettings, Labelling, LabelSettings, ScoreWeights
from diffugen.detectors.sam import SamSegmenter
from diffugen.errors import ModelError
from diffugen.labels import label
from diffugen.run import RunStore
from tests.support import store_child as child
from tests.support.rounds import round_of
from tests.support.sam_models import random_sam, shrink

KIND = "sam2.1_t.pt"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)


def test_the_miniatures_objects_are_outlined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = random_sam(tmp_path, KIND)
    given = [
        "prompts.count=2",
        "diffusion.num_inference_steps=2",
        "diffusion.size_wh=[96, 64]",
        "labels.source=attention",
        "labels.refine=sam",
        f"labels.segmenter={file}",
        "detector.device=cpu",
    ]
    config = dg.load_config("miniature", given)
    # Random weights agree with nothing, so here they need not.
    monkeypatch.setattr("diffugen.labels.segmenter.AGREEMENT_IOU", 0.0)
    with dg.open_run(tmp_path / "run", config) as run:
        dg.generate(run)
        made = dg.label(run)
        assert (made.images, made.method) == (2, config.labelling.method) and made.objects
        segmenter = SamSegmenter(file, device="cpu")
        for kept in run.store.labels("attention", made.method):
            rgb, heat_maps = run.store.image(kept.image_id), run.store.heat_maps(kept.image_id)
            assert rgb.shape == (64, 96, 3)
            rough = label(heat_maps, config.labels.changed(refine="none"), config.score, rgb)
            outlined = label(heat_maps, config.labels, config.score, rgb, segmenter=segmenter)
            assert kept.instances.rles == outlined.rles != rough.rles
            np.testing.assert_allclose(kept.instances.scores, outlined.scores, atol=1e-6)


def labelling(checkpoint: Path | str) -> Labelling:
    settings = LabelSettings(refine="sam", segmenter=str(checkpoint))
    return Labelling(settings, ScoreWeights(), base=DetectorSettings(device="cpu"))


def add_image(store: RunStore, number: int) -> None:
    record = child.make_record(number, round=0)
    store.add_image(record, child.make_rgb(record), child.make_heat_maps(record), 1.0)


def test_it_is_loaded_before_the_first_image_and_only_for_images_without_labels(
    store: RunStore, tmp_path: Path
) -> None:
    add_image(store, 0)
    file = tmp_path / KIND
    with pytest.raises(ModelError, match=f"no segmenter at {file}"):
        stages.label(round_of(store), labelling(file))
    assert not list(store.labels("attention"))
    random_sam(tmp_path, KIND)
    assert stages.label(round_of(store), labelling(file)).images == 1
    file.unlink()
    assert stages.label(round_of(store), labelling(file)).images == 1, "nothing is left to do"


def test_a_checkpoint_can_lie_in_the_runs_folder(store: RunStore) -> None:
    add_image(store, 0)
    random_sam(store.folder, KIND)
    assert stages.label(round_of(store), labelling(KIND)).images == 1


def test_it_runs_on_the_device_of_the_detector(store: RunStore, tmp_path: Path) -> None:
    add_image(store, 0)
    elsewhere = labelling(random_sam(tmp_path, KIND))
    elsewhere = Labelling(elsewhere.settings, elsewhere.weights, base=DetectorSettings(device="cuda:99"))
    with pytest.raises(ModelError, match="device 'cuda:99' is not available"):
        stages.label(round_of(store), elsewhere)
