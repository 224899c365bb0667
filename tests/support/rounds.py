"""Rounds of a store that a test filled, without a configuration file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from diffugen.run import OnProgress, Round, Run, RunStore
from diffugen.run.rounds import unseen


def round_of(
    store: RunStore,
    class_names: Sequence[str] = ("piano",),
    number: int = 0,
    *,
    seed: int = 0,
    on_progress: OnProgress = unseen,
    notify: Callable[[str], None] = lambda text: None,
) -> Round:
    """Return a round whose stages run on every call and whose results are not stored."""

    @contextmanager
    def progress(title: str, unit: str) -> Iterator[OnProgress]:
        yield on_progress

    run = Run(store, tuple(class_names), seed, progress, notify)
    return run.round(number, redo=True, keep=False)
