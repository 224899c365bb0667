"""The command line: the commands in one application, and errors turned into one clear message."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from functools import partial
from types import FrameType
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

INTERRUPTED = "Interrupted. Progress is saved; run the same command to continue."

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
    _clean_up_when_stopped()
    try:
        app()
    except DiffugenError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo(INTERRUPTED, err=True)
        sys.exit(130)


def _clean_up_when_stopped() -> None:
    """Let SIGTERM and SIGHUP, e.g. of a closed terminal, end servers and remove temporary files, like Ctrl-C.

    A signal that is ignored, as SIGHUP is under nohup, stays ignored.
    """
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _stop)
            # Workers are stopped by their parent, at once and without a word.
            os.register_at_fork(after_in_child=partial(signal.signal, number, signal.SIG_DFL))


def _stop(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second one may not disturb the cleaning up
    with suppress(OSError):  # the terminal may be gone, and the stream that writes to it may be busy
        os.write(2, f"{INTERRUPTED}\n".encode())
    sys.exit(128 + number)
