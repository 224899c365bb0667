"""Child processes of tests: they end, and they answer signals."""

from __future__ import annotations

import signal

WAIT_SECONDS = 600
"""Longest wait for a child process: a test fails rather than hangs, also on a busy machine."""

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


def restore_signals() -> None:
    """Let a child process answer signals, as its ``preexec_fn``.

    It inherits those that are ignored: SIGHUP under nohup, and SIGINT in the background of a shell and on
    some CI runners. A test that interrupts such a child would wait in vain.
    """
    for name in SIGNALS:
        signal.signal(getattr(signal, name), signal.SIG_DFL)


def ignore_signals() -> None:
    """Ignore signals, as the ``preexec_fn`` of a child process that stands for nohup or a CI runner."""
    for name in SIGNALS:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
