from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from diffugen.run.store import RunStore
from tests.support import run_for_review
from tests.support.browser import chromium


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunStore]:
    with run_for_review.make_run(tmp_path / "piano run") as opened:
        yield opened


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser for all tests of a module: it takes seconds to start."""
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="session")
def connected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """FiftyOne on one database for all tests that need it: it takes seconds to start."""
    from diffugen.review.database import database

    with database(tmp_path_factory.mktemp("review")) as uri:
        yield uri
