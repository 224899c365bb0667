"""Work on the workers of a Ray, which is started for it or joined: the only home of Ray.

Workers are plain actors, each of which loads what the work needs once and then handles one batch after the
other. Ray Data would spread batches too, but here the driver has to be in control: it is the only one that
reads and writes the run, it takes results in the order of the batches, so that a ledger does not depend on
which worker was faster, and it makes the batch of a lost worker again and tells so in one line.

Memory is bounded whatever the number of batches: at most `WINDOW` of them for each worker are between being
read and being taken, as pixels that wait for a worker, in work, or as results in Ray's object store. The next
one is read when the oldest is taken.

A batch goes to one worker as a whole, so its images share a call of the model however many workers there are.
"""

from __future__ import annotations

import _thread
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import islice
from typing import Any

from diffugen import __version__
from diffugen.config.sections import ExecutorSettings
from diffugen.errors import DiffugenError, counted, first_line
from diffugen.run.executors import Batch, Item, Work
from diffugen.run.temporary import temporary_folder

WINDOW = 3
"""Batches for each worker that are read, in work or done, and not taken yet."""

AHEAD = 2
"""Batches that a worker is given at a time, so that it does not wait while the driver writes."""

ATTEMPTS = 3
"""Workers that may be lost with the same batch in work."""

ANSWER_SECONDS = 60.0
"""Longest wait for a node that answers, and for the first worker that Ray finds a place for."""

CONNECT_SECONDS = 10.0
"""Longest wait for a connection to the address of a Ray."""

JOIN_SECONDS = 60.0
"""Longest wait for a Ray where something listens at its address; a step that is under way may add 40."""

POLL_SECONDS = 1.0
"""Time after which waiting for workers is interrupted to look whether there is still hope."""

LONGEST_FOLDER = 40
"""Bytes in the name of a folder for a Ray's files: its sockets lie below, and their paths are limited."""

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported to anyone
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # Ray's paragraphs about lost workers; ours is a line
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # no warning; `_Worker.load` hides the GPUs itself
}


class RayExecutor:
    """Does the work on the workers of a Ray; see `diffugen.run.executors.Executor`."""

    spreads = True

    def __init__(self, settings: ExecutorSettings) -> None:
        self._settings = settings
        _prepare(own=settings.address is None)
        self._ray: Any = None
        self._nodes: list[_Node] = []
        self._gpus = 0.0
        self._undo = ExitStack()
        self._pool: _Pool | None = None

    def open(self) -> None:
        """Start or join a Ray, and check that it has room, and that its nodes have the same versions.

        Raises:
            DiffugenError: Ray is not installed, there is none at the address, its nodes have other versions,
                or more was asked for than there is.
        """
        if self._ray is not None:
            return
        ray = _import_ray()
        with ExitStack() as undo:
            if not ray.is_initialized():  # else the process uses one already, and keeps it
                _connect(ray, self._settings.address, undo)
            nodes = _nodes_of(ray)
            gpus = self._settings.gpus_per_worker
            self._gpus = gpus if gpus is not None else float(any(node.gpus for node in nodes))
            self._nodes = nodes
            self._check_room()
            _check_versions(ray, [node for node in nodes if node.room(self._settings, self._gpus)])
            self._ray, self._undo = ray, undo.pop_all()

    def gives_gpu(self) -> bool:
        """Return whether workers have a GPU for work that gains by one."""
        self.open()
        return self._gpus > 0

    def spread(
        self,
        work: Work[Batch, Item],
        batches: Iterable[Batch],
        notify: Callable[[str], None] = lambda text: None,
    ) -> Iterator[Item]:
        """Yield what the work makes of each batch, in the order of the batches.

        Raises:
            DiffugenError: The work failed, no worker is left, or several were lost with the same batch.
        """
        batches = iter(batches)
        for first in batches:
            pool = self._pool_of(work)
            try:
                yield from pool.handle(_chained(first, batches), notify)
            except BaseException:  # Ctrl-C too: what is in work is of no use
                self.release()
                raise

    def release(self) -> None:
        """End the workers."""
        if self._pool is not None:
            self._pool.end()
            self._pool = None

    def close(self) -> None:
        """End the workers, and the Ray if it was started for them; leave a Ray that was joined."""
        self.release()
        self._ray = None
        self._undo.close()

    def _pool_of(self, work: Work[Any, Any]) -> _Pool:
        self.open()
        if self._pool is None or self._pool.work != work:
            self.release()
            gpus = self._gpus if work.on_gpu else 0.0
            size = self._settings.workers or self._room(gpus)
            self._pool = _Pool(self._ray, work, size, self._settings.cpus_per_worker, gpus)
        return self._pool

    def _room(self, gpus: float) -> int:
        return sum(node.room(self._settings, gpus) for node in self._nodes)

    def _check_room(self) -> None:
        settings, room = self._settings, self._room(self._gpus)
        if room >= (settings.workers or 1):
            return
        cpus, gpus = (sum(getattr(node, what) for node in self._nodes) for what in ("cpus", "gpus"))
        count = settings.workers or 1
        asked = f"{counted(count, 'worker')} with {counted(settings.cpus_per_worker, 'CPU')}"
        asked += f" and {self._gpus:g} GPU" if self._gpus else ""
        asked += " each" if count > 1 else ""
        raise DiffugenError(
            f"the executor asks for {asked}, but Ray has room for {room}: "
            f"{counted(len(self._nodes), 'node')} with {cpus:g} CPU and {gpus:g} GPU in all. Lower "
            "executor.workers, executor.cpus_per_worker or executor.gpus_per_worker, or add nodes"
        )


