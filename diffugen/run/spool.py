"""Sequences and mappings of a whole run that are not held in memory: on disk while a command needs them.

They belong to one process and are gone when it ends, however it ends. Does not know a run's folder.
"""

from __future__ import annotations

import pickle
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar, overload

from diffugen.errors import StoreError

T = TypeVar("T")

_PAGE_ROWS = 500
_ID_BYTES = 8


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise StoreError(
            f"cannot write temporary data ({error}). Free some space in the folder of temporary files, or "
            "set the environment variable TMPDIR to a folder on a larger disk; what was saved is intact"
        ) from error


def _scratch(*statements: str) -> sqlite3.Connection:
    """Return a database in a temporary file that has no name, so that it goes with the process."""
    connection = sqlite3.connect("", isolation_level=None, check_same_thread=False)
    for statement in ("PRAGMA journal_mode = OFF", "PRAGMA synchronous = OFF", *statements, "BEGIN"):
        connection.execute(statement)
    return connection


class Spool(Mapping[str, T]):
    """A mapping on disk that keeps the order of its keys."""

    def __init__(self, pairs: Iterable[tuple[str, T]] = ()) -> None:
        """Keep all pairs; none of them stays in memory."""
        with _explained():
            self._rows = _scratch(
                "CREATE TABLE kept (seq INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, value BLOB NOT NULL)"
            )
            self._rows.executemany(
                "INSERT INTO kept (key, value) VALUES (?, ?)",
                ((key, pickle.dumps(value, pickle.HIGHEST_PROTOCOL)) for key, value in pairs),
            )

    def __getitem__(self, key: str) -> T:
        row = self._rows.execute("SELECT value FROM kept WHERE key = ?", [key]).fetchone()
        if row is None:
            raise KeyError(key)
        value: T = pickle.loads(row[0])  # written by this process into its own file
        return value

    def put(self, key: str, value: T) -> None:
        """Keep a value: a new one in the place of its key, if there is one already."""
        with _explained():
            self._rows.execute(
                "INSERT INTO kept (key, value) VALUES (?, ?) "
                "ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                [key, pickle.dumps(value, pickle.HIGHEST_PROTOCOL)],
            )

    def __contains__(self, key: object) -> bool:
        return self._rows.execute("SELECT 1 FROM kept WHERE key = ?", [key]).fetchone() is not None

    def __iter__(self) -> Iterator[str]:
        after = 0
        sql = f"SELECT seq, key FROM kept WHERE seq > ? ORDER BY seq LIMIT {_PAGE_ROWS}"
        while page := self._rows.execute(sql, [after]).fetchall():
            yield from (key for _, key in page)
            after = page[-1][0]

    def __len__(self) -> int:
        return int(self._rows.execute("SELECT count(*) FROM kept").fetchone()[0])


class Names:
    """A set of names on disk."""

    def __init__(self) -> None:
        """Hold no names yet."""
        with _explained():
            self._rows = _scratch("CREATE TABLE names (name TEXT PRIMARY KEY) WITHOUT ROWID")
        self._count = 0

    def add(self, name: str) -> bool:
        """Add a name; return whether it is new."""
        with _explained():
            new = self._rows.execute("INSERT OR IGNORE INTO names VALUES (?)", [name]).rowcount == 1
        self._count += new
        return new

    def __len__(self) -> int:
        return self._count


class ImageIds(Sequence[str]):
    """Ids of images, 16 hex digits each, in 8 bytes each."""

    def __init__(self, ids: Iterable[str] = ()) -> None:
        """Take the ids in their order."""
        self._bytes = bytearray()
        for one in ids:
            self.append(one)

    def append(self, image_id: str) -> None:
        """Add an id at the end."""
        self._bytes += bytes.fromhex(image_id)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        first = range(len(self))[index] * _ID_BYTES
        return self._bytes[first : first + _ID_BYTES].hex()

    def __len__(self) -> int:
        return len(self._bytes) // _ID_BYTES


class Ranking(Generic[T]):
    """Puts the images of each round in an order, by their worth or at random, with what is known of each.

    All is on disk. The n-th image of a family in a round counts with a worth of 1/n of its own.
    """

    def __init__(self) -> None:
        """Rank no images yet."""
        with _explained():
            self._rows = _scratch(
                "CREATE TABLE images (seq INTEGER PRIMARY KEY, round INTEGER NOT NULL, "
                "image_id TEXT NOT NULL, worth REAL NOT NULL, family TEXT NOT NULL, draw TEXT NOT NULL, "
                "known BLOB NOT NULL)",
                "CREATE INDEX images_by_round ON images (round)",
            )

    def add(self, round: int, image_id: str, worth: float, family: str, draw: str, known: T) -> None:
        """Add an image.

        Args:
            round: The round that it is ranked in.
            image_id: The image; each is added once.
            worth: Images with more of it come first.
            family: Its family.
            draw: Its place at random.
            known: What is known of it.
        """
        blob = pickle.dumps(known, pickle.HIGHEST_PROTOCOL)
        with _explained():
            self._rows.execute(
                "INSERT INTO images (round, image_id, worth, family, draw, known) VALUES (?, ?, ?, ?, ?, ?)",
                [round, image_id, worth, family, draw, blob],
            )

    def by_worth(self, round: int) -> Iterator[tuple[str, T]]:
        """Yield the images of a round by their worth in their family."""
        yield from self._in_order(round, "ranked")

    def at_random(self, round: int) -> Iterator[tuple[str, T]]:
        """Yield the images of a round by their place at random."""
        yield from self._in_order(round, "drawn")

    def by_turns(self, round: int) -> Iterator[tuple[str, T]]:
        """Yield by turns the next image by worth and the next at random, each image once."""
        yield from self._in_order(round, "min(2 * ranked, 2 * drawn + 1)")

    def _in_order(self, round: int, place: str) -> Iterator[tuple[str, T]]:
        with _explained():
            self._rows.execute("DROP TABLE IF EXISTS places")
            self._rows.execute("CREATE TABLE places (place INTEGER PRIMARY KEY, seq INTEGER NOT NULL)")
            self._rows.execute(
                "WITH shared AS (SELECT seq, image_id, worth, draw, worth / row_number() OVER "
                "(PARTITION BY family ORDER BY worth DESC, image_id) AS share FROM images WHERE round = ?), "
                "ranks AS (SELECT seq, "
                "row_number() OVER (ORDER BY share DESC, worth DESC, image_id) AS ranked, "
                "row_number() OVER (ORDER BY draw, image_id) AS drawn FROM shared) "
                f"INSERT INTO places SELECT {place}, seq FROM ranks",
                [round],
            )
        sql = (
            "SELECT place, image_id, known FROM places JOIN images USING (seq) WHERE place > ? "
            f"ORDER BY place LIMIT {_PAGE_ROWS}"
        )
        after = -1
        while page := self._rows.execute(sql, [after]).fetchall():
            for place_of, image_id, known in page:
                after = place_of
                yield image_id, pickle.loads(known)  # written by this process into its own file
