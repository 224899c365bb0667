"""Follow the denoising steps of a pipeline's call. Does not know prompts, attention or images."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def followed(pipeline: Any, on_step: Callable[[float], None]) -> Iterator[None]:
    """Report each denoising step of a pipeline's calls until the context closes.

    Every pipeline of diffusers counts its steps with its own progress bar, whatever its family and task, so
    this listens to that bar, shown or not.

    Args:
        pipeline: A diffusers pipeline.
        on_step: Called after each step with the fraction of the call that is done. It stays below 1, because
            after the last step the images are still to be decoded.
    """
    made: Callable[..., Any] = pipeline.progress_bar

    def progress_bar(iterable: Any = None, **options: Any) -> Any:
        bar, numbers = made(iterable, **options), itertools.count(1)

        def step(count: int = 1) -> None:
            on_step(next(numbers) / (bar.total + 1))

        bar.update = step
        return bar if iterable is None else _stepped(bar, step)

    pipeline.progress_bar = progress_bar
    try:
        yield
    finally:
        del pipeline.progress_bar


def _stepped(bar: Iterable[Any], step: Callable[[], None]) -> Iterator[Any]:
    for one in bar:
        yield one
        step()
