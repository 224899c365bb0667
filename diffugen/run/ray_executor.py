"""A Ray that is started or joined, and checked, to do work on its workers: the only home of Ray.

The workers themselves, and how batches are spread over them, are in `diffugen.run.ray_pool`.
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
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from diffugen.config.sections import ExecutorSettings
from diffugen.errors import DiffugenError, counted, first_line
from diffugen.run.executors import Batch, Item, Made, OnStep, Work, unfollowed
from diffugen.run.ray_pool import ANSWER_SECONDS, Pool, versions_differ
from diffugen.run.temporary import temporary_folder

CONNECT_SECONDS = 10.0
"""Longest wait for a connection to the address of a Ray."""

JOIN_SECONDS = 60.0
"""Longest wait for a Ray where something listens at its address; a step that is under way may add 40."""

LONGEST_FOLDER = 40
"""Bytes in the name of a folder for a Ray's files: its sockets lie below, and their paths are limited."""

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported to anyone
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # Ray's paragraphs about lost workers; ours is a line
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # no warning; a worker hides the GPUs itself
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
        self._pool: Pool | None = None

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

    def worker_device(self, device: str) -> str:
        """Return the device without the numbers of GPUs: a worker sees those only that Ray gave it."""
        return device.partition(":")[0]

    def spread(
        self,
        work: Work[Batch, Made, Item],
        batches: Iterable[Batch],
        notify: Callable[[str], None] = lambda text: None,
        on_step: OnStep = unfollowed,
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

    def _pool_of(self, work: Work[Any, Any, Any]) -> Pool:
        self.open()
        if self._pool is None or self._pool.work != work:
            self.release()
            gpus = self._gpus if work.on_gpu else 0.0
            size = self._settings.workers or self._room(gpus)
            self._pool = Pool(self._ray, work, size, self._settings.cpus_per_worker, gpus)
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
            raise DiffugenError(versions_differ(asked[answer].address, theirs, ours))
