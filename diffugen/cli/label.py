"""The command that labels images by attention: `diffugen label`."""

from __future__ import annotations

import typer

from diffugen.cli.output import say
from diffugen.cli.shared import ConfigArgument, RunOption, SetOption, examples, open_run, resolve_config


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
    from diffugen import stages
    from diffugen.labels.sheets import attention_sheet

    settings, folder = resolve_config(config, set_, run)
    with open_run(folder, settings) as opened:
        round = opened.newest_round(redo=True, keep=False)
        made = stages.label(round, round.tuned_labelling(default=settings.labelling))
        sheet = attention_sheet(opened.store, made.method, made.settings, folder / "contact-sheet.png")
    say(f"{made.objects} labels on {made.images} images\ncontact sheet: {sheet}")
