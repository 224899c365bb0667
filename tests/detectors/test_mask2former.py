"""Tests of a real Mask2Former of the smallest size, trained for an epoch or two on a few images."""

from __future__ import annotations

import io
import random
import subprocess
import sys
import time
import tracemalloc
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import DetrConfig, Mask2FormerForUniversalSegmentation

from diffugen.config.training import TrainingArguments
from diffugen.dataset.files import Item
from diffugen.dataset.yolo import read_yolo
from diffugen.detectors.mask2former import Mask2FormerDetector, is_mask2former
from diffugen.detectors.mask2former_fit import STATE
from diffugen.detectors.mask2former_loss import edge_band, ignore_bands, set_bands
from diffugen.errors import DiffugenError, ModelError
from diffugen.labels.shapes import encode
from diffugen.records import Instances
from tests.support.children import WAIT_SECONDS
from tests.support.detector_contract import DetectorContract, Fitted, Load, background, scene
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


class Killed(BaseException):
    pass


def fit_until(stop: float, start: Mask2FormerDetector, dataset: Path, out: Path, **more: Any) -> list[int]:
    """Fit for three epochs, but die once so many are done; return the numbers of the epochs that ended."""
    ended: list[int] = []

    def on_step(done: float) -> None:
        if done > stop:
            raise Killed

    arguments = {"epochs": 3, "image_size": 64, "seed": 3, "batch_size": 2, **more}
    with pytest.raises(Killed) if stop < 3 else nullcontext():
        start.fit(dataset, out, on_step=on_step, on_epoch=lambda number, _: ended.append(number), **arguments)
    return ended


def weights_of(out: Path) -> bytes:
    return (out / "weights/best/model.safetensors").read_bytes()


