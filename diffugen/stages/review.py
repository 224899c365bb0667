"""The stage in which a person reviews disagreements: on a page that opens anywhere, or in the FiftyOne App.

Knows the review mode and where its files lie in a run; not how pages or Apps work.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from diffugen.config.labelling import by_detector
from diffugen.config.sections import ReviewSettings
from diffugen.errors import Interrupted, counted, shell_command
from diffugen.records import Decision
from diffugen.run.results import Reviewed
from diffugen.run.rounds import OnProgress, Round, stage
from diffugen.run.store import RunStore

DECISIONS_FILE = "decisions.json"
LOOKS_PER_SECOND = 2


def review_folder(store: RunStore) -> Path:
    """Return the run's folder for the review page, the decisions file, and the App's database."""
    return store.folder / "review"


@stage("review", Reviewed, kept="The queue and what was decided in it are kept.")
def review(round: Round, on_progress: OnProgress, settings: ReviewSettings) -> Reviewed:
    """Show the review queue to a person and keep the decisions.

    Args:
        round: The round that decisions are made in.
        on_progress: Called with images decided and images in the queue.
        settings: ``static`` writes a page into the run's ``review`` folder and imports a decisions file found
            there; ``serve``, which needs ``wait``, serves that page here and stores each decision at once;
            ``fiftyone`` brings the queue into the FiftyOne App and imports its tags. With ``wait`` the
            stage ends when the decisions file is there, or when the App or the page is finished.

    Raises:
        DiffugenError: The decisions file has mistakes, or the App or its database cannot be started.
    """
    from diffugen.review.queue import count_queue

    images = count_queue(round.store).images
    on_progress(0, images)
    found: Sequence[Decision] = []
    if settings.mode == "static":
        found = _on_page(round, settings)
    elif settings.mode == "serve":
        found = _served(round, settings)
    elif settings.mode == "fiftyone":
        found = _in_app(round, settings)
    on_progress(images, images)
    return Reviewed(settings.mode, images, _counts(found))


def import_decisions(round: Round, file: Path, reviewer: str) -> Reviewed:
    """Keep the decisions of a file saved by the review page or by a person; see `diffugen.review.decisions`.

    Raises:
        DiffugenError: The file has mistakes; nothing is kept then.
    """
    from diffugen.review.decisions import read_decisions
    from diffugen.review.queue import count_queue

    found = read_decisions(round.store, file, reviewer=reviewer, round=round.number)
    round.store.add_decisions(found)
    return Reviewed("file", count_queue(round.store).images, _counts(found))


def _counts(decisions: Sequence[Decision]) -> dict[str, int]:
    return dict(Counter(one.verdict for one in decisions))


def _on_page(round: Round, settings: ReviewSettings) -> Sequence[Decision]:
    from diffugen.review.decisions import read_decisions
    from diffugen.review.static import decisions_name, write_static

    store, notify = round.store, round.run.notify
    folder = review_folder(store)
    page = write_static(store, folder, settings.reviewer)
    names = " or ".join(dict.fromkeys((decisions_name(store), DECISIONS_FILE)))
    if settings.wait and not _saved(store):
        notify(
            f"Review {page} and save its decisions in {folder} ({names}); the loop then continues. "
            "(Ctrl-C to stop here; run the same command to continue later.)"
        )
        while not _saved(store):
            time.sleep(1 / LOOKS_PER_SECOND)
    files = _saved(store)
    if not files:
        notify(
            f"To review: open {page} and save its decisions in {folder} ({names}); the next round imports "
            "them."
        )
    # All are read before anything is stored: with a mistake in one of them, nothing is imported.
    read = {
        file: read_decisions(store, file, reviewer=settings.reviewer, round=round.number) for file in files
    }
    found = [one for decisions in read.values() for one in decisions]
    store.add_decisions(found)  # before the files are put away: no decision may be lost in between
    for file in files:
        file.rename(_unused(folder / f"decisions-round-{round.number}.json"))
    return found


def _saved(store: RunStore) -> list[Path]:
    """Return the decisions files in the run's review folder: the page's, and one named as it used to be."""
    from diffugen.review.static import decisions_name

    names = dict.fromkeys((DECISIONS_FILE, decisions_name(store)))
    return [path for name in names if (path := review_folder(store) / name).is_file()]


def _served(round: Round, settings: ReviewSettings) -> Sequence[Decision]:
    from diffugen.review.serve import serve
    from diffugen.review.static import next_command

    store, notify = round.store, round.run.notify
    if not settings.wait:
        notify(f"To review: {shell_command('review', store.folder, '--serve')}")
        return []
    made = serve(store, reviewer=settings.reviewer, round=round.number, port=settings.port, notify=notify)
    said = f"{counted(made.decided, 'image')} decided in this review, all stored in the run"
    if not made.finished:
        raise Interrupted(f"{said}. To go on with the run: {next_command(store)}")
    notify(f"{said}.")
    return made.stored


def _unused(path: Path) -> Path:
    number = 2
    candidate = path
    while candidate.exists():
        candidate = path.with_stem(f"{path.stem}-{number}")
        number += 1
    return candidate


def _in_app(round: Round, settings: ReviewSettings) -> Sequence[Decision]:
    from diffugen.review.database import database, is_open
    from diffugen.review.session import Takeover, open_app, push
    from diffugen.review.static import next_command

    store, notify = round.store, round.run.notify
    with database(review_folder(store)) as uri:
        if is_open(uri):
            notify(
                f"The database {uri} asks for no password: whoever can connect to it can change the review."
            )
        dataset = push(store, settings.reviewer)
        take_over = Takeover(store, dataset, reviewer=settings.reviewer, round=round.number, notify=notify)
        # What an earlier session left goes first, so that the App begins with what is undecided.
        if take_over():
            dataset = push(store, settings.reviewer)
        if by_detector(store.latest_method("attention")):
            notify("labels.source is detector: what the App calls attention are that detector's labels.")
        if not settings.wait:
            command = shell_command("review", "--run", store.folder)
            notify(f"To review: {command}; the next round imports the tags.")
            return take_over.decisions

        def took_over_and_finished() -> bool:
            take_over(often=True)
            return take_over.was_finished()

        finished = open_app(dataset, port=settings.port, notify=notify, take_over=took_over_and_finished)
        take_over()  # tags that were set in the last moment
        images = len({one.image_id for one in take_over.decisions})
        said = f"{counted(images, 'image')} decided in this review, all stored in the run"
        if not finished:
            raise Interrupted(f"{said}. To go on with the run: {next_command(store)}")
        notify(f"{said}.")
        return take_over.decisions
