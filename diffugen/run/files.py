"""Files of a run directory: whole or absent, and one writer at a time.

A file is written under a temporary name beside its place, synced and renamed, so a reader or a killed process
never leaves half of one under its own name. Knows nothing of what the files hold. Filelock is imported only
to take the lock.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from diffugen.errors import StoreError

if TYPE_CHECKING:
    from filelock import BaseFileLock

T = TypeVar("T")

LOCK_NAME = "writer.lock"
PID_NAME = "writer.pid"


def write_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; an existing one is replaced.

    The new name is durable once :func:`sync_folder` has run on the folder.

    Raises:
        OSError: The disk is full or cannot be written; the temporary file is gone again.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable (Windows has no such call and needs none)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(folder: Path) -> None:
    """Remove the temporary files that a killed writer left in a folder; only for the holder of the lock."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink()


def read_file(image_id: str, path: Path, decode: Callable[[bytes], T]) -> T:
    """Return the decoded content of an image's file.

    Raises:
        StoreError: The file is missing, or ``decode`` cannot read it.
    """
    try:
        return decode(path.read_bytes())
    except FileNotFoundError as error:
        raise StoreError(broken(image_id, path, "is missing")) from error
    except (
        Exception
    ) as error:  # Pillow, numpy, zipfile and zlib raise a dozen unrelated kinds over damaged bytes
        raise StoreError(broken(image_id, path, f"cannot be read ({error})")) from error


def broken(image_id: str, path: Path, condition: str) -> str:
    """Return the message for an image's file that is there in name only."""
    return (
        f"the file {path} of image {image_id} {condition}. Put it back from a copy, or delete what is left "
        "of it and "
        "generate again: an image without its files counts as missing and is made anew, the same"
    )


def acquire_lock(folder: Path) -> BaseFileLock:
    """Take the lock of the one process that writes a run, and note its pid beside it.

    The pid has a file of its own, because older releases of filelock empty the lock file of whoever holds it.

    Raises:
        StoreError: Another process holds it; the message names the run and that process.
        OSError: The folder cannot be written.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK_NAME, thread_local=False)
    pid_file = folder / PID_NAME
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        try:
            holder = f"process {pid_file.read_text().strip()}"
        except OSError:
            holder = "another process"
        raise StoreError(
            f"run {folder} is being written by {holder}. Wait until it ends or stop it, choose another run "
            "folder, or open "
            "the run for reading only, which needs no lock"
        ) from error
    try:
        pid_file.write_text(str(os.getpid()))
    except BaseException:
        lock.release()
        raise
    return lock


def release_lock(folder: Path, lock: BaseFileLock) -> None:
    """Let another process write the run; safe to call twice."""
    if lock.is_locked:
        try:
            (folder / PID_NAME).unlink(missing_ok=True)
        finally:
            lock.release()
