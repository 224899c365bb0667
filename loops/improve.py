"""A better detector from one that exists, or from a dataset that exists: generated images show it what it
lacks.

    diffugen improve [CONFIG] --known DATASET [--checkpoint best.pt] [--rounds 3] [--review
    none|static|fiftyone]

The detector that the loop begins with is the given checkpoint; if that knows none of the classes, it is first
trained on the known dataset alone. Every round, from the first on, labels its new images by attention and by
the detector, and trains on what both agree on, on what a person decided, and on the known dataset, so that
nothing is unlearned.

Only the order of work is here, as in bootstrap.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from diffugen.config.sections import Config
from diffugen.errors import DiffugenError
from diffugen.miniature.truth import find_truth
from diffugen.report.write import write_report
from diffugen.run.rounds import Watch, files_missing, promoted, round_seed, rounds_without_gain, run_stage
from diffugen.run.store import RunStore
from diffugen.stages.evaluate import evaluate_stage, promote_stage
from diffugen.stages.generate import generate_stage
from diffugen.stages.label import label_settings, label_stage
from diffugen.stages.relabel import compare_stage, knows_any, relabel_stage, tune_stage
from diffugen.stages.review import review_stage
from diffugen.stages.train import dataset_stage, known_stage, train_stage


def main(
    config: Config,
    store: RunStore,
    *,
    rounds: int,
    review: Mapping[str, Any],
    watch: Watch,
    tell: Callable[[int], None],
) -> Path:
    """Run the loop; the arguments are those of bootstrap.py."""
    classes, seed = list(config.prompts.classes), config.seed
    fit, agree, policy = dict(config.detector), dict(config.disagreement), dict(config.dataset)
    base, confidence, known_at = fit.pop("checkpoint"), fit.pop("confidence"), policy.pop("known")
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
    known = find_truth(known_at, classes)

    if not knows_any(store, base, classes, fit["device"], names["class_map"]):
        if not known:
            raise DiffugenError(
                f"the detector {base} knows none of the classes {', '.join(classes)}, and there is no "
                "dataset to teach it: give "
                "--known (a YOLO-seg folder or a COCO .json), another --checkpoint, or begin with diffugen "
                "bootstrap"
            )
        stage = partial(run_stage, store, 0, watch=watch)
        made = stage(
            "known",
            partial(known_stage, store, known, class_names=classes, val_frac=policy["val_frac"], seed=seed),
        )
        taught = stage(
            "train-known", partial(train_stage, store, made["folder"], base, **fit, seed=seed, name="known")
        )
        base = taught["checkpoint"]

    for round in range(rounds):
        stage = partial(run_stage, store, round, watch=watch)
        now = round_seed(seed, round)
        detector = promoted(store, round, base)
        if truth and round == 0:
            stage("evaluate-base", partial(evaluate_stage, base, truth, store=store, **look))

        labels, weights = label_settings(store, round, dict(config.labels), dict(config.score))
        stage(
            "generate",
            partial(
                generate_stage, store, **generation, labels=labels, weights=weights, seed=now, round=round
            ),
            again=files_missing(store, round),
        )
        method = stage("label", partial(label_stage, store, labels, weights, round=round))["method"]
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
                tune_stage, store, method, labels, weights, class_names=classes, seed=now, **dict(config.tune)
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
                known=known,
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
        if truth:
            stage("evaluate", partial(evaluate_stage, best["checkpoint"], truth, store=store, **look))
        tell(round)
        if rounds_without_gain(store, round) >= config.loop.patience:
            break
    return write_report(store)
