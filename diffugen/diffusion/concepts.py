"""Concept vectors: which concept each cell of an image resembles, in the space of attention's outputs.

Each concept is one more token of the text, which neither the prompt nor the image sees. It is encoded as a
prompt of its own; its vector is the mean over its tokens, those of CLIP and of T5 in Stable Diffusion 3. In
each layer that has weights for text and for images (a double-stream block), the concepts take the prompt's
place: they go through the weights of the text, attend to the cells of the image and to each other, and what
the block returns for them enters the next block. The map of a concept is the softmax, over the concepts of
the image, of the product of two outputs of attention, with all heads joined and without a scale: that of each
cell, from the image's own pass, and that of the concept.

For this, the block runs a second time, on the concepts and one cell of the image. Its attention gets the keys
and values of all cells from the first time. So the second time costs no more than its few tokens, and nothing
of which the image is made changes.

Knows double-stream blocks and concepts. Does not know steps, layer groups or labels.
Method: ConceptAttention (Helbling et al. 2025, arXiv 2502.04320). The authors' program encodes concepts in
another way for each model: for FLUX, it takes a concept's first token, and modulates concepts without the
prompt's pooled text. The mean over tokens and the prompt's own modulation, for all models, are our choice.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from diffugen.diffusion.conditioning import patch
from diffugen.diffusion.families import attention_modules, denoiser_of
from diffugen.diffusion.tokens import index_tokens
from diffugen.errors import ModelError, PromptError

if TYPE_CHECKING:
    import torch

BLOCK_ARGUMENTS = frozenset(
    {
        "self",
        "hidden_states",
        "encoder_hidden_states",
        "temb",
        "image_rotary_emb",
        "attention_mask",
        "joint_attention_kwargs",
    }
)
"""The arguments of blocks that concepts can pass through; what another argument means is unknown."""


def double_stream_blocks(denoiser: Any) -> dict[str, Any]:
    """Return the double-stream blocks that concepts can pass through, by the name of their attention.

    A block with an argument that is not in `BLOCK_ARGUMENTS` is left out.
    """
    found = {}
    for name, module in attention_modules(denoiser).items():
        block = denoiser.get_submodule(name.rpartition(".")[0])
        taken = set(inspect.signature(type(block).forward).parameters)
        if (
            getattr(module, "add_q_proj", None) is not None
            and {"hidden_states", "encoder_hidden_states", "temb"} <= taken <= BLOCK_ARGUMENTS
        ):
            found[name] = block
    return found


def check_concepts(pipeline: Any, concepts: Collection[Sequence[str]]) -> None:
    """Check that the concepts of images can be traced.

    Args:
        pipeline: The pipeline.
        concepts: Those of each image.

    Raises:
        ModelError: The model has no double-stream blocks, or their parts are compiled.
        PromptError: An image has fewer than two concepts, or one is too long for the text encoder.
    """
    denoiser = denoiser_of(pipeline)
    blocks = double_stream_blocks(denoiser)
    if not blocks or not hasattr(denoiser, "context_embedder"):
        raise ModelError(
            "diffusion.map: output needs a model with joint attention, in layers with weights for text and "
            f"weights for images (Stable Diffusion 3, FLUX, Chroma). {type(pipeline).__name__} has none that "
            "can be used. Set diffusion.map to probability."
        )
    if any(
        getattr(part, "_compiled_call_impl", None) is not None
        for block in blocks.values()
        for part in block.modules()
    ):
        raise ModelError(
            "diffusion.map: output does not work with compiled parts: the concepts would change how they "
            "compute the image. Set diffusion.compile to false, or diffusion.map to probability."
        )
    for words in concepts:
        if len({word.casefold() for word in words}) < 2:
            raise PromptError(
                "diffusion.map: output compares the concepts of an image with each other, and an image has "
                f"only {repr(words[0]) if words else 'none'}. Add words for what else is in the images, such "
                "as diffusion.concepts: [road, sky]."
            )
    for word in dict.fromkeys(word for words in concepts for word in words):
        index_tokens(pipeline, word, [word])


class Concepts:
    """The concepts of a batch on their way through the blocks of a denoiser.

    Args:
        pipeline: The pipeline, which will be called once.
        words: The concepts of each image.
    """

    def __init__(self, pipeline: Any, words: Sequence[Sequence[str]]) -> None:
        import torch

        check_concepts(pipeline, words)
        self._distinct = list(dict.fromkeys(word for some in words for word in some))
        self._pipeline = pipeline
        self._denoiser: Any = denoiser_of(pipeline)
        self.blocks = double_stream_blocks(self._denoiser)
        self.counts = [len(some) for some in words]
        self._most = max(self.counts)
        numbers = {word: number for number, word in enumerate(self._distinct)}
        # Images with fewer concepts than others are filled up with the first one, which is masked.
        self._numbers = torch.tensor(
            [[numbers[word] for word in some] + [0] * (self._most - len(some)) for some in words]
        )
        self._present = torch.arange(self._most) < torch.tensor(self.counts)[:, None]
        self._vectors: torch.Tensor | None = None  # one for each distinct concept
        self._stream: torch.Tensor | None = None  # (images, concepts, channels), of the last block
        self._seen: tuple[torch.Tensor, torch.Tensor, torch.Tensor, bool] | None = None
        self._outputs: torch.Tensor | None = None
        self.passing = False

    def install(self, stack: ExitStack) -> None:
        """Encode the concepts in the way of the prompts, right after them, until ``stack`` closes."""
        patch(stack, self._pipeline, "encode_prompt", self._encode)

    def begin(self) -> None:
        """Begin a run of the denoiser."""
        self._stream = self._seen = None

    def see(
        self, outputs: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *, text_first: bool
    ) -> None:
        """Take the attention of an image's own pass through a block.

        Args:
            outputs: (images, heads, cells, channels), of the cells of the images alone.
            keys: The same.
            values: The same.
            text_first: Whether the text comes before the image in the sequence.
        """
        self._seen = outputs, keys, values, text_first

    def maps(self, block: Any, args: Sequence[Any], kwargs: dict[str, Any], rows: slice) -> torch.Tensor:
        """Pass the concepts through a block that the images have just passed.

        Args:
            block: The block.
            args: The arguments that it was called with.
            kwargs: The named ones.
            rows: Which rows of the arguments are those of the images.

        Returns:
            The maps in this block, float32 (images, cells, concepts), which add up to 1 over the concepts;
            those of concepts that an image does not have are 0.
        """
        import torch

        given = inspect.signature(type(block).forward).bind(None, *args, **kwargs).arguments
        text_length = given["encoder_hidden_states"].shape[1]
        call: dict[str, Any] = {
            "hidden_states": given["hidden_states"][rows, :1],
            "encoder_hidden_states": self._embedded() if self._stream is None else self._stream,
            "temb": given["temb"][rows],
        }
        if given.get("image_rotary_emb") is not None:
            # Text stands at the origin of the image's grid, each token of it; so do the concepts.
            places = [0] * self._most + [text_length]
            call["image_rotary_emb"] = tuple(side[places] for side in given["image_rotary_emb"])
        self.passing = True
        try:
            self._stream, _ = block.forward(**call)
        finally:
            self.passing = False
        assert self._seen is not None and self._outputs is not None
        images, concepts, present = self._seen[0], self._outputs, self._present.to(self._outputs.device)
        self._seen = self._outputs = None
        found = []
        for cells, some, there in zip(images, concepts, present, strict=True):  # one at a time to save memory
            products = torch.einsum("hnc,hkc->nk", cells.float(), some.float())
            found.append(products.masked_fill(~there, -torch.inf).softmax(dim=-1))
        return torch.stack(found)

    def attend(
        self,
        attend: Callable[..., torch.Tensor],
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Stand in for attention while the concepts pass: they attend to all cells and to each other."""
        import torch

        if key.shape[-2] == 1:  # the image's cell alone, in layers that have self-attention, too
            return attend(query, key, value, attn_mask, *args, **kwargs)
        assert self._seen is not None
        _, keys, values, text_first = self._seen
        place = slice(0, self._most) if text_first else slice(1, None)
        mask = None
        if not self._present.all():
            mask = torch.nn.functional.pad(self._present, (0, keys.shape[-2]), value=True)
            mask = mask[:, None, None].to(key.device)
        self._outputs = attend(
            query[:, :, place],
            torch.cat([key[:, :, place], keys], dim=2),
            torch.cat([value[:, :, place], values], dim=2),
            mask,
            *args,
            **kwargs,
        )
        cell = torch.zeros_like(self._outputs[:, :, :1])  # becomes the image's stream, which nobody reads
        return torch.cat([self._outputs, cell] if text_first else [cell, self._outputs], dim=2)

    def _encode(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        import torch

        result = original(*args, **kwargs)
        if self._vectors is None:
            given = inspect.signature(original).bind(*args, **kwargs).arguments
            only = {
                name: value
                for name, value in given.items()
                if "prompt" not in name or name == "num_images_per_prompt"
            }
            only |= {"prompt": self._distinct, "num_images_per_prompt": 1}
            only |= {name: None for name in ("prompt_2", "prompt_3") if name in given}
            if "do_classifier_free_guidance" in inspect.signature(original).parameters:
                only["do_classifier_free_guidance"] = False
            encoded = original(**only)[0]
            tokens = [index_tokens(self._pipeline, word, [word]).positions[0] for word in self._distinct]
            self._vectors = torch.stack(
                [one[list(places)].mean(dim=0) for one, places in zip(encoded, tokens, strict=True)]
            )
        return result

    def _embedded(self) -> torch.Tensor:
        """Return the concepts of each image as the first block reads them."""
        if self._vectors is None:
            raise ModelError(
                f"{type(self._pipeline).__name__} did not encode its prompts with encode_prompt, so concepts "
                "cannot be encoded either. Set diffusion.map to probability."
            )
        vectors: torch.Tensor = self._denoiser.context_embedder(self._vectors)
        return vectors[self._numbers.to(vectors.device)]
