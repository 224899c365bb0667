"""Where the work of a stage is done: in this process, or on the workers of a Ray.

A stage describes its work once and hands it over with the batches; what comes back, and in which order, does
not depend on where it was done. Does not know what the work is. Ray itself is in `diffugen.run.ray_executor`.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from queue import SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

from diffugen.config.sections import ExecutorSettings

Batch = TypeVar("Batch")
Made = TypeVar("Made")
Item = TypeVar("Item")
BatchIn = TypeVar("BatchIn", contravariant=True)
ItemOut = TypeVar("ItemOut", covariant=True)

OnStep = Callable[[float, int], None]
"""Called after each step of a batch with the share of it that is done, below 1, and its number of images."""

AHEAD = 2
"""Batches that a worker is given at a time, so that it does not wait while others are read and kept."""


def unfollowed(share: float, images: int) -> None:
    """Follow no steps."""


class Work(Protocol[BatchIn, Made, ItemOut]):
    """What is done with each batch; it can be sent to another process, and compared with other work."""

    @property
    def on_gpu(self) -> bool:
        """Whether it gains by a GPU."""

    def load(self, on_step: OnStep) -> Callable[[BatchIn], Iterable[Made]]:
        """Load what it needs, such as a model, once for each worker, and return what handles a batch.

        Args:
            on_step: To be called while a batch is handled.

        Raises:
            DiffugenError: Something is missing; no other worker will find it either.
        """

    def finish(self, made: Made) -> ItemOut:
        """Return what comes back of something that was made; meanwhile the next batch may be in work."""


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

    def worker_device(self, device: str) -> str:
        """Return where a worker's model runs, given the configured torch device."""

    def spread(
        self,
        work: Work[Batch, Made, Item],
        batches: Iterable[Batch],
        notify: Callable[[str], None] = lambda text: None,
        on_step: OnStep = unfollowed,
    ) -> Iterator[Item]:
        """Yield what the work makes of each batch, in the order of the batches.

        Args:
            work: The work.
            batches: Taken one by one, only as many ahead of what is yielded as keep the workers busy.
            notify: Called with what the user should know, such as that a worker is gone.
            on_step: Called as the work says; not where it is done in other processes.

        Raises:
            DiffugenError: The work failed, or no worker is left.
        """

    def release(self) -> None:
        """Give back the memory and the devices of workers, at the end of a stage."""

    def close(self) -> None:
        """End everything that was started; safe to call twice."""


class LocalExecutor:
    """Does the work in this process, on one other thread.

    So a model works while the images of the last batch are encoded and written, and while those of the next
    one are read. Everything else happens on the thread of the caller: batches are read, what was made is
    finished and yielded, and steps are told.
    """

    spreads = False

    def open(self) -> None:
        """Do nothing."""

    def gives_gpu(self) -> bool:
        """Return False: what a device of this process is, the loaded model knows."""
        return False

    def worker_device(self, device: str) -> str:
        """Return the device itself."""
        return device

    def spread(
        self,
        work: Work[Batch, Made, Item],
        batches: Iterable[Batch],
        notify: Callable[[str], None] = lambda text: None,
        on_step: OnStep = unfollowed,
    ) -> Iterator[Item]:
        """Yield what the work makes of each batch; nothing is loaded if there is none."""
        said: SimpleQueue[Future[None] | _Step | _Made[Made]] = SimpleQueue()
        handler = _Handler(work, said)
        batches = iter(batches)
        with ThreadPoolExecutor(1, "work") as thread:

            def give(count: int) -> int:
                given = [thread.submit(handler.handle, batch) for batch in islice(batches, count)]
                for one in given:
                    one.add_done_callback(said.put)
                return len(given)

            try:
                waiting = give(AHEAD)
                while waiting:
                    match said.get():
                        case _Made(made):
                            yield work.finish(made)
                        case _Step(share, images):
                            on_step(share, images)
                        case ended:
                            ended.result()
                            waiting += give(1) - 1
            finally:
                handler.stop()
                thread.shutdown(cancel_futures=True)

    def release(self) -> None:
        """Do nothing: the work is held by its stage."""

    def close(self) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class _Made(Generic[Made]):
    """Something that was made of a batch."""

    made: Made


@dataclass(frozen=True)
class _Step:
    """A step, as told by `OnStep`."""

    share: float
    images: int


class _Stopped(BaseException):
    """The work is to end at once."""


class _Handler(Generic[Batch, Made]):
    """Handles batches on a thread, and says in a queue what happens."""

    def __init__(self, work: Work[Batch, Made, Any], said: SimpleQueue[Any]) -> None:
        self._work = work
        self._said = said
        self._handle: Callable[[Batch], Iterable[Made]] | None = None
        self._changing = threading.Lock()
        self._stopped = False
        self._thread: int | None = None

    def handle(self, batch: Batch) -> None:
        """Handle a batch, unless it was stopped or an earlier one failed."""
        with self._changing:
            if self._stopped:
                return
            self._thread = threading.get_ident()
        try:
            self._handle = self._handle or self._work.load(self._step)
            for made in self._handle(batch):
                self._said.put(_Made(made))
        except BaseException:
            self._stopped = True
            raise
        finally:
            with self._changing:
                self._thread = None

    def stop(self) -> None:
        """End what is in work between any two of its operations, as Ctrl-C would on the main thread."""
        with self._changing:
            self._stopped = True
            if self._thread is not None:
                set_error = ctypes.pythonapi.PyThreadState_SetAsyncExc
                set_error(ctypes.c_ulong(self._thread), ctypes.py_object(_Stopped))

    def _step(self, share: float, images: int) -> None:
        if self._stopped:  # the error that was set came up where Python ignores errors, as in a destructor
            raise _Stopped
        self._said.put(_Step(share, images))


def executor_of(settings: ExecutorSettings) -> Executor:
    """Return the executor that a configuration asks for; it is not open yet."""
    if settings.kind == "local":
        return LocalExecutor()
    from diffugen.run.ray_executor import RayExecutor

    return RayExecutor(settings)
