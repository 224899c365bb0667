"""Labelled images from outside the run: further training images, promotion evidence, quoted truth."""

from __future__ import annotations

from dataclasses import dataclass

from diffugen.config.sections import DatasetSettings, LoopSettings
from diffugen.dataset.truth import Truth
from diffugen.miniature.truth import exact_labels, find_truth
from diffugen.run.rounds import Run


@dataclass(frozen=True)
class LabelledSets:
    """The labelled sets of a configuration, opened; None for those that it does not name.

    Attributes:
        known: Further images to train on.
        validation: Images that decide which detector is better.
        truth: Ground truth that is quoted and decides nothing.
        truth_name: What the configuration calls the ground truth.
        class_names: The run's classes.
    """

    known: Truth | None
    validation: Truth | None
    truth: Truth | None
    truth_name: str | None
    class_names: tuple[str, ...]

    def exact_labels(self, count: int) -> Truth | None:
        """Return exactly labelled images like those of the truth; None unless the miniature draws them."""
        return exact_labels(self.truth_name, self.class_names, count)


def open_sets(run: Run, dataset: DatasetSettings, loop: LoopSettings) -> LabelledSets:
    """Open the labelled sets of a configuration, so that a mistake in one is found before anything is made.

    Raises:
        DiffugenError: A set is missing, damaged, or labels none of the classes.
    """
    names = run.class_names
    return LabelledSets(
        known=find_truth(dataset.known, names),
        validation=find_truth(loop.validation, names),
        truth=find_truth(loop.truth, names),
        truth_name=loop.truth,
        class_names=names,
    )
