"""Scenes that a detector was measured on, kept in the run so that its report can show them.

The truth itself is not part of a run, so what the report shows of it is kept here: a few images with their
true objects and what was found. Does not know how scenes are chosen or measured.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffugen.records import Instances
from diffugen.run import codec
from diffugen.run.files import write_file
from diffugen.run.ledger import explained

FOLDER_NAME = "measured"
_INDEX = "scenes.json"


@dataclass(frozen=True)
class MeasuredScene:
    """An image with ground truth, and what a detector found in it.

    Attributes:
        name: Its name in the set.
        rgb: uint8 (H, W, 3).
        truth: The true objects.
        found: The detections that count as labels.
        error: How wrong they are, in objects: missed and false ones, and what pairs lack of an IoU of 1.
    """

    name: str
    rgb: NDArray[np.uint8]
    truth: Instances
    found: Instances
    error: float


def keep_scenes(
    run_folder: Path, stage: str, round: int, groups: Mapping[str, Sequence[MeasuredScene]]
) -> None:
    """Keep the scenes of a measurement, by group; replaces those of the same stage and round.

    Raises:
        StoreError: The folder cannot be written.
    """
    folder = _folder(run_folder, stage, round)
    with explained(run_folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        index = {}
        for group, scenes in groups.items():
            index[group] = [
                {
                    "name": one.name,
                    "file": f"{group}-{number}.png",
                    "truth": codec.instances_to_json(one.truth),
                    "found": codec.instances_to_json(one.found),
                    "error": one.error,
                }
                for number, one in enumerate(scenes)
            ]
            for number, one in enumerate(scenes):
                write_file(folder / f"{group}-{number}.png", codec.rgb_to_png(one.rgb))
        write_file(folder / _INDEX, codec.to_json(index).encode())


def read_scenes(run_folder: Path, stage: str, round: int, group: str) -> list[MeasuredScene]:
    """Return the kept scenes of a measurement; none if there are none, or if they cannot be read."""
    folder = _folder(run_folder, stage, round)
    try:
        kept = json.loads((folder / _INDEX).read_text())[group]
        return [
            MeasuredScene(
                one["name"],
                codec.rgb_from_png((folder / one["file"]).read_bytes()),
                codec.instances_from_json(one["truth"]),
                codec.instances_from_json(one["found"]),
                float(one["error"]),
            )
            for one in kept
        ]
    except Exception:  # the pictures of a report are worth no failure, and Pillow's errors are many
        return []


def _folder(run_folder: Path, stage: str, round: int) -> Path:
    return run_folder / FOLDER_NAME / f"{stage}-{round}"
