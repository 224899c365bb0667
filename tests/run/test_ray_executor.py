"""Work on a real Ray: order, bounded memory, lost workers and nodes, and what is wrong at the start."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from diffugen.config import ExecutorSettings
from diffugen.errors import DiffugenError
from diffugen.run.executors import Executor, LocalExecutor, executor_of
from diffugen.run.ray_executor import RayExecutor
from diffugen.run.ray_pool import ATTEMPTS, WINDOW
from tests.support.children import WAIT_SECONDS, restore_signals
from tests.support.works import Squares, wait_for

ROOT = Path(__file__).parents[2]

psutil = pytest.importorskip("psutil")
pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Yield a Ray with one node of 2 CPUs, to which tests add others."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    yield made
    made.shutdown()


@pytest.fixture
def workers(cluster: Any) -> Iterator[RayExecutor]:
    """Yield an executor with 2 workers."""
    made = joined(cluster, workers=2)
    yield made
    made.close()


def joined(cluster: Any, **settings: Any) -> RayExecutor:
    return RayExecutor(ExecutorSettings(kind="ray", address=cluster.address, **settings))


def batches(count: int) -> list[list[int]]:
    """Return batches of 1, 2 and 3 numbers: [0], [3, 4], [6, 7, 8], [9], ..."""
    return [list(range(3 * index, 3 * index + 1 + index % 3)) for index in range(count)]


def squares(executor: Executor, work: Squares, count: int, said: list[str] | None = None) -> list[int]:
    return list(executor.spread(work, batches(count), (said if said is not None else []).append))


def test_the_results_are_those_of_the_local_executor_in_their_order(
    workers: RayExecutor, tmp_path: Path
) -> None:
    work = Squares(tmp_path)
    expected = squares(LocalExecutor(), work, 12)
    assert expected == [number**2 for batch in batches(12) for number in batch]
    assert squares(workers, work, 12) == expected
    assert squares(workers, work, 0) == []
    assert squares(workers, work, 12) == expected
    assert len(list(tmp_path.glob("loaded-*"))) <= 3, "workers are kept for the same work"


def test_only_as_many_batches_are_read_ahead_as_workers_need(workers: RayExecutor, tmp_path: Path) -> None:
    read: list[int] = []

    def reading() -> Iterator[list[int]]:
        for number in range(40):
            read.append(number)
            yield [number]

    most = 0
    for taken, _ in enumerate(workers.spread(Squares(tmp_path), reading())):
        most = max(most, len(read) - taken)
    assert len(read) == 40 and 2 <= most <= WINDOW * 2


@pytest.mark.slow
def test_batches_of_killed_workers_are_made_again(workers: RayExecutor, tmp_path: Path) -> None:
    said: list[str] = []
    work = Squares(tmp_path, kills=((4, 1), (9, ATTEMPTS - 1)))
    assert squares(workers, work, 8, said) == [number**2 for batch in batches(8) for number in batch]
    assert len(said) == ATTEMPTS, "one line for each lost worker"
    line = r"lost worker \d+ on \S+: its process ended; its (batch|2 batches) will be done again"
    assert all(re.fullmatch(line, one) for one in said), said


@pytest.mark.slow
def test_a_batch_that_kills_every_worker_ends_the_work(workers: RayExecutor, tmp_path: Path) -> None:
    said: list[str] = []
    work, taken = Squares(tmp_path, kills=((6, 99),)), []
    with pytest.raises(DiffugenError, match=rf"^{ATTEMPTS} workers ended with the same batch in work"):
        for one in workers.spread(work, batches(8), said.append):
            taken.append(one)
    # A worker may have the batch before in work, too, and be lost with that one.
    assert taken == [0, 9, 16][: len(taken)] and ATTEMPTS - 1 <= len(said) <= 2 * ATTEMPTS
    assert squares(workers, Squares(tmp_path), 2) == [0, 9, 16], "the executor can be used again"


def test_what_cannot_be_loaded_fails_at_once_with_its_own_message(
    workers: RayExecutor, tmp_path: Path
) -> None:
    said: list[str] = []
    with pytest.raises(DiffugenError) as failed:
        squares(workers, Squares(tmp_path, unloadable=True), 9, said)
    assert str(failed.value) == "1 mistake in the configuration:\n  - weights.bin: it is empty"
    assert not said and len(list(tmp_path.glob("loaded-*"))) <= 2


def test_an_unforeseen_error_is_one_line_with_its_trace_beneath(workers: RayExecutor, tmp_path: Path) -> None:
    with pytest.raises(
        RuntimeError, match=r"^ZeroDivisionError: 7 is broken, in worker \d+ on .+$"
    ) as failed:
        squares(workers, Squares(tmp_path, broken=7), 9)
    assert "in _handle" in str(failed.value.__cause__)


def test_a_node_that_is_taken_away_costs_nothing(cluster: Any, tmp_path: Path) -> None:
    node, gate = cluster.add_node(num_cpus=2), tmp_path / "gate"
    said: list[str] = []
    cluster.wait_for_nodes()
    executor = joined(cluster, workers=4)
    found = executor.spread(Squares(tmp_path, gate=gate, gated=3), batches(9), said.append)
    taken = [next(found)]  # the others wait at the gate
    cluster.remove_node(node)
    gate.touch()
    taken += found
    executor.close()
    assert taken == [number**2 for batch in batches(9) for number in batch]
    assert 1 <= len(said) <= 2 and all("its node is gone" in one for one in said)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"workers": 9},
            "asks for 9 workers with 1 CPU each, but Ray has room for 2: 1 node with 2 CPU and 0 GPU",
        ),
        ({"cpus_per_worker": 3}, "asks for 1 worker with 3 CPUs, but Ray has room for 0"),
        ({"gpus_per_worker": 0.5}, "with 1 CPU and 0.5 GPU, but Ray has room for 0"),
    ],
)
def test_more_than_there_is_is_refused(cluster: Any, settings: dict[str, Any], message: str) -> None:
    executor = joined(cluster, **settings)
    with pytest.raises(DiffugenError, match=message):
        executor.open()
    executor.close()


def test_a_node_with_another_version_is_refused(cluster: Any, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import diffugen\ndiffugen.__version__ = '0.0.1'\n")
    node = cluster.add_node(num_cpus=2, env_vars={"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    cluster.wait_for_nodes()
    try:
        with pytest.raises(
            DiffugenError, match=r"the Ray node .+ has DiffuGen 0\.0\.1, this machine has Diff"
        ):
            joined(cluster, workers=2).open()
    finally:
        cluster.remove_node(node)


def test_a_worker_uses_the_gpus_that_ray_gives_it() -> None:
    executor = RayExecutor(ExecutorSettings(kind="ray"))
    assert [executor.worker_device(one) for one in ("cuda:3", "cuda:0,1", "cuda", "auto", "cpu")] == [
        "cuda",
        "cuda",
        "cuda",
        "auto",
        "cpu",
    ]


def test_no_ray_at_the_address_is_told_soon() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        for scheme in ("", "ray://"):
            address = f"{scheme}127.0.0.1:{port}"
            with pytest.raises(DiffugenError, match=f"no Ray can be joined at executor.address '{address}'"):
                executor_of(ExecutorSettings(kind="ray", address=address)).open()
    with pytest.raises(DiffugenError, match="'somewhere' is not an address; give auto, host:port"):
        executor_of(ExecutorSettings(kind="ray", address="somewhere")).open()


def test_a_missing_ray_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DiffugenError, match=r"Ray is not installed: pip install 'diffugen\[ray\]'"):
        executor_of(ExecutorSettings(kind="ray")).open()


def test_ctrl_c_ends_the_ray_that_was_started(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from diffugen.config import ExecutorSettings\n"
        "from diffugen.run.ray_executor import RayExecutor; from tests.support.works import Squares\n"
        "folder = Path(sys.argv[1])\n"
        "executor = RayExecutor(ExecutorSettings(kind='ray', workers=1))\n"
        "try:\n"
        "    for one in executor.spread(Squares(folder, gate=folder / 'gate', gated=3), [[0], [3]]):\n"
        "        (folder / 'begun').touch()\n"
        "finally:\n"
        "    executor.close()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=restore_signals,
    ) as child:
        wait_for(lambda: (tmp_path / "begun").exists() or child.poll() is not None)
        below = psutil.Process(child.pid).children(recursive=True)
        child.send_signal(signal.SIGINT)
        said, _ = child.communicate(timeout=WAIT_SECONDS)
    assert said.count("Traceback") == 1 and said.rstrip().endswith("KeyboardInterrupt"), said
    assert len(below) > 2 and not psutil.wait_procs(below, timeout=WAIT_SECONDS)[1]


def test_a_command_says_so_in_one_message_before_it_makes_anything(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        command = [
            sys.executable,
            "-m",
            "diffugen.cli",
            "generate",
            "miniature",
            "--run",
            str(tmp_path / "run"),
        ]
        command += ["--set", "executor.kind=ray", "--set", f"executor.address={address}"]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=WAIT_SECONDS, check=False
        )
    assert done.returncode == 2
    [line] = [line for line in done.stderr.splitlines() if not line.startswith("round 0: generate")]
    assert line.startswith(f"error: no Ray can be joined at executor.address '{address}'")
    assert not any((tmp_path / "run" / "images").rglob("*.png"))
