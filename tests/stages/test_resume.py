"""Generation survives ``kill -9`` at any moment: the same image ids, nothing lost, nothing duplicated."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from diffugen.run.store import RunStore
from tests.support.children import WAIT_SECONDS

FAST = ("--set", "diffusion.batch_size=2", "--set", "diffusion.num_inference_steps=3")
CALLS = {
    "prompts": (10, ("generate", *FAST, "--set", "prompts.count=10")),
    "three tasks": (12, ("generate", "miniature-tasks", *FAST, "--set", "prompts.count=4")),
}


def images_of(folder: Path) -> dict[str, np.ndarray]:
    with RunStore.open(folder, readonly=True) as store:
        ids = list(store.image_ids())
        assert len(ids) == len(set(ids))
        for image_id in ids:
            assert store.heat_maps(image_id).image_id == image_id
        return {image_id: store.image(image_id) for image_id in ids}


def labels_of(folder: Path) -> dict[str, list[str]]:
    """Return all labels of each image as text, including carried ones."""
    found: dict[str, list[str]] = {}
    with RunStore.open(folder, readonly=True) as store:
        for one in store.labels():
            instances = one.instances
            parts = [
                one.source,
                one.method,
                *instances.class_names,
                *(str(rle["counts"]) for rle in instances.rles),
            ]
            found.setdefault(one.image_id, []).append("/".join(parts))
    return {image_id: sorted(labels) for image_id, labels in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS)
def test_generate_continues_after_kill(tmp_path: Path, call: str) -> None:
    count, arguments = CALLS[call]
    command = [sys.executable, "-m", "diffugen.cli", *arguments]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run(
        [*command, "--run", str(whole)], check=True, capture_output=True, cwd=tmp_path, timeout=WAIT_SECONDS
    )
    expected = images_of(whole)
    assert len(expected) == count

    moments = random.Random(7)
    kept: set[str] = set()
    for wanted in (1, 5, 9):  # a random moment after this many images exist
        process = subprocess.Popen(
            [*command, "--run", str(broken)],
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None and len(list((broken / "images").rglob("*.png"))) < wanted:
            time.sleep(0.02)
        time.sleep(moments.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=WAIT_SECONDS)
        found = set(images_of(broken))
        assert kept <= found <= set(expected)
        kept = found
    subprocess.run(
        [*command, "--run", str(broken)], check=True, capture_output=True, cwd=tmp_path, timeout=WAIT_SECONDS
    )
    resumed = images_of(broken)
    assert set(resumed) == set(expected)
    for image_id, pixels in expected.items():
        assert np.array_equal(pixels, resumed[image_id])
    assert labels_of(whole) == labels_of(broken)
    assert not [file for file in broken.rglob("*") if "partial" in file.name or file.suffix == ".tmp"]
