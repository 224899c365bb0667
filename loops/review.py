"""A review session on a run that exists: relabel by its best detector, compare, look, learn from the
decisions.

    diffugen loops run review --run runs/pianos --review fiftyone --wait

Nothing is generated or trained; the next bootstrap or improve command trains on what was decided here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from diffugen.config.sections import Config
from diffugen.report.write import write_report
from diffugen.run.rounds import Watch, promoted
from diffugen.run.store import RunStore
from diffugen.stages.relabel import attention_method, compare_stage, relabel_stage
from diffugen.stages.review import review_stage


def main(
    config: Config,
    store: RunStore,
    *,
    rounds: int,
    review: Mapping[str, Any],
    watch: Watch,
    tell: Callable[[int], None],
) -> Path:
    """Hold the session; the arguments are those of bootstrap.py, of which ``rounds`` and ``tell`` are not
    needed.
    """
    last = max(store.summary()["rounds"], default=0)
    detector = promoted(store, last + 1, config.detector.checkpoint)
    with watch("relabel", "image") as on_progress:
        relabel_stage(
            store,
            detector,
            on_progress,
            device=config.detector.device,
            image_size=config.detector.image_size,
            confidence=config.detector.confidence,
            refine=config.labels.refine,
            round=last,
            class_names=list(config.prompts.classes),
            class_map=config.detector.class_map,
        )
    with watch("compare", "image") as on_progress:
        compare_stage(
            store,
            attention_method(store),
            on_progress,
            class_names=list(config.prompts.classes),
            **dict(config.disagreement),
        )
    review_stage(store, round=last, **review)
    return write_report(store)
