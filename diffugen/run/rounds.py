"""An open run, its rounds, and how a stage of a round is run once.

```
for round in run.rounds(at_most=3, patience=2):
    detector = round.promoted_detector(default="miniature")
    ...
```
Rounds know what their stages kept, and thereby what earlier rounds hand on; not what a stage does, nor in
which order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, Protocol

from diffugen.config.labelling import DecoderRef, Labelling
from diffugen.config.sections import Config, resumable_keys
from diffugen.errors import Interrupted
from diffugen.records import content_id
from diffugen.run.changes import unchanged_keys
from diffugen.run.executors import Executor, LocalExecutor, executor_of
from diffugen.run.results import Promoted, Result, RoundResults, Taught, Thresholds, Tuned
from diffugen.run.store import RunStore

Arguments = ParamSpec("Arguments")


class OnProgress(Protocol):
    """Called with what is done, parts included, what there is to do in all, and a note to show with it."""

    def __call__(self, done: float, total: int, note: str = "") -> None: ...  # noqa: D102


class Progress(Protocol):
    """Shows the progress of a stage: given a title and a unit, yields what the stage reports to."""

    def __call__(self, title: str, unit: str) -> AbstractContextManager[OnProgress]: ...  # noqa: D102


def unseen(done: float, total: int, note: str = "") -> None:
    """Show no progress."""


@contextmanager
def silent(title: str, unit: str) -> Iterator[OnProgress]:
    """Show no progress of any stage."""
    yield unseen


@dataclass
class Run:
    """An open run with what is fixed for all of its rounds; use it as a context manager.

    Attributes:
        store: The contents of the run.
        class_names: The classes, in the order of their numbers.
        seed: Seed of prompts, images, splits and training.
        progress: Shows the progress of a stage.
        notify: Called with what the user should know.
        on_round: Called with each round that is finished.
        loop: Name or file of the loop that is running; the run keeps it once the loop makes rounds.
        planned: Maximum number of rounds of the loop that is running; None outside of a loop.
        executor: Where the work of its stages is done.
    """

    store: RunStore
    class_names: tuple[str, ...]
    seed: int
    progress: Progress = silent
    notify: Callable[[str], None] = lambda text: None
    on_round: Callable[[Round], None] = lambda round: None
    loop: str | None = None
    planned: int | None = None
    executor: Executor = field(default_factory=LocalExecutor)
    _said: set[str] = field(default_factory=set, init=False, repr=False)

    @classmethod
    def open(cls, folder: str | Path, config: Config, *, progress: Progress = silent) -> Run:
        """Open a run for writing, or begin it.

        Args:
            folder: The run directory.
            config: The configuration; a new run keeps it, an existing one must have been made with the same,
                but for the keys that may change when a run is continued.
            progress: Shows the progress of stages.

        Raises:
            StoreError: As in `RunStore.create_or_open`.
        """
        store = RunStore.create_or_open(
            folder,
            config=config.dump(),
            ignore_keys=tuple(resumable_keys()),
            default_keys=unchanged_keys(Config(prompts=config.prompts).dump(), config.dump()),
        )
        return cls._of(store, config, progress)

    @classmethod
    def open_existing(
        cls, folder: str | Path, config: Config, *, progress: Progress = silent, readonly: bool = False
    ) -> Run:
        """Open an existing run, whatever configuration it was made with.

        Raises:
            StoreError: As in `RunStore.open`.
        """
        return cls._of(RunStore.open(folder, readonly=readonly), config, progress)

    @classmethod
    def _of(cls, store: RunStore, config: Config, progress: Progress) -> Run:
        if not store.readonly:
            store.keep_review(audits=config.review.audits, consensus=config.review.consensus)
        executor = executor_of(config.executor)
        return cls(store, tuple(config.prompts.classes), config.seed, progress, executor=executor)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End what its stages started, and let other processes write the run."""
        try:
            self.executor.close()
        finally:
            self.store.close()

    @property
    def folder(self) -> Path:
        """The run directory."""
        return self.store.folder

    def notify_once(self, text: str) -> None:
        """Tell the user something that may come up again and again."""
        if text not in self._said:
            self._said.add(text)
            self.notify(text)

    def rounds(self, *, at_most: int, patience: int) -> Iterator[Round]:
        """Yield the rounds from the first on; a stage that is already done is not done again.

        Args:
            at_most: Maximum number of rounds.
            patience: Stop after this many rounds without a better detector.
        """
        if self.loop is not None:
            self.store.keep_loop(self.loop)
        self.planned = at_most
        for number in range(at_most):
            round = Round(self, number)
            yield round
            self.on_round(round)
            if self.rounds_without_gain(number) >= patience:
                return

    def rounds_without_gain(self, number: int) -> int:
        """Return how many rounds, up to and including this one, have passed since a detector was promoted."""
        for back in range(number + 1):
            result = self.store.result(number - back, "promote", Promoted)
            if result is not None and result.promoted:
                return back
        return number + 1

    def finished_rounds(self) -> int:
        """Return how many rounds, counted from the first, have come to a promotion."""
        done = 0
        while self.store.result(done, "promote", Promoted) is not None:
            done += 1
        return done

    def round(self, number: int, *, redo: bool = False, keep: bool = True) -> Round:
        """Return one round; the options are those of `Round`."""
        return Round(self, number, redo=redo, keep=keep)

    def newest_round(self, *, redo: bool = False, keep: bool = True) -> Round:
        """Return the newest round that has images, else round 0; the options are those of `Round`."""
        numbers = [number for number, one in self.store.summary().rounds.items() if one.images]
        return Round(self, max(numbers, default=0), redo=redo, keep=keep)


