"""The loop runs with detectors other than YOLOv8, here from architectures without weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffugen.detectors.load import open_checkpoint
from diffugen.run import RunStore
from tests.support.command_line import run
from tests.support.mask2former_models import tiny_config


@pytest.mark.parametrize("kind", ["mask2former", "yolo26n-seg.yaml"])
def test_the_loop_runs_with_it(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    start = kind
    if kind == "mask2former":
        start = str(tmp_path / "architecture")
        tiny_config().save_pretrained(start)
    settings = {
        "prompts.count": "6",
        "loop.rounds": "2",
        "loop.truth": "null",
        "diffusion.num_inference_steps": "6",
        "labels.source": "attention",
        "detector.checkpoint": start,
        "detector.steps": "3",
        "detector.batch_size": "2",
        "detector.image_size": "64",
        "detector.extra": "{}",
    }
    options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    assert run(monkeypatch, "bootstrap", "--run", str(tmp_path / "run"), *options) == 0
    with RunStore.open(tmp_path / "run", readonly=True) as store:
        trained = store.results(1).train
    assert trained is not None
    assert open_checkpoint(tmp_path / "run" / trained.checkpoint).class_names == (
        "piano",
        "car",
        "truck",
        "person",
        "traffic cone",
    )
    capsys.readouterr()
    for command in (["relabel"], ["evaluate", "--truth", "piano-among"]):
        given = [*command, "--run", str(tmp_path / "run"), "--checkpoint", start]
        assert run(monkeypatch, *given) == 2, "what has learned nothing must not look like a bad detector"
        assert "architecture without weights" in capsys.readouterr().err
