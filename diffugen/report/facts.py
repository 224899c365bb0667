"""What the ledger says about a run as a whole: counts, configuration, and the results of its stages.

All of it is small; images and labels are never read here. Any part may be absent. Knows no stage order:
what comes next is the business of the loop that makes the run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from diffugen.config.labelling import by_detector
from diffugen.config.load import kept_config, with_current_keys
from diffugen.config.sections import Config
from diffugen.errors import ConfigError, StoreError, shell_command
from diffugen.report.blocks import Code, Inline
from diffugen.run.results import RESULT_KINDS, Evaluated, RoundResults
from diffugen.run.store import RunStore
from diffugen.run.summary import RunSummary

Value = TypeVar("Value")

OWN_COMMANDS = ("bootstrap", "improve")
"""Loops with a command of their own; the others are run by ``diffugen loops run``."""


@dataclass(frozen=True)
class RunFacts:
    """A run as described by its ledger.

    Attributes:
        folder: The run directory.
        summary: Its counts.
        results: The stage results of each round of the summary.
        config: Its configuration; None where it keeps none, or none that this version understands.
        kept_config: The configuration as it is kept, as JSON values under the names that keys have now; None
            where it keeps none.
        loop: Name or file of the loop that makes the run; None if unknown.
        unreadable: A sentence for each stage result that cannot be read.
    """

    folder: Path
    summary: RunSummary
    results: Mapping[int, RoundResults]
    config: Config | None = None
    kept_config: Mapping[str, Any] | None = None
    loop: str | None = None
    unreadable: tuple[str, ...] = ()

    # ---------------------------------------------------------------- rounds

    @property
    def rounds(self) -> list[int]:
        """Rounds that hold anything, in order."""
        return list(self.results)

    @property
    def finished_rounds(self) -> list[int]:
        """Rounds that have reached a promotion or an evaluation."""
        return [number for number, one in self.results.items() if one.promote or one.evaluate]

    @property
    def promoted_rounds(self) -> list[int]:
        """Rounds whose detector was promoted."""
        return [number for number, one in self.results.items() if one.promote and one.promote.promoted]

    @property
    def last_activity(self) -> str | None:
        """When the run was last written, to the minute; None if it never was."""
        found = self.summary.last_activity
        return None if found is None else f"{datetime.fromisoformat(found):%Y-%m-%d %H:%M} UTC"

    # ---------------------------------------------------------------- detectors on the truth set

    @property
    def initial(self) -> Evaluated | None:
        """The detector that the loop started with, measured on the truth set."""
        return _last(one.evaluate_base for one in self.results.values())

    @property
    def current(self) -> Evaluated | None:
        """The detector of the last measured round, measured on the truth set."""
        return _last(one.evaluate for one in self.results.values())

    @property
    def measured_round(self) -> int | None:
        """The round of `current`; None if no round was measured."""
        return next((number for number in reversed(self.rounds) if self.results[number].evaluate), None)

    @property
    def class_names(self) -> list[str]:
        """The classes, as configured or else as measured."""
        if self.config is not None:
            return list(self.config.prompts.classes)
        return list(self.current.by_class) if self.current else []

    @property
    def rare_classes(self) -> list[str]:
        """The measured classes that the initial detector did not find at all; all, if that is unknown."""
        measured = list(self.current.by_class) if self.current else []
        if self.initial is None or not self.initial.by_class:
            return measured
        known = self.initial.by_class
        return [name for name in measured if not (known[name].ap50 if name in known else None)] or measured

    @property
    def reference(self) -> Evaluated | None:
        """The detector trained on exact labels, measured on the truth set."""
        return _last(one.evaluate_reference for one in self.results.values())

    @property
    def promoted_on_truth(self) -> bool | None:
        """Whether promotions were decided on the truth set; None if that is unknown."""
        deciding = {
            one.promote.validation
            for one in self.results.values()
            if one.promote and one.promote.evidence == "validation"
        }
        if "" not in deciding:
            return bool(deciding & {one.evaluate.truth for one in self.results.values() if one.evaluate})
        if self.config is None:
            return None
        return self.config.loop.validation == self.config.loop.truth

    # ---------------------------------------------------------------- labels

    @property
    def labeller(self) -> str:
        """What made the newest labels, for a sentence: ``attention``, or a detector alone."""
        made = _last(one.label.method if one.label else None for one in self.results.values())
        detector = (
            by_detector(made) if made or self.config is None else self.config.labels.source == "detector"
        )
        return "the starting detector" if detector else "attention"

    @property
    def labels_name(self) -> str:
        """What the labels are called that a detector's are compared with."""
        return "attention labels" if self.labeller == "attention" else f"labels of {self.labeller}"

    @property
    def compared_method(self) -> str | None:
        """Provenance of the labels in the last comparison, to which the disagreements refer."""
        return _last(one.label.method for one in self.results.values() if one.label and one.compare)

    @property
    def first_method(self) -> str | None:
        """Provenance of the run's first attention labels; None if there is only one provenance."""
        methods = [one.label.method for one in self.results.values() if one.label]
        return methods[0] if len(set(methods)) > 1 else None

    # ---------------------------------------------------------------- paths and commands

    def short(self, path: str) -> str:
        """Return a path relative to the run's folder if it lies inside."""
        inside = Path(path)
        for folder in (self.folder, self.folder.absolute()):
            if inside.is_relative_to(folder):
                return inside.relative_to(folder).as_posix()
        return path

    def command(self, name: str) -> Code:
        """Return a command of DiffuGen for this run, quoted for a shell."""
        return Code(shell_command(name, "--run", self.folder))

    @property
    def looped(self) -> bool:
        """Whether a loop has worked on the run, as far as can be told."""
        stages = {name for one in self.summary.rounds.values() for name in one.stages}
        return self.loop is not None or bool(stages - {"generate", "label"})

    @property
    def continuing(self) -> tuple[Inline, ...]:
        """How to continue the run: the command, or advice if the loop that makes the run is unknown."""
        return self._with_loop("--run", str(self.folder))

    @property
    def repeating(self) -> tuple[Inline, ...]:
        """How to make the run once more from the configuration file ``again.json``."""
        return self._with_loop("again.json", "--run", "runs/again")

    def _with_loop(self, *arguments: str) -> tuple[Inline, ...]:
        loop = self.loop or OWN_COMMANDS[0]
        words = [loop] if loop in OWN_COMMANDS else ["loops", "run", loop]
        code = Code(shell_command(*words, *arguments))
        if self.loop is not None:
            return (code,)
        return ("run the loop that made it again, e.g. " if self.looped else "run a loop, e.g. ", code)


def gather_facts(store: RunStore) -> RunFacts:
    """Read a run's counts, configuration and stage results; what cannot be read is left out and reported."""
    summary = store.summary()
    kept = None if store.config is None else with_current_keys(store.config)
    unreadable: list[str] = []
    results = {number: _results(store, number, unreadable) for number in summary.rounds}
    config = None
    if kept is not None:
        try:
            config = kept_config(kept, str(store.folder))
        except ConfigError:
            config = None
    return RunFacts(store.folder, summary, results, config, kept, store.loop, tuple(unreadable))


def _results(store: RunStore, round: int, unreadable: list[str]) -> RoundResults:
    try:
        return store.results(round)
    except StoreError:
        found = {}
        for name, kind in RESULT_KINDS.items():
            stage = name.replace("_", "-")
            try:
                found[name] = store.result(round, stage, kind)
            except StoreError:
                unreadable.append(f"The result of stage {stage} of round {round} cannot be read.")
        return RoundResults(**found)


def _last(values: Iterable[Value | None]) -> Value | None:
    return next((one for one in reversed(list(values)) if one is not None), None)
