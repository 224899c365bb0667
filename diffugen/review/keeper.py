"""Run a server as a child, and stop it when the process that started this one is gone, however it ended.

A program of its own: ``python keeper.py COMMAND...``. Its standard input is a pipe from the process that
wants the server. The kernel closes that pipe when the process ends, after ``kill -9`` too, and that, or
SIGTERM, stops the server. Linux could send a signal instead, but it does so when the *thread* that started
the server ends, and macOS cannot. Imports nothing of DiffuGen, so it starts in a moment.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

PATIENCE_SECONDS = 30.0
"""How long the server may take to stop before it is killed."""


def keep(command: Sequence[str]) -> int:
    """Run the command until it ends or is no longer wanted, and return its exit code."""
    unwanted = threading.Event()

    def listen() -> None:
        sys.stdin.buffer.read()
        unwanted.set()

    def stop() -> None:
        unwanted.wait()
        server.terminate()
        time.sleep(PATIENCE_SECONDS)
        server.kill()

    signal.signal(signal.SIGTERM, lambda *_: unwanted.set())
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    for work in (listen, stop):
        threading.Thread(target=work, daemon=True).start()
    return server.wait()


if __name__ == "__main__":
    sys.exit(keep(sys.argv[1:]))
