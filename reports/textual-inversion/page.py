"""Write the page on textual inversion with the miniature. Knows numbers, not how they were measured."""

from __future__ import annotations

from textwrap import fill
from typing import Any

CRITERIA = ("found", "on a road", "whole", "no hybrid", "sure")
ADHERENCE = ("weather and time as asked", "colour as asked")


def page(numbers: dict[str, Any], nouns: dict[str, str]) -> str:
    """Return the report as Markdown.

    Args:
        numbers: The result of `measure.measure`.
        nouns: From the name of each arm to its noun.
    """
    rows = {name: numbers["arms"][noun] for name, noun in nouns.items()}
    parts = [
        introduction(numbers),
        findings(numbers["arms"]),
        success(rows, numbers["renders"], numbers["limits"]),
        adherence(rows, numbers["scenes_right"]),
    ]
    return "\n\n".join(parts) + "\n"


def introduction(numbers: dict[str, Any]) -> str:
    """Return the setup of the measurement."""
    count, seeds = numbers["images_an_arm"], numbers["training_seeds"]
    return "\n\n".join(
        [
            "# Textual inversion on the miniature: pianos on roads",
            wrapped(
                "A token learns from the 8 images of `piano-photos`, all of pianos in a sunny room. Then "
                "pianos are generated **on roads**, with words and with the token, from the same prompts and "
                "the same noise."
            ),
            f"Command: `python reports/textual-inversion/measure.py --prompts {count} --seeds "
            f"{' '.join(map(str, seeds))}`\n"
            + wrapped(
                f"(about 15 minutes on one core). {count} images of each kind, divided evenly among the "
                f"tokens of {len(seeds)} training seeds. Training: {described(numbers['training'])}. "
                f"Sampling: {described(numbers['sampling'])}."
            ),
            "![the same prompts and noise with words and with tokens](pairs.png)",
            wrapped(
                "The columns show the first ten prompts of the measurement; they were not selected. All come "
                "from the first template of `configs/miniature.yaml`:"
            )
            + "\n`a photo of a {colour} {noun} on a road, {weather}, {time}`.",
        ]
    )


def findings(arms: dict[str, Any]) -> str:
    """Return the main findings, with the measured verdicts."""

    def was(noun: str, criterion: str) -> str:
        return f"{arms[noun][criterion][0]:.2f}"

    def judged(noun: str) -> str:
        return verdict(arms[noun]["against"])

    rooms = 1 - arms["<neutral>"]["on a road"][0]
    items = [
        "**If the model has a word, a token brings no gain.** The miniature knows pianos, and draws them on "
        f"roads when asked to: found in {was('grand piano', 'found')} of the images. With a token instead of "
        "the words, trained with captions that name the room, the change in strict success (below) is "
        f"{judged('<told>')} with one vector and {judged('<told-four>')} with four.",
        "**If it has no word, a token provides one.** Started at the word *truck*, with no word for pianos "
        f"in any prompt or caption, 8 images raise found from {was('truck', 'found')} to "
        f"{was('<from-truck>', 'found')} and strict success from {was('truck', 'strict')} to "
        f"{was('<from-truck>', 'strict')}: {judged('<from-truck>')}. The words still do better "
        f"({was('grand piano', 'strict')}). What is found without the token are dark trucks, a colour that "
        "trucks never have in training; the oracle takes a small part of them for a piano.",
        "**Captions decide what the token learns.** All 8 images show a sunny room. With neutral captions "
        f"(`a photo of a {{}}`, as in Gal et al. 2022), the token learns the room too: {rooms:.0%} of the "
        "images are rooms, weather and time are as asked in "
        f"{was('<neutral>', 'weather and time as asked')} of all images, the change in strict success is "
        f"{judged('<neutral>')}, and attention on the token no longer points at the piano (label IoU "
        f"{arms['<neutral>']['iou']:.2f}). Captions that name the room (`diffugen invert --template`) "
        "prevent all of this.",
    ]
    return "\n".join(wrapped(item, "- ") for item in items)


