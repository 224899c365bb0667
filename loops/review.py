"""A review session on an existing run: relabel with its best detector, compare, review, report.

    diffugen loops run review --run runs/pianos --review fiftyone --wait

Nothing is generated or trained; the next bootstrap or improve command trains on what was decided here.
"""

from __future__ import annotations

from pathlib import Path

from diffugen import stages
from diffugen.config import Config
from diffugen.report import write_report
from diffugen.run import Run


def main(config: Config, run: Run) -> Path:
    """Hold the session and return the page of the run's report."""
    session = run.newest_round(redo=True, keep=False)
    detector = session.latest_detector(default=config.detector.checkpoint)

    stages.relabel(session, detector, config.detector)
    stages.compare(session, stages.newest_method(run.store), config.disagreement, config.review.order)
    stages.review(session, config.review)
    return write_report(run.store)
