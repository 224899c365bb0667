"""What diffusers, transformers and peft say, kept off the terminal and fit for our own messages."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


@contextmanager
def quiet() -> Iterator[list[str]]:
    """Keep progress bars and warnings of diffusers and transformers off the terminal; yield the warnings'
    texts.
    """
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    collector = _Collector()
    with ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, library in (("diffusers", diffusers_logging), ("transformers", transformers_logging)):
            if library.is_progress_bar_enabled():
                library.disable_progress_bar()
                stack.callback(library.enable_progress_bar)
            stack.callback(library.set_verbosity, library.get_verbosity())
            library.set_verbosity_warning()
            logger = logging.getLogger(name)
            stack.callback(setattr, logger, "handlers", logger.handlers)
            stack.callback(setattr, logger, "propagate", logger.propagate)
            logger.handlers, logger.propagate = [collector], False
        yield collector.messages


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def first_line(error: Exception) -> str:
    """Return an error's kind and the first line of its text, as a sentence."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0].rstrip('.')}." if text else f"{type(error).__name__}."
