"""The page that says what textual inversion does on the miniature. Knows numbers, not how they were
measured.
"""

from __future__ import annotations

from typing import Any

CRITERIA = ("found", "on a road", "whole", "no hybrid", "sure")
OBEDIENCE = ("weather and time as asked", "colour as asked")


def page(numbers: dict[str, Any], nouns: dict[str, str]) -> str:
    """Return the report as Markdown.

    Args:
        numbers: What `measure.measure` found.
        nouns: From the name of each way to say piano to its noun.
    """
    count, seeds, limits = numbers["images_an_arm"], numbers["training_seeds"], numbers["limits"]
    rows = {name: numbers["arms"][noun] for name, noun in nouns.items()}
    tests = {name: found.get("against") for name, found in rows.items()}
    return (
        "\n\n".join(
            [
                "# Textual inversion on the miniature: pianos on roads",
                "A token is learned from the 8 pictures of `piano-photos`, all of pianos in a sunny room. "
                "Then pianos are generated\n"
                "**on roads**, with words and with the token, from the same prompts and the same noise.",
                f"Command: `python reports/textual-inversion/measure.py --prompts {count} --seeds "
                f"{' '.join(map(str, seeds))}`\n"
                f"(about 15 minutes of one core). {count} images of each kind, shared evenly by tokens of "
                f"{len(seeds)} training seeds.\n"
                f"Training: {described(numbers['training'])}. Sampling: {described(numbers['sampling'])}.",
                "![the same prompts and noise with words and with tokens](pairs.png)",
                "The columns are the first ten prompts of the measurement, not chosen ones, all made of the "
                "first template of\n"
                "`configs/miniature.yaml`: `a photo of a {colour} {noun} on a road, {weather}, {time}`.",
                findings(numbers["arms"]),
                "## Success",
                "*Found* (the oracle gives a piano at least 1% of the image) is the rate that "
                "reports/miniature gives. The strict\n"
                "test asks five things at once: found; on a road, not in a room; no hybrid (no pixel of "
                "another class in the piano\n"
                f"or within two pixels of it); whole (at least {limits['area']:.1%} of the image); sure (the "
                "oracle's mean probability\n"
                f"for the piano's pixels is at least {limits['sure']:.3f}). 95% of *rendered* pianos on "
                "roads meet each of the last two\n"
                "by itself. The intervals take each image by itself; *by seed*: the rates of each training "
                "seed's share of the prompts.",
                table(
                    ["prompt says", "strict (95% interval)", "by seed", *CRITERIA],
                    [
                        [name, strict(found), by_seed(found), *(f"{found[one][0]:.2f}" for one in CRITERIA)]
                        for name, found in {
                            **rows,
                            "*fresh renders, the yardstick*": numbers["renders"],
                        }.items()
                    ],
                ),
                "Pair by pair, that is with the same prompt and noise, strict:",
                "\n".join(
                    f"- {name}, not `{test['words']}`: {test['gained']} pairs gained, {test['lost']} lost "
                    "(sign test, "
                    f"{chance(test['p'])}): **{verdict(test)}**"
                    for name, test in tests.items()
                    if test
                ),
                "## Obedience and labels",
                "Whether the rest of the prompt is obeyed, and the IoU of the noun's attention labels "
                "(settings of\n"
                "`configs/miniature.yaml`) with the oracle's mask, wherever it finds a piano:",
                table(
                    [
                        "prompt says",
                        *OBEDIENCE,
                        "label IoU",
                        "change against the words (± 2 standard errors)",
                    ],
                    [
                        [
                            name,
                            *(f"{found[one][0]:.2f}" for one in OBEDIENCE),
                            iou(found["iou"]),
                            change(tests[name]),
                        ]
                        for name, found in rows.items()
                    ],
                ),
                "Place, weather and time are told by a small network trained on renders, right about fresh "
                "ones in\n"
                f"{described(numbers['scenes_right'])}; colours by the renders' mean in the same weather and "
                "light.\n"
                "All judges err more on generated images than on renders.",
            ]
        )
        + "\n"
    )


def findings(arms: dict[str, Any]) -> str:
    """Return what it comes to, verdicts as measured."""

    def was(noun: str, criterion: str) -> str:
        return f"{arms[noun][criterion][0]:.2f}"

    def judged(noun: str) -> str:
        return verdict(arms[noun]["against"])

    return (
        "- **Where the model has a word, there is nothing to gain by finding one.** The miniature knows "
        "pianos, and draws them\n"
        f"  on roads when told so: found {was('grand piano', 'found')} of the time. Strict success (below) "
        "with a token instead"
        f" of the words, learned\n  from captions that tell the room: {judged('<told>')} with one vector,"
        f" {judged('<told-four>')} with four.\n"
        "- **Where it has none, a token finds one.** Begun at the word *truck*, with no word for pianos in "
        "any prompt or\n"
        f"  caption, 8 pictures raise found from {was('truck', 'found')} to {was('<from-truck>', 'found')} "
        "and strict success"
        f" from {was('truck', 'strict')} to {was('<from-truck>', 'strict')}: {judged('<from-truck>')}.\n"
        f"  The words still do better ({was('grand piano', 'strict')}). What is found without the token are "
        "dark trucks, a"
        " colour they never have in\n  training, of which the oracle takes a small part for a piano.\n"
        "- **Captions decide what goes into the token.** All 8 pictures show a sunny room. With neutral "
        "captions (`a photo of\n"
        f"  a {{}}`, as in Gal et al. 2022) the token takes it in: "
        f"{1 - arms['<neutral>']['on a road'][0]:.0%} of the images"
        f" are rooms, weather and time are as asked in {was('<neutral>', 'weather and time as asked')},\n"
        f"  strict success is {judged('<neutral>')}, and attention on the token no longer points at the "
        "piano (label IoU"
        f" {arms['<neutral>']['iou']:.2f}).\n"
        "  Captions that name the room (`diffugen invert --template`) prevent all of this."
    )


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
    """Return the strict success rates on each training seed's share of the prompts; renders have none."""
    return ", ".join(f"{share:.2f}" for share in found.get("strict_by_seed", ())) or "-"


def chance(p: float) -> str:
    """Return a probability as text."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def iou(value: float | None) -> str:
    """Return a mean IoU, or that there is none."""
    return "-" if value is None else f"{value:.2f}"


def change(test: dict[str, Any] | None) -> str:
    """Return how labels changed against the words', with twice the standard error."""
    found = (test or {}).get("iou_change")
    return f"{found['mean']:+.3f} ± {2 * found['standard_error']:.3f}" if found else "-"


def verdict(test: dict[str, Any]) -> str:
    """Call a difference noise unless so uneven a split has less than 5% by chance."""
    if test["p"] >= 0.05:
        return "noise"
    return "a gain" if test["gained"] > test["lost"] else "a loss"
