"""What a command says when Ctrl-C, or an error that no part of DiffuGen foresaw, ends it."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from diffugen.errors import Interrupted, first_line, is_disk_full, is_out_of_memory, shell_command

TRACEBACK = "DIFFUGEN_TRACEBACK"
"""Environment variable; where it is set, an unexpected error also shows its traceback."""


def interruption(stop: KeyboardInterrupt) -> str:
    """Return what is kept after Ctrl-C, and how to continue."""
    said = str(stop) if isinstance(stop, Interrupted) else "Interrupted. What was saved is kept."
    return f"{said}\nTo continue, run the same command again: {_same_command()}"


def failure(error: Exception) -> str:
    """Return what went wrong and what to do about it, for an error that is none of DiffuGen's own."""
    again = f"What was saved is kept; to continue, run the same command again: {_same_command()}"
    causes, said = list(_causes(error)), first_line(error)
    if any(map(is_disk_full, causes)):
        return (
            f"no space left on the disk, or a file became larger than is allowed. {said} Free some space, or "
            f"move the run to a larger disk. {again}"
        )
    if any(map(is_out_of_memory, causes)):
        return (
            f"out of memory. {said} Close other programs, or make the work smaller: diffusion.batch_size, "
            f"detector.batch_size, detector.image_size. {again}"
        )
    if isinstance(error, ImportError):
        return f"a package is missing or damaged. {said} diffugen doctor shows which, and how to install it"
    if isinstance(error, OSError):
        return f"a file cannot be read or written. {said} {again}"
    return (
        f"unexpected error{_place(error)}. {said} {again}\n"
        f"If it comes again, report it with its traceback, which {TRACEBACK}=1 shows"
    )


def _same_command() -> str:
    return shell_command(*sys.argv[1:])


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that it arose from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _place(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f" in {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
