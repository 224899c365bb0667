"""A section of a report: how far decisions can be trusted, and agreement that nobody decides about.

Reviewers who decided the same images show how often people differ; audits show how often both sources are
wrong together.
"""

from __future__ import annotations

from diffugen.comparison.reviewers import ReviewerAgreement, reviewer_agreement
from diffugen.comparison.shares import Share
from diffugen.errors import counted
from diffugen.records import KINDS
from diffugen.report.blocks import NOTHING, Block, Paragraph, Section, Table, as_count
from diffugen.report.facts import RunFacts
from diffugen.review.audits import audit_errors
from diffugen.review.queue import AUDIT, Queue, count_queue


def reviewers(facts: RunFacts, queue: Queue) -> Section:
    """Return the agreement between reviewers and the errors found by audits; empty where there is neither."""
    found = _agreement(queue)
    blocks = [*_consensus_blocks(queue), *_agreement_blocks(found), *_audit_blocks(facts, queue)]
    return Section("reviewers", "Reviewers and audits", tuple(blocks))


def share_in_words(share: Share) -> str:
    """Return, e.g., ``3 of 4 (75%, 95% interval 30% to 95%)``."""
    if share.interval is None or share.frac is None:
        return NOTHING
    low, high = share.interval
    return f"{share.hits} of {share.of} ({share.frac:.0%}, 95% interval {low:.0%} to {high:.0%})"


def _agreement(queue: Queue) -> ReviewerAgreement:
    kinds = {
        image_id: [one.kind for one in queue.disagreements[image_id]] or [AUDIT]
        for image_id in queue.votes
        if image_id in queue.disagreements
    }
    return reviewer_agreement(queue.votes, kinds)


def _consensus_blocks(queue: Queue) -> list[Block]:
    needed, voted = queue.store.consensus, count_queue(queue.store).voted
    if needed == 1:
        return []
    verb = "waits" if voted == 1 else "wait"
    text = (
        f"An image is decided when {needed} reviewers agree (review.consensus). "
        f"{counted(voted, 'image')} with a vote {verb} for another."
    )
    return [Paragraph((text,))]


def _agreement_blocks(found: ReviewerAgreement) -> list[Block]:
    if not found.images.of:
        return []
    text = (
        f"Two or more reviewers decided {counted(found.images.of, 'image')}; they agree on "
        f"{share_in_words(found.images)}. They agree if both reject the image, or give it the same objects: "
        "same classes, masks with an IoU of at least 0.75. The newest vote of each reviewer counts, and an "
        "image counts once for each kind of its disagreements."
    )
    named = [(kind.replace("_", " "), found.by_kind.get(kind, Share())) for kind in (*KINDS, AUDIT)]
    blocks: list[Block] = [Paragraph((text,)), _table("Agreement between reviewers by kind", "kind", named)]
    if len(found.by_pair) > 1:
        pairs = [(f"{first} and {second}", share) for (first, second), share in found.by_pair.items()]
        blocks.append(_table("Agreement between reviewers by pair", "reviewers", pairs))
    return blocks


def _table(title: str, head: str, named: list[tuple[str, Share]]) -> Table:
    rows = tuple(
        (name, as_count(share.of), as_count(share.hits), *_percentages(share)) for name, share in named
    )
    return Table(title, (head, "images", "agreed", "share", "95% interval"), rows)


def _percentages(share: Share) -> tuple[str, str]:
    if share.interval is None or share.frac is None:
        return NOTHING, NOTHING
    low, high = share.interval
    return f"{share.frac:.0%}", f"{low:.0%} to {high:.0%}"


def _audit_blocks(facts: RunFacts, queue: Queue) -> list[Block]:
    errors = audit_errors(queue.store)
    if not errors.of:
        return []
    text = (
        f"Audits: of the decided images on which {facts.labeller} and the model agree, the labels were wrong "
        f"on {share_in_words(errors)}. Wrong: an object is missing, superfluous, of another class, or "
        "elsewhere. Rejected images do not count."
    )
    return [Paragraph((text,))]
