"""Write the report of a run: how good the detector is now, what each round gained, and what to review next.

Reads the store and nothing else: no model, no network, no truth set. Its parts have files of their own: what
the ledger says (`facts`), one pass over every image (`survey`), the labels compared (`quality`), pictures
(`gallery`), the sections (`outcome`, `rounds`, `labels`, `disagreements`, `reviewers`, `appendix`) and the
two forms (`html`, `markdown`). The same state of a run gives the same bytes.
"""

from __future__ import annotations

from pathlib import Path

from diffugen.errors import counted
from diffugen.report import appendix, arcs, disagreements, labels, measured, outcome, reviewers, rounds
from diffugen.report.blocks import Block, Missing, Page, Paragraph, Section
from diffugen.report.facts import RunFacts, gather_facts
from diffugen.report.gallery import make_galleries
from diffugen.report.html import to_html
from diffugen.report.markdown import to_markdown
from diffugen.report.quality import Quality, measure_quality
from diffugen.report.survey import Survey, survey_run
from diffugen.review.queue import Queue, read_queue
from diffugen.run.files import write_file
from diffugen.run.ledger import explained
from diffugen.run.rounds import OnProgress, unseen
from diffugen.run.store import RunStore

FOLDER_NAME = "report"
PAGE_NAME = "index.html"
MARKDOWN_NAME = "report.md"


def write_report(store: RunStore, *, on_progress: OnProgress = unseen) -> Path:
    """Write the report of a run in its current state; for missing parts it names the command that adds them.

    Args:
        store: The run; open for reading is enough.
        on_progress: Called with images done and images to do: first those compared, then those drawn.

    Returns:
        ``<run>/report/index.html``, a self-contained page, with ``report.md`` beside it, which has the same
        numbers, and its pictures. A file is replaced as a whole, so nobody ever reads half a page.

    Raises:
        StoreError: The run cannot be read, or the folder cannot be written.
    """
    facts = gather_facts(store)
    queue = read_queue(store)
    survey = survey_run(store, facts, queue)
    quality = measure_quality(store, facts, survey, on_progress)
    sections = (
        outcome.headline(facts, survey),
        rounds.rounds(facts),
        arcs.arcs(facts, survey),
        measured.measured(facts),
        labels.labels(facts, quality),
        disagreements.disagreements(store, facts, survey, queue),
        reviewers.reviewers(facts, queue),
        _pictures(store, facts, survey, queue, quality, on_progress),
        appendix.coverage(facts, survey),
        appendix.times(facts),
        appendix.reproduce(facts),
    )
    page = Page(
        f"DiffuGen report: {store.folder.resolve().name}",
        (_subtitle(facts),),
        tuple(one for one in sections if one.blocks),
    )
    return _write(store.folder / FOLDER_NAME, page)


def _subtitle(facts: RunFacts) -> str:
    images, rounds = counted(facts.summary.images, "image"), counted(len(facts.rounds), "round")
    if facts.last_activity is None:
        return f"{images}, {rounds}; nothing has been done yet"
    return f"{images}, {rounds}; last activity {facts.last_activity}"


def _pictures(
    store: RunStore, facts: RunFacts, survey: Survey, queue: Queue, quality: Quality, on_progress: OnProgress
) -> Section:
    galleries, left_out = make_galleries(store, facts, survey, queue, quality, on_progress)
    blocks: list[Block] = [*galleries]
    if not galleries:
        command = facts.command("label" if facts.summary.images else "generate")
        blocks.append(Missing("No labels to show", (command,)))
    elif not survey.overall.relabelled:
        text = "There are no model labels yet, so only the score decides which images are best and worst."
        blocks.insert(0, Paragraph((text,), tone="note"))
    if left_out:
        text = f"{counted(left_out, 'image')} left out to keep this page small."
        blocks.append(Paragraph((text,), tone="note"))
    return Section("gallery", "Images with their labels", tuple(blocks))


def _write(folder: Path, page: Page) -> Path:
    text, pictures = to_markdown(page)
    with explained(folder.parent):
        folder.mkdir(exist_ok=True)
        for name, png in pictures.items():
            if not (folder / name).is_file():  # its name is a hash of its content
                write_file(folder / name, png)
        write_file(folder / MARKDOWN_NAME, text.encode())
        write_file(folder / PAGE_NAME, to_html(page).encode())
        for old in folder.glob("picture-*.png"):
            if old.name not in pictures:
                old.unlink(missing_ok=True)
    return folder / PAGE_NAME
