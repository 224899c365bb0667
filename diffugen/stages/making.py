"""The work of making images, batch by batch, wherever it is done. Does not know runs or rounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from diffugen.config.sections import DiffusionSettings
from diffugen.records import GeneratedImage, ImageRecord
from diffugen.stages.models import load_model

if TYPE_CHECKING:
    from diffugen.diffusion.tasks import Source


@dataclass(frozen=True)
class ImageBatch:
    """Images that share a call of the model.

    Attributes:
        jobs: Their records.
        sources: What they are made from, one for each; none for ``txt2img``.
    """

    jobs: tuple[ImageRecord, ...]
    sources: tuple[Source, ...]


@dataclass(frozen=True)
class Dropped:
    """An image that was made and is unusable.

    Attributes:
        record: Its record.
        reason: Why it is unusable, as text for people.
    """

    record: ImageRecord
    reason: str


def unfollowed(share: float, images: int) -> None:
    """Follow no steps."""


@dataclass(frozen=True)
class ImageMaker:
    """Makes images, as `diffugen.run.executors.Work`.

    Attributes:
        settings: The model and how it generates.
        model: Name or folder of the model.
        batch_size: The most images in a call.
        pipeline: The model, where it is loaded already.
        on_step: Called after each denoising step, as by `diffugen.diffusion.generate.generate`.
    """

    settings: DiffusionSettings
    model: str
    batch_size: int
    pipeline: Any = None
    on_step: Callable[[float, int], None] = field(default=unfollowed)

    @property
    def on_gpu(self) -> bool:
        """Whether it gains by a GPU."""
        return self.settings.device != "cpu"

    def load(self) -> Callable[[ImageBatch], Iterator[GeneratedImage | Dropped]]:
        """Return what makes the images of a batch, with the model loaded."""
        pipeline = load_model(self.settings, self.model) if self.pipeline is None else self.pipeline
        return _Making(self, pipeline).make


class _Making:
    """Makes images with a loaded model; remembers how many of them fit into memory."""

    def __init__(self, maker: ImageMaker, pipeline: Any) -> None:
        self._maker = maker
        self._pipeline = pipeline
        self._size = maker.batch_size

    def make(self, batch: ImageBatch) -> Iterator[GeneratedImage | Dropped]:
        from diffugen.diffusion.generate import generate

        dropped: list[Dropped] = []
        sources = {job.id: source for job, source in zip(batch.jobs, batch.sources, strict=False)}
        yield from generate(
            self._pipeline,
            batch.jobs,
            source=lambda job: sources[job.id],
            on_drop=lambda record, reason: dropped.append(Dropped(record, reason)),
            on_step=self._maker.on_step,
            on_halve=self._halve,
            batch_size=self._size,
            attention_backend=self._maker.settings.attention_backend,
            keep_self_attention=self._maker.settings.keep_self_attention,
        )
        yield from dropped

    def _halve(self, size: int) -> None:
        self._size = size
