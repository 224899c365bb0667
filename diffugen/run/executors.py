"""Where the work of a stage is done: in this process, or on the workers of a Ray.

A stage describes its work once and hands it over with the batches; what comes back, and in which order, does
not depend on where it was done. Does not know what the work is. Ray itself is in `diffugen.run.ray_executor`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

from diffugen.config.sections import ExecutorSettings

Batch = TypeVar("Batch")
Item = TypeVar("Item")
BatchIn = TypeVar("BatchIn", contravariant=True)
ItemOut = TypeVar("ItemOut", covariant=True)


class Work(Protocol[BatchIn, ItemOut]):
    """What is done with each batch; it can be sent to another process, and compared with other work."""

    @property
    def on_gpu(self) -> bool:
        """Whether it gains by a GPU."""

    def load(self) -> Callable[[BatchIn], Iterable[ItemOut]]:
        """Load what it needs, such as a model, once for each worker, and return what handles a batch.

        Raises:
            DiffugenError: Something is missing; no other worker will find it either.
        """


class Executor(Protocol):
    """Does the work of stages.

    Attributes:
        spreads: Whether work is done in other processes, which load what they need themselves.
    """

    spreads: bool

    def open(self) -> None:
        """Get ready, before anything expensive is done; a second call does nothing.

        Raises:
            DiffugenError: It is not available here, or not as it was asked for.
        """

    def gives_gpu(self) -> bool:
        """Whether workers have a GPU for work that gains by one; only of an executor that spreads."""

    def spread(
        self,
        work: Work[Batch, Item],
        batches: Iterable[Batch],
        notify: Callable[[str], None] = lambda text: None,
    ) -> Iterator[Item]:
        """Yield what the work makes of each batch, in the order of the batches.

        Args:
            work: The work.
            batches: Taken one by one, only as many ahead of what is yielded as keep the workers busy.
            notify: Called with what the user should know, such as that a worker is gone.

        Raises:
            DiffugenError: The work failed, or no worker is left.
        """

    def release(self) -> None:
        """Give back the memory and the devices of workers, at the end of a stage."""

    def close(self) -> None:
        """End everything that was started; safe to call twice."""


class LocalExecutor:
    """Does the work in this process, one batch after the other."""

    spreads = False

    def open(self) -> None:
        """Do nothing."""

    def gives_gpu(self) -> bool:
        """Return False: what a device of this process is, the loaded model knows."""
        return False

    def spread(
        self,
        work: Work[Batch, Item],
        batches: Iterable[Batch],
        notify: Callable[[str], None] = lambda text: None,
    ) -> Iterator[Item]:
        """Yield what the work makes of each batch; nothing is loaded if there is none."""
        handle: Callable[[Batch], Iterable[Item]] | None = None
        for batch in batches:
            handle = handle or work.load()
            yield from handle(batch)

    def release(self) -> None:
        """Do nothing: the work is held by its stage."""

    def close(self) -> None:
        """Do nothing."""


def executor_of(settings: ExecutorSettings) -> Executor:
    """Return the executor that a configuration asks for; it is not open yet."""
    if settings.kind == "local":
        return LocalExecutor()
    from diffugen.run.ray_executor import RayExecutor

    return RayExecutor(settings)
