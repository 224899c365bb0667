"""Workers of a Ray that have loaded the same work, and the batches that they are given.

Workers are plain actors, each of which loads what the work needs once and then handles one batch after the
other. Ray Data would spread batches too, but here the driver has to be in control: it is the only one that
reads and writes the run, it takes results in the order of the batches, so that a ledger does not depend on
which worker was faster, and it makes the batch of a lost worker again and tells so in one line.

Memory is bounded whatever the number of batches: at most `WINDOW` of them for each worker are between being
read and being taken, as pixels that wait for a worker, in work, or as results in Ray's object store. The next
one is read when the oldest is taken.

A batch goes to one worker as a whole, so its images share a call of the model however many workers there are.
Ray is handed in as a module; how it was started is not known here.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import islice
from typing import Any

from diffugen import __version__
from diffugen.errors import DiffugenError, counted, first_line
from diffugen.run.executors import AHEAD, Work, unfollowed

WINDOW = 3
"""Batches for each worker that are read, in work or done, and not taken yet."""

ATTEMPTS = 3
"""Workers that may be lost with the same batch in work."""

ANSWER_SECONDS = 60.0
"""Longest wait for a node that answers, and for the first worker that Ray finds a place for."""

POLL_SECONDS = 1.0
"""Time after which waiting for workers is interrupted to look whether there is still hope."""


@dataclass(frozen=True)
class _Trouble:
    """What a worker could not do; a record, because not every error can be sent.

    Attributes:
        text: The message of an error that the user can fix, or the first line of another one.
        fixable: Whether the user can fix it.
        trace: Its traceback.
    """

    text: str
    fixable: bool
    trace: str

    @classmethod
    def of(cls, error: Exception) -> _Trouble:
        fixable = isinstance(error, DiffugenError)
        return cls(str(error) if fixable else first_line(error), fixable, traceback.format_exc())

    def raise_from(self, worker: str) -> None:
        cause = RuntimeError(f"in worker {worker}:\n{self.trace}")
        if self.fixable:
            raise DiffugenError(self.text) from cause
        raise RuntimeError(f"{self.text.rstrip('.')}, in worker {worker}") from cause


class _Worker:
    """A worker; lives in a process of its own, where it finishes a batch while it makes the next one."""

    def __init__(self) -> None:
        self._making = threading.Lock()

    def where(self) -> str:
        """Return its process and machine."""
        return f"{os.getpid()} on {socket.gethostname()}"

    def load(self, work: Work[Any, Any, Any], gpus: float, version: str) -> _Trouble | None:
        """Load what the work needs."""
        if version != __version__:  # on a node that has come since the others were looked at
            theirs, ours = f"DiffuGen {__version__}", f"DiffuGen {version}"
            return _Trouble(versions_differ(socket.gethostname(), theirs, ours), True, "")
        if not gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a GPU that it was not given belongs to others
        self._work = work
        try:
            self._handle = work.load(unfollowed)
        except Exception as error:
            return _Trouble.of(error)
        return None

    def handle(self, batch: Any) -> list[Any] | _Trouble:
        """Return all that the work makes of a batch."""
        try:
            with self._making:
                made = list(self._handle(batch))
            return [self._work.finish(one) for one in made]
        except Exception as error:
            return _Trouble.of(error)


@dataclass(eq=False)
class _Member:
    """What the driver knows of a worker.

    Attributes:
        actor: Its handle.
        waits: From what it was asked for to what that is: ``where``, ``load``, or the number of a batch;
            oldest first.
        name: Its process and machine; empty until it has a place.
        loaded: Whether it can handle batches.
    """

    actor: Any
    waits: dict[Any, str | int] = field(default_factory=dict)
    name: str = ""
    loaded: bool = False

    @property
    def batches(self) -> list[int]:
        """The numbers of its batches."""
        return [what for what in self.waits.values() if isinstance(what, int)]


class Pool:
    """Workers that have loaded the same work."""

    def __init__(self, ray: Any, work: Work[Any, Any, Any], size: int, cpus: int, gpus: float) -> None:
        self.work = work
        self._sent = ray.put(work)  # once, however many workers load it
        self._ray = ray
        self._size = size
        self._gpus = gpus
        self._actor = ray.remote(_Worker).options(
            num_cpus=cpus, num_gpus=gpus, max_restarts=0, max_concurrency=AHEAD
        )
        self._members: list[_Member] = []
        self._lost_loading = 0

    def handle(self, batches: Iterator[Any], notify: Callable[[str], None]) -> Iterator[Any]:
        """Yield what the workers make of each batch, in the order of the batches."""
        self._notify = notify
        self._waiting: list[int] = []
        self._batches: dict[int, Any] = {}
        self._attempts: dict[int, int] = {}
        done: dict[int, list[Any]] = {}
        read = taken = 0
        while True:
            for batch in islice(batches, WINDOW * self._size - (read - taken)):
                self._batches[read] = batch
                heappush(self._waiting, read)
                read += 1
            if taken == read:
                return
            self._hand_out()
            done.update(self._next())
            while taken in done:
                yield from done.pop(taken)
                taken += 1

    def end(self) -> None:
        """End all workers, whatever they do."""
        for member in self._members:
            with suppress(Exception):  # it may be gone
                self._ray.kill(member.actor)
        self._members = []

    def _hand_out(self) -> None:
        """Give the workers what waits, the oldest first, and start more of them if there is enough."""
        idle = sum(not member.batches for member in self._members)
        for _ in range(min(self._size - len(self._members), len(self._waiting) - idle)):
            self._start()
        while self._waiting:
            ready = [one for one in self._members if one.loaded and len(one.batches) < AHEAD]
            idle = sum(not member.batches for member in self._members)
            member = min(ready, key=lambda one: len(one.batches), default=None)
            if member is None or (member.batches and len(self._waiting) <= idle):
                return  # what is left is for those that are still loading
            number = heappop(self._waiting)
            member.waits[member.actor.handle.remote(self._batches[number])] = number

    def _start(self) -> None:
        actor = self._actor.remote()
        asked = {
            actor.where.remote(): "where",
            actor.load.remote(self._sent, self._gpus, __version__): "load",
        }
        self._members.append(_Member(actor, dict(asked)))

    def _next(self) -> dict[int, list[Any]]:
        """Wait for one answer, and return the batch that it was about, if any, with its results."""
        member, answer = self._wait()
        what = member.waits[answer]
        try:
            value = self._ray.get(answer)
        except self._ray.exceptions.RayTaskError as error:  # not by the work: it could not be sent or read
            raise DiffugenError(
                f"worker {member.name} cannot work: {first_line(error.cause or error)}"
            ) from error
        except self._ray.exceptions.RayError as error:
            self._lose(member, what, error)
            return {}
        del member.waits[answer]
        if isinstance(value, _Trouble):
            value.raise_from(member.name)
        if what == "where":
            member.name = value
        elif what == "load":
            member.loaded = True
        else:
            self._lost_loading = 0
            del self._batches[int(what)]
            return {int(what): value}
        return {}

    def _wait(self) -> tuple[_Member, Any]:
        waited = {answer: member for member in self._members for answer in member.waits}
        until = time.monotonic() + ANSWER_SECONDS
        while True:
            ready, _ = self._ray.wait(list(waited), num_returns=1, timeout=POLL_SECONDS)
            if ready:  # a worker answers in order, but of two batches that it dies with, either may be first
                member = waited[ready[0]]
                return member, next(iter(member.waits))
            if time.monotonic() > until and not any(member.name for member in self._members):
                raise DiffugenError(
                    f"Ray has had no place for a worker for {ANSWER_SECONDS:.0f} seconds: others use it, or "
                    "its nodes are gone. Try again later, or lower executor.cpus_per_worker or "
                    "executor.gpus_per_worker"
                )

    def _lose(self, member: _Member, what: str | int, error: Exception) -> None:
        """Let others make the batches of a worker that is gone."""
        self._members.remove(member)
        with suppress(Exception):
            self._ray.kill(member.actor)
        for number in member.batches:
            heappush(self._waiting, number)
        name, why = member.name or "that had just been started", _reason(error)
        if not isinstance(what, int):
            self._lost_loading += 1
            if self._lost_loading >= ATTEMPTS + self._size:
                raise DiffugenError(
                    f"{counted(self._lost_loading, 'worker')} ended while they loaded the model (the last: "
                    f"{name}, {why}). Is there enough memory for {counted(self._size, 'worker')}? Lower "
                    "executor.workers"
                ) from error
        else:
            self._attempts[what] = self._attempts.get(what, 0) + 1
            if self._attempts[what] >= ATTEMPTS:
                raise DiffugenError(
                    f"{ATTEMPTS} workers ended with the same batch in work (the last: {name}, {why}). Is "
                    "there enough memory? Lower executor.workers or diffusion.batch_size"
                ) from error
        count = len(member.batches)
        again = f"; its {'batch' if count == 1 else f'{count} batches'} will be done again" if count else ""
        self._notify(f"lost worker {name}: {why}{again}")


def _reason(error: Exception) -> str:
    """Return in a few words why a worker is gone, from Ray's many."""
    text = str(error).lower()
    if "node has died" in text or "node was terminated" in text:
        return "its node is gone"
    if "memory monitor" in text or "out-of-memory" in text or "memory pressure" in text:
        return "its node ran out of memory"
    return "its process ended"


def versions_differ(node: str, theirs: str, ours: str) -> str:
    """Return the message about a node with other versions."""
    return f"the Ray node {node} has {theirs}, this machine has {ours}; install the same version there"
