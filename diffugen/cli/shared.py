"""What the commands share: options, the configuration and run that a command line means, and new files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffugen.cli.output import progress, say
from diffugen.errors import DiffugenError, StoreError

if TYPE_CHECKING:
    from diffugen.config import Config
    from diffugen.config.files import Option
    from diffugen.run import Run

ConfigArgument = Annotated[
    str | None,
    typer.Argument(
        help="Name of a shipped configuration (see: diffugen configs list), or a YAML, JSON or TOML file. "
        "Default: the run's own; for a new run, the miniature."
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override one value, e.g. --set prompts.count=8. May be repeated.",
    ),
]
RunOption = Annotated[
    Path | None,
    typer.Option("--run", help="Folder of the run. Default: runs/<name of the configuration>."),
]
RoundOption = Annotated[
    int | None, typer.Option("--round", min=0, help="Number of the round. Default: the newest.")
]
CheckpointOption = Annotated[
    str | None, typer.Option("--checkpoint", help="A detector. Default: the one that the run promoted last.")
]


def examples(*commands: str) -> str:
    """Return the end of a command's help: its examples, a line each."""
    return "\n".join(["\b", "Examples:", *(f"  {one}" for one in commands)])


def resolve_config(
    config: str | None, overrides: Sequence[str | Option] | None, run: Path | None
) -> tuple[Config, Path]:
    """Return the configuration and the run's folder that a command line means.

    Label settings and score weights that the user sets for this command, by an override or by a configuration
    that differs from the run's, are pinned: they win over what tuning found.

    Args:
        config: Name or file of a configuration; None for the run's own, or the default for a new run.
        overrides: ``key=value`` texts, and options.
        run: The run's folder, or None for the default.
    """
    from diffugen.config import kept_config, load_config
    from diffugen.run.changes import changed_keys
    from diffugen.run.ledger import LEDGER_NAME

    settings = load_config(config, overrides or ())
    folder = run or Path("runs") / settings.name
    kept = _kept(folder) if (folder / LEDGER_NAME).is_file() else None
    if kept is None:
        return settings, folder
    if config is None:
        return kept_config(kept, str(folder / LEDGER_NAME), overrides or ()), folder
    changed = [key for key in changed_keys(kept, settings.dump()) if key.split(".")[0] in ("labels", "score")]
    return settings.pin({*settings.labelling.pinned, *changed}), folder


def _kept(run: Path) -> dict[str, Any] | None:
    from diffugen.run import RunStore

    try:
        with RunStore.open(run, readonly=True) as store:
            return store.config
    except StoreError:
        # An older ledger, or one whose making was cut short: opened for writing it is upgraded, if it can be.
        with RunStore.open(run) as store:
            return store.config


def open_or_create_run(folder: Path, config: Config) -> Run:
    """Open a run for writing, or begin it; its stages show progress and print their notices."""
    from diffugen.run import Run

    return _printing(Run.open(folder, config, progress=progress))


def open_run(folder: Path, config: Config, readonly: bool = False) -> Run:
    """Open an existing run; its stages show progress and print their notices."""
    from diffugen.run import Run

    return _printing(Run.open_existing(folder, config, progress=progress, readonly=readonly))


def _printing(run: Run) -> Run:
    run.notify = say
    return run


def repeat_arguments(config: str | None, run: Path | None) -> str:
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
