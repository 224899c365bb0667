"""Images of a run, each with a PNG, an npz of heat maps and a ledger row; and their source images."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffugen.errors import StoreError
from diffugen.records import GeneratedImage, HeatMaps, ImageRecord
from diffugen.run import codec
from diffugen.run.codec import EncodedImage
from diffugen.run.files import broken, read_file, sync_folder, write_file
from diffugen.run.ledger import Ledger, explained
from diffugen.run.places import PREFIXES, UNFINISHED, ImageFiles, is_image_id
from diffugen.run.rows import filters, now, pairs

_COARSEST_CLOCK_NS = 3_000_000_000
"""More than the steps of any file system's clock."""


class ImageStore:
    """Store of a run's images and source images.

    Attributes:
        folder: The run directory.
    """

    folder: Path
    readonly: bool
    _ledger: Ledger

    @property
    def image_files(self) -> ImageFiles:
        """The PNGs of the images."""
        return ImageFiles(self.folder / "images", ".png")

    @property
    def heat_map_files(self) -> ImageFiles:
        """The heat maps of the images."""
        return ImageFiles(self.folder / "heatmaps", ".npz")

    def taught_files(self, decoder: str) -> ImageFiles:
        """Return what a decoder drew of the images."""
        return ImageFiles(self.folder / "taught" / decoder, ".npz")

    def image_path(self, image_id: str) -> Path:
        """Return the path of an image's PNG."""
        return self.image_files.path(image_id)

    def heat_maps_path(self, image_id: str) -> Path:
        """Return the path of the npz with an image's heat maps."""
        return self.heat_map_files.path(image_id)

    def add_image(
        self, record: ImageRecord, rgb: NDArray[np.uint8], heat_maps: HeatMaps, seconds: float
    ) -> None:
        """Store one generated image; see :meth:`add_images`."""
        self.add_images([(record, rgb, heat_maps, seconds)])

    def add_images(self, batch: Iterable[GeneratedImage]) -> None:
        """Encode and store a batch; see :meth:`add_encoded`.

        Args:
            batch: For each image: record, pixels uint8 (H, W, 3), heat maps, and its generation time in
                seconds.

        Raises:
            StoreError: As by :meth:`add_encoded`.
            ValueError: Pixels or heat maps do not match the record.
        """
        self._ledger.check_writable()
        self.add_encoded([codec.encode_image(*one) for one in batch])

    def add_encoded(self, batch: Iterable[EncodedImage]) -> None:
        """Write the files of a batch, then commit all its rows at once; existing images stay unchanged.

        Args:
            batch: The images. One that a later round generates again stays in its first round.

        Raises:
            StoreError: The disk is full or not writable; then no row of the batch is committed, and no file
                is left half-written.
        """
        self._ledger.check_writable()
        rows, written = [], list[str]()
        with explained(self.folder):
            for one in batch:
                record = one.record
                if self.has_image(record.id):
                    continue
                self.image_files.write(record.id, one.png)
                self.heat_map_files.write(record.id, one.npz)
                text = codec.record_to_json(record)
                row = {"id": record.id, "round": record.round, "record": text, "now": now()}
                rows.append({**row, "seconds": one.seconds, "bytes": len(one.png) + len(one.npz)})
                written.append(record.id)
            for files in (self.image_files, self.heat_map_files):
                files.sync(written)
        with self._ledger.transaction():
            self._ledger.write(
                "INSERT INTO images (id, round, record, seconds, bytes, created_at, audit) "
                "VALUES (:id, :round, :record, :seconds, :bytes, :now, audit_place(:id)) "
                "ON CONFLICT (id) DO UPDATE "
                "SET seconds = excluded.seconds, bytes = excluded.bytes, created_at = excluded.created_at",
                rows,
            )

    def has_image(self, image_id: str) -> bool:
        """Return whether the run has the image's row and both files, so that it need not be generated."""
        return (
            self.knows_image(image_id)
            and self.image_path(image_id).is_file()
            and self.heat_maps_path(image_id).is_file()
        )

    def knows_image(self, image_id: str) -> bool:
        """Return whether the run has the image's row, with or without its files."""
        return self._ledger.one("SELECT 1 FROM images WHERE id = :id", id=image_id) is not None

    def round_of(self, image_id: str) -> int | None:
        """Return the round that generated an image; None if the run does not have it."""
        row = self._ledger.one("SELECT round FROM images WHERE id = :id", id=image_id)
        return None if row is None else int(row[0])

    def images_without_files(self) -> Iterator[str]:
        """Yield the ids of images that have lost a file.

        Where none has, this is remembered, so that the next call looks at folders instead of files.
        """
        newest_ns = time.time_ns() - _COARSEST_CLOCK_NS
        state = self._files_state(newest_ns)
        if state is not None and self._ledger.one(
            "SELECT 1 FROM meta WHERE key = 'complete' AND value = :state", state=state
        ):
            return
        whole = True
        for prefix in PREFIXES:
            ids = [
                one
                for (one,) in self._ledger.select(
                    "SELECT id FROM images WHERE id >= :first AND id < :last", first=prefix, last=f"{prefix}g"
                )
            ]
            lost = dict.fromkeys(self.image_files.missing(prefix, ids))
            lost.update(dict.fromkeys(self.heat_map_files.missing(prefix, ids)))
            whole = whole and not lost
            yield from lost
        if whole and state is not None and not self.readonly:
            with self._ledger.transaction():
                self._ledger.write(
                    "INSERT OR REPLACE INTO meta VALUES (:key, :value)", pairs({"complete": state})
                )

    def _files_state(self, newest_ns: int) -> str | None:
        states = [files.state(newest_ns) for files in (self.image_files, self.heat_map_files)]
        return None if None in states else hashlib.sha256(" ".join(map(str, states)).encode()).hexdigest()

    def image_ids(self, round: int | None = None) -> Iterator[str]:
        """Yield the ids of all images, or of the images of one round, oldest first."""
        where, values = filters(round=round)
        for (image_id,) in self._ledger.stream("images", "id", where, **values):
            yield image_id

    def records(self, round: int | None = None) -> Iterator[ImageRecord]:
        """Yield the records of all images, or of one round, oldest first, with few in memory at a time."""
        where, values = filters(round=round)
        for image_id, text in self._ledger.stream("images", "id, record", where, **values):
            yield self._record(image_id, text)

    def _record(self, image_id: str, text: str) -> ImageRecord:
        with self._ledger.reading("images", image_id):
            return codec.record_from_json(text)

    def record(self, image_id: str) -> ImageRecord:
        """Return the record of one image.

        Raises:
            StoreError: The run has no such image.
        """
        row = self._ledger.one("SELECT record FROM images WHERE id = :id", id=image_id)
        if row is None:
            raise StoreError(
                f"run {self.folder} has no image with id {image_id!r}. Check the id and the run folder"
            )
        return self._record(image_id, row[0])

    def image(self, image_id: str) -> NDArray[np.uint8]:
        """Return the pixels of an image, uint8 (H, W, 3).

        Raises:
            StoreError: The run has no such image, or its file is missing, unreadable or has another size.
        """
        size_wh = self.record(image_id).size_wh
        return read_file(image_id, self.image_path(image_id), lambda data: codec.rgb_from_png(data, size_wh))

    def heat_maps(self, image_id: str) -> HeatMaps:
        """Return the heat maps of an image, float16.

        Raises:
            StoreError: The run has no such image, or its file is missing, unreadable or of another image.
        """
        self.record(image_id)
        heat_maps = read_file(image_id, self.heat_maps_path(image_id), codec.heat_maps_from_npz)
        if heat_maps.image_id != image_id:
            raise StoreError(
                broken(image_id, self.heat_maps_path(image_id), f"belongs to image {heat_maps.image_id}")
            )
        return heat_maps

    def taught_path(self, decoder: str, image_id: str) -> Path:
        """Return the path of the npz with what a decoder drew of an image."""
        return self.taught_files(decoder).path(image_id)

    def put_taught(self, decoder: str, drawn: Iterable[HeatMaps]) -> None:
        """Store what a decoder drew of some images.

        Args:
            decoder: Id of the decoder.
            drawn: One for each image.

        Raises:
            StoreError: The disk is full or not writable.
        """
        self._ledger.check_writable()
        files = self.taught_files(decoder)
        written = []
        with explained(self.folder):
            for heat_maps in drawn:
                files.write(heat_maps.image_id, codec.heat_maps_to_npz(heat_maps))
                written.append(heat_maps.image_id)
            files.sync(written)

    def taught(self, decoder: str, image_id: str) -> HeatMaps:
        """Return what a decoder drew of an image.

        Raises:
            StoreError: Its file is missing or unreadable.
        """
        return read_file(image_id, self.taught_path(decoder, image_id), codec.heat_maps_from_npz)

    def drop_image(self, record: ImageRecord, reason: str) -> None:
        """Record that a generated image is unusable, so that it is not generated again.

        Args:
            record: The image.
            reason: Why it is unusable, as text for people.
        """
        row = {"id": record.id, "round": record.round, "reason": reason, "now": now()}
        with self._ledger.transaction():
            self._ledger.write("INSERT OR REPLACE INTO dropped VALUES (:id, :round, :reason, :now)", [row])

    def is_dropped(self, image_id: str) -> bool:
        """Return whether :meth:`drop_image` was called for an image."""
        return self._ledger.one("SELECT 1 FROM dropped WHERE id = :id", id=image_id) is not None

    def put_source(self, source_id: str, rgb: NDArray[np.uint8]) -> None:
        """Store the pixels, uint8 (H, W, 3), of a source image from outside the run.

        Raises:
            StoreError: The disk is full or not writable.
        """
        self._ledger.check_writable()
        path = self.source_path(source_id)
        if not path.is_file():
            with explained(self.folder):
                (path.parent / UNFINISHED).mkdir(exist_ok=True)
                write_file(path, codec.rgb_to_png(rgb), path.parent / UNFINISHED)
                sync_folder(path.parent)

    def source_path(self, source_id: str) -> Path:
        """Return the path of a source image: an image of the run, or a copy from outside it."""
        if is_image_id(source_id) and (image := self.image_path(source_id)).is_file():
            return image
        return self.folder / "sources" / f"{source_id}.png"

    def source(self, source_id: str) -> NDArray[np.uint8]:
        """Return the pixels of a source image, uint8 (H, W, 3).

        Raises:
            StoreError: The file is missing or unreadable.
        """
        return read_file(source_id, self.source_path(source_id), codec.rgb_from_png)
