"""One MongoDB server on the files of a folder: find the program, start the server, take it over, stop it.

Knows processes, ports and log files; nothing of FiftyOne's settings, images, labels or decisions.
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

from diffugen.errors import DiffugenError

URI_VARIABLE = "FIFTYONE_DATABASE_URI"
START_SECONDS = 300.0
"""Maximum time to start: it takes minutes on a busy machine. A server that fails ends the wait earlier."""
STOP_SECONDS = 30.0

WAYS_OUT = (
    "pip install 'diffugen[review]', which brings FiftyOne and, on Linux x86_64, a MongoDB server",
    f"set {URI_VARIABLE} to the address of your own MongoDB server, 6.0 or newer, e.g. "
    "mongodb://127.0.0.1:27017",
    "review on a page without FiftyOne: --review static",
)


@dataclass(frozen=True)
class Server:
    """A MongoDB server on 127.0.0.1.

    Attributes:
        process: A ``psutil.Process``, or a ``psutil.Popen`` if this process started it.
        port: Its port.
    """

    process: Any
    port: int

    @property
    def uri(self) -> str:
        """Its address."""
        return f"mongodb://127.0.0.1:{self.port}"

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        import psutil  # type: ignore[import-untyped]

        try:
            # Polling a child also reaps it; a zombie of another parent stays, but holds no files.
            ended = isinstance(self.process, psutil.Popen) and self.process.poll() is not None
            return not ended and self.process.is_running() and self.process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def stop(self) -> None:
        """Stop the server, by force if it takes too long; its journal survives that."""
        import psutil

        for signal in (self.process.terminate, self.process.kill):
            with suppress(psutil.Error):
                signal()
            deadline = time.monotonic() + STOP_SECONDS
            while self.alive and time.monotonic() < deadline:
                time.sleep(0.05)
            if not self.alive:
                return


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
    name = "mongod.exe" if os.name == "nt" else "mongod"
    places = [Path(entry or ".") / "fiftyone" / "db" / "bin" / name for entry in sys.path]
    candidates = [place.resolve() for place in places if place.exists()]
    on_path = shutil.which(name)
    candidates += [Path(on_path)] if on_path else []
    conditions = []
    for candidate in dict.fromkeys(candidates):
        condition = _unusable(candidate)
        if condition is None:
            return candidate
        conditions.append(f"{candidate}: {condition}")
    raise impossible(conditions or [f"{name} is not installed, neither beside FiftyOne nor on PATH"])


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


# -------------------------------------------------------------------- start and take over


def start(mongod: Path, folder: Path) -> Server:
    """Start a server on ``<folder>/database``, or take over one that is already running on it.

    Raises:
        DiffugenError: The server does not start; the message has the last error of its log and a remedy.
    """
    data, log = folder / "database", folder / "database.log"
    for _ in range(5):
        server = launch(mongod, data, log)
        problem = _wait(server, log)
        if problem is None:
            return server
        # Another process may have taken the port, or a server that a killed session was still starting may
        # hold the files by now.
        running = take_over(folder)
        if running is not None:
            return running
        if "ddress already in use" not in problem:
            raise DiffugenError(_explained(problem, data, log))
    raise DiffugenError(
        f"no port of 127.0.0.1 stayed free long enough for the database: {problem}. Try again"
    )


def launch(mongod: Path, data: Path, log: Path) -> Server:
    """Start the process of a server without waiting for it.

    Raises:
        DiffugenError: The process cannot be started, or a file cannot be written.
    """
    import psutil

    port = _free_port()
    command = [str(mongod), "--dbpath", str(data), "--port", str(port), "--bind_ip", "127.0.0.1", "--quiet"]
    command += ["--wiredTigerCacheSizeGB", "0.25"]
    command += ["--setParameter", "diagnosticDataCollectionEnabled=false"]
    # By default, the journal alone takes 300 MB of disk in every run.
    command += ["--wiredTigerEngineConfigString", "log=(prealloc=false,file_max=8MB)"]
    command += [] if os.name == "nt" else ["--nounixsocket"]
    try:
        data.mkdir(exist_ok=True)
        log.unlink(missing_ok=True)  # it may be a link
        with log.open("xb") as output:
            # In a session of its own, so that Ctrl-C ends the review and not the server under it.
            process = psutil.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
    except OSError as error:
        problem = f"{error.filename or mongod}: {error.strerror or error}"
        raise DiffugenError(_explained(problem, data, log)) from error
    return Server(process, port)


def take_over(folder: Path) -> Server | None:
    """Return the server that a killed session left running on the folder's files; None if there is none.

    MongoDB notes its process id in ``mongod.lock``; the command line confirms that it is still that process,
    and has the port. A server that does not answer is stopped.
    """
    import psutil

    data = folder / "database"
    try:
        process = psutil.Process(int((data / "mongod.lock").read_text()))
        command = process.cmdline()
        options = {name: command[command.index(name) + 1] for name in ("--dbpath", "--port")}
        server = Server(process, int(options["--port"]))
    except (OSError, ValueError, IndexError, psutil.Error):
        return None
    if Path(options["--dbpath"]) != data or not server.alive:
        return None
    deadline = time.monotonic() + START_SECONDS
    while server.alive and time.monotonic() < deadline:
        if silence(server.uri, 1.0) is None:
            return server
    server.stop()
    return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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
