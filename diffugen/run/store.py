"""A run directory: an SQLite ledger, a PNG and an npz of heat maps per image; one writer, many readers.

```
<run>/ledger.sqlite        rows: image records, label sets, disagreements, decisions, stages (ledger.py)
<run>/images/<2 digits>/<id>.png   <run>/heatmaps/<2 digits>/<id>.npz (places.py, codec.py)
<run>/taught/<decoder>/<2 digits>/<id>.npz   what a decoder drew of the image (codec.py)
<run>/sources/<id>.png     photos and images of other runs that images were made from
<run>/<each of these>/unfinished   temporary files
<run>/writer.lock          locked by the one process that writes; writer.pid contains its id
```
An image's files are written under a temporary name, synced and renamed; then its row is committed. So a row
guarantees complete files, even after ``kill -9`` at any moment. Such a kill can leave a file without a row;
it stays until its image is generated again, which overwrites it. Temporary files lie apart, and are removed
when the next writer opens the run. Nothing else is ever deleted.

Does not know which code generates, labels or reviews, or in which order.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from diffugen import __version__
from diffugen.config.foreign import as_path, parse_json
from diffugen.errors import StoreError
from diffugen.run import codec
from diffugen.run.changes import differing_keys
from diffugen.run.files import acquire_lock, release_lock, sweep
from diffugen.run.labels import LabelStore
from diffugen.run.ledger import LEDGER_NAME, Ledger, explained
from diffugen.run.places import UNFINISHED
from diffugen.run.results import RESULT_KINDS, BatchesDone, Result, RoundResults, from_text, to_values
from diffugen.run.rows import now, now_after, pairs
from diffugen.run.summary import RunSummary, summarise

if TYPE_CHECKING:
    from filelock import BaseFileLock

logger = logging.getLogger(__name__)

MANY_ROWS = 100_000
"""From this size of an old ledger on, its upgrade is announced."""

_FOLDERS = ("images", "heatmaps", "sources")


class RunStore(LabelStore):
    """A run directory, open for reading or writing; a context manager, for one thread of one process.

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
        cls,
        folder: str | Path,
        *,
        config: Mapping[str, Any] | None,
        ignore_keys: Collection[str] = (),
        default_keys: Collection[str] = (),
    ) -> RunStore:
        """Open a run for writing, creating it if it does not exist.

        Args:
            folder: The run directory.
            config: The configuration as JSON values. A new or empty run stores it; any other must have been
                created with the same one. None skips the check.
            ignore_keys: Dotted keys that may differ (``"generate.batch_size"``; ``"device"`` covers all keys
                below it).
            default_keys: Dotted keys that have their defaults; a run of an earlier version can lack them.

        Raises:
            StoreError: The configuration differs (the message names the keys), another process is writing the
                run, or the folder, the disk or the ledger cannot be used.
        """
        with ExitStack() as undo:
            store = undo.enter_context(cls._open_writer(as_path(folder, "the run")))
            store._keep_config(config, ignore_keys, default_keys)
            undo.pop_all()
        return store

    @classmethod
    def open(cls, folder: str | Path, *, readonly: bool = False) -> RunStore:
        """Open an existing run; reading needs no lock and works while another process writes.

        Raises:
            StoreError: The folder is not a run directory, or one of the errors of :meth:`create_or_open`.
        """
        folder = as_path(folder, "the run")
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
            _sweep(folder)
            about = {"created_at": now(), "diffugen_version": __version__}
            ledger = Ledger(folder, readonly=False, about=about, on_upgrade=partial(_upgrading, folder))
            undo.pop_all()
        return cls(folder, ledger, lock)

    def close(self) -> None:
        """Close the ledger and release the lock; safe to call twice."""
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
        """The configuration that the run was created with; None if none was given."""
        row = self._ledger.one("SELECT value FROM meta WHERE key = 'config'")
        if row is None:
            return None
        with self._ledger.reading("meta", "config"):
            config = parse_json(row[0])
            if not isinstance(config, dict):
                raise ValueError("it is not a configuration")
            return config

    @property
    def consensus(self) -> int:
        """How many reviewers must agree on an image: ``review.consensus`` of the run, 1 for an older run."""
        return self._ledger.once("consensus", self._read_consensus)

    def _read_consensus(self) -> int:
        review = (self.config or {}).get("review")
        count = review.get("consensus") if isinstance(review, dict) else None
        return count if isinstance(count, int) and count >= 1 else 1

    @property
    def is_empty(self) -> bool:
        """Whether nothing was made with its configuration yet, which may therefore be corrected."""
        return not self.summary().rounds

    def keep_review(self, *, audits: float, consensus: int) -> None:
        """Keep how the run is reviewed, as it was said last: whatever reads the run later goes by that.

        Images become decided, or open again, where another number of reviewers must agree. A run of a version
        without audits stays without them.
        """
        config = self.config
        if config is None:
            return
        before = config.get("review")
        review = {**before} if isinstance(before, dict) else {}
        if "audits" in review:
            review["audits"] = audits
        changed = consensus != self.consensus
        if changed:
            review["consensus"] = consensus
        if review == (before or {}):
            return
        text = codec.config_to_json({**config, "review": review})
        with self._ledger.transaction():
            self._ledger.write("UPDATE meta SET value = :value WHERE key = :key", pairs({"config": text}))
            if changed:
                self.put_human_labels(one.image_id for one in self.votes())

    @property
    def ledger(self) -> Ledger:
        """The ledger, for what joins runs row by row."""
        return self._ledger

    def keep_config(self, config: Mapping[str, Any] | None) -> None:
        """Keep the configuration of a new or empty run; any other must have been created with the same one.

        Raises:
            StoreError: The configuration differs.
        """
        self._keep_config(config, (), ())

    def _keep_config(
        self, config: Mapping[str, Any] | None, ignore_keys: Collection[str], default_keys: Collection[str]
    ) -> None:
        if config is None:
            return
        text = codec.config_to_json(config)
        kept = self.config
        if kept is None or self.is_empty:
            with self._ledger.transaction():
                self._ledger.write(
                    "INSERT OR REPLACE INTO meta VALUES (:key, :value)", pairs({"config": text})
                )
            return
        differing = differing_keys(kept, json.loads(text), ignore_keys, default_keys)
        if differing:
            raise StoreError(
                f"run {self.folder} was created with a different configuration:\n"
                + "\n".join(f"  - {line}" for line in differing)
                + "\nChoose another run folder for the new configuration, or restore the original one to "
                "continue this run"
            )

    def result(self, round: int, stage: str, kind: type[Result]) -> Result | None:
        """Return the stored result of a stage, or None if the stage has not finished.

        Args:
            round: Number of the round.
            stage: Name of the stage.
            kind: Class of the stage's result.

        Raises:
            StoreError: The stored result does not match this class.
        """
        row = self._ledger.one(
            "SELECT result FROM stages WHERE round = :round AND name = :name", round=round, name=stage
        )
        if row is None:
            return None
        with self._ledger.reading("stages", f"{stage} of round {round}"):
            return from_text(kind, row[0])

    def results(self, round: int) -> RoundResults:
        """Return the stored results of all stages of a round.

        Raises:
            StoreError: A stored result cannot be read.
        """
        found = {}
        for name, kind in RESULT_KINDS.items():
            found[name] = self.result(round, name.replace("_", "-"), kind)
        return RoundResults(**found)

    def finish_stage(self, round: int, stage: str, result: object, seconds: float) -> None:
        """Record that a stage of a round has finished, replacing an earlier record.

        Args:
            round: Number of the round.
            stage: Name of the stage.
            result: A dataclass of JSON values, such as those of `diffugen.run.results`.
            seconds: Time that the stage took.
        """
        row = {"round": round, "name": stage, "result": codec.to_json(to_values(result)), "seconds": seconds}
        with self._ledger.transaction():
            (newest,) = self._ledger.one("SELECT max(created_at) FROM stages") or (None,)
            self._ledger.write(
                "INSERT OR REPLACE INTO stages VALUES (:round, :name, :result, :seconds, :now)",
                [row | {"now": now_after(newest)}],
            )

    def batches_done(self, plan: str) -> BatchesDone | None:
        """Return how far a plan of images is done, by its hash; None if that was never kept.

        Raises:
            StoreError: What was kept cannot be read.
        """
        row = self._ledger.one("SELECT value FROM meta WHERE key = :key", key=f"done of plan {plan}")
        if row is None:
            return None
        with self._ledger.reading("meta", f"done of plan {plan}"):
            return from_text(BatchesDone, row[0])

    def keep_batches_done(self, plan: str, done: BatchesDone) -> None:
        """Keep how far a plan of images is done; all of them are in the run."""
        row = pairs({f"done of plan {plan}": codec.to_json(to_values(done))})
        with self._ledger.transaction():
            self._ledger.write("INSERT OR REPLACE INTO meta VALUES (:key, :value)", row)

    @property
    def loop(self) -> str | None:
        """Name or file of the run's loop; None if no loop ran, or an older version of DiffuGen ran it."""
        row = self._ledger.one("SELECT value FROM meta WHERE key = 'loop'")
        return None if row is None else str(row[0])

    def keep_loop(self, loop: str) -> None:
        """Record the run's loop, by name or file."""
        with self._ledger.transaction():
            self._ledger.write("INSERT OR REPLACE INTO meta VALUES (:key, :value)", pairs({"loop": loop}))

    def summary(self) -> RunSummary:
        """Count the content of the run, from the ledger's indexes only: fast even with many images."""
        return self._ledger.once("summary", self._count)

    def _count(self) -> RunSummary:
        with explained(self.folder):
            found = summarise(self._ledger)
        if self.consensus > 1:
            for round in found.rounds.values():
                round.decisions.clear()
            for one in self.decisions():
                decisions = found.rounds[one.round].decisions
                decisions[one.verdict] = decisions.get(one.verdict, 0) + 1
        return found


def _sweep(folder: Path) -> None:
    """Remove the temporary files that a killed writer left."""
    taught = (folder / "taught").glob("*")
    for place in (folder, *(one / UNFINISHED for one in (*(folder / name for name in _FOLDERS), *taught))):
        sweep(place)


def _upgrading(folder: Path, rows: int) -> None:
    """Tell that the upgrade of a large ledger takes a while; remove files that an older version left."""
    if rows >= MANY_ROWS:
        logger.warning(
            "updating the ledger of run %s for this version of DiffuGen: about %s rows, which can take "
            "minutes. If this is interrupted, the ledger stays as it was",
            folder,
            f"{rows:,}",
        )
    for name in _FOLDERS:
        sweep(folder / name)


def _not_a_run(folder: Path) -> str:
    runs = sorted(ledger.parent.name for ledger in folder.glob(f"*/{LEDGER_NAME}"))
    hint = f"; it contains the runs {', '.join(runs[:10])}" if runs else ""
    return (
        f"{folder} is not a run directory: it has no {LEDGER_NAME}{hint}. Give the folder of a run, or "
        "create one with diffugen generate"
    )
