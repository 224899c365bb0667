"""Fixtures of the diffusion tests: tiny pipelines of every family and their tokenizers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from diffusers import StableDiffusionPipeline
from transformers import CLIPTokenizer, T5Tokenizer

from tests.support.tiny_models import BUILDERS, build_sd
from tests.support.tiny_others import OTHERS
from tests.support.tiny_parts import clip_tokenizer, t5_tokenizer


@pytest.fixture
def sd() -> StableDiffusionPipeline:
    return build_sd()


@pytest.fixture(params=list(BUILDERS))
def any_pipeline(request: pytest.FixtureRequest) -> Any:
    """Return a pipeline of each family."""
    return BUILDERS[request.param]()


@pytest.fixture(name="families")
def families_fixture() -> list[str]:
    """Return the names of the families that generate from text alone and can be traced."""
    return list(BUILDERS)


@pytest.fixture(scope="session")
def build() -> Callable[[str], Any]:
    """Return a function that builds a new pipeline of the named family."""
    return lambda family: {**BUILDERS, **OTHERS}[family]()


@pytest.fixture
def daam_sized_sd() -> StableDiffusionPipeline:
    """Return a pipeline with 64x64 latents of 512-pixel images, of which daam 0.2.0 keeps all layers."""
    return build_sd(sample_size=64, vae_levels=4, plain_levels=2, peaks=6.0)


@pytest.fixture(name="clip_tokenizer")
def clip_tokenizer_fixture() -> CLIPTokenizer:
    return clip_tokenizer()


@pytest.fixture(name="t5_tokenizer")
def t5_tokenizer_fixture() -> T5Tokenizer:
    return t5_tokenizer()
