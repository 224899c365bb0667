"""What the ledger says about a run as a whole: stage results by round, and what the truth said of each
round's detector.

Reads summary, configuration and stage results, all small; never an image or a label. Any of it may be absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from diffugen.report.blocks import number
from diffugen.run.store import RunStore

STAGES = (
    "generate",
    "label",
    "relabel",
    "compare",
    "review",
    "tune",
    "dataset",
    "train",
    "promote",
    "evaluate",
)
"""Stages of a round, in the order of work."""

RARE_STAGES = ("evaluate-base", "evaluate-reference")
"""Stages that a run has once: the detector that the loop began with, and the one that exact labels give."""


@dataclass(frozen=True)
class Measured:
    """What the truth says about one detector; APs in [0, 1], None where not measured.

    Attributes:
        round: The round in which it was asked.
        truth: Its name.
        images: Its images.
        checkpoint: The detector.
        ap50: Mask AP at IoU .50.
        ap50_95: Mask AP, the mean over IoU .50 to .95.
        box_ap50: Box AP at IoU .50.
        labels: Exactly labelled images it was trained on; None for detectors of the loop.
    """

    round: int
    truth: str
    images: float | None
    checkpoint: str
    ap50: float | None
    ap50_95: float | None
    box_ap50: float | None
    labels: float | None


@dataclass(frozen=True)
class RunFacts:
    """A run as its ledger tells it.

    Attributes:
        folder: The run directory.
        config: The configuration, or None.
        summary: As `RunStore.summary` returns it.
        results: From round and stage to what the stage kept.
    """

    folder: Path
    config: Mapping[str, Any] | None
    summary: Mapping[str, Any]
    results: Mapping[tuple[int, str], Mapping[str, Any]]

    @property
    def last_activity(self) -> str | None:
        """When the run was last written, to the minute; None where it never was."""
        found = self.summary.get("last_activity")
        return None if found is None else f"{datetime.fromisoformat(found):%Y-%m-%d %H:%M} UTC"

    @property
    def rounds(self) -> list[int]:
        """The rounds that hold anything."""
        return sorted(self.summary["rounds"])

    @property
    def finished_rounds(self) -> list[int]:
        """The rounds that came to a promotion or an evaluation."""
        return [one for one in self.rounds if self.has(one, "promote") or self.has(one, "evaluate")]

    @property
    def config_name(self) -> str | None:
        """The configuration's own name, or None."""
        return None if self.config is None else str(self.config.get("name", "")) or None

    def has(self, round: int, stage: str) -> bool:
        """Tell whether a stage of a round has finished."""
        return (round, stage) in self.results

    def any(self, stage: str) -> bool:
        """Tell whether a stage has finished in any round."""
        return any(name == stage for _, name in self.results)

    def value(self, round: int, stage: str, *keys: str) -> Any:
        """Return what a stage kept under nested keys; None where stage or key is absent."""
        found: Any = self.results.get((round, stage))
        for key in keys:
            found = found.get(key) if isinstance(found, Mapping) else None
        return found

    def number(self, round: int, stage: str, *keys: str) -> float | None:
        """Return the number that a stage kept under nested keys; None where there is none."""
        return number(self.value(round, stage, *keys))

    def count(self, round: int, tally: str, key: str) -> float | None:
        """Return one of a training set's tallies, ``by_origin`` or ``left_out``: 0 for what it did not
        count.
        """
        return (
            number(self.mapping(round, "dataset", tally).get(key, 0)) if self.has(round, "dataset") else None
        )

    def next_stage(self, round: int) -> str:
        """Return the stage after the last one of a round that has finished."""
        done = [index for index, stage in enumerate(STAGES) if self.has(round, stage)]
        ahead = STAGES[min(done[-1] + 1, len(STAGES) - 1)] if done else STAGES[0]
        # In round 0 there is no detector of the run's own yet to compare with.
        return "dataset" if round == 0 and ahead == "relabel" else ahead

    def mapping(self, round: int, stage: str, *keys: str) -> Mapping[str, Any]:
        """Return the mapping that a stage kept under nested keys; an empty one where there is none."""
        found = self.value(round, stage, *keys)
        return found if isinstance(found, Mapping) else {}

    def measured(self, round: int, stage: str = "evaluate") -> Measured | None:
        """Return what the truth said in a round; None where nobody asked it."""
        if not self.has(round, stage):
            return None
        ap50, ap50_95 = (self.number(round, stage, "mask", key) for key in ("ap50", "ap50_95"))
        return Measured(
            round=round,
            truth=str(self.value(round, stage, "truth") or "the truth"),
            images=self.number(round, stage, "images"),
            checkpoint=str(self.value(round, stage, "checkpoint") or ""),
            ap50=ap50,
            ap50_95=ap50_95,
            box_ap50=self.number(round, stage, "box", "ap50"),
            labels=self.number(round, stage, "labels"),
        )

    @property
    def base(self) -> Measured | None:
        """What the truth said of the detector that the loop began with."""
        return self._last("evaluate-base")

    @property
    def reference(self) -> Measured | None:
        """What the truth said of the detector trained on exact labels."""
        return self._last("evaluate-reference")

    @property
    def final(self) -> Measured | None:
        """What the truth said of the last round's promoted detector."""
        return self._last("evaluate")

    def _last(self, stage: str) -> Measured | None:
        known = [round for round in self.rounds if self.has(round, stage)]
        return self.measured(known[-1], stage) if known else None

    @property
    def promoted_rounds(self) -> list[int]:
        """The rounds whose detector was promoted."""
        return [one for one in self.rounds if self.value(one, "promote", "promoted") is True]

    @property
    def promoted_on_truth(self) -> bool:
        """Whether the configuration names the same images as the truth and as what promotions rest on."""
        validation = self.setting("loop", "validation")
        used = any(self.value(one, "promote", "evidence") == "validation" for one in self.rounds)
        return used and validation is not None and validation == self.setting("loop", "truth")

    @property
    def label_rounds(self) -> list[int]:
        """The rounds whose label stage has finished."""
        return [one for one in self.rounds if self.has(one, "label")]

    @property
    def tune_rounds(self) -> list[int]:
        """The rounds whose tuning has finished."""
        return [one for one in self.rounds if self.has(one, "tune")]

    def short(self, path: str) -> str:
        """Return a path without the run's folder, where it lies in it."""
        inside = Path(path)
        for folder in (self.folder, self.folder.absolute()):
            if inside.is_relative_to(folder):
                return inside.relative_to(folder).as_posix()
        return path

    @property
    def compared_method(self) -> str | None:
        """Provenance of the attention labels that the last comparison looked at, and thereby of the
        disagreements.
        """
        rounds = [one for one in self.label_rounds if self.has(one, "compare")]
        return str(self.value(rounds[-1], "label", "method")) if rounds else None

    @property
    def loop(self) -> str:
        """Name of the loop that makes, or made, the run: ``improve`` where it began with a dataset, else
        ``bootstrap``.
        """
        return "improve" if self.setting("dataset", "known") else "bootstrap"

    def setting(self, section: str, key: str) -> Any:
        """Return one value of the configuration; None where it is absent."""
        values = (self.config or {}).get(section)
        return values.get(key) if isinstance(values, Mapping) else None

    def command(self, what: str) -> str:
        """Return the command that makes something in this run: ``generate``, ``label``, ``review`` or
        ``loop``.
        """
        return f"diffugen {self.loop if what == 'loop' else what} --run {self.folder}"


def gather_facts(store: RunStore) -> RunFacts:
    """Read a run's summary, configuration and stage results."""
    summary = store.summary()
    results = {}
    for round in summary["rounds"]:
        for stage in (*STAGES, *RARE_STAGES):
            result = store.stage_done(round, stage)
            if result is not None:
                results[round, stage] = result
    return RunFacts(store.folder, store.config, summary, results)
