"""The FiftyOne plugin of a review: what keys and buttons of the App do.

FiftyOne's server loads this module by its file, from the folder that `diffugen.review.app` names. Keys are
listened for in ``review.js``, because FiftyOne has no key bindings for operators.
"""

from __future__ import annotations

from typing import Any, ClassVar

import fiftyone.operators as foo
from fiftyone.operators import types

from diffugen.review import verdicts


class _Operator(foo.Operator):
    """An operator with a button among those of the grid, if it has an icon.

    Attributes:
        name: Its name.
        label: What its button says.
        icon: Its icon, a file in ``icons``; empty for an operator without a button.
    """

    name: ClassVar[str] = ""
    label: ClassVar[str] = ""
    icon: ClassVar[str] = ""

    @property
    def config(self) -> Any:
        """What FiftyOne needs to know of it."""
        return foo.OperatorConfig(
            name=self.name,
            label=self.label,
            icon=f"/icons/{self.icon}.svg" if self.icon else None,
            unlisted=not self.icon,
            disable_schema_validation=True,
        )

    def resolve_placement(self, ctx: Any) -> Any:
        """Return where its button is."""
        if not self.icon:
            return None
        button = types.Button(label=self.label, icon=f"/icons/{self.icon}.svg", prompt=False)
        return types.Placement(types.Places.SAMPLES_GRID_SECONDARY_ACTIONS, button)

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
        ctx.ops.notify(f"{self.said} ({decided} of {total})", variant="success")
        ctx.ops.clear_selected_labels()
        if here:
            return _opened(ctx, verdicts.following(dataset, here))
        ctx.ops.clear_selected_samples()
        ctx.ops.reload_samples()
        return {"decided": decided, "total": total}


class Attention(_Verdict):
    """The attention labels are right."""

    name, label, icon = "attention", "Attention is right (1)", "attention"
    verdict, said = "attention", "Attention is right"


class Model(_Verdict):
    """The model labels are right."""

    name, label, icon = "model", "Model is right (2)", "model"
    verdict, said = "model", "Model is right"


class Empty(_Verdict):
    """There is nothing to label."""

    name, label, icon = "empty", "Nothing here (3)", "empty"
    verdict, said = "empty", "Nothing here"


class Reject(_Verdict):
    """The image is useless."""

    name, label, icon = "reject", "Reject the image (4)", "reject"
    verdict, said = "reject", "Rejected"


class Keep(_Verdict):
    """The selected labels are right, of whichever source; without any, those drawn by hand."""

    name, label, icon = "keep", "The selected labels are right (5)", "keep"
    verdict, said = "edited", "Kept the selected labels"


class Undo(_Operator):
    """Take back one's newest verdict, and show its image."""

    name, label, icon = "undo", "Take back the last verdict (u)", "undo"

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

    name, label, icon = "next", "Next undecided image (n)", "next"

    def execute(self, ctx: Any) -> dict[str, Any]:  # noqa: D102
        return _opened(ctx, verdicts.following(ctx.dataset, ctx.current_sample))


class Previous(_Operator):
    """Open the undecided image before this one."""

    name, label = "previous", "Previous undecided image (p)"

    def execute(self, ctx: Any) -> dict[str, Any]:  # noqa: D102
        return _opened(ctx, verdicts.following(ctx.dataset, ctx.current_sample, back=True))


class About(_Operator):
    """Return what the panel shows: the progress, and what there is to know of the open image."""

    name, label = "about", "About this image"

    def execute(self, ctx: Any) -> dict[str, Any]:  # noqa: D102
        return verdicts.about(ctx.dataset, ctx.params.get("sample") or ctx.current_sample)


class Finish(_Operator):
    """End the session: the command in the terminal goes on."""

    name, label, icon = "finish", "Finish the review", "finish"

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
    for operator in (Attention, Model, Empty, Reject, Keep, Undo, Next, Previous, About, Finish):
        plugin.register(operator)
