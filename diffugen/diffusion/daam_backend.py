"""Heat maps from the `daam` package itself, as a reference for our own.

daam 0.2.0 traces one square image per call, with guidance, on Stable Diffusion UNets. This module rejects
everything else with the reason, because daam would silently drop layers or mix up the halves of the batch.
Does not know words or labels. Source: Tang et al., 2023, "What the DAAM: Interpreting Stable Diffusion Using
Cross Attention"; package daam 0.2.0.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from diffugen.diffusion.layout import thirds_of
from diffugen.diffusion.tokens import TokenIndex
from diffugen.errors import ModelError
from diffugen.records import STEP_THIRDS
from diffugen.run.temporary import temporary_folder

if TYPE_CHECKING:
    import torch

DAAM_TOKENS = 77
"""The only length of a text sequence from which daam collects attention."""


@contextmanager
def trace_with_daam(pipeline: Any, tokens: Sequence[TokenIndex]) -> Iterator[DaamTrace]:
    """Trace one call of a pipeline with daam; the counterpart of `tracing.trace`.

    Args:
        pipeline: A StableDiffusionPipeline or StableDiffusionXLPipeline.
        tokens: The tokens to trace, of exactly one image.

    Yields:
        The trace; call its `DaamTrace.maps` once the pipeline has returned.

    Raises:
        ModelError: daam is not installed, or cannot trace this pipeline, batch, size or guidance.
    """
    _check(pipeline, tokens)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from daam import trace as daam_trace
    except ImportError as error:
        raise ModelError(
            f"attention backend daam needs the package of that name ({error}). Install it without its "
            "outdated pins: 'pip install --no-deps daam==0.2.0' and 'pip install spacy matplotlib'; or use "
            "the attention backend native."
        ) from error
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        folder = stack.enter_context(temporary_folder("daam"))
        # daam restores methods as instance attributes; removing these leaves the pipeline unchanged.
        for owner, name in (
            (pipeline, "check_inputs"),
            (pipeline, "run_safety_checker"),
            (pipeline.image_processor, "postprocess"),
        ):
            stack.callback(vars(owner).pop, name, None)
        hooker = stack.enter_context(daam_trace(pipeline, data_dir=folder))
        traced = DaamTrace(pipeline, hooker, tokens[0])
        stack.callback(pipeline.unet.register_forward_pre_hook(traced.enter_step, with_kwargs=True).remove)
        yield traced


class DaamTrace:
    """Snapshots of daam's sums at every step. Made by `trace_with_daam`."""

    def __init__(self, pipeline: Any, hooker: Any, tokens: TokenIndex) -> None:
        self._pipeline = pipeline
        self._hooker = hooker
        self._tokens = tokens
        self._shape_hw: tuple[int, int] | None = None
        self._sums: list[dict[Any, torch.Tensor]] = []

    def enter_step(self, _: Any, args: Any, kwargs: Any) -> None:
        """Store daam's sums before a step; reject inputs that daam handles wrongly."""
        sample = kwargs.get("sample", args[0] if args else None)
        if sample.shape[-1] != sample.shape[-2]:
            raise ModelError(
                "daam traces square images only, but this one has latents of "
                f"{sample.shape[-1]}x{sample.shape[-2]} (width x height). Generate square images or use the "
                "attention backend native."
            )
        if len(sample) != 2:
            raise ModelError(
                "daam takes the first half of the UNet's batch for the unconditional one, but the UNet got a "
                f"batch of {len(sample)}, not one image with guidance. Set guidance_scale above 1 and "
                "generate one image per call, or use the attention backend native."
            )
        self._shape_hw = tuple(sample.shape[-2:])
        self._sums.append(dict(self._hooker.all_heat_maps))

    def maps(self) -> list[dict[str, NDArray[np.float16]]]:
        """Return the heat maps of the image, in the form of `tracing.AttentionTrace.maps`.

        daam omits the mid block and every layer at an eighth of the latents' side.

        Raises:
            ModelError: daam collected no attention.
        """
        final = dict(self._hooker.all_heat_maps)
        if not final:
            raise ModelError(
                "daam collected no attention from this pipeline. Use the attention backend native."
            )
        steps = len(self._sums)
        snapshots = [*self._sums, final]
        sums: dict[str, NDArray[np.float64]] = {}
        counts: dict[str, NDArray[np.float64]] = {}
        for key, last in final.items():
            _, layer, _ = key
            group = f"{self._hooker.layer_names[layer].split('-')[0]}-{last.shape[-2]}x{last.shape[-1]}"
            for step in range(steps):
                before = snapshots[step].get(key)
                found = (snapshots[step + 1][key] - (0 if before is None else before)).double().cpu().numpy()
                phrases = np.stack(
                    [found[list(positions)].mean(axis=0) for positions in self._tokens.positions]
                )
                total = sums.setdefault(group, np.zeros((len(phrases), STEP_THIRDS, *found.shape[1:])))
                for third in thirds_of(step, steps):
                    total[:, third] += phrases
                    counts.setdefault(group, np.zeros(STEP_THIRDS))[third] += 1
        return [
            {
                group: (total / counts[group][:, None, None]).astype(np.float16)
                for group, total in sums.items()
            }
        ]

    def self_attention(self) -> list[None]:
        """Return None for the image: daam does not trace self-attention."""
        return [None]


def _check(pipeline: Any, tokens: Sequence[TokenIndex]) -> None:
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    reason = ""
    if not isinstance(pipeline, (StableDiffusionPipeline, StableDiffusionXLPipeline)):
        kind = type(pipeline).__name__
        reason = f"it supports StableDiffusionPipeline and StableDiffusionXLPipeline only, not {kind}"
    elif len(tokens) != 1:
        reason = f"it traces one image per call, not {len(tokens)}"
    elif pipeline.tokenizer.model_max_length != DAAM_TOKENS:
        length = pipeline.tokenizer.model_max_length
        reason = f"it needs a text sequence of {DAAM_TOKENS} tokens, but this model has {length}"
    elif not tokens[0].positions:
        reason = "the prompt has no phrase to trace"
    if reason:
        raise ModelError(f"daam cannot trace this call: {reason}. Use the attention backend native.")
