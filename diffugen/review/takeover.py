"""Take over into the run what people decide in a review dataset: with the plugin's keys, or with tags.

With tags, a person decides by tagging images ``accept_attention``, ``accept_model``, ``empty``, ``reject`` or
``edited`` (then the field ``human`` holds the correct labels), or by tagging single labels of any source
``accept``. Labels that were changed before they were accepted count as they are now.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from datetime import datetime, timezone
from typing import Any

from diffugen.errors import StoreError
from diffugen.labels.shapes import areas
from diffugen.records import OPEN, Decision, Instances, Judged
from diffugen.review import samples
from diffugen.review.detections import to_instances
from diffugen.review.judged import Unclear, drawn, joined, refuse_doubles
from diffugen.review.queue import fingerprint, same_outcome
from diffugen.review.tags import ACCEPT, TAG_OF, misspelt
from diffugen.review.verdicts import ANSWER, FINISH, VOTE, mark, votes_of
from diffugen.run.store import RunStore
from diffugen.run.votes import newest_votes, settled

TAGS_SECONDS = 1.5
"""How often tags are looked at, which people set by hand; votes are looked at more often."""


class Takeover:
    """Takes over into a run what people decide in its dataset, again and again while the App is open.

    Args:
        store: The run.
        dataset: What `diffugen.review.push.push` returned.
        reviewer: Who decided, where the App does not say.
        round: The round in which it was decided.
        notify: Called with a line for each image or tag that was not understood.
    """

    def __init__(
        self, store: RunStore, dataset: Any, *, reviewer: str, round: int, notify: Callable[[str], None]
    ) -> None:
        self._store, self._dataset = store, dataset
        self._reviewer, self._round = reviewer, round
        self._notify, self._told = notify, set[str]()
        self._votes = votes_of(dataset)
        self._votes.delete(FINISH)  # left by a session that was killed
        self._since: datetime | None = None
        self._next_look = 0.0
        self.decisions: list[Decision] = []
        """What was taken over so far."""

    def was_finished(self) -> bool:
        """Return whether somebody has ended the session since this was last asked."""
        return bool(self._votes.delete(FINISH))

    def __call__(self, *, often: bool = False) -> list[Decision]:
        """Keep everything new in the run, and return it.

        Args:
            often: Look at votes only, unless the last look at tags is `TAGS_SECONDS` ago.
        """
        found = self._voted()
        if found or not often or time.monotonic() >= self._next_look:
            found += self._tagged()
            self._next_look = time.monotonic() + TAGS_SECONDS
        self.decisions += found
        return found

    def _voted(self) -> list[Decision]:
        """Keep the votes of the App's plugin, and show them; a vote is forgotten once the run has it."""
        found = []
        for key in sorted(key for key in self._votes.list_keys() if key.startswith(VOTE)):
            vote = self._votes.get(key)
            sample = None if vote is None else self._sample(vote["sample"])
            if vote is not None and sample is not None:
                try:
                    decision = self._of_vote(sample, vote)
                except Unclear as problem:
                    self._votes.set(ANSWER + key, f"Not decided: {problem}")
                    self._votes.delete(key)
                    continue
                if not self._is_known(decision):
                    self._store.add_decisions([decision])
                    found.append(decision)
                self._show(sample, decision, vote["verdict"], vote["labels"])
            self._votes.delete(key)
        return found

    def _show(self, sample: Any, decision: Decision, said: str, labels: Collection[str]) -> None:
        """Show on a sample what counts: a decision, how many agree so far, or that it is undecided."""
        needed = self._store.consensus
        votes = newest_votes(self._store.votes(decision.image_id)).get(decision.image_id, ())
        given = sum(one.verdict != OPEN for one in votes)
        if needed > 1 and given and not settled(votes, needed):
            mark(sample, None, decision.reviewer, _now())
            sample["decision"] = f"{given} of {needed}"
            sample.save()
        elif decision.verdict == OPEN:
            mark(sample, None)
        else:
            mark(sample, decision.verdict, decision.reviewer, _now(), labels, said)

    def _sample(self, sample_id: str) -> Any:
        view = self._dataset.select([sample_id])
        return self._dataset[sample_id] if len(view) else None

    def _of_vote(self, sample: Any, vote: Mapping[str, Any]) -> Decision:
        if vote["verdict"] == OPEN:
            return Decision(sample["image_id"], OPEN, None, vote["reviewer"], self._round, (), vote["at"])
        return self._decision(sample, vote["verdict"], vote["reviewer"], vote["at"], vote["labels"])

    def _tagged(self) -> list[Decision]:
        """Keep what people say with tags, and tags that they removed."""
        from fiftyone import ViewField

        self._dataset.reload()
        label_tags = [
            tag for source in samples.SHOWN for tag in self._dataset.distinct(f"{source}.detections.tags")
        ]
        for line in misspelt(self._dataset.distinct("tags"), label_tags):
            self._say(line)
        changed = self._dataset.match(samples.is_decided() | ViewField("imported").exists())
        if self._since is not None:
            changed = changed.match(ViewField("last_modified_at") >= self._since)
        found = []
        for sample in changed.sort_by("rank").iter_samples():
            decision = self._understood(sample, self._of_tags)
            if decision is None:
                continue
            if not self._is_known(decision):
                self._store.add_decisions([decision])
                found.append(decision)
            said = samples.verdict(sample)
            shown = None if decision.verdict == OPEN else decision.verdict
            if (sample["imported"], sample["decision"]) != (None if said == OPEN else said, shown):
                self._show(sample, decision, str(said), [one.id for one in _accepted(sample)])
        self._since = self._dataset.bounds("last_modified_at")[1]
        return found

    def _of_tags(self, sample: Any) -> Decision:
        verdict = samples.verdict(sample)
        if verdict is None or verdict == OPEN:
            return Decision(sample["image_id"], OPEN, None, self._reviewer, self._round)
        # Whoever changes labels after a verdict is taken to be who gave it.
        again = verdict == sample["imported"] and sample["reviewer"]
        return self._decision(sample, verdict, again or self._reviewer)

    def _decision(
        self,
        sample: Any,
        verdict: str,
        reviewer: str,
        made_at: str = "",
        accepted: Collection[str] | None = None,
    ) -> Decision:
        """Return the decision that a verdict on a sample is.

        Args:
            sample: The sample.
            verdict: One of `VERDICTS`.
            reviewer: Who decided.
            made_at: When; empty for now.
            accepted: With ``edited``, ids of the labels that were accepted; None for those with the tag.

        Raises:
            Unclear: The labels cannot be used.
        """
        image_id, classes = str(sample["image_id"]), self._classes
        size_wh = self._store.record(image_id).size_wh
        instances: Instances | None = None
        judged: tuple[Judged, ...] = ()
        if verdict in ("attention", "model"):
            verdict, instances = _of_source(self._store, sample, verdict, size_wh, classes)
        elif verdict == "edited":
            instances, judged = _edited(sample, size_wh, classes, accepted)
        elif verdict == "empty":
            instances = to_instances([], size_wh, classes)
        if verdict == "edited" and instances is not None:
            instances = drawn(instances)
            verdict = verdict if instances else "empty"
        return Decision(image_id, verdict, instances, reviewer, self._round, judged, made_at)

    @property
    def _classes(self) -> Collection[str]:
        return list(self._dataset.info["classes"])

    def _understood(self, sample: Any, read: Callable[[Any], Decision]) -> Decision | None:
        try:
            return read(sample)
        except (Unclear, StoreError) as problem:
            self._say(f"image {sample['image_id']} ({sample.filename}) stays undecided: {problem}")
            return None

    def _say(self, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            self._notify(line)

    def _is_known(self, decision: Decision) -> bool:
        """Return whether the newest vote about an image says the same already."""
        votes = list(self._store.votes(decision.image_id))
        if not votes:
            return decision.verdict == OPEN
        return same_outcome(votes[-1], decision) and decision.made_at <= votes[-1].made_at


def _now() -> datetime:
    return datetime.now(timezone.utc)


def _accepted(sample: Any) -> list[Any]:
    """Return the labels of a sample with the tag ``accept``."""
    labels = (one for source in samples.SHOWN for one in samples.detections(sample, source))
    return [one for one in labels if ACCEPT in one.tags]


def _of_source(
    store: RunStore, sample: Any, source: str, size_wh: tuple[int, int], classes: Collection[str]
) -> tuple[str, Instances]:
    """Return verdict and labels of an accepted source; the verdict is ``edited`` if a person changed them."""
    field = samples.value(sample, source)
    if field is None:
        raise Unclear(f"it has no {source} labels to accept")
    instances = to_instances(field.detections, size_wh, classes)
    if not samples.is_as_pushed(field, size_wh):
        return "edited", instances
    # The run's own copy has the score terms too.
    kept = store.labels(source, image_id=sample["image_id"])
    same = (one.instances for one in kept if fingerprint(one.instances) == field["pushed"])
    return source, next(same, instances)


def _edited(
    sample: Any, size_wh: tuple[int, int], classes: Collection[str], chosen: Collection[str] | None
) -> tuple[Instances, tuple[Judged, ...]]:
    """Return the single labels that were accepted, or all human labels if there are none.

    Returns:
        The labels, and what that says about each label that the run knows.

    Raises:
        Unclear: There are neither, or the same object was accepted from two sources.
    """

    def is_accepted(label: Any) -> bool:
        return ACCEPT in label.tags if chosen is None else label.id in chosen

    found = {source: samples.detections(sample, source) for source in samples.SHOWN}
    accepted = {source: [one for one in labels if is_accepted(one)] for source, labels in found.items()}
    if not any(accepted.values()):
        if not found["human"]:
            raise Unclear(
                f"it is tagged {TAG_OF['edited']}, but its field human is empty; if there is nothing to "
                f"label, tag it {TAG_OF['empty']}"
            )
        return to_instances(found["human"], size_wh, classes), ()
    parts = [to_instances(labels, size_wh, classes) for labels in accepted.values()]
    refuse_doubles(parts)
    erased = {
        label.id
        for labels, part in zip(accepted.values(), parts, strict=True)
        for label, area in zip(labels, areas(part.rles), strict=True)
        if not area
    }
    judged = [
        Judged(
            source,
            int(one["index"]),
            is_accepted(one) and one.id not in erased,
            method=str(sample[source]["method"]),
        )
        for source in ("attention", "model")
        for one in found[source]
        if one.has_field("index") and one["index"] is not None
    ]
    return joined(parts, size_wh), tuple(judged)
