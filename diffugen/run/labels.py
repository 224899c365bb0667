"""Label sets, disagreements and review decisions of a run's images, as ledger rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from diffugen.records import OPEN, Decision, Disagreement, LabelSet
from diffugen.run import codec
from diffugen.run.images import ImageStore
from diffugen.run.rows import check_integers, check_round, check_texts, check_time, filters, now, pairs
from diffugen.run.schema import WITH_CHECKS, WITH_JUDGED, counts
from diffugen.run.votes import settled

_SUPERSEDED = (
    "EXISTS (SELECT 1 FROM labels AS n "
    "WHERE n.image_id = t.image_id AND n.source = t.source AND +n.seq > t.seq)"
)
"""Whether a label set of the table ``t`` has a newer one of the same image and source."""

NEWEST = (
    "NOT EXISTS (SELECT 1 FROM decisions AS n "
    "WHERE n.image_id = t.image_id AND n.seq > t.seq AND n.seq <= :until)"
)
"""Whether a decision of the table ``t`` is the newest about its image."""


class LabelStore(ImageStore):
    """Store of a run's images with their label sets, disagreements and review decisions."""

    def put_labels(self, label_sets: Iterable[LabelSet]) -> None:
        """Store label sets in one transaction; a set replaces that of the same image, source and method.

        Raises:
            StoreError: The run has no such image, or cannot be written. Then nothing of this call is stored.
            ValueError: A label set has another size than its image.
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
            rows.append({**row, "instances": text, "objects": len(labels.instances), "now": now()})
        with self._ledger.transaction():
            self._ledger.write(
                "INSERT OR REPLACE INTO labels "
                "(image_id, source, method, round, instances, objects, created_at) "
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
        """Yield the label sets that match all given values, oldest first; ``round`` is that of labelling."""
        where, values = filters(source=source, method=method, round=round, image_id=image_id)
        return self._label_sets(where, values)

    def latest_labels(
        self, source: str, round: int | None = None, image_id: str | None = None
    ) -> Iterator[LabelSet]:
        """Yield each image's newest label set from one source; of one labelling round or image, if given."""
        where, values = filters(source=source, round=round, image_id=image_id)
        # The plus signs make SQLite search by image, instead of by seq through all newer rows of the source.
        newer = "n.image_id = t.image_id AND n.source = t.source AND +n.seq > t.seq AND +n.seq <= :until"
        if round is not None:
            newer += " AND +n.round = t.round"
        return self._label_sets(f"{where} AND NOT EXISTS (SELECT 1 FROM labels AS n WHERE {newer})", values)

    def latest_method(self, source: str) -> str | None:
        """Return the method of the newest label set of a source, or None if it has no label sets."""
        row = self._ledger.one(
            "SELECT method FROM labels WHERE source = :source ORDER BY seq DESC LIMIT 1", source=source
        )
        return None if row is None else str(row[0])

    def labelled_ids(self, source: str, method: str) -> Iterator[str]:
        """Yield the ids of the images that this source has labelled by this method, oldest labels first."""
        where, values = filters(source=source, method=method)
        for (image_id,) in self._ledger.stream("labels", "image_id", where, **values):
            yield image_id

    def superseded(self, source: str, method: str) -> Iterator[str]:
        """Yield the ids of images that this source has labelled by this method, and later by another."""
        where, values = filters(source=source, method=method)
        for (image_id,) in self._ledger.stream("labels", "image_id", f"{where} AND {_SUPERSEDED}", **values):
            yield image_id

    def renew_labels(self, source: str, method: str) -> None:
        """Make the label sets of a method the newest of their images again, in one transaction.

        Raises:
            StoreError: The run cannot be written. Then nothing is changed.
        """
        columns = "image_id, source, method, round, instances, objects, created_at"
        with self._ledger.transaction():
            self._ledger.write(
                f"INSERT OR REPLACE INTO labels ({columns}) SELECT {columns} FROM labels AS t "
                f"WHERE source = :source AND method = :method AND {_SUPERSEDED} ORDER BY seq",
                [{"source": source, "method": method}],
            )

    def _label_sets(self, where: str, values: dict[str, Any]) -> Iterator[LabelSet]:
        columns = "image_id, source, instances, method, round"
        for image_id, source, text, method, made_in in self._ledger.stream(
            "labels", columns, where, **values
        ):
            with self._ledger.reading("labels", image_id):
                check_texts(image_id, source, method)
                check_round(made_in)
                found = LabelSet(image_id, source, codec.instances_from_json(text), method, made_in)
            yield found

    def label_ids_missing(self, source: str, method: str, round: int | None = None) -> Iterator[str]:
        """Yield the ids of images (of one round, if given) that this source and method have not labelled."""
        where, values = filters(round=round)
        missing = (
            "NOT EXISTS (SELECT 1 FROM labels AS l "
            "WHERE l.image_id = t.id AND l.source = :source AND l.method = :method)"
        )
        # By id, images and labels are walked side by side, in two indexes. By age, each image would have to
        # be looked for, so that begins with the oldest that has no labels.
        (oldest,) = self._ledger.one(
            "SELECT min(seq) FROM images AS t INDEXED BY sqlite_autoindex_images_1 "
            f"WHERE id > '' AND {missing}",
            source=source,
            method=method,
        ) or (None,)
        if oldest is None:
            return
        values |= {"source": source, "method": method}
        for (image_id,) in self._ledger.stream(
            "images", "id", f"{where} AND {missing}", oldest - 1, **values
        ):
            yield image_id

    def draw_agreed(self, round: int, most: int) -> list[str]:
        """Draw images of a round that attention and model have labelled without disagreement.

        Args:
            round: Number of the round.
            most: How many; fewer are returned if there are not as many.

        Returns:
            Their ids, the same ones whenever they are drawn.
        """
        place = "t.audit" if self._ledger.version >= WITH_CHECKS else "audit_place(t.id)"
        labelled = "SELECT 1 FROM labels AS l WHERE l.image_id = t.id AND l.source"
        found = self._ledger.select(
            "SELECT id FROM images AS t WHERE t.round = :round "
            "AND NOT EXISTS (SELECT 1 FROM disagreements AS d WHERE d.image_id = t.id) "
            f"AND EXISTS ({labelled} = 'attention') AND EXISTS ({labelled} = 'model') "
            f"ORDER BY {place} LIMIT :most",
            round=round,
            most=most,
        )
        return [image_id for (image_id,) in found]

    def contested_ids(self, round: int) -> list[str]:
        """Return the ids of a round's images with a disagreement, in the order of the review queue."""
        found = self._ledger.select(
            "SELECT image_id FROM disagreements WHERE round = :round GROUP BY image_id ORDER BY min(seq)",
            round=round,
        )
        return [image_id for (image_id,) in found]

    def count_contested(self) -> dict[int, int]:
        """Return, from a round, how many of its images have a disagreement."""
        sql = f"SELECT round, images FROM {counts('contested_counts', self._ledger.version)}"
        return self._ledger.once("contested", lambda: self._checked_counts(self._ledger.all(sql)))

    def _checked_counts(self, rows: Iterable[tuple[Any, Any]]) -> dict[int, int]:
        with self._ledger.reading("contested_counts", "of a round"):
            for number, count in rows:
                check_round(number)
                check_integers(count)
        return dict(rows)

    def count_contested_decided(self) -> int:
        """Return how many images with a disagreement are decided."""
        contested = "SELECT 1 FROM disagreements AS d WHERE d.image_id = t.image_id"
        if self.consensus > 1:
            ids = (one.image_id for one in self.decisions())
            contested = contested.replace("t.image_id", ":image_id")
            return sum(self._ledger.one(contested, image_id=one) is not None for one in ids)
        found = self._ledger.one(
            f"SELECT count(*) FROM decisions AS t WHERE verdict <> '{OPEN}' AND EXISTS ({contested}) AND "
            "NOT EXISTS (SELECT 1 FROM decisions AS n WHERE n.image_id = t.image_id AND n.seq > t.seq)"
        )
        return int(found[0]) if found else 0

    def decided_of(self, image_ids: Iterable[str]) -> list[str]:
        """Return those of some images that are decided, in their order."""
        voted = {one for (one,) in self._ledger.all("SELECT DISTINCT image_id FROM decisions")}
        return [one for one in image_ids if one in voted and self._is_decided(one)]

    def _is_decided(self, image_id: str) -> bool:
        if self.consensus > 1:
            return self.decision(image_id) is not None
        newest = self._ledger.one(
            "SELECT verdict FROM decisions WHERE image_id = :image_id ORDER BY seq DESC LIMIT 1",
            image_id=image_id,
        )
        return newest is not None and newest[0] != OPEN

    def decision(self, image_id: str) -> Decision | None:
        """Return the decision that counts of an image; None if it is not decided."""
        return settled(self.votes(image_id), self.consensus).get(image_id)

    def count_labels(self, source: str, method: str) -> tuple[int, int]:
        """Return how many label sets there are of a source and method, and how many objects in them."""
        found = self._ledger.one(
            "SELECT coalesce(sum(label_sets), 0), coalesce(sum(objects), 0) "
            f"FROM {counts('label_counts', self._ledger.version)} "
            "WHERE source = :source AND method = :method",
            source=source,
            method=method,
        )
        label_sets, objects = found or (0, 0)
        with self._ledger.reading("label_counts", f"of source {source}"):
            check_integers(label_sets, objects)
        return int(label_sets), int(objects)

    def put_disagreements(
        self, round: int, disagreements: Iterable[Disagreement], method: str | None = None
    ) -> None:
        """Store the disagreements of a round's images, replacing earlier ones of that round.

        Args:
            round: The round that generated the images.
            disagreements: In the order of the review queue; may be an iterator that reads the run.
            method: Provenance of the attention labels that were compared; None to keep the one that is kept.

        Raises:
            StoreError: The run cannot be written. Then nothing is changed.
        """
        with self._ledger.transaction():
            (until,) = self._ledger.one("SELECT coalesce(max(seq), 0) FROM disagreements") or (0,)
            self._ledger.write(
                "INSERT INTO disagreements (image_id, round, kind, severity, attention, model, iou) "
                "VALUES (:image_id, :round, :kind, :severity, :attention, :model, :iou)",
                ({**asdict(one), "round": round} for one in disagreements),
            )
            # Only now: the earlier ones may be what the iterator reads.
            self._ledger.write(
                "DELETE FROM disagreements WHERE round = :round AND +seq <= :until",
                [{"round": round, "until": until}],
            )
            if method is not None:
                self._ledger.write(
                    "INSERT OR REPLACE INTO meta VALUES (:key, :value)", pairs({"compared": method})
                )

    def drop_disagreements(self, image_ids: Iterable[str]) -> None:
        """Drop the disagreements of images, in one transaction; the others keep their order.

        Args:
            image_ids: The images; may be an iterator that reads the run's labels.

        Raises:
            StoreError: The run cannot be written. Then nothing is changed.
        """
        with self._ledger.transaction():
            self._ledger.write(
                "DELETE FROM disagreements WHERE image_id = :image_id",
                ({"image_id": one} for one in image_ids),
            )

    @property
    def compared_method(self) -> str | None:
        """Provenance of the attention labels that were compared last; None if unknown, as in older runs."""
        row = self._ledger.one("SELECT value FROM meta WHERE key = 'compared'")
        return None if row is None else str(row[0])

    def disagreements(self, round: int | None = None, image_id: str | None = None) -> Iterator[Disagreement]:
        """Yield the disagreements of one round, or of all rounds, in the order of the review queue."""
        where, values = filters(round=round, image_id=image_id)
        columns = "image_id, kind, severity, attention, model, iou"
        for row in self._ledger.stream("disagreements", columns, where, **values):
            with self._ledger.reading("disagreements", row[0]):
                found = Disagreement(*row)
            yield found

    def add_decisions(self, decisions: Iterable[Decision]) -> None:
        """Store decisions, and update the human label sets of their images, in one transaction.

        Earlier decisions on the same images stay in the ledger; `votes` yields all, `decisions` what counts.

        Raises:
            StoreError: The run has no such image, or cannot be written. Then nothing of this call is stored.
            ValueError: The labels of a decision have another size than its image, or its time is none.
        """
        rows: list[dict[str, Any]] = []
        for one in decisions:
            size_wh = self.record(one.image_id).size_wh
            sizes = {tuple(object.mask["size"][::-1]) for object in one.judged if object.mask is not None}
            if one.instances is not None:
                sizes.add(one.instances.size_wh)
            if one.made_at:
                check_time(one.made_at)
            for size in sizes - {size_wh}:
                raise ValueError(f"a decision of size {size} for image {one.image_id} of size {size_wh}")
            row: dict[str, Any] = {
                "image_id": one.image_id,
                "verdict": one.verdict,
                "reviewer": one.reviewer,
                "round": one.round,
                "instances": None if one.instances is None else codec.instances_to_json(one.instances),
                "judged": codec.judged_to_json(one.judged) if one.judged else None,
                "now": one.made_at or now(),
            }
            rows.append(row)
        with self._ledger.transaction():
            self._ledger.write(
                "INSERT INTO decisions (image_id, verdict, instances, reviewer, round, judged, created_at) "
                "VALUES (:image_id, :verdict, :instances, :reviewer, :round, :judged, :now)",
                rows,
            )
            self.put_human_labels(row["image_id"] for row in rows)

    def put_human_labels(self, image_ids: Iterable[str]) -> None:
        """Replace the human labels of images by those of the decisions that count, inside a transaction."""
        ids, consensus = list(dict.fromkeys(image_ids)), self.consensus
        self._ledger.write(
            "DELETE FROM labels WHERE image_id = :image_id AND source = 'human'",
            [{"image_id": image_id} for image_id in ids],
        )
        counting = (one for image_id in ids for one in settled(self.votes(image_id), consensus).values())
        rows = [
            {
                "image_id": one.image_id,
                "reviewer": one.reviewer,
                "round": one.round,
                "instances": codec.instances_to_json(one.instances),
                "objects": len(one.instances),
                "now": one.made_at,
            }
            for one in counting
            if one.instances is not None
        ]
        self._ledger.write(
            "INSERT INTO labels (image_id, source, method, round, instances, objects, created_at) "
            "VALUES (:image_id, 'human', :reviewer, :round, :instances, :objects, :now)",
            rows,
        )

    @property
    def consensus(self) -> int:
        """How many reviewers must agree before an image is decided; see `diffugen.run.votes.settled`."""
        raise NotImplementedError

    def decisions(self, round: int | None = None) -> Iterator[Decision]:
        """Yield the decision that counts of each decided image, oldest first.

        Args:
            round: Yield only those that were made in this round.
        """
        if self.consensus > 1:
            found = settled(self.votes(), self.consensus).values()
            yield from (one for one in found if round in (None, one.round))
            return
        where, values = filters(round=round)
        yield from self._votes(f"{where} AND {NEWEST} AND verdict <> '{OPEN}'", values)

    def votes(self, image_id: str | None = None) -> Iterator[Decision]:
        """Yield every decision of every reviewer, also those that later ones replaced, oldest first.

        Args:
            image_id: Yield only those about this image.
        """
        yield from self._votes(*filters(image_id=image_id))

    def _votes(self, where: str, values: Mapping[str, Any]) -> Iterator[Decision]:
        judged_column = "judged" if self._ledger.version >= WITH_JUDGED else "NULL"
        columns = f"image_id, verdict, instances, reviewer, round, {judged_column}, created_at"
        stream = self._ledger.stream("decisions", columns, where, **values)
        for image_id, verdict, text, reviewer, made_in, judged, made_at in stream:
            with self._ledger.reading("decisions", image_id):
                check_texts(image_id, reviewer)
                check_round(made_in)
                check_time(made_at)
                labels = None if text is None else codec.instances_from_json(text)
                objects = (
                    () if judged is None else codec.judged_from_json(judged, self.record(image_id).size_wh)
                )
                found = Decision(image_id, verdict, labels, reviewer, made_in, objects, made_at)
            yield found
