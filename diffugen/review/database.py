"""The database of a review: one MongoDB server per run, and FiftyOne connected to it.

By default, FiftyOne attaches to any server of its own that already runs on the machine, in the user's home.
Here, each run has its own server, with its files in the run's folder, on a Unix socket that only its user can
reach:

1. If the user has set ``FIFTYONE_DATABASE_URI``, that server is used, and never stopped.
2. Otherwise, a new one is started, by the ``mongod`` of FiftyOne's own database package, of the wheel that
   the extra ``review`` installs in the same place, or on PATH.

Knows FiftyOne's settings; nothing of images, labels or decisions. Servers are in `diffugen.review.mongod`.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from diffugen.errors import DiffugenError
from diffugen.review.mongod import URI_VARIABLE, find_mongod, impossible, silence, start, without_password
from diffugen.run.files import holder_of, refuse_link, write_file
from diffugen.run.temporary import temporary_folder

USER_SECONDS = 5.0
"""How long the user's own server has to answer."""


@contextmanager
def database(folder: Path) -> Iterator[str]:
    """Connect FiftyOne to a database of this folder, or to the user's own, while the context lasts.

    A server that was started is stopped at the end, after Ctrl-C and ``kill -9`` too. Nothing but the socket
    is outside the folder. A process that used FiftyOne with another database before is moved to this one.

    Args:
        folder: Where the files of the server and of FiftyOne go, e.g. ``<run>/review``; made if needed.

    Yields:
        The server's address.

    Raises:
        DiffugenError: FiftyOne or a usable server is missing, the user's server does not answer, another
            session is open on the folder, its files cannot be used, or it ends while it is used.
    """
    if importlib.util.find_spec("fiftyone") is None:
        raise impossible(["FiftyOne is not installed"])
    folder = folder.resolve()
    with ExitStack() as undo:
        uri = os.environ.get(URI_VARIABLE, "").strip()
        if uri:
            _check_answers(uri)
        _make_folder(folder)
        own = not uri
        if own:
            undo.enter_context(_only_session(folder))
            mongod = find_mongod()
            server = start(mongod, folder, undo.enter_context(temporary_folder("mongod")))
            undo.callback(server.stop)
            uri = server.uri
        undo.enter_context(environment(_settings(folder, uri, own)))
        undo.callback(_disconnect)
        _connect(uri)
        with _explained():
            yield uri


@contextmanager
def _explained() -> Iterator[None]:
    """Turn whatever the driver of the database raises into one message, wherever it is used."""
    from pymongo.errors import PyMongoError

    try:
        yield
    except PyMongoError as error:
        raise DiffugenError(
            f"the review's database has ended ({type(error).__name__}). Every verdict that the App has shown "
            "is stored; run the same command to go on"
        ) from error


def is_open(uri: str) -> bool:
    """Return whether everyone who can connect to a server may use it, by what its address lacks."""
    private = ("@", "authmechanism=", "%2f")  # a password, a certificate, a socket
    return not any(sign in uri.lower() for sign in private)


@contextmanager
def environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables, which the App's own process inherits, and restore them at the end."""
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


def _check_answers(uri: str) -> None:
    problem = silence(uri, USER_SECONDS)
    if problem is not None:
        raise DiffugenError(
            f"the MongoDB server in {URI_VARIABLE}, {without_password(uri)}, does not answer: {problem}. "
            f"Start it, correct the address, or unset {URI_VARIABLE} to let DiffuGen start its own"
        )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()
    except OSError as error:
        raise DiffugenError(
            f"cannot write the review folder {folder}: {error.strerror or error}. Make it writable, or "
            "review on a page: --review static"
        ) from error


@contextmanager
def _only_session(folder: Path) -> Iterator[None]:
    """Hold the lock of the only session that may use the folder's database; a kill releases it."""
    from filelock import FileLock, Timeout

    pid_file = folder / "session.pid"
    refuse_link(folder / "session.lock")
    lock = FileLock(folder / "session.lock", thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise DiffugenError(
            f"a review session of {folder.parent} is already open, in {holder_of(pid_file)}. Continue "
            "there, or end it with Ctrl-C"
        ) from error
    try:
        write_file(pid_file, str(os.getpid()).encode())
        yield
    finally:
        pid_file.unlink(missing_ok=True)
        lock.release()


# -------------------------------------------------------------------- FiftyOne


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
        # The wheel has the oldest server that FiftyOne supports, and FiftyOne warns about it every time.
        settings["FIFTYONE_DATABASE_VALIDATION"] = "false"
    return settings


def _connect(uri: str) -> None:
    """Import FiftyOne and connect it, so that any problem with it is reported here."""
    try:
        import fiftyone as fo
        import fiftyone.core.odm.database as odm

        # FiftyOne reads the environment once, on import; this may be the second session of a process.
        _disconnect()
        fo.config.database_uri = uri
        odm.get_db_conn()
    except Exception as error:  # mistakes of installation, versions and settings, of a dozen unrelated kinds
        raise DiffugenError(
            f"FiftyOne cannot use the database at {without_password(uri)}: {error}. Update FiftyOne (pip "
            "install -U 'diffugen[review]'), give it another database, or review on a page: --review static"
        ) from error


def _disconnect() -> None:
    """Disconnect FiftyOne before the server stops; otherwise it waits half a minute for it on exit."""
    odm = sys.modules.get("fiftyone.core.odm.database")
    if odm is not None:
        odm._disconnect()
    repositories: Any = sys.modules.get("fiftyone.factory.repo_factory")
    if repositories is not None:  # the code that deletes datasets keeps connections of its own
        repositories._db = None
        repositories.RepositoryFactory.repos.clear()
