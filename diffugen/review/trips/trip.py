"""A round trip: write the review queue for a tool, and read as decisions what the tool exports.

Which labels were written for which image is kept beside the run (`SENT`), so that an image that nobody has
touched in the tool stays undecided, whatever happened to the run's labels in between.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from diffugen.config.foreign import as_path, parse_json, read_text
from diffugen.dataset.files import whole_folder, writing
from diffugen.errors import DiffugenError, brief, did_you_mean
from diffugen.records import Decision
from diffugen.review.decisions import is_news, nothing_imported
from diffugen.review.judged import Unclear
from diffugen.review.queue import Queue, read_queue, run_name
from diffugen.review.trips import cvat, labelme, labelstudio
from diffugen.review.trips.answers import decided
from diffugen.review.trips.labels import Answer, Package, Sent, SizeOf, outcome, written_labels
from diffugen.run.files import write_file
from diffugen.run.store import RunStore

TOOLS: Mapping[str, ModuleType] = {"cvat": cvat, "labelstudio": labelstudio, "labelme": labelme}
"""The tools by name. Each has ``write(folder, package)``, ``read(path, size_of)``, and ``NEXT``: what to do
there, with a place for the ``{folder}``."""

SENT = "sent.json"
"""Beside the run's review page: from an image id to what was written for it, each time."""


@dataclass(frozen=True)
class Brought:
    """What a tool's export says.

    Attributes:
        decisions: Decisions that are new or differ from the run's.
        untouched: Images that were left as they were written, and not marked as reviewed.
        known: Decisions that the run has already.
    """

    decisions: tuple[Decision, ...]
    untouched: int
    known: int


def check_tool(tool: str) -> None:
    """Check the name of a tool.

    Raises:
        DiffugenError: It is unknown.
    """
    if tool not in TOOLS:
        hint = did_you_mean(tool, TOOLS)
        raise DiffugenError(f"unknown tool {brief(tool)}{hint}; expected cvat, labelstudio or labelme")


def write_trip(store: RunStore, tool: str, folder: Path, kept: Path) -> int:
    """Write the undecided images of the review queue for a tool, worst first.

    Args:
        store: The run.
        tool: ``cvat``, ``labelstudio`` or ``labelme``.
        folder: The folder to write, new or empty; appears complete or not at all.
        kept: The run's folder for reviews, where `SENT` is kept.

    Returns:
        The number of images.

    Raises:
        DiffugenError: The tool is unknown, the folder is in use, or no image waits for a decision.
        StoreError: The run cannot be read, or a folder cannot be written.
    """
    check_tool(tool)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise DiffugenError(
            f"{folder} is in use, perhaps by annotations that were not imported yet; give a new folder with "
            "--folder, or remove it"
        )
    queue = read_queue(store)
    waiting = queue.waiting
    if not waiting:
        raise DiffugenError("no image of the review queue waits for a decision; nothing was written")
    sent = _read_sent(kept)
    for image_id in waiting:
        made = outcome(written_labels(queue.entry(image_id)))
        sent[image_id] = list(dict.fromkeys([*sent.get(image_id, []), made]))
    with whole_folder(folder) as partial:
        TOOLS[tool].write(
            partial, Package(run_name(store), _classes(queue, waiting), _images(queue, waiting))
        )
        # First: an image that a tool has must never be taken for one that a person changed.
        with writing(kept / SENT):
            kept.mkdir(parents=True, exist_ok=True)
            write_file(kept / SENT, (json.dumps(sent, indent=1) + "\n").encode())
    return len(waiting)


def _images(queue: Queue, image_ids: list[str]) -> Iterator[Sent]:
    for image_id in image_ids:
        entry = queue.entry(image_id)
        yield Sent(image_id, queue.store.image(image_id), entry.record.prompt.text, written_labels(entry))


def _classes(queue: Queue, image_ids: list[str]) -> list[str]:
    """Return the configured classes, then others that labels have."""
    entries = map(queue.entry, image_ids)
    seen = {one.class_name for entry in entries for one in written_labels(entry)}
    return list(dict.fromkeys([*(queue.class_names or ()), *sorted(seen)]))


def _read_sent(kept: Path) -> dict[str, list[str]]:
    file = kept / SENT
    try:
        content = parse_json(read_text(file, 1 << 30))
        return {str(image_id): [str(one) for one in made] for image_id, made in content.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DiffugenError(
            f"cannot read {file} ({error}), which says what was written for annotation tools; remove it if "
            "nothing is left to bring back"
        ) from error


# -------------------------------------------------------------------- back


def read_trip(store: RunStore, path: Path, kept: Path, *, reviewer: str, round: int) -> Brought:
    """Read what a tool exports after a person has worked on it.

    Args:
        store: The run.
        path: CVAT's XML or zip file, Label Studio's JSON file, or labelme's folder or JSON file.
        kept: The run's folder for reviews, where `SENT` is kept.
        reviewer: Who decided. If several people annotated a file, each has the name that the tool gives.
        round: The round in which it was decided.

    Raises:
        DiffugenError: The file has mistakes; the message lists all of them.
        StoreError: The run cannot be read.
    """
    path = as_path(path, "the annotations")
    queue, sent = read_queue(store), _read_sent(kept)
    mistakes: list[str] = []
    answers = _answers(path, _sizes(store), mistakes)
    people = {one.annotator for one in answers}
    _check_once(answers, mistakes)
    found, untouched = [], 0
    for answer in answers:
        name = answer.annotator if len(people) > 1 and answer.annotator else reviewer
        try:
            one = decided(queue, answer, sent.get(answer.image_id, ()), name, round)
        except Unclear as mistake:
            named = "" if answer.image_id in str(mistake) else f"image {answer.image_id}: "
            mistakes.append(f"{named}{mistake}")
            continue
        untouched += one is None
        found += [] if one is None else [one]
    if mistakes:
        raise DiffugenError(nothing_imported(path, mistakes))
    news = tuple(one for one in found if is_news(queue, one))
    return Brought(news, untouched, len(found) - len(news))


def _sizes(store: RunStore) -> SizeOf:
    def size_of(image_id: str) -> tuple[int, int]:
        if not store.knows_image(image_id):
            raise Unclear(f"the run has no image {brief(image_id)}")
        return store.record(image_id).size_wh

    return size_of


def _answers(path: Path, size_of: SizeOf, mistakes: list[str]) -> list[Answer]:
    found = []
    try:
        for read in _tool_of(path).read(path, size_of):
            try:
                found.append(read())
            except (Unclear, ValueError) as mistake:
                mistakes.append(str(mistake))
    except OSError as error:
        raise DiffugenError(
            f"cannot read {path}: {error.strerror or error}. Give the file that the tool exported, "
            "or labelme's folder"
        ) from error
    except ValueError as error:
        raise DiffugenError(nothing_imported(path, [str(error)])) from error
    return [one for one in found if one is not None]


def _tool_of(path: Path) -> ModuleType:
    suffix = path.suffix.lower()
    if path.is_dir():
        return labelme
    if suffix in (".xml", ".zip"):
        return cvat
    if suffix != ".json":
        raise ValueError(
            "it is no export that can be read; give CVAT's .xml or .zip, Label Studio's .json, or labelme's "
            "folder"
        )
    return labelme if read_text(path, 1 << 30).lstrip().startswith("{") else labelstudio


def _check_once(answers: list[Answer], mistakes: list[str]) -> None:
    seen = set[tuple[str, str]]()
    for one in answers:
        if (one.image_id, one.annotator) in seen:
            mistakes.append(f"image {one.image_id} is there twice; keep one")
        seen.add((one.image_id, one.annotator))
