"""A detector for a rare class from prompts alone: generate, label, train, relabel, compare, review, tune.

    diffugen bootstrap [CONFIG] [--rounds 3] [--review none|static|fiftyone]

Round 0 labels by attention and trains. Every later round also labels its new images with the detector, and
trains on what both agree on and on what a person decided. A new detector replaces the one before if it is
better on held-out evidence that a user has; the truth that the report quotes decides nothing.

Only the order of work is here. Copy this file (diffugen loops copy bootstrap mine.py), change the order, and
run it: diffugen loops run mine.py. A stage that is done is not done again, so an interrupted loop continues
where it stopped.
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

    for round in run.rounds(at_most=config.loop.rounds, patience=config.loop.patience):
        detector = round.promoted_detector(default=config.detector.checkpoint)
        labelling = round.tuned_labelling(default=config.labelling)  # label settings and score weights

        stages.generate(round, config.generation, labelling)
        stages.teach(round, labelling, config.teach)
        labelling = round.taught_labelling(default=labelling)  # with a decoder, if that labels better
        if labelling.adaptive:
            stages.thresholds(round, labelling)
            labelling = round.adapted_labelling(default=labelling)  # with a threshold for each class
        method = stages.label(round, labelling).method

        if round.number > 0:
            stages.relabel(round, detector, config.detector)
            stages.compare(round, method, config.disagreement, config.review.order)
            stages.review(round, config.review)
            stages.tune(round, method, labelling, config.tune)

        sifted = stages.sift(round, method, policy, config.detector, sets.known)
        dataset = stages.choose(round, method, policy, sets.known, sifted.held_back)
        trained = stages.train(round, dataset, detector, config.detector)
        best = stages.promote(round, trained, detector, method, policy, config.detector, sets.validation)

        if sets.truth and round.number == 0:
            stages.evaluate_base(round, config.detector.checkpoint, sets.truth, config.detector)
        if sets.truth:
            stages.evaluate(round, best.checkpoint, sets.truth, config.detector)

    exact = sets.exact_labels(dataset.train)
    if sets.truth and exact and config.loop.reference:
        stages.evaluate_reference(round, exact, sets.truth, config.detector)
    return write_report(run.store)
