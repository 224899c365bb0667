"""What the commands share: options, the run that a command line means, and new files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffugen.cli.output import say
from diffugen.cli.progress import progress
from diffugen.errors import DiffugenError, shell_command

if TYPE_CHECKING:
    from diffugen.config.files import Option
    from diffugen.stages.verbs import OpenRun

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
        "--set", metavar="KEY=VALUE", help="Override one value, e.g. --set prompts.count=8. May be repeated."
    ),
]
RunOption = Annotated[
    Path | None, typer.Option("--run", help="Folder of the run. Default: runs/<name of the configuration>.")
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


def run_or_config(what: str | None, run: Path | None) -> tuple[str | None, Path | None]:
    """Return the configuration and the run's folder that a command line means, where one names either.

    Args:
        what: The folder of a run, or a configuration; None if not given.
        run: The folder given with ``--run``; None if not given.
    """
    if what is None or run is not None or not Path(what).is_dir():
        return what, run
    return None, Path(what)


def open_or_create_run(config: str | None, overrides: Sequence[str | Option], folder: Path | None) -> OpenRun:
    """Open the run that a command line means for writing, or create it."""
    from diffugen.stages.verbs import open_run, resolve_config

    settings, path = resolve_config(config, overrides, folder)
    return printing(open_run(path, settings, progress=progress))


def open_existing_run(
    config: str | None,
    overrides: Sequence[str | Option] | None,
    folder: Path | None,
    *,
    readonly: bool = False,
) -> OpenRun:
    """Open the run that a command line means, which must exist."""
    from diffugen.run import Run
    from diffugen.stages.verbs import OpenRun, resolve_config

    settings, path = resolve_config(config, overrides or (), folder)
    run = Run.open_existing(path, settings, progress=progress, readonly=readonly)
    return printing(OpenRun(run, settings))


def printing(run: OpenRun) -> OpenRun:
    """Let a run print its notices."""
    run.run.notify = say
    return run


def changed_settings(run: OpenRun, *left_out: str) -> list[str]:
    """Return the ``--set`` options that repeat what is set now and differs from what the run keeps.

    Args:
        run: The run, open with the settings of now; it keeps those that it was made with.
        left_out: Keys that are not repeated.
    """
    from diffugen.config.load import kept_config
    from diffugen.run.changes import changed_keys
    from diffugen.run.codec import to_json

    now, options, kept = run.config.dump(), list[str](), run.store.config
    then = now if kept is None else kept_config(kept, str(run.folder)).dump()
    # Whole settings, not parts of a value, for a part may be gone.
    for key in dict.fromkeys(".".join(one.split(".")[:2]) for one in changed_keys(then, now)):
        if key not in left_out:
            section, _, name = key.partition(".")
            options += ["--set", f"{key}={to_json(now[section][name] if name else now[section])}"]
    return options


def copy_shipped(source: Path, target: Path, *command: str) -> None:
    """Copy a file that comes with DiffuGen, never over an existing one.

    Args:
        source: The file.
        target: The new file.
        command: The words of the command to give with another name, for the error message.

    Raises:
        DiffugenError: There is such a file already, or it cannot be written.
    """
    write_new(target, source.read_text(encoding="utf-8"), shell_command(*command, f"OTHER{source.suffix}"))


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
