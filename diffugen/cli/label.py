"""The command that labels images by attention: `diffugen label`."""

from __future__ import annotations

import typer

from diffugen.cli.output import say
from diffugen.cli.shared import ConfigArgument, RunOption, SetOption, examples, open_existing_run


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(
        epilog=examples(
            "diffugen label",
            "diffugen label --run runs/pianos --set labels.method=compete",
            "diffugen label --set labels.threshold=0.4 --set score.margin=2",
        )
    )(label)


def label(config: ConfigArgument = None, set_: SetOption = None, run: RunOption = None) -> None:
    """Label a run's images by attention. Needs no GPU; draws a contact sheet."""
    from diffugen.stages import verbs

    with open_existing_run(config, set_, run) as opened:
        made = verbs.label(opened)
        sheet = verbs.contact_sheet(opened)
    say(f"{made.objects} labels on {made.images} images\ncontact sheet: {sheet}")
