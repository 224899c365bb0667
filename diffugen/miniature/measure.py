"""Measure the miniature: whether it draws what is prompted, where its attention points, how fast it is.

The oracle evaluates generated images, and exact masks evaluate the oracle. Writes a page with its numbers and
pictures.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffugen.config.labelling import HEAT_TERMS, LabelSettings, ScoreWeights
from diffugen.config.load import load_config
from diffugen.detectors.yolo import YoloDetector
from diffugen.diffusion.generate import generate
from diffugen.diffusion.jobs import PromptJobs
from diffugen.diffusion.pipelines import default_size_wh, load_pipeline
from diffugen.errors import DiffugenError, shell_command
from diffugen.labels.heatmaps import combine, threshold
from diffugen.labels.label import label
from diffugen.labels.objects import finished
from diffugen.labels.pictures import Panel, contact_sheet, enlarged
from diffugen.labels.score import score
from diffugen.labels.shapes import decode
from diffugen.labels.sheets import attention_panel
from diffugen.labels.witness import Witness
from diffugen.miniature import oracle
from diffugen.miniature.page import measured_page
from diffugen.miniature.scenes import CLASSES, KNOWN_CLASSES
from diffugen.miniature.sets import scene_set
from diffugen.miniature.sheet import scene_sheet
from diffugen.prompts.make import make_prompts
from diffugen.records import STEP_THIRDS, GeneratedImage, HeatMaps, Instances, Prompt

WEIGHTS = Path(__file__).parent / "weights"
SETTINGS = {"num_inference_steps": 20, "guidance_scale": 3.0}
_LOOKS: dict[str, Sequence[str]] = {
    "weather": ("sunny", "cloudy", "rainy", "snowy", "foggy"),
    "time": ("day", "sunset", "night"),
}
_COLOURS = {"piano": ("black", "brown", "white")}
_PAIRS = (
    ("car", "person"),
    ("truck", "traffic cone"),
    ("person", "traffic cone"),
    ("car", "truck"),
    ("piano", "person"),
    ("bus", "car"),
)
_PIANO_PAIRS_ON_ROADS = ("car", "truck", "person")
BAD_IOU = 0.5
"""A label with a lower IoU is called bad."""


@dataclass
class Sample:
    """Generated images of one kind of prompt.

    Attributes:
        name: Name of the kind.
        classes: The prompted classes.
        done: N generated images.
        maps: The oracle's class maps, int64 (N, H, W).
    """

    name: str
    classes: tuple[str, ...]
    done: list[GeneratedImage]
    maps: NDArray[np.int64]

    def found_frac(self) -> float:
        """Return the share of images in which the oracle finds all prompted classes."""
        return float(
            np.mean([all(oracle.found(labels, name) for name in self.classes) for labels in self.maps])
        )


def measure(
    weights: Path | None,
    out: Path,
    *,
    images: int = 40,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Measure a set of weights and write ``README.md``, ``numbers.json`` and pictures.

    Args:
        weights: Folder with ``diffusion`` and ``oracle``; None for those in the package.
        out: Output folder.
        images: Number of generated images of each kind of prompt.
        on_progress: Called with the number of finished steps and of all steps.

    Returns:
        Path of the page.

    Raises:
        DiffugenError: The weights are missing.
    """
    weights = weights or WEIGHTS
    if not (weights / "oracle").is_dir():
        command = shell_command("miniature", "train", "--out", weights, "--stage", "oracle")
        raise DiffugenError(f"no oracle in {weights}; train it: {command}")
    out.mkdir(parents=True, exist_ok=True)
    pipeline, judge = load_pipeline(weights / "diffusion"), oracle.load_oracle(weights / "oracle")
    size_wh = default_size_wh(pipeline)
    config = load_config("miniature")
    label_settings = config.labels
    kinds = kinds_of_prompts(images)
    steps = len(kinds) + 2
    on_progress(0, steps)
    numbers: dict[str, Any] = {"oracle_iou": _oracle_on_renders(judge, size_wh)}
    on_progress(1, steps)
    samples = []
    for name, (classes, prompts) in kinds.items():
        jobs = PromptJobs(
            prompts, images_per_prompt=1, run_seed=1, size_wh=size_wh, model="miniature", settings=SETTINGS
        )
        done = list(generate(pipeline, jobs, batch_size=8))
        samples.append(Sample(name, classes, done, oracle.segment(judge, [rgb for _, rgb, _, _ in done])))
        on_progress(1 + len(samples), steps)
    numbers["found"] = {sample.name: round(sample.found_frac(), 3) for sample in samples}
    seen = _witnesses(weights, samples, label_settings.detector_confidence)
    numbers["labels"] = {
        name: _label_quality(samples, settings, seen if settings.source == "both" else None)
        for name, settings in _compared(label_settings).items()
    }
    numbers["scores"] = _score_quality(samples, label_settings.changed(source="attention"), config.score)
    numbers["attention_iou_by_part"] = _iou_by_part(samples)
    numbers["seconds_an_image"] = _seconds_an_image(pipeline, size_wh)
    _draw(out, samples, pipeline, size_wh, config.labels, config.score)
    on_progress(steps, steps)
    (out / "numbers.json").write_text(json.dumps(numbers, indent=1) + "\n")
    page = out / "README.md"
    page.write_text(measured_page(numbers, images), encoding="utf-8")
    return page


