"""Keep the output of diffusers and transformers off the terminal, and collect their warnings."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


@contextmanager
def quiet() -> Iterator[list[str]]:
    """Hide progress bars and warnings of diffusers and transformers; yield the texts of their warnings."""
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
