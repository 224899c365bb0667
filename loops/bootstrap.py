"""A detector for a rare class from prompts alone: generate, label, train, relabel, compare, review, tune,
repeat.

    diffugen bootstrap [CONFIG] [--rounds 3] [--review none|static|fiftyone]

Round 0 labels by attention and trains. Every later round labels its new images by the detector as well, and
trains on what both agree on and on what a person decided. A new detector takes the place of the one before if
it is better on held-out evidence that a user has; the truth that the report quotes decides nothing.

Only the order of work is here. Copy this file (diffugen loops copy bootstrap mine.py), change the order, and
run it: diffugen loops run mine.py. A stage that is done is not done again, so an interrupted loop goes on
where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from diffugen.config.sections import Config
from diffugen.miniature.truth import exact_labels, find_truth
from diffugen.report.write import write_report
from diffugen.run.rounds import Watch, files_missing, promoted, round_seed, rounds_without_gain, run_stage
from diffugen.run.store import RunStore
from diffugen.stages.evaluate import (
    epochs_of_the_same_length,
    evaluate_stage,
    promote_stage,
    reference_stage,
)
from diffugen.stages.generate import generate_stage
from diffugen.stages.label import label_settings, label_stage
from diffugen.stages.relabel import compare_stage, relabel_stage, tune_stage
from diffugen.stages.review import review_stage
from diffugen.stages.train import dataset_stage, train_stage


def main(
    config: Config,
    store: RunStore,
    *,
    rounds: int,
    review: Mapping[str, Any],
    watch: Watch,
    tell: Callable[[int], None],
) -> Path:
    """Run the loop.

    Args:
        config: The run's `diffugen.config.sections.Config`.
        store: The run, open for writing.
        rounds: At most so many rounds.
        review: How a person looks at disagreements: arguments of `diffugen.stages.review.review_stage`.
        watch: Shows the progress of a stage.
        tell: Called with the number of each round that is finished.

    Returns:
        The report's page.
    """
    classes, seed = list(config.prompts.classes), config.seed
    fit, agree, policy = dict(config.detector), dict(config.disagreement), dict(config.dataset)
    base, confidence, known = fit.pop("checkpoint"), fit.pop("confidence"), policy.pop("known")
    names = {"class_names": classes, "class_map": fit.pop("class_map")}
    trusted = {name: policy[name] for name in ("trust", "min_score", "val_frac")}
    look = {name: fit[name] for name in ("device", "image_size")}
    generation = {
        "prompts": dict(config.prompts),
        "tasks": config.dump()["tasks"],
        "detector_device": look["device"],
        "images_per_prompt": config.loop.images_per_prompt,
        **dict(config.diffusion),
    }
    truth = find_truth(config.loop.truth, classes)
    validation = find_truth(config.loop.validation, classes)
    known_images = find_truth(known, classes)

    for round in range(rounds):
        stage = partial(run_stage, store, round, watch=watch)
        now = round_seed(seed, round)
        detector = promoted(store, round, base)

        labels, weights = label_settings(store, round, dict(config.labels), dict(config.score))
        stage(
            "generate",
            partial(
                generate_stage, store, **generation, labels=labels, weights=weights, seed=now, round=round
            ),
            again=files_missing(store, round),
        )
        method = stage("label", partial(label_stage, store, labels, weights, round=round))["method"]

        if round > 0:
            stage(
                "relabel",
                partial(
                    relabel_stage,
                    store,
                    detector,
                    **look,
                    confidence=confidence,
                    **names,
                    refine=config.labels.refine,
                    round=round,
                ),
            )
            stage("compare", partial(compare_stage, store, method, class_names=classes, **agree))
            stage("review", partial(review_stage, store, round=round, **review))
            stage(
                "tune",
                partial(
                    tune_stage,
                    store,
                    method,
                    labels,
                    weights,
                    class_names=classes,
                    seed=now,
                    **dict(config.tune),
                ),
            )

        made = stage(
            "dataset",
            partial(
                dataset_stage,
                store,
                method,
                class_names=classes,
                **policy,
                **agree,
                seed=seed,
                round=round,
                known=known_images,
            ),
        )
        trained = stage(
            "train",
            partial(train_stage, store, made["folder"], detector, **fit, seed=now, name=f"round-{round}"),
        )
        best = stage(
            "promote",
            partial(
                promote_stage,
                store,
                trained["checkpoint"],
                detector,
                method,
                **look,
                **agree,
                **trusted,
                validation=validation,
                class_names=classes,
                seed=seed,
            ),
        )
        if truth and round == 0:
            stage("evaluate-base", partial(evaluate_stage, base, truth, store=store, **look))
        if truth:
            stage("evaluate", partial(evaluate_stage, best["checkpoint"], truth, store=store, **look))
        tell(round)
        if rounds_without_gain(store, round) >= config.loop.patience:
            break

    exact = exact_labels(config.loop.truth, classes, made["train"])
    if truth and exact and config.loop.reference:
        fit["epochs"] = epochs_of_the_same_length(store, round)
        stage(
            "evaluate-reference",
            partial(reference_stage, store, exact, truth, base, **fit, seed=seed, round=round),
        )
    return write_report(store)
