"""What the App's plugin does in a review: decide, take back, and find what comes next.

The plugin writes a verdict as a *vote* into the database, and waits until the process that has the run has
taken it over (`diffugen.review.takeover`) and shows it on the sample. So what a reviewer sees is what the run
has, and a vote that cannot be used is answered with the reason. A vote whose answer never comes, because that
process was killed, waits for the next session.

Knows FiftyOne's samples and the meaning of tags; neither runs nor the App.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection, Sequence
from datetime import datetime, timezone
from typing import Any

from diffugen.records import OPEN, VERDICTS
from diffugen.review import samples
from diffugen.review.tags import ACCEPT, TAG_OF, VERDICT_OF

FINISH = "finish"
"""Key of the entry that ends a session."""

VOTE, ANSWER = "vote-", "answer-"
"""What the keys of votes begin with, and before these, those of answers to votes that cannot be used."""

PATIENCE_SECONDS = 10.0
"""How long the plugin waits for an answer."""

LOOK_SECONDS = 0.05


def votes_of(dataset: Any) -> Any:
    """Return the ``fiftyone.operators.store.ExecutionStore`` with the votes on a dataset's samples.

    Keys of votes sort by time. A vote has the keys ``sample`` (id), ``verdict``, ``reviewer``,
    ``at`` (UTC, ISO 8601) and ``labels`` (ids of the accepted labels).
    """
    from fiftyone.operators.store import ExecutionStore

    return ExecutionStore.create(f"diffugen-review-{dataset.name}")


def decide(
    dataset: Any,
    sample_ids: Sequence[str],
    verdict: str,
    reviewer: str,
    label_ids: Collection[str] = (),
    patience: float = PATIENCE_SECONDS,
) -> list[str]:
    """Record a verdict on samples, and wait until the run has it.

    Args:
        dataset: The review dataset.
        sample_ids: The samples.
        verdict: One of `VERDICTS`.
        reviewer: Who decides.
        label_ids: With ``edited``, the labels that are right; if there are none, all of ``human`` are.
        patience: How long to wait for an answer, in seconds.

    Returns:
        Why votes could not be used, or are still waiting; empty if all is well.
    """
    votes, keys = votes_of(dataset), []
    for sample in dataset.select(list(sample_ids), ordered=True).iter_samples():
        labels = (one for source in samples.SHOWN for one in samples.detections(sample, source))
        kept = [one.id for one in labels if one.id in label_ids]
        keys.append(_vote(votes, sample.id, verdict, reviewer, kept))
    return _answers(votes, keys, patience)


def take_back(dataset: Any, reviewer: str, patience: float = PATIENCE_SECONDS) -> str | None:
    """Take back the newest verdict of a reviewer that still stands; return the sample's id, None without."""
    from fiftyone import ViewField

    mine = dataset.match((ViewField("reviewer") == reviewer) & ViewField("decided_at").exists())
    if not len(mine):
        return None
    sample_id = str(mine.sort_by("decided_at", reverse=True).first().id)
    votes = votes_of(dataset)
    _answers(votes, [_vote(votes, sample_id, OPEN, reviewer, [])], patience)
    return sample_id


def _vote(votes: Any, sample_id: str, verdict: str, reviewer: str, labels: list[str]) -> str:
    value = {"sample": sample_id, "verdict": verdict, "reviewer": reviewer, "labels": labels}
    key = f"{VOTE}{time.time_ns():020d}-{secrets.token_hex(4)}"
    votes.set(key, {**value, "at": datetime.now(timezone.utc).isoformat(timespec="milliseconds")})
    return key


def _answers(votes: Any, keys: Sequence[str], patience: float) -> list[str]:
    """Wait until votes are answered, and return what is wrong with them."""
    deadline = time.monotonic() + patience
    while any(votes.has(key) for key in keys) and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)
    found = [votes.get(ANSWER + key) for key in keys]
    for key in keys:
        votes.delete(ANSWER + key)
    waiting = sum(votes.has(key) for key in keys)
    late = ["The run is busy; the verdict is kept and will be taken over"] if waiting else []
    return [*(str(one) for one in found if one), *late]


