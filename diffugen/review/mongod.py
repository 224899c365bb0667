"""One MongoDB server on the files of a folder: find the program, start the server, stop it.

A server listens on a Unix socket in a folder that only its user can enter, and on no port: MongoDB would
answer every user of the machine there. It ends with the process that started it (`diffugen.review.keeper`).

Knows processes, sockets and log files; nothing of FiftyOne's settings, images, labels or decisions.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from diffugen.errors import DiffugenError
from diffugen.review import keeper

URI_VARIABLE = "FIFTYONE_DATABASE_URI"
START_SECONDS = 300.0
"""Maximum time to start: it takes minutes on a busy machine. A server that fails ends the wait earlier."""

SOCKET_BYTES = 103
"""Longest path of a Unix socket on every system: 107 on Linux, 103 on macOS."""

WAYS_OUT = (
    "pip install 'diffugen[review]', which brings FiftyOne and, on Linux x86_64, a MongoDB server",
    f"set {URI_VARIABLE} to the address of your own MongoDB server, 6.0 or newer, e.g. "
    "mongodb://user:password@127.0.0.1:27017",
    "review on a page without FiftyOne: --review static",
)


@dataclass(frozen=True)
class Server:
    """A MongoDB server that this process started.

    Attributes:
        process: The keeper that runs it.
        socket: The Unix socket on which it listens.
    """

    process: subprocess.Popen[bytes]
    socket: Path

    @property
    def uri(self) -> str:
        """Its address; whoever uses it waits until what is written will survive a crash."""
        return f"mongodb://{quote(str(self.socket), safe='')}/?journal=true&serverSelectionTimeoutMS=5000"

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self.process.poll() is None

    def stop(self) -> None:
        """Stop the server, by force if it takes too long; its journal survives that."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.terminate()  # a forked worker of this process may still hold the pipe open
        try:
            self.process.wait(2 * keeper.PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def impossible(conditions: list[str]) -> DiffugenError:
    """Return the error that says why the FiftyOne App cannot be used here, with all ways out."""
    lines = ["cannot review in the FiftyOne App:", *(f"  - {line}" for line in conditions)]
    return DiffugenError("\n".join([*lines, "Do one of these:", *(f"  - {line}" for line in WAYS_OUT)]))


def find_mongod() -> Path:
    """Return the first ``mongod`` that runs on this machine.

    Looks in FiftyOne's database package, where the wheel of the extra ``review`` is installed too, and on
    PATH.

    Raises:
        DiffugenError: There is none; the message names each candidate with its problem, and the ways out.
    """
    if not hasattr(socket, "AF_UNIX"):
        raise impossible(["this system has no Unix sockets, the only private place for its database"])
    places = [Path(entry or ".") / "fiftyone" / "db" / "bin" / "mongod" for entry in sys.path]
    candidates = [place.resolve() for place in places if place.exists()]
    on_path = shutil.which("mongod")
    candidates += [Path(on_path)] if on_path else []
    conditions = []
    for candidate in dict.fromkeys(candidates):
        condition = _unusable(candidate)
        if condition is None:
            return candidate
        conditions.append(f"{candidate}: {condition}")
    raise impossible(conditions or ["mongod is not installed, neither beside FiftyOne nor on PATH"])


def _unusable(mongod: Path) -> str | None:
    try:
        done = subprocess.run(
            [mongod, "--version"], capture_output=True, text=True, errors="replace", timeout=60
        )
    except OSError as error:
        return f"cannot be run ({error.strerror or error})"
    except subprocess.TimeoutExpired:
        return "does not answer"
    if done.returncode == 0:
        return None
    lines = (done.stderr or done.stdout).strip().splitlines()
    return lines[-1] if lines else f"exits with code {done.returncode}"


def silence(uri: str, seconds: float) -> str | None:
    """Return why a server does not answer; None if it does."""
    from pymongo import MongoClient
    from pymongo.errors import PyMongoError

    try:
        client: MongoClient[dict[str, Any]] = MongoClient(uri, serverSelectionTimeoutMS=round(1000 * seconds))
        with client:
            client.admin.command("ping")
    except (PyMongoError, ValueError) as error:
        return without_password(str(error)).split(", Timeout:")[0][:300]
    return None


def without_password(text: str) -> str:
    """Return the text with user names and passwords removed from the addresses in it."""
    return re.sub(r"//[^/@\s]*@", "//...@", text)


# -------------------------------------------------------------------- start and stop


def start(mongod: Path, folder: Path, socket_folder: Path) -> Server:
    """Start a server on ``<folder>/database``, after stopping any other one that runs on these files.

    Args:
        mongod: The program.
        folder: Where its files and its log are.
        socket_folder: Where its socket goes; only this user may have access. Its path must be short.

    Raises:
        DiffugenError: The server does not start; the message has the last error of its log and a remedy.
    """
    data, log = folder / "database", folder / "database.log"
    stop_leftovers(data)
    server = launch(mongod, data, log, socket_folder)
    problem = _wait(server, log)
    if problem is not None:
        raise DiffugenError(_explained(problem, data, log))
    return server


def launch(mongod: Path, data: Path, log: Path, socket_folder: Path) -> Server:
    """Start the process of a server without waiting for it.

    Raises:
        DiffugenError: The process cannot be started, a file cannot be written, or the socket has a long path.
    """
    path = socket_folder / "mongod.sock"
    if len(os.fsencode(path)) > SOCKET_BYTES:
        raise DiffugenError(
            f"the review database cannot listen on {path}: the path of a socket has at most {SOCKET_BYTES} "
            "bytes. Set TMPDIR to a folder with a shorter path, or review on a page: --review static"
        )
    command = [str(mongod), "--dbpath", str(data), "--bind_ip", str(path), "--nounixsocket", "--quiet"]
    command += ["--wiredTigerCacheSizeGB", "0.25"]
    command += ["--setParameter", "diagnosticDataCollectionEnabled=false"]
    # By default, the journal alone takes 300 MB of disk in every run.
    command += ["--wiredTigerEngineConfigString", "log=(prealloc=false,file_max=8MB)"]
    try:
        # Tags and prompts are in the files and the log, and whoever could write them could plant decisions.
        data.mkdir(exist_ok=True)
        data.chmod(0o700)
        log.unlink(missing_ok=True)  # it may be a link
        with log.open("xb") as output:
            log.chmod(0o600)
            # In a session of its own, so that Ctrl-C ends the review and not the server under it.
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", keeper.__file__, *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
    except OSError as error:
        problem = f"{error.filename or mongod}: {error.strerror or error}"
        raise DiffugenError(_explained(problem, data, log)) from error
    return Server(process, path)


def stop_leftovers(data: Path) -> None:
    """Stop servers that other sessions left on these files, e.g. if a session and its keeper were killed.

    The caller holds the lock of the session, so that no server is in use.
    """
    import psutil  # type: ignore[import-untyped]

    found = [
        process
        for process in psutil.process_iter(["cmdline"])
        if {"--dbpath", str(data)} <= {*(process.info["cmdline"] or ())}
    ]
    for signal in ("terminate", "kill"):
        for process in found:
            with suppress(psutil.Error):
                getattr(process, signal)()
        deadline = time.monotonic() + keeper.PATIENCE_SECONDS
        while any(map(is_alive, found)) and time.monotonic() < deadline:
            time.sleep(0.05)


def is_alive(process: Any) -> bool:
    """Return whether a process runs; a zombie, which its parent has not noticed yet, does not."""
    import psutil

    with suppress(psutil.Error):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def _wait(server: Server, log: Path) -> str | None:
    """Wait until the server answers; return its last error if it ends instead."""
    try:
        deadline = time.monotonic() + START_SECONDS
        while server.alive and time.monotonic() < deadline:
            if silence(server.uri, 1.0) is None:
                return None
    except BaseException:
        server.stop()
        raise
    if server.alive:
        server.stop()
        return f"no answer within {START_SECONDS:g} seconds"
    return _last_error(log)


def _last_error(log: Path) -> str:
    """Return the last error of a log, from its JSON lines, or its last plain text if there are none."""
    text = ""
    for line in log.read_text(errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            text = line.strip() or text
            continue
        if entry.get("s") in ("E", "F"):
            details = entry.get("attr", {})
            detail = details.get("message") or details.get("error") or ""
            detail = detail.get("msg") or detail.get("errmsg") or "" if isinstance(detail, dict) else detail
            # A fatal assertion follows an error that says more.
            text = f"{entry.get('msg', '')} {detail}".strip() if detail or not text else text
    return text[:400]


def _explained(problem: str, data: Path, log: Path) -> str:
    causes = {
        "Permission denied|ermission|not writable|Read-only": f"Make {data} writable",
        "No space left|ENOSPC": "Free some space on its disk",
        "DBPathInUse|nable to lock|Resource temporarily": f"Stop the other MongoDB server that uses {data}",
    }
    remedies = [remedy for pattern, remedy in causes.items() if re.search(pattern, problem)]
    damaged = (
        f"If its files are damaged, move {data} away and try again: that loses tags that were not imported "
        "yet; decisions are safe in the run's ledger"
    )
    return (
        f"the review database cannot start on {data}: {problem or 'no error message'}. "
        f"{remedies[0] if remedies else damaged} (log: {log}), or review on a page: --review static"
    )
