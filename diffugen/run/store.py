"""A run directory: one SQLite ledger, a PNG and an npz of heat maps for each image, one writer, any number of
readers.

```
<run>/ledger.sqlite        rows: image records, label sets, disagreements, decisions, stages (ledger.py)
<run>/images/<id>.png      <run>/heatmaps/<id>.npz (codec.py)
<run>/sources/<id>.png     photos and other runs' images that images were made of
<run>/writer.lock          held by the one process that writes; writer.pid says which
```
An image's files are written under a temporary name, synced and renamed; then its row is committed. So a row
means whole files, after ``kill -9`` at any moment too. A file without a row is the trace of such a kill: it
is left alone, and overwritten when its image is generated again; temporary files are swept when the next
writer opens the run. Nothing else is ever deleted.

Does not know what generates, labels or reviews, nor in which order.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from diffugen import __version__
from diffugen.errors import StoreError
from diffugen.records import Decision, Disagreement, GeneratedImage, HeatMaps, ImageRecord, LabelSet
from diffugen.run import codec
from diffugen.run.changes import differing_keys
from diffugen.run.files import (
    acquire_lock,
    broken,
    read_file,
    release_lock,
    sweep,
    sync_folder,
    write_file,
)
from diffugen.run.ledger import LEDGER_NAME, Ledger, explained
from diffugen.run.results import RESULT_KINDS, Result, RoundResults, from_text, to_values
from diffugen.run.summary import RunSummary, summarise

if TYPE_CHECKING:
    from filelock import BaseFileLock

_FOLDERS = ("images", "heatmaps", "sources")


class RunStore:
    """A run directory, open for reading or writing; use it as a context manager, from one thread of one
    process.

    Attributes:
        folder: The run directory.
        readonly: Whether writing is refused.

    Example:
        >>> with RunStore.create_or_open("runs/piano", config={"seed": 1}) as store:
        ...     if not store.has_image(record.id):
        ...         store.add_image(record, rgb, heat_maps, seconds=2.5)
    """

    def __init__(self, folder: Path, ledger: Ledger, lock: BaseFileLock | None) -> None:
        """Use :meth:`create_or_open` or :meth:`open`."""
        self.folder = folder
        self.readonly = ledger.readonly
        self._ledger = ledger
        self._lock = lock

    @classmethod
    def create_or_open(
        cls, folder: str | Path, *, config: Mapping[str, Any] | None, ignore_keys: Collection[str] = ()
    ) -> RunStore:
        """Open a run for writing, making it where it does not exist yet.

        Args:
            folder: The run directory.
            config: The configuration as JSON values. A new run keeps it; an existing run must have been made
                with the same. None checks nothing.
            ignore_keys: Dotted keys that may differ (``"generate.batch_size"``; ``"device"`` covers all keys
                below it).

        Raises:
            StoreError: Another configuration (names the keys), another process writes the run, or the folder,
                the disk or the ledger cannot be used.
        """
        with ExitStack() as undo:
            store = undo.enter_context(cls._open_writer(Path(folder)))
            store._keep_config(config, ignore_keys)
            undo.pop_all()
        return store

    @classmethod
    def open(cls, folder: str | Path, *, readonly: bool = False) -> RunStore:
        """Open an existing run; a reader needs no lock and may look while another process writes.

        Raises:
            StoreError: No run directory, or as in :meth:`create_or_open`.
        """
        folder = Path(folder)
        with explained(folder):
            if not (folder / LEDGER_NAME).is_file():
                raise StoreError(_not_a_run(folder))
        return cls(folder, Ledger(folder, readonly=True), None) if readonly else cls._open_writer(folder)

    @classmethod
    def _open_writer(cls, folder: Path) -> RunStore:
        with explained(folder), ExitStack() as undo:
            for name in _FOLDERS:
                (folder / name).mkdir(parents=True, exist_ok=True)
            lock = acquire_lock(folder)
            undo.callback(release_lock, folder, lock)
            for name in _FOLDERS:
                sweep(folder / name)
            ledger = Ledger(folder, readonly=False)
            undo.callback(ledger.close)
            made = {"created_at": _now(), "diffugen_version": __version__}
            with ledger.transaction():
                ledger.write("INSERT OR IGNORE INTO meta VALUES (:key, :value)", _pairs(made))
            undo.pop_all()
        return cls(folder, ledger, lock)

    def close(self) -> None:
        """Close the ledger and let another process write; safe to call twice."""
        try:
            self._ledger.close()
        finally:
            if self._lock is not None:
                release_lock(self.folder, self._lock)

    def __enter__(self) -> RunStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---------------------------------------------------------------- configuration

    @property
    def config(self) -> dict[str, Any] | None:
        """The configuration the run was made with; None where none was given."""
        row = self._ledger.one("SELECT value FROM meta WHERE key = 'config'")
        return None if row is None else json.loads(row[0])

    def _keep_config(self, config: Mapping[str, Any] | None, ignore_keys: Collection[str]) -> None:
        if config is None:
            return
        text = codec.to_json(config)
        kept = self.config
        if kept is None:
            with self._ledger.transaction():
                self._ledger.write("INSERT INTO meta VALUES (:key, :value)", _pairs({"config": text}))
            return
        differing = differing_keys(kept, json.loads(text), ignore_keys)
        if differing:
            raise StoreError(
                f"run {self.folder} was made with another configuration:\n"
                + "\n".join(f"  - {line}" for line in differing)
                + "\nChoose another run folder for the new configuration, or go back to the run's own to "
                "continue it"
            )

    # ---------------------------------------------------------------- images and heat maps

    def image_path(self, image_id: str) -> Path:
        """Return where the PNG of an image lies."""
        return self.folder / "images" / f"{image_id}.png"

    def heat_maps_path(self, image_id: str) -> Path:
        """Return where the npz of an image's heat maps lies."""
        return self.folder / "heatmaps" / f"{image_id}.npz"

    def add_image(
        self, record: ImageRecord, rgb: NDArray[np.uint8], heat_maps: HeatMaps, seconds: float
    ) -> None:
        """Keep one generated image; see :meth:`add_images`."""
        self.add_images([(record, rgb, heat_maps, seconds)])

    def add_images(self, batch: Iterable[GeneratedImage]) -> None:
        """Write the files of a batch, then commit its rows at once; images the run already has are left as
        they are.

        Args:
            batch: Record, pixels uint8 (H, W, 3), heat maps, and the seconds the image took, of each image.
                An image that a later round generates again stays in the round that made it first.

        Raises:
            StoreError: The disk is full or cannot be written: no row of the batch is committed and no file is
                half-written.
            ValueError: Pixels or heat maps do not belong to the record.
        """
        self._ledger.check_writable()
        batch = list(batch)
        for record, rgb, heat_maps, _ in batch:
            _check_belongs(record, rgb, heat_maps)
        rows = []
        with explained(self.folder):
            for record, rgb, heat_maps, seconds in batch:
                if self.has_image(record.id):
                    continue
                png, npz = codec.rgb_to_png(rgb), codec.heat_maps_to_npz(heat_maps)
                write_file(self.image_path(record.id), png)
                write_file(self.heat_maps_path(record.id), npz)
                text = codec.record_to_json(record)
                row = {"id": record.id, "round": record.round, "record": text, "now": _now()}
                rows.append({**row, "seconds": seconds, "bytes": len(png) + len(npz)})
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
        """Return whether the run has the image's row and both its files, so that nothing need be
        generated.
        """
        row = self._ledger.one("SELECT 1 FROM images WHERE id = :id", id=image_id)
        return (
            row is not None
            and self.image_path(image_id).is_file()
            and self.heat_maps_path(image_id).is_file()
        )

    def image_ids(self, round: int | None = None) -> Iterator[str]:
        """Yield the ids of all images, or of one round's, oldest first."""
        where, values = _filters(round=round)
        for (image_id,) in self._ledger.stream("images", "id", where, **values):
            yield image_id

    def records(self, round: int | None = None) -> Iterator[ImageRecord]:
        """Yield the records of all images, or of one round's, oldest first, holding few in memory."""
        where, values = _filters(round=round)
        for (text,) in self._ledger.stream("images", "record", where, **values):
            yield codec.record_from_json(text)

    def record(self, image_id: str) -> ImageRecord:
        """Return one image's record.

        Raises:
            StoreError: The run has no such image.
        """
        row = self._ledger.one("SELECT record FROM images WHERE id = :id", id=image_id)
        if row is None:
            raise StoreError(
                f"run {self.folder} has no image with id {image_id!r}. Check the id and the run folder"
            )
        return codec.record_from_json(row[0])

    def image(self, image_id: str) -> NDArray[np.uint8]:
        """Return an image's pixels, uint8 (H, W, 3).

        Raises:
            StoreError: The run has no such image, or its file is missing, unreadable or of another size.
        """
        width, height = self.record(image_id).size_wh
        rgb = read_file(image_id, self.image_path(image_id), codec.rgb_from_png)
        if rgb.shape != (height, width, 3):
            found = f"{rgb.shape[1]}x{rgb.shape[0]}"
            raise StoreError(
                broken(image_id, self.image_path(image_id), f"is {found} px, not {width}x{height}")
            )
        return rgb

    def heat_maps(self, image_id: str) -> HeatMaps:
        """Return an image's heat maps, float16.

        Raises:
            StoreError: The run has no such image, or its file is missing, unreadable or another image's.
        """
        self.record(image_id)
        heat_maps = read_file(image_id, self.heat_maps_path(image_id), codec.heat_maps_from_npz)
        if heat_maps.image_id != image_id:
            raise StoreError(
                broken(image_id, self.heat_maps_path(image_id), f"belongs to image {heat_maps.image_id}")
            )
        return heat_maps

    def drop_image(self, record: ImageRecord, reason: str) -> None:
        """Note that an image was generated and is of no use, so that it need not be generated again.

        Args:
            record: The image.
            reason: Why, for a reader.
        """
        row = {"id": record.id, "round": record.round, "reason": reason, "now": _now()}
        with self._ledger.transaction():
            self._ledger.write("INSERT OR REPLACE INTO dropped VALUES (:id, :round, :reason, :now)", [row])

    def is_dropped(self, image_id: str) -> bool:
        """Return whether :meth:`drop_image` was called for an image."""
        return self._ledger.one("SELECT 1 FROM dropped WHERE id = :id", id=image_id) is not None

    def put_source(self, source_id: str, rgb: NDArray[np.uint8]) -> None:
        """Keep the pixels, uint8 (H, W, 3), that images of the run are made of and that are no image of the
        run.

        Raises:
            StoreError: The disk is full or cannot be written.
        """
        self._ledger.check_writable()
        path = self.source_path(source_id)
        if not path.is_file():
            with explained(self.folder):
                write_file(path, codec.rgb_to_png(rgb))
                sync_folder(path.parent)

    def source_path(self, source_id: str) -> Path:
        """Return where the pixels of an image's parent lie: an image of the run, or a source that was
        kept.
        """
        image = self.image_path(source_id)
        return image if image.is_file() else self.folder / "sources" / f"{source_id}.png"

    def source(self, source_id: str) -> NDArray[np.uint8]:
        """Return the pixels, uint8 (H, W, 3), of an image's parent.

        Raises:
            StoreError: The file is missing or unreadable.
        """
        return read_file(source_id, self.source_path(source_id), codec.rgb_from_png)

    # ---------------------------------------------------------------- labels

    def put_labels(self, label_sets: Iterable[LabelSet]) -> None:
        """Keep label sets in one transaction; one of the same image, source and method is replaced and
        becomes the latest.

        Raises:
            StoreError: The run has no such image, or cannot be written. Nothing of this call is kept then.
            ValueError: A label set is of another size than its image.
        """
        rows = []
        for labels in label_sets:
            size_wh = self.record(labels.image_id).size_wh
            if labels.instances.size_wh != size_wh:
                raise ValueError(
                    f"labels of size {labels.instances.size_wh} for image {labels.image_id} of size {size_wh}"
                )
            row = {
                "image_id": labels.image_id,
                "source": labels.source,
                "method": labels.method,
                "round": labels.round,
            }
            text = codec.instances_to_json(labels.instances)
            rows.append({**row, "instances": text, "objects": len(labels.instances), "now": _now()})
        with self._ledger.transaction():
            self._ledger.write(
                "INSERT OR REPLACE INTO labels (image_id, source, method, round, instances, objects, "
                "created_at) "
                "VALUES (:image_id, :source, :method, :round, :instances, :objects, :now)",
                rows,
            )

    def labels(
        self,
        source: str | None = None,
        method: str | None = None,
        round: int | None = None,
        image_id: str | None = None,
    ) -> Iterator[LabelSet]:
        """Yield the label sets that fit all given values, oldest first; ``round`` is the one that made the
        labels.
        """
        where, values = _filters(source=source, method=method, round=round, image_id=image_id)
        return self._label_sets(where, values)

    def latest_labels(self, source: str, round: int | None = None) -> Iterator[LabelSet]:
        """Yield each image's newest label set of one source (and of one labelling round, where given)."""
        where, values = _filters(source=source, round=round)
        # The plus signs keep SQLite from searching by seq, through all of the source's newer rows, rather
        # than by image.
        newer = "n.image_id = t.image_id AND n.source = t.source AND +n.seq > t.seq AND +n.seq <= :until"
        if round is not None:
            newer += " AND n.round = t.round"
        return self._label_sets(f"{where} AND NOT EXISTS (SELECT 1 FROM labels AS n WHERE {newer})", values)

    def latest_method(self, source: str) -> str | None:
        """Return the method of the newest label set of a source, or None where there is none."""
        row = self._ledger.one(
            "SELECT method FROM labels WHERE source = :source ORDER BY seq DESC LIMIT 1", source=source
        )
        return None if row is None else str(row[0])

    def _label_sets(self, where: str, values: dict[str, Any]) -> Iterator[LabelSet]:
        columns = "image_id, source, instances, method, round"
        for image_id, source, text, method, made_in in self._ledger.stream(
            "labels", columns, where, **values
        ):
            yield LabelSet(image_id, source, codec.instances_from_json(text), method, made_in)

    def label_ids_missing(self, source: str, method: str, round: int | None = None) -> Iterator[str]:
        """Yield the ids of images (of one image round, where given) that this source and method have not
        labelled yet.
        """
        where, values = _filters(round=round)
        labelled = (
            "SELECT 1 FROM labels AS l WHERE l.image_id = t.id AND l.source = :source AND l.method = :method"
        )
        where += f" AND NOT EXISTS ({labelled})"
        for (image_id,) in self._ledger.stream("images", "id", where, **values, source=source, method=method):
            yield image_id

    # ---------------------------------------------------------------- disagreements and decisions

    def put_disagreements(self, round: int, disagreements: Iterable[Disagreement]) -> None:
        """Keep the disagreements of a round's images in the place of those that were kept for that round
        before.

        Args:
            round: The round that generated the images.
            disagreements: In the order of the review queue; may be an iterator, which may read the run.

        Raises:
            StoreError: The run cannot be written. Nothing is changed then.
        """
        rows = [{**asdict(one), "round": round} for one in disagreements]
        with self._ledger.transaction():
            self._ledger.write("DELETE FROM disagreements WHERE round = :round", [{"round": round}])
            self._ledger.write(
                "INSERT INTO disagreements (image_id, round, kind, severity, attention, model, iou) "
                "VALUES (:image_id, :round, :kind, :severity, :attention, :model, :iou)",
                rows,
            )

    def disagreements(self, round: int | None = None, image_id: str | None = None) -> Iterator[Disagreement]:
        """Yield the disagreements of one round, or of all, in the order in which they were kept."""
        where, values = _filters(round=round, image_id=image_id)
        columns = "image_id, kind, severity, attention, model, iou"
        for row in self._ledger.stream("disagreements", columns, where, **values):
            yield Disagreement(*row)

    def add_decisions(self, decisions: Iterable[Decision]) -> None:
        """Keep decisions, and the labels of each as the image's human label set, in one transaction.

        Earlier decisions on the same images stay in the ledger; the newest counts.

        Raises:
            StoreError: The run has no such image, or cannot be written. Nothing of this call is kept then.
            ValueError: The labels of a decision are of another size than its image.
        """
        decisions = list(decisions)
        rows = []
        for one in decisions:
            size_wh = self.record(one.image_id).size_wh
            if one.instances is not None and one.instances.size_wh != size_wh:
                raise ValueError(
                    f"a decision of size {one.instances.size_wh} for image {one.image_id} of size {size_wh}"
                )
            text = None if one.instances is None else codec.instances_to_json(one.instances)
            row = {
                "image_id": one.image_id,
                "verdict": one.verdict,
                "reviewer": one.reviewer,
                "round": one.round,
            }
            objects = 0 if one.instances is None else len(one.instances)
            rows.append({**row, "instances": text, "objects": objects, "now": _now()})
        with self._ledger.transaction():
            self._ledger.write(
                "INSERT INTO decisions (image_id, verdict, instances, reviewer, round, created_at) "
                "VALUES (:image_id, :verdict, :instances, :reviewer, :round, :now)",
                rows,
            )
            # A rejected image has no human labels any more.
            self._ledger.write("DELETE FROM labels WHERE image_id = :image_id AND source = 'human'", rows)
            self._ledger.write(
                "INSERT INTO labels (image_id, source, method, round, instances, objects, created_at) "
                "VALUES (:image_id, 'human', :reviewer, :round, :instances, :objects, :now)",
                [row for row in rows if row["instances"] is not None],
            )

    def decisions(self, round: int | None = None) -> Iterator[Decision]:
        """Yield the newest decision of each image, oldest first; of those only the ones made in ``round``,
        where given.
        """
        where, values = _filters(round=round)
        newer = (
            "SELECT 1 FROM decisions AS n WHERE n.image_id = t.image_id AND n.seq > t.seq AND n.seq <= :until"
        )
        columns = "image_id, verdict, instances, reviewer, round"
        stream = self._ledger.stream("decisions", columns, f"{where} AND NOT EXISTS ({newer})", **values)
        for image_id, verdict, text, reviewer, made_in in stream:
            yield Decision(image_id, verdict, text and codec.instances_from_json(text), reviewer, made_in)

    # ---------------------------------------------------------------- stages and summary

    def result(self, round: int, stage: str, kind: type[Result]) -> Result | None:
        """Return what :meth:`finish_stage` kept for a stage, or None where it has not finished.

        Args:
            round: The round.
            stage: Name of the stage.
            kind: The record that the stage returns.

        Raises:
            StoreError: The kept result is not such a record.
        """
        row = self._ledger.one(
            "SELECT result FROM stages WHERE round = :round AND name = :name", round=round, name=stage
        )
        if row is None:
            return None
        try:
            return from_text(kind, row[0])
        except ValueError as error:
            raise StoreError(
                f"run {self.folder}: the result of stage {stage} of round {round} cannot be read ({error}). It was "
                "written by another DiffuGen, or the ledger was edited: put back a copy of the ledger"
            ) from error

    def results(self, round: int) -> RoundResults:
        """Return what the stages of a round kept.

        Raises:
            StoreError: A kept result cannot be read.
        """
        found = {}
        for name, kind in RESULT_KINDS.items():
            found[name] = self.result(round, name.replace("_", "-"), kind)
        return RoundResults(**found)

    def finish_stage(self, round: int, stage: str, result: object, seconds: float) -> None:
        """Note that a stage of a round has finished, and replace an earlier note.

        Args:
            round: The round.
            stage: Name of the stage.
            result: A dataclass of JSON values, such as those of `diffugen.run.results`.
            seconds: How long it took.
        """
        text = codec.to_json(to_values(result))
        # To the microsecond, so that stages are listed in the order in which they finished.
        now = datetime.now(timezone.utc).isoformat(timespec="microseconds")
        row = {"round": round, "name": stage, "result": text, "seconds": seconds, "now": now}
        with self._ledger.transaction():
            self._ledger.write(
                "INSERT OR REPLACE INTO stages VALUES (:round, :name, :result, :seconds, :now)", [row]
            )

    @property
    def loop(self) -> str | None:
        """Name or file of the loop that makes the run; None where no loop was run, or an older DiffuGen ran
        it."""
        row = self._ledger.one("SELECT value FROM meta WHERE key = 'loop'")
        return None if row is None else str(row[0])

    def keep_loop(self, loop: str) -> None:
        """Note which loop makes the run, by name or file."""
        with self._ledger.transaction():
            self._ledger.write("INSERT OR REPLACE INTO meta VALUES (:key, :value)", _pairs({"loop": loop}))

    def summary(self) -> RunSummary:
        """Count what the run holds, from the ledger's indexes alone, however many images there are."""
        with explained(self.folder):
            return summarise(self._ledger)


