"""Downloads from the Hugging Face Hub: names of repositories, and one message for every failure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from diffugen.errors import ModelError, first_line

HUB_NAME = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
"""Pattern of a repository's name on the Hub."""


def download(what: str, name: str, fetch: Callable[[], str]) -> Path:
    """Return the local folder of a repository, downloading what is not yet in the cache.

    Args:
        what: The kind of thing, for the message: ``model`` or ``LoRA``.
        name: The repository, ``owner/name``.
        fetch: Downloads the files that are needed and returns their folder.

    Raises:
        ModelError: The download failed.
    """
    try:
        return Path(fetch())
    except Exception as error:  # no network, no access, offline mode, unknown name: types of three packages
        raise ModelError(
            f"{what} {name!r}: not found locally, and the Hub download failed: {first_line(error)} On a "
            f"machine with a network, run 'hf download {name}' first (gated models: 'hf auth login' before "
            "that); the cache then also works offline, with HF_HUB_OFFLINE=1. Or copy it here and give its "
            "path."
        ) from error
