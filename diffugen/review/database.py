"""Find, or start and stop, the MongoDB server in which FiftyOne keeps its data, and point FiftyOne at it.

Left to itself FiftyOne attaches to whatever server of its own already runs on the machine, in the user's
home. So this starts one server for each run, with its files in the run's folder, on a free port of 127.0.0.1,
and hands FiftyOne its address:

1. ``FIFTYONE_DATABASE_URI``, where the user has set it: her server is used, never stopped.
2. Else a server that a killed session has left running on the same files: it is taken over.
3. Else a new one, from the ``mongod`` of FiftyOne's own database package, of the wheel that the extra
   ``review`` installs in the same place, or on PATH.

Knows processes, ports and FiftyOne's settings; nothing of images, labels or decisions.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffugen.errors import DiffugenError

URI_VARIABLE = "FIFTYONE_DATABASE_URI"
START_SECONDS = 300.0
"""On a machine busy with training a server can need minutes; one that fails ends long before, and is not
waited for."""
STOP_SECONDS = 30.0
USER_SECONDS = 5.0
"""How long the user's own server has to answer."""

WAYS_OUT = (
    "pip install 'diffugen[review]', which brings FiftyOne and, on Linux x86_64, a MongoDB server",
    f"set {URI_VARIABLE} to the address of a MongoDB server of your own, 6.0 or newer, e.g. "
    "mongodb://127.0.0.1:27017",
    "review on a page without FiftyOne: --review static",
)


@contextmanager
def database(folder: Path) -> Iterator[str]:
    """Have FiftyOne use a database of this folder, or the user's own, for as long as the context lasts.

    A server that was started or taken over is stopped at the end, after Ctrl-C too. Nothing is written
    outside the folder. A process that used FiftyOne with another database before is moved over to this one.

    Args:
        folder: Where the server's files and FiftyOne's settings go, e.g. ``<run>/review``; made if needed.

    Yields:
        The server's address.

    Raises:
        DiffugenError: FiftyOne or a usable server is missing, the user's server does not answer, another
            session is open on the folder, or its files cannot be used.
    """
    if importlib.util.find_spec("fiftyone") is None:
        raise DiffugenError(_no_review(["FiftyOne is not installed"]))
    folder = folder.resolve()
    with ExitStack() as undo:
        uri = os.environ.get(URI_VARIABLE, "").strip()
        if uri:
            _check_answers(uri)
        _make_folder(folder)
        own = not uri
        if own:
            undo.enter_context(_only_session(folder))
            server = _take_over(folder) or _start(find_mongod(), folder)
            undo.callback(server.stop)
            uri = server.uri
        undo.enter_context(environment(_settings(folder, uri, own)))
        undo.callback(_disconnect)
        _connect(uri)
        yield uri


def find_mongod() -> Path:
    """Return the first ``mongod`` that runs on this machine.

    Raises:
        DiffugenError: There is none; names those that were tried, what is wrong with each, and the ways out.
    """
    name = "mongod.exe" if os.name == "nt" else "mongod"
    # The wheels of FiftyOne's database install into FiftyOne's own package, wherever on the path they lie.
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
    raise DiffugenError(_no_review(conditions or [f"no {name} is installed beside FiftyOne or on PATH"]))


def _no_review(conditions: list[str]) -> str:
    lines = ["a review in the FiftyOne App is not possible here:", *(f"  - {line}" for line in conditions)]
    return "\n".join([*lines, "Do one of these:", *(f"  - {line}" for line in WAYS_OUT)])


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
    return lines[-1] if lines else f"ends with code {done.returncode}"


# -------------------------------------------------------------------- our own server


@dataclass(frozen=True)
class _Server:
    process: Any  # psutil.Process, or psutil.Popen where we started it
    port: int

    @property
    def uri(self) -> str:
        return f"mongodb://127.0.0.1:{self.port}"

    @property
    def alive(self) -> bool:
        import psutil  # type: ignore[import-untyped]

        try:
            # Asking a child for its end also reaps it; somebody else's may stay a zombie, which holds no
            # files.
            ended = isinstance(self.process, psutil.Popen) and self.process.poll() is not None
            return not ended and self.process.is_running() and self.process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def stop(self) -> None:
        """Stop the server: in order, or by force where that takes too long; its journal survives that."""
        import psutil

        for signal in (self.process.terminate, self.process.kill):
            with suppress(psutil.Error):
                signal()
            deadline = time.monotonic() + STOP_SECONDS
            while self.alive and time.monotonic() < deadline:
                time.sleep(0.05)
            if not self.alive:
                return


