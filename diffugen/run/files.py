"""Files of a run directory: complete or absent, and one writer at a time.

A file is written under a temporary name in the same folder, synced and renamed. So no reader sees half a file
under the final name, and no killed process leaves one. Does not know what the files contain. Filelock is
imported only to take the lock.
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
    """Write a file completely or not at all, replacing an existing one.

    The new name is durable once :func:`sync_folder` has run on the folder.

    Raises:
        OSError: The disk is full or not writable; the temporary file has been removed.
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
    """Make the names in a folder durable; does nothing on Windows, which needs no such call."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(folder: Path) -> None:
    """Remove the temporary files that a killed writer left in a folder; the caller must hold the lock."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink()


def read_file(image_id: str, path: Path, decode: Callable[[bytes], T]) -> T:
    """Return the decoded content of a file of an image.

    Raises:
        StoreError: The file is missing, or ``decode`` fails on it.
    """
    try:
        return decode(path.read_bytes())
    except FileNotFoundError as error:
        raise StoreError(broken(image_id, path, "is missing")) from error
    # Pillow, numpy, zipfile and zlib raise a dozen unrelated types of exceptions on damaged bytes.
    except Exception as error:
        raise StoreError(broken(image_id, path, f"cannot be read ({error})")) from error


def broken(image_id: str, path: Path, condition: str) -> str:
    """Return the error message for a missing or damaged file of an image."""
    return (
        f"the file {path} of image {image_id} {condition}. Restore it from a backup, or delete it and "
        "generate again: an image without its files counts as missing and is generated again, unchanged"
    )


def acquire_lock(folder: Path) -> BaseFileLock:
    """Take the lock that allows one process to write a run, and store its process id beside it.

    The process id has its own file because older releases of filelock truncate the lock file.

    Raises:
        StoreError: Another process has the lock; the message names the run and that process.
        OSError: The folder is not writable.
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
            f"run {folder} is being written by {holder}. Wait for it to finish or stop it, choose another "
            "run folder, or open the run read-only, which needs no lock"
        ) from error
    try:
        pid_file.write_text(str(os.getpid()))
    except BaseException:
        lock.release()
        raise
    return lock


def release_lock(folder: Path, lock: BaseFileLock) -> None:
    """Release the lock, so that another process can write the run; safe to call twice."""
    if lock.is_locked:
        try:
            (folder / PID_NAME).unlink(missing_ok=True)
        finally:
            lock.release()
