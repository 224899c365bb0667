"""Values by id that are too many for memory: they are in a temporary file, one at a time in memory."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Generic, TypeVar

from diffugen.errors import StoreError, first_line

T = TypeVar("T")


class Shelf(Mapping[str, T], Generic[T]):
    """A mapping whose values come from a file each time; made by `shelved`."""

    def __init__(self, file: IO[bytes], places: Mapping[str, int]) -> None:
        self._file = file
        self._places = places

    def __getitem__(self, id: str) -> T:
        self._file.seek(self._places[id])
        found: T = pickle.load(self._file)
        return found

    def __contains__(self, id: object) -> bool:
        return id in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


@contextmanager
def shelved(pairs: Iterable[tuple[str, T]]) -> Iterator[Shelf[T]]:
    """Yield pairs as a mapping in their order, whose values are in a file until the block ends.

    Each id takes about 0.2 KB of memory, however large its value is. The file has no name, so it is gone with
    the process, and nobody else reads it.

    Args:
        pairs: Ids, each once, and values.

    Raises:
        StoreError: The disk for temporary files is full, or cannot be written.
    """
    with _temporary() as file:
        places: dict[str, int] = {}
        for id, value in pairs:
            places[id] = file.tell()
            with _explained():
                pickle.dump(value, file, protocol=pickle.HIGHEST_PROTOCOL)
        with _explained():
            file.flush()
        yield Shelf(file, places)


def _temporary() -> IO[bytes]:
    with _explained():
        return tempfile.TemporaryFile()


@contextmanager
def _explained() -> Iterator[None]:
    """Turn an OSError into a StoreError with a hint."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"cannot write temporary files in {tempfile.gettempdir()}: {first_line(error)} Free some space, "
            "or set TMPDIR to a folder that has more"
        ) from error
