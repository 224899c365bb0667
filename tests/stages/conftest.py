from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from diffugen.run import RunStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunStore]:
    """Yield an empty run."""
    with RunStore.create_or_open(tmp_path / "run", config={"seed": 0}) as made:
        yield made
