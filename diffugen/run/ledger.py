"""The SQLite ledger of a run directory: its tables, how it is opened and upgraded, what its failures mean.

The only home of sqlite3. Knows folders and SQL; does not know records, images or heat maps (``store.py``
does).

The ledger is kept in write-ahead mode, so any number of readers look at it while one process writes. Every
commit is synced to the disk (``synchronous=FULL``): beside the two files that each image syncs anyway this
costs little, and a person's decisions, unlike images, could not be made again. Write-ahead mode needs shared
memory: keep run directories off network disks.
"""

from __future__ import annotations

import errno
import shutil
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffugen.errors import StoreError

LEDGER_NAME = "ledger.sqlite"
_PAGE_ROWS = 500
_BUSY_SECONDS = 30.0
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LITTLE_SPACE_BYTES = 1 << 20

_MIGRATIONS: tuple[str, ...] = (
    # Version 1. `seq` is the order of writing: it never repeats, so reading in pages by it is cheap and
    # stable.
    """
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE images (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, round INTEGER NOT NULL,
        record TEXT NOT NULL,
        seconds REAL NOT NULL, bytes INTEGER NOT NULL, created_at TEXT NOT NULL);
    CREATE INDEX images_by_round ON images (round, seq, seconds, bytes, created_at);
    CREATE TABLE labels (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, image_id TEXT NOT NULL REFERENCES images (id),
        source TEXT NOT NULL,
        method TEXT NOT NULL, round INTEGER NOT NULL, instances TEXT NOT NULL, objects INTEGER NOT NULL,
        created_at TEXT NOT NULL, UNIQUE (image_id, source, method));
    CREATE INDEX labels_by_source ON labels (source, seq, round, objects, created_at);
    CREATE TABLE stages (
        round INTEGER NOT NULL, name TEXT NOT NULL, result TEXT NOT NULL, seconds REAL NOT NULL,
        created_at TEXT NOT NULL,
        PRIMARY KEY (round, name)) WITHOUT ROWID;
    """,
    # Version 2: the review queue and what came of it. Decisions are never replaced: the newest of an image
    # counts.
    """
    CREATE TABLE disagreements (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, image_id TEXT NOT NULL REFERENCES images (id),
        round INTEGER NOT NULL,
        kind TEXT NOT NULL, severity REAL NOT NULL, attention INTEGER, model INTEGER, iou REAL NOT NULL);
    CREATE INDEX disagreements_by_round ON disagreements (round, kind);
    CREATE TABLE decisions (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, image_id TEXT NOT NULL REFERENCES images (id),
        verdict TEXT NOT NULL,
        instances TEXT, reviewer TEXT NOT NULL, round INTEGER NOT NULL, created_at TEXT NOT NULL);
    CREATE INDEX decisions_by_image ON decisions (image_id, seq);
    CREATE INDEX decisions_by_round ON decisions (round, verdict);
    """,
    # Version 3: images that were generated and are of no use, so that they are not generated again.
    """
    CREATE TABLE dropped (
        id TEXT PRIMARY KEY, round INTEGER NOT NULL, reason TEXT NOT NULL,
        created_at TEXT NOT NULL) WITHOUT ROWID;
    """,
)
"""One script a schema version, run in order; a new ledger runs them all. To add a table, append a script."""


