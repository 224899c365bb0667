"""Batches of a plan, and how a long round is continued: by what is remembered, not image by image."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from diffugen.diffusion.jobs import PromptJobs, grouped, image_seed
from diffugen.records import HeatMaps, ImageRecord, Phrase, Prompt
from diffugen.run import RunStore
from diffugen.run.results import BatchesDone
from diffugen.stages.batches import Batches, Progress
from tests.support.rounds import round_of

PROMPTS = [Prompt(f"a car in {place}", (Phrase("car", "car"),)) for place in ("fog", "rain", "fog", "snow")]


def jobs(each: int, size: int = 8) -> PromptJobs:
    return PromptJobs(
        PROMPTS, images_per_prompt=each, run_seed=3, size_wh=(size, size), model="m", settings={"steps": 2}
    )


def add(store: RunStore, record: ImageRecord) -> None:
    rgb = np.zeros((record.size_wh[1], record.size_wh[0], 3), dtype=np.uint8)
    store.add_image(record, rgb, HeatMaps(record.id, record.size_wh, (), {}), seconds=1)


def do(store: RunStore, batches: Batches, plan: str | None, most: int | None = None) -> tuple[int, int]:
    """Make at most so many images, as a stage does; return how many existed and how many were made."""
    counts = [0, 0]

    def on_done(existing: int, made: int) -> None:
        counts[0] += existing
        counts[1] += made

    progress = Progress(round_of(store), batches, plan, on_done)
    for batch in progress.unfinished():
        for job in batch:
            if counts[1] == most:
                return counts[0], counts[1]
            add(store, job)
            progress.made()
    return counts[0], counts[1]


def test_a_plan_of_prompts_counts_the_images_of_each() -> None:
    planned = jobs(3)
    numbers = {"a car in fog": 0, "a car in rain": 0, "a car in snow": 0}
    for job in planned:
        assert job.seed == image_seed(3, numbers[job.prompt.text], job.prompt)
        numbers[job.prompt.text] += 1
    assert numbers == {"a car in fog": 6, "a car in rain": 3, "a car in snow": 3}
    assert len({job.id for job in planned}) == len(planned) == 12
    assert planned[-1] == list(planned)[-1] and planned[2:4] == list(planned)[2:4]
    assert list(planned.first_of_each()) == planned[:4]
    assert (
        len({jobs(3).digest, jobs(4).digest, jobs(3, size=16).digest}) == 3
        and jobs(3).digest == planned.digest
    )


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_batches_are_consecutive_parts_of_each_group(size: int) -> None:
    mixed = [*jobs(2), *jobs(1, size=16)]
    groups = grouped(mixed)
    expected = [group[first : first + size] for group in groups for first in range(0, len(group), size)]
    batches = Batches(groups, size)
    assert list(batches) == expected and batches.images == len(mixed)
    assert list(batches[1:]) == expected[1:] and batches[1:].images == sum(map(len, expected[1:]))
    assert not list(Batches([], size)) and not Batches([], size).images


def test_a_round_is_continued_after_what_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_for: list[str] = []
    has_image = RunStore.has_image

    def counted(self: RunStore, image_id: str) -> bool:
        looked_for.append(image_id)
        return has_image(self, image_id)

    with RunStore.create_or_open(tmp_path, config=None) as store:
        batches = Batches([jobs(10)], 4)
        assert do(store, batches, "plan", most=26) == (0, 26)
        monkeypatch.setattr(RunStore, "has_image", counted)
        assert do(store, batches, "other plan", most=0) == (24, 0), "two images of a batch are no batch"
        assert len(looked_for) > 24
        looked_for.clear()
        assert do(store, batches, "plan", most=0) == (24, 0)
        assert looked_for == [batches[6][0].id, batches[6][1].id, batches[6][2].id]
        assert do(store, batches, "plan") == (24, 16)
        looked_for.clear()
        assert do(store, batches, "plan") == (40, 0) and not looked_for
        assert [one.id for one in store.records()] == [job.id for batch in batches for job in batch]


def test_a_lost_image_is_made_again_although_its_batch_was_done(tmp_path: Path) -> None:
    with RunStore.create_or_open(tmp_path, config=None) as store:
        batches = Batches([jobs(4)], 4)
        assert do(store, batches, "plan") == (0, 16)
        lost = batches[1][2].id
        store.image_path(lost).unlink()
        assert do(store, batches, "plan") == (12, 4)
        assert store.has_image(lost)


@pytest.mark.parametrize("batches_done", [-1, 5, 10**9])
def test_what_cannot_be_true_of_a_plan_is_not_believed(tmp_path: Path, batches_done: int) -> None:
    with RunStore.create_or_open(tmp_path, config=None) as store:
        batches = Batches([jobs(4)], 4)
        store.keep_batches_done("plan", BatchesDone(batches_done))
        assert do(store, batches, "plan") == (0, 16)


def test_unusable_images_are_counted_once_whether_remembered_or_not(tmp_path: Path) -> None:
    with RunStore.create_or_open(tmp_path, config=None) as store:
        batches = Batches([jobs(4)], 4)
        for number in (0, 3):
            store.drop_image(batches[number][1], "black")
        do(store, batches, "plan", most=8)
        for plan in ("plan", "plan", None):
            progress = Progress(round_of(store), batches, plan, lambda existing, made: None)
            for batch in progress.unfinished():
                for job in batch:
                    add(store, job)
                    progress.made()
            assert progress.dropped == 2


def test_a_long_plan_takes_no_memory() -> None:
    peaks = []
    for each in (100, 100_000):
        tracemalloc.start()
        batches = Batches([jobs(each)], 32)
        assert batches.images == 4 * each and len(batches[len(batches) // 2]) == 32
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2 * peaks[0]
