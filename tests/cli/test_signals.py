"""A command that is told to stop ends its servers and removes its temporary files, and says how to go on."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

import diffugen as dg
from diffugen.review.mongod import URI_VARIABLE
from diffugen.run.temporary import temporary_folder
from tests.support import run_for_review
from tests.support.children import WAIT_SECONDS, ignore_signals, restore_signals

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the miniature with images to review."""
    folder = tmp_path_factory.mktemp("signals") / "run"
    dg.open_run(folder, dg.load_config("miniature")).close()
    run_for_review.make_run(folder, config=None).close()
    return folder


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A place for temporary files with a short path."""
    with temporary_folder("test") as folder:
        yield folder


def start(
    *arguments: str, before: Callable[[], Any] = restore_signals, **environment: str
) -> subprocess.Popen[str]:
    # Another test of this process may have opened a database, which the child would take for the user's own.
    left_out = (URI_VARIABLE, "DISPLAY", "WAYLAND_DISPLAY")
    variables = {name: value for name, value in os.environ.items() if name not in left_out}
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=before,
        env={**variables, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **environment},
    )


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGKILL", -9), ("SIGINT", 130)]
)
def test_a_review_leaves_no_process_behind(run: Path, temporary: Path, name: str, code: int) -> None:
    command = ["-m", "diffugen.cli", "review", "--run", str(run), "--port", free_port()]
    process = start(*command, TMPDIR=str(temporary))
    try:
        assert process.stdout is not None
        # On a busy machine, progress is told before.
        opened = re.compile(r"is open: http://127\.0\.0\.1:\d+/\?token=[\w-]{43}$")
        assert any(map(opened.search, process.stdout)), process.communicate(timeout=WAIT_SECONDS)[1]
        below = psutil.Process(process.pid).children(recursive=True)
        names = [one.name() for one in below]
        assert "mongod" in names and len(names) == 4, "mongod and its keeper, the App's server and its own"
        assert len(list(temporary.iterdir())) == 1
        process.send_signal(getattr(signal, name))
        _, said = process.communicate(timeout=WAIT_SECONDS)
    finally:
        process.kill()
    _, left = psutil.wait_procs(below, timeout=WAIT_SECONDS)
    assert left == []
    assert process.returncode == code
    assert "Traceback" not in said
    assert ("run the same command to continue" in said) == (name in ("SIGTERM", "SIGHUP"))
    assert bool(list(temporary.iterdir())) == (name == "SIGKILL")


WAITING = """
import os, signal, time
from diffugen.cli import app
def wait():
    worker = os.fork()
    if worker == 0:
        os._exit(signal.getsignal(signal.SIGTERM) != signal.SIG_DFL)
    try:
        print("worker", os.waitpid(worker, 0)[1], flush=True)
        time.sleep(1000)
    finally:
        print("cleaned up", flush=True)
app.app = wait
app.main()
"""


@pytest.mark.parametrize(("ignored", "code"), [("SIGHUP", 143), ("SIGTERM", 129)])
def test_ignored_signals_stay_ignored_and_workers_have_none(ignored: str, code: int) -> None:
    """As under nohup. A worker that is stopped by its parent may not clean up after it."""

    def before() -> None:
        restore_signals()
        signal.signal(getattr(signal, ignored), signal.SIG_IGN)

    process = start("-c", WAITING, before=before)
    try:
        assert process.stdout is not None
        worker = "256" if ignored == "SIGTERM" else "0"  # what is ignored is not the default there either
        assert process.stdout.readline() == f"worker {worker}\n"
        for name in (ignored, "SIGTERM", "SIGHUP"):
            process.send_signal(getattr(signal, name))
        said, complained = process.communicate(timeout=WAIT_SECONDS)
    finally:
        process.kill()
    assert (process.returncode, said) == (code, "cleaned up\n")
    assert complained == "Interrupted. Progress is saved; run the same command to continue.\n"


@pytest.mark.slow
def test_these_tests_do_not_hang_where_signals_are_ignored() -> None:
    """As in ``nohup make test &``, and on some CI runners."""
    names = ["tests/cli/test_signals.py", "tests/review/test_database.py", "-k", "SIGINT or workers"]
    process = start("-m", "pytest", "-q", "-p", "no:cacheprovider", *names, before=ignore_signals)
    try:
        said, _ = process.communicate(timeout=WAIT_SECONDS)
    finally:
        process.kill()
    assert re.search(r"^4 passed", said, flags=re.MULTILINE), said
