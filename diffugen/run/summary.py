"""Count the content of a run from the ledger's indexes only: fast even with many images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from diffugen.records import OPEN
from diffugen.run.ledger import LEDGER_NAME, Ledger


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
        last_activity: When it was last written, UTC, ISO 8601; None if it is empty.
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
    """Count the content of a run."""
    images = ledger.all(
        "SELECT round, count(*), sum(seconds), sum(bytes), max(created_at) FROM images GROUP BY round"
    )
    labels = ledger.all(
        "SELECT round, source, count(*), sum(objects), max(created_at) FROM labels GROUP BY round, source"
    )
    stages = ledger.all("SELECT round, name, seconds, created_at FROM stages ORDER BY created_at, name")
    dropped = ledger.all("SELECT round, count(*), max(created_at) FROM dropped GROUP BY round")
    kinds = ledger.all("SELECT round, kind, count(*) FROM disagreements GROUP BY round, kind")
    verdicts = ledger.all(
        "SELECT round, verdict, count(*), max(created_at) FROM decisions AS t WHERE NOT EXISTS "
        "(SELECT 1 FROM decisions AS n WHERE n.image_id = t.image_id AND n.seq > t.seq) "
        "GROUP BY round, verdict"
    )
    everything = [*images, *labels, *stages, *verdicts, *dropped]
    rounds = {number: RoundSummary() for number in sorted({row[0] for row in everything})}
    for number, count, seconds, _, _ in images:
        rounds[number].images, rounds[number].seconds = count, seconds
    for number, count, _ in dropped:
        rounds[number].dropped = count
    for number, source, label_sets, objects, _ in labels:
        rounds[number].label_sets[source] = label_sets
        rounds[number].objects[source] = objects
    for number, kind, count in kinds:
        rounds[number].disagreements[kind] = count
    for number, verdict, count, _ in verdicts:
        if verdict != OPEN:
            rounds[number].decisions[verdict] = count
    for number, name, seconds, _ in stages:
        rounds[number].stages[name] = seconds
    about = dict(ledger.all("SELECT key, value FROM meta"))
    return RunSummary(
        folder=ledger.folder,
        created_at=about["created_at"],
        diffugen_version=about["diffugen_version"],
        images=sum(row[1] for row in images),
        bytes=sum(row[3] for row in images) + (ledger.folder / LEDGER_NAME).stat().st_size,
        last_activity=max((row[-1] for row in everything), default=None),
        rounds=rounds,
    )
