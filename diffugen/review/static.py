"""Review without FiftyOne: one HTML page that needs no network and no server, and its decisions file.

The page shows the queue with the labels of both sources side by side; a person decides with single keys and
saves ``decisions.json``, which `diffugen.review.decisions` reads.
Knows no FiftyOne.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from diffugen.config.labelling import by_detector
from diffugen.errors import DiffugenError, shell_command
from diffugen.labels.pictures import enlarged, label_overlay
from diffugen.records import Disagreement, LabelSet
from diffugen.review.queue import AUDIT, Entry, Queue, read_queue, run_name
from diffugen.run.files import write_file
from diffugen.run.store import RunStore

PAGE_NAME = "review.html"
PICTURE_HEIGHT = 240
AUDITED = "{labeller} and model agree; are both right?"
"""What the page says about an image on which the sources agree; see `_labeller`."""

MOST_IMAGES = 200
"""Maximum number of images on a page; each takes about 30 KB."""

VERDICTS = ("attention", "model", "empty", "reject")
"""Verdicts of a page; it cannot edit labels."""

MEANINGS = {
    "overlooked": "the model sees an object that {labeller} missed",
    "spurious": "{labeller} sees an object that the model does not",
    "swapped": "same place, different classes",
    "badly_located": "same class, but the masks hardly overlap",
}


def write_static(store: RunStore, folder: Path) -> Path:
    """Write the page of a run's review queue.

    Images are in the order of the queue, those already decided after the others, so that the next page of a
    long queue shows the rest.

    Args:
        store: The run.
        folder: Folder of the page; made if needed.

    Returns:
        The page.

    Raises:
        StoreError: An image cannot be read.
        DiffugenError: The page cannot be written.
    """
    queue = read_queue(store)
    ranks = {image_id: rank for rank, image_id in enumerate(queue.disagreements, start=1)}
    chosen = sorted(ranks, key=lambda image_id: image_id in queue.decisions)[:MOST_IMAGES]
    entries = [queue.entry(image_id) for image_id in chosen]
    classes = _classes(queue, entries)
    names = {"attention": _labeller(store), "model": "model"}
    content = {
        "run": run_name(store),
        "key": f"diffugen-review:{run_name(store)}:{store.summary().created_at}",
        "command": shell_command("review", "--run", store.folder, "--decisions", "decisions.json"),
        "queue": len(ranks),
        "names": names,
        "cards": [_card(store, entry, ranks[entry.record.id], classes, names) for entry in entries],
    }
    templates = Environment(
        loader=PackageLoader("diffugen.review"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    text = templates.get_template("review.html").render(content=content)
    page = Path(folder) / PAGE_NAME
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        write_file(page, text.encode())
    except OSError as error:
        raise DiffugenError(
            f"cannot write the review page {page}: {error.strerror or error}. Free some space, or choose "
            "another folder"
        ) from error
    return page


# -------------------------------------------------------------------- the page


def _labeller(store: RunStore) -> str:
    """Return what made the labels whose verdict is called ``attention``; a detector can have made them."""
    return "starting detector" if by_detector(store.latest_method("attention")) else "attention"


def _classes(queue: Queue, entries: Sequence[Entry]) -> list[str]:
    """Return the classes in the order of their colours: the configured ones first, the same on every page."""
    sets = [labels for entry in entries for labels in (entry.attention, entry.model) if labels is not None]
    seen = sorted({name for labels in sets for name in labels.instances.class_names})
    return list(dict.fromkeys([*(queue.class_names or ()), *seen]))


def _card(
    store: RunStore, entry: Entry, rank: int, classes: Sequence[str], names: Mapping[str, str]
) -> dict[str, Any]:
    rgb = store.image(entry.record.id)
    decision = entry.decision
    return {
        "id": entry.record.id,
        "rank": rank,
        "severity": None if entry.severity is None else round(entry.severity, 2),
        "prompt": entry.record.prompt.text,
        "points": [{"kind": one.kind, "text": _in_words(one, entry, names)} for one in entry.disagreements]
        or [{"kind": AUDIT, "text": AUDITED.format(labeller=names["attention"])}],
        "image": _data_uri(enlarged(rgb, PICTURE_HEIGHT)),
        "attention": _side(rgb, entry.attention, classes),
        "model": _side(rgb, entry.model, classes),
        "decided": decision and {"verdict": decision.verdict, "reviewer": decision.reviewer},
    }


def _side(rgb: NDArray[np.uint8], labels: LabelSet | None, classes: Sequence[str]) -> dict[str, Any] | None:
    if labels is None:
        return None
    picture = label_overlay(rgb, labels.instances, PICTURE_HEIGHT, classes)
    return {"picture": _data_uri(picture), "labels": len(labels.instances), "method": labels.method}


def _in_words(one: Disagreement, entry: Entry, names: Mapping[str, str]) -> str:
    """Return, e.g., ``attention piano 0.40, model car 0.80: same place, different classes``."""
    sides = [
        f"{names[labels.source]} {labels.instances.class_names[index]} {labels.instances.scores[index]:.2f}"
        for labels, index in ((entry.attention, one.attention), (entry.model, one.model))
        if labels is not None and index is not None and index < len(labels.instances)
    ]
    meaning = MEANINGS[one.kind].format(labeller=names["attention"])
    return f"{', '.join(sides)}: {meaning}" if sides else meaning


def _data_uri(rgb: NDArray[np.uint8]) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    # Without subsampling, which smears thin coloured outlines.
    Image.fromarray(rgb).save(buffer, format="JPEG", quality=85, subsampling=0, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
