"""The page that reports how good the miniature is. Knows numbers, not how they were measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

AIM_FOUND = {"piano on road": 0.8}
PICTURES = {
    "prompts-and-seeds": "Prompts and seeds",
    "heat-maps": "Heat maps and labels",
    "scenes": "Training scenes",
}
_INTRODUCTION = """\
Made by `diffugen miniature measure --out reports/miniature --images {images}`: {images} generated
images for each kind of prompt, 20 DDIM steps, guidance scale 3. They are judged by the oracle, a
segmenter trained on exact masks: an object counts as *found* if the oracle assigns its class to at
least 1% of the image, and attention labels are compared with the oracle's masks. Attention was **not**
supervised: the diffusion model never saw a mask. The oracle itself makes mistakes (its IoU on fresh
renders is below), so agreement with it cannot reach 1. Labels use the settings of
`configs/miniature.yaml`, whose layers, steps and weights were chosen on other images, with the oracle.
A label is *bad* if its IoU with the oracle's mask is below .5. `paper`: each heat map by itself,
Otsu's threshold, erosion, dilation; `refined`, and all after it: edges moved to where the image's
colours change; `rivals subtracted`: less the heat of the other phrases; `witness`: the base detector
labels the classes that it knows, and its objects are cut out of the others' labels; `both`: both."""

_SCORES = """\
The probability that of a good and a bad attention label the good one scores higher (AUROC), on
{total} refined labels without a witness, {good} of them good. .5 is chance; below it, the score
prefers bad labels. `paper`: box size and heat intensity; `configured`: the weights of
`configs/miniature.yaml`, chosen on other images; the others: each term alone."""


def measured_page(numbers: dict[str, Any], images: int) -> str:
    """Return the page as Markdown.

    Args:
        numbers: The measurements of `diffugen.miniature.measure.measure`.
        images: Number of generated images of each kind of prompt.
    """
    found = numbers["found"]
    singles, pairs = [name for name in found if " + " not in name], [name for name in found if " + " in name]
    methods = numbers["labels"]
    aims = [
        *((f"{name}: found", found[name], AIM_FOUND.get(name, 0.9)) for name in singles),
        (
            f"two objects in one prompt: both found (mean of {len(pairs)} pairs)",
            fmean(found[name] for name in pairs),
            0.6,
        ),
        *(
            (f"oracle IoU on fresh renders: {name}", value, 0.85)
            for name, value in numbers["oracle_iou"].items()
        ),
        ("attention labels of single objects, `paper`: mean IoU", _over(methods["paper"], singles)[0], 0.6),
        ("seconds per image (batch of 8, traced, best of 3)", numbers["seconds_an_image"], 0.6),
    ]
    by_method = []
    for name, values in methods.items():
        cells = [name]
        for kinds in (singles, pairs):
            iou, bad, labels = _over(values, kinds)
            cells += [f"{labels}", _cell(iou), f"{bad:.0%}"]
        by_method.append(cells)
    by_kind = [
        [name, *(f"{values[name]['iou']:.2f} ({values[name]['bad']:.0%})" for values in methods.values())]
        for name in found
        if all(name in values for values in methods.values())
    ]
    scores = dict(numbers["scores"])
    total, good = scores.pop("labels"), scores.pop("good")
    by_part = [[name, *map(_cell, values)] for name, values in numbers["attention_iou_by_part"].items()]
    return (
        "\n\n".join(
            [
                "# The miniature, measured",
                _INTRODUCTION.format(images=images),
                _table(
                    ["what", "measured", "aim"],
                    ([name, _cell(value), f"{aim:.2f}"] for name, value, aim in aims),
                ),
                "## Attention labels: one object in the prompt, and two",
                _table(
                    ["method", "single: labels", "IoU", "bad", "two objects: labels", "IoU", "bad"], by_method
                ),
                "## Attention labels by kind of prompt: mean IoU (share of bad labels)",
                _table(["kind", *methods], by_kind),
                "## Which score tells good labels from bad ones",
                _SCORES.format(total=total, good=good),
                _table(["score", "AUROC"], ([f"`{name}`", _cell(one)] for name, one in scores.items())),
                "## Which layers and steps localise best (Otsu threshold on each alone, mean IoU)",
                _table(["layer group", "first third of the steps", "middle", "last"], by_part),
                "## Two objects in one prompt: both found",
                _table(["pair", "share"], ([name, _cell(found[name])] for name in pairs)),
                *(f"## {title}\n\n![{title}]({name}.png)" for name, title in PICTURES.items()),
            ]
        )
        + "\n"
    )


def _over(values: Mapping[str, Mapping[str, float]], kinds: Sequence[str]) -> tuple[float, float, int]:
    """Return mean IoU, share of bad labels and number of labels over several kinds of prompt."""
    counts = [int(values[name]["labels"]) for name in kinds if name in values]
    total = sum(counts)
    sums = [
        sum(values[name][key] * values[name]["labels"] for name in kinds if name in values)
        for key in ("iou", "bad")
    ]
    return (sums[0] / total, sums[1] / total, total) if total else (0.0, 0.0, 0)


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])
