"""Work for the executors' tests, that workers can import: squares, made in ways that go wrong."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffugen.errors import ConfigError
from diffugen.run.executors import OnStep
from tests.support.children import WAIT_SECONDS


@dataclass(frozen=True)
class Squares:
    """Squares numbers.

    Attributes:
        folder: Where workers leave a file for each model that they load, and for each number they die of.
        kills: From a number to how many workers it kills.
        gate: A file; numbers from ``gated`` on wait until it exists.
        gated: The first number that waits.
        unloadable: Whether loading fails.
        broken: A number that raises an error.
    """

    folder: Path
    kills: tuple[tuple[int, int], ...] = ()
    gate: Path | None = None
    gated: int = 0
    unloadable: bool = False
    broken: int | None = None
    on_gpu: bool = True

    def load(self, on_step: OnStep) -> Callable[[Sequence[int]], Iterator[int]]:
        (self.folder / f"loaded-{os.getpid()}").touch()
        if self.unloadable:
            raise ConfigError(["weights.bin: it is empty"])
        return self._handle

    def finish(self, made: int) -> int:
        return made

    def _handle(self, batch: Sequence[int]) -> Iterator[int]:
        for number in batch:
            dead = len(list(self.folder.glob(f"dead-{number}-*")))
            if dead < dict(self.kills).get(number, 0):
                (self.folder / f"dead-{number}-{dead}").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if number == self.broken:
                raise ZeroDivisionError(f"{number} is broken")
            if self.gate is not None and number >= self.gated:
                wait_for(self.gate.exists)
            yield number * number


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    until = time.monotonic() + WAIT_SECONDS
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError("waited in vain")
        time.sleep(0.02)
