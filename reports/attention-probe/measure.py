"""Measure whether attention itself learns from a few corrected masks, on the miniature.

    python reports/attention-probe/measure.py [--seeds 1 2] [--draws 3] [--work runs/loop-gain]

Needs the runs that `reports/loop-gain/measure.py` makes; it only reads them. Images of rounds 0 and 1 teach,
those of round 2 judge. With 5 or 20 images that the oracle corrects, and the attention labels of others, it
teaches the decoder, an embedding for each class (optimised_tokens.py), and a probe that weights the heads
(heads.py). The oracle, a segmentation model trained on exact masks, judges the labels. Writes README.md and
numbers.json beside itself.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import fill
from typing import Any
from unittest.mock import patch

import heads
import numpy as np
from heads import Float, Masks, Read
from numpy.typing import NDArray
from optimised_tokens import Tokens

from diffugen.config import ScoreWeights
from diffugen.config.load import load_config
from diffugen.diffusion.pipelines import load_pipeline
from diffugen.labels import decoder
from diffugen.labels.decoder import Decoder, Lesson, Projection
from diffugen.labels.heatmaps import TAUGHT
from diffugen.labels.label import label
from diffugen.miniature import oracle
from diffugen.miniature.measure import BAD_IOU, WEIGHTS, class_mask, iou
from diffugen.miniature.scenes import CLASSES
from diffugen.records import STEP_THIRDS, HeatMaps, Instances, PixelFeatures
from diffugen.run import RunStore

HERE = Path(__file__).parent
SEEDS = (1, 2)
"""Seeds of the runs; constants were chosen on that of seed 0."""

LEARNING, JUDGING = (0, 1), (2,)
"""Rounds whose images teach, and whose images judge."""

BATCH, PROJECTED = 8, 32
"""Images read at a time, and those whose activations decide the decoder's principal components."""

CORRECTED = (5, 20)
WEAK = 100
"""Attention labels learned from; `teach.images` in configs/miniature.yaml."""

WEAK_TOKENS = 40
"""The same for embeddings, each of whose steps sees few masks anyway."""

SAMPLED = (1024, 256)
"""Pixels of each class of a corrected image, and of another, that a probe learns from."""

PENALTY, PENALTY_ALONE = 1e-2, 1e-1
"""Penalties of a probe, with attention labels of other images and without; chosen on other images."""

RARE = "piano"

Ious = Mapping[str, Mapping[str, float]]
Drawing = Callable[[str], HeatMaps]


