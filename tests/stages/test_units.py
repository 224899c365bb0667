"""Each stage counts what it says: a training counts epochs, a search trials, everything else images."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from diffugen import stages
from diffugen.run import OnProgress, Run, RunStore
from diffugen.stages.train import train_known, write_known

UNITS: dict[Callable[..., Any], str] = {
    stages.generate: "image",
    stages.label: "image",
    stages.relabel: "image",
    stages.compare: "image",
    stages.review: "image",
    stages.tune: "trial",
    stages.choose: "image",
    stages.train: "epoch",
    write_known: "image",
    train_known: "epoch",
    stages.promote: "image",
    stages.evaluate: "image",
    stages.evaluate_base: "image",
    stages.evaluate_reference: "epoch",
}


class Begun(Exception):
    """A stage has begun to show progress."""


@pytest.mark.parametrize("stage", UNITS, ids=lambda stage: stage.__name__)
def test_the_unit_of_a_stage(stage: Callable[..., Any], tmp_path: Path) -> None:
    seen: list[str] = []

    def progress(title: str, unit: str) -> AbstractContextManager[OnProgress]:
        seen.append(unit)
        raise Begun

    with RunStore.create_or_open(tmp_path / "run", config=None) as store, pytest.raises(Begun):
        stage(Run(store, ("piano",), 0, progress).round(0))
    assert seen == [UNITS[stage]]
