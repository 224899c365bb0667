"""Tags have one meaning, or are reported."""

from __future__ import annotations

import pytest

from diffugen.records import OPEN, VERDICTS
from diffugen.review.judged import Unclear
from diffugen.review.tags import TAG_OF, misspelt, verdict_of


@pytest.mark.parametrize(
    ("tags", "accepted", "verdict"),
    [
        ([], 0, None),
        (["funny", "night"], 0, None),
        (["accept_attention", "funny"], 0, "attention"),
        (["accept_model"], 0, "model"),
        (["empty"], 0, "empty"),
        (["reject"], 0, "reject"),
        (["edited"], 0, "edited"),
        ([], 2, "edited"),
    ],
)
def test_verdict(tags: list[str], accepted: int, verdict: str | None) -> None:
    assert verdict_of(tags, accepted) == verdict


@pytest.mark.parametrize(
    ("tags", "accepted", "message"),
    [
        (["accept_attention", "accept_model"], 0, "tagged accept_attention and accept_model; keep one"),
        (["empty", "reject", "funny"], 0, "empty and reject"),
        (["accept_attention"], 1, "accept_attention and accept"),
        (["edited"], 3, "on 3 of its labels"),
    ],
)
def test_contradictions_are_reported(tags: list[str], accepted: int, message: str) -> None:
    with pytest.raises(Unclear, match=message):
        verdict_of(tags, accepted)


def test_every_verdict_has_a_tag() -> None:
    assert sorted(TAG_OF) == sorted((*VERDICTS, OPEN))


@pytest.mark.parametrize(
    ("image_tags", "label_tags", "lines"),
    [
        (["accept_attention", "night", "train"], ["accept", "blurred"], []),
        (["acept_model"], [], ["did you mean 'accept_model'"]),
        (["Reject"], [], ["did you mean 'reject'"]),
        (["accept"], [], ["did you mean 'accept_"]),
        ([], ["accept_model"], ["no meaning on labels; tag the image"]),
        ([], ["acept", "accepted"], ["'accepted' on labels", "'acept' on labels"]),
    ],
)
def test_misspelt_tags_are_reported(image_tags: list[str], label_tags: list[str], lines: list[str]) -> None:
    found = misspelt(image_tags, label_tags)
    assert len(found) == len(lines)
    assert all(part in line for part, line in zip(lines, found, strict=True))
