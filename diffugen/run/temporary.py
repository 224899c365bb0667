"""Temporary folders that end with their process; one that a killed process left goes when the next is made.

A folder is locked for as long as its process lives. A process id would say less: ids are used again, and
containers that share a temporary folder do not see each other's. Knows nothing of what is kept in a folder.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from diffugen.errors import DiffugenError

PREFIX = "diffugen-process-"
"""Starts the names of all these folders, and of nothing that a user would keep."""


@contextmanager
def temporary_folder(kind: str) -> Iterator[Path]:
    """Make a folder that only its user can read, and remove it at the end.

    Args:
        kind: What it is for; becomes part of its name.

    Raises:
        DiffugenError: There is no place for temporary files that can be written.
    """
    _sweep()
    try:
        folder = Path(tempfile.mkdtemp(prefix=f"new-{PREFIX}{kind}-"))
        owner = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise DiffugenError(
            f"cannot make a temporary folder: {error}. Free some space, or set TMPDIR to a folder that "
            "can be written"
        ) from error
    # It gets the name that is swept only when it is locked, or it would look abandoned. Some network file
    # systems cannot lock a folder: there, nothing is swept.
    with suppress(OSError):
        _lock(owner)
        folder = folder.rename(folder.with_name(folder.name.removeprefix("new-")))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(owner)


def _lock(descriptor: int) -> None:
    """Take the lock of a folder, which the kernel releases when its process ends, however it ends.

    Raises:
        OSError: Another process has it, or the file system has no such locks.
    """
    import fcntl

    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _sweep() -> None:
    """Remove this user's temporary folders whose processes were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        # In a folder that all users share, anything may have such a name, links to elsewhere too.
        with suppress(OSError):
            abandoned = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(abandoned).st_uid == os.getuid():
                    _lock(abandoned)
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(abandoned)
