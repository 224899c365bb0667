"""Open the segmenter that outlines objects, where the label settings ask for one."""

from __future__ import annotations

from diffugen.config.labelling import Labelling
from diffugen.labels.segmenter import Segmenter
from diffugen.run.store import RunStore
from diffugen.stages.detector import resolve_checkpoint
from diffugen.stages.labellers import HeatLabeller


def open_segmenter(store: RunStore, labelling: Labelling) -> Segmenter | None:
    """Load the segmenter of a labelling, on the device of its base detector; None if it has none.

    Args:
        store: The run; a checkpoint can lie in its folder.
        labelling: The labelling.

    Raises:
        ModelError: The checkpoint or the device does not exist, or it is not a Segment Anything Model.
    """
    return heat_labeller(store, labelling).open_segmenter()


def heat_labeller(store: RunStore, labelling: Labelling) -> HeatLabeller:
    """Return what labels images by heat maps, with the segmenter of a labelling, if it has one, not loaded.

    Args:
        store: The run; a checkpoint can lie in its folder.
        labelling: The labelling.
    """
    segmenter = None if labelling.segmenter is None else resolve_checkpoint(store, labelling.segmenter)
    device = "auto" if labelling.base is None else labelling.base.device
    return HeatLabeller(labelling.settings, labelling.weights, segmenter, device)
