"""What the commands share: options, the run and configuration they mean, tables and progress bars."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffugen.errors import DiffugenError, StoreError

if TYPE_CHECKING:
    from rich.console import Console

    from diffugen.config.sections import Config
    from diffugen.run.store import RunStore

ConfigArgument = Annotated[
    str | None,
    typer.Argument(
        help="A configuration's name (diffugen configs list) or a YAML, JSON or TOML file. "
        "None: the run's own; for a new run, the miniature."
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override one value, e.g. --set prompts.count=8. May be repeated."
    ),
]
RunOption = Annotated[
    Path | None,
    typer.Option("--run", help="The run's folder; runs/<name of the configuration> if not given."),
]

HARMLESS_KEYS = (
    "diffusion.batch_size",
    "diffusion.compile",
    "diffusion.device",
    "diffusion.offload",
    "diffusion.vae_slicing",
    "tasks",
    "labels",
    "score",
    "detector",
    "disagreement",
    "dataset.mask",
    "dataset.trust",
    "dataset.min_score",
    "dataset.known",
    "tune",
    "loop",
)
"""Keys that may change between two calls on the same run: they alter no image, and no prompt changes
sides."""


def settle(config: str | None, overrides: list[str] | None, run: Path | None) -> tuple[Config, Path]:
    """Return the configuration and the run's folder that a command line means.

    Args:
        config: Name or file of a configuration; None for the run's own, or the default for a new run.
        overrides: ``key=value`` texts.
        run: The run's folder, or None.
    """
    from diffugen.config.load import kept_config, load_config
    from diffugen.run.ledger import LEDGER_NAME

    settings = load_config(config, overrides or ())
    folder = run or Path("runs") / settings.name
    kept = _kept(folder) if config is None and (folder / LEDGER_NAME).is_file() else None
    return settings if kept is None else kept_config(kept, str(folder / LEDGER_NAME), overrides or ()), folder


def _kept(run: Path) -> dict[str, Any] | None:
    from diffugen.run.store import RunStore

    try:
        with RunStore.open(run, readonly=True) as store:
            return store.config
    except (
        StoreError
    ):  # an older ledger, or one whose making was cut short: opened for writing it is mended, if it can be
        with RunStore.open(run) as store:
            return store.config


def new_or_old_run(folder: Path, settings: Config) -> RunStore:
    """Open a run for writing, or begin it."""
    from diffugen.run.store import RunStore

    return RunStore.create_or_open(folder, config=settings.dump(), ignore_keys=HARMLESS_KEYS)


def again(config: str | None, run: Path | None) -> str:
    """Return the arguments that name the same configuration and run to the next command."""
    return " ".join([*([config] if config else []), *(["--run", str(run)] if run else [])])


def copy_shipped(source: Path, target: Path, command: str) -> None:
    """Copy a file that comes with DiffuGen, never over an existing one.

    Args:
        source: The file.
        target: The new file.
        command: The command to give with another name, for the error message.

    Raises:
        DiffugenError: There is such a file already, or it cannot be written.
    """
    write_new(target, source.read_text(encoding="utf-8"), f"{command} OTHER{source.suffix}")


def write_new(target: Path, text: str, command: str) -> None:
    """Write a text file, never over an existing one.

    Args:
        target: The new file.
        text: Its content.
        command: The command to give instead, for the error message.

    Raises:
        DiffugenError: There is such a file already, or it cannot be written.
    """
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise DiffugenError(f"{target} exists already; name another file: {command}") from None
    except OSError as error:
        raise DiffugenError(
            f"cannot write {target}: {error.strerror}; name a file in a folder that exists"
        ) from error


def console() -> Console:
    """Return where commands print."""
    from rich.console import Console

    return Console(highlight=False)


def table(*columns: str) -> Any:
    """Return an empty table."""
    from rich.table import Table

    made = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


@contextmanager
def progress(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar with rate and time left; a line at the end where the output is no terminal."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console()) as bar:
        task = bar.add_task(what, total=None, rate="")
        start: int | None = None

        def on_progress(done: int, total: int) -> None:
            nonlocal start
            start = done if start is None else start
            elapsed = bar.tasks[0].elapsed or 0.0
            speed = (done - start) / elapsed if elapsed > 0 else 0.0
            rate = (
                f"{speed:.1f} {unit}s/s" if speed >= 1 else f"{1 / speed:.1f} s/{unit}" if speed > 0 else ""
            )
            bar.update(task, completed=done, total=total, rate=rate)

        yield on_progress
