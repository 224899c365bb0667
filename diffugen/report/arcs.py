"""A section of a report: what each part of the loop did, and what that changed; from counts of the ledger.

One run cannot say what a part buys, because nobody knows how the run would have gone without it. The section
says so, and names the report that measures it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from diffugen.errors import counted
from diffugen.report.blocks import Block, Cell, Paragraph, Section, Table, as_percent, as_rate, listed
from diffugen.report.facts import RunFacts
from diffugen.report.survey import Survey
from diffugen.run.results import RoundResults, Tuned

Kept = TypeVar("Kept")

GAINS = "reports/loop-gain"
"""The report that runs the loop with and without each of its parts."""


def arcs(facts: RunFacts, survey: Survey) -> Section:
    """Return a table of the parts that ran; nothing before the second one has."""
    parts: tuple[tuple[str, str], ...] = (
        (facts.labels_name, _labelled(facts)),
        ("relabelling", _relabelled(facts)),
        ("comparison", _compared(facts)),
        ("review", _reviewed(survey)),
        ("teaching", _taught(facts)),
        ("tuning", _tuned(facts)),
        ("training set", _chosen(facts)),
        ("promotion", _promoted(facts)),
    )
    rows: tuple[tuple[Cell, ...], ...] = tuple(pair for pair in parts if pair[1])
    if len(rows) < 3:
        return Section("arcs", "What each part did", ())
    note = (
        "What a part buys cannot be seen in one run. DiffuGen's "
        f"{GAINS} runs the loop with and without each part, on several seeds."
    )
    blocks: tuple[Block, ...] = (
        Table("Parts of the loop", ("part", "what it did"), rows),
        Paragraph((note,), tone="note"),
    )
    return Section("arcs", "What each part did", blocks)


def _of(facts: RunFacts, read: Callable[[RoundResults], Kept | None]) -> Mapping[int, Kept]:
    """Return what a stage kept, by round."""
    found = {number: read(one) for number, one in facts.results.items()}
    return {number: one for number, one in found.items() if one is not None}


def _last(found: Mapping[int, Kept]) -> Kept | None:
    return list(found.values())[-1] if found else None


def _labelled(facts: RunFacts) -> str:
    one = _last(_of(facts, lambda kept: kept.label))
    if one is None:
        return ""
    text = f"{counted(one.objects, 'label')} on {counted(one.images, 'image')}"
    return (
        text
        + {
            "attention": "",
            "detector": ", all by the starting detector; heat maps were not used",
            "both": ", with the starting detector as a witness",
        }[one.settings.source]
    )


def _relabelled(facts: RunFacts) -> str:
    one = _last(_of(facts, lambda kept: kept.relabel))
    if one is None:
        return ""
    return f"{counted(one.objects, 'label')} on {counted(one.images, 'image')} by the newest detector"


def _compared(facts: RunFacts) -> str:
    one = _last(_of(facts, lambda kept: kept.compare))
    if one is None:
        return ""
    disputed = sum(one.kinds.values())
    share = as_percent(one.agreements, one.agreements + disputed)
    agreed = f"both sources agree on {counted(one.agreements, 'object')} ({share})"
    return f"{agreed}; {counted(disputed, 'disagreement')}"


def _reviewed(survey: Survey) -> str:
    made = sum(count for verdicts in survey.verdicts.values() for count in verdicts.values())
    return f"{counted(made, 'image')} decided by a person" if made else ""


def _taught(facts: RunFacts) -> str:
    found = _of(facts, lambda kept: kept.teach if kept.teach and kept.teach.decoder else None)
    one = _last(found)
    if one is None:
        return ""
    learned = f"a decoder learned from {counted(one.corrected, 'decided image')}"
    if not one.adopted:
        return f"{learned}; its labels are no better, so attention stays"
    gain = f"worth of labels {as_rate(one.worth.before)} to {as_rate(one.worth.after)}"
    return f"{learned}, and draws what is labelled ({gain}, on held-out images)"


def _tuned(facts: RunFacts) -> str:
    found = _of(facts, lambda kept: kept.tune if kept.tune and kept.tune.trials else None)
    if not found:
        return ""
    adopted = {number: one for number, one in found.items() if one.adopted}
    if not adopted:
        return f"nothing better found in {counted(len(found), 'round')}; the settings stay"
    gains = [f"round {number} ({' and '.join(_better(one))})" for number, one in adopted.items()]
    return f"better settings found in {listed(gains)}, on held-out images"


def _better(one: Tuned) -> list[str]:
    """Return what tuning improved: the worth of labels, the error of their scores, or both."""
    changes = (("worth of labels", one.held_out), ("error of scores", one.miscalibration))
    return [
        f"{name} {as_rate(each.before)} to {as_rate(each.after)}"
        for name, each in changes
        if each.before != each.after
    ]


def _chosen(facts: RunFacts) -> str:
    one = _last(_of(facts, lambda kept: kept.dataset))
    if one is None:
        return ""
    parts = [counted(one.train, "training image")]
    if one.hidden:
        parts.append(f"{counted(one.hidden, 'doubtful object')} painted over")
    if one.left_out.get("disagreement"):
        parts.append(f"{counted(one.left_out['disagreement'], 'image')} left out until reviewed")
    if one.left_out.get("noisy"):
        parts.append(f"{counted(one.left_out['noisy'], 'image')} held back as noisy, by cross-validation")
    if one.pasted:
        parts.append(f"{counted(one.pasted, 'composed image')} besides")
    return ", ".join(parts)


def _promoted(facts: RunFacts) -> str:
    found = _of(facts, lambda kept: kept.promote)
    won = sum(one.promoted for one in found.values())
    return f"the new detector was better in {won} of {counted(len(found), 'round')}" if found else ""
