"""Send the review queue to an annotation tool, and take in what comes back.

Knows where a run keeps its review; `diffugen.review.trips` knows the tools.
"""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path

from diffugen.errors import counted, shell_command
from diffugen.run.results import Reviewed
from diffugen.run.rounds import Round
from diffugen.stages.review import review_folder


def send_queue(round: Round, tool: str, folder: Path | None = None) -> int:
    """Write the undecided images of the review queue for an annotation tool, worst first.

    Args:
        round: The round that decisions are made in.
        tool: ``cvat``, ``labelstudio`` or ``labelme``.
        folder: The folder to write, new or empty; None for one of the tool's name in the run's ``review``
            folder.

    Returns:
        The number of images.

    Raises:
        DiffugenError: The tool is unknown, no image waits, or the folder cannot be written.
    """
    from diffugen.review.trips.trip import TOOLS, write_trip

    kept = review_folder(round.store)
    folder = kept / tool if folder is None else folder
    images = write_trip(round.store, tool, folder, kept)
    round.run.notify(f"{counted(images, 'image')} of the review queue written to {folder}")
    round.run.notify(TOOLS[tool].NEXT.format(folder=shlex.quote(str(folder))))
    where = folder if tool == "labelme" else "EXPORTED_FILE"
    command = shell_command("review", "--run", round.store.folder, "--in", where)
    round.run.notify(f"Then import what it saved: {command}")
    return images


def import_annotations(round: Round, path: Path, reviewer: str) -> Reviewed:
    """Keep as decisions what an annotation tool exported.

    Raises:
        DiffugenError: The file has mistakes; nothing is kept then.
    """
    from diffugen.review.queue import count_queue
    from diffugen.review.trips.labels import REVIEWED
    from diffugen.review.trips.trip import read_trip

    store = round.store
    found = read_trip(store, path, review_folder(store), reviewer=reviewer, round=round.number)
    store.add_decisions(found.decisions)
    if found.untouched:
        round.run.notify(
            f"{counted(found.untouched, 'image')} left as written and not marked as {REVIEWED}: undecided"
        )
    counts = dict(Counter(one.verdict for one in found.decisions))
    return Reviewed("file", count_queue(store).images, counts)