@dataclass(frozen=True)
class _Node:
    """A machine of a Ray.

    Attributes:
        id: Ray's name for it.
        address: Where it is.
        cpus: Its CPU cores.
        gpus: Its GPUs.
    """

    id: str
    address: str
    cpus: float
    gpus: float

    def room(self, settings: ExecutorSettings, gpus: float) -> int:
        """Return how many workers fit on it."""
        by_cpus = int(self.cpus // settings.cpus_per_worker)
        if not gpus:
            return by_cpus
        whole = int(self.gpus // gpus) if gpus >= 1 else int(self.gpus) * int(1 / gpus + 1e-6)
        return min(by_cpus, whole)


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
    """A worker; lives in a process of its own."""

    def where(self) -> str:
        """Return its process and machine."""
        return f"{os.getpid()} on {socket.gethostname()}"

    def load(self, work: Work[Any, Any], gpus: float, version: str) -> _Trouble | None:
        """Load what the work needs."""
        if version != __version__:  # on a node that has come since the others were looked at
            theirs, ours = f"DiffuGen {__version__}", f"DiffuGen {version}"
            return _Trouble(_versions_differ(socket.gethostname(), theirs, ours), True, "")
        if not gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a GPU that it was not given belongs to others
        try:
            self._handle = work.load()
        except Exception as error:
            return _Trouble.of(error)
        return None

    def handle(self, batch: Any) -> list[Any] | _Trouble:
        """Return all that the work makes of a batch."""
        try:
            return list(self._handle(batch))
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


class _Pool:
    """Workers that have loaded the same work."""

    def __init__(self, ray: Any, work: Work[Any, Any], size: int, cpus: int, gpus: float) -> None:
        self.work = work
        self._sent = ray.put(work)  # once, however many workers load it
        self._ray = ray
        self._size = size
        self._gpus = gpus
        self._actor = ray.remote(_Worker).options(num_cpus=cpus, num_gpus=gpus, max_restarts=0)
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


def _chained(first: Batch, rest: Iterator[Batch]) -> Iterator[Batch]:
    yield first
    yield from rest


def _prepare(*, own: bool) -> None:
    """Make Ray quiet, and have a Ray of our own, whose ports are open to all, ask for a token that is ours.

    Ray reads its environment while it is imported, which others do too, such as Ultralytics. Then it takes a
    token of its own, which it keeps in the user's home.
    """
    if "ray" in sys.modules:
        return
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if own and "RAY_AUTH_MODE" not in os.environ:
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise DiffugenError(
            "executor.kind is ray, but Ray is not installed: pip install 'diffugen[ray]', or set "
            "executor.kind to local"
        ) from error
    return ray


def _connect(ray: Any, address: str | None, undo: ExitStack) -> None:
    """Start a Ray, or join the one at an address."""
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        folder = str(undo.enter_context(temporary_folder("ray")))
        place = {"_temp_dir": folder} if len(os.fsencode(folder)) <= LONGEST_FOLDER else {}
        undo.callback(ray.shutdown)
        try:
            with _own_signals():
                ray.init(address="local", include_dashboard=False, **quiet, **place)
        except Exception as error:  # whatever keeps its processes from starting
            raise DiffugenError(f"Ray cannot be started on this machine: {first_line(error)}") from error
        return
    if address != "auto":
        _check_answers(address)
    undo.callback(ray.shutdown)
    try:
        with _own_signals(), _silenced(), _within(JOIN_SECONDS):
            ray.init(address=address, **quiet)
    except Exception as error:
        if "ersion mismatch" in str(error):
            why = " ".join(str(error).split())
            raise DiffugenError(
                f"the Ray at {address} has other versions than this machine. {why}"
            ) from error
        raise DiffugenError(_no_ray(address, first_line(error))) from error


def _check_answers(address: str) -> None:
    """Require that something listens at an address: Ray itself would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise DiffugenError(
            f"executor.address {address!r} is not an address; give auto, host:port, ray://host:port, or null "
            "to start a Ray"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise DiffugenError(_no_ray(address, first_line(error))) from error


def _no_ray(address: str, why: str) -> str:
    return (
        f"no Ray can be joined at executor.address {address!r}: {why} Start one there (ray start --head), "
        "give another address, or set it to null to start a Ray on this machine for this command. If it asks "
        "for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH"
    )


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep what SIGTERM does: Ray takes it over while it starts."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, kept)


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Interrupt the main thread after a time.

    Raises:
        TimeoutError: The time is over.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    over = threading.Event()

    def stop() -> None:
        over.set()
        _thread.interrupt_main()

    timer = threading.Timer(seconds, stop)
    timer.start()
    try:
        yield
    except KeyboardInterrupt:
        if over.is_set():
            raise TimeoutError(f"no answer for {seconds:.0f} seconds") from None
        raise
    finally:
        timer.cancel()


@contextmanager
def _silenced() -> Iterator[None]:
    """Keep what Ray's C++ code writes about each attempt to connect from the user, who gets one message."""
    sys.stderr.flush()
    with open(os.devnull, "wb") as nowhere:
        kept = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)


def _nodes_of(ray: Any) -> list[_Node]:
    found = [(node, node["Resources"]) for node in ray.nodes() if node["Alive"]]
    return [
        _Node(node["NodeID"], node["NodeManagerAddress"], has.get("CPU", 0.0), has.get("GPU", 0.0))
        for node, has in found
    ]


def _check_versions(ray: Any, nodes: list[_Node]) -> None:
    """Require the versions of this process on each node that gets workers."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def versions() -> dict[str, str]:  # sent as code, because DiffuGen may not be there
        import platform

        try:
            from diffugen import __version__ as ours
        except ImportError as error:
            ours = f"none ({error})"
        return {"DiffuGen": ours, "Python": platform.python_version().rpartition(".")[0]}

    here = versions()
    ask, asked = ray.remote(versions), {}
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node.id, soft=False)
        asked[ask.options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote()] = node
    ready, silent = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_SECONDS)
    if silent:
        raise DiffugenError(
            f"the Ray node {asked[silent[0]].address} has not answered for {ANSWER_SECONDS:.0f} seconds; "
            "look at its logs, or take it out"
        )
    for answer in ready:
        try:
            has = ray.get(answer)
        except ray.exceptions.RayError as error:
            why = first_line(error)
            raise DiffugenError(
                f"the Ray node {asked[answer].address} cannot run Python code of this machine: {why}"
            ) from error
        other = [name for name in here if has[name] != here[name]]
        if other:
            theirs, ours = (" and ".join(f"{name} {one[name]}" for name in other) for one in (has, here))
            raise DiffugenError(_versions_differ(asked[answer].address, theirs, ours))


def _versions_differ(node: str, theirs: str, ours: str) -> str:
    return f"the Ray node {node} has {theirs}, this machine has {ours}; install the same version there"
