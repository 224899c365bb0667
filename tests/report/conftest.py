from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from diffugen.run.store import RunStore
from tests.report.samples import CONFIG, PageReader, fill, written


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two rounds, closed, and not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "pianos"
    with RunStore.create_or_open(folder, config=CONFIG) as store:
        store.keep_loop("bootstrap")
        fill(store)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "pianos", ignore=shutil.ignore_patterns("report")))


@pytest.fixture(scope="session")
def report(finished: Path) -> tuple[str, PageReader, str]:
    """The run's page, the page as read, and its Markdown."""
    return written(finished)