class Ledger:
    """An open ledger, for one thread of one process.

    Attributes:
        folder: The run directory.
        readonly: Whether writing is refused.
    """

    def __init__(self, folder: Path, *, readonly: bool) -> None:
        """Open the ledger of ``folder``; a writer, who holds the run's lock, creates or upgrades it first.

        Raises:
            StoreError: The ledger is corrupt, of another program, of another version, or cannot be read or
                written.
        """
        self.folder = folder
        self.readonly = readonly
        with explained(folder):
            self._connection = _connect_reader(folder) if readonly else _connect_writer(folder)
            try:
                version = self._version()
                if version < len(_MIGRATIONS):
                    self._upgrade(version)
            except BaseException:
                self._connection.close()
                raise

    def _version(self) -> int:
        """Return the schema version, 0 for a file without tables: one whose maker was killed."""
        tables = {name for (name,) in self.all("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not tables:
            return 0
        row = self.one("SELECT value FROM meta WHERE key = 'schema'") if "meta" in tables else None
        if row is None:
            raise StoreError(
                f"{self.folder / LEDGER_NAME} is an SQLite file of another program, not a DiffuGen ledger. "
                "Choose another run folder"
            )
        version = int(row[0])
        if version > len(_MIGRATIONS):
            raise StoreError(
                f"run {self.folder} was written by a newer DiffuGen: its ledger has schema {version}, this "
                "DiffuGen knows "
                f"schemas up to {len(_MIGRATIONS)}. Upgrade DiffuGen, or choose another run folder"
            )
        return version

    def _upgrade(self, version: int) -> None:
        if self.readonly:
            state = (
                f"has schema {version}, which is older than {len(_MIGRATIONS)}"
                if version
                else "was never finished"
            )
            raise StoreError(
                f"the ledger of run {self.folder} {state}. A command that writes the run mends this"
            )
        with self.transaction():
            for script in _MIGRATIONS[version:]:
                for statement in script.split(";"):
                    self._connection.execute(statement)
            self._connection.execute(
                "INSERT OR REPLACE INTO meta VALUES ('schema', ?)", [str(len(_MIGRATIONS))]
            )

    def check_writable(self) -> None:
        """Raise where the run was opened for reading.

        Raises:
            StoreError: It was.
        """
        if self.readonly:
            raise StoreError(
                f"run {self.folder} is open for reading only; open it with readonly=False to write"
            )

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit everything written inside the block, or nothing where it raises.

        Raises:
            StoreError: The run was opened for reading, or the disk or the ledger fails.
        """
        self.check_writable()
        with explained(self.folder):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # a full disk has already rolled it back
                    self._connection.execute("ROLLBACK")
                raise

    def write(self, sql: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Run one statement for each of ``rows``, inside a :meth:`transaction`."""
        self._connection.executemany(sql, rows)

    def one(self, sql: str, **values: Any) -> tuple[Any, ...] | None:
        """Return the first row of a query, or None."""
        with explained(self.folder):
            row: tuple[Any, ...] | None = self._connection.execute(sql, values).fetchone()
        return row

    def all(self, sql: str) -> list[tuple[Any, ...]]:
        """Return all rows of a small query."""
        with explained(self.folder):
            return self._connection.execute(sql).fetchall()

    def stream(self, table: str, columns: str, where: str, **values: Any) -> Iterator[tuple[Any, ...]]:
        """Yield rows of a table that has ``seq``, oldest first, a page at a time.

        No query stays open between pages, so the caller may write while it reads and the write-ahead file
        does not grow; rows written after the start are not seen.

        Args:
            table: ``images``, ``labels``, ``disagreements`` or ``decisions``; called ``t`` in ``where``.
            columns: SQL list of columns to yield.
            where: SQL condition that refers to ``values`` as ``:name``, and to the last row seen at the start
                as ``:until``.
            **values: Values for ``where``.
        """
        (until,) = self.one(f"SELECT coalesce(max(seq), 0) FROM {table}") or (0,)
        sql = (
            f"SELECT seq, {columns} FROM {table} AS t WHERE seq > :after AND seq <= :until AND {where} "
            f"ORDER BY seq LIMIT {_PAGE_ROWS}"
        )
        after = 0
        while True:
            with explained(self.folder):
                page = self._connection.execute(sql, {**values, "after": after, "until": until}).fetchall()
            for row in page:
                yield row[1:]
            if len(page) < _PAGE_ROWS:
                return
            after = page[-1][0]

    def close(self) -> None:
        """Close the ledger."""
        self._connection.close()


def _connect_writer(folder: Path) -> sqlite3.Connection:
    return _connect(
        folder, "rwc", "PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL", "PRAGMA foreign_keys = ON"
    )


def _connect_reader(folder: Path) -> sqlite3.Connection:
    """Open for reading; also where the ledger's helper files cannot be made (a read-only or full disk)."""
    first_look = "SELECT count(*) FROM sqlite_master"
    try:
        return _connect(folder, "ro", first_look)
    except sqlite3.OperationalError:
        wal = folder / f"{LEDGER_NAME}-wal"
        if wal.exists() and wal.stat().st_size:
            raise
        # Without a write-ahead file nobody is writing now and all there is lies in the ledger itself.
        return _connect(folder, "ro&immutable=1", first_look)


def _connect(folder: Path, mode: str, *statements: str) -> sqlite3.Connection:
    address = f"{(folder / LEDGER_NAME).absolute().as_uri()}?mode={mode}"
    connection = sqlite3.connect(address, uri=True, timeout=_BUSY_SECONDS, isolation_level=None)
    try:
        for statement in statements:
            connection.execute(statement)
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turn what the disk or SQLite raises inside the block into a StoreError with condition and way out."""
    try:
        yield
    except (sqlite3.ProgrammingError, sqlite3.IntegrityError):
        raise  # a mistake in the program, not in the run
    except (sqlite3.DatabaseError, OSError) as error:
        raise StoreError(_explanation(folder, error)) from error


def _explanation(folder: Path, error: Exception) -> str:
    text = str(error)
    ledger = folder / LEDGER_NAME
    if _is_full(folder, error):
        return (
            f"no space left on the disk of run {folder} ({error}). Everything committed so far is whole. "
            "Free some space, or "
            "move the run folder to a larger disk, and run the same command again: it continues"
        )
    if (
        isinstance(error, OSError)
        or "disk I/O error" in text
        or "readonly" in text
        or "unable to open" in text
    ):
        return (
            f"cannot read or write run {folder} ({error}). Check its permissions and its disk, or choose "
            "another run folder"
        )
    if "locked" in text:
        return (
            f"{ledger} stayed busy for {_BUSY_SECONDS:g} s. Close the other program that has it open, and "
            "try again"
        )
    return (
        f"the ledger {ledger} is corrupt ({error}). The images and heat maps beside it are untouched. Put "
        "back a copy of the "
        f"ledger; or rescue what is readable with `sqlite3 {LEDGER_NAME} .recover > rescue.sql` (`.dump` "
        "where sqlite3 has no "
        f"working .recover), move {LEDGER_NAME} and its -wal and -shm away, and run `sqlite3 {LEDGER_NAME} < "
        "rescue.sql`; "
        "or choose another run folder"
    )


def _is_full(folder: Path, error: Exception) -> bool:
    if (
        "disk I/O error" in str(error) and folder.exists()
    ):  # what SQLite says where its helper files cannot grow
        return shutil.disk_usage(folder).free < _LITTLE_SPACE_BYTES
    return "disk is full" in str(error) or getattr(error, "errno", None) in _NO_SPACE
