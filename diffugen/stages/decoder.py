"""Have a decoder draw the heat maps that labels are made from. Does not know how it was taught."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from diffugen.config.labelling import Labelling
from diffugen.config.sections import DiffusionSettings
from diffugen.records import HeatMaps, PixelFeatures
from diffugen.run.rounds import OnProgress, unseen
from diffugen.run.spool import ImageIds
from diffugen.run.store import RunStore
from diffugen.stages.models import load_model

DRAWN_AT_A_TIME = 32


def heat_maps_reader(store: RunStore, labelling: Labelling) -> Callable[[str], HeatMaps]:
    """Return what reads the heat maps that a labelling labels an image by: attention, or what was drawn."""
    return store.heat_maps if labelling.decoder is None else partial(store.taught, labelling.decoder.id)


def draw(
    store: RunStore,
    labelling: Labelling,
    image_ids: Sequence[str],
    on_progress: OnProgress = unseen,
    pipeline: Any = None,
) -> None:
    """Have the decoder of a labelling, if it has one, draw the images that it has not drawn yet.

    Args:
        store: The run.
        labelling: The labelling.
        image_ids: The images.
        on_progress: Called with images drawn and images to draw.
        pipeline: The diffusion model; None to load it if it is needed.

    Raises:
        ModelError: The decoder or the diffusion model cannot be loaded, or the one does not fit the other.
    """
    decoder, diffusion = labelling.decoder, labelling.diffusion
    if decoder is None or diffusion is None:
        return
    missing = ImageIds(one for one in image_ids if not store.taught_path(decoder.id, one).is_file())
    if not missing:
        return
    from diffugen.labels.decoder import Decoder

    taught = Decoder.load(store.folder / decoder.folder)
    pipeline = load_model(diffusion) if pipeline is None else pipeline
    on_progress(0, len(missing))
    drawn: list[HeatMaps] = []
    for done, (image_id, features) in enumerate(features_of(store, missing, diffusion, pipeline), start=1):
        drawn.append(taught.heat_maps(image_id, features, store.record(image_id).region))
        if len(drawn) == DRAWN_AT_A_TIME or done == len(missing):
            store.put_taught(decoder.id, drawn)
            drawn = []
        on_progress(done, len(missing))


def features_of(
    store: RunStore, image_ids: Sequence[str], diffusion: DiffusionSettings, pipeline: Any
) -> Iterator[tuple[str, PixelFeatures]]:
    """Yield images of a run with their features, in order.

    Args:
        store: The run.
        image_ids: The images.
        diffusion: How the model was loaded.
        pipeline: The model.

    Raises:
        ModelError: The model cannot read features.
    """
    from diffugen.diffusion.features import read_features

    images = ((store.image(one), store.record(one).prompt) for one in image_ids)
    yield from zip(image_ids, read_features(pipeline, images, budget_wh=diffusion.size_wh), strict=True)
