"""Temporary folders are private, and end with their process: at its end, or when the next one is made."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from diffugen.errors import DiffugenError
from diffugen.run.temporary import PREFIX, temporary_folder
from tests.support.children import WAIT_SECONDS

CHILD = """
import sys
from diffugen.run.temporary import temporary_folder
with temporary_folder("test") as folder:
    (folder / "file").write_text("kept")
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place of temporary files, of children too."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def holder() -> tuple[subprocess.Popen[str], Path]:
    """A process with a temporary folder."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_a_folder_is_private_and_removed_with_its_content(place: Path) -> None:
    with temporary_folder("test") as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert list(place.iterdir()) == [folder]
        assert folder.name.startswith(f"{PREFIX}test-")
        (folder / "sub").mkdir()
    assert list(place.iterdir()) == []


def test_only_folders_of_killed_processes_are_swept(place: Path) -> None:
    living, kept = holder()
    killed, swept = holder()
    try:
        killed.send_signal(signal.SIGKILL)
        killed.communicate(timeout=WAIT_SECONDS)
        assert kept.is_dir() and swept.is_dir()
        with temporary_folder("test") as own:
            assert set(place.iterdir()) == {kept, own}
            assert (kept / "file").read_text() == "kept"
            with temporary_folder("test"):
                assert own.is_dir()
        living.communicate(timeout=WAIT_SECONDS)
        assert not kept.exists()
    finally:
        living.kill()


def test_nothing_else_is_swept(place: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """In a folder that all users share, others may have put anything there under such a name."""
    precious = tmp_path_factory.mktemp("precious") / "file"
    precious.write_text("precious")
    (place / f"{PREFIX}link").symlink_to(precious.parent)
    (place / f"{PREFIX}file").write_text("a file")
    (place / "diffugen-runs").mkdir()
    before = set(place.iterdir())
    with temporary_folder("test"):
        pass
    assert set(place.iterdir()) == before
    assert precious.is_file()


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can give folders away")
def test_folders_of_other_users_are_not_swept(place: Path) -> None:
    other = place / f"{PREFIX}other"
    other.mkdir()
    os.chown(other, 65534, 65534)
    with temporary_folder("test"):
        pass
    assert other.is_dir()


def test_a_place_that_cannot_be_written_is_reported(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(place / "missing"))
    with pytest.raises(DiffugenError, match=r"cannot make a temporary folder: .*missing.*TMPDIR"):
        temporary_folder("test").__enter__()


def test_where_folders_cannot_be_locked_none_is_swept(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on some network file systems."""

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with temporary_folder("test") as first, temporary_folder("test") as second:
        assert set(place.iterdir()) == {first, second}
    assert list(place.iterdir()) == []
