"""Training of a YOLO model by several processes, on the CPU in place of GPUs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from diffugen.detectors.yolo import YoloDetector
from diffugen.errors import DiffugenError, ModelError
from tests.support.children import WAIT_SECONDS, restore_signals
from tests.support.detector_contract import FIT_SIZE, SEED
from tests.support.two_devices import FAILURE, use_two_devices

SCRATCH = "yolov8n-seg.yaml"


@pytest.fixture
def detector(monkeypatch: pytest.MonkeyPatch) -> YoloDetector:
    use_two_devices(monkeypatch)
    return YoloDetector(SCRATCH, device="cuda:0,1")


def processes(folder: Path) -> list[int]:
    """Return the processes that take part in a training whose output goes into this folder."""
    return [int(path.read_text()) for path in sorted(folder.glob("process-?"))]


def ended(pids: list[int]) -> bool:
    """Return whether processes end."""
    started = time.monotonic()
    while any(psutil.pid_exists(pid) for pid in pids):
        if time.monotonic() - started > WAIT_SECONDS:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.slow
def test_each_device_has_a_process_and_the_first_reports(
    detector: YoloDetector, dataset: Path, tmp_path: Path
) -> None:
    epochs: list[tuple[int, Mapping[str, float]]] = []
    steps: list[float] = []
    best = detector.fit(
        dataset,
        tmp_path / "fit",
        epochs=2,
        image_size=FIT_SIZE,
        seed=SEED,
        batch_size=2,
        on_epoch=lambda number, values: epochs.append((number, values)),
        on_step=steps.append,
    )
    assert len(set(processes(tmp_path))) == 2 and os.getpid() not in processes(tmp_path)
    assert [number for number, _ in epochs] == [1, 2]
    assert epochs[0][1]["train/seg_loss"] > 0 and "metrics/mAP50-95(M)" in epochs[0][1]
    # Five images: three for each of two processes, one of them twice, in steps of one image each.
    assert steps == pytest.approx([1 / 4, 2 / 4, 3 / 4, 5 / 4, 6 / 4, 7 / 4])
    trained = YoloDetector(best, device="cpu")
    assert trained.class_names == ("car", "truck") and best == tmp_path / "fit" / "weights" / "best.pt"
    assert not list(dataset.rglob("*.cache"))
    assert ended(processes(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("said", "error"),
    [("the GPU is gone", "training on 2 GPUs failed: RuntimeError: the GPU is gone"), ("", "out of memory")],
)
def test_a_process_that_fails_ends_all(
    detector: YoloDetector,
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: str,
    error: str,
) -> None:
    monkeypatch.setenv(FAILURE, said or "CUDA out of memory. Tried to allocate 2.00 GiB")
    with pytest.raises(ModelError, match=error):
        detector.fit(dataset, tmp_path / "fit", epochs=1, image_size=FIT_SIZE, seed=SEED, batch_size=2)
    assert ended(processes(tmp_path))


@pytest.mark.slow
def test_a_process_that_is_killed_ends_all(detector: YoloDetector, dataset: Path, tmp_path: Path) -> None:
    def kill(done: float) -> None:
        os.kill(processes(tmp_path)[1], signal.SIGKILL)

    with pytest.raises(ModelError, match=r"training on 2 GPUs failed: one process got Signal 9 \(SIGKILL\)"):
        detector.fit(
            dataset, tmp_path / "fit", epochs=500, image_size=FIT_SIZE, seed=SEED, batch_size=2, on_step=kill
        )
    assert ended(processes(tmp_path))


@pytest.mark.slow
def test_who_is_interrupted_ends_them(detector: YoloDetector, dataset: Path, tmp_path: Path) -> None:
    def interrupt(done: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        detector.fit(
            dataset,
            tmp_path / "fit",
            epochs=500,
            image_size=FIT_SIZE,
            seed=SEED,
            batch_size=2,
            on_step=interrupt,
        )
    assert len(processes(tmp_path)) == 2 and ended(processes(tmp_path))


@pytest.mark.slow
def test_they_end_when_the_one_that_waits_is_killed(dataset: Path, tmp_path: Path) -> None:
    code = (
        "import sys, pytest\nfrom pathlib import Path\nfrom diffugen.detectors.yolo import YoloDetector\n"
        "from tests.support.two_devices import use_two_devices\n"
        "use_two_devices(pytest.MonkeyPatch())\n"
        f"YoloDetector({SCRATCH!r}, device='cuda:0,1').fit(\n"
        f"    Path({str(dataset)!r}), Path({str(tmp_path / 'fit')!r}), epochs=500, image_size={FIT_SIZE},\n"
        "    seed=1, batch_size=2, on_step=lambda done: print(done, flush=True))\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        preexec_fn=restore_signals,
    )
    assert child.stdout is not None and child.stdout.readline(), "it trains"
    started = processes(tmp_path)
    child.send_signal(signal.SIGKILL)
    child.wait(timeout=WAIT_SECONDS)
    child.stdout.close()
    assert len(started) == 2 and ended(started)


def test_ultralytics_understands_the_devices(detector: YoloDetector) -> None:
    from ultralytics.utils.torch_utils import parse_device

    assert parse_device(",".join(detector._devices)) == "0,1"


def test_a_batch_is_the_same_for_each(detector: YoloDetector, dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DiffugenError, match=r"detector\.batch_size is 5, for 2 GPUs together; give a multiple of 2"
    ):
        detector.fit(dataset, tmp_path, epochs=1, image_size=FIT_SIZE, seed=SEED, batch_size=5)