def kinds_of_prompts(count: int) -> dict[str, tuple[tuple[str, ...], list[Prompt]]]:
    """Return, for each kind of prompt by name, its classes and ``count`` prompts."""
    templates: dict[str, tuple[tuple[str, ...], str]] = {
        name: ((name,), f"a photo of a {_described(name)} on a road, {{weather}}, {{time}}")
        for name in (*KNOWN_CLASSES, "bus")
    }
    for place, name in (("in a room", "piano"), ("on a road", "piano on road")):
        templates[name] = (("piano",), f"a photo of a {{colour}} {{piano}} {place}, {{weather}}, {{time}}")
    for other in _PIANO_PAIRS_ON_ROADS:
        template = f"a photo of a {{piano}} and a {{{other}}} on a road, {{weather}}, {{time}}"
        templates[f"piano on road + {other}"] = (("piano", other), template)
    for first, second in _PAIRS:
        place = "in a room" if first == "piano" else "on a road"
        template = f"a photo of a {{{first}}} and a {{{second}}} {place}, {{weather}}, {{time}}"
        templates[f"{first} + {second}"] = ((first, second), template)
    return {
        name: (classes, _prompts(template, classes, count)) for name, (classes, template) in templates.items()
    }


def _described(name: str) -> str:
    return {"traffic cone": "{traffic cone}", "person": "{person} in {colour}"}.get(
        name, f"{{colour}} {{{name}}}"
    )


def _prompts(template: str, names: Sequence[str], count: int) -> list[Prompt]:
    colours = _COLOURS.get(names[0], ("red", "blue", "green", "yellow", "white"))
    attributes = {**_LOOKS, **({"colour": colours} if "{colour}" in template else {})}
    classes = {name: ("grand piano", "piano") if name == "piano" else (name,) for name in names}
    background = ("road",) if "road" in template else ()
    return make_prompts([template], attributes, classes, background, count=count, sampling="sample", seed=5)


def _oracle_on_renders(judge: Any, size_wh: tuple[int, int]) -> dict[str, float]:
    drawn = list(scene_set("uniform", 400, size_wh))
    truth = np.stack([oracle.class_map(one) for one in drawn])
    scores = oracle.intersection_over_union(truth, oracle.segment(judge, [one.rgb for one in drawn]))
    return {name: round(value, 3) for name, value in scores.items()}


