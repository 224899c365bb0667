"""Generating survives ``kill -9`` at any moment: same image ids, nothing lost, nothing twice."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from diffugen.store import RunStore

COUNT = 10
COMMAND = (
    sys.executable, "-m", "diffugen.cli", "generate", "--set", f"prompts.count={COUNT}", "--set", "diffusion.batch_size=2",
    "--set", "diffusion.num_inference_steps=3",
)  # fmt: skip


def images_of(folder: Path) -> dict[str, np.ndarray]:
    with RunStore.open(folder, readonly=True) as store:
        ids = list(store.image_ids())
        assert len(ids) == len(set(ids))
        for image_id in ids:
            assert store.heat_maps(image_id).image_id == image_id
        return {image_id: store.image(image_id) for image_id in ids}


@pytest.mark.slow
def test_generate_goes_on_after_kill(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run([*COMMAND, "--run", str(whole)], check=True, capture_output=True, cwd=tmp_path)
    expected = images_of(whole)
    assert len(expected) == COUNT

    moments = random.Random(7)
    kept: set[str] = set()
    for wanted in (1, 4, 7):  # a random moment after at least so many images are there
        process = subprocess.Popen(
            [*COMMAND, "--run", str(broken)], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and len(list((broken / "images").glob("*.png"))) < wanted:
            time.sleep(0.02)
        time.sleep(moments.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
        found = set(images_of(broken))
        assert kept <= found <= set(expected)
        kept = found
    subprocess.run([*COMMAND, "--run", str(broken)], check=True, capture_output=True, cwd=tmp_path)
    resumed = images_of(broken)
    assert set(resumed) == set(expected)
    for image_id, pixels in expected.items():
        assert np.array_equal(pixels, resumed[image_id])
    assert not [file for file in broken.rglob("*") if "partial" in file.name or file.suffix == ".tmp"]
