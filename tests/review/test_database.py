"""One private MongoDB server for each run: found, started, and stopped with its session, however it ends."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import psutil  # type: ignore[import-untyped]
import pytest

from diffugen.errors import DiffugenError
from diffugen.review.database import database, is_open
from diffugen.review.mongod import URI_VARIABLE, find_mongod, launch, start
from diffugen.run.temporary import temporary_folder
from tests.support.children import WAIT_SECONDS, restore_signals

CHILD = Path(__file__).parents[1] / "support" / "database_child.py"


@pytest.fixture(autouse=True)
def no_database_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(URI_VARIABLE, raising=False)


@contextmanager
def child(folder: Path, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(CHILD), str(folder), *arguments]
    variables = {**os.environ, "PYTHONPATH": str(CHILD.parents[2]), **environment}
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=variables,
        preexec_fn=restore_signals,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=WAIT_SECONDS)


def said(process: subprocess.Popen[str]) -> tuple[str, int]:
    """The address and the number of samples that a child prints."""
    line = process.stdout.readline() if process.stdout else ""
    assert line, process.communicate(timeout=WAIT_SECONDS)[1]
    uri, count = line.split()
    return uri, int(count)


def servers(folder: Path) -> list[psutil.Process]:
    """The MongoDB servers that run on the files of a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(folder / "database") in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture(scope="session")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a server has run."""
    folder = tmp_path_factory.mktemp("stopped")
    with temporary_folder("test") as sockets:
        start(find_mongod(), folder, sockets).stop()
    return folder


@pytest.fixture
def sockets() -> Iterator[Path]:
    """A folder for sockets: the paths of pytest's are too long."""
    with temporary_folder("test") as folder:
        yield folder


def gone(folder: Path) -> bool:
    """Wait until no server runs on the files of a folder."""
    deadline = time.monotonic() + WAIT_SECONDS
    while servers(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not servers(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGKILL", "SIGHUP", "SIGTERM", "SIGINT"])
def test_a_server_ends_with_its_session_and_loses_nothing(tmp_path: Path, name: str) -> None:
    """Also if the session has no time to stop it: these processes handle no signal but Ctrl-C's."""
    folder, home = tmp_path / "run" / "review", tmp_path / "home"
    home.mkdir()
    with child(folder, HOME=str(home)) as first:
        uri, count = said(first)
        assert (is_open(uri), count) == (False, 1)
        assert len(servers(folder)) == 2, "a server and its keeper"
        with pytest.raises(
            DiffugenError, match=rf"session of {tmp_path / 'run'} is already open, in process {first.pid}\b"
        ):
            database(folder).__enter__()
        first.send_signal(getattr(signal, name))
        assert ("KeyboardInterrupt" in first.communicate(timeout=WAIT_SECONDS)[1]) == (name == "SIGINT")
    assert gone(folder)
    with child(folder, "stop", HOME=str(home)) as second:
        [again, count] = said(second)
        assert (again != uri, count) == (True, 2)
        assert said(second)[1] == 2
        assert second.wait(timeout=WAIT_SECONDS) == 0
    assert servers(folder) == []
    assert not Path(unquote(again.removeprefix("mongodb://"))).parent.exists()
    assert not list(home.glob(".fiftyone")) + list(home.glob("fiftyone"))
    assert sum(file.stat().st_size for file in folder.rglob("*")) < 30e6


ASK = """
import os, sys
from pymongo import MongoClient
if sys.argv[2] == "another user":
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
print(MongoClient(sys.argv[1], serverSelectionTimeoutMS=500).admin.command("ping"))
"""


def test_only_its_user_reaches_a_server(tmp_path: Path, sockets: Path) -> None:
    def asked(by: str) -> str:
        command = [sys.executable, "-c", ASK, server.uri, by]
        done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_SECONDS, check=False)
        return done.stdout + done.stderr

    (tmp_path / "database").mkdir(mode=0o755)
    (tmp_path / "database.log").write_text("of an earlier version")
    server = start(find_mongod(), tmp_path, sockets)
    try:
        [mongod] = [one for one in servers(tmp_path) if one.name() == "mongod"]
        assert mongod.net_connections("inet") == []
        assert {one.laddr for one in mongod.net_connections("unix")} - {""} == {str(server.socket)}
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (sockets, *tmp_path.iterdir())}
        assert modes == {sockets.name: 0o700, "database": 0o700, "database.log": 0o600}
        assert "'ok': 1.0" in asked(by="the same user")
        if os.getuid() == 0:
            assert "Permission denied" in asked(by="another user")
    finally:
        server.stop()


@pytest.mark.parametrize("orphaned", ["server", "server and keeper"])
def test_a_server_left_behind_is_stopped(tmp_path: Path, sockets: Path, orphaned: str) -> None:
    """Its keeper was killed too, or has not noticed yet; it may not even have started to listen."""
    left = launch(find_mongod(), tmp_path / "database", tmp_path / "database.log", sockets)
    if orphaned == "server":
        deadline = time.monotonic() + WAIT_SECONDS
        while len(servers(tmp_path)) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        left.process.kill()
    with temporary_folder("test") as other:
        second = start(find_mongod(), tmp_path, other)
        try:
            assert len(servers(tmp_path)) == 2
            assert second.alive
        finally:
            second.stop()
            left.stop()
    assert servers(tmp_path) == []


