"""Fixtures shared by the tests of all detectors: a dataset of a few images, and one fit to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

pytest.register_assert_rewrite("tests.support.detector_contract")

if TYPE_CHECKING:
    from diffugen.detectors import Detector
    from tests.support.detector_contract import Fitted


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """On one thread a fit is reproducible bit for bit; several threads add in a varying order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from diffugen.dataset.yolo import write_yolo
    from tests.support.detector_contract import CLASSES, background, scene

    train = [scene(0), scene(1, "truck", tall=True), scene(2), scene(3, "truck"), background(6)]
    splits = {"train": train, "val": [scene(4), scene(5, "truck")]}
    return write_yolo(tmp_path_factory.mktemp("set") / "two", splits, CLASSES).parent


@pytest.fixture(scope="module")
def fitted(
    start: Detector, dataset: Path, tmp_path_factory: pytest.TempPathFactory, one_thread: None
) -> Fitted:
    from tests.support.detector_contract import fit

    return fit(start, dataset, tmp_path_factory.mktemp("fits") / "first")
