"""The FiftyOne plugin of a review: what keys and buttons of the App do.

FiftyOne's server loads this module by its file, from the folder that `diffugen.review.app` names. Keys and
buttons are in ``review.js``: FiftyOne has no key bindings for operators, and a button must know the name of
the reviewer and wait for changed masks to be stored, like a key.
"""

from __future__ import annotations

from typing import Any, ClassVar

import fiftyone.operators as foo

from diffugen.review import verdicts


class _Operator(foo.Operator):
    """An operator that ``review.js`` calls, for a key or a button; it is not listed among the App's own."""

    name: ClassVar[str] = ""

    @property
    def config(self) -> Any:
        """What FiftyOne needs to know of it."""
        return foo.OperatorConfig(name=self.name, unlisted=True, disable_schema_validation=True)

    def execute(self, ctx: Any) -> dict[str, Any]:
        """Do it."""
        raise NotImplementedError


class _Verdict(_Operator):
    """Record a verdict on the open image, or on the selected ones; then open the next undecided image."""

    verdict: ClassVar[str]
    said: ClassVar[str]

    def execute(self, ctx: Any) -> dict[str, Any]:
        dataset, here = ctx.dataset, ctx.current_sample
        labels = [one["label_id"] for one in ctx.selected_labels] if self.verdict == "edited" else []
        chosen = [here] if here else list(ctx.selected)
        if not chosen:  # a key in the grid points at no image
            return _opened(ctx, verdicts.following(dataset, None))
        if self.verdict == "edited" and not labels and not verdicts.have_human(dataset, chosen):
            return _failed(ctx, "Click the labels that are right, then press 5")
        problems = verdicts.decide(dataset, chosen, self.verdict, _reviewer(ctx), labels)
        if problems:
            return _failed(ctx, "; ".join(problems))
        decided, total = verdicts.counts(dataset)
        changed = self.verdict != "edited" and here and dataset[here]["decision"] == "edited"
        said = f"{self.said}, as it was changed" if changed else self.said
        ctx.ops.notify(f"{said} ({decided} of {total})", variant="success")
        ctx.ops.clear_selected_labels()
        if here:
            return _opened(ctx, verdicts.following(dataset, here))
        ctx.ops.clear_selected_samples()
        ctx.ops.reload_samples()
        return {"decided": decided, "total": total}


class Attention(_Verdict):
    """The attention labels are right."""

    name = verdict = "attention"
    said = "Attention is right"


class Model(_Verdict):
    """The model labels are right."""

    name = verdict = "model"
    said = "Model is right"


class Empty(_Verdict):
    """There is nothing to label."""

    name = verdict = "empty"
    said = "Nothing here"


class Reject(_Verdict):
    """The image is useless."""

    name = verdict = "reject"
    said = "Rejected"


class Keep(_Verdict):
    """The selected labels are right, of whichever source; without any, those drawn by hand."""

    name, verdict, said = "keep", "edited", "Kept the selected labels"


class Undo(_Operator):
    """Take back one's newest verdict, and show its image."""

    name = "undo"

    def execute(self, ctx: Any) -> dict[str, Any]:  # noqa: D102
        sample_id = verdicts.take_back(ctx.dataset, _reviewer(ctx))
        if sample_id is None:
            return _failed(ctx, "You have no verdict to take back")
        ctx.ops.notify("Taken back", variant="info")
        if ctx.current_sample:
            return _opened(ctx, sample_id)
        ctx.ops.reload_samples()
        return {}


class Next(_Operator):
    """Open the next undecided image."""

    name = "next"

    def execute(self, ctx: Any) -> dict[str, Any]:  # noqa: D102
        return _opened(ctx, verdicts.following(ctx.dataset, ctx.current_sample))


class Previous(_Operator):
    """Open the undecided image before this one."""

    name = "previous"

    def execute(self, ctx: Any) -> dict[str, Any]:  # noqa: D102
        return _opened(ctx, verdicts.following(ctx.dataset, ctx.current_sample, back=True))


class About(_Operator):
    """Return what the panel shows: the progress, and what there is to know of the open image."""

    name = "about"

    def execute(self, ctx: Any) -> dict[str, Any]:  # noqa: D102
        return verdicts.about(ctx.dataset, ctx.params.get("sample") or ctx.current_sample)


class LabelToEdit(_Operator):
    """Return which label of the open image the brush is for."""

    name = "label_to_edit"

    def execute(self, ctx: Any) -> dict[str, Any]:  # noqa: D102
        selected = [one["label_id"] for one in ctx.selected_labels]
        return {"label": verdicts.to_edit(ctx.dataset, ctx.current_sample, selected)}


class Finish(_Operator):
    """End the session: the command in the terminal goes on."""

    name = "finish"

    def execute(self, ctx: Any) -> dict[str, Any]:  # noqa: D102
        verdicts.votes_of(ctx.dataset).set(verdicts.FINISH, True)
        ctx.ops.notify("The review is finished. You can close this page.", variant="success")
        return {}


def _reviewer(ctx: Any) -> str:
    given = str(ctx.params.get("reviewer") or "").strip()
    return given or str(ctx.dataset.info.get("reviewer") or "reviewer")


def _failed(ctx: Any, message: str) -> dict[str, Any]:
    ctx.ops.notify(message, variant="warning")
    return {}


def _opened(ctx: Any, sample_id: str | None) -> dict[str, Any]:
    if sample_id is None:
        ctx.ops.notify("No undecided image is left: finish with the flag.", variant="success")
    else:
        ctx.ops.open_sample(id=sample_id)
    return {"sample": sample_id}


def register(plugin: Any) -> None:
    """Register the operators; FiftyOne calls this."""
    for operator in (Attention, Model, Empty, Reject, Keep, Undo, Next, Previous, About, LabelToEdit, Finish):
        plugin.register(operator)