def _check_belongs(record: ImageRecord, rgb: NDArray[np.uint8], heat_maps: HeatMaps) -> None:
    width, height = record.size_wh
    if rgb.dtype != np.uint8 or rgb.shape != (height, width, 3):
        raise ValueError(
            f"image {record.id} needs pixels uint8 of shape (h, w, 3) = {(height, width, 3)}, got "
            f"{rgb.dtype} {rgb.shape}"
        )
    if (heat_maps.image_id, heat_maps.size_wh) != (record.id, record.size_wh):
        raise ValueError(
            f"image {record.id} of size {record.size_wh} was given the heat maps of image "
            f"{heat_maps.image_id} "
            f"of size {heat_maps.size_wh}"
        )


def _filters(**values: Any) -> tuple[str, dict[str, Any]]:
    """Return an SQL condition on the columns whose value is not None, and those values."""
    given = {name: value for name, value in values.items() if value is not None}
    return " AND ".join(["TRUE", *(f"t.{name} = :{name}" for name in given)]), given


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _pairs(values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in values.items()]


def _not_a_run(folder: Path) -> str:
    runs = sorted(ledger.parent.name for ledger in folder.glob(f"*/{LEDGER_NAME}"))
    hint = f"; it contains the runs {', '.join(runs[:10])}" if runs else ""
    return f"{folder} is not a run directory: it has no {LEDGER_NAME}{hint}. Give the folder of a run, or generate one first"