def test_it_is_not_trained_on_several_gpus(
    start: Mask2FormerDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    several = Mask2FormerDetector(start.checkpoint, device="cuda:0,1")
    with pytest.raises(DiffugenError, match=r"names 2 GPUs, but a Mask2Former trains on one; give cuda:0"):
        several.check_fit(extra=None, ignore_band=0.0, batch_size=None)


@pytest.mark.parametrize("more", [{}, {"freeze": 1, "ignore_band": 0.02}], ids=["plain", "with options"])
def test_an_interrupted_training_continues_as_if_it_had_not_been(
    start: Mask2FormerDetector, dataset: Path, tmp_path: Path, one_thread: None, more: dict[str, Any]
) -> None:
    """Bit for bit, wherever it stopped; and nothing is left of the interruption."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert fit_until(3, start, dataset, whole, **more) == [1, 2, 3]
    assert fit_until(0.3, start, dataset, broken, **more) == []
    assert fit_until(1.3, start, dataset, broken, **more) == [1]
    assert not (broken / "weights/best").exists(), "half of a training is no detector"
    assert fit_until(2.3, start, dataset, broken, **more) == [2]
    assert fit_until(3, start, dataset, broken, **more) == [3]
    assert weights_of(broken) == weights_of(whole)
    assert sorted(path.name for path in broken.iterdir()) == ["weights"]


def test_a_training_killed_after_its_last_epoch_only_writes_the_checkpoint(
    start: Mask2FormerDetector, dataset: Path, tmp_path: Path, one_thread: None
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    fit_until(3, start, dataset, whole)
    fit_until(2.3, start, dataset, broken)
    kept = (broken / STATE).read_bytes()
    fit_until(3, start, dataset, broken)
    state = torch.load(io.BytesIO(kept), weights_only=True)
    assert state["epochs"] == 2
    with pytest.raises(RuntimeError, match="stop"):  # after the last epoch's state was written
        start.fit(
            dataset,
            broken,
            epochs=3,
            image_size=64,
            seed=3,
            batch_size=2,
            on_epoch=lambda number, _: stop_at(number, 3),
        )
    assert fit_until(3, start, dataset, broken) == []
    assert weights_of(broken) == weights_of(whole)


def stop_at(number: int, last: int) -> None:
    if number == last:
        raise RuntimeError("stop")


def test_another_training_is_not_continued(
    start: Mask2FormerDetector, detector: Mask2FormerDetector, dataset: Path, tmp_path: Path, one_thread: None
) -> None:
    """Of other arguments, from another checkpoint, or on other images or labels."""
    from diffugen.dataset.yolo import write_yolo

    other_labels, other_pixels = (list(read_yolo(dataset, "train")) for _ in range(2))
    name, rgb, instances = other_labels[-1]
    other_labels[-1] = (name, rgb, instances.renamed({"car": "truck", "truck": "car"}))
    other_pixels[-1] = (name, rgb // 2, instances)
    sets = []
    for number, items in enumerate((other_labels, other_pixels)):
        splits = {"train": items, "val": list(read_yolo(dataset, "val"))}
        sets.append(write_yolo(tmp_path / f"set-{number}", splits, ["car", "truck"]))
    changes: list[tuple[Mask2FormerDetector, Path, dict[str, Any]]] = [
        *(
            (start, dataset, more)
            for more in ({"seed": 4}, {"lr0": 1e-3}, {"batch_size": 3}, {"image_size": 96})
        ),
        *((start, dataset, more) for more in ({"freeze": 1}, {"ignore_band": 0.02}, {"epochs": 4})),
        (detector, dataset, {}),
        *((start, one, {}) for one in sets),
    ]
    out = tmp_path / "fit"
    assert fit_until(1.2, start, dataset, out) == [1]
    kept = (out / STATE).read_bytes()
    for other, images, more in changes:
        (out / STATE).write_bytes(kept)
        assert fit_until(1.2, other, images, out, **more) == [1], f"{more} continued it"
    (out / STATE).write_bytes(kept[:1000])
    with pytest.raises(ModelError, match=r"interrupted training, .*unfinished.pt .* remove it to train from"):
        start.fit(dataset, out, epochs=3, image_size=64, seed=3, batch_size=2)


@pytest.mark.slow
def test_a_killed_process_continues(start: Mask2FormerDetector, dataset: Path, tmp_path: Path) -> None:
    """After ``kill -9`` at moments that nobody chose."""
    code = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from pathlib import Path\n"
        "from diffugen.detectors.mask2former import Mask2FormerDetector\n"
        "start, dataset, out = map(Path, sys.argv[1:])\n"
        "Mask2FormerDetector(start, device='cpu').fit(\n"
        "    dataset, out, epochs=12, image_size=64, seed=3, batch_size=2,\n"
        "    on_epoch=lambda number, _: print(number, flush=True))\n"
    )
    whole, broken = tmp_path / "whole", tmp_path / "broken"

    def command(out: Path) -> list[str]:
        return [sys.executable, "-c", code, str(start.checkpoint), str(dataset), str(out)]

    subprocess.run(command(whole), check=True, capture_output=True, timeout=WAIT_SECONDS)
    moments, first = random.Random(1), []
    for _ in range(3):
        with subprocess.Popen(command(broken), stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            first.append(int(process.stdout.readline()))
            time.sleep(moments.uniform(0, 0.6))
            process.kill()
    assert first == sorted(set(first)), "no epoch is trained twice"
    subprocess.run(command(broken), check=True, capture_output=True, timeout=WAIT_SECONDS)
    assert weights_of(broken) == weights_of(whole)


def test_images_are_not_held_in_memory(start: Mask2FormerDetector, tmp_path: Path) -> None:
    from diffugen.dataset.yolo import write_yolo

    def large(number: int) -> Item:
        rgb = np.zeros((1300, 1400, 3), np.uint8)
        mask = np.zeros(rgb.shape[:2], np.bool_)
        mask[100:400, 200 : 400 + number] = True
        return f"large-{number}", rgb, Instances((1400, 1300), ("car",), (encode(mask),), np.ones(1))

    items = [large(number) for number in range(20)]
    pixels = sum(rgb.nbytes for _, rgb, _ in items)
    write_yolo(tmp_path / "set", {"train": items, "val": [large(30)]}, ["car"])
    del items
    tracemalloc.start()
    try:
        start.fit(tmp_path / "set", tmp_path / "fit", epochs=1, image_size=64, seed=0, batch_size=2)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < pixels, "reading a label file alone takes up to 64 MB"


def test_pixels_in_a_band_do_not_count(start: Mask2FormerDetector) -> None:
    """The mask losses are the same whatever the label says there, and differ if it says so beyond."""
    model = start._new_model(["car", "truck"], 64)
    ignore_bands(model)
    mask = torch.zeros(1, 48, 64)
    mask[:, 10:30, 20:50] = 1
    band = edge_band(mask, 3)
    inside, outside = mask.clone(), mask.clone()
    inside[band > 0] = 1 - inside[band > 0]
    outside[:, 40:, :10] = 1
    set_bands(model, [band])
    losses = [_mask_losses(model, one) for one in (mask, inside, outside)]
    assert losses[0] == losses[1] != losses[2]
    set_bands(model, [torch.zeros_like(band)])
    assert _mask_losses(model, mask) != _mask_losses(model, inside)


def _mask_losses(model: Mask2FormerForUniversalSegmentation, mask: torch.Tensor) -> list[float]:
    torch.manual_seed(0)
    queries = torch.randn(1, 8, 12, 16)
    pairs = [(torch.tensor([5]), torch.tensor([0]))]
    return [float(one) for one in model.criterion.loss_masks(queries, [mask], pairs, 1).values()]


def test_a_band_covers_both_sides_of_an_edge_but_not_of_the_image() -> None:
    mask = torch.zeros(2, 12, 20)
    mask[0, 4:9, :7] = 1
    band = edge_band(mask, 2)
    assert band[0, 6].tolist() == [0] * 5 + [1] * 4 + [0] * 11
    assert band[0, :, 1].tolist() == [0, 0, 1, 1, 1, 1, 0, 1, 1, 1, 1, 0]
    assert not band[1].any()
    assert edge_band(mask[:0], 2).shape == (0, 12, 20)


def test_a_mask_that_is_all_band_still_trains(start: Mask2FormerDetector, tmp_path: Path) -> None:
    from diffugen.dataset.yolo import write_yolo

    write_yolo(tmp_path / "set", {"train": [scene(0), background(1)], "val": [scene(1)]}, ["car"])
    losses: list[float] = []
    start.fit(
        tmp_path / "set",
        tmp_path / "fit",
        epochs=2,
        image_size=64,
        seed=0,
        ignore_band=0.19,
        on_epoch=lambda number, values: losses.append(values["train/loss"]),
    )
    assert all(0 < loss < 1000 for loss in losses)


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
