"""Heat maps in the output space of joint attention: how alike the image's cells are to concepts.

Concepts are words that need not stand in the prompt. Each is encoded alone, and goes through the
double-stream blocks of a transformer in the place of the prompt: through the text's own norms, projections
and feed-forward layers, attending to the image and to the other concepts. Neither the image nor the prompt
sees it. In each block, the attention outputs of the image's cells, in the call that makes the image, are
compared with those of the concepts: the softmax over concepts of their dot products, all heads together.

Knows blocks that carry image and text in streams of their own (Stable Diffusion 3, Flux, Chroma). Does not
know labels or thresholds.
Method: ConceptAttention (Helbling et al., 2025, "ConceptAttention: Diffusion Transformers Learn Highly
Interpretable Features"), but a word of several tokens is the mean of its tokens, and maps are kept per layer
and third of the steps.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from diffugen.diffusion.families import denoiser_of
from diffugen.diffusion.messages import quiet
from diffugen.diffusion.self_attention import SelfAttention
from diffugen.diffusion.tokens import TokenIndex, index_tokens
from diffugen.diffusion.tracing import AttentionTrace
from diffugen.errors import ModelError

if TYPE_CHECKING:
    import torch

FEWEST = 2
"""A single concept has nothing to be compared with: its softmax is 1 everywhere."""


class ConceptVectors:
    """Encodes concepts, each alone and once.

    Args:
        pipeline: A diffusers pipeline for any task.

    Raises:
        ModelError: Its denoiser has no double-stream blocks.
    """

    def __init__(self, pipeline: Any) -> None:
        check_double_stream(pipeline)
        self._pipeline = pipeline
        self._known: dict[str, torch.Tensor] = {}

    def of(self, words: Sequence[str]) -> torch.Tensor:
        """Return the vectors of concepts, (C, channels), as the denoiser gets the prompt's tokens."""
        import torch

        for word in words:
            if word not in self._known:
                with torch.no_grad(), quiet():
                    self._known[word] = self._encode(word)
        return torch.stack([self._known[word] for word in words])

    def _encode(self, word: str) -> torch.Tensor:
        encode = self._pipeline.encode_prompt
        given = inspect.signature(encode).parameters
        needed = {name: None for name, one in given.items() if one.default is inspect.Parameter.empty}
        unguided = {"do_classifier_free_guidance": False} if "do_classifier_free_guidance" in given else {}
        made = encode(**{**needed, **unguided, "prompt": word})
        embeds: torch.Tensor = made[0] if isinstance(made, tuple) else made
        [positions] = index_tokens(self._pipeline, word, [word]).positions
        return embeds[0, list(positions)].mean(dim=0)


def check_double_stream(pipeline: Any) -> None:
    """Require that a denoiser has blocks in which image and text have streams of their own.

    Raises:
        ModelError: It has none, as UNets and transformers with cross-attention.
    """
    denoiser = denoiser_of(pipeline)
    if not _blocks_of(denoiser) or not hasattr(denoiser, "context_embedder"):
        raise ModelError(
            "diffusion.map is output, which needs a transformer in which image and text have streams of "
            f"their own, as in Stable Diffusion 3, Flux or Chroma; {type(denoiser).__name__} has none. Set "
            "it to probability"
        )


@contextmanager
def trace_outputs(
    pipeline: Any,
    tokens: Sequence[TokenIndex],
    concepts: Sequence[torch.Tensor],
    *,
    keep_self_attention: bool = False,
) -> Iterator[OutputTrace]:
    """Trace one call of a pipeline, as `diffugen.diffusion.tracing.trace` does.

    Args:
        pipeline: A diffusers pipeline that `check_double_stream` accepts.
        tokens: Where the prompt of each image of the batch has its words.
        concepts: The concepts of each image, (C, channels) from `ConceptVectors`, at least `FEWEST` each.
        keep_self_attention: Whether `AttentionTrace.self_attention` is wanted, too.

    Yields:
        The trace; its maps are those of the concepts, in [0, 1], and add up to 1 over the concepts.

    Raises:
        ModelError: The pipeline computes attention in a way that cannot be traced.
    """
    traced = OutputTrace(pipeline, tokens, concepts, SelfAttention() if keep_self_attention else None)
    with ExitStack() as stack:
        traced.install(stack)
        yield traced


