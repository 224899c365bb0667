"""Configuration files: find them by name or path, read YAML, JSON or TOML, and apply ``--set key=value``.

Knows which suffix means which format, and the folder of the shipped configurations. Does not know how formats
are read (`diffugen.config.foreign`) or which keys and values are valid (`diffugen.config.sections`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffugen.config.foreign import as_path, is_whole_text, parse_json, parse_toml, parse_yaml, read_text
from diffugen.config.yaml_text import MOST_DEPTH
from diffugen.errors import ConfigError, did_you_mean

DEFAULT_CONFIG = "miniature"
"""The default configuration; it needs no download."""

SUFFIXES = (".yaml", ".yml", ".json", ".toml")


def list_configs() -> list[str]:
    """Return the names of the shipped configurations, sorted."""
    return sorted({path.stem for path in _folder().iterdir() if path.suffix in SUFFIXES})


def config_path(name: str) -> Path:
    """Return the file of a shipped configuration.

    Raises:
        ConfigError: No shipped configuration has this name; the message lists all names.
    """
    for suffix in SUFFIXES:
        if (path := _folder() / f"{name}{suffix}").is_file():
            return path
    raise ConfigError(
        [
            f"{name}: no shipped configuration has this name{did_you_mean(name, list_configs())}; shipped "
            f"configurations: {', '.join(list_configs())}; files of your own must end in "
            f"{', '.join(SUFFIXES)}"
        ]
    )


def find_config(source: str | Path | None) -> Path:
    """Return the file for the name of a shipped configuration or a path; None is the default.

    Raises:
        ConfigError: No such file or shipped configuration; the message suggests the nearest name.
        DiffugenError: No file can have this path.
    """
    if source is None:
        return config_path(DEFAULT_CONFIG)
    path = as_path(source, "the configuration")
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        return path
    if path.suffix.lower() not in SUFFIXES and path.name == str(source):
        return config_path(path.name)
    if path.exists():
        raise ConfigError([f"{path}: expected a file that ends in {', '.join(SUFFIXES)}"])
    siblings = path.parent.iterdir() if path.parent.is_dir() else ()
    near = did_you_mean(
        path.name, [sibling.name for sibling in siblings if sibling.suffix.lower() in SUFFIXES]
    )
    near = near or did_you_mean(path.stem, list_configs())
    raise ConfigError([f"{path}: no such file{near}; shipped configurations: {', '.join(list_configs())}"])


def read_settings(path: Path, mistakes: list[str]) -> dict[str, Any] | None:
    """Read a configuration file without checking its keys.

    Args:
        path: File with one of ``SUFFIXES``.
        mistakes: Receives one line per mistake: unreadable file, syntax error with its line, duplicate key.

    Returns:
        The settings without empty top-level keys, so that an empty section keeps its defaults; None if the
        file cannot be parsed.
    """
    try:
        settings = _parse(read_text(path), path.suffix.lower(), str(path), mistakes)
    except OSError as error:
        mistakes.append(f"{path}: cannot be read: {error.strerror}")
        return None
    except ValueError as error:
        mistakes.append(f"{path}: {error}")
        return None
    if not isinstance(settings, dict):
        given = "nothing" if settings is None else f"a {type(settings).__name__}"
        mistakes.append(f"{path}: expected lines of 'key: value', found {given}")
        return None
    return {key: value for key, value in settings.items() if value is not None}


@dataclass(frozen=True)
class Option:
    """The value of a command-line option, such as ``--rounds``, for a configuration key.

    Attributes:
        name: The option, as the user typed it.
        key: The dotted key.
        value: The value, used as given and not parsed.
    """

    name: str
    key: str
    value: Any


def apply_overrides(
    settings: dict[str, Any], overrides: Sequence[str | Option], mistakes: list[str]
) -> dict[tuple[str, ...], str]:
    """Write overrides into the settings.

    Args:
        settings: Changed in place; missing sections are created.
        overrides: Options, and ``key.sub=value`` texts whose values are parsed as YAML, e.g.
            ``["diffusion.num_inference_steps=5"]``; a list is replaced as a whole, ``"size_wh=[96, 64]"``.
        mistakes: Receives one line per override that cannot be parsed or whose section does not exist.

    Returns:
        From each key that was written, as a path, to its origin as shown in messages.
    """
    origins: dict[tuple[str, ...], str] = {}
    for override in overrides:
        if isinstance(override, Option):
            read = _read_option(override, mistakes)
        else:
            read = _read_text(override, mistakes)
        if read is None:
            continue
        path, value, origin = read
        section: Any = settings
        for place, part in enumerate(path[:-1], start=1):
            section = section.setdefault(part, {})
            if not isinstance(section, dict):
                given = "a list; set it as a whole" if isinstance(section, list) else "not a section"
                mistakes.append(f"{origin}: {'.'.join(path[:place])} is {given}")
                break
        else:
            section[path[-1]] = value
            origins[path] = origin
    return origins


_Override = tuple[tuple[str, ...], Any, str]

_SHOWN_CHARACTERS = 200


def _read_option(option: Option, mistakes: list[str]) -> _Override | None:
    if isinstance(option.value, str) and not is_whole_text(option.value):
        mistakes.append(f"{option.name} {option.value!a}: expected UTF-8 text")
        return None
    return tuple(option.key.split(".")), option.value, option.name


def _read_text(text: str, mistakes: list[str]) -> _Override | None:
    """Return path, value and origin of a ``key.sub=value`` text; None, and a mistake, if it is malformed."""
    shown = text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
    origin = f"--set {shown}"
    key, sign, value = text.partition("=")
    path = tuple(part.strip() for part in key.split("."))
    if not is_whole_text(text):
        mistakes.append(f"--set {shown!a}: expected UTF-8 text")
        return None
    if not sign or not all(path) or len(path) > MOST_DEPTH:
        mistakes.append(f"{origin}: expected key.sub=value, e.g. diffusion.num_inference_steps=20")
        return None
    try:
        return path, _parse(value, ".yaml", origin, mistakes), origin
    except ValueError as error:
        mistakes.append(f"{origin}: {error}")
        return None


def _folder() -> Path:
    """Return the folder of shipped configurations: package data in a wheel, else ``configs/``."""
    packaged = Path(__file__).parents[1] / "_configs"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "configs"


def _parse(text: str, suffix: str, origin: str, mistakes: list[str]) -> Any:
    if suffix == ".toml":
        return parse_toml(text)
    found: list[str] = []
    value = (parse_json if suffix == ".json" else parse_yaml)(text, found)
    mistakes += [f"{origin}: {line}" for line in found]
    return value