def success(rows: dict[str, Any], renders: dict[str, Any], limits: dict[str, float]) -> str:
    """Return the section on the strict test."""
    tests = {name: found["against"] for name, found in rows.items() if "against" in found}
    return "\n\n".join(
        [
            "## Success",
            wrapped(
                "*Found* (the oracle assigns at least 1% of the image to a piano) is the rate that "
                "reports/miniature gives. The strict test combines five criteria: found; on a road, not in a "
                "room; no hybrid (no pixel of another class in the piano or within two pixels of it); whole "
                f"(at least {limits['area']:.1%} of the image); sure (the oracle's mean probability for the "
                f"piano's pixels is at least {limits['sure']:.3f}). 95% of *rendered* pianos on roads meet "
                "each of the last two criteria on its own. The intervals treat the images as independent. "
                "*By seed*: the rates of each training seed's share of the prompts."
            ),
            table(
                ["prompt says", "strict (95% interval)", "by seed", *CRITERIA],
                [
                    [name, strict(found), by_seed(found), *(f"{found[one][0]:.2f}" for one in CRITERIA)]
                    for name, found in {**rows, "*fresh renders, for reference*": renders}.items()
                ],
            ),
            "Strict success, pair by pair (same prompt, same noise):",
            "\n".join(
                f"- {name}, instead of `{test['words']}`: {test['gained']} pairs gained, {test['lost']} lost "
                f"(sign test, {chance(test['p'])}): **{verdict(test)}**"
                for name, test in tests.items()
            ),
        ]
    )


def adherence(rows: dict[str, Any], scenes_right: dict[str, float]) -> str:
    """Return the section on the rest of the prompt and on the labels."""
    return "\n\n".join(
        [
            "## Prompt adherence and labels",
            wrapped(
                "Whether the images follow the rest of the prompt, and the IoU of the noun's attention "
                "labels (settings of `configs/miniature.yaml`) with the oracle's mask, where the oracle "
                "finds a piano:"
            ),
            table(
                ["prompt says", *ADHERENCE, "label IoU", "change from the words (± 2 standard errors)"],
                [
                    [
                        name,
                        *(f"{found[one][0]:.2f}" for one in ADHERENCE),
                        iou(found["iou"]),
                        change(found.get("against")),
                    ]
                    for name, found in rows.items()
                ],
            ),
            wrapped(
                "A small network trained on renders judges place, weather and time; its accuracy on fresh "
                f"renders is {described(scenes_right)}. Colours are judged by the mean colour of renders in "
                "the same weather and light. All judges err more on generated images than on renders."
            ),
        ]
    )


def wrapped(text: str, bullet: str = "") -> str:
    """Return a paragraph, or an item of a list, with line breaks."""
    indent = " " * len(bullet)
    return fill(text, 120, initial_indent=bullet, subsequent_indent=indent, break_on_hyphens=False)


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])


def described(values: dict[str, float]) -> str:
    """Return named numbers as text."""
    return ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in values.items())


def strict(found: dict[str, Any]) -> str:
    """Return a strict success rate with its interval."""
    share, low, high = found["strict"]
    return f"{share:.2f} ({low:.2f}-{high:.2f})"


def by_seed(found: dict[str, Any]) -> str:
    """Return the strict success rate for each training seed's share of the prompts; renders have none."""
    return ", ".join(f"{share:.2f}" for share in found.get("strict_by_seed", ())) or "-"


def chance(p: float) -> str:
    """Return a p-value as text."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def iou(value: float | None) -> str:
    """Return a mean IoU as text; a dash if there is none."""
    return "-" if value is None else f"{value:.2f}"


def change(test: dict[str, Any] | None) -> str:
    """Return the mean change of the label IoU against the words, with twice its standard error."""
    found = (test or {}).get("iou_change")
    return f"{found['mean']:+.3f} ± {2 * found['standard_error']:.3f}" if found else "-"


def verdict(test: dict[str, Any]) -> str:
    """Return the verdict on a difference: noise if the sign test gives p >= 0.05."""
    if test["p"] >= 0.05:
        return "noise"
    return "a gain" if test["gained"] > test["lost"] else "a loss"