def _start(mongod: Path, folder: Path) -> _Server:
    data, log = folder / "database", folder / "database.log"
    for _ in range(5):
        server = _launch(mongod, data, log)
        problem = _wait(server, log)
        if problem is None:
            return server
        # Somebody was quicker to the port, or a server that a killed session was still starting has the files
        # by now.
        running = _take_over(folder)
        if running is not None:
            return running
        if "ddress already in use" not in problem:
            raise DiffugenError(_explained(problem, data, log))
    raise DiffugenError(f"no port of 127.0.0.1 stays free long enough for the database: {problem}. Try again")


def _launch(mongod: Path, data: Path, log: Path) -> _Server:
    import psutil

    port = _free_port()
    command = [
        str(mongod),
        "--dbpath",
        str(data),
        "--port",
        str(port),
        "--bind_ip",
        "127.0.0.1",
        "--quiet",
        "--wiredTigerCacheSizeGB",
        "0.25",
        "--setParameter",
        "diagnosticDataCollectionEnabled=false",
        # As it comes, the journal alone takes 300 MB of disk in every run.
        "--wiredTigerEngineConfigString",
        "log=(prealloc=false,file_max=8MB)",
    ]
    command += [] if os.name == "nt" else ["--nounixsocket"]
    try:
        data.mkdir(exist_ok=True)
        with log.open("wb") as output:
            # In a session of its own, so that Ctrl-C ends the review and not the server below it.
            process = psutil.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
    except OSError as error:
        raise DiffugenError(
            _explained(f"{error.filename or mongod}: {error.strerror or error}", data, log)
        ) from error
    return _Server(process, port)


def _wait(server: _Server, log: Path) -> str | None:
    """Wait until the server answers; return what it says where it ends instead."""
    try:
        deadline = time.monotonic() + START_SECONDS
        while server.alive and time.monotonic() < deadline:
            if _silence(server.uri, 1.0) is None:
                return None
    except BaseException:
        server.stop()
        raise
    if server.alive:
        server.stop()
        return f"no answer within {START_SECONDS:g} seconds"
    return _last_words(log)


