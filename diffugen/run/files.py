"""Files that are complete or absent, for all packages, and the lock of a run: one writer at a time.

A file is written under a temporary name on the same file system, synced and renamed. So no reader sees half a
file under the final name, no killed process leaves one, and a link that stands there is replaced, not
followed. Does not know what the files contain. Filelock is imported only to take the lock.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from diffugen.config.foreign import read_text
from diffugen.errors import StoreError

if TYPE_CHECKING:
    from filelock import BaseFileLock

T = TypeVar("T")

LOCK_NAME = "writer.lock"
PID_NAME = "writer.pid"


def write_file(path: Path, data: bytes, unfinished: Path | None = None) -> None:
    """Write a file completely or not at all, replacing an existing one, or a link to another.

    The new name is durable once :func:`sync_folder` has run on the folder.

    Args:
        path: The file.
        data: Its content.
        unfinished: Folder of the temporary file; None for that of the file.

    Raises:
        OSError: The disk is full or not writable; the temporary file has been removed.
    """
    # A short name, whatever the length of the other.
    temporary = (unfinished or path.parent) / f".{secrets.token_hex(8)}.tmp"
    try:
        with temporary.open("xb") as file:  # x: never through a link
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def link_file(source: Path, path: Path, unfinished: Path) -> None:
    """Give a file a second name, or copy it where that is impossible; replaces what has that name.

    No file of a run is changed in place, only replaced, so runs that share files do not disturb each other.

    Args:
        source: The file.
        path: The second name.
        unfinished: Folder of the temporary name.

    Raises:
        OSError: The disk is full or not writable.
    """
    temporary = unfinished / f".{secrets.token_hex(8)}.tmp"
    try:
        if source.is_symlink():
            raise OSError
        os.link(source, temporary)
    except OSError:  # another file system, or one without links
        write_file(path, source.read_bytes(), unfinished)
        return
    try:
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)  # it stays if both were the same file


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
    refuse_link(folder / LOCK_NAME)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise StoreError(
            f"run {folder} is being written by {holder_of(pid_file)}. Wait for it to finish or stop it, "
            "choose another run folder, or open the run read-only, which needs no lock"
        ) from error
    try:
        write_file(pid_file, str(os.getpid()).encode())
    except BaseException:
        lock.release()
        raise
    return lock


def refuse_link(path: Path) -> None:
    """Raise an error if a lock file is a link, which a library would follow and empty what it leads to.

    Raises:
        StoreError: It is a link.
    """
    if path.is_symlink():
        raise StoreError(f"{path} is a link to {os.readlink(path)}, not a lock file; remove it")


def holder_of(pid_file: Path) -> str:
    """Return the process whose id is in a file, in words."""
    try:
        number = read_text(pid_file, most_bytes=100).strip()
    except (OSError, ValueError):
        number = ""
    return f"process {number}" if number.isdecimal() else "another process"


def release_lock(folder: Path, lock: BaseFileLock) -> None:
    """Release the lock, so that another process can write the run; safe to call twice."""
    if lock.is_locked:
        try:
            (folder / PID_NAME).unlink(missing_ok=True)
        finally:
            lock.release()
