"""A simulated person who reviews images: the oracle's masks decide, as a careful reviewer's eyes would."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffugen.comparison.matching import match
from diffugen.miniature import oracle
from diffugen.records import Decision, ImageRecord, Instances

GOOD_IOU = 0.75
"""From this IoU on, the person takes a label as it is; below, it is corrected."""


class Reviewer:
    """Decides about images by the oracle's class maps.

    Args:
        model: From `diffugen.miniature.oracle.load_oracle`.
        class_names: Classes that count.
    """

    def __init__(self, model: Any, class_names: Sequence[str]) -> None:
        self._model, self._class_names = model, class_names

    def truth(self, rgb: NDArray[np.uint8]) -> tuple[NDArray[np.int64], Instances]:
        """Return the class map of an image, and its objects."""
        labels = oracle.segment(self._model, [rgb])[0]
        return labels, oracle.oracle_instances(labels, self._class_names)

    def decide(
        self, record: ImageRecord, rgb: NDArray[np.uint8], attention: Instances, model: Instances, round: int
    ) -> Decision:
        """Return the decision: one side's labels if all are right, or corrected ones; hybrids are rejected.

        A hybrid lacks an object that its prompt names: it became part of another one.
        """
        labels, truth = self.truth(rgb)
        named = {phrase.class_name for phrase in record.prompt.phrases if phrase.class_name}
        if not all(oracle.found(labels, name) for name in named):
            return Decision(record.id, "reject", None, "simulated", round)
        for verdict, given in (("attention", attention), ("model", model)):
            if _right(given, truth):
                return Decision(record.id, verdict, given, "simulated", round)
        if not len(truth):
            return Decision(record.id, "empty", truth, "simulated", round)
        return Decision(record.id, "edited", truth, "simulated", round)


def _right(given: Instances, truth: Instances) -> bool:
    pairs = match(given, truth, min_iou=GOOD_IOU, min_iou_swapped=None)
    return all(pair.first is not None and pair.second is not None for pair in pairs)


def verdicts(decisions: Sequence[Decision]) -> dict[str, int]:
    """Return the number of decisions by verdict."""
    return dict(Counter(one.verdict for one in decisions))
