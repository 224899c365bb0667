"""A file of what a detector found in images that belong to no run, while a dataset is made of it.

Survives ``kill -9``: whole batches are in it, or not at all.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from pathlib import Path

from diffugen.errors import StoreError
from diffugen.records import Instances
from diffugen.run.codec import instances_from_json, instances_to_json


class FoundObjects:
    """The objects that a detector found in images.

    Args:
        path: The file; created if needed.
        keys: The images by their names, each with a key. An entry of another key does not count: it was made
            by another detector, or before the image changed.

    Raises:
        StoreError: The file is none of these, or cannot be written.
    """

    def __init__(self, path: Path, keys: Mapping[str, str]) -> None:
        self._path, self._keys = path, keys
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(path)
            with self._file:
                self._file.execute(
                    "CREATE TABLE IF NOT EXISTS found (name TEXT PRIMARY KEY, key TEXT, json TEXT)"
                )
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"cannot use {path}: {error}; remove it") from error

    def missing(self) -> list[str]:
        """Return the names of the images without an entry, in their order."""
        kept = {
            name
            for name, key in self._file.execute("SELECT name, key FROM found")
            if self._keys.get(name) == key
        }
        return [name for name in self._keys if name not in kept]

    def add(self, found: Mapping[str, Instances]) -> None:
        """Keep the objects of some images."""
        rows = [(name, self._keys[name], instances_to_json(one)) for name, one in found.items()]
        try:
            with self._file:
                self._file.executemany("INSERT OR REPLACE INTO found VALUES (?, ?, ?)", rows)
        except sqlite3.Error as error:
            raise StoreError(f"cannot write {self._path}: {error}") from error

    def instances(self, name: str) -> Instances:
        """Return the objects of an image."""
        (text,) = self._file.execute("SELECT json FROM found WHERE name = ?", [name]).fetchone()
        return instances_from_json(text)

    def remove(self) -> None:
        """Remove the file."""
        self._file.close()
        self._path.unlink(missing_ok=True)
