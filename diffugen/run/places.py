"""Where the files of a run's images lie: the one place that decides their paths.

A folder with a million files is slow to list and to copy. So the files of a kind lie in sub-folders by the
first two digits of the images' ids: ``images/3f/<id>.png``. Runs of older versions have them in one folder,
``images/<id>.png``, and those files are found there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from diffugen.errors import StoreError, brief
from diffugen.run.files import link_file, sync_folder, write_file

UNFINISHED = "unfinished"
"""The sub-folder with temporary files: what a killed writer left is found without listing all files."""

PREFIXES = tuple(f"{number:02x}" for number in range(256))

_IMAGE_ID = re.compile("[0-9a-f]{16}")


def is_image_id(text: str) -> bool:
    """Return whether a text can be the id of an image."""
    return _IMAGE_ID.fullmatch(text) is not None


@dataclass(frozen=True)
class ImageFiles:
    """The files of one kind, at most one for each image.

    Attributes:
        folder: The folder of this kind.
        suffix: How the names end, with the dot.
    """

    folder: Path
    suffix: str

    def path(self, image_id: str) -> Path:
        """Return the path of the file of an image, or where it belongs if there is none.

        Raises:
            StoreError: It is not the id of an image; as part of a path it could lead anywhere.
        """
        if not is_image_id(image_id):
            raise StoreError(
                f"{brief(image_id)} in run {self.folder.parent} is not the id of an image. The ledger was "
                "edited: restore a backup of it"
            )
        path = self.folder / image_id[:2] / f"{image_id}{self.suffix}"
        flat = self.folder / path.name
        return flat if not path.exists() and flat.exists() else path

    def write(self, image_id: str, data: bytes) -> None:
        """Write the file of an image completely or not at all; it is durable after :meth:`sync`.

        Raises:
            OSError: The disk is full or not writable.
        """
        path = self.path(image_id)
        write_file(path, data, self._ready(path))

    def link(self, image_id: str, source: Path) -> None:
        """Give a file of another run a second name as that of an image; see :func:`link_file`."""
        path = self.path(image_id)
        link_file(source, path, self._ready(path))

    def _ready(self, path: Path) -> Path:
        """Make the folder of a file, and return that of its temporary file."""
        unfinished = self.folder / UNFINISHED
        unfinished.mkdir(parents=True, exist_ok=True)
        if not path.parent.is_dir():
            path.parent.mkdir(exist_ok=True)
            sync_folder(self.folder)
        return unfinished

    def sync(self, image_ids: Collection[str]) -> None:
        """Make the names of the files of images durable."""
        for folder in sorted({self.path(image_id).parent for image_id in image_ids}):
            sync_folder(folder)

    def missing(self, prefix: str, image_ids: Iterable[str]) -> Iterator[str]:
        """Yield those of some images, whose ids begin with ``prefix``, that have no file."""
        try:
            there = {entry.name for entry in os.scandir(self.folder / prefix) if entry.is_file()}
        except FileNotFoundError:
            there = set()
        for image_id in image_ids:
            name = f"{image_id}{self.suffix}"
            if name not in there and not (self.folder / name).is_file():
                yield image_id

    def state(self, newest_ns: int) -> str | None:
        """Return a text that is never the same again once a file was added or removed.

        It is made of the folders' numbers and of the times of their last changes, which no program can set.

        Args:
            newest_ns: Time in nanoseconds. Clocks are coarse, so a later change could be followed by another
                one at the same time.

        Returns:
            The text; None if a folder was changed after ``newest_ns``.
        """
        found = []
        for folder in (self.folder, *(self.folder / prefix for prefix in PREFIXES)):
            try:
                about = folder.stat()
            except FileNotFoundError:
                found.append("-")
                continue
            if about.st_ctime_ns > newest_ns:
                return None
            found.append(f"{about.st_ino}.{about.st_ctime_ns}")
        return " ".join(found)
