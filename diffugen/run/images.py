"""Images of a run, each with a PNG, an npz of heat maps and a ledger row; and their source images."""

from __future__ import annotations

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
from diffugen.run.rows import filters, now


class ImageStore:
    """Store of a run's images and source images.

    Attributes:
        folder: The run directory.
    """

    folder: Path
    _ledger: Ledger

    def image_path(self, image_id: str) -> Path:
        """Return the path of an image's PNG."""
        return self.folder / "images" / f"{image_id}.png"

    def heat_maps_path(self, image_id: str) -> Path:
        """Return the path of the npz with an image's heat maps."""
        return self.folder / "heatmaps" / f"{image_id}.npz"

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
        rows = []
        with explained(self.folder):
            for one in batch:
                record = one.record
                if self.has_image(record.id):
                    continue
                write_file(self.image_path(record.id), one.png)
                write_file(self.heat_maps_path(record.id), one.npz)
                text = codec.record_to_json(record)
                row = {"id": record.id, "round": record.round, "record": text, "now": now()}
                rows.append({**row, "seconds": one.seconds, "bytes": len(one.png) + len(one.npz)})
            if rows:
                sync_folder(self.folder / "images")
                sync_folder(self.folder / "heatmaps")
        with self._ledger.transaction():
            self._ledger.write(
                "INSERT INTO images (id, round, record, seconds, bytes, created_at) "
                "VALUES (:id, :round, :record, :seconds, :bytes, :now) ON CONFLICT (id) DO UPDATE "
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
        return self.folder / "taught" / decoder / f"{image_id}.npz"

    def put_taught(self, decoder: str, drawn: Iterable[HeatMaps]) -> None:
        """Store what a decoder drew of some images.

        Args:
            decoder: Id of the decoder.
            drawn: One for each image.

        Raises:
            StoreError: The disk is full or not writable.
        """
        self._ledger.check_writable()
        folder = self.folder / "taught" / decoder
        with explained(self.folder):
            folder.mkdir(parents=True, exist_ok=True)
            for heat_maps in drawn:
                write_file(self.taught_path(decoder, heat_maps.image_id), codec.heat_maps_to_npz(heat_maps))
            sync_folder(folder)

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
                write_file(path, codec.rgb_to_png(rgb))
                sync_folder(path.parent)

    def source_path(self, source_id: str) -> Path:
        """Return the path of a source image: an image of the run, or a copy from outside it."""
        image = self.image_path(source_id)
        return image if image.is_file() else self.folder / "sources" / f"{source_id}.png"

    def source(self, source_id: str) -> NDArray[np.uint8]:
        """Return the pixels of a source image, uint8 (H, W, 3).

        Raises:
            StoreError: The file is missing or unreadable.
        """
        return read_file(source_id, self.source_path(source_id), codec.rgb_from_png)
