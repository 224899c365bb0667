"""The meaning of the tags on an image and on its labels.

One tag on the image decides about it; the tag ``accept`` on single labels makes exactly those the correct
ones. Contradictory tags are not interpreted. Knows no FiftyOne.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from diffugen.errors import did_you_mean
from diffugen.records import OPEN
from diffugen.review.judged import Unclear

VERDICT_OF = {
    "accept_attention": "attention",
    "accept_model": "model",
    "empty": "empty",
    "reject": "reject",
    "edited": "edited",
    "open": OPEN,
}
"""From a tag on an image to its verdict."""

TAG_OF = {verdict: tag for tag, verdict in VERDICT_OF.items()}

ACCEPT = "accept"
"""Tag on a single label."""


def verdict_of(tags: Collection[str], accepted: int) -> str | None:
    """Return the verdict that the tags express; None if there is none.

    Args:
        tags: The tags of the image.
        accepted: How many of its labels are tagged ``accept``.

    Raises:
        Unclear: They express two verdicts.
    """
    said = [tag for tag in VERDICT_OF if tag in tags]
    if len(said) + bool(accepted) > 1:
        found = [*said, f"{ACCEPT} (on {accepted} of its labels)"] if accepted else said
        raise Unclear(f"it is tagged {' and '.join(found)}; keep one of these")
    if accepted:
        return "edited"
    return VERDICT_OF[said[0]] if said else None


def misspelt(image_tags: Iterable[str], label_tags: Iterable[str]) -> list[str]:
    """Return a line for each tag that has no meaning where it is, but was probably meant to have one."""
    lines = []
    for tag in sorted(set(image_tags) - set(VERDICT_OF)):
        hint = did_you_mean(tag.lower(), VERDICT_OF)
        if hint:
            lines.append(f"the tag {tag!r} on images has no meaning{hint}")
    for tag in sorted(set(label_tags) - {ACCEPT}):
        hint = did_you_mean(tag.lower(), [ACCEPT])
        if tag in VERDICT_OF:
            lines.append(f"the tag {tag!r} has no meaning on labels; tag the image with it, not its labels")
        elif hint:
            lines.append(f"the tag {tag!r} on labels has no meaning{hint}")
    return lines
