"""Run the command line as a process of its own, on a pseudo-terminal or without one, as a person would."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import resource
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

from tests.support.children import WAIT_SECONDS

COMMAND = (sys.executable, "-m", "diffugen.cli")
COLUMNS = 100


def _as_a_shell_starts_it() -> None:
    # A test run in the background ignores SIGINT, and its children would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def on_terminal(
    arguments: list[str], folder: Path, press_when: Callable[[str], bool] | None = None, presses: int = 1
) -> tuple[int, str]:
    """Run a command on a terminal.

    Args:
        arguments: Of the command line.
        folder: The working folder.
        press_when: Asked about the text so far; at its first yes, Ctrl-C is pressed.
        presses: How often.

    Returns:
        The exit code, and all that was shown, without control sequences.
    """
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))

    def attach() -> None:
        _as_a_shell_starts_it()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    environment = {**os.environ, "TERM": "xterm"}
    environment.pop("COLUMNS", None)
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        cwd=folder,
        env=environment,
        start_new_session=True,
        preexec_fn=attach,
    )
    os.close(slave)
    raw = b""
    with contextlib.suppress(OSError):  # the terminal is gone once the process is
        while part := os.read(master, 65536):
            raw += part
            if press_when is not None and press_when(shown(raw)):
                os.write(master, b"\x03" * presses)
                press_when = None
    os.close(master)
    return process.wait(timeout=WAIT_SECONDS), shown(raw)


def shown(raw: bytes) -> str:
    """Return the text of a terminal's output, a line for each state of a bar."""
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", raw.decode(errors="ignore"))
    return re.sub(r"[\r\n]+", "\n", text)


def without_terminal(
    arguments: list[str], folder: Path, largest_file: int | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command whose output goes to pipes.

    Args:
        arguments: Of the command line.
        folder: The working folder.
        largest_file: Size in bytes beyond which no file can grow, as on a disk that is nearly full.
        environment: Further environment variables.
    """

    def limit() -> None:
        _as_a_shell_starts_it()
        if largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limit,
        timeout=WAIT_SECONDS,
    )
