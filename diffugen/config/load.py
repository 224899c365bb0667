"""Read a configuration from a file or from what a run keeps of it, with every mistake in one list."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from diffugen.config.files import Option, apply_overrides, find_config, read_settings
from diffugen.config.labelling import TERMS, with_current_names
from diffugen.config.mistakes import describe
from diffugen.config.paper import from_paper, is_paper_format
from diffugen.config.sections import Config
from diffugen.config.values import SomeSection
from diffugen.errors import ConfigError


def load_config(source: str | Path | None = None, overrides: Sequence[str | Option] = ()) -> Config:
    """Read a configuration.

    Args:
        source: A YAML, JSON or TOML file, the name of a shipped configuration, or None for ``miniature``. A
            file in the paper's format is translated first; see `diffugen.config.paper`.
        overrides: ``key.sub=value`` texts, whose values are parsed as YAML, and options; they win over the
            file and over tuned values. Keys are always DiffuGen's own.

    Returns:
        The configuration, with defaults for what the file leaves out. Nothing is taken from other files.

    Raises:
        ConfigError: Every mistake in file and overrides, each with its origin, key, given value and what is
            expected.

    Example:
        >>> load_config("miniature", ["diffusion.num_inference_steps=5"]).diffusion.num_inference_steps
        5
    """
    path = find_config(source)
    mistakes: list[str] = []
    settings = read_settings(path, mistakes)
    if settings is not None and is_paper_format(settings):
        try:
            settings, _ = from_paper(settings, str(path))
        except ConfigError as error:
            mistakes += error.mistakes
            settings = None
    return _config(settings, str(path), overrides, mistakes)


def kept_config(settings: Mapping[str, Any], origin: str, overrides: Sequence[str | Option] = ()) -> Config:
    """Return a configuration from what a run keeps of it (`Config.dump`).

    Args:
        settings: The kept values; keys that a later DiffuGen renamed get their new names, keys that it added
            take their defaults, but terms that the score did not have yet stay out of it.
        origin: Where they come from, for the error message.
        overrides: As in `load_config`.

    Raises:
        ConfigError: Every mistake.
    """
    values = json.loads(json.dumps(with_current_keys(settings)))
    if isinstance(values.get("score"), dict):
        values["score"] = {**dict.fromkeys(TERMS, 0.0), **values["score"]}
    return _config(values, origin, overrides, [])


def with_current_keys(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run keeps of its configuration, JSON values, with the names that keys have now."""
    if "labels" not in settings:
        return dict(settings)
    return {**settings, "labels": with_current_names(settings["labels"])}


def load_section(kind: type[SomeSection], overrides: Sequence[str | Option]) -> SomeSection:
    """Return a section of its own, with defaults for what the overrides leave out.

    Raises:
        ConfigError: Every mistake.
    """
    return _checked(kind, {}, "settings", overrides, [])[0]


def _config(
    settings: dict[str, Any] | None, origin: str, overrides: Sequence[str | Option], mistakes: list[str]
) -> Config:
    config, keys = _checked(Config, settings, origin, overrides, mistakes)
    return config.pin(keys)


def _checked(
    kind: type[SomeSection],
    settings: dict[str, Any] | None,
    origin: str,
    overrides: Sequence[str | Option],
    mistakes: list[str],
) -> tuple[SomeSection, list[str]]:
    """Return a section of these settings, and the dotted keys that were overridden."""
    understood = settings is not None
    settings = settings or {}
    origins = apply_overrides(settings, overrides, mistakes)
    if understood:
        try:
            # As JSON, because strict checking takes lists for tuples there, and whole numbers for floats, but
            # no more.
            section = kind.model_validate_json(json.dumps(settings, default=str))
        except ValidationError as error:
            mistakes += describe(error.errors(include_url=False), kind, settings, origin, origins)
    if mistakes:
        raise ConfigError(mistakes)
    return section, [".".join(path) for path in origins]
