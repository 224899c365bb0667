"""The batches that a task's images are made in, planned one by one, and how many of them are done.

Knows an order of images; does not know how they are made, or what they are made from.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import overload

from diffugen.records import ImageRecord
from diffugen.run.results import BatchesDone
from diffugen.run.rounds import Round

Batch = Sequence[ImageRecord]


class Batches(Sequence[Batch]):
    """The batches of groups of images, consecutive parts of each, planned when they are asked for."""

    def __init__(self, groups: Sequence[Batch], size: int, numbers: range | None = None) -> None:
        """Divide groups into batches.

        Args:
            groups: Images that can share a batch.
            size: Most images of a batch.
            numbers: Those of the batches that are meant; None for all.
        """
        self._groups = groups
        self._size = size
        self._ends = list(accumulate(-(-len(group) // size) for group in groups))
        self._numbers = range(self._ends[-1] if groups else 0) if numbers is None else numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Batch: ...
    @overload
    def __getitem__(self, index: slice) -> Batches: ...
    def __getitem__(self, index: int | slice) -> Batch | Batches:
        if isinstance(index, slice):
            return Batches(self._groups, self._size, self._numbers[index])
        group, images = self._place(self._numbers[index])
        return group[images.start : images.stop]

    @property
    def images(self) -> int:
        """Number of images in all batches."""
        return sum(len(self._place(number)[1]) for number in self._numbers)

    def _place(self, number: int) -> tuple[Batch, range]:
        """Return the group of a batch, and where in it its images are."""
        place = bisect_right(self._ends, number)
        group = self._groups[place]
        first = (number - (self._ends[place - 1] if place else 0)) * self._size
        return group, range(len(group))[first : first + self._size]


class Progress:
    """Which batches of a plan are done; a run that is continued begins after them.

    What is done is remembered in the run's ledger under a hash of the plan, so that a long plan need not be
    compared with the run image by image. It counts only while no image of the round has lost a file.

    Attributes:
        dropped: Images of the batches that are done which turned out unusable.
    """

    def __init__(
        self, round: Round, batches: Batches, plan: str | None, on_done: Callable[[int, int], None]
    ) -> None:
        """Look up what is done.

        Args:
            round: The round.
            batches: Its batches.
            plan: Hash of all that decides them; None remembers nothing.
            on_done: Called with images that turned out to exist, and with images that were made.
        """
        self._store = round.store
        self._batches = batches
        self._plan = plan
        self._on_done = on_done
        self._waiting: deque[_Waiting] = deque()
        kept = None if plan is None else round.store.batches_done(plan)
        if kept is None or not 0 <= kept.batches <= len(batches) or round.files_missing():
            kept = BatchesDone()
        self._done = kept.batches
        self.dropped = kept.dropped
        on_done(batches[: self._done].images, 0)

    def unfinished(self) -> Iterator[Batch]:
        """Yield the batches that are not done; call `made` once for each of their images."""
        # Whole batches, although some of their images may exist: an image's rounding depends on its batch.
        for number in range(self._done, len(self._batches)):
            batch = self._batches[number]
            exists = all(self._store.has_image(job.id) or self._store.is_dropped(job.id) for job in batch)
            self._waiting.append(_Waiting(batch, 0 if exists else len(batch), exists))
            if exists:
                self._settle()
            else:
                yield batch
        self._remember()

    def made(self) -> None:
        """Take note of an image that was made, the next in the order of the batches."""
        first = self._waiting[0]
        first.left -= 1
        self._on_done(0, 1)
        if not first.left:
            self._settle()
            self._remember()

    def _settle(self) -> None:
        while self._waiting and not self._waiting[0].left:
            first = self._waiting.popleft()
            self.dropped += sum(self._store.is_dropped(job.id) for job in first.batch)
            self._done += 1
            if first.existed:
                self._on_done(len(first.batch), 0)

    def _remember(self) -> None:
        if self._plan is not None:
            self._store.keep_batches_done(self._plan, BatchesDone(self._done, self.dropped))


@dataclass
class _Waiting:
    """A batch in work, or one that exists and comes after such a batch."""

    batch: Batch
    left: int
    existed: bool
