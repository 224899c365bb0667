"""Measure what labellers are worth, on the miniature: the paper's, today's, and decoders that were taught.

    python reports/labellers/measure.py [--images 24] [--draws 5] [--work runs/labellers]

Generates images of many kinds of prompt: some to teach with, others to judge. Decoders are taught with
1, 5 or 20 images corrected by the oracle, a segmentation model trained on exact masks, and the attention
labels of the other teaching images; several times, with other images. The oracle judges all labels. Generated
images are kept in the work folder, so a second call is faster. Writes README.md and numbers.json beside
itself.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from diffugen.config import LabelSettings, ScoreWeights
from diffugen.config.labelling import TERMS
from diffugen.config.load import load_config
from diffugen.detectors.yolo import YoloDetector
from diffugen.diffusion.features import read_features
from diffugen.diffusion.generate import generate
from diffugen.diffusion.jobs import PromptJobs
from diffugen.diffusion.pipelines import default_size_wh, load_pipeline
from diffugen.labels.decoder import Decoder, Lesson, Projection
from diffugen.labels.heatmaps import combine, doubt
from diffugen.labels.label import label
from diffugen.labels.objects import finished
from diffugen.labels.score import score
from diffugen.labels.shapes import decode
from diffugen.labels.thresholds import Worth, choose, worths
from diffugen.labels.witness import Witness
from diffugen.miniature import oracle
from diffugen.miniature.measure import BAD_IOU, SETTINGS, WEIGHTS, class_mask, iou, kinds_of_prompts
from diffugen.miniature.scenes import CLASSES
from diffugen.records import HeatMaps, ImageRecord, Instances, PixelFeatures
from diffugen.run import RunStore

HERE = Path(__file__).parent
TAUGHT_WITH = (0, 1, 5, 20)
TEACHING_SEED, JUDGING_SEED = 31, 32
RANKED_WITH = 5
"""Corrected images of the decoders whose scores and doubts are compared."""

RESAMPLES = 2000
"""Bootstrap resamples of images for the confidence intervals."""

Labeller = Callable[[str], Instances]


class World:
    """Images to teach with and to judge by, with their features and exact masks.

    Args:
        work: Folder for the generated images.
        count: Images of each kind of prompt to judge; a third as many are taught with.
    """

    def __init__(self, work: Path, count: int) -> None:
        self.pipeline = load_pipeline("miniature")
        self.store = RunStore.create_or_open(work / "images", config=None)
        self.kind: dict[str, str] = {}
        self.teaching = self._images(max(1, count // 3), TEACHING_SEED)
        self.judging = self._images(count, JUDGING_SEED)
        self.classes = {name: classes for name, (classes, _) in kinds_of_prompts(1).items()}
        judge = oracle.load_oracle(WEIGHTS / "oracle")
        everything = [*self.teaching, *self.judging]
        maps = oracle.segment(judge, [self.store.image(one) for one in everything])
        self.truth = dict(zip(everything, maps, strict=True))

    def _images(self, count: int, seed: int) -> list[str]:
        jobs: list[ImageRecord] = []
        for name, (_, prompts) in kinds_of_prompts(count).items():
            made = PromptJobs(
                prompts,
                images_per_prompt=1,
                run_seed=seed,
                size_wh=default_size_wh(self.pipeline),
                model="miniature",
                settings=SETTINGS,
            )
            self.kind |= {job.id: name for job in made}
            jobs += made
        missing = [job for job in jobs if not self.store.has_image(job.id)]
        for number, made_one in enumerate(
            generate(self.pipeline, missing, batch_size=8, keep_self_attention=True)
        ):
            self.store.add_images([made_one])
            said(f"generate {number + 1} of {len(missing)}", number + 1, len(missing))
        return [job.id for job in jobs]

    def features(self, ids: Sequence[str]) -> Iterator[tuple[str, PixelFeatures]]:
        """Yield images with their features."""
        pairs = ((self.store.image(one), self.store.record(one).prompt) for one in ids)
        for number, (image_id, one) in enumerate(zip(ids, read_features(self.pipeline, pairs), strict=True)):
            yield image_id, one
            said(f"read {number + 1} of {len(ids)}", number + 1, len(ids))

    def correct(self, image_id: str) -> Instances:
        """Return all objects of an image, by the oracle."""
        return oracle.oracle_instances(self.truth[image_id], CLASSES)

    def whole(self, image_id: str) -> bool:
        """Return whether an image shows all objects that its prompt names; only such are corrected."""
        return all(oracle.found(self.truth[image_id], name) for name in self.classes[self.kind[image_id]])

    def ious(self, labeller: Labeller) -> dict[str, list[float]]:
        """Return the IoU of each class of the prompt that the oracle finds, for each image to judge."""
        found = {}
        for image_id in self.judging:
            labels, truth = labeller(image_id), self.truth[image_id]
            found[image_id] = [
                iou(class_mask(labels, name), truth == 1 + CLASSES.index(name))
                for name in self.classes[self.kind[image_id]]
                if oracle.found(truth, name)
            ]
        return found


def said(text: str, done: int, total: int) -> None:
    """Print progress every 50 steps."""
    if done % 50 == 0 or done == total:
        print(text, flush=True)


def attention(world: World, settings: LabelSettings, witness: Callable[[str], Witness | None]) -> Labeller:
    """Return what labels an image by its attention."""
    return by_maps(world, settings, world.store.heat_maps, witness)


def by_maps(
    world: World,
    settings: LabelSettings,
    heat_maps: Callable[[str], HeatMaps],
    witness: Callable[[str], Witness | None],
) -> Labeller:
    """Return what labels an image by heat maps: attention, or what a decoder drew."""

    def labelled(image_id: str) -> Instances:
        rgb = world.store.image(image_id)
        return label(heat_maps(image_id), settings, ScoreWeights(), rgb, witness(image_id))

    return labelled


def adapted(world: World, settings: LabelSettings, witness: Callable[[str], Witness | None]) -> LabelSettings:
    """Return the settings with the thresholds that the teaching images suggest without any label."""
    by_class: dict[str, list[Worth]] = {}
    for image_id in world.teaching:
        maps, rgb = world.store.heat_maps(image_id), world.store.image(image_id)
        heats = combine(maps, settings.groups, settings.step_weights)
        found = worths(heats, maps.phrases, settings, rgb, None, witness(image_id))
        for name, one in found.items():
            by_class.setdefault(name, []).append(one)
    chosen = choose(by_class)
    print("thresholds by class:", chosen, flush=True)
    return settings.changed(threshold=chosen)


def witnesses(world: World, confidence: float) -> tuple[dict[str, Witness], dict[str, Instances]]:
    """Return what the embedded detector finds in each image: as a witness, and as labels."""
    detector = YoloDetector(WEIGHTS / "detector")
    ids = [*world.teaching, *world.judging]
    images = [world.store.image(one) for one in ids]
    size = detector.image_size or 128
    found = detector.predict(images, image_size=size, confidence=confidence)
    labels = {one: finished(raw, rgb) for one, raw, rgb in zip(ids, found, images, strict=True)}
    known = frozenset(detector.class_names)
    return {one: Witness(instances, known) for one, instances in labels.items()}, labels


def lessons_of(
    world: World, features: dict[str, PixelFeatures], weak: dict[str, Instances], corrected: Sequence[str]
) -> list[Lesson]:
    """Return the lessons of a teaching: some images corrected, all others with their attention labels."""
    return [
        Lesson(features[one], world.correct(one), corrected=True)
        if one in corrected
        else Lesson(features[one], weak[one], corrected=False)
        for one in world.teaching
    ]


class Ranked:
    """What tells good labels of decoders from bad ones, and images with bad labels from others.

    Attributes:
        labels: For each label its image, its score terms, and whether it is bad.
        images: For each image, of each draw: itself, a decoder's doubt, its lowest score, and whether a label
            is bad or one is missing.
    """

    def __init__(self, weights: ScoreWeights) -> None:
        self._weights = weights
        self.labels: list[tuple[str, dict[str, float], bool]] = []
        self.images: list[tuple[str, float, float, bool]] = []

    def add(self, world: World, settings: LabelSettings, drawn: dict[str, HeatMaps]) -> None:
        """Judge the labels of a decoder that drew these heat maps."""
        for image_id, heat_maps in drawn.items():
            truth = world.truth[image_id]
            found = label(heat_maps, settings, self._weights, world.store.image(image_id))
            bad = [
                iou(decode(rle), truth == 1 + CLASSES.index(name)) < BAD_IOU
                for name, rle in zip(found.class_names, found.rles, strict=True)
            ]
            self.labels += [(image_id, dict(one), wrong) for one, wrong in zip(found.terms, bad, strict=True)]
            named = world.classes[world.kind[image_id]]
            missed = any(oracle.found(truth, name) and name not in found.class_names for name in named)
            lowest = float(found.scores.min()) if len(found) else 0.0
            self.images.append((image_id, doubt(heat_maps), lowest, missed or any(bad)))

    def numbers(self) -> dict[str, Any]:
        """Return AUROCs with 95% bootstrap intervals over images."""
        ids = [one for one, _, _ in self.labels]
        wrong = [bad for _, _, bad in self.labels]
        terms = [one for _, one, _ in self.labels]
        ranked = {
            "the score, as configured": [score(one, self._weights) for one in terms],
            "with `certainty: 1`": [score(one, self._weights.changed(certainty=1.0)) for one in terms],
            "with `certainty: 2`": [score(one, self._weights.changed(certainty=2.0)) for one in terms],
            **{f"`{name}` alone": [one[name] for one in terms] for name in TERMS},
        }
        images = [one for one, *_ in self.images]
        bad = [one[-1] for one in self.images]
        orders = {
            "the decoder's doubt (`review.order: doubt`)": [-one[1] for one in self.images],
            "the lowest score of a label": [one[2] for one in self.images],
        }
        return {
            "labels": {"n": len(ids), "bad": sum(wrong)},
            "images": {"n": len(images), "bad": sum(bad)},
            "by label": {name: auroc(ids, values, wrong) for name, values in ranked.items()},
            "by image": {name: auroc(images, values, bad) for name, values in orders.items()},
        }


def auroc(ids: Sequence[str], values: Sequence[float], bad: Sequence[bool]) -> list[float]:
    """Return how often a good one has a higher value than a bad one, with a 95% bootstrap interval."""
    value, good = np.array(values), ~np.array(bad)
    places: dict[str, list[int]] = {}
    for place, image_id in enumerate(ids):
        places.setdefault(image_id, []).append(place)
    piles = [np.array(one) for one in places.values()]
    rng, drawn = np.random.default_rng(0), []
    for _ in range(RESAMPLES // 4):
        picks = np.concatenate([piles[one] for one in rng.integers(0, len(piles), len(piles))])
        if 0 < good[picks].sum() < len(picks):
            drawn.append(roc_auc_score(good[picks], value[picks]))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return [float(roc_auc_score(good, value)), float(low), float(high)]


def interval(values: Sequence[dict[str, list[float]]], ids: Sequence[str]) -> dict[str, float]:
    """Return mean IoU, share of bad labels, and 95% bootstrap intervals over images, of one or more draws."""
    per_image = [np.array([x for draw in values for x in draw[one]]) for one in ids]
    per_image = [one for one in per_image if len(one)]
    sums = np.array([one.sum() for one in per_image])
    bad = np.array([(one < BAD_IOU).sum() for one in per_image])
    counts = np.array([len(one) for one in per_image])
    rng = np.random.default_rng(0)
    picks = rng.integers(0, len(counts), (RESAMPLES, len(counts)))
    ious = sums[picks].sum(axis=1) / counts[picks].sum(axis=1)
    shares = bad[picks].sum(axis=1) / counts[picks].sum(axis=1)
    return {
        "labels": int(counts.sum() / len(values)),
        "iou": float(sums.sum() / counts.sum()),
        "iou_low": float(np.quantile(ious, 0.025)),
        "iou_high": float(np.quantile(ious, 0.975)),
        "bad": float(bad.sum() / counts.sum()),
        "bad_low": float(np.quantile(shares, 0.025)),
        "bad_high": float(np.quantile(shares, 0.975)),
    }


def measure(work: Path, count: int, draws: int) -> dict[str, Any]:
    """Return all numbers."""
    world = World(work, count)
    configured = load_config("miniature").labels
    alone = configured.changed(source="attention")
    paper = alone.changed(method="paper", refine="none", erode_frac=0.01, dilate_frac=0.01, groups={"*": 1.0})
    paper = paper.changed(step_weights=(1.0, 1.0, 1.0), instances="pieces")
    seen, found = witnesses(world, configured.detector_confidence)

    def nobody(_: str) -> None:
        return None

    ious: dict[str, list[dict[str, list[float]]]] = {
        "the paper's method": [world.ious(attention(world, paper, nobody))],
        "attention, as configured": [world.ious(attention(world, alone, nobody))],
        "+ self-attention, 1 step": [world.ious(attention(world, alone.changed(self_attention=1), nobody))],
        "+ thresholds by class": [world.ious(attention(world, adapted(world, alone, nobody), nobody))],
        "detector that knows four classes": [world.ious(found.__getitem__)],
        "attention with that detector as witness": [world.ious(attention(world, configured, seen.get))],
        "the same + thresholds by class": [
            world.ious(attention(world, adapted(world, configured, seen.get), seen.get))
        ],
    }
    print("labelled by attention", flush=True)
    projection = Projection.fit((one for _, one in world.features(world.teaching[::4])), 32, 0)
    features = {
        image_id: projection.compact(one)
        for image_id, one in world.features([*world.teaching, *world.judging])
    }
    weak = {one: attention(world, alone, nobody)(one) for one in world.teaching}
    weak_seen = {one: attention(world, configured, seen.get)(one) for one in world.teaching}
    ranked = Ranked(load_config("miniature").score)
    candidates = [one for one in world.teaching if world.whole(one)]
    for name, settings, labels, witness in (
        ("decoder, {} corrected", alone, weak, nobody),
        ("decoder, {} corrected, with the witness", configured, weak_seen, seen.get),
    ):
        for corrected in TAUGHT_WITH:
            rows = ious.setdefault(name.format(corrected), [])
            for draw in range(draws):
                rng = np.random.default_rng(draw)
                chosen = list(rng.choice(candidates, corrected, replace=False))
                decoder = Decoder.teach(projection, lessons_of(world, features, labels, chosen), seed=draw)
                drawn = {one: decoder.heat_maps(one, features[one]) for one in world.judging}
                rows.append(world.ious(by_maps(world, settings, drawn.__getitem__, witness)))
                if (corrected, witness) == (RANKED_WITH, nobody):
                    ranked.add(world, settings, drawn)
                print(name.format(corrected), draw, flush=True)
    groups = {
        "one object": [one for one in world.judging if len(world.classes[world.kind[one]]) == 1],
        "two objects": [one for one in world.judging if len(world.classes[world.kind[one]]) == 2],
    }
    return {
        "images": {"judged": len(world.judging), "taught": len(world.teaching), "of a kind": count},
        "draws": draws,
        "ranked": ranked.numbers(),
        "labellers": {
            name: {group: interval(rows, ids) for group, ids in groups.items()} for name, rows in ious.items()
        },
    }


INTRODUCTION = """\
Made by `python reports/labellers/measure.py`: {judged} images of {kinds} kinds of prompt to judge,
{taught} others to teach with (20 DDIM steps, guidance scale 3), each judged by the oracle (see [the
miniature,
measured](../miniature/README.md)). A decoder is taught with some images that the oracle corrects, and with
the attention labels of the other teaching images; {draws} times, with other corrected images. *Bad*: IoU
below .5. In brackets: 95% bootstrap intervals over images. No setting was chosen on these images; the
decoder's were chosen on a run of [loop-gain](../loop-gain/README.md) with another seed. *The paper's
method* takes all layers and steps with equal weights, as the paper does. The witness and the detector know
cars, trucks, people, and cones, but neither pianos nor buses. *Thresholds by class*
(`labels.threshold: adaptive`) are chosen on the teaching images, without any label."""

NOTES = """\
Optimised tokens and a probe over attention heads are measured in
[attention-probe](../attention-probe/README.md), on other images. Mask2Former is measured as a detector in
[detectors](../detectors/README.md)."""


RANKING = """\
How well scores tell good labels from bad ones (IoU below .5), and how well an order of the images puts those
first that have a bad label or miss an object: AUROC, with 95% bootstrap intervals over images. Of
{draws} decoders with {corrected} corrected images, without the witness: {labels} labels, {bad_labels} of them
bad, on {images} drawings of {judged} images, {bad_images} of them with an error. `certainty` counts only if
it is given a weight, or `tune` gives it one."""


def page(numbers: dict[str, Any]) -> str:
    """Return the page."""
    images = numbers["images"]
    text = INTRODUCTION.format(
        judged=images["judged"],
        taught=images["taught"],
        kinds=len(kinds_of_prompts(1)),
        draws=numbers["draws"],
    )
    rows = numbers["labellers"]
    counts = next(iter(rows.values()))
    head = [f"{group}, n = {one['labels']}" for group, one in counts.items()]
    lines = [
        "| labels | " + " | ".join(f"{one}: IoU | bad" for one in head) + " |",
        "|---" * (1 + 2 * len(head)) + "|",
    ]
    for name, by_group in rows.items():
        cells = [
            f"{one['iou']:.3f} ({one['iou_low']:.3f} to {one['iou_high']:.3f}) | "
            f"{one['bad']:.0%} ({one['bad_low']:.0%} to {one['bad_high']:.0%})"
            for one in by_group.values()
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    parts = ["# Labellers", filled(text), filled(verdict(rows)), "\n".join(lines), filled(NOTES)]
    parts += ranking(numbers["ranked"], judged=images["judged"], draws=numbers["draws"])
    return "\n\n".join(parts) + "\n"


def ranking(found: dict[str, Any], **counts: int) -> list[str]:
    """Return the part about scores and doubts."""
    labels, images = found["labels"], found["images"]
    text = RANKING.format(
        labels=labels["n"],
        bad_labels=labels["bad"],
        images=images["n"],
        bad_images=images["bad"],
        corrected=RANKED_WITH,
        **counts,
    )
    tables = []
    for key, head in (("by label", "score"), ("by image", "order")):
        rows = [
            f"| {name} | {value:.3f} ({low:.3f} to {high:.3f}) |"
            for name, (value, low, high) in found[key].items()
        ]
        tables.append("\n".join([f"| {head} | AUROC |", "|---|---|", *rows]))
    return ["## Scores and doubts of decoders", filled(text), *tables]


def verdict(rows: dict[str, dict[str, dict[str, float]]]) -> str:
    """Return what five corrected masks buy, in a sentence."""
    five = rows["decoder, 5 corrected"]
    gains = [
        f"{five[group]['iou'] - rows[name][group]['iou']:+.3f} over {name} ({group})"
        for name in ("the paper's method", "attention, as configured")
        for group in five
    ]
    return f"**Five corrected images: {', '.join(gains)}. The aims were +.15 and +.05.**"


def filled(text: str) -> str:
    """Return a paragraph in lines of at most 120 columns."""
    return fill(" ".join(text.split()), 120, break_on_hyphens=False, break_long_words=False)


def main() -> None:
    """Measure, and write numbers and page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=24, help="images of each kind of prompt to judge")
    parser.add_argument("--draws", type=int, default=5, help="how often decoders are taught")
    parser.add_argument("--work", type=Path, default=Path("runs/labellers"), help="keeps the images")
    given = parser.parse_args()
    numbers = measure(given.work, given.images, given.draws)
    (HERE / "numbers.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    (HERE / "README.md").write_text(page(numbers), encoding="utf-8")


if __name__ == "__main__":
    main()