@dataclass(frozen=True)
class Round:
    """One pass of the loop.

    Attributes:
        run: The run.
        number: Its number, from 0.
        redo: Whether stages run although they are done: for commands that a user gives again on purpose.
        keep: Whether the results of stages are kept, so that a loop does not run them again.
    """

    run: Run
    number: int
    redo: bool = False
    keep: bool = True

    @property
    def store(self) -> RunStore:
        """The contents of the run."""
        return self.run.store

    @property
    def seed(self) -> int:
        """Seed of the round's prompts, images and training; that of round 0 is the run's own."""
        if self.number == 0:
            return self.run.seed
        return int(content_id("round", self.run.seed, self.number), 16) % 2**31

    @property
    def title(self) -> str:
        """What a user calls it, such as ``round 1``; in a loop also how far that is: ``round 1 (2 of 3)``."""
        planned = self.run.planned
        return f"round {self.number}" + ("" if planned is None else f" ({self.number + 1} of {planned})")

    @property
    def results(self) -> RoundResults:
        """What its stages kept so far."""
        return self.store.results(self.number)

    def files_missing(self) -> bool:
        """Return whether one of its images has lost a file, so that the images must be generated again."""
        return any(
            self.store.round_of(image_id) == self.number for image_id in self.store.images_without_files()
        )

    def promoted_detector(self, default: str) -> str:
        """Return the detector that the round begins with: the last one promoted before it, or the default."""
        for earlier in reversed(range(self.number)):
            result = self.store.result(earlier, "promote", Promoted)
            if result is not None:
                return result.checkpoint
        return default

    def latest_detector(self, default: str) -> str:
        """Return the detector promoted last, in this round or before it, or else the default."""
        return Round(self.run, self.number + 1).promoted_detector(default)

    def tuned_labelling(self, default: Labelling) -> Labelling:
        """Return how the round labels: as the last adopted tuning before it found, or the default."""
        for earlier in reversed(range(self.number)):
            result = self.store.result(earlier, "tune", Tuned)
            if result is not None and result.adopted:
                return default.tuned(result.after.settings, result.after.weights)
        return default

    def taught_labelling(self, default: Labelling) -> Labelling:
        """Return a labelling with the decoder that is in use, if there is one."""
        return replace(default, decoder=self.taught_decoder())

    def adapted_labelling(self, default: Labelling) -> Labelling:
        """Return a labelling with the thresholds that were chosen for each class, if it asks for them."""
        found = self.chosen_thresholds(default)
        return default if found is None else default.with_thresholds(found.chosen)

    def chosen_thresholds(self, labelling: Labelling) -> Thresholds | None:
        """Return the thresholds chosen last, in this round or before, for maps that are drawn in this way.

        None without any, or if the labelling does not ask for them.
        """
        if not labelling.adaptive:
            return None
        drawn_by = labelling.decoder and labelling.decoder.id
        kept = (
            self.store.result(number, "thresholds", Thresholds) for number in reversed(range(self.number + 1))
        )
        return next((one for one in kept if one is not None and one.drawn_by == drawn_by), None)

    def taught_decoder(self) -> DecoderRef | None:
        """Return the decoder that the last teaching, in this round or before, adopted; None without one."""
        for earlier in reversed(range(self.number + 1)):
            result = self.store.result(earlier, "teach", Taught)
            if result is not None:
                return result.decoder if result.adopted else None
        return None


Work = Callable[Concatenate[Round, OnProgress, Arguments], Result]
Stage = Callable[Concatenate[Round, Arguments], Result]


def stage(
    name: str,
    kind: type[Result],
    *,
    unit: str = "image",
    unless: Callable[[Round], bool] | None = None,
    kept: str = "Earlier stages are kept; this one begins again.",
) -> Callable[[Work[Arguments, Result]], Stage[Arguments, Result]]:
    """Make a stage of a function: where its result is kept, return that; otherwise run, time and keep it.

    Args:
        name: Name of the stage in the ledger.
        kind: The record that the function returns.
        unit: What its progress counts.
        unless: Asked about a round whose result is kept; true runs the stage again because something of it is
            missing.
        kept: What a user is told to be kept when Ctrl-C interrupts it, unless the function itself raises
            `Interrupted` and says so.

    Returns:
        A decorator for a function of a round, what to report progress to, and the stage's own inputs. The
        stage is a function of the round and these inputs.

    Example:
        >>> @stage("count", Counted)  # doctest: +SKIP
        ... def count(round: Round, on_progress: OnProgress, least: int) -> Counted: ...
        >>> count(round, 3)  # doctest: +SKIP
    """

    def decorated(work: Work[Arguments, Result]) -> Stage[Arguments, Result]:
        @wraps(work)
        def once(round: Round, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            found = None if round.redo else round.store.result(round.number, name, kind)
            if found is not None and not (unless and unless(round)):
                return found
            start, title = time.perf_counter(), f"{round.title}: {name}"
            try:
                with round.run.progress(title, unit) as on_progress:
                    result = work(round, on_progress, *args, **kwargs)
            except KeyboardInterrupt as stop:
                said = str(stop) if isinstance(stop, Interrupted) else kept
                raise Interrupted(f"Interrupted in {title}. {said}") from stop
            finally:
                round.run.executor.release()
            if round.keep:
                round.store.finish_stage(round.number, name, result, time.perf_counter() - start)
            return result

        return once

    return decorated
