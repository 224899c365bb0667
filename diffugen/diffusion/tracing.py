"""Trace cross-attention: heat maps of words while a pipeline generates bit-identical images.

Hooks the mathematics, not the model. While an attention module of the denoiser runs, calls of
`torch.nn.functional.scaled_dot_product_attention` are passed on unchanged. A second call of the same function
with one-hot values then returns the attention probabilities of the traced tokens alone: ``softmax(q k^T /
sqrt(d)) @ onehot``. So the same kernel, mask and scale apply, and the full attention matrix is never stored.
Which rows are conditional, the shape of the latent grid and the position of the text in a joint sequence are
read from the denoiser's inputs, never guessed.

Or traces concepts instead of tokens, which need not be in the prompt (see `concepts`).

On request, the self-attention of the images is averaged too (see `self_attention`); in a joint sequence, it
is the part in which cells of the image attend to each other.

Knows attention. Does not know words (see `tokens`), labels or thresholds.
Method: DAAM (Tang et al., 2023, "What the DAAM", section 3), but per layer group and third of the steps.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from diffugen.diffusion.concepts import Concepts
from diffugen.diffusion.conditioning import PromptRows, patch
from diffugen.diffusion.families import ADVICE, attention_modules, check_traceable, denoiser_of
from diffugen.diffusion.layout import cells_hw, latent_grid_hw, thirds_of
from diffugen.diffusion.self_attention import SelfAttention
from diffugen.diffusion.tokens import TokenIndex
from diffugen.errors import ModelError, PromptError
from diffugen.records import STEP_THIRDS

if TYPE_CHECKING:
    import torch

UNET_PLACES = ("down", "mid", "up")


@contextmanager
def trace(
    pipeline: Any,
    tokens: Sequence[TokenIndex],
    *,
    keep_self_attention: bool = False,
    concepts: Sequence[Sequence[str]] | None = None,
) -> Iterator[AttentionTrace]:
    """Trace one call of a pipeline.

    Inside the context, call the pipeline once, with one prompt per image in the order of ``tokens``. All
    hooks and patches are removed afterwards, even if the call raises.

    Args:
        pipeline: A diffusers pipeline with a UNet or transformer, for any task.
        tokens: The tokens to trace for each image of the batch.
        keep_self_attention: Whether `AttentionTrace.self_attention` is wanted, too.
        concepts: The words of each image whose maps are made from attention outputs, in place of those of
            the tokens; they need not be in the prompt. See `diffugen.diffusion.concepts`.

    Yields:
        The trace; call its `AttentionTrace.maps` once the pipeline has returned.

    Raises:
        ModelError: The pipeline computes attention in a way that cannot be traced; the message names it and
            says what to do.
        PromptError: A concept is too long for the text encoder.

    Example:
        >>> with trace(pipeline, [index_tokens(pipeline, "a red car", ["car"])]) as traced:
        ...     image = pipeline("a red car").images[0]
        >>> traced.maps()[0]["up-16x16"].shape
        (1, 3, 16, 16)
    """
    traced = AttentionTrace(
        pipeline,
        tokens,
        SelfAttention() if keep_self_attention else None,
        None if concepts is None else Concepts(pipeline, concepts),
    )
    with ExitStack() as stack:
        traced.install(stack)
        yield traced


@dataclass(frozen=True)
class _Running:
    """The attention module that is currently running."""

    module: Any
    layer: str
    reads_text: bool
    seen_before: int


class AttentionTrace:
    """Running sums of the traced tokens' attention, or of concepts' maps. Created by `trace`."""

    def __init__(
        self,
        pipeline: Any,
        tokens: Sequence[TokenIndex],
        self_attention: SelfAttention | None = None,
        concepts: Concepts | None = None,
    ) -> None:
        check_traceable(pipeline)
        self._self_attention = self_attention
        self._concepts = concepts
        self._pipeline = pipeline
        self._denoiser: Any = denoiser_of(pipeline)
        self._signature = inspect.signature(type(self._denoiser).forward)
        self._tokens = tuple(tokens)
        self._counts_of_phrases = (
            [len(index.positions) for index in tokens] if concepts is None else concepts.counts
        )
        self._phrases = max(self._counts_of_phrases, default=0)
        self._prompt_rows = PromptRows(pipeline, tokens)
        self._thread = threading.get_ident()
        self._batch = 0
        self._rows: slice | None = None
        self._text_length = 0
        self._step = 0
        self._grid_hw: tuple[int, int] | None = None
        self._running: _Running | None = None
        self._probing = False
        self._joint_length: int | None = None
        self._text_start: int | None = None
        self._records = 0
        self._values: dict[tuple[int, int, int], torch.Tensor] = {}
        self._sums: dict[tuple[str, int, int], torch.Tensor] = {}  # by layer, or place in a UNet, and grid
        self._counts: dict[tuple[str, int, int], list[int]] = {}

    def maps(self) -> list[dict[str, NDArray[np.float16]]]:
        """Return the heat maps of each image.

        Returns:
            For each image, a mapping from layer group to a float16 array (P, 3, h, w): attention
            probabilities in [0, 1], averaged over heads, layers of the group, steps of the third, and tokens
            of the phrase; or, of P concepts, how much a cell resembles each, which adds up to 1. With fewer
            than 3 steps, a step counts in every third that it overlaps. The layers of a UNet are grouped by
            place and grid, ``"<place>-<h>x<w>"`` with place ``down``, ``mid`` or ``up``. Each layer of a
            transformer is a group of its own, ``"joint-<number>-<h>x<w>"``, counted from 0 among the layers
            that read the prompt, with as many digits (at least two) as the last has. Concepts have maps of
            the layers alone that have weights for text, which are the first.

        Raises:
            ModelError: No attention was traced: the pipeline was not called, or computes it elsewhere.
        """
        if not self._sums:
            raise ModelError(
                f"no attention of {type(self._denoiser).__name__} was traced. Call the pipeline once inside "
                f"the trace, with one prompt per image ({len(self._tokens)} here), and do not compile the "
                "denoiser as a whole."
            )
        maps: list[dict[str, NDArray[np.float16]]] = [{} for _ in self._tokens]
        names = self._group_names()
        for (layer, h, w), sums in self._sums.items():
            counts = sums.new_tensor(self._counts[layer, h, w]).clamp(min=1).view(-1, 1, 1, 1)
            means = (sums / counts).half().cpu().numpy()  # (thirds, images, cells, phrases)
            for image, phrases in enumerate(self._counts_of_phrases):
                cells = means[:, image, :, :phrases].reshape(STEP_THIRDS, h, w, phrases)
                maps[image][f"{names[layer]}-{h}x{w}"] = np.ascontiguousarray(cells.transpose(3, 0, 1, 2))
        return maps

    def self_attention(self) -> Sequence[NDArray[np.float16] | None]:
        """Return the self-attention of each image, averaged over heads, layers, and steps from the middle on.

        Returns:
            For each image, float16 (h, w, h, w), from the cell that attends to the cell that is attended to:
            probabilities in [0, 1], which add up to 1 over the last two axes. The grid is that of the UNet's
            finest layers with at most `MOST_CELLS` cells; see `diffugen.diffusion.self_attention`. None where
            it was not to be kept.

        Raises:
            ModelError: The pipeline was not called, or stopped before the middle.
        """
        return [None] * len(self._tokens) if self._self_attention is None else self._self_attention.mean()

    def _group_names(self) -> dict[str, str]:
        """Return the name of each traced layer: its place in a UNet, its number in a transformer."""
        traced = {layer for layer, _, _ in self._sums}
        layers = [name for name in attention_modules(self._denoiser) if name in traced]
        digits = max(2, len(str(len(layers) - 1)))
        numbered = {name: f"joint-{number:0{digits}}" for number, name in enumerate(layers)}
        return {place: place for place in UNET_PLACES} | numbered

    def install(self, stack: ExitStack) -> None:
        """Set all hooks and patches; ``stack`` removes them when it closes."""
        import torch.nn.functional

        patch(stack, torch.nn.functional, "scaled_dot_product_attention", self._attend)
        patch(stack, self._pipeline.scheduler, "step", self._finish_step)
        self._prompt_rows.install(stack)
        if self._concepts is not None:
            self._concepts.install(stack)
            for layer, block in self._concepts.blocks.items():
                leave = partial(self._leave_block, layer)
                stack.callback(block.register_forward_hook(leave, with_kwargs=True).remove)
        stack.callback(
            self._denoiser.register_forward_pre_hook(self._enter_denoiser, with_kwargs=True).remove
        )
        stack.callback(self._denoiser.register_forward_hook(self._leave_denoiser).remove)
        for name, module in attention_modules(self._denoiser).items():
            self._install_module(stack, name, module)

    def _install_module(self, stack: ExitStack, name: str, module: Any) -> None:
        layer = next((place for place in UNET_PLACES if name.startswith(f"{place}_block")), name)

        def enter(_: Any, args: Any, kwargs: Any) -> None:
            if self._rows is not None and not self._aside():
                text = kwargs.get("encoder_hidden_states", args[1] if len(args) > 1 else None)
                if text is not None and layer == name and self._text_start is None:
                    self._find_text(module, args, kwargs)
                self._running = _Running(module, layer, text is not None, self._records)

        def leave(*_: Any) -> None:
            running, self._running = self._running, None
            if running is not None and running.reads_text and running.seen_before == self._records:
                raise ModelError(
                    f"attention layer {name} of {type(self._denoiser).__name__} cannot be traced: its "
                    f"processor {type(module.processor).__name__} calls neither torch's "
                    "scaled_dot_product_attention nor get_attention_scores on the prompt's tokens alone. If "
                    "you set another processor or attention backend, return to the default "
                    "(set_attention_backend('native'); no xformers, no compiled denoiser). "
                    f"{ADVICE}"
                )

        stack.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
        stack.callback(module.register_forward_hook(leave).remove)
        if hasattr(module, "get_attention_scores"):
            patch(stack, module, "get_attention_scores", self._score)

    def _enter_denoiser(self, _: Any, args: Any, kwargs: Any) -> None:
        given = self._signature.bind(None, *args, **kwargs).arguments
        text = given.get("encoder_hidden_states")
        if text is None:
            raise ModelError(
                f"{type(self._denoiser).__name__} cannot be traced: it gets no encoder_hidden_states. "
                f"{ADVICE}"
            )
        self._rows = self._prompt_rows.find(text)
        if self._rows is None:
            return
        if self._concepts is not None:
            self._concepts.begin()
        self._batch, self._text_length = text.shape[:2]
        if self._grid_hw is None:
            self._grid_hw = latent_grid_hw(given, type(self._denoiser).__name__)

    def _leave_denoiser(self, *_: Any) -> None:
        """Report in the first step, not after the last, that nothing can be traced."""
        if self._rows is not None and not self._records:
            raise ModelError(
                f"{type(self._denoiser).__name__} cannot be traced: none of its attention modules gets the "
                f"prompt's tokens as encoder_hidden_states. {ADVICE}"
            )
        if self._rows is not None and self._self_attention is not None and not self._self_attention.found:
            raise ModelError(
                f"no self-attention of {type(self._denoiser).__name__} can be traced: none of its processors "
                "gives the cells of the image to torch's scaled_dot_product_attention or "
                "get_attention_scores. Return to the default processors, or set keep_self_attention to false."
            )

    def _leave_block(self, layer: str, block: Any, args: Any, kwargs: Any, _: Any) -> None:
        """Let the concepts follow the images through a block, and keep their maps."""
        if self._rows is not None and self._concepts is not None:
            self._add_means(layer, self._concepts.maps(block, args, kwargs, self._rows))

    def _aside(self) -> bool:
        """Return whether what runs is not part of the image's own pass."""
        return self._probing or (self._concepts is not None and self._concepts.passing)

    def _finish_step(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Count steps by the scheduler's, because a pipeline may call its denoiser several times a step."""
        self._step += 1
        return original(*args, **kwargs)

    def _find_text(self, module: Any, args: Any, kwargs: Any) -> None:
        """Locate the text in a joint sequence: run one layer on NaN text and see which keys are NaN."""
        given = inspect.signature(type(module).forward).bind(None, *args, **kwargs)
        given.arguments["encoder_hidden_states"] = given.arguments["encoder_hidden_states"] * float("nan")
        self._probing = True
        try:
            module.forward(*given.args[1:], **given.kwargs)
        finally:
            self._probing = False

    def _attend(self, original: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
        own = threading.get_ident() == self._thread
        if own and self._concepts is not None and self._concepts.passing:
            return self._concepts.attend(original, *args, **kwargs)
        result = original(*args, **kwargs)
        if own:
            if self._probing:
                key = kwargs["key"] if "key" in kwargs else args[1]
                nan = key[0, 0].isnan().any(-1).nonzero().flatten().tolist()
                start = nan[0] if nan else None
                if start in (0, key.shape[-2] - self._text_length) and len(nan) == self._text_length:
                    self._text_start = start
            elif self._running is not None and self._concepts is not None:
                self._keep_output(self._concepts, result, *args, **kwargs)
            elif self._running is not None:
                self._record(original, *args, **kwargs)
        return result

    def _keep_output(
        self,
        concepts: Concepts,
        output: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *_: Any,
        scale: float | None = None,
        **__: Any,
    ) -> None:
        """Hand what attention made of the images to the concepts, which follow at the end of the block."""
        running, rows = self._running, self._rows
        assert running is not None
        part = self._image_queries(query.shape[-2], key.shape[-2])
        self._record_self_attention(query, key, part, scale)
        if part is not None and running.reads_text and running.layer in concepts.blocks:
            cells, text_start = part
            seen = (side[rows, :, cells] for side in (output, key, value))
            concepts.see(*seen, text_first=text_start == 0)
            self._records += 1

    def _record(
        self,
        attend: Callable[..., torch.Tensor],
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        rows, part = self._rows, self._image_queries(query.shape[-2], key.shape[-2])
        self._record_self_attention(query, key, part, kwargs.get("scale"))
        if part is None:
            return
        queries, text_start = part
        if attn_mask is not None:
            attn_mask = attn_mask[rows] if len(attn_mask) > 1 else attn_mask
            attn_mask = attn_mask[..., queries, :] if attn_mask.shape[-2] > 1 else attn_mask
        # Values as wide as the keys, because the fast kernels require it.
        values = self._one_hot(key, key.shape[1], key.shape[2], key.shape[3], text_start)
        self._add(attend(query[rows, :, queries], key[rows], values, attn_mask, *args, **kwargs))

    def _record_self_attention(
        self, query: torch.Tensor, key: torch.Tensor, part: tuple[slice, int] | None, scale: float | None
    ) -> None:
        cells, rows = self._image_cells(query.shape[-2], key.shape[-2], part), self._rows
        if cells is not None:
            scale = scale or query.shape[-1] ** -0.5
            self._add_self_attention(query[rows, :, cells], key[rows, :, cells], scale)

    def _score(self, original: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Trace processors that compute the softmax themselves, such as AttnProcessor."""
        scores = original(*args, **kwargs)  # (batch * heads, queries, keys)
        running = self._running
        if running is None:
            return scores
        cells = self._image_cells(scores.shape[-2], scores.shape[-1], None)
        if cells is None and not (running.reads_text and scores.shape[-1] == self._text_length):
            return scores
        if len(scores) != self._batch * running.module.heads:
            raise ModelError(
                f"the attention of {type(self._denoiser).__name__} is computed in slices, which cannot be "
                "traced. Call disable_attention_slicing() on the pipeline; to save memory, reduce the batch "
                "size instead."
            )
        if cells is not None:
            query, key = (side.unflatten(0, (self._batch, -1))[self._rows] for side in args[:2])
            self._add_self_attention(query, key, running.module.scale)
            return scores
        probabilities = scores.view(self._batch, -1, *scores.shape[1:])[self._rows]
        mean = probabilities.mean(dim=1, keepdim=True)
        self._add(mean @ self._one_hot(mean, 1, self._text_length, self._phrases))
        return scores

    def _image_queries(self, queries: int, keys: int) -> tuple[slice, int] | None:
        """Return the image queries and the first text key; None for a call that does not read the prompt."""
        running, text = self._running, self._text_length
        assert running is not None
        if running.reads_text and keys == text:
            return slice(None), 0
        if (
            queries != keys
            or not (running.reads_text or keys == self._joint_length)
            or self._text_start is None
        ):
            return None
        self._joint_length = keys
        return (slice(text, None) if self._text_start == 0 else slice(0, keys - text)), self._text_start

    def _image_cells(self, queries: int, keys: int, part: tuple[slice, int] | None) -> slice | None:
        """Return which queries and keys are the image's if its self-attention is wanted and in this call."""
        running = self._running
        assert running is not None
        if self._self_attention is None or queries != keys:
            return None
        if part is None:
            return None if running.reads_text else slice(None)
        return None if keys == self._text_length else part[0]

    def _one_hot(
        self, like: torch.Tensor, heads: int, keys: int, width: int, text_start: int = 0
    ) -> torch.Tensor:
        """Return values (images, heads, keys, width) whose attention is each phrase's mean probability."""
        shape = (heads, keys, max(width, self._phrases))
        if shape not in self._values:
            values = like.new_zeros((len(self._tokens), 1, *shape[1:]))
            for image, index in enumerate(self._tokens):
                for phrase, positions in enumerate(index.positions):
                    if positions[-1] >= self._text_length:
                        raise PromptError(
                            f"phrase {phrase + 1} of prompt {image + 1} has token {positions[-1]}, but the "
                            f"denoiser reads {self._text_length} tokens. Shorten the prompt or move the "
                            "phrase towards its start."
                        )
                    keys_of_phrase = [text_start + position for position in positions]
                    values[image, 0, keys_of_phrase, phrase] = 1 / len(positions)
            self._values[shape] = values.expand(-1, heads, -1, -1).contiguous()
        return self._values[shape]

    def _add(self, found: torch.Tensor) -> None:
        """Add the attention of the one-hot values, (images, heads, cells, width), to the running sums."""
        assert self._running is not None
        self._add_means(self._running.layer, found[..., : self._phrases].float().mean(dim=1))
        self._records += 1

    def _add_means(self, layer: str, means: torch.Tensor) -> None:
        """Add maps of a layer, (images, cells, phrases), to the running sums."""
        assert self._grid_hw is not None
        group = (layer, *cells_hw(means.shape[1], self._grid_hw))
        if group not in self._sums:
            self._sums[group] = means.new_zeros((STEP_THIRDS, *means.shape))
            self._counts[group] = [0] * STEP_THIRDS
        for third in thirds_of(*self._progress()):
            self._sums[group][third] += means
            self._counts[group][third] += 1

    def _add_self_attention(self, query: torch.Tensor, key: torch.Tensor, scale: float) -> None:
        """Add a call with the cells of the images as queries and keys, (images, heads, cells, channels)."""
        assert self._self_attention is not None and self._grid_hw is not None
        step, steps = self._progress()
        layer_hw = cells_hw(query.shape[-2], self._grid_hw)
        self._self_attention.add(query, key, scale, layer_hw, counted=step >= steps // 2)

    def _progress(self) -> tuple[int, int]:
        """Return the index of the current step, and the number of steps."""
        steps = getattr(self._pipeline, "num_timesteps", None) or len(self._pipeline.scheduler.timesteps)
        return min(self._step, steps - 1), steps
