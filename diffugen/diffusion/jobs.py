"""Plan the jobs of a round: what is generated, from which noise, and which jobs can share a call.

A job is an `ImageRecord`, which contains everything that determines the pixels. Loads no model.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

from diffugen.diffusion.tasks import WINDOW, WORKING_SIZE
from diffugen.records import ImageRecord, Prompt, content_id


def image_seed(run_seed: int, number: int, prompt: Prompt, parent: str | None = None) -> int:
    """Return the seed of an image's initial noise, in [0, 2**63).

    Args:
        run_seed: Seed of the run.
        number: Index of the image among those with the same prompt and parent.
        prompt: Its prompt.
        parent: Id of the source image; None for ``txt2img``.
    """
    return int(content_id(prompt.id, number, run_seed, *([] if parent is None else [parent])), 16) % 2**63


class PromptJobs(Sequence[ImageRecord]):
    """Text-to-image jobs, each with its own seed; only the prompts are in memory.

    A seed depends only on the run seed, the prompt and the image's index. So a longer plan begins with the
    images of a shorter one, and the same prompt starts from different noise in another run. All prompts get
    their first image before any gets its second. A prompt that is listed twice gets two different images. For
    new images of the same prompts in a later round, use another ``run_seed``.

    Args:
        prompts: The prompts.
        images_per_prompt: Images per prompt, >= 1.
        run_seed: Seed of the run.
        size_wh: Width and height in pixels.
        model: Name of the diffusion model, as configured.
        settings: Arguments of the pipeline's call that determine the pixels, such as ``guidance_scale`` and
            ``num_inference_steps``; also ``scheduler`` and ``dtype`` of the loaded pipeline.
        round: The round of the loop.
        step: Name of the configured task, if there is one.

    Example:
        >>> size = {"size_wh": (64, 96), "model": "miniature", "settings": {}}
        >>> PromptJobs([prompt], images_per_prompt=2, run_seed=1, **size)
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        *,
        images_per_prompt: int,
        run_seed: int,
        size_wh: tuple[int, int],
        model: str,
        settings: Mapping[str, Any],
        round: int = 0,
        step: str = "",
    ) -> None:
        self._prompts = prompts
        self._count = len(prompts) * images_per_prompt
        self._run_seed = run_seed
        self._common: dict[str, Any] = {"size_wh": size_wh, "model": model, "round": round, "step": step}
        self._settings = settings
        self._ids = [prompt.id for prompt in prompts]
        self._times = Counter(self._ids)
        seen: Counter[str] = Counter()
        self._before = array("L")
        for prompt_id in self._ids:
            self._before.append(seen[prompt_id])
            seen[prompt_id] += 1

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> ImageRecord: ...
    @overload
    def __getitem__(self, index: slice) -> list[ImageRecord]: ...
    def __getitem__(self, index: int | slice) -> ImageRecord | list[ImageRecord]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        turn, place = divmod(range(len(self))[index], len(self._prompts))
        prompt = self._prompts[place]
        number = turn * self._times[self._ids[place]] + self._before[place]
        seed = image_seed(self._run_seed, number, prompt)
        return ImageRecord(prompt, seed, settings=dict(self._settings), **self._common)

    def first_of_each(self) -> Iterator[ImageRecord]:
        """Yield the jobs of the first image of each prompt."""
        return (self[place] for place in range(min(len(self), len(self._prompts))))

    @property
    def digest(self) -> str:
        """Hash of everything that decides which jobs these are."""
        about = [self._count, self._run_seed, dict(self._settings), list(self._common.items())]
        return content_id(hashlib.sha256("".join(self._ids).encode()).hexdigest(), about)


def grouped(jobs: Sequence[ImageRecord]) -> list[list[ImageRecord]]:
    """Group the jobs that can share one call; groups are in the order of their first jobs."""
    groups: dict[str, list[ImageRecord]] = {}
    for job in jobs:
        # Some pipelines (SDXL) treat an empty negative prompt differently from an absent one.
        settings = {name: value for name, value in job.settings.items() if name != WINDOW}
        size_wh = settings.setdefault(WORKING_SIZE, list(job.size_wh))
        key = json.dumps([job.task, size_wh, settings, bool(job.prompt.negative)], sort_keys=True)
        groups.setdefault(key, []).append(job)
    return list(groups.values())
