"""A run whose images and labels depend on their numbers only, for tests of the store."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from diffugen.records import HeatMaps, LabelSet
from diffugen.run.store import RunStore

CHILD = Path(__file__).with_name("store_child.py")
child = SimpleNamespace(**runpy.run_path(str(CHILD)))
make_record, make_rgb, make_heat_maps, make_labels = (
    child.make_record,
    child.make_rgb,
    child.make_heat_maps,
    child.make_labels,
)


def start(job: str, folder: Path, *numbers: float) -> subprocess.Popen[str]:
    """Start ``store_child.py`` as a child process."""
    return subprocess.Popen(
        [sys.executable, str(CHILD), job, str(folder), *map(str, numbers)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(CHILD.parents[2])},
    )


def add(store: RunStore, *numbers: int, **changes: Any) -> None:
    records = [make_record(number, **changes) for number in numbers]
    store.add_images((record, make_rgb(record), make_heat_maps(record), 1.5) for record in records)


def files(folder: Path) -> dict[str, bytes]:
    """Return all files of images and heat maps by name, including temporary ones."""
    return {
        path.name: path.read_bytes()
        for part in ("images", "heatmaps")
        for path in (folder / part).rglob("*")
        if path.is_file()
    }


def assert_equal_heat_maps(found: HeatMaps, expected: HeatMaps) -> None:
    assert (found.image_id, found.size_wh, found.phrases) == (
        expected.image_id,
        expected.size_wh,
        expected.phrases,
    )
    assert found.maps.keys() == expected.maps.keys()
    for group, array in expected.maps.items():
        assert found.maps[group].dtype == np.float16
        np.testing.assert_array_equal(found.maps[group], array)
    if expected.self_attention is None:
        assert found.self_attention is None
    else:
        assert found.self_attention is not None and found.self_attention.dtype == np.float16
        np.testing.assert_array_equal(found.self_attention, expected.self_attention)


def assert_equal_labels(found: LabelSet, expected: LabelSet) -> None:
    keys = ("image_id", "source", "method", "round")
    assert [getattr(found, key) for key in keys] == [getattr(expected, key) for key in keys]
    keys = ("size_wh", "class_names", "rles", "terms")
    assert [getattr(found.instances, key) for key in keys] == [
        getattr(expected.instances, key) for key in keys
    ]
    assert found.instances.scores.tobytes() == expected.instances.scores.tobytes()
