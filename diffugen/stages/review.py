"""The stage in which a person looks at disagreements: a page to open anywhere, or the FiftyOne App.

Knows which way of review was asked for and where its files lie in a run; not how pages or Apps work.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from diffugen.errors import DiffugenError
from diffugen.records import Decision
from diffugen.run.rounds import OnProgress, Result

if TYPE_CHECKING:
    from diffugen.run.store import RunStore

Mode = Literal["none", "static", "fiftyone"]
MODES: tuple[Mode, ...] = ("none", "static", "fiftyone")
DECISIONS_FILE = "decisions.json"
_LOOKS_A_SECOND = 2


def review_folder(store: RunStore) -> Path:
    """Return where a run keeps its review page, the decisions file that it looks for, and the App's
    database.
    """
    return store.folder / "review"


def review_stage(
    store: RunStore,
    on_progress: OnProgress = lambda done, total: None,
    *,
    round: int,
    mode: Mode = "none",
    wait: bool = False,
    reviewer: str = "reviewer",
    address: str = "127.0.0.1",
    port: int = 5151,
    tell: Callable[[str], None] = lambda text: None,
) -> Result:
    """Show the review queue to a person and keep what she decides.

    Args:
        store: The run, open for writing.
        on_progress: Called with images decided and images in the queue.
        round: The round that decisions are made in.
        mode: ``none``; ``static`` writes a page into the run's ``review`` folder and takes in a decisions
            file that lies there; ``fiftyone`` brings the queue into the FiftyOne App and takes in its tags.
        wait: Whether to wait for the person: for the decisions file, or until the App is closed.
        reviewer: Who decides.
        address: Where the App is served.
        port: Likewise.
        tell: Called with what the person should know.

    Returns:
        ``mode``, ``queue`` (disagreements), ``decisions`` (new ones, from verdict to count).

    Raises:
        DiffugenError: The mode is unknown, the decisions file has mistakes, or the App or its database cannot
            be started.
    """
    check_mode(mode)
    queue = list(store.disagreements())
    images = len({one.image_id for one in queue})
    on_progress(0, images)
    found: Sequence[Decision] = []
    if mode == "static":
        found = _by_page(store, round, wait, reviewer, tell)
    elif mode == "fiftyone":
        found = _in_app(store, round, wait, reviewer, address, port, tell)
    on_progress(images, images)
    return {"mode": mode, "queue": len(queue), "decisions": dict(Counter(one.verdict for one in found))}


def check_mode(mode: str) -> None:
    """Raise DiffugenError unless there is such a way of review."""
    if mode not in MODES:
        raise DiffugenError(f"unknown way of review {mode!r}; one of {', '.join(MODES)}")


def import_decisions(store: RunStore, file: Path, *, reviewer: str, round: int) -> Result:
    """Keep the decisions of a file that the review page made, or a person wrote; see
    `diffugen.review.static`.

    Returns:
        ``decisions``: the new ones, from verdict to count.
    """
    from diffugen.review.static import read_decisions

    found = read_decisions(store, file, reviewer=reviewer, round=round)
    store.add_decisions(found)
    return {"decisions": dict(Counter(one.verdict for one in found))}


def _by_page(
    store: RunStore, round: int, wait: bool, reviewer: str, tell: Callable[[str], None]
) -> Sequence[Decision]:
    from diffugen.review.static import read_decisions, write_static

    folder = review_folder(store)
    page, file = write_static(store, folder), folder / DECISIONS_FILE
    if wait and not file.is_file():
        tell(
            f"review {page}, save its decisions as {file}; the loop goes on then (Ctrl-C: later, by the same "
            "command)"
        )
        while not file.is_file():
            time.sleep(1 / _LOOKS_A_SECOND)
    if not file.is_file():
        tell(f"to review: open {page}, save its decisions as {file}; the next round takes them in")
        return []
    found = read_decisions(store, file, reviewer=reviewer, round=round)
    store.add_decisions(
        found
    )  # before the file is put away: what a person decided must not be lost in between
    file.rename(_unused(folder / f"decisions-round-{round}.json"))
    return found


def _unused(path: Path) -> Path:
    number = 2
    candidate = path
    while candidate.exists():
        candidate = path.with_stem(f"{path.stem}-{number}")
        number += 1
    return candidate


def _in_app(
    store: RunStore,
    round: int,
    wait: bool,
    reviewer: str,
    address: str,
    port: int,
    tell: Callable[[str], None],
) -> Sequence[Decision]:
    from diffugen.review.database import database
    from diffugen.review.session import open_app, pull, push

    with database(review_folder(store)):
        dataset = push(store)
        if wait:
            open_app(dataset, address=address, port=port, tell=tell)
        else:
            tell(f"to review: diffugen review --run {store.folder}; the next round takes the tags in")
        found = pull(store, dataset, reviewer=reviewer, round=round, tell=tell)
        store.add_decisions(found)
        return found
