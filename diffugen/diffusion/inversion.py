"""Files of textual-inversion tokens: read, write, and load into a pipeline.

A token is a new word with one or more vectors that were learned from images. Files are written in the form
that diffusers and other tools read: safetensors with the token's name and its vectors, float32 (vectors,
width). Older forms in pickle files are read by torch's weights-only reader, which runs no code. Does not know
how a token is learned (see `inversion_train`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffugen.diffusion.messages import quiet
from diffugen.errors import ModelError, StoreError, first_line
from diffugen.run.files import write_file

if TYPE_CHECKING:
    import torch

PICKLE_SUFFIXES = (".pt", ".pth", ".bin")


def load_embeddings(pipeline: Any, files: Sequence[str | Path]) -> list[str]:
    """Load tokens from files into a pipeline: all of them, or none if one file has a fault.

    A token with several vectors is written once in a prompt; the pipeline replaces it by ``<t> <t>_1 ...``.

    Args:
        pipeline: Stable Diffusion 1.x, 2.x or XL, from `pipelines.load_pipeline`; any other if there are no
            files.
        files: ``.safetensors`` (a tensor by the token's name; or ``emb_params``, or ``clip_l`` and
            ``clip_g``, where the file's name is the token), ``.pt`` or ``.bin`` (``{token: tensor}``, or
            Automatic1111's ``string_to_param``).

    Returns:
        The tokens in the files' order, as they must be written in prompts: in lower case if the tokenizer
        ignores case.

    Raises:
        ModelError: A file is missing or unreadable, its vectors do not fit the text encoder, a token exists
            already, or the pipeline does not support tokens.

    Example:
        >>> load_embeddings(pipeline, ["grand-piano.safetensors"])
        ['<grand-piano>']
    """
    if not files:
        return []  # models that do not support tokens have none
    encoders = text_encoders(pipeline)
    tokens: dict[str, Path] = {}
    loaded: list[tuple[str, tuple[torch.Tensor, ...]]] = []
    for path in map(Path, files):
        for name, tensors in read_embeddings(path).items():
            token = as_read(encoders[0][0], name)
            _check_fit(path, token, tensors, encoders)
            check_free(
                encoders[0][0],
                token,
                f"{path} holds the token {token!r}",
                "load the file once, or rename its token",
            )
            if token in tokens:
                raise ModelError(
                    f"{tokens[token]} and {path} both hold the token {token!r}: load one of them"
                )
            tokens[token] = path
            loaded.append((token, tensors))
    with quiet():
        for token, tensors in loaded:
            for (tokenizer, encoder), vectors in zip(encoders, tensors, strict=True):
                pipeline.load_textual_inversion({token: vectors}, tokenizer=tokenizer, text_encoder=encoder)
    return list(tokens)


def read_embeddings(path: Path) -> dict[str, tuple[torch.Tensor, ...]]:
    """Read a file of textual-inversion tokens.

    Args:
        path: A file in one of the forms listed in `load_embeddings`.

    Returns:
        The vectors of each token, float32 (vectors, width): one tensor for each text encoder.

    Raises:
        ModelError: The file is missing or unreadable, or has other content.
    """
    if not path.is_file():
        raise ModelError(
            f"no file of textual-inversion tokens at {path.absolute()}; create one with: diffugen invert"
        )
    content = _read(path)
    if isinstance(content.get("string_to_param"), Mapping):
        named: dict[str, tuple[Any, ...]] = {
            str(content.get("name") or path.stem): (content["string_to_param"].get("*"),)
        }
    elif set(content) == {"clip_l", "clip_g"}:
        named = {path.stem: (content["clip_l"], content["clip_g"])}
    else:
        named = {
            path.stem if name == "emb_params" else str(name): (value,) for name, value in content.items()
        }
    if not named:
        raise ModelError(f"{path} holds no textual-inversion token: it is empty")
    return {token: tuple(_vectors(path, token, value) for value in values) for token, values in named.items()}


def write_embedding(path: Path, token: str, vectors: torch.Tensor, notes: Mapping[str, str]) -> None:
    """Write a token to a file atomically.

    Args:
        path: The ``.safetensors`` file.
        token: The token's name.
        vectors: (vectors, width).
        notes: Metadata to store in the file; readers of tokens ignore it.

    Raises:
        StoreError: The file cannot be written.
    """
    write_tensors(path, {token: vectors}, notes)


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], notes: Mapping[str, str]) -> None:
    """Write named tensors with metadata as safetensors, atomically.

    Raises:
        StoreError: The file cannot be written.
    """
    from safetensors.torch import save

    data = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, dict(notes))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, data)
    except OSError as error:
        raise StoreError(
            f"cannot write {path}: {error.strerror or error}; free space or choose another folder"
        ) from error


def text_encoders(pipeline: Any) -> list[tuple[Any, Any]]:
    """Return each tokenizer of a pipeline with its text encoder.

    Raises:
        ModelError: The pipeline does not support learned tokens.
    """
    if getattr(pipeline, "unet", None) is None or not hasattr(pipeline, "load_textual_inversion"):
        raise ModelError(
            f"{type(pipeline).__name__} does not support textual-inversion tokens, but Stable Diffusion 1.x, "
            "2.x and XL do. Use such a model, or remove the embeddings."
        )
    pairs = [
        (getattr(pipeline, name.replace("text_encoder", "tokenizer"), None), getattr(pipeline, name, None))
        for name in ("text_encoder", "text_encoder_2")
    ]
    return [pair for pair in pairs if None not in pair]


def as_read(tokenizer: Any, token: str) -> str:
    """Return a token as the tokenizer reads it: in lower case if it ignores case."""
    return token.lower() if tokenizer.tokenize("A") == tokenizer.tokenize("a") else token


def check_free(tokenizer: Any, token: str, condition: str, way_out: str) -> None:
    """Require that a token's name is not in use.

    Args:
        tokenizer: A transformers tokenizer.
        token: The token's name.
        condition: Beginning of the error message.
        way_out: End of the error message.

    Raises:
        ModelError: The tokenizer has the name already, or would read it as a vector of another token.
    """
    added, pieces = tokenizer.added_tokens_encoder, tokenizer.tokenize(token)
    if not pieces:
        raise ModelError(f"{condition}, which the tokenizer reads as nothing; {way_out}")
    vector = re.fullmatch(r"(.+)_\d+", token)
    if len(pieces) == 1 or f"{token}_1" in added or (vector and vector[1] in added):
        taken = vector[1] if vector and vector[1] in added else token
        raise ModelError(f"{condition}, but {taken!r} is a token of this model already; {way_out}")


def _read(path: Path) -> dict[str, Any]:
    import torch
    from safetensors.torch import load_file

    if path.suffix not in (".safetensors", *PICKLE_SUFFIXES):
        raise ModelError(
            f"{path} does not have the suffix of a file of textual-inversion tokens: .safetensors, "
            f"{', '.join(PICKLE_SUFFIXES)}"
        )
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors, zipfile, pickle and torch raise anything on broken files
        raise ModelError(
            f"cannot read {path} as textual-inversion tokens: {first_line(error)[:200]} If it is damaged, "
            "download it again; from pickled files only plain tensors are read, never code: ask for a "
            ".safetensors file"
        ) from error
    if not isinstance(content, Mapping):
        raise ModelError(f"{path} names no token: it holds a {type(content).__name__}; {_EXPECTED}")
    return dict(content)


_EXPECTED = "expected a token's name with its vectors, a tensor (vectors, width)"


def _vectors(path: Path, token: str, value: Any) -> torch.Tensor:
    import torch

    if (
        not isinstance(value, torch.Tensor)
        or not value.is_floating_point()
        or value.ndim not in (1, 2)
        or not value.numel()
    ):
        given = (
            f"a tensor {tuple(value.shape)} of {value.dtype}"
            if isinstance(value, torch.Tensor)
            else type(value).__name__
        )
        raise ModelError(
            f"{path} is not a file of textual-inversion tokens: {token!r} is {given}; {_EXPECTED}"
        )
    if not value.isfinite().all():
        raise ModelError(
            f"{path}: the vectors of {token!r} contain NaN or infinite values; train them again with a lower "
            "learning rate"
        )
    return value.detach().float().reshape(-1, value.shape[-1])


def _check_fit(
    path: Path, token: str, tensors: Sequence[torch.Tensor], encoders: Sequence[tuple[Any, Any]]
) -> None:
    if len(tensors) != len(encoders):
        raise ModelError(
            f"{path}: the token {token!r} has vectors for {len(tensors)} text encoder(s), but the model has "
            f"{len(encoders)}. Tokens of Stable Diffusion 1.x and 2.x do not work in SDXL, nor the reverse: "
            "choose one made for this model"
        )
    for vectors, (_, encoder) in zip(tensors, encoders, strict=True):
        width = encoder.get_input_embeddings().weight.shape[-1]
        if vectors.shape[-1] != width:
            raise ModelError(
                f"{path}: the vectors of {token!r} are {vectors.shape[-1]} wide, but this model's text "
                f"encoder has width {width}: the token was made for another model. Use a model of that "
                "width, or learn the token again"
            )
        if len({len(one) for one in tensors}) > 1:
            raise ModelError(
                f"{path}: the token {token!r} has different numbers of vectors for the two text encoders"
            )
