"""The command line: the commands in one application, and errors turned into one clear message."""

from __future__ import annotations

import io
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
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name may not be UTF-8
    try:
        app()
    except DiffugenError as error:
        _fail(str(error))
    except OSError as error:
        if error.strerror is None:
            raise
        place = "" if error.filename is None else f"cannot use {str(error.filename)[:200]}: "
        _fail(f"{place}{error.strerror}. Check the path and its permissions, or give another one")
    except KeyboardInterrupt:
        typer.echo("Interrupted. Progress is saved; run the same command to continue.", err=True)
        sys.exit(130)


def _fail(message: str) -> None:
    typer.echo(f"error: {message}", err=True)
    sys.exit(2)