class World:
    """The images of a run: some to learn from, others to judge, and what the denoiser sees in them.

    Args:
        folder: The run.
        pipeline: The diffusion model that generated its images.
    """

    def __init__(self, folder: Path, pipeline: Any) -> None:
        self.settings = load_config("miniature").labels.changed(witness="none")
        self.store = RunStore.open(folder, readonly=True)
        self.tokens = Tokens(pipeline)
        self.learning = [one for number in LEARNING for one in self.store.image_ids(number)]
        judging = [one for number in JUDGING for one in self.store.image_ids(number)]
        everything = [*self.learning, *judging]
        self.rgb = {one: self.store.image(one) for one in everything}
        maps = oracle.segment(oracle.load_oracle(WEIGHTS / "oracle"), list(self.rgb.values()))
        self.truth = dict(zip(everything, maps, strict=True))
        self.read: dict[str, Read] = {}
        for first in range(0, len(everything), BATCH):
            ids = everything[first : first + BATCH]
            images = [(self.rgb[one], self.store.record(one).prompt) for one in ids]
            self.read |= dict(zip(ids, heads.read(pipeline, images), strict=True))
        self.candidates = [one for one in self.learning if self._whole(one)]
        self.judging = [one for one in judging if self._whole(one)]
        probed = self.learning[:: max(1, len(self.learning) // PROJECTED)]
        self.projection = Projection.fit((self.read[one].features for one in probed), len(probed), 0)
        self.features = {one: self.projection.compact(self.read[one].features) for one in everything}
        self.inputs = {one: heads.inputs(self.read[one]) for one in everything}
        self.weak = {one: self.label(self.store.heat_maps(one)) for one in self.learning}

    def _whole(self, image_id: str) -> bool:
        """Return whether an image shows all objects that its prompt names; hybrids do not."""
        return all(oracle.found(self.truth[image_id], name) for name in self.read[image_id].class_names())

    def correct(self, image_id: str) -> Instances:
        """Return all objects of an image, by the oracle."""
        return oracle.oracle_instances(self.truth[image_id], CLASSES)

    def masks(self, image_id: str, labels: Instances) -> Masks:
        """Return the mask of each class of an image's prompt."""
        return {name: class_mask(labels, name) for name in self.read[image_id].class_names()}

    def label(self, heat_maps: HeatMaps) -> Instances:
        """Label an image as configs/miniature.yaml does, without the witness."""
        return label(heat_maps, self.settings, ScoreWeights(), self.rgb[heat_maps.image_id])

    def ious(self, drawing: Drawing) -> Ious:
        """Return the IoU of the label of each class of each image to judge."""
        found = {}
        for image_id in self.judging:
            truth, masks = self.truth[image_id], self.masks(image_id, self.label(drawing(image_id)))
            found[image_id] = {
                name: iou(mask, truth == 1 + CLASSES.index(name)) for name, mask in masks.items()
            }
        return found

    def drawn(self, image_id: str, logits: Mapping[str, Float]) -> HeatMaps:
        """Return heat maps of what something learned draws, as a decoder returns its own."""
        features = self.features[image_id]
        width, height = features.size_wh
        chances = [
            1 / (1 + np.exp(-logits[one.class_name].reshape(height, width)))
            if one.class_name
            else np.zeros((height, width))
            for one in features.phrases
        ]
        maps = np.repeat(np.stack(chances)[:, None], STEP_THIRDS, axis=1).astype(np.float16)
        return HeatMaps(image_id, features.size_wh, features.phrases, {f"{TAUGHT}-{height}x{width}": maps})


class Teaching:
    """What can be learned from some corrected images and the attention labels of others.

    Args:
        world: The images.
        corrected: How many images are corrected.
        seed: Decides which.
    """

    def __init__(self, world: World, corrected: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self._world, self._seed = world, seed
        self._corrected = [str(one) for one in rng.choice(world.candidates, corrected, replace=False)]
        others = [one for one in world.learning if one not in self._corrected]
        self._weak = [str(one) for one in rng.permutation(others)[:WEAK]]
        self._draw_tokens = world.tokens.teach(
            [
                [(world.read[one], world.masks(one, world.correct(one))) for one in self._corrected],
                [(world.read[one], world.masks(one, world.weak[one])) for one in self._weak[:WEAK_TOKENS]],
            ],
            [world.read[one] for one in world.learning],
            seed,
        )

    def tokens(self) -> Drawing:
        """Return what draws an image by the learned embeddings."""
        world = self._world
        return lambda image_id: world.drawn(image_id, self._draw_tokens(world.read[image_id]))

    def probe(self, weak: bool) -> Drawing:
        """Return what draws an image by the weighted heads, learned with or without attention labels."""
        world = self._world
        sides = [
            [(world.inputs[one], world.masks(one, world.correct(one))) for one in self._corrected],
            [(world.inputs[one], world.masks(one, world.weak[one])) for one in self._weak if weak],
        ]
        drawn = heads.teach(
            sides,
            heads.today(world.read[self._corrected[0]]),
            penalty=PENALTY if weak else PENALTY_ALONE,
            sampled=SAMPLED,
            seed=self._seed,
        )
        return lambda image_id: world.drawn(image_id, drawn(world.inputs[image_id]))

    def decoder(self, more: str | None = None) -> Drawing:
        """Return what draws an image by a decoder that sees nothing more, ``tokens`` or ``heads``."""
        world = self._world
        given = {
            None: lambda image_id: None,
            "tokens": lambda image_id: {
                name: logits[:, None] for name, logits in self._draw_tokens(world.read[image_id]).items()
            },
            "heads": world.inputs.__getitem__,
        }[more]
        lessons = [Lesson(world.features[one], world.correct(one), corrected=True) for one in self._corrected]
        lessons += [Lesson(world.features[one], world.weak[one], corrected=False) for one in self._weak]
        ids = {id(features): image_id for image_id, features in world.features.items()}
        with seeing(lambda features: given(ids[id(features)])):
            taught = Decoder.teach(world.projection, lessons, seed=self._seed)

        def draw(image_id: str) -> HeatMaps:
            with seeing(lambda _: given(image_id)):
                return taught.heat_maps(image_id, world.features[image_id])

        return draw


@contextmanager
def seeing(more: Callable[[PixelFeatures], Mapping[str, Float] | None]) -> Iterator[None]:
    """Let a decoder see further inputs (pixels, D) of each class of an image."""
    original = decoder._inputs

    def inputs(features: PixelFeatures) -> dict[str, Float]:
        seen, further = original(features), more(features)
        if further is None:
            return seen
        return {name: np.concatenate([one, further[name]], axis=1) for name, one in seen.items()}

    with patch.object(decoder, "_inputs", inputs):
        yield


LEARNERS: dict[str, Callable[[Teaching], Drawing]] = {
    "decoder": lambda teaching: teaching.decoder(),
    "optimised tokens": lambda teaching: teaching.tokens(),
    "head probe": lambda teaching: teaching.probe(weak=True),
    "head probe, corrected masks alone": lambda teaching: teaching.probe(weak=False),
    "decoder that also sees the tokens' maps": lambda teaching: teaching.decoder("tokens"),
    "decoder that also sees all heads": lambda teaching: teaching.decoder("heads"),
}


def summary(draws: Sequence[Ious], baseline: Sequence[Ious] | None) -> dict[str, dict[str, float]]:
    """Return, by group of classes, mean IoU, share of bad labels, and gain over the baseline.

    Standard errors are over images; an image's value is its mean over draws and classes.
    """
    groups = {"piano": {RARE}, "other classes": set(CLASSES) - {RARE}, "all classes": set(CLASSES)}
    found: dict[str, dict[str, float]] = {}
    for group, names in groups.items():
        ious = [values for values in (_of(draws, one, names) for one in draws[0]) if len(values)]
        found[group] = {"images": len(ious)}
        found[group] |= _with_error("iou", [float(one.mean()) for one in ious])
        found[group] |= _with_error("bad", [float((one < BAD_IOU).mean()) for one in ious])
        if baseline is not None:
            pairs = [(_of(draws, one, names), _of(baseline, one, names)) for one in draws[0]]
            gains = [float(one.mean() - other.mean()) for one, other in pairs if len(one)]
            found[group] |= _with_error("gain", gains)
    return found


def _of(draws: Sequence[Ious], image_id: str, names: set[str]) -> NDArray[np.float64]:
    return np.array([value for draw in draws for name, value in draw[image_id].items() if name in names])


def _with_error(name: str, values: Sequence[float]) -> dict[str, float]:
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return {name: round(float(np.mean(values)), 4), f"{name} error": round(error, 4)}


def measure(folders: Sequence[Path], draws: int) -> dict[str, Any]:
    """Return all numbers; the images of all runs are judged together."""
    pipeline, learned = load_pipeline("miniature"), 0
    today: dict[str, Mapping[str, float]] = {}
    ious: dict[int, dict[str, list[dict[str, Mapping[str, float]]]]] = {
        corrected: {name: [{} for _ in range(draws)] for name in LEARNERS} for corrected in CORRECTED
    }
    for folder in folders:
        world = World(folder, pipeline)
        learned += len(world.learning)
        today |= world.ious(world.store.heat_maps)
        print(folder, len(world.judging), flush=True)
        for corrected, by_name in ious.items():
            for draw in range(draws):
                teaching = Teaching(world, corrected, draw)
                for name, learner in LEARNERS.items():
                    by_name[name][draw] |= world.ious(learner(teaching))
                    print(corrected, draw, name, flush=True)
    return {
        "images": {"runs": len(folders), "learned from": learned, "judged": len(today)},
        "draws": draws,
        "attention": summary([today], None),
    } | {
        f"{corrected} corrected": {
            name: summary(rows, [today] if name == "decoder" else by_name["decoder"])
            for name, rows in by_name.items()
        }
        for corrected, by_name in ious.items()
    }


INTRODUCTION = """\
Made by `python reports/attention-probe/measure.py` from {runs} runs of [loop-gain](../loop-gain/README.md),
each by itself: {learned} images of rounds 0 and 1 to learn from, {judged} of round 2 to judge; hybrids, which
lack an object that their prompt names, are neither corrected nor judged. 5 or 20 images of a run are
corrected by the oracle (see [the miniature, measured](../miniature/README.md)), which also judges; at most
{weak} others teach with their attention labels. {draws} draws of corrected images. Labels are made as
`configs/miniature.yaml` makes them, without the witness. *Bad*: IoU below .5. ± is the standard error over
images. The gain of the decoder is over attention, all other gains are over the decoder, on the same images.
All constants were chosen on the run of another seed, none on these images."""

CANDIDATES = """\
*Optimised tokens* (OVAM, Marcos-Manchón et al. 2024, section 3.3): an embedding for each class is learned by
cross-entropy of its attention, in the layers that labels are made from, and takes the place of the phrase's
tokens. *Head probe*: a logistic regression on the logarithms of the maps of all 22 heads at 3 noise
levels, of the phrase, its rivals and the background, pulled towards today's weights. Both learn from
attention labels of other images, too, unless it says otherwise."""


def page(numbers: dict[str, Any]) -> str:
    """Return the page."""
    facts = {
        "runs": numbers["images"]["runs"],
        "learned": numbers["images"]["learned from"],
        "judged": numbers["images"]["judged"],
        "draws": numbers["draws"],
        "weak": WEAK,
    }
    parts = [
        "# Attention that learns from corrected masks",
        filled(INTRODUCTION.format(**facts)),
        filled(CANDIDATES),
        filled(verdict(numbers)),
        "## Labels by attention",
        table({"attention": numbers["attention"]}),
    ]
    for corrected in CORRECTED:
        parts += [f"## {corrected} corrected images", table(numbers[f"{corrected} corrected"])]
    parts += ["## Why it is no gain", filled(TOKENS), filled(PROBE), filled(MORE), filled(LIMITS)]
    return "\n\n".join(parts) + "\n"


TOKENS = """\
Optimised tokens make better labels of the classes that attention finds badly, with 5 corrected images as good
as the decoder's, but worse ones of pianos. 20 corrected images hardly teach them more than 5, probably
because a vector of 128 numbers for each class, read by fixed projections, can hold little. The decoder
continues to learn."""

PROBE = """\
The head probe with attention labels of other images ends where these labels are: weighting heads otherwise
explains them about as well as today's weights do. Without them, 20 corrected images teach it the badly
found classes, but it forgets pianos. Reading is not the reason: on the run that constants were chosen on,
today's weights on the attention of noised images make labels as good as those of the generation's own heat
maps (mean IoU 0.639 and 0.645)."""

MORE = """\
The decoder sees the heads' means and the activations that heads are computed from. All heads apart add
nothing. The tokens' maps add less than a hundredth of IoU with 20 corrected images, and nothing that is
certain with 5, for a second method to teach and to store: nothing was built into the package."""

LIMITS = """\
Tried on that run, some with a single draw, and not better: maps rescaled to [0, 1] or standardised instead
of logarithms, weights without the pull, the phrase's own heads alone, one change shared by the embeddings
of all classes, OVAM's own prompt of a background token and the class's, and all layers for tokens. The
miniature's text encoder has no layers, its UNet few heads, and it draws 64x64 pixels; large models may
differ. Standard errors do not count that other draws would correct other images."""


def table(learners: dict[str, dict[str, dict[str, float]]]) -> str:
    """Return a table with a row for each learner, and a column for each group of classes."""
    groups = list(next(iter(learners.values())))
    lines = [f"| | {' | '.join(groups)} |", "|---" * (1 + len(groups)) + "|"]
    for name, by_group in learners.items():
        cells = [
            f"{one['iou']:.3f} ± {one['iou error']:.3f}, bad {one['bad']:.0%} ± {one['bad error']:.0%}"
            + (f", gain {one['gain']:+.3f} ± {one['gain error']:.3f}" if "gain" in one else "")
            for one in by_group.values()
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def verdict(numbers: dict[str, Any]) -> str:
    """Return which candidates gain or lose over the decoder, over all classes."""
    sentences, gaining = [], []
    for name in [one for one in LEARNERS if one != "decoder"]:
        words = []
        for corrected in CORRECTED:
            one = numbers[f"{corrected} corrected"][name]["all classes"]
            beyond = abs(one["gain"]) > 2 * one["gain error"]
            words.append(("a gain" if one["gain"] > 0 else "a loss") if beyond else "no difference")
        sentences.append(f"{name}: {', '.join(words)}")
        if set(words) == {"a gain"}:
            gaining.append(name)
    counts = " and ".join(map(str, CORRECTED))
    return (
        f"**Better than the decoder both with {counts} corrected images: {', '.join(gaining) or 'nothing'}. "
        f"In turn, over all classes, counting what exceeds two standard errors: {'; '.join(sentences)}.**"
    )


def filled(text: str) -> str:
    """Return a paragraph in lines of at most 120 columns."""
    return fill(" ".join(text.split()), 120, break_on_hyphens=False, break_long_words=False)


def main() -> None:
    """Measure, and write numbers and page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="seeds of the runs")
    parser.add_argument("--draws", type=int, default=3, help="how often other images are corrected")
    parser.add_argument("--work", type=Path, default=Path("runs/loop-gain"), help="folder of the runs")
    arguments = parser.parse_args()
    folders = [arguments.work / f"seed-{seed}-50-verdicts-our-order" for seed in arguments.seeds]
    numbers = measure(folders, arguments.draws)
    (HERE / "numbers.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    (HERE / "README.md").write_text(page(numbers), encoding="utf-8")


if __name__ == "__main__":
    main()
