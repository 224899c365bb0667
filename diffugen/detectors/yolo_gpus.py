"""Train a YOLO segmentation model on several GPUs of this machine, by Ultralytics' own DDP.

Ultralytics starts a process for each GPU, from a script and a pickled trainer. Here those processes are run,
their progress is passed on, and they end with this one. Knows a prepared trainer; neither checkpoints nor
datasets.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import IO, Any

from diffugen.detectors import OnEpoch, OnStep
from diffugen.errors import ModelError, is_out_of_memory

_MARK = "diffugen-progress "
_KEPT_LINES = 200
_SECONDS_TO_END = 10.0
_SIGNAL = re.compile(r".*(Signal \d+ \((?!SIGTERM)\w+\)) received by PID \d+")
"""What the launcher says of a process that was killed, by something else than the launcher."""

_ERROR = re.compile(r"^(?:\[rank\d+\]: )?(?:\w+\.)*(\w*(?:Error|Exception): .+)")
"""The last line of a traceback."""


def train_in_processes(trainer: Any, on_epoch: OnEpoch | None, on_step: OnStep | None) -> None:
    """Train on the GPUs of a trainer, one process each, and wait for them.

    Args:
        trainer: Ultralytics' trainer of several devices, with its model. Its callbacks run in the processes,
            where `tell_epoch` and `tell_step` reach this one.
        on_epoch: Called with what `tell_epoch` was.
        on_step: Called with what `tell_step` was.

    Raises:
        ModelError: A process failed.
        MemoryError: A process ran out of memory.
    """
    from ultralytics.utils.dist import ddp_cleanup, generate_ddp_command

    command, script = generate_ddp_command(trainer)
    # A session of their own: Ctrl-C is for this process, which then ends them.
    processes = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    said = deque[str](maxlen=_KEPT_LINES)
    try:
        assert processes.stdout is not None
        for line in _without_progress(processes.stdout, on_epoch, on_step):
            said.append(line.rstrip())
        failed = processes.wait()
    finally:
        _end(processes)
        ddp_cleanup(trainer, script)
    if failed:
        raise _failure(trainer.world_size, list(said)) from RuntimeError("\n".join(said))


def tell_epoch(epoch: int, values: Mapping[str, float]) -> None:
    """Tell the process that waits for this one about an epoch, as `diffugen.detectors.OnEpoch`."""
    print(_MARK + json.dumps([epoch, values]), flush=True)


def tell_step(done: float) -> None:
    """Tell the process that waits for this one about a step, as `diffugen.detectors.OnStep`."""
    # If that process was killed, this raises an error, which ends this one too.
    print(_MARK + json.dumps(done), flush=True)


def _without_progress(output: IO[str], on_epoch: OnEpoch | None, on_step: OnStep | None) -> Iterable[str]:
    """Yield the other lines of the processes."""
    for line in output:
        if not line.startswith(_MARK):
            yield line
            continue
        told = json.loads(line.removeprefix(_MARK))
        if isinstance(told, list):
            if on_epoch is not None:
                on_epoch(told[0], told[1])
        elif on_step is not None:
            on_step(told)


def _end(processes: subprocess.Popen[str]) -> None:
    """End the processes that still run."""
    if processes.poll() is None:
        for sign in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(processes.pid, sign)
            with suppress(subprocess.TimeoutExpired):
                processes.wait(_SECONDS_TO_END)
                break
    if processes.stdout is not None:
        processes.stdout.close()


def _failure(count: int, said: Sequence[str]) -> Exception:
    """Return what the last lines of the processes mean."""
    errors = [found[1] for line in said if (found := _ERROR.match(line))]
    for one in errors:
        if is_out_of_memory(RuntimeError(one)):
            return MemoryError(one)
    # The others also fail when one is gone, and may say so first.
    killed = [f"one process got {found[1]}" for line in said if (found := _SIGNAL.match(line))]
    others = [line for line in said if line.strip()][-1:] or ["it said nothing"]
    return ModelError(f"training on {count} GPUs failed: {[*killed, *errors, *others][0]}")
