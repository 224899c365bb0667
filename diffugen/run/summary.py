"""Count the content of a run from what the ledger keeps or indexes: fast even with many images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import cast

from diffugen.records import OPEN
from diffugen.run.ledger import LEDGER_NAME, Ledger
from diffugen.run.rows import check_integers, check_numbers, check_round, check_texts, check_time
from diffugen.run.schema import counts


@dataclass
class RoundSummary:
    """Counts of one round.

    Attributes:
        images: Number of images that the round generated.
        dropped: Number of unusable images that it generated.
        seconds: Total generation time of its images.
        label_sets: From a label source to the number of label sets that the round made.
        objects: From a label source to the number of labelled objects in them.
        disagreements: From a kind to the number of disagreements on the round's images.
        decisions: From a verdict to the number of images that were decided so in the round, by their newest
            decisions.
        stages: From each finished stage to its time in seconds, in the order in which they finished,
            whatever the clock said.
    """

    images: int = 0
    dropped: int = 0
    seconds: float = 0.0
    label_sets: dict[str, int] = field(default_factory=dict)
    objects: dict[str, int] = field(default_factory=dict)
    disagreements: dict[str, int] = field(default_factory=dict)
    decisions: dict[str, int] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RunSummary:
    """Counts of a run.

    Attributes:
        folder: The run directory.
        created_at: When the run was created, UTC, ISO 8601.
        diffugen_version: The version that created it.
        images: Number of all images.
        bytes: Size of images, heat maps and ledger.
        last_activity: When its newest rows were written, UTC, ISO 8601; None if it is empty.
        rounds: From the number of each round that is not empty to its counts, in order.
    """

    folder: Path
    created_at: str
    diffugen_version: str
    images: int
    bytes: int
    last_activity: str | None
    rounds: Mapping[int, RoundSummary]


def summarise(ledger: Ledger) -> RunSummary:
    """Count the content of a run.

    Raises:
        StoreError: A value is of another type than its column.
    """
    kept = partial(counts, version=ledger.version)
    images = ledger.all(f"SELECT round, images, seconds, bytes FROM {kept('image_counts')}")
    labels = ledger.all(
        "SELECT source, round, sum(label_sets), sum(objects) "
        f"FROM {kept('label_counts')} GROUP BY source, round"
    )
    stages = ledger.all("SELECT round, name, seconds, created_at FROM stages ORDER BY created_at, name")
    dropped = ledger.all("SELECT round, count(*), max(created_at) FROM dropped GROUP BY round")
    kinds = ledger.all(f"SELECT round, kind, disagreements FROM {kept('disagreement_counts')}")
    verdicts = ledger.all(
        "SELECT round, verdict, count(*), max(created_at) FROM decisions AS t WHERE NOT EXISTS "
        "(SELECT 1 FROM decisions AS n WHERE n.image_id = t.image_id AND n.seq > t.seq) "
        "GROUP BY round, verdict"
    )
    found: dict[int, RoundSummary] = {}
    times: list[str] = []

    def of_round(table: str, number: object, time: object = None) -> RoundSummary:
        with ledger.reading(table, number):
            check_round(number)
            if time is not None:
                check_time(time)
                times.append(str(time))
        return found.setdefault(cast(int, number), RoundSummary())

    for number, count, seconds, size in images:
        one = of_round("images", number, _newest_time(ledger, "images", "round", number))
        with ledger.reading("image_counts", f"of round {number}"):
            check_numbers(seconds)
            check_integers(count, size)
        one.images, one.seconds = count, seconds
    for number, count, time in dropped:
        of_round("dropped", number, time).dropped = count
    for source, number, label_sets, objects in labels:
        one = of_round("labels", number, _newest_time(ledger, "labels", "source", source))
        with ledger.reading("label_counts", f"of round {number}"):
            check_integers(label_sets, objects)
            check_texts(source)
        one.label_sets[source], one.objects[source] = label_sets, objects
    for number, kind, count in kinds:
        one = of_round("disagreements", number)
        with ledger.reading("disagreement_counts", f"of round {number}"):
            check_integers(count)
            check_texts(kind)
        one.disagreements[kind] = count
    for number, verdict, count, time in verdicts:
        one = of_round("decisions", number, time)
        if verdict != OPEN:
            one.decisions[verdict] = count
    for number, name, seconds, time in stages:
        one = of_round("stages", number, time)
        with ledger.reading("stages", name):
            check_numbers(seconds)
        one.stages[name] = seconds
    about = dict(ledger.all("SELECT key, value FROM meta"))
    return RunSummary(
        folder=ledger.folder,
        created_at=about["created_at"],
        diffugen_version=about["diffugen_version"],
        images=sum(row[1] for row in images),
        bytes=sum(row[3] for row in images) + (ledger.folder / LEDGER_NAME).stat().st_size,
        last_activity=max(times, default=None),
        rounds=dict(sorted(found.items())),
    )


def _newest_time(ledger: Ledger, table: str, column: str, value: object) -> object:
    """Return when the newest of the rows of a table was written that have a value in a column."""
    (newest,) = ledger.one(
        f"SELECT created_at FROM {table} WHERE {column} = :value ORDER BY seq DESC LIMIT 1", value=value
    ) or (None,)
    return newest
