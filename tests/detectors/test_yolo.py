"""The real YOLOv8n-seg at its smallest: trained for an epoch or two, on images that are not square."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch

from diffugen.dataset import Item, write_yolo
from diffugen.detectors import Detector
from diffugen.detectors.yolo import YoloDetector
from diffugen.detectors.yolo_checkpoint import import_ultralytics, load_checkpoint, save_safetensors
from diffugen.errors import ConfigError, DiffugenError, ModelError
from diffugen.labels import shapes
from diffugen.records import Instances

SIZE_WH = (96, 48)
SCRATCH = "yolov8n-seg.yaml"
ANYTHING = {"image_size": 96, "confidence": 0.001}


def scene(seed: int, class_name: str = "car") -> Item:
    """A frame with a hole, in strong red, on dark noise."""
    random = np.random.default_rng(seed)
    width, height = SIZE_WH
    image = random.integers(0, 40, (height, width, 3), dtype=np.uint8)
    x, y = int(random.integers(2, 50)), int(random.integers(2, 16))
    mask = np.zeros((height, width), dtype=bool)
    mask[y : y + 28, x : x + 40] = True
    mask[y + 8 : y + 16, x + 10 : x + 30] = False
    image[mask] = (230, 60, 20)
    return f"scene-{seed}", image, Instances(SIZE_WH, (class_name,), (shapes.encode(mask),), np.ones(1))


def weights_of(checkpoint: Path) -> dict[str, Any]:
    model = load_checkpoint(checkpoint)[1]
    assert model is not None
    return dict(model.state_dict())


def assert_same(found: list[Instances], expected: list[Instances], tolerance: float = 0.0) -> None:
    assert sum(map(len, expected)) > 0
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.class_names == theirs.class_names
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=tolerance)
        if not tolerance:
            assert ours.rles == theirs.rles


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    splits = {"train": [scene(0), scene(1, "truck"), scene(2), scene(3, "truck")], "val": [scene(4), scene(5, "truck")]}
    return write_yolo(tmp_path_factory.mktemp("set") / "two", splits, ["car", "truck"]).parent


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Sums over several threads come out in another order each time; on one thread a fit is the same bit by bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def fitted(
    dataset: Path, tmp_path_factory: pytest.TempPathFactory, one_thread: None
) -> tuple[Path, list[tuple[int, Mapping[str, float]]]]:
    seen: list[tuple[int, Mapping[str, float]]] = []
    best = YoloDetector(SCRATCH, device="cpu").fit(
        dataset,
        tmp_path_factory.mktemp("fit"),
        epochs=2,
        image_size=64,
        seed=3,
        batch_size=2,
        on_epoch=lambda epoch, values: seen.append((epoch, values)),
    )
    return best, seen


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> YoloDetector:
    """Random weights, with activations normalised on scenes: its predictions are worthless but depend on every pixel."""
    import_ultralytics()
    from ultralytics.nn.tasks import SegmentationModel

    torch.manual_seed(0)
    model = SegmentationModel(SCRATCH, nc=2, verbose=False)
    model.names = {0: "car", 1: "truck"}
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    images = torch.from_numpy(np.stack([np.pad(scene(seed)[1], ((0, 16), (0, 0), (0, 0))) for seed in range(8)]))
    with torch.no_grad():
        model.train()(images.permute(0, 3, 1, 2) / 255)
    file = tmp_path_factory.mktemp("model") / "random.pt"
    torch.save({"model": model.half().eval(), "train_args": {"task": "segment"}}, file)
    return YoloDetector(file, device="cpu")


def test_fit_reports_each_epoch_once(fitted: tuple[Path, list[tuple[int, Mapping[str, float]]]]) -> None:
    best, seen = fitted
    assert best.name == "best.pt"
    assert [epoch for epoch, _ in seen] == [1, 2]
    assert seen[0][1]["train/seg_loss"] > 0
    assert "metrics/mAP50-95(M)" in seen[0][1]


def test_predicts_records_at_the_size_of_each_image(detector: YoloDetector) -> None:
    any_detector: Detector = detector
    images = [scene(7)[1], scene(8)[1].transpose(1, 0, 2), scene(9)[1]]
    found = any_detector.predict(images, **ANYTHING)
    assert detector.class_names == ("car", "truck")
    assert [instances.size_wh for instances in found] == [(96, 48), (48, 96), (96, 48)]
    for instances in found:
        assert len(instances) > 0
        assert set(instances.class_names) <= {"car", "truck"}
        assert (np.diff(instances.scores) <= 0).all()
    assert_same(detector.predict(images[1:2], **ANYTHING), found[1:2], tolerance=1e-3)
    assert [len(none) for none in detector.predict(images, image_size=96, confidence=1.0)] == [0, 0, 0]


def test_predict_equals_ultralytics_on_the_file(detector: YoloDetector, dataset: Path) -> None:
    """The reference reads the file itself, so that swapped colours or axes would show."""
    from ultralytics import YOLO

    file = dataset / "images/val/scene-4.png"
    reference = YOLO(detector.checkpoint)(file, imgsz=96, conf=0.001, retina_masks=True, verbose=False, device="cpu")[0]
    image = scene(4)[1]
    found = detector.predict([image], **ANYTHING)[0]
    np.testing.assert_allclose(found.scores, reference.boxes.conf.numpy(), atol=1e-4)
    assert found.rles == tuple(shapes.encode(mask) for mask in reference.masks.data.numpy().astype(bool))
    swapped = detector.predict([image[..., ::-1]], **ANYTHING)[0]
    assert len(swapped) != len(found) or np.abs(swapped.scores - found.scores).max() > 1e-3


def test_training_sees_the_colours_and_the_masks_that_were_written(dataset: Path) -> None:
    from ultralytics.cfg import get_cfg
    from ultralytics.data import YOLODataset

    data = {"names": {0: "car", 1: "truck"}, "nc": 2, "channels": 3}
    hyper = get_cfg(overrides={"mask_ratio": 1, "task": "segment"})
    loaded = YOLODataset(dataset / "images/val", data=data, task="segment", imgsz=192, augment=False, hyp=hyper)[0]
    instances = scene(4)[2]
    truth = np.kron(shapes.decode(instances.rles[0]), np.ones((2, 2), dtype=bool))
    seen = loaded["masks"].numpy().squeeze().astype(bool)[48:144]  # letter-boxed from 192x96 to 192x192
    assert (seen & truth).sum() / (seen | truth).sum() > 0.99
    red, green, blue = loaded["img"].numpy()[:, 48:144][:, truth].mean(axis=1)
    assert red > 200 > 100 > green > blue


def test_out_of_memory_halves_the_batch_and_gives_what_that_batch_gives(
    dataset: Path, fitted: tuple[Path, Any], tmp_path: Path
) -> None:
    full: list[int] = []

    def run_out_once(epoch: int, values: Mapping[str, float]) -> None:
        if not full:
            full.append(epoch)
            raise torch.OutOfMemoryError("out of memory")

    again = YoloDetector(SCRATCH, device="cpu").fit(
        dataset, tmp_path / "again", epochs=2, image_size=64, seed=3, batch_size=4, on_epoch=run_out_once
    )
    first, second = weights_of(fitted[0]), weights_of(again)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_prediction_out_of_memory_halves_the_batch(detector: YoloDetector) -> None:
    limited = YoloDetector(detector.checkpoint, device="cpu")
    sizes = []

    def too_many(module: Any, arguments: tuple[Any, ...]) -> None:
        sizes.append(len(arguments[0]))
        if len(arguments[0]) > 1:
            raise torch.OutOfMemoryError("out of memory")

    assert limited._model is not None
    limited._model.register_forward_pre_hook(too_many)
    images = [scene(7)[1], scene(8)[1], scene(9)[1]]
    assert_same(limited.predict(images, **ANYTHING), detector.predict(images, **ANYTHING), tolerance=1e-3)
    assert [size for size in sizes if size == 1] == [1, 1, 1]


def test_fit_from_a_checkpoint_keeps_what_fits(fitted: tuple[Path, Any], tmp_path: Path) -> None:
    splits = {"train": [scene(10, "piano"), scene(11), scene(12, "truck"), scene(13, "piano")]}
    data = write_yolo(tmp_path / "three", splits, ["piano", "truck", "car"])
    base = save_safetensors(fitted[0], tmp_path / "base")
    best = YoloDetector(base, device="cpu").fit(
        data, tmp_path / "fit", epochs=1, image_size=64, seed=0, batch_size=4, lr0=1e-9, freeze=10, extra={"val": False}
    )
    before, after = weights_of(fitted[0]), weights_of(best)
    assert YoloDetector(best).class_names == ("piano", "truck", "car")
    for name in ("model.0.conv.weight", "model.0.bn.running_mean", "model.9.cv2.conv.weight"):
        assert torch.equal(before[name], after[name])
    head = "model.22.cv3.0.2.weight"
    assert before[head].shape[0] == 2
    assert after[head].shape[0] == 3
    torch.testing.assert_close(after[head][[2, 1]], before[head], atol=1e-4, rtol=1e-2)
    torch.testing.assert_close(
        after["model.22.proto.cv1.conv.weight"], before["model.22.proto.cv1.conv.weight"], atol=1e-4, rtol=1e-2
    )


def test_safetensors_predict_the_same(detector: YoloDetector, tmp_path: Path) -> None:
    folder = save_safetensors(detector.checkpoint, tmp_path / "base")
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "model.safetensors"]
    assert (folder / "model.safetensors").stat().st_size < 7_000_000
    assert str(detector.checkpoint.parent) not in (folder / "model.json").read_text()
    images = [scene(20)[1], scene(21)[1]]
    assert_same(YoloDetector(folder, device="cpu").predict(images, **ANYTHING), detector.predict(images, **ANYTHING))


def detect_model(folder: Path) -> Path:
    from ultralytics.nn.tasks import DetectionModel

    torch.save({"model": DetectionModel("yolov8n.yaml", nc=2, verbose=False)}, folder / "detect.pt")
    return folder / "detect.pt"


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
    about = {"task": "segment", "class_names": ["car"], "architecture": load_checkpoint(Path(SCRATCH))[0]}
    (folder / "model.json").write_text(json.dumps(about))
    (folder / "model.safetensors").write_bytes(b"torn")
    return folder


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "absent.pt", "no checkpoint at .*nothing is downloaded"),
        (lambda folder: Path("yolov99-seg.yaml"), "no architecture yolov99-seg.yaml"),
        (lambda folder: Path("yolov8n.yaml"), "for the task 'detect'; DiffuGen needs one for 'segment'"),
        (detect_model, "for the task 'detect'; DiffuGen needs one for 'segment'"),
        (no_checkpoint, "not an Ultralytics checkpoint, or damaged"),
        (hostile_pickle, "not an Ultralytics checkpoint, or damaged"),
        (empty_folder, "needs model.json and model.safetensors"),
        (torn_safetensors, "needs model.json and model.safetensors"),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, make: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        YoloDetector(make(tmp_path))
    assert not (tmp_path / "owned").exists()


def test_hostile_pickle_would_have_worked(tmp_path: Path) -> None:
    with pytest.raises((AttributeError, TypeError, pickle.UnpicklingError, KeyError)):
        torch.load(hostile_pickle(tmp_path), weights_only=False)["model"].float()
    assert (tmp_path / "owned").exists()


def test_mistakes_are_named(detector: YoloDetector, dataset: Path, tmp_path: Path) -> None:
    fit: dict[str, Any] = {"epochs": 1, "image_size": 64, "seed": 0}
    with pytest.raises(DiffugenError, match="no training set at"):
        detector.fit(tmp_path / "nowhere", tmp_path / "fit", **fit)
    with pytest.raises(DiffugenError, match="image_size at least 64; got 1 and 32"):
        detector.fit(dataset, tmp_path / "fit", **{**fit, "image_size": 32})
    with pytest.raises(ConfigError, match=r"'mozaic' .*did you mean 'mosaic'") as error:
        detector.fit(dataset, tmp_path / "fit", **fit, extra={"mozaic": 0.5, "epochs": 3})
    assert len(error.value.mistakes) == 2
    with pytest.raises(ModelError, match="refuses to train"):
        detector.fit(dataset, tmp_path / "fit", **fit, extra={"mosaic": "often"})
    with pytest.raises(ModelError, match="without weights"):
        YoloDetector(SCRATCH).predict([scene(0)[1]], image_size=64)
    with pytest.raises(DiffugenError, match=r"image 0 is float64 \(48, 96, 3\)"):
        detector.predict([scene(0)[1] / 255.0], image_size=64)  # type: ignore[list-item]
    with pytest.raises(ModelError, match="no device 'cuda:99' here"):
        YoloDetector(SCRATCH, device="cuda:99")
    assert detector.predict([], image_size=64) == []


def test_silent_and_leaves_no_trace(dataset: Path, tmp_path: Path) -> None:
    """In a fresh process whose home and working folder can be looked at, and whose every connection fails the test."""
    script = f"""
import os, pathlib, socket, sys
def refuse(*arguments, **named):
    print("connection", arguments)
    raise OSError("no network here")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import torch
threads = torch.get_num_threads()
from diffugen.detectors.yolo import YoloDetector
detector = YoloDetector({SCRATCH!r}, device="cpu")
best = detector.fit({str(dataset)!r}, "out/fit", epochs=1, image_size=64, seed=0, batch_size=4, extra={{"val": False}})
YoloDetector(best).predict([], image_size=64)
if torch.get_num_threads() != threads or os.environ.get("OMP_NUM_THREADS") != "2":
    print("threads", threads, torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS"))
"""
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("YOLO", "XDG"))}
    environment |= {"HOME": str(home), "OMP_NUM_THREADS": "2", "PYTHONPATH": os.pathsep.join(sys.path)}
    environment["MPLCONFIGDIR"] = matplotlib.get_configdir()  # where it has its list of fonts already
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=work, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(home.rglob("*")) == []
    assert {path.name for path in work.iterdir()} == {"out"}
    assert {path.name for path in (work / "out/fit").iterdir()} == {"weights", "args.yaml", "results.csv"}
