"""Work in this process, on a thread beside the caller's: order, overlap, bounded memory, and how it ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from diffugen.errors import ConfigError
from diffugen.run.executors import AHEAD, LocalExecutor, OnStep
from tests.support.children import WAIT_SECONDS
from tests.support.works import Squares


@dataclass(frozen=True)
class Followed:
    """Makes numbers, with a step before each; remembers what happened, and on which thread."""

    on_gpu: bool = False
    happened: list[Any] = field(default_factory=list)
    reached: threading.Event = field(default_factory=threading.Event)

    def load(self, on_step: OnStep) -> Callable[[Sequence[int]], Iterator[int]]:
        def handle(batch: Sequence[int]) -> Iterator[int]:
            for number in batch:
                on_step(0.5, len(batch))
                self.happened.append(("made", number, threading.current_thread()))
                if number == 3:
                    self.reached.set()
                yield number

        return handle

    def finish(self, made: int) -> str:
        self.happened.append(("finished", made, threading.current_thread()))
        return str(made)


def test_a_batch_is_in_work_while_the_caller_keeps_the_one_before() -> None:
    work, kept = Followed(), []
    for item in LocalExecutor().spread(work, [[1, 2], [3]]):
        if item == "1":  # nothing of the second batch was asked for yet
            assert work.reached.wait(timeout=WAIT_SECONDS)
        kept.append(item)
    assert kept == ["1", "2", "3"]
    threads = {
        what: {thread for one, _, thread in work.happened if one == what} for what in ("made", "finished")
    }
    assert threads["finished"] == {threading.current_thread()}
    assert len(threads["made"]) == 1 and threads["made"] != threads["finished"]


def test_steps_are_told_to_the_caller_before_what_follows_them() -> None:
    said: list[Any] = []

    def on_step(share: float, images: int) -> None:
        said.append((share, images, threading.current_thread()))

    for item in LocalExecutor().spread(Followed(), [[1, 2], [3]], on_step=on_step):
        said.append(item)
    here = threading.current_thread()
    assert said == [(0.5, 2, here), "1", (0.5, 2, here), "2", (0.5, 1, here), "3"]


def test_only_as_many_batches_are_read_ahead_as_are_needed(tmp_path: Path) -> None:
    read: list[int] = []

    def reading() -> Iterator[list[int]]:
        for number in range(20):
            read.append(number)
            yield [number, number]

    most = 0
    for taken, _ in enumerate(LocalExecutor().spread(Squares(tmp_path), reading())):
        most = max(most, len(read) - taken // 2)
    assert len(read) == 20 and most == AHEAD


@pytest.mark.parametrize("error", [KeyboardInterrupt, None])
def test_a_caller_that_stops_ends_what_is_in_work(error: type[BaseException] | None) -> None:
    """At once, wherever the work is, and leaving it as an error does, so that it can tidy up."""
    before, tidied = threading.active_count(), threading.Event()

    @dataclass(frozen=True)
    class Endless(Followed):
        def load(self, on_step: OnStep) -> Callable[[Sequence[int]], Iterator[int]]:
            def handle(batch: Sequence[int]) -> Iterator[int]:
                try:
                    yield from batch
                    while batch == [2]:
                        pass
                finally:
                    if batch == [2]:
                        tidied.set()

            return handle

    items = LocalExecutor().spread(Endless(), [[1], [2], [3]])
    assert (next(items), next(items)) == ("1", "2")
    if error is None:
        items.close()  # type: ignore[attr-defined]
    else:
        with pytest.raises(error):
            items.throw(error)  # type: ignore[attr-defined]
    assert tidied.is_set() and threading.active_count() == before


def test_what_fails_is_told_once_and_nothing_is_done_after_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"weights\.bin: it is empty"):
        list(LocalExecutor().spread(Squares(tmp_path, unloadable=True), [[1], [2]]))
    kept: list[int] = []
    with pytest.raises(ZeroDivisionError, match="7 is broken"):
        kept.extend(LocalExecutor().spread(Squares(tmp_path, broken=7), [[1], [2, 7], [3]]))
    assert kept == [1, 4]


def test_nothing_is_loaded_where_there_is_no_batch(tmp_path: Path) -> None:
    assert not list(LocalExecutor().spread(Squares(tmp_path), []))
    assert not list(tmp_path.iterdir())
