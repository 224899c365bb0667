"""Find the rows of a denoiser's batch that belong to the traced prompts, and check the prompts' tokens.

With guidance, a denoiser also runs for negative prompts: in the other half of its batch, in a separate pass,
or, in guidance-distilled models, not at all. Instead of assuming an order, this module compares the rows with
what the pipeline's encode_prompt returned. Does not know attention.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from diffugen.diffusion.families import ADVICE
from diffugen.diffusion.tokens import TokenIndex
from diffugen.errors import ModelError

if TYPE_CHECKING:
    import torch


class PromptRows:
    """Observes how a pipeline encodes its prompts, then finds their rows in a denoiser's batch.

    Args:
        pipeline: The pipeline, which will be called once.
        tokens: The tokens of each image's prompt, in the order of the batch.
    """

    def __init__(self, pipeline: Any, tokens: Sequence[TokenIndex]) -> None:
        self._pipeline = pipeline
        self._tokens = tokens
        self._received: dict[str, list[list[int]]] = {}
        self._embeds: torch.Tensor | None = None
        self._known: deque[tuple[torch.Tensor, slice | None]] = deque(maxlen=2)

    def install(self, stack: ExitStack) -> None:
        """Observe the text encoders and encode_prompt until ``stack`` closes."""
        patch(stack, self._pipeline, "encode_prompt", self._encode_prompt)
        for name in sorted({name for index in self._tokens for name in index.ids}):

            def keep_ids(_: Any, args: Any, kwargs: Any, name: str = name) -> None:
                ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
                self._received.setdefault(name, []).extend(ids.tolist())

            encoder = getattr(self._pipeline, name)
            stack.callback(encoder.register_forward_pre_hook(keep_ids, with_kwargs=True).remove)

    def find(self, text: torch.Tensor) -> slice | None:
        """Return the rows of a denoiser's text input that hold the traced prompts, in order of the images.

        Args:
            text: (B, tokens, channels).

        Returns:
            A slice of the B rows; None if this pass is for negative prompts only.

        Raises:
            ModelError: The pipeline did not encode its prompts, or was called for another number of images.
        """
        # Pipelines pass the same tensor at every step, or two in turn. Comparing their identity first avoids
        # waiting for the GPU.
        for known, rows in self._known:
            if known is text:
                return rows
        images = len(self._tokens)
        if self._embeds is None or len(self._embeds) != images:
            given = "encoded none" if self._embeds is None else f"was called with {len(self._embeds)}"
            raise ModelError(
                f"{type(self._pipeline).__name__} cannot be traced: {images} prompts were announced, but it "
                f"{given}. Call it once inside the trace, with the text of one prompt per image."
            )
        candidates = (slice(start, start + images) for start in range(0, len(text) - images + 1, images))
        rows = next((rows for rows in candidates if _same(text[rows], self._embeds)), None)
        self._known.append((text, rows))
        return rows

    def _encode_prompt(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if self._embeds is None:  # a second call encodes the negative prompt
            self._embeds = result[0] if isinstance(result, tuple) else result
            self._check_received()
        return result

    def _check_received(self) -> None:
        """Require that the encoders received the prompts' tokens at the expected positions."""
        for image, index in enumerate(self._tokens):
            for name, ids in index.ids.items():
                # The last token of a truncated row is an end token, which the full prompt has further back.
                if not any(
                    all(a == b for a, b in zip(ids, row[:-1], strict=False))
                    for row in self._received.get(name, [])
                ):
                    raise ModelError(
                        f"{type(self._pipeline).__name__} does not give its {name} the plain tokens of "
                        f"prompt {image + 1} of {len(self._tokens)} (it was called with another prompt, or "
                        f"wraps prompts in a template), so its words cannot be traced. {ADVICE}"
                    )


def patch(stack: ExitStack, owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
    """Replace an attribute by ``wrapper(original, ...)`` until ``stack`` closes, then restore it fully."""
    original, own = getattr(owner, name), name in vars(owner)

    @functools.wraps(original)  # pipelines inspect the signature of a scheduler's step
    def patched(*args: Any, **kwargs: Any) -> Any:
        return wrapper(original, *args, **kwargs)

    setattr(owner, name, patched)
    stack.callback(lambda: setattr(owner, name, original) if own else delattr(owner, name))


def _same(left: torch.Tensor, right: torch.Tensor) -> bool:
    import torch

    return left.shape == right.shape and torch.equal(left, right.to(left))
