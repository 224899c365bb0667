"""The SQLite ledger of a run directory: its tables, opening and upgrading it, and what its errors mean.

The only home of sqlite3. Knows folders and SQL; does not know records, images or heat maps (``store.py``
does).

The ledger uses write-ahead mode, so any number of processes can read it while one writes. Every commit is
synced to disk (``synchronous=FULL``): this costs little beside the two files that are synced per image, and
review decisions, unlike images, cannot be generated again. Write-ahead mode needs shared memory: keep run
directories off network disks.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffugen.errors import StoreError, is_disk_full
from diffugen.run.rows import pairs

LEDGER_NAME = "ledger.sqlite"
_PAGE_ROWS = 500
_BUSY_SECONDS = 30.0
_LITTLE_SPACE_BYTES = 1 << 20

_MOST_ROUNDS = 1_000_000

_COLUMNS = (
    ("images", "id", ("seconds", "bytes"), ("id",)),
    ("labels", "image_id", ("objects",), ("image_id", "source")),
    ("stages", "name", ("seconds",), ("name",)),
    ("dropped", "id", (), ("id",)),
    ("decisions", "image_id", (), ("image_id", "verdict")),
)
"""Of each table with rounds and times: what names a row, its columns of numbers, and its columns of text."""

_IMAGE_IDS = (
    ("images", "id"),
    ("labels", "image_id"),
    ("disagreements", "image_id"),
    ("decisions", "image_id"),
)
"""The columns with ids of images."""

_MIGRATIONS: tuple[str, ...] = (
    # Version 1. `seq` is the order of writing: it never repeats, so paging by it is cheap and stable.
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
    # Version 2: the review queue and its decisions. No decision is replaced: the newest of an image counts.
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
    # Version 3: images that turned out unusable, so that they are not generated again.
    """
    CREATE TABLE dropped (
        id TEXT PRIMARY KEY, round INTEGER NOT NULL, reason TEXT NOT NULL,
        created_at TEXT NOT NULL) WITHOUT ROWID;
    """,
    # Version 4: what was said about single objects. Readers need not have it.
    """
    ALTER TABLE decisions ADD COLUMN judged TEXT;
    """,
)
"""One script per schema version, run in order; a new ledger runs all. To add a table, append a script."""

WITH_JUDGED = 4
"""The first schema whose decisions have the column ``judged``."""

_READABLE = 3
"""The oldest schema that can be read as it is, so that old runs can be looked at without being changed."""


class Ledger:
    """An open ledger, for one thread of one process.

    Attributes:
        folder: The run directory.
        readonly: Whether writing is refused.
        version: Number of its schema.
    """

    def __init__(self, folder: Path, *, readonly: bool, about: Mapping[str, str] | None = None) -> None:
        """Open the ledger of ``folder``; a writer, which must have the run's lock, creates or upgrades it.

        Args:
            folder: The run directory.
            readonly: Whether to refuse writing.
            about: Entries of the table ``meta`` that a writer adds unless they exist.

        Raises:
            StoreError: The ledger is corrupt, belongs to another program or version, or cannot be read or
                written.
        """
        self.folder = folder
        self.readonly = readonly
        with explained(folder):
            self._connection = _connect_reader(folder) if readonly else _connect_writer(folder)
            try:
                self.version = self._version()
                if not readonly:
                    self._upgrade(self.version, about or {})
                    self.version = len(_MIGRATIONS)
                elif self.version < _READABLE:
                    raise StoreError(self._outdated(self.version))
                self._check_rows()
            except BaseException:
                self._connection.close()
                raise

    def _version(self) -> int:
        """Return the schema version; 0 for a file without tables, whose creation was interrupted."""
        # Reading a view or a virtual table runs what its author wrote, and so may writing with a trigger.
        strange = self.one(
            "SELECT type, name FROM sqlite_master "
            "WHERE type NOT IN ('table', 'index') OR sql LIKE 'CREATE VIRTUAL%'"
        )
        if strange is not None:
            raise StoreError(
                f"{self.folder / LEDGER_NAME} has a {strange[0]} {strange[1]!r}, as no DiffuGen ledger has. "
                "Choose another run folder"
            )
        tables = self._tables()
        if not tables:
            return 0
        row = self.one("SELECT value FROM meta WHERE key = 'schema'") if "meta" in tables else None
        if row is None:
            raise StoreError(
                f"{self.folder / LEDGER_NAME} is an SQLite database of another program, not a DiffuGen "
                "ledger. Choose another run folder"
            )
        if not str(row[0]).isdecimal() or len(str(row[0])) > 9:
            raise StoreError(self.damaged("meta", "schema", f"the version {row[0]!r} is not a number"))
        version = int(row[0])
        if version > len(_MIGRATIONS):
            raise StoreError(
                f"run {self.folder} was written by a newer DiffuGen: its ledger has schema {version}, but "
                f"this version supports only schemas up to {len(_MIGRATIONS)}. Upgrade DiffuGen, or choose "
                "another run folder"
            )
        return version

    def _tables(self) -> set[str]:
        return {name for (name,) in self.all("SELECT name FROM sqlite_master WHERE type = 'table'")}

    def _check_rows(self) -> None:
        """Check the columns, which may have any type in SQLite; what texts hold is checked when read."""
        there = self._tables()
        for table, key, numbers, texts in (one for one in _COLUMNS if one[0] in there):
            wrong = [f"typeof({name}) NOT IN ('integer', 'real')" for name in numbers]
            wrong += [f"typeof({name}) <> 'text'" for name in texts]
            wrong.append("created_at NOT GLOB '????-??-??T??:??:??*+00:00'")
            wrong.append("date(julianday(created_at)) IS NOT substr(created_at, 1, 10)")
            wrong.append(f"typeof(round) <> 'integer' OR round NOT BETWEEN 0 AND {_MOST_ROUNDS}")
            row = self.one(f"SELECT {key} FROM {table} WHERE {' OR '.join(wrong)} LIMIT 1")
            if row is not None:
                raise StoreError(self.damaged(table, row[0], "a number, a text or a time is something else"))
        # Ids name files, so nothing else may stand there.
        for table, name in (one for one in _IMAGE_IDS if one[0] in there):
            row = self.one(
                f"SELECT {name} FROM {table} WHERE length({name}) <> 16 OR {name} GLOB '*[^0-9a-f]*' LIMIT 1"
            )
            if row is not None:
                raise StoreError(self.damaged(table, row[0], "it is not the id of an image"))
        about = dict(self.all("SELECT key, value FROM meta"))
        for key in ("created_at", "diffugen_version"):
            if not isinstance(about.get(key), str):
                raise StoreError(
                    self.damaged("meta", key, "it is missing" if key not in about else "no text")
                )

    def damaged(self, table: str, row: object, cause: object) -> str:
        """Return the error message for a row that cannot be read."""
        return (
            f"{self.folder / LEDGER_NAME}: row {row!r} of the table {table} cannot be read ({cause}). It was "
            "written by another version of DiffuGen, or the ledger was edited: restore a backup of the ledger"
        )

    @contextmanager
    def reading(self, table: str, row: object) -> Iterator[None]:
        """Turn a ValueError or TypeError over the content of a row into a StoreError that names the row."""
        try:
            yield
        except (ValueError, TypeError) as error:
            raise StoreError(self.damaged(table, row, error)) from error

    def _outdated(self, version: int) -> str:
        state = (
            f"has schema {version}, which is older than {_READABLE}"
            if version
            else "is incomplete, because its creation was interrupted"
        )
        return (
            f"the ledger of run {self.folder} {state}. Any command that writes to the run updates it, "
            "such as diffugen generate"
        )

    def _upgrade(self, version: int, about: Mapping[str, str]) -> None:
        """Create or upgrade the tables and add ``about``, in one transaction: readers see all or nothing."""
        with self.transaction():
            for script in _MIGRATIONS[version:]:
                for statement in script.split(";"):
                    self._connection.execute(statement)
            self._connection.execute(
                "INSERT OR REPLACE INTO meta VALUES ('schema', ?)", [str(len(_MIGRATIONS))]
            )
            self.write("INSERT OR IGNORE INTO meta VALUES (:key, :value)", pairs(about))

    def check_writable(self) -> None:
        """Raise an error if the run is open read-only.

        Raises:
            StoreError: The run is open read-only.
        """
        if self.readonly:
            raise StoreError(f"run {self.folder} is open read-only; open it with readonly=False to write")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit everything written inside the block, or nothing if it raises.

        Raises:
            StoreError: The run is open read-only, or the disk or the ledger fails.
        """
        self.check_writable()
        with explained(self.folder):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # on a full disk SQLite has already rolled back
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
        """Return all rows of a query whose result is small."""
        with explained(self.folder):
            return self._connection.execute(sql).fetchall()

    def select(self, sql: str, **values: Any) -> list[tuple[Any, ...]]:
        """Return all rows of a query with values, whose result is small."""
        with explained(self.folder):
            return self._connection.execute(sql, values).fetchall()

    def stream(self, table: str, columns: str, where: str, **values: Any) -> Iterator[tuple[Any, ...]]:
        """Yield rows of a table that has ``seq``, oldest first, reading one page at a time.

        No query stays open between pages, so the caller can write while it reads, and the write-ahead file
        does not grow. Rows written after the start are not included.

        Args:
            table: ``images``, ``labels``, ``disagreements`` or ``decisions``; aliased as ``t``.
            columns: SQL list of the columns to yield.
            where: SQL condition that refers to ``values`` as ``:name``, and to the last ``seq`` at the start
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
    """Open for reading, even where SQLite cannot create its helper files (read-only or full disk)."""
    first_look = "SELECT count(*) FROM sqlite_master"
    try:
        return _connect(folder, "ro", first_look)
    except sqlite3.OperationalError:
        wal = folder / f"{LEDGER_NAME}-wal"
        if wal.exists() and wal.stat().st_size:
            raise
        # Without a write-ahead file nobody is writing, and the ledger file is complete.
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
    """Convert errors of the disk or of SQLite inside the block to a StoreError that names a way out."""
    try:
        yield
    except (sqlite3.ProgrammingError, sqlite3.IntegrityError):
        raise  # a bug in the program, not a problem of the run
    except (sqlite3.DatabaseError, OSError) as error:
        raise StoreError(_explanation(folder, error)) from error


def _explanation(folder: Path, error: Exception) -> str:
    text = str(error)
    ledger = folder / LEDGER_NAME
    if _is_full(folder, error):
        return (
            f"no space left on the disk of run {folder} ({error}). Everything saved so far is intact. Free "
            "some space, or move the run folder to a larger disk, and run the same command again to continue"
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
            f"{ledger} has been locked for {_BUSY_SECONDS:g} s. Close the other program that has it open, "
            "and try again"
        )
    return (
        f"the ledger {ledger} is corrupt ({error}). The images and heat maps beside it are not affected. "
        "Restore a backup of the ledger; or recover what is readable with "
        f"`sqlite3 {LEDGER_NAME} .recover > rescue.sql` (`.dump` if .recover does not work), move "
        f"{LEDGER_NAME} and its -wal and -shm files away, and run `sqlite3 {LEDGER_NAME} < rescue.sql`; "
        "or choose another run folder"
    )


def _is_full(folder: Path, error: Exception) -> bool:
    # SQLite also says "disk I/O error" when its helper files cannot grow.
    if "disk I/O error" in str(error) and folder.exists():
        return shutil.disk_usage(folder).free < _LITTLE_SPACE_BYTES
    return is_disk_full(error)
