"""Improve an existing detector, or train one from a dataset: generated images show it what it lacks.

    diffugen improve [CONFIG] --known DATASET [--checkpoint best.pt] [--rounds 3] [--review
    none|static|fiftyone]

The loop begins with the given checkpoint; if that knows none of the classes, it is first trained on the known
dataset alone. Every round, from the first on, labels its new images by attention and with the detector, and
trains on what both agree on, on what a person decided, and on the known dataset, so that nothing is
unlearned.

Only the order of work is here, as in bootstrap.py.
"""

from __future__ import annotations

from pathlib import Path

from diffugen import stages
from diffugen.config import Config
from diffugen.report import write_report
from diffugen.run import Run


def main(config: Config, run: Run) -> Path:
    """Run the loop and return the page of its report."""
    sets = stages.open_sets(run, config.dataset, config.loop)  # labelled images: known, validation, truth
    policy = config.training_policy
    first = stages.first_detector(run.round(0), sets.known, config.detector, config.dataset.val_frac)

    for round in run.rounds(at_most=config.loop.rounds, patience=config.loop.patience):
        detector = round.promoted_detector(default=first)
        labelling = round.tuned_labelling(default=config.labelling)  # label settings and score weights
        if sets.truth and round.number == 0:
            stages.evaluate_base(round, first, sets.truth, config.detector)

        stages.generate(round, config.generation, labelling)
        stages.teach(round, labelling, config.teach)
        labelling = round.taught_labelling(default=labelling)  # with a decoder, if that labels better
        if labelling.adaptive:
            stages.thresholds(round, labelling)
            labelling = round.adapted_labelling(default=labelling)  # with a threshold for each class
        method = stages.label(round, labelling).method
        stages.relabel(round, detector, config.detector)
        stages.compare(round, method, config.disagreement, config.review.order)
        stages.review(round, config.review)
        stages.tune(round, method, labelling, config.tune)

        sifted = stages.sift(round, method, policy, config.detector, sets.known)
        dataset = stages.choose(round, method, policy, sets.known, sifted.held_back)
        trained = stages.train(round, dataset, detector, config.detector)
        best = stages.promote(round, trained, detector, method, policy, config.detector, sets.validation)
        if sets.truth:
            stages.evaluate(round, best.checkpoint, sets.truth, config.detector)
    return write_report(run.store)
