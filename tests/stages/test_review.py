"""The stage of a review says what it cannot close."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import diffugen as dg
from diffugen.review.mongod import URI_VARIABLE, find_mongod, silence
from tests.support import run_for_review
from tests.support.children import WAIT_SECONDS


@pytest.mark.slow
def test_an_open_database_of_the_user_is_pointed_out(tmp_path: Path) -> None:
    """A server like that of MongoDB's own guide: on a port, without users."""
    run, data = tmp_path / "run", tmp_path / "data"
    data.mkdir()
    dg.open_run(run, dg.load_config("miniature")).close()
    run_for_review.make_run(run, config=None).close()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uri = f"mongodb://127.0.0.1:{port}"
    command = [str(find_mongod()), "--dbpath", str(data), "--port", str(port), "--nounixsocket", "--quiet"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert silence(uri, WAIT_SECONDS) is None
        done = subprocess.run(
            [sys.executable, "-m", "diffugen.cli", "review", "--no-wait", "--run", str(run)],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), URI_VARIABLE: uri},
            capture_output=True,
            text=True,
            check=True,
            timeout=WAIT_SECONDS,
        )
    finally:
        server.kill()
        server.wait(timeout=WAIT_SECONDS)
    assert f"The database {uri} asks for no password" in done.stdout.replace("\n", " ")
