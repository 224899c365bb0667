"""Later YOLO segmentation models meet the contract too: YOLO11-seg, and YOLO26-seg, which needs no NMS."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from diffugen.detectors.yolo import YoloDetector
from diffugen.errors import ModelError
from tests.support.detector_contract import DetectorContract, Load
from tests.support.yolo_models import detect_model, random_detector


@pytest.fixture(scope="module", params=["yolo11n-seg.yaml", "yolo26n-seg.yaml"])
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


def test_a_model_that_takes_text_as_a_prompt_is_refused() -> None:
    with pytest.raises(ModelError, match=r"yoloe-11s-seg\.yaml is a YOLOE model"):
        YoloDetector("yoloe-11s-seg.yaml", device="cpu")


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
