"""How a stage of a round is run once, and what a round takes over from earlier ones."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from diffugen.records import content_id

if TYPE_CHECKING:
    from diffugen.run.store import RunStore


OnProgress = Callable[[int, int], None]


Result = dict[str, Any]


Work = Callable[[OnProgress], Result]


Watch = Callable[[str, str], AbstractContextManager[OnProgress]]
"""Called with what is done and its unit; gives what a stage reports its progress to."""


UNITS = {"train": "epoch", "tune": "trial"}
"""What a stage counts, where it is not images."""


def run_stage(
    store: RunStore, round: int, name: str, work: Work, watch: Watch, *, again: bool = False
) -> Result:
    """Run a stage of a round and keep its result and its time; where that was done before, only return the
    result.

    Args:
        store: The run, open for writing.
        round: The round.
        name: The stage.
        work: Does it, given what to report progress to.
        watch: Shows progress.
        again: Do it even where it was done before, because something of it is missing.
    """
    kept = store.stage_done(round, name)
    if kept is not None and not again:
        return kept
    start = time.perf_counter()
    with watch(f"round {round}: {name}", UNITS.get(name, "image")) as on_progress:
        result = work(on_progress)
    store.finish_stage(round, name, result, time.perf_counter() - start)
    return result


def files_missing(store: RunStore, round: int) -> bool:
    """Return whether an image of a round has lost its files, so that the round must be generated again."""
    return not all(store.has_image(image_id) for image_id in store.image_ids(round))


def round_seed(seed: int, round: int) -> int:
    """Return the seed of a round's prompts, images and training; that of round 0 is the run's own."""
    return seed if round == 0 else int(content_id("round", seed, round), 16) % 2**31


def promoted(store: RunStore, round: int, checkpoint: str) -> str:
    """Return the detector that a round begins with: the last one promoted before it, or else the configured
    one.
    """
    for earlier in reversed(range(round)):
        result = store.stage_done(earlier, "promote")
        if result is not None:
            return str(result["checkpoint"])
    return checkpoint


def rounds_without_gain(store: RunStore, round: int) -> int:
    """Return how many rounds, up to and with this one, have passed since a detector was promoted."""
    for back in range(round + 1):
        result = store.stage_done(round - back, "promote")
        if result is not None and result["promoted"]:
            return back
    return round + 1