def class_mask(instances: Instances, class_name: str) -> NDArray[np.bool_]:
    """Return the pixels of all instances of a class, bool (H, W)."""
    width, height = instances.size_wh
    mask = np.zeros((height, width), bool)
    for name, rle in zip(instances.class_names, instances.rles, strict=True):
        if name == class_name:
            mask |= decode(rle)
    return mask


def iou(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Return the IoU of two masks of the same shape; 0 if both are empty."""
    union = int((one | other).sum())
    return float((one & other).sum() / union) if union else 0.0


def _judged(
    samples: Sequence[Sample],
) -> list[tuple[str, str, NDArray[np.uint8], HeatMaps, NDArray[np.bool_]]]:
    """Return sample name, class, pixels, heat maps and oracle mask wherever the oracle finds the class."""
    return [
        (sample.name, name, rgb, heat_maps, labels == 1 + CLASSES.index(name))
        for sample in samples
        for (_, rgb, heat_maps, _), labels in zip(sample.done, sample.maps, strict=True)
        for name in sample.classes
        if oracle.found(labels, name)
    ]


def _compared(settings: LabelSettings) -> dict[str, LabelSettings]:
    """Return the label settings that are compared, by name; the last are those of the configuration."""
    # The paper's method needs erosion and dilation; refined masks do not.
    paper = settings.changed(method="paper", source="attention")
    rough = {"refine": "none", "erode_frac": 0.01, "dilate_frac": 0.01}
    return {
        "paper": paper.changed(**rough),
        "paper, refined": paper,
        "rivals subtracted": paper.changed(method="compete"),
        "witness": paper.changed(source="both"),
        "both": paper.changed(method="compete", source="both"),
    }


def _witnesses(weights: Path, samples: Sequence[Sample], confidence: float) -> dict[str, Witness]:
    """Return what the base detector finds in each image, by its id."""
    detector = YoloDetector(weights / "detector")
    known = frozenset(detector.class_names)
    seen = {}
    for sample in samples:
        images = [rgb for _, rgb, _, _ in sample.done]
        found = detector.predict(images, image_size=detector.image_size or 128, confidence=confidence)
        for (record, rgb, _, _), one in zip(sample.done, found, strict=True):
            seen[record.id] = Witness(finished(one, rgb), known)
    return seen


def _label_quality(
    samples: Sequence[Sample], settings: LabelSettings, seen: Mapping[str, Witness] | None
) -> dict[str, dict[str, float]]:
    """Return, by kind of prompt, mean IoU with the oracle, share of bad labels, and number of labels."""
    values: dict[str, list[float]] = {}
    for sample in samples:
        for (record, rgb, heat_maps, _), labels in zip(sample.done, sample.maps, strict=True):
            witness = None if seen is None else seen[record.id]
            instances = label(heat_maps, settings, ScoreWeights(), rgb, witness)
            for name in sample.classes:
                if oracle.found(labels, name):
                    truth = labels == 1 + CLASSES.index(name)
                    values.setdefault(sample.name, []).append(iou(class_mask(instances, name), truth))
    return {
        name: {
            "iou": round(float(np.mean(ious)), 3),
            "bad": round(float(np.mean(np.array(ious) < BAD_IOU)), 3),
            "labels": len(ious),
        }
        for name, ious in values.items()
    }


def _score_quality(
    samples: Sequence[Sample], settings: LabelSettings, weights: ScoreWeights
) -> dict[str, float]:
    """Return, for each score and each of its terms, how well it tells good labels from bad ones (AUROC)."""
    terms: list[Mapping[str, float]] = []
    good: list[bool] = []
    for sample in samples:
        for (_, rgb, heat_maps, _), labels in zip(sample.done, sample.maps, strict=True):
            instances = label(heat_maps, settings, weights, rgb)
            for name, rle, measured in zip(
                instances.class_names, instances.rles, instances.terms, strict=True
            ):
                terms.append(measured)
                good.append(iou(decode(rle), labels == 1 + CLASSES.index(name)) >= BAD_IOU)
    scores = {"paper": ScoreWeights.model_validate("paper"), "configured": weights}
    values = {name: [score(one, each) for one in terms] for name, each in scores.items()}
    values |= {term: [one[term] for one in terms] for term in HEAT_TERMS}
    found = {name: round(_auroc(np.array(one), np.array(good)), 3) for name, one in values.items()}
    return {"labels": len(good), "good": sum(good), **found}


def _auroc(values: NDArray[np.float64], good: NDArray[np.bool_]) -> float:
    """Return the probability that a good label has the higher value of two; ties count half."""
    higher = values[good][:, None] - values[~good][None]
    return float(np.mean((higher > 0) + 0.5 * (higher == 0))) if higher.size else float("nan")


def _iou_by_part(samples: Sequence[Sample]) -> dict[str, list[float]]:
    """Return, for each layer group, the mean IoU of each third's heat maps, thresholded by Otsu's method."""
    judged = _judged([sample for sample in samples if len(sample.classes) == 1])
    table: dict[str, list[float]] = {}
    for group in sorted(judged[0][3].maps):
        table[group] = []
        for third in range(STEP_THIRDS):
            steps = tuple(float(number == third) for number in range(STEP_THIRDS))
            scores = []
            for _, name, _, heat_maps, truth in judged:
                place = next(
                    number for number, phrase in enumerate(heat_maps.phrases) if phrase.class_name == name
                )
                heat = combine(heat_maps, {group: 1.0}, steps)[place]  # type: ignore[arg-type]
                scores.append(iou(threshold(heat, "otsu"), truth))
            table[group].append(round(float(np.mean(scores)), 3))
    return table


def _seconds_an_image(pipeline: Any, size_wh: tuple[int, int]) -> float:
    prompts = _prompts("a photo of a {colour} {car} on a road, {weather}, {time}", ["car"], 8)
    jobs = PromptJobs(
        prompts, images_per_prompt=1, run_seed=2, size_wh=size_wh, model="miniature", settings=SETTINGS
    )
    times = []
    for _ in range(3):
        start = time.perf_counter()
        list(generate(pipeline, jobs, batch_size=8))
        times.append((time.perf_counter() - start) / len(jobs))
    return round(min(times), 3)


def _draw(
    out: Path,
    samples: Sequence[Sample],
    pipeline: Any,
    size_wh: tuple[int, int],
    settings: LabelSettings,
    weights: ScoreWeights,
) -> None:
    prompts = [sample.done[0][0].prompt for sample in samples[:6]] + [
        samples[6].done[0][0].prompt,
        samples[8].done[0][0].prompt,
    ]
    jobs = PromptJobs(
        prompts, images_per_prompt=8, run_seed=3, size_wh=size_wh, model="miniature", settings=SETTINGS
    )
    by_prompt: dict[str, list[NDArray[np.uint8]]] = {}
    for record, rgb, _, _ in generate(pipeline, jobs, batch_size=8):
        by_prompt.setdefault(record.prompt.text, []).append(rgb)
    rows = [Panel(tuple(enlarged(rgb, 112) for rgb in found), text) for text, found in by_prompt.items()]
    contact_sheet(
        rows, out / "prompts-and-seeds.png", columns=1, height=112, title="eight seeds of each prompt"
    )
    panels = []
    for sample in samples:
        for record, rgb, heat_maps, _ in sample.done[1:3]:
            instances = label(heat_maps, settings, weights, rgb)
            panels.append(attention_panel(rgb, heat_maps, instances, settings, record.prompt.text))
    title = "image, attention of the first class's words, masks with boxes and scores, without a witness"
    contact_sheet(panels, out / "heat-maps.png", columns=2, height=160, title=title)
    scene_sheet(scene_set("training", 8, (128, 128)), out / "scenes.png", columns=2)
