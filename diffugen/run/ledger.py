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
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from diffugen.errors import StoreError, is_disk_full
from diffugen.run import schema
from diffugen.run.rows import audit_place, pairs

LEDGER_NAME = "ledger.sqlite"
_PAGE_ROWS = 500
_BUSY_SECONDS = 30.0
_LITTLE_SPACE_BYTES = 1 << 20

T = TypeVar("T")

_KEYS = {"stages": "name", "images": "id", "dropped": "id"}
"""What names a row of a table, where that is not ``image_id``."""


class Ledger:
    """An open ledger, for one thread of one process.

    Attributes:
        folder: The run directory.
        readonly: Whether writing is refused.
        version: Number of its schema.
    """

    def __init__(
        self,
        folder: Path,
        *,
        readonly: bool,
        about: Mapping[str, str] | None = None,
        on_upgrade: Callable[[int], None] = lambda rows: None,
    ) -> None:
        """Open the ledger of ``folder``; a writer, which must have the run's lock, creates or upgrades it.

        Args:
            folder: The run directory.
            readonly: Whether to refuse writing.
            about: Entries of the table ``meta`` that a writer adds unless they exist.
            on_upgrade: Called before the ledger of an older version is upgraded, with the number of its rows.

        Raises:
            StoreError: The ledger is corrupt, belongs to another program or version, or cannot be read or
                written.
        """
        self.folder = folder
        self.readonly = readonly
        self._computed: dict[str, Any] = {}
        self._computed_at: tuple[int, int] | None = None
        with explained(folder):
            self._connection = _connect_reader(folder) if readonly else _connect_writer(folder)
            try:
                self._connection.execute("BEGIN")  # one state, even if another process upgrades meanwhile
                self.version = self._version()
                self._check_definitions()
                self._connection.execute("COMMIT")
                if not readonly:
                    if self.version < len(schema.MIGRATIONS):
                        on_upgrade(self._count_rows())
                    self._upgrade(about or {})
                elif self.version < schema.READABLE:
                    raise StoreError(self._outdated(self.version))
                self._check()
            except BaseException:
                self._connection.close()
                raise

    def _version(self) -> int:
        """Return the schema version; 0 for a file without tables, whose creation was interrupted."""
        # Reading a view or a virtual table runs what its author wrote.
        self._refuse("type NOT IN ('table', 'index', 'trigger') OR sql LIKE 'CREATE VIRTUAL%'")
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
        if version > len(schema.MIGRATIONS):
            raise StoreError(
                f"run {self.folder} was written by a newer DiffuGen: its ledger has schema {version}, but "
                f"this version supports only schemas up to {len(schema.MIGRATIONS)}. Upgrade DiffuGen, or "
                "choose another run folder"
            )
        return version

    def _refuse(self, condition: str) -> None:
        """Refuse a ledger with something in its schema that DiffuGen did not put there."""
        strange = self.one(f"SELECT type, name FROM sqlite_master WHERE {condition}")
        if strange is not None:
            raise StoreError(
                f"{self.folder / LEDGER_NAME} has a {strange[0]} {strange[1]!r}, as no DiffuGen ledger has. "
                "Choose another run folder"
            )

    def _tables(self) -> set[str]:
        return {name for (name,) in self.all("SELECT name FROM sqlite_master WHERE type = 'table'")}

    def _count_rows(self) -> int:
        """Return about how many rows an upgrade writes anew, from the newest number of each table."""
        if "sqlite_sequence" not in self._tables():
            return 0
        return int((self.one("SELECT coalesce(sum(seq), 0) FROM sqlite_sequence") or (0,))[0])

    def _check(self) -> None:
        """Check what the tables do not check themselves."""
        if self.version < schema.WITH_CHECKS:
            self._check_rows()
        about = dict(self.all("SELECT key, value FROM meta"))
        for key in ("created_at", "diffugen_version"):
            if not isinstance(about.get(key), str):
                raise StoreError(
                    self.damaged("meta", key, "it is missing" if key not in about else "no text")
                )

    def _check_definitions(self) -> None:
        """Check that the schema is as DiffuGen made it: values are checked, and nothing else runs."""
        expected = _expected(schema.MIGRATIONS[: self.version])
        # Writing with a trigger runs what its author wrote.
        known = ", ".join(f"'{name}'" for name, sql in expected.items() if sql.startswith("CREATETRIGGER"))
        self._refuse(f"type = 'trigger' AND name NOT IN ({known})")
        if self.version < schema.WITH_CHECKS:
            return
        there = _definitions(self._connection)
        for name, definition in expected.items():
            if there.get(name) != definition:
                state = "changed" if name in there else "missing"
                raise StoreError(
                    f"{self.folder / LEDGER_NAME}: the definition of {name} is {state}. The ledger was "
                    "edited: restore a backup of it"
                )

    def _check_rows(self) -> None:
        """Check the columns, which may have any type in SQLite; what texts hold is checked when read."""
        there = self._tables()
        for table, condition in schema.CHECKS.items():
            if table not in there:
                continue
            key = _KEYS.get(table, "image_id")
            row = self.one(f"SELECT {key} FROM {table} WHERE NOT ({condition}) LIMIT 1")
            if row is not None:
                raise StoreError(
                    self.damaged(table, row[0], "an id, a number, a text or a time is something else")
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
            f"has schema {version}, which is older than {schema.READABLE}"
            if version
            else "is incomplete, because its creation was interrupted"
        )
        return (
            f"the ledger of run {self.folder} {state}. Any command that writes to the run updates it, "
            "such as diffugen generate"
        )

    def _upgrade(self, about: Mapping[str, str]) -> None:
        """Create or upgrade the tables and add ``about``, in one transaction: readers see all or nothing."""
        if 0 < self.version < schema.WITH_CHECKS:
            self._check_rows()
        # Otherwise tables could not be made anew; SQLite ignores this within a transaction.
        self._connection.execute("PRAGMA foreign_keys = OFF")
        try:
            with self.transaction():
                for script in schema.MIGRATIONS[self.version :]:
                    for statement in _statements(script):
                        self._connection.execute(statement)
                self._connection.execute(
                    "INSERT OR REPLACE INTO meta VALUES ('schema', ?)", [str(len(schema.MIGRATIONS))]
                )
                self.write("INSERT OR IGNORE INTO meta VALUES (:key, :value)", pairs(about))
        except sqlite3.IntegrityError as error:
            raise StoreError(
                f"{self.folder / LEDGER_NAME} cannot be updated ({error}). The ledger was edited: restore a "
                "backup of it"
            ) from error
        self._connection.execute("PRAGMA foreign_keys = ON")
        self.version = len(schema.MIGRATIONS)

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
                self._computed_at = None  # what was computed since may have seen what was not committed
                raise

    def write(self, sql: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Run one statement for each of ``rows``, inside a :meth:`transaction`; an iterator may read it."""
        self._connection.executemany(sql, rows)

    def once(self, name: str, compute: Callable[[], T]) -> T:
        """Return what ``compute`` returns, computed once until somebody writes to the ledger.

        Args:
            name: What is computed; one name stands for one computation.
            compute: Reads the ledger.
        """
        (version,) = self.one("PRAGMA data_version") or (0,)  # changes when another process writes
        state = (int(version), self._connection.total_changes)
        if state != self._computed_at:
            self._computed_at, self._computed = state, {}
        if name not in self._computed:
            self._computed[name] = compute()
        found: T = self._computed[name]
        return found

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

    def stream(
        self, table: str, columns: str, where: str, after: int = 0, **values: Any
    ) -> Iterator[tuple[Any, ...]]:
        """Yield rows of a table that has ``seq``, oldest first, reading one page at a time.

        No query stays open between pages, so the caller can write while it reads, and the write-ahead file
        does not grow. Rows written after the start are not included.

        Args:
            table: ``images``, ``labels``, ``disagreements`` or ``decisions``; aliased as ``t``.
            columns: SQL list of the columns to yield.
            where: SQL condition that refers to ``values`` as ``:name``, and to the last ``seq`` at the start
                as ``:until``.
            after: Only rows after this ``seq``.
            **values: Values for ``where``.
        """
        (until,) = self.one(f"SELECT coalesce(max(seq), 0) FROM {table}") or (0,)
        sql = (
            f"SELECT seq, {columns} FROM {table} AS t WHERE seq > :after AND seq <= :until AND {where} "
            f"ORDER BY seq LIMIT {_PAGE_ROWS}"
        )
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
    # Recursive triggers also see the rows that a new one replaces.
    return _connect(
        folder,
        "rwc",
        "PRAGMA journal_mode = WAL",
        "PRAGMA synchronous = FULL",
        "PRAGMA recursive_triggers = ON",
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
        connection.create_function("audit_place", 1, audit_place, deterministic=True)
        for statement in statements:
            connection.execute(statement)
    except BaseException:
        connection.close()
        raise
    return connection


def _definitions(connection: sqlite3.Connection) -> dict[str, str]:
    """Return the definition of each table, index and trigger, without white space and quotes."""
    rows = connection.execute(
        "SELECT name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite!_%' ESCAPE '!'"
    )
    return {name: "".join(str(sql).replace('"', "").split()) for name, sql in rows}


def _statements(script: str) -> Iterator[str]:
    """Yield the statements of a script."""
    statement = ""
    for part in script.split(";"):
        statement += f"{part};"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


@lru_cache(maxsize=2)
def _expected(migrations: tuple[str, ...]) -> dict[str, str]:
    """Return the definitions that these scripts make."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.create_function("audit_place", 1, audit_place, deterministic=True)
    try:
        for script in migrations:
            for statement in _statements(script):
                connection.execute(statement)
        return _definitions(connection)
    finally:
        connection.close()


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