def _last_words(log: Path) -> str:
    """Return the last error of a server's log: JSON lines, or plain text where it failed before it could
    write those.
    """
    words = ""
    for line in log.read_text(errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            words = line.strip() or words
            continue
        if entry.get("s") in ("E", "F"):
            details = entry.get("attr", {})
            detail = details.get("message") or details.get("error") or ""
            detail = detail.get("msg") or detail.get("errmsg") or "" if isinstance(detail, dict) else detail
            # Fatal assertions follow an error that says more.
            words = f"{entry.get('msg', '')} {detail}".strip() if detail or not words else words
    return words[:400]


def _explained(problem: str, data: Path, log: Path) -> str:
    causes = {
        "Permission denied|ermission|not writable|Read-only": f"Make {data} writable",
        "No space left|ENOSPC": "Free some space on its disk",
        "DBPathInUse|nable to lock|Resource temporarily": f"Stop the other MongoDB server that uses {data}",
    }
    remedies = [remedy for pattern, remedy in causes.items() if re.search(pattern, problem)]
    damaged = (
        f"If its files are damaged, move {data} away and try again: that loses tags that no session has "
        "taken over yet; "
        "decisions are kept in the run's ledger"
    )
    return (
        f"the database of the review does not start on {data}: {problem or 'it says nothing'}. "
        f"{remedies[0] if remedies else damaged} (log: {log}), or review on a page: --review static"
    )


def _take_over(folder: Path) -> _Server | None:
    """Return the server that a killed session left running on the files of the folder; stop it where it does
    not answer.

    MongoDB notes its process in ``mongod.lock``; the command line tells that it is still that process, and
    the port.
    """
    import psutil

    data = folder / "database"
    try:
        process = psutil.Process(int((data / "mongod.lock").read_text()))
        command = process.cmdline()
        told = {name: command[command.index(name) + 1] for name in ("--dbpath", "--port")}
        server = _Server(process, int(told["--port"]))
    except (OSError, ValueError, IndexError, psutil.Error):
        return None
    if Path(told["--dbpath"]) != data or not server.alive:
        return None
    deadline = time.monotonic() + START_SECONDS
    while server.alive and time.monotonic() < deadline:
        if _silence(server.uri, 1.0) is None:
            return server
    server.stop()
    return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _only_session(folder: Path) -> Iterator[None]:
    """Hold the lock of the one session that may use the folder's database; a kill releases it."""
    from filelock import FileLock, Timeout

    pid_file = folder / "session.pid"
    lock = FileLock(folder / "session.lock", thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        holder = pid_file.read_text().strip() if pid_file.is_file() else "unknown"
        raise DiffugenError(
            f"a review session of {folder.parent} is open already, in process {holder}. Go on there, or end "
            "it with Ctrl-C"
        ) from error
    try:
        pid_file.write_text(str(os.getpid()))
        yield
    finally:
        pid_file.unlink(missing_ok=True)
        lock.release()


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "session.pid").touch()
    except OSError as error:
        raise DiffugenError(
            f"cannot write the folder of the review, {folder}: {error.strerror or error}. Make it writable, "
            "or review on a "
            "page in another folder: --review static"
        ) from error


# -------------------------------------------------------------------- any server, and FiftyOne


def _check_answers(uri: str) -> None:
    problem = _silence(uri, USER_SECONDS)
    if problem is not None:
        raise DiffugenError(
            f"the MongoDB server that {URI_VARIABLE} names, {_without_password(uri)}, does not answer: "
            f"{problem}. Start it, "
            f"correct the address, or unset {URI_VARIABLE} to let DiffuGen start its own"
        )


def _silence(uri: str, seconds: float) -> str | None:
    """Return why a server does not answer; None where it does."""
    from pymongo import MongoClient
    from pymongo.errors import PyMongoError

    try:
        client: MongoClient[dict[str, Any]] = MongoClient(uri, serverSelectionTimeoutMS=round(1000 * seconds))
        with client:
            client.admin.command("ping")
    except (PyMongoError, ValueError) as error:
        return _without_password(str(error)).split(", Timeout:")[0][:300]
    return None


def _without_password(text: str) -> str:
    return re.sub(r"//[^/@\s]*@", "//...@", text)


def _settings(folder: Path, uri: str, own: bool) -> dict[str, str]:
    """Return FiftyOne's environment variables: silent, offline, and with nothing in the user's home."""
    settings = {
        URI_VARIABLE: uri,
        "FIFTYONE_DO_NOT_TRACK": "true",
        "FIFTYONE_SHOW_PROGRESS_BARS": "false",
        "FIFTYONE_LOGGING_LEVEL": "ERROR",
    }
    places = {
        "FIFTYONE_CONFIG_PATH": "config.json",
        "FIFTYONE_APP_CONFIG_PATH": "app_config.json",
        "FIFTYONE_ANNOTATION_CONFIG_PATH": "annotation_config.json",
        "FIFTYONE_EVALUATION_CONFIG_PATH": "evaluation_config.json",
        "FIFTYONE_DEFAULT_DATASET_DIR": "datasets",
    }
    settings.update({name: os.environ.get(name, str(folder / place)) for name, place in places.items()})
    if own:
        # The server of the wheel is the oldest that FiftyOne supports, and it says so every time.
        settings["FIFTYONE_DATABASE_VALIDATION"] = "false"
    return settings


@contextmanager
def environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables, which the App's own process inherits, and put them back at the end."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _connect(uri: str) -> None:
    """Import FiftyOne and make it connect, so that whatever it dislikes is said here."""
    try:
        import fiftyone as fo
        import fiftyone.core.odm.database as odm

        # It reads the environment once, when it is first imported; this may be the second session of a
        # process.
        _disconnect()
        fo.config.database_uri = uri
        odm.get_db_conn()
    except Exception as error:  # mistakes of installation, versions and settings, of a dozen unrelated kinds
        raise DiffugenError(
            f"FiftyOne cannot work with the database at {_without_password(uri)}: {error}. Update FiftyOne "
            "(pip install -U "
            "'diffugen[review]'), give it another database, or review on a page: --review static"
        ) from error


def _disconnect() -> None:
    """Let go of the server before it stops; FiftyOne would look for it for half a minute when the process
    ends.
    """
    odm = sys.modules.get("fiftyone.core.odm.database")
    if odm is not None:
        odm._disconnect()
    repositories: Any = sys.modules.get("fiftyone.factory.repo_factory")
    if repositories is not None:  # what deletes datasets keeps connections of its own
        repositories._db = None
        repositories.RepositoryFactory.repos.clear()
