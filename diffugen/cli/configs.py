"""The commands around configurations: list, show and copy those that are shipped, convert the paper's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diffugen.cli.output import console, say, table
from diffugen.cli.shared import copy_shipped, examples, write_new
from diffugen.errors import DiffugenError, shell_command

configs_app = typer.Typer(
    help="List, show, copy and convert configurations.", no_args_is_help=True, rich_markup_mode=None
)


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    configs_app.command("list")(configs_list)
    configs_app.command("show", epilog=examples("diffugen configs show miniature"))(configs_show)
    configs_app.command("copy", epilog=examples("diffugen configs copy piano-on-road my-pianos.yaml"))(
        configs_copy
    )
    configs_app.command("convert", epilog=examples("diffugen configs convert cars.json my-cars.yaml"))(
        configs_convert
    )
    app.add_typer(configs_app, name="configs")
    app.add_typer(configs_app, name="config", hidden=True)  # the same, for those who leave out the s


def configs_list() -> None:
    """List the configurations that come with DiffuGen."""
    from diffugen.config import config_path, list_configs

    shown = table("name", "purpose")
    for name in list_configs():
        first_line = config_path(name).read_text(encoding="utf-8").split("\n", 1)[0]
        shown.add_row(name, first_line.lstrip("# "))
    console().print(shown)


def configs_show(
    name: Annotated[str, typer.Argument(help="A name from: diffugen configs list")] = "miniature",
) -> None:
    """Print a configuration with its comments."""
    from diffugen.config import config_path

    typer.echo(config_path(name).read_text(encoding="utf-8"), nl=False)


def configs_copy(
    name: Annotated[str, typer.Argument(help="A name from: diffugen configs list")],
    to: Annotated[Path | None, typer.Argument(help="The new file. Default: ./<name>.yaml.")] = None,
) -> None:
    """Copy a configuration, to edit it. An existing file is never overwritten."""
    from diffugen.config import config_path

    source = config_path(name)
    target = to or Path(source.name)
    copy_shipped(source, target, "configs", "copy", name)
    say(f"copied to {target}. Use it: {shell_command('generate', target)}")


def configs_convert(
    file: Annotated[Path, typer.Argument(help="A JSON file in the paper's format.")],
    to: Annotated[Path | None, typer.Argument(help="The new file. Default: ./<name>.yaml.")] = None,
) -> None:
    """Convert a file in the paper's JSON format to YAML. All commands also read such a file directly."""
    from diffugen.config import load_config
    from diffugen.config.files import read_settings
    from diffugen.config.paper import from_paper, is_paper_format, to_yaml

    load_config(str(file))  # reports what is wrong with it
    settings = read_settings(file, []) or {}
    if not is_paper_format(settings):
        raise DiffugenError(
            f"{file} is not in the paper's format; it is already a configuration: "
            f"{shell_command('generate', file)}"
        )
    made, notes = from_paper(settings, str(file))
    target = to or Path(f"{file.stem}.yaml")
    write_new(target, to_yaml(made, notes), shell_command("configs", "convert", file, "OTHER.yaml"))
    for note in notes:
        say(f"- {note}")
    say(f"converted to {target}. Use it: {shell_command('generate', target)}")
