"""Review without FiftyOne: one HTML page that needs no network, and its decisions file.

The page shows the queue, an image at a time, with the labels of both sources side by side. A person decides
with single keys or object by object, and saves a file that `diffugen.review.decisions` reads; or
`diffugen.review.serve` serves the page and stores each decision at once. Knows no FiftyOne.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from diffugen.errors import DiffugenError, shell_command
from diffugen.review.cards import card, class_names, good_iou, labeller, pictures
from diffugen.review.queue import Queue, read_queue, run_name
from diffugen.run.files import write_file
from diffugen.run.store import RunStore

PAGE_NAME = "review.html"

MOST_IMAGES = 200
"""Maximum number of images on a page; each takes at most about 60 KB."""

SCRIPTS = ("content.js", "masks.js", "objects.js", "view.js", "page.js")
SELF, NONE = "'self'", "'none'"

Pictures = dict[str, dict[str, str | None]]
"""From an image id to its pictures, which are slow to make and never change."""


def decisions_name(store: RunStore) -> str:
    """Return the name under which the page saves its decisions, as browsers write it to a disk."""
    name = "".join(letter if letter.isalnum() or letter in " ._-" else "_" for letter in run_name(store))
    return f"{'_' if name.startswith('.') else ''}{name.lstrip('.')}-decisions.json"


def write_static(store: RunStore, folder: Path, reviewer: str = "reviewer") -> Path:
    """Write the page of a run's review queue.

    Images are in the order of the queue, those already decided after the others, so that the next page of a
    long queue shows the rest.

    Args:
        store: The run.
        folder: Folder of the page; made if needed.
        reviewer: Who decides, if the reviewer does not say.

    Returns:
        The page.

    Raises:
        StoreError: An image cannot be read.
        DiffugenError: The page cannot be written.
    """
    text = page_text(store, read_queue(store), reviewer, served=False)
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


def page_text(
    store: RunStore, queue: Queue, reviewer: str, *, served: bool, known: Pictures | None = None
) -> str:
    """Return the page of a queue as HTML.

    Args:
        store: The run.
        queue: Its queue.
        reviewer: Who decides, if the reviewer does not say.
        served: Whether the page sends decisions to the server it came from, rather than saving a file.
        known: Pictures made before; new ones are added.

    Raises:
        StoreError: An image cannot be read.
    """
    known = {} if known is None else known
    style = _template("review.css")
    script = "\n".join(map(_template, SCRIPTS))
    # Only these two may act on the page: hashes rule out whatever a name or a prompt might smuggle in.
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        f"connect-src {SELF if served else NONE}; "
        "base-uri 'none'; form-action 'none'"
    )
    templates = Environment(
        loader=PackageLoader("diffugen.review"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return templates.get_template("review.html").render(
        content=_content(store, queue, reviewer, served, known),
        policy=Markup(policy),
        style=Markup(style),
        script=Markup(script),
    )


def _template(name: str) -> str:
    return (files("diffugen.review") / "templates" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def next_command(store: RunStore) -> str:
    """Return what to run after a review: the loop of the run, or the stage that learns from decisions."""
    if store.loop not in ("bootstrap", "improve"):
        return shell_command("teach", "--run", store.folder)
    rounds = len(store.summary().rounds)
    return shell_command(store.loop, "--run", store.folder, "--rounds", rounds + 1)


def _content(store: RunStore, queue: Queue, reviewer: str, served: bool, known: Pictures) -> dict[str, Any]:
    ranks = {image_id: rank for rank, image_id in enumerate(queue.disagreements, start=1)}
    chosen = sorted(ranks, key=lambda image_id: image_id in queue.decisions)[:MOST_IMAGES]
    entries = [queue.entry(image_id) for image_id in chosen]
    names = {"attention": labeller(store), "model": "model"}
    iou = good_iou(store)
    for image_id in chosen:
        if image_id not in known:
            known[image_id] = pictures(store, image_id)
    file = decisions_name(store)
    return {
        "run": run_name(store),
        "key": f"diffugen-review:{run_name(store)}:{store.summary().created_at}",
        "served": served,
        "file": file,
        "command": shell_command("review", store.folder, "--decisions", file),
        "next": next_command(store),
        "queue": len(ranks),
        "undecided": sum(1 for image_id in ranks if image_id not in queue.decisions),
        "consensus": store.consensus,
        "reviewer": reviewer,
        "classes": class_names(queue, entries),
        "names": names,
        "cards": [
            card(entry, ranks[entry.record.id], names, iou) | known[entry.record.id] for entry in entries
        ],
    }
