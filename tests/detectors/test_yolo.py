"""Tests of the real YOLOv8n-seg: trained for an epoch or two on a few images that are not square."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch

from diffugen.config.training import TrainingArguments
from diffugen.dataset.yolo import write_yolo
from diffugen.detectors.yolo import YoloDetector
from diffugen.detectors.yolo_checkpoint import load_checkpoint, save_safetensors
from diffugen.errors import DiffugenError, ModelError
from diffugen.labels import shapes
from tests.support.children import WAIT_SECONDS
from tests.support.detector_contract import (
    ANYTHING,
    FIT_SIZE,
    SEED,
    DetectorContract,
    Fitted,
    Load,
    assert_same,
    scene,
)
from tests.support.yolo_models import detect_model, random_detector, random_model

SCRATCH = "yolov8n-seg.yaml"


def weights_of(checkpoint: Path) -> dict[str, Any]:
    model = load_checkpoint(checkpoint).model
    assert model is not None
    return dict(model.state_dict())


@pytest.fixture(scope="module")
def start() -> YoloDetector:
    return YoloDetector(SCRATCH, device="cpu")


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> YoloDetector:
    return random_detector(SCRATCH, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def load() -> Load:
    return partial(YoloDetector, device="cpu")


@pytest.fixture(scope="module")
def other_task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return detect_model(tmp_path_factory.mktemp("detect"))


class TestContract(DetectorContract):
    pass


def test_fit_keeps_the_best_and_reports_losses_and_metrics(fitted: Fitted) -> None:
    assert fitted.checkpoint.name == "best.pt"
    assert fitted.epochs[0][1]["train/seg_loss"] > 0
    assert "metrics/mAP50-95(M)" in fitted.epochs[0][1]


def test_predict_equals_ultralytics_on_the_file(detector: YoloDetector, dataset: Path) -> None:
    """The reference reads the image file itself, so swapped colours or axes would show."""
    from ultralytics import YOLO

    file = dataset / "images/val/scene-4.png"
    reference = YOLO(detector.checkpoint)(
        file, imgsz=96, conf=0.001, retina_masks=True, verbose=False, device="cpu"
    )[0]
    image = scene(4)[1]
    found = detector.predict([image], **ANYTHING)[0]
    np.testing.assert_allclose(found.scores, reference.boxes.conf.numpy(), atol=1e-4)
    assert found.rles == tuple(shapes.encode(mask) for mask in reference.masks.data.numpy().astype(bool))


def test_training_sees_the_colours_and_the_masks_that_were_written(dataset: Path) -> None:
    from ultralytics.cfg import get_cfg
    from ultralytics.data import YOLODataset

    data = {"names": {0: "car", 1: "truck"}, "nc": 2, "channels": 3}
    hyper = get_cfg(overrides={"mask_ratio": 1, "task": "segment"})
    loaded = YOLODataset(
        dataset / "images/val", data=data, task="segment", imgsz=192, augment=False, hyp=hyper
    )[0]
    instances = scene(4)[2]
    truth = np.kron(shapes.decode(instances.rles[0]), np.ones((2, 2), dtype=bool))
    seen = loaded["masks"].numpy().squeeze().astype(bool)[48:144]  # letter-boxed from 192x96 to 192x192
    assert (seen & truth).sum() / (seen | truth).sum() > 0.99
    red, green, blue = loaded["img"].numpy()[:, 48:144][:, truth].mean(axis=1)
    assert red > 200 > 100 > green > blue


def test_out_of_memory_halves_the_batch_and_gives_what_that_batch_gives(
    start: YoloDetector, dataset: Path, fitted: Fitted, tmp_path: Path, one_thread: None
) -> None:
    full: list[int] = []

    def run_out_once(epoch: int, values: Mapping[str, float]) -> None:
        if not full:
            full.append(epoch)
            raise torch.OutOfMemoryError("out of memory")

    again = start.fit(
        dataset, tmp_path / "again", epochs=2, image_size=64, seed=SEED, batch_size=4, on_epoch=run_out_once
    )
    first, second = weights_of(fitted.checkpoint), weights_of(again)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_prediction_out_of_memory_halves_the_batch(detector: YoloDetector) -> None:
    limited = YoloDetector(detector.checkpoint, device="cpu")
    sizes = []

    def too_many(module: Any, arguments: tuple[Any, ...]) -> None:
        sizes.append(len(arguments[0]))
        if len(arguments[0]) > 1:
            raise torch.OutOfMemoryError("out of memory")

    assert limited._loaded.model is not None
    limited._loaded.model.register_forward_pre_hook(too_many)
    images = [scene(7)[1], scene(8)[1], scene(9)[1]]
    assert_same(limited.predict(images, **ANYTHING), detector.predict(images, **ANYTHING), tolerance=1e-3)
    assert [size for size in sizes if size == 1] == [1, 1, 1]


def test_fit_calls_the_classes_as_the_file_of_another_tool_does(
    start: YoloDetector, dataset: Path, tmp_path: Path
) -> None:
    """In YAML 1.1, which Ultralytics reads, the two would be called False and 90."""
    for part in ("images", "labels"):
        (tmp_path / part).symlink_to(dataset / part)
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [no, 1:30]\n")
    best = start.fit(
        tmp_path, tmp_path / "fit", epochs=1, image_size=64, seed=0, extra=TrainingArguments(val=False)
    )
    assert YoloDetector(best).class_names == ("no", "1:30")


def test_fit_from_a_checkpoint_keeps_weights_that_fit(fitted: Fitted, tmp_path: Path) -> None:
    splits = {"train": [scene(10, "piano"), scene(11), scene(12, "truck"), scene(13, "piano")]}
    data = write_yolo(tmp_path / "three", splits, ["piano", "truck", "car"])
    base = save_safetensors(fitted.checkpoint, tmp_path / "base")
    best = YoloDetector(base, device="cpu").fit(
        data,
        tmp_path / "fit",
        epochs=1,
        image_size=64,
        seed=0,
        batch_size=4,
        lr0=1e-9,
        freeze=10,
        extra=TrainingArguments(val=False),
    )
    before, after = weights_of(fitted.checkpoint), weights_of(best)
    for name in ("model.0.conv.weight", "model.0.bn.running_mean", "model.9.cv2.conv.weight"):
        assert torch.equal(before[name], after[name])
    head = "model.22.cv3.0.2.weight"
    assert before[head].shape[0] == 2
    assert after[head].shape[0] == 3
    torch.testing.assert_close(after[head][[2, 1]], before[head], atol=1e-4, rtol=1e-2)
    torch.testing.assert_close(
        after["model.22.proto.cv1.conv.weight"],
        before["model.22.proto.cv1.conv.weight"],
        atol=1e-4,
        rtol=1e-2,
    )


def test_safetensors_predict_the_same(detector: YoloDetector, tmp_path: Path) -> None:
    folder = save_safetensors(detector.checkpoint, tmp_path / "base")
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "model.safetensors"]
    assert (folder / "model.safetensors").stat().st_size < 7_000_000
    assert str(detector.checkpoint.parent) not in (folder / "model.json").read_text()
    images = [scene(20)[1], scene(21)[1]]
    assert_same(
        YoloDetector(folder, device="cpu").predict(images, **ANYTHING), detector.predict(images, **ANYTHING)
    )


def no_checkpoint(folder: Path) -> Path:
    (folder / "notes.pt").write_text("no weights in here")
    return folder / "notes.pt"


def hostile_pickle(folder: Path) -> Path:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(folder / "owned"),)

    torch.save({"model": Hostile()}, folder / "hostile.pt")
    return folder / "hostile.pt"


def empty_folder(folder: Path) -> Path:
    return folder


def torn_safetensors(folder: Path) -> Path:
    about = {
        "task": "segment",
        "class_names": ["car"],
        "architecture": load_checkpoint(Path(SCRATCH)).architecture,
    }
    (folder / "model.json").write_text(json.dumps(about))
    (folder / "model.safetensors").write_bytes(b"torn")
    return folder


def test_safetensors_keep_the_image_size(fitted: Fitted, detector: YoloDetector, tmp_path: Path) -> None:
    """A checkpoint of unknown size is saved without the key, as DiffuGen did before it knew sizes."""
    sized, unsized = (
        save_safetensors(checkpoint, tmp_path / name)
        for name, checkpoint in (("sized", fitted.checkpoint), ("unsized", detector.checkpoint))
    )
    assert YoloDetector(sized, device="cpu").image_size == FIT_SIZE
    assert "image_size" not in json.loads((unsized / "model.json").read_text())
    assert YoloDetector(unsized, device="cpu").image_size is None


@pytest.mark.parametrize(
    ("train_args", "model_args", "expected"),
    [
        ({"imgsz": 640}, None, 640),
        ({"imgsz": [384, 672]}, None, 672),
        ({"imgsz": (64,)}, {"imgsz": 320}, 64),
        (None, {"imgsz": 320}, 320),
        (None, SimpleNamespace(imgsz=320), 320),
        ({"task": "segment"}, None, None),
        ({"imgsz": []}, None, None),
        ({"imgsz": 0}, None, None),
        ({"imgsz": "640"}, None, None),
        ({"imgsz": True}, None, None),
        ("imgsz", None, None),
        (None, None, None),
    ],
)
def test_the_image_size_is_read_from_the_training_arguments(
    tmp_path: Path, train_args: Any, model_args: Any, expected: int | None
) -> None:
    model = random_model(SCRATCH)
    if model_args is not None:
        model.args = model_args
    with torch.serialization.safe_globals([SimpleNamespace]):
        torch.save({"model": model, "train_args": train_args}, tmp_path / "sized.pt")
        assert YoloDetector(tmp_path / "sized.pt", device="cpu").image_size == expected


def test_the_miniature_knows_its_image_size() -> None:
    assert YoloDetector("miniature", device="cpu").image_size == 128


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "absent.pt", "no checkpoint at .*published one"),
        (lambda folder: Path("yolov99-seg.yaml"), "no architecture yolov99-seg.yaml"),
        (lambda folder: Path("yolov8n.yaml"), "for the task 'detect'; DiffuGen needs one for 'segment'"),
        (no_checkpoint, "not an Ultralytics checkpoint, or is damaged"),
        (hostile_pickle, "not an Ultralytics checkpoint, or is damaged"),
        (empty_folder, "needs a model.json and a model.safetensors"),
        (torn_safetensors, "needs a model.json and a model.safetensors"),
    ],
)
def test_bad_checkpoints_are_rejected(tmp_path: Path, make: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        YoloDetector(make(tmp_path))
    assert not (tmp_path / "owned").exists()


def test_the_hostile_pickle_runs_code_if_loaded_unsafely(tmp_path: Path) -> None:
    with pytest.raises((AttributeError, TypeError, pickle.UnpicklingError, KeyError)):
        torch.load(hostile_pickle(tmp_path), weights_only=False)["model"].float()
    assert (tmp_path / "owned").exists()


def test_messages_name_the_mistake(detector: YoloDetector, dataset: Path, tmp_path: Path) -> None:
    fit: dict[str, Any] = {"epochs": 1, "image_size": 64, "seed": 0}
    with pytest.raises(DiffugenError, match="image_size at least 64; got 1 and 32"):
        detector.fit(dataset, tmp_path / "fit", **{**fit, "image_size": 32})
    with pytest.raises(
        DiffugenError, match=r"detector.ignore_band is 0.01, but YOLO's loss counts every pixel"
    ):
        detector.fit(dataset, tmp_path / "fit", **{**fit, "ignore_band": 0.01})
    with pytest.raises(ModelError, match="without weights"):
        YoloDetector(SCRATCH).predict([scene(0)[1]], image_size=64)
    with pytest.raises(ModelError, match="device 'cuda:99' is not available"):
        YoloDetector(SCRATCH, device="cuda:99")


def test_fit_and_predict_are_silent_offline_and_leave_no_files(dataset: Path, tmp_path: Path) -> None:
    """Run in a fresh process with its own home and working folder, where every connection is an error."""
    script = f"""
import os, pathlib, socket, sys
def refuse(*arguments, **named):
    print("connection", arguments)
    raise OSError("no network here")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import torch
threads = torch.get_num_threads()
from diffugen.config.training import TrainingArguments
from diffugen.detectors.yolo import YoloDetector
detector = YoloDetector({SCRATCH!r}, device="cpu")
best = detector.fit(
    {str(dataset)!r}, "out/fit", epochs=1, image_size=64, seed=0, batch_size=4,
    extra=TrainingArguments(val=False),
)
YoloDetector(best).predict([], image_size=64)
if torch.get_num_threads() != threads or os.environ.get("OMP_NUM_THREADS") != "2":
    print("threads", threads, torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS"))
"""
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("YOLO", "XDG"))}
    environment |= {"HOME": str(home), "OMP_NUM_THREADS": "2", "PYTHONPATH": os.pathsep.join(sys.path)}
    environment["MPLCONFIGDIR"] = matplotlib.get_configdir()  # holds the list of fonts already
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_SECONDS,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(home.rglob("*")) == []
    assert {path.name for path in work.iterdir()} == {"out"}
    assert {path.name for path in (work / "out/fit").iterdir()} == {"weights", "args.yaml", "results.csv"}