class OutputTrace(AttentionTrace):
    """Running sums of the likeness of cells and concepts. Created by `trace_outputs`."""

    def __init__(
        self,
        pipeline: Any,
        tokens: Sequence[TokenIndex],
        concepts: Sequence[torch.Tensor],
        self_attention: SelfAttention | None,
    ) -> None:
        super().__init__(pipeline, tokens, self_attention, [len(one) for one in concepts])
        self._concepts = concepts
        self._blocks = _blocks_of(self._denoiser)
        self._streams: dict[int, tuple[list[int], torch.Tensor]] = {}  # by number of concepts
        self._outputs: dict[str, torch.Tensor] = {}  # of the image's cells, by layer
        self._followed: list[torch.Tensor] | None = None  # what attends while the concepts are in a block

    def install(self, stack: ExitStack) -> None:
        """Set all hooks and patches; ``stack`` removes them when it closes."""
        super().install(stack)
        for layer, block in self._blocks.items():

            def follow(block: Any, args: Any, kwargs: Any, _: Any, layer: str = layer) -> None:
                if layer in self._outputs:
                    self._follow(block, layer, args, kwargs)

            stack.callback(block.register_forward_hook(follow, with_kwargs=True).remove)

    def _enter_denoiser(self, module: Any, args: Any, kwargs: Any) -> None:
        super()._enter_denoiser(module, args, kwargs)
        self._streams, self._outputs = {}, {}
        if self._rows is None:
            return
        by_count: dict[int, list[int]] = {}
        for image, one in enumerate(self._concepts):
            by_count.setdefault(len(one), []).append(image)
        for count, images in by_count.items():
            import torch

            given = torch.stack([self._concepts[image] for image in images])
            text = self._signature.bind(None, *args, **kwargs).arguments["encoder_hidden_states"]
            self._streams[count] = images, self._denoiser.context_embedder(given.to(text))

    def _attend(self, original: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
        if self._followed is None:
            return super()._attend(original, *args, **kwargs)
        self._followed.append(original(*args, **kwargs))
        return self._followed[-1]

    def _keep(self, result: torch.Tensor, queries: slice, probabilities: Callable[[], torch.Tensor]) -> None:
        """Keep the outputs of the image's cells until the block ends."""
        assert self._running is not None
        self._records += 1
        if self._running.layer in self._blocks:
            self._outputs[self._running.layer] = result[self._rows, :, queries]

    def _follow(self, block: Any, layer: str, args: Any, kwargs: Any) -> None:
        """Run a block on the concepts in the place of the prompt, and add what they are like."""
        import torch

        cells = self._outputs.pop(layer)
        assert self._rows is not None and self._text_start is not None
        given = inspect.signature(type(block).forward).bind(None, *args, **kwargs).arguments
        given.pop("self")
        shape = (len(self._concepts), 1, cells.shape[2], self._phrases)
        likeness = cells.new_zeros(shape, dtype=torch.float32)
        for count, (images, stream) in self._streams.items():
            rows = [self._rows.start + image for image in images]
            with self._following() as followed:
                out = block.forward(**{**self._cut(given, rows, count), "encoder_hidden_states": stream})
            # The first attention of a block is the joint one; Stable Diffusion 3.5 has others of the image.
            after = out[0]  # None: the last block of Stable Diffusion 3 ends the text's stream
            if followed[0].shape[2] != cells.shape[2] + count or (
                after is not None and after.shape != stream.shape
            ):
                raise ModelError(
                    f"{layer} of {type(self._denoiser).__name__} cannot be compared with words: its "
                    f"{type(block).__name__} does not return the text before the image. Set diffusion.map to "
                    "probability"
                )
            start = 0 if self._text_start == 0 else cells.shape[2]
            concepts = followed[0][:, :, start : start + count].float().transpose(1, 2).flatten(2)
            image = cells[images].float().transpose(1, 2).flatten(2)
            likeness[images, 0, :, :count] = (image @ concepts.transpose(1, 2)).softmax(dim=-1)
            if after is not None:
                self._streams[count] = images, after
        self._add(likeness, layer)

    @contextmanager
    def _following(self) -> Iterator[list[torch.Tensor]]:
        """Yield what attends in the block, which is not traced meanwhile."""
        followed: list[torch.Tensor] = []
        self._followed, self._probing = followed, True
        try:
            yield followed
        finally:
            self._followed, self._probing = None, False

    def _cut(self, given: Mapping[str, Any], rows: Sequence[int], count: int) -> dict[str, Any]:
        """Return the arguments of a block for these rows of the batch, with so many concepts as its text."""
        joint = self._text_length + given["hidden_states"].shape[1]

        def cut(value: Any) -> Any:
            import torch

            if isinstance(value, (tuple, list)):
                return type(value)(map(cut, value))
            if not isinstance(value, torch.Tensor) or not value.ndim:
                return value
            if value.shape[0] == joint:  # one for each token: concepts get those of the first words
                start, length = int(self._text_start or 0), self._text_length
                text = value[start : start + count]
                return torch.cat([text, value[length:]] if start == 0 else [value[:start], text])
            return value[list(rows)] if value.shape[0] == self._batch else value

        # Concepts see each other and the whole image, whatever padding of the prompt was masked.
        return {name: None if name == "attention_mask" else cut(value) for name, value in given.items()}


def _blocks_of(denoiser: Any) -> dict[str, Any]:
    """Return the double-stream blocks of a denoiser, by the name of their joint attention."""
    return {
        f"transformer_blocks.{number}.attn": block
        for number, block in enumerate(getattr(denoiser, "transformer_blocks", ()))
        if getattr(getattr(block, "attn", None), "add_q_proj", None) is not None
    }
