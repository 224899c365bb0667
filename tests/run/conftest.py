"""An open run, and a small disk."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffugen.run.store import RunStore
from tests.support.children import WAIT_SECONDS
from tests.support.stores import child


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunStore]:
    with RunStore.create_or_open(tmp_path / "run", config=child.CONFIG) as opened:
        yield opened


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a disk of one megabyte; mounting it needs root."""
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)]
    if (
        shutil.which("mount") is None
        or subprocess.run(command, capture_output=True, timeout=WAIT_SECONDS).returncode
    ):
        pytest.skip("no permission to mount a disk")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True, timeout=WAIT_SECONDS)
