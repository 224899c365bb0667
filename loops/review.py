"""A review session on a run that exists: relabel by its best detector, compare, look, learn from the decisions.

    diffugen loops run review --run runs/pianos --review fiftyone --wait

Nothing is generated or trained; the next bootstrap or improve command trains on what was decided here.
"""

from __future__ import annotations

from diffugen.report import write_report
from diffugen.stages_labels import attention_method, compare_stage, relabel_stage
from diffugen.stages_review import review_stage
from diffugen.stages_training import promoted


def main(config, store, *, rounds, review, watch, tell):
    """Hold the session; the arguments are those of bootstrap.py, of which ``rounds`` and ``tell`` are not needed."""
    last = max(store.summary()["rounds"], default=0)
    detector = promoted(store, last + 1, config.detector.checkpoint)
    with watch("relabel", "image") as on_progress:
        relabel_stage(
            store, detector, on_progress, device=config.detector.device, image_size=config.detector.image_size,
            confidence=config.detector.confidence, refine=config.labels.refine, round=last,
        )  # fmt: skip
    with watch("compare", "image") as on_progress:
        compare_stage(
            store, attention_method(store), on_progress, class_names=list(config.prompts.classes), **dict(config.disagreement)
        )
    review_stage(store, round=last, **review)
    return write_report(store)
