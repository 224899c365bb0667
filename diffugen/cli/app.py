"""The command line: the commands in one application, and errors turned into one clear message."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from diffugen import __version__
from diffugen.cli import (
    configs,
    doctor,
    export,
    generate,
    invert,
    label,
    loops,
    miniature,
    prompts,
    stages,
    status,
)
from diffugen.errors import DiffugenError

app = typer.Typer(
    help="Labelled images of rare classes from text-to-image models: generate, label, train, review, "
    "improve.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for commands in (prompts, generate, label, loops, status, stages, export, invert, configs, miniature, doctor):
    commands.register(app)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"diffugen {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Work on one run at a time. Commands can be interrupted; run one again to continue."""


def main() -> None:
    """Run the command line; errors that a user can mend end with exit code 2 and no traceback."""
    try:
        app()
    except DiffugenError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo("Interrupted. Progress is saved; run the same command to continue.", err=True)
        sys.exit(130)