def test_a_server_is_stopped_while_a_worker_holds_its_pipe(tmp_path: Path, sockets: Path) -> None:
    """A forked process has copies of everything that is open."""
    server = start(find_mongod(), tmp_path, sockets)
    assert server.process.stdin is not None
    copy = os.dup(server.process.stdin.fileno())
    server.stop()
    os.close(copy)
    assert servers(tmp_path) == []


def test_a_note_of_another_process_is_no_server(tmp_path: Path, stopped: Path, sockets: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(stopped, folder)
    (folder / "database" / "mongod.lock").write_text(f"{os.getpid()}\n")
    server = start(find_mongod(), folder, sockets)
    server.stop()
    assert not server.alive


def test_a_socket_with_a_long_path_is_reported(tmp_path: Path) -> None:
    with pytest.raises(DiffugenError, match=r"at most 103 bytes. Set TMPDIR to a folder with a shorter path"):
        start(find_mongod(), tmp_path, tmp_path / ("long" * 30))
    assert servers(tmp_path) == []


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: (data / "WiredTiger.wt").write_bytes(b"x" * 4096), "move .*database away"),
        (lambda data: (data / "WiredTiger.wt").unlink(), "move .*database away"),
        (lambda data: (data / "_mdb_catalog.wt").unlink(), "move .*database away"),
        (lambda data: data.rename(data.with_name("moved")) and data.write_text(""), "File exists"),
    ],
    ids=["garbage", "missing", "no catalogue", "a file"],
)
def test_damaged_files_are_reported(
    tmp_path: Path, stopped: Path, spoil: Callable[[Path], Any], message: str
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(stopped, folder)
    spoil(folder / "database")
    with pytest.raises(DiffugenError, match=message) as caught, database(folder):
        pass
    assert str(folder / "database.log") in str(caught.value)
    assert "--review static" in str(caught.value)
    # The lock was let go: the next attempt fails for the same reason.
    with pytest.raises(DiffugenError, match=message), database(folder):
        pass


def test_the_users_database_is_used_and_not_stopped(
    tmp_path: Path, connected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fiftyone as fo

    monkeypatch.setenv(URI_VARIABLE, connected)
    with database(tmp_path) as uri:
        assert uri == connected
        fo.Dataset("of the user", persistent=True)
    assert os.environ[URI_VARIABLE] == connected
    assert not (tmp_path / "database").exists()
    assert fo.dataset_exists("of the user")


@pytest.mark.parametrize(
    ("uri", "answer"),
    [
        ("mongodb://127.0.0.1:27017", True),
        ("mongodb://db.example/?retryWrites=true", True),
        ("mongodb+srv://db.example", True),
        ("mongodb://anna:secret@127.0.0.1:27017", False),
        ("mongodb://db.example/?authMechanism=MONGODB-X509&tls=true", False),
        ("mongodb://%2ftmp%2Fa%2Fmongod.sock", False),
    ],
)
def test_an_open_database_is_noticed(uri: str, answer: bool) -> None:
    assert is_open(uri) == answer


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("mongodb://anna:secret@127.0.0.1:1", r"mongodb://\.\.\.@127\.0\.0\.1:1, does not answer"),
        ("http://127.0.0.1", "does not answer: Invalid URI scheme"),
        ("mongodb://127.0.0.1:nothing", "does not answer: Port"),
    ],
)
def test_a_database_of_the_user_that_does_not_answer_is_reported(
    tmp_path: Path, uri: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffugen.review.database.USER_SECONDS", 0.5)
    monkeypatch.setenv(URI_VARIABLE, uri)
    with pytest.raises(DiffugenError, match=message) as caught, database(tmp_path):
        pass
    assert "secret" not in str(caught.value)
    assert "unset FIFTYONE_DATABASE_URI" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "mode", "condition"),
    [
        (None, 0, "is not installed, neither beside FiftyOne nor on PATH"),
        (
            "#!/bin/sh\necho libcrypto.so.3 is missing >&2\nexit 127\n",
            0o755,
            "mongod: libcrypto.so.3 is missing",
        ),
        ("no program", 0o755, "mongod: cannot be run"),
        ("#!/bin/sh\nexit 3\n", 0o755, "mongod: exits with code 3"),
    ],
    ids=["none", "library", "no program", "silent"],
)
def test_without_a_server_all_ways_out_are_named(
    tmp_path: Path, content: str | None, mode: int, condition: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mongod = tmp_path / "fiftyone" / "db" / "bin" / "mongod"
    if content is not None:
        mongod.parent.mkdir(parents=True)
        mongod.write_text(content)
        mongod.chmod(mode)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DiffugenError) as caught:
        find_mongod()
    for part in (condition, "diffugen[review]", URI_VARIABLE, "--review static"):
        assert part in str(caught.value)


def test_without_private_sockets_all_ways_out_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "AF_UNIX")
    with pytest.raises(DiffugenError, match=rf"no Unix sockets(.|\n)*{URI_VARIABLE}(.|\n)*--review static"):
        find_mongod()


def test_without_fiftyone_all_ways_out_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fiftyone", None)
    with pytest.raises(
        DiffugenError, match=r"FiftyOne is not installed(.|\n)*diffugen\[review\](.|\n)*--review static"
    ):
        database(tmp_path).__enter__()


def test_a_folder_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(DiffugenError, match=r"cannot write the review folder .*file/review"),
        database(tmp_path / "file" / "review"),
    ):
        pass
