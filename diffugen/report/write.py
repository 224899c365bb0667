"""The report of a run: one page that says whether the detector is good now, what each round gained, and what
to look at next.

Reads the store and nothing else: no model, no network, no truth. Its parts have files of their own: what the
ledger says (`report_facts`), one look at every image (`report_survey`), the labels compared
(`report_quality`), pictures (`report_gallery`), the sections (`report_outcome`, `report_trust`,
`report_queue`, `report_run`) and the two forms (`report_html`, `report_markdown`). The same state of a run
gives the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from diffugen.errors import DiffugenError
from diffugen.report import (
    appendix as report_run,
)
from diffugen.report import (
    disagreements as report_queue,
)
from diffugen.report import (
    labels as report_trust,
)
from diffugen.report import (
    outcome as report_outcome,
)
from diffugen.report.blocks import Block, Code, Missing, Page, Paragraph, Section, counted
from diffugen.report.facts import RunFacts, gather_facts
from diffugen.report.gallery import make_galleries
from diffugen.report.html import to_html
from diffugen.report.markdown import to_markdown
from diffugen.report.quality import Quality, measure_quality
from diffugen.report.survey import Survey, survey_run
from diffugen.run.files import write_file
from diffugen.run.ledger import explained
from diffugen.run.store import RunStore

FOLDER_NAME = "report"
PAGE_NAME = "index.html"
MARKDOWN_NAME = "report.md"

OnProgress = Callable[[int, int], None]


def write_report(
    store: RunStore, *, gallery: int = 8, on_progress: OnProgress = lambda done, total: None
) -> Path:
    """Write the report of a run as far as the run has come; what is missing is named with the command that
    makes it.

    Args:
        store: The run; open for reading is enough.
        gallery: Images in each group of the gallery (flagged, worst, best) at most; 0 for none.
        on_progress: Called with images done and images to do: those compared, then those drawn.

    Returns:
        ``<run>/report/index.html``, a self-contained page. Beside it lies ``report.md`` with the same numbers
        and its pictures. A reader sees the old page or the new one, never a half.

    Raises:
        DiffugenError: ``gallery`` is negative.
        StoreError: The run cannot be read or the folder not written.
    """
    if gallery < 0:
        raise DiffugenError(f"a report cannot show {gallery} images of each group; give 0 or more")
    facts = gather_facts(store)
    survey = survey_run(store, facts)
    quality = measure_quality(store, facts, survey, on_progress)
    page = Page(
        f"DiffuGen report: {store.folder.resolve().name}",
        _subtitle(facts),
        (
            report_outcome.headline(facts, survey),
            report_outcome.rounds(facts),
            report_trust.labels(facts, quality),
            report_queue.disagreements(store, facts, survey),
            _pictures(store, facts, survey, quality, gallery, on_progress),
            report_run.coverage(facts, survey),
            report_run.times(facts),
            report_run.reproduce(facts),
        ),
    )
    return _write(store.folder / FOLDER_NAME, page)


def _subtitle(facts: RunFacts) -> tuple[str, ...]:
    rounds = counted(len(facts.rounds), "round")
    return (
        f"{counted(facts.summary['images'], 'image')}, {rounds}; state of the run of "
        f"{facts.last_activity or 'its beginning'}",
    )


def _pictures(
    store: RunStore, facts: RunFacts, survey: Survey, quality: Quality, count: int, on_progress: OnProgress
) -> Section:
    galleries, left_out = make_galleries(store, facts, survey, quality, count, on_progress)
    blocks: list[Block] = [*galleries]
    if not galleries:
        made = facts.command("label" if facts.summary["images"] else "generate")
        blocks.append(
            Paragraph(("Not asked for.",))
            if survey.notes and not count
            else Missing("No labels to show", made)
        )
    elif not survey.overall.relabelled:
        text = "There are no model labels yet, so best and worst go by the score alone. They come with "
        blocks.insert(0, Paragraph((text, Code(facts.command("loop")), "."), tone="note"))
    if left_out:
        blocks.append(
            Paragraph((f"{counted(left_out, 'image')} left out to keep this page small.",), tone="note")
        )
    return Section("gallery", "Images with their labels", tuple(blocks))


def _write(folder: Path, page: Page) -> Path:
    text, pictures = to_markdown(page)
    with explained(folder.parent):
        folder.mkdir(exist_ok=True)
        for name, png in pictures.items():
            if not (folder / name).is_file():  # a name stands for its content
                _write_whole(folder / name, png)
        _write_whole(folder / MARKDOWN_NAME, text.encode())
        _write_whole(folder / PAGE_NAME, to_html(page).encode())
        for old in folder.glob("picture-*.png"):
            if old.name not in pictures:
                old.unlink(missing_ok=True)
    return folder / PAGE_NAME


def _write_whole(path: Path, data: bytes) -> None:
    # Reports need no lock, so two may be written at once: each under a temporary name of its own.
    own = path.with_name(f".{path.name}.{os.getpid()}")
    write_file(own, data)
    own.replace(path)
