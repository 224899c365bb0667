"""Later YOLO segmentation models meet the contract too: YOLO26-seg, which needs no NMS, and YOLOE-11-seg,
which takes text as prompts and is trained as the YOLO11-seg that it extends.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest
import torch

from diffugen.detectors.yolo import YoloDetector
from diffugen.detectors.yolo_checkpoint import load_checkpoint
from diffugen.errors import ModelError
from tests.support.detector_contract import ANYTHING, DetectorContract, Load, scene
from tests.support.yolo_models import detect_model, random_detector, random_model


@pytest.fixture(scope="module", params=["yolo26n-seg.yaml", "yoloe-11n-seg.yaml"])
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def start(architecture: str) -> YoloDetector:
    return YoloDetector(architecture, device="cpu")


@pytest.fixture(scope="module")
def detector(architecture: str, tmp_path_factory: pytest.TempPathFactory) -> YoloDetector:
    return random_detector(architecture, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def load() -> Load:
    return partial(YoloDetector, device="cpu")


@pytest.fixture(scope="module")
def other_task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return detect_model(tmp_path_factory.mktemp("detect"))


class TestContract(DetectorContract):
    pass


@pytest.mark.parametrize("version", ["v8", "11", "26"])
def test_a_model_without_prompts_can_only_be_fitted(version: str, tmp_path: Path) -> None:
    model = random_model(f"yoloe-{version}n-seg.yaml")
    del model.pe
    torch.save({"model": model.half(), "train_args": {"imgsz": 96}}, tmp_path / "yoloe.pt")
    start = YoloDetector(tmp_path / "yoloe.pt", device="cpu")
    assert not start.class_names and start.image_size == 96
    with pytest.raises(ModelError, match=r"yoloe\.pt has no classes: .* a YOLOE model that was saved"):
        start.predict([scene(0)[1]], **ANYTHING)
    fitted = load_checkpoint(tmp_path / "yoloe.pt").weights
    assert fitted is not None and type(fitted.model[-1]).__name__ in ("Segment", "Segment26")
    theirs = {
        name.replace("cv5", "cv4"): value for name, value in model.state_dict().items() if "cv4" not in name
    }
    new = [
        name for name, value in fitted.state_dict().items() if not torch.equal(value, theirs[name].float())
    ]
    assert new and all(
        re.fullmatch(r"model\.\d+\.(one2one_)?cv3\.\d\.2\.(weight|bias)", name) for name in new
    )


def test_a_model_with_a_vocabulary_predicts_it(tmp_path: Path) -> None:
    """As the published checkpoints whose names end in ``-pf``."""
    model, other = (random_model("yoloe-11n-seg.yaml").eval() for _ in range(2))
    other.model[-1].fuse(other.pe)
    model.args = {"imgsz": 96}
    model.set_vocab(torch.nn.ModuleList(head[-1] for head in other.model[-1].cv3), ["car", "truck"])
    torch.save({"model": model.half()}, tmp_path / "yoloe-pf.pt")
    detector = YoloDetector(tmp_path / "yoloe-pf.pt", device="cpu")
    assert detector.class_names == ("car", "truck")
    found = detector.predict([scene(seed)[1] for seed in range(3)], **ANYTHING)
    assert any(map(len, found)) and {name for one in found for name in one.class_names} <= {"car", "truck"}


def test_a_published_checkpoint_comes_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    place = tmp_path / "hub/checkpoints/yolo11n-seg.pt"
    with pytest.raises(ModelError, match=f"HF_HUB_OFFLINE is set; copy it to {place}"):
        YoloDetector("yolo11n-seg.pt", device="cpu")
    place.parent.mkdir(parents=True)
    random_detector("yolo11n-seg.yaml", place.parent)
    (place.parent / "random.pt").rename(place)
    assert YoloDetector("yolo11n-seg.pt", device="cpu").class_names == ("car", "truck")
    with pytest.raises(ModelError, match=r"no checkpoint at my-seg\.pt"):
        YoloDetector("my-seg.pt", device="cpu")


def test_a_download_that_fails_says_where_to_put_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(
        ModelError, match=r"yolo11n-seg\.pt is not here, and its download failed: .* Copy it to"
    ):
        YoloDetector("yolo11n-seg.pt", device="cpu")
    assert not list(tmp_path.rglob("*.p*t"))
