"""What the tags of an image and of its labels mean.

One tag on the image decides about it; the tag ``accept`` on single labels makes exactly those the right ones.
Tags that contradict each other are not interpreted. Knows no FiftyOne.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable

VERDICT_OF = {
    "accept_attention": "attention",
    "accept_model": "model",
    "empty": "empty",
    "reject": "reject",
    "edited": "edited",
}
"""From a tag on an image to the verdict it stands for."""

TAG_OF = {verdict: tag for tag, verdict in VERDICT_OF.items()}

ACCEPT = "accept"
"""Tag on a single label."""


class Unclear(Exception):
    """What a person left on an image cannot be understood; the text says why, and what would help."""


def verdict_of(tags: Collection[str], accepted: int) -> str | None:
    """Return the verdict that tags stand for; None if there is none.

    Args:
        tags: The tags of the image.
        accepted: How many of its labels are tagged ``accept``.

    Raises:
        Unclear: They say two things.
    """
    said = [tag for tag in VERDICT_OF if tag in tags]
    if len(said) + bool(accepted) > 1:
        told = [*said, f"{ACCEPT} (on {accepted} of its labels)"] if accepted else said
        raise Unclear(f"it is tagged {' and '.join(told)}; keep one of these")
    if accepted:
        return "edited"
    return VERDICT_OF[said[0]] if said else None


def misspelt(image_tags: Iterable[str], label_tags: Iterable[str]) -> list[str]:
    """Return a line for each tag that means nothing where it stands, but was probably meant to."""
    lines = []
    for tag in sorted(set(image_tags) - set(VERDICT_OF)):
        near = difflib.get_close_matches(tag.lower(), VERDICT_OF, n=2, cutoff=0.6)
        if near:
            lines.append(f"the tag {tag!r} on images means nothing; did you mean {' or '.join(near)}?")
    for tag in sorted(set(label_tags) - {ACCEPT}):
        if tag in VERDICT_OF:
            lines.append(
                f"the tag {tag!r} is on labels, where it means nothing; tag the image with it, not its labels"
            )
        elif difflib.get_close_matches(tag.lower(), [ACCEPT], cutoff=0.6):
            lines.append(f"the tag {tag!r} on labels means nothing; did you mean {ACCEPT}?")
    return lines
