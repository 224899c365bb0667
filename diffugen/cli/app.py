"""The command line: the commands in one application, and errors and Ctrl-C turned into one clear message."""

from __future__ import annotations

import io
import os
import signal
import sys
import traceback
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from diffugen import __version__
from diffugen.cli import (
    configs,
    doctor,
    export,
    generate,
    invert,
    label,
    loops,
    merge,
    miniature,
    prompts,
    stages,
    status,
)
from diffugen.cli.failures import TRACEBACK, failure, interruption
from diffugen.errors import DiffugenError

INTERRUPTED = "Interrupted. Progress is saved; run the same command to continue."


class Commands(TyperGroup):
    """The commands; Ctrl-C in one of them is explained, of which Typer would say nothing."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # whoever presses it again wants no further word
            typer.echo(interruption(stop), err=True)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=Commands,
    help="Labelled images of rare classes from text-to-image models: generate, label, train, review, "
    "improve.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for commands in (
    prompts,
    generate,
    merge,
    label,
    loops,
    status,
    stages,
    export,
    invert,
    configs,
    miniature,
    doctor,
):
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
    """Run the command line; any error ends with one message, exit code 2 and no traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name may not be UTF-8
    _clean_up_when_stopped()
    try:
        app()
    except DiffugenError as error:
        message = str(error)
    except Exception as error:
        if os.environ.get(TRACEBACK):
            traceback.print_exc()
        message = failure(error)
    typer.echo(f"error: {message}", err=True)
    sys.exit(2)


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
