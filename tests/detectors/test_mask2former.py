"""Tests of a real Mask2Former of the smallest size, trained for an epoch or two on a few images."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import DetrConfig, Mask2FormerForUniversalSegmentation

from diffugen.config.training import TrainingArguments
from diffugen.detectors.mask2former import Mask2FormerDetector, is_mask2former
from diffugen.errors import DiffugenError, ModelError
from tests.support.detector_contract import DetectorContract, Fitted, Load, scene
from tests.support.mask2former_models import tiny_config


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Mask2FormerDetector:
    folder = tmp_path_factory.mktemp("architecture")
    tiny_config().save_pretrained(folder)
    return Mask2FormerDetector(folder, device="cpu")


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Mask2FormerDetector:
    """Return a detector with random weights that are large enough for predictions to differ by image."""
    folder = tmp_path_factory.mktemp("random")
    torch.manual_seed(0)
    names = {0: "car", 1: "truck"}
    model = Mask2FormerForUniversalSegmentation(tiny_config(id2label=names, label2id={"car": 0, "truck": 1}))
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim > 1:
                weights.mul_(3.0)
    model.save_pretrained(folder)
    return Mask2FormerDetector(folder, device="cpu")


@pytest.fixture(scope="module")
def load() -> Load:
    return partial(Mask2FormerDetector, device="cpu")


@pytest.fixture(scope="module")
def other_task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("detr")
    DetrConfig(use_timm_backbone=False, use_pretrained_backbone=False).save_pretrained(folder)
    return folder


class TestContract(DetectorContract):
    pass


def test_fit_reports_the_loss_and_keeps_a_folder(fitted: Fitted) -> None:
    assert fitted.checkpoint.name == "best" and (fitted.checkpoint / "model.safetensors").is_file()
    assert all(values["train/loss"] > 0 for _, values in fitted.epochs)
    assert {"metrics/mAP50(M)", "metrics/mAP50-95(M)"} <= fitted.epochs[0][1].keys()


def test_weights_of_known_classes_are_kept(detector: Mask2FormerDetector) -> None:
    model = detector._new_model(["bus", "truck"], 64)
    assert detector._model is not None
    theirs, ours = detector._model.class_predictor.weight, model.class_predictor.weight
    assert torch.equal(ours[1:], theirs[1:]) and not torch.equal(ours[0], theirs[0])


def test_of_equal_epochs_the_last_is_kept(start: Mask2FormerDetector, dataset: Path, tmp_path: Path) -> None:
    """As long as nothing is found in the validation images, all epochs are equal."""
    precisions: list[float] = []
    made = [
        start.fit(
            dataset,
            tmp_path / str(epochs),
            epochs=epochs,
            image_size=64,
            seed=0,
            on_epoch=lambda number, values: precisions.append(values["metrics/mAP50-95(M)"]),
        )
        for epochs in (1, 2)
    ]
    assert precisions == [0.0] * 3
    first, second = (Mask2FormerDetector(one, device="cpu")._model for one in made)
    assert first is not None and second is not None
    assert not torch.equal(first.class_predictor.weight, second.class_predictor.weight)


def test_a_frozen_backbone_stays_as_it_is(
    detector: Mask2FormerDetector, dataset: Path, tmp_path: Path
) -> None:
    fit = partial(detector.fit, dataset, epochs=1, image_size=64, seed=0)
    frozen, free = (
        Mask2FormerDetector(fit(tmp_path / str(freeze), freeze=freeze), device="cpu")._model
        for freeze in (1, None)
    )
    assert detector._model is not None and frozen is not None and free is not None
    before = detector._model.model.pixel_level_module.encoder.state_dict()
    for model, same in ((frozen, True), (free, False)):
        after = model.model.pixel_level_module.encoder.state_dict()
        assert all(torch.equal(after[name], before[name]) for name in before) == same


def test_semantic_checkpoints_and_ultralytics_arguments_are_refused(
    detector: Mask2FormerDetector, dataset: Path, tmp_path: Path
) -> None:
    tiny_config().save_pretrained(tmp_path / "mask2former-ade-semantic")
    with pytest.raises(ModelError, match=r"another task \(semantic\)"):
        Mask2FormerDetector(tmp_path / "mask2former-ade-semantic")
    (tmp_path / "broken").mkdir()
    tiny_config().save_pretrained(tmp_path / "broken")
    (tmp_path / "broken/model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(ModelError, match=r"cannot load .*broken"):
        Mask2FormerDetector(tmp_path / "broken")
    with pytest.raises(DiffugenError, match=r"detector.extra \(mosaic\) is for YOLO"):
        detector.fit(
            dataset, tmp_path / "fit", epochs=1, image_size=64, seed=0, extra=TrainingArguments(mosaic=0.5)
        )


def test_the_checkpoint_tells_which_detector_it_is(detector: Mask2FormerDetector, tmp_path: Path) -> None:
    assert is_mask2former(detector.checkpoint)
    assert is_mask2former("facebook/mask2former-swin-tiny-coco-instance")
    (tmp_path / "weights").mkdir()
    for name in ("miniature", "yolov8n-seg.pt", "weights/best.pt", "yolo11n-seg.yaml", tmp_path / "weights"):
        assert not is_mask2former(name)


def test_it_learns_what_it_is_shown(start: Mask2FormerDetector, tmp_path: Path) -> None:
    """A loss that falls, on one image that is shown again and again."""
    from diffugen.dataset.yolo import write_yolo

    write_yolo(tmp_path / "set", {"train": [scene(0)], "val": [scene(1)]}, ["car"])
    losses: list[float] = []
    start.fit(
        tmp_path / "set",
        tmp_path / "fit",
        epochs=30,
        image_size=64,
        seed=0,
        lr0=3e-3,
        on_epoch=lambda number, values: losses.append(values["train/loss"]),
    )
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