def mark(
    sample: Any,
    verdict: str | None,
    reviewer: str | None = None,
    at: datetime | None = None,
    labels: Collection[str] = (),
    said: str | None = None,
) -> None:
    """Show a verdict on a sample: its tag, those of its labels, and its fields.

    Args:
        sample: The sample.
        verdict: The verdict; None for none.
        reviewer: Who decided.
        at: When.
        labels: Ids of the labels that were accepted.
        said: What the reviewer said, if that is not the verdict: ``model`` about labels that were changed
            before makes a verdict ``edited``. The tag says it.
    """
    said = said or verdict
    for source in samples.SHOWN:
        for one in samples.detections(sample, source):
            others = [tag for tag in one.tags if tag != ACCEPT]
            one.tags = [*others, ACCEPT] if one.id in labels else others
    others = [tag for tag in sample.tags if tag not in VERDICT_OF]
    # Accepted labels say `edited` by themselves; both together would be two verdicts.
    sample.tags = others if said is None or labels else [*others, TAG_OF[said]]
    sample["decision"], sample["imported"] = verdict, said
    sample["reviewer"], sample["decided_at"] = reviewer, at
    sample.save()


def undecided(dataset: Any) -> Any:
    """Return the view of the samples in the queue that nobody has decided, worst first."""
    from fiftyone import ViewField

    decided = ViewField("decision").is_in(list(VERDICTS))
    return dataset.exists("rank").match(~decided).sort_by("rank")


def following(dataset: Any, sample_id: str | None, *, back: bool = False) -> str | None:
    """Return the id of the undecided sample after or before one; from the other end if there is none.

    Args:
        dataset: The review dataset.
        sample_id: The sample; None for the first undecided one.
        back: Whether to go back.
    """
    ids, ranks = undecided(dataset).values(["id", "rank"])
    here = None if sample_id is None else dataset[sample_id]["rank"]
    open_ones = [(rank, one) for one, rank in zip(ids, ranks, strict=True) if one != sample_id]
    if not open_ones:
        return None
    if back:
        open_ones.reverse()
    if here is None:
        return str(open_ones[0][1])
    beyond = (one for rank, one in open_ones if (rank < here if back else rank > here))
    return str(next(beyond, open_ones[0][1]))


def counts(dataset: Any) -> tuple[int, int]:
    """Return how many images of the queue are decided, and how many there are."""
    total = len(dataset.exists("rank"))
    return total - len(undecided(dataset)), total


def have_human(dataset: Any, sample_ids: Sequence[str]) -> bool:
    """Return whether somebody drew labels on each of these samples."""
    return all(samples.detections(dataset[one], "human") for one in sample_ids)


def to_edit(dataset: Any, sample_id: str | None, selected: Sequence[str]) -> str | None:
    """Return the id of the label that somebody who wants to change a mask means; None if that is not clear.

    It is the one that was selected last, or the only one, or the only one that is disputed.

    Args:
        dataset: The review dataset.
        sample_id: The open sample; None for none.
        selected: Ids of the selected labels, in the order in which they were selected.
    """
    if sample_id is None:
        return None
    sample = dataset[sample_id]
    labels = [one for source in samples.SHOWN for one in samples.detections(sample, source)]
    ids = [one.id for one in labels]
    chosen = [one for one in selected if one in ids]
    disputed = [one.id for one in labels if samples.value(one, "kind")]
    if chosen:
        return chosen[-1]
    return next((str(those[0]) for those in (ids, disputed) if len(those) == 1), None)


def about(dataset: Any, sample_id: str | None) -> dict[str, Any]:
    """Return what the panel shows, as JSON values: the progress, and a sample if one is open."""
    decided, total = counts(dataset)
    found: dict[str, Any] = {"decided": decided, "total": total}
    if sample_id and len(dataset.select([sample_id])):
        sample = dataset[sample_id]
        names = ("prompt", "rank", "decision", "reviewer", "strip")
        found |= {name: samples.value(sample, name) for name in names}
        found["why"] = list(samples.value(sample, "why") or ())
        found["labels"] = {
            source: [[one.label, one.confidence] for one in samples.detections(sample, source)]
            for source in samples.SHOWN
        }
    return found
