"""Ctrl-C at a terminal says what is kept and how to continue, and the same command continues."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from diffugen.run.store import RunStore
from tests.support.terminal import on_terminal, without_terminal

IMAGES = ["generate", "--set", "prompts.count=2", "--set", "diffusion.batch_size=1"]
IMAGES += ["--set", "diffusion.num_inference_steps=120", "--run", "run"]  # long enough to be interrupted

LOOP = ["bootstrap", "--rounds", "1", "--run", "run", "--set", "prompts.count=4"]
for _setting in (
    "diffusion.num_inference_steps=2",
    "dataset.trust=attention",
    "detector.steps=null",
    "detector.epochs=3",
    "detector.image_size=null",
    "loop.truth=null",
):
    LOOP += ["--set", _setting]


def rates(text: str, count: str) -> list[str]:
    """The different rates that a bar showed beside a count; each tells of another step."""
    return list(dict.fromkeys(re.findall(rf" {count} (\d+\.\d (?:s/image|images/s))", text)))


@pytest.mark.slow
def test_generation_moves_within_a_batch_and_is_continued_after_ctrl_c(tmp_path: Path) -> None:
    code, text = on_terminal(
        IMAGES, tmp_path, press_when=lambda so_far: len(re.findall(r"generate \S+ 1/2", so_far)) > 2
    )
    assert len(rates(text, "0/2")) > 3, "the bar stood still within the first batch"
    assert code == 130 and "Traceback" not in text
    said = "1 of 2 images are kept; the 1 image in work will be generated again."
    assert f"Interrupted in round 0: generate. {said}\n" in text
    assert f"run the same command again: diffugen {' '.join(IMAGES)}\n" in text
    with RunStore.open(tmp_path / "run", readonly=True) as store:
        kept = {image_id: store.image(image_id).tobytes() for image_id in store.image_ids()}
    assert len(kept) == 1
    done = without_terminal(IMAGES, tmp_path)
    assert done.returncode == 0, done.stderr
    with RunStore.open(tmp_path / "run", readonly=True) as store:
        found = {image_id: store.image(image_id).tobytes() for image_id in store.image_ids()}
    assert len(found) == 2 and found.items() >= kept.items()


@pytest.mark.slow
def test_a_training_begins_again_and_an_impatient_user_sees_no_traceback(tmp_path: Path) -> None:
    code, text = on_terminal(LOOP, tmp_path, press_when=lambda so_far: "AP50 0." in so_far)
    assert code == 130 and "Traceback" not in text
    assert (
        "Interrupted in round 0 (1 of 1): train. Earlier stages are kept; a Mask2Former continues after its "
        "last epoch, a YOLO model begins again." in text
    )
    assert re.search(r"^detector\.image_size: 128 px, chosen for ", text, re.M), "notices go above the bar"
    assert re.search(r"\d/3 loss \d+\.\d\d, AP50 \d\.\d{3}", text), text
    code, text = on_terminal(LOOP, tmp_path, press_when=lambda so_far: ": train" in so_far, presses=3)
    assert code in (130, -2) and "Traceback" not in text, text
    with RunStore.open(tmp_path / "run", readonly=True) as store:
        assert list(store.summary().rounds[0].stages) == ["generate", "teach", "label", "sift", "dataset"]
    done = without_terminal(LOOP, tmp_path)
    assert done.returncode == 0 and "round 0 (1 of 1): train: 3 of 3 epochs" in done.stdout, done.stderr
