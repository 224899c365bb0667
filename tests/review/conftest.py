from __future__ import annotations

import runpy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from diffugen.run.store import RunStore


@pytest.fixture(scope="session")
def made() -> SimpleNamespace:
    """The names of ``run_for_review.py``."""
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "support" / "run_for_review.py")))


@pytest.fixture
def store(tmp_path: Path, made: SimpleNamespace) -> Iterator[RunStore]:
    with made.make_run(tmp_path / "piano run") as opened:
        yield opened


@pytest.fixture(scope="session")
def connected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """FiftyOne on one database for all tests that need it: it takes seconds to start."""
    from diffugen.review.database import database

    with database(tmp_path_factory.mktemp("review")) as uri:
        yield uri
