"""The work of making images, batch by batch, wherever it is done. Does not know runs or rounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diffugen.config.sections import DiffusionSettings
from diffugen.records import GeneratedImage, ImageRecord
from diffugen.run.codec import EncodedImage, encode_image
from diffugen.run.executors import OnStep
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


@dataclass(frozen=True)
class ImageMaker:
    """Makes images, as `diffugen.run.executors.Work`.

    Attributes:
        settings: The model and how it generates.
        model: Name or folder of the model.
        batch_size: The most images in a call.
        pipeline: The model, where it is loaded already.
    """

    settings: DiffusionSettings
    model: str
    batch_size: int
    pipeline: Any = None

    @property
    def on_gpu(self) -> bool:
        """Whether it gains by a GPU."""
        return self.settings.device != "cpu"

    def load(self, on_step: OnStep) -> Callable[[ImageBatch], Iterator[GeneratedImage | Dropped]]:
        """Return what makes the images of a batch, with the model loaded; a step is a denoising step."""
        pipeline = load_model(self.settings, self.model) if self.pipeline is None else self.pipeline
        return _Making(self, pipeline, on_step).make

    def finish(self, made: GeneratedImage | Dropped) -> EncodedImage | Dropped:
        """Encode an image."""
        return made if isinstance(made, Dropped) else encode_image(*made)


class _Making:
    """Makes images with a loaded model; remembers how many of them fit into memory."""

    def __init__(self, maker: ImageMaker, pipeline: Any, on_step: OnStep) -> None:
        self._maker = maker
        self._pipeline = pipeline
        self._on_step = on_step
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
            on_step=self._on_step,
            on_halve=self._halve,
            batch_size=self._size,
            attention_backend=self._maker.settings.attention_backend,
            keep_self_attention=self._maker.settings.keep_self_attention,
            map_kind=self._maker.settings.map,
            concepts=self._maker.settings.concepts,
        )
        yield from dropped

    def _halve(self, size: int) -> None:
        self._size = size
