"""What finds the objects in images that belong to no run: a detector, by tiles if asked, or a decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffugen.config.labelling import Labelling
from diffugen.config.sections import Config, DetectorSettings
from diffugen.errors import DiffugenError
from diffugen.labels.objects import one_mask_per_object
from diffugen.labels.tiles import Window, merged, scaled_down, tile_windows
from diffugen.prompts.phrases import find_phrases
from diffugen.records import Instances, Prompt, one_line
from diffugen.run.rounds import Run
from diffugen.stages.detector import OpenDetector, open_detector
from diffugen.stages.models import load_model
from diffugen.stages.segmenter import open_segmenter

PREDICTED_AT_A_TIME = 16
"""Images or tiles of an image in memory at a time; images of 12 megapixels take 0.6 GB."""

RGB = NDArray[np.uint8]
OnShare = Callable[[float], None]
"""Called with the number of images that are done, as a fraction within an image."""


@dataclass(frozen=True)
class Finder:
    """Finds the objects in images.

    Attributes:
        class_names: The classes that it knows.
        method: Changes with everything that decides what it finds.
        at_a_time: How many images it is given at a time.
        find: Returns the objects in each of some images, uint8 (H, W, 3) RGB each.
    """

    class_names: Sequence[str]
    method: str
    at_a_time: int
    find: Callable[[Sequence[RGB], OnShare], list[Instances]]


def detector_finder(
    run: Run, checkpoint: str, settings: DetectorSettings, tile_size: int | None = None
) -> Finder:
    """Return what finds objects with a detector.

    With tiles, one image is in memory at a time, with `PREDICTED_AT_A_TIME` tiles and their masks. Masks of
    the image's size are run lengths, of which one is decoded at a time. The peak is reading and writing the
    image: at most about 20 bytes a pixel; 2.4 GB in all were measured with 100 megapixels.

    Args:
        run: A run whose classes are the detector's.
        checkpoint: The detector.
        settings: Device, prediction size, least confidence, and whether its output is post-processed.
        tile_size: Side in pixels of the tiles that larger images are cut into; see `diffugen.labels.tiles`.
            None for no tiles.

    Raises:
        ModelError: The checkpoint cannot be loaded.
    """
    detector = open_detector(run, checkpoint, settings)
    method = detector.method({}, settings.confidence)

    def find(images: Sequence[RGB], on_share: OnShare) -> list[Instances]:
        if tile_size is None:
            return detector.predict(images, settings.confidence)
        return [_predict_tiles(detector, rgb, tile_size, on_share) for rgb in images]

    if tile_size is None:
        return Finder(run.class_names, method, PREDICTED_AT_A_TIME, find)
    return Finder(run.class_names, f"{method} {tile_size}px", 1, find)


def decoder_finder(run: Run, config: Config, labelling: Labelling, text: str) -> Finder:
    """Return what finds objects by what a run's decoder draws of them.

    The decoder needs a prompt, as it had one for each image of its run: all images are taken to show what the
    prompt says. The settings of the run's labels apply, but for the witness.

    Args:
        run: The run.
        config: Its configuration.
        labelling: How it labels now.
        text: What the images show.

    Raises:
        DiffugenError: The run uses no decoder, or the prompt names no class.
        ModelError: The decoder or the diffusion model cannot be loaded.
    """
    from diffugen.diffusion.features import read_features
    from diffugen.labels.decoder import Decoder
    from diffugen.labels.label import label

    if labelling.decoder is None:
        raise DiffugenError(
            f"run {run.folder} has no decoder in use; diffugen teach makes one from decided images, and uses "
            "it if it labels better than attention"
        )
    prompts = config.prompts
    [phrases] = find_phrases([one_line(text)], prompts.classes, prompts.background)
    names = list(dict.fromkeys(one.class_name for one in phrases if one.class_name is not None))
    if not names:
        words = "; ".join(f"{name}: {', '.join(words)}" for name, words in prompts.classes.items())
        raise DiffugenError(f"--prompt {text!r} names no class of the run; its words are {words}")
    prompt = Prompt(one_line(text), phrases)
    decoder = Decoder.load(run.folder / labelling.decoder.folder)
    pipeline, segmenter = load_model(config.diffusion), open_segmenter(run.store, labelling)

    def find(images: Sequence[RGB], on_share: OnShare) -> list[Instances]:
        found = []
        given = ((rgb, prompt) for rgb in images)
        read = read_features(pipeline, given, budget_wh=config.diffusion.size_wh)
        for rgb, features in zip(images, read, strict=True):
            heat_maps = decoder.heat_maps("", features)
            labels = label(heat_maps, labelling.settings, labelling.weights, rgb, segmenter=segmenter)
            found.append(labels)
            on_share(len(found))
        return found

    return Finder(names, f"{labelling.method} {prompt.id}", PREDICTED_AT_A_TIME, find)


def _predict_tiles(detector: OpenDetector, rgb: RGB, tile_size: int, on_share: OnShare) -> Instances:
    """Return the objects in an image, found in its tiles and in the whole, scaled down to a tile's size."""
    confidence = detector.settings.confidence
    size_wh = (rgb.shape[1], rgb.shape[0])
    windows = tile_windows(size_wh, tile_size)
    if len(windows) == 1:
        return detector.predict([rgb], confidence)[0]
    [whole] = detector.predict([scaled_down(rgb, tile_size)], confidence)
    tiles: list[tuple[Window, Instances]] = []
    for first in range(0, len(windows), PREDICTED_AT_A_TIME):
        part = windows[first : first + PREDICTED_AT_A_TIME]
        pixels = [rgb[upper:lower, left:right] for left, upper, right, lower in part]
        tiles += zip(part, detector.predict(pixels, confidence), strict=True)
        on_share(len(tiles) / (len(windows) + 1))
    found = merged(size_wh, whole, tiles)
    return one_mask_per_object(found) if detector.settings.postprocess else found
