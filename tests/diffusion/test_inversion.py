"""Textual inversion on tiny pipelines of the real classes: training, resuming, and token files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from diffugen.diffusion.inversion import load_embeddings, read_embeddings
from diffugen.diffusion.inversion_inputs import encode_images
from diffugen.diffusion.inversion_train import TEMPLATES, train_inversion
from diffugen.diffusion.pipelines import set_scheduler
from diffugen.diffusion.tokens import index_tokens
from diffugen.diffusion.tracing import trace
from diffugen.errors import DiffugenError, ModelError
from tests.support.children import WAIT_SECONDS

TOKEN = "<cone>"
WIDTH = 32


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def photos(count: int = 3) -> list[NDArray[np.uint8]]:
    """Return images of different sizes, none square, with a bright left half, so mirrored ones differ."""
    random = np.random.default_rng(0)
    made = []
    for number in range(count):
        image = random.integers(0, 120, (48 + 8 * number, 96, 3), np.uint8)
        image[:, :48] += 100
        made.append(image)
    return made


def learn(pipeline: Any, out: Path, **changes: Any) -> Path:
    arguments: dict[str, Any] = {
        "token": TOKEN,
        "init": "piano",
        "steps": 6,
        "batch_size": 2,
        "learning_rate": 0.05,
        "checkpoint_every": 2,
        **changes,
    }
    return train_inversion(pipeline, arguments.pop("images", photos()), out=out, **arguments)


def with_speed(pipeline: Any) -> Any:
    pipeline.scheduler = DDIMScheduler(
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
    )
    return pipeline


def weights(pipeline: Any) -> dict[str, torch.Tensor]:
    parts = ("unet", "text_encoder", "vae")
    return {
        f"{part}.{n}": v.clone() for part in parts for n, v in getattr(pipeline, part).state_dict().items()
    }


@pytest.mark.parametrize("speed", [False, True], ids=["epsilon", "v_prediction"])
@pytest.mark.parametrize("snr_gamma", [None, 5.0])
def test_learning_changes_only_the_token(
    sd: Any, tmp_path: Path, speed: bool, snr_gamma: float | None
) -> None:
    pipeline = with_speed(sd) if speed else sd
    before, words = weights(pipeline), len(pipeline.tokenizer)
    learned = load_file(learn(pipeline, tmp_path / "t.safetensors", vectors=2, snr_gamma=snr_gamma))
    after = weights(pipeline)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(weight.requires_grad and weight.grad is None for weight in pipeline.unet.parameters())
    assert len(pipeline.tokenizer) == words
    assert list(learned) == [TOKEN]
    assert learned[TOKEN].shape == (2, WIDTH) and learned[TOKEN].dtype == torch.float32
    start = pipeline.text_encoder.get_input_embeddings().weight[pipeline.tokenizer("piano").input_ids[1]]
    assert learned[TOKEN].isfinite().all()
    assert ((learned[TOKEN] - start).norm(dim=1) > 0.1).all()
    assert not torch.equal(*learned[TOKEN])


def test_learning_explains_the_images_better_than_the_word(sd: Any, tmp_path: Path) -> None:
    out = learn(sd, tmp_path / "t.safetensors", steps=60, learning_rate=0.02)
    load_embeddings(sd, [out])
    clean = encode_images(sd, photos(), True).flatten(0, 1).repeat(8, 1, 1, 1)
    random = torch.Generator().manual_seed(99)
    noise = torch.randn(clean.shape, generator=random)
    times = torch.randint(0, 1000, (len(clean),), generator=random)

    @torch.no_grad()
    def loss(word: str) -> float:
        ids = sd.tokenizer(f"a photo of a {word}", padding="max_length", return_tensors="pt").input_ids
        text = sd.text_encoder(ids)[0].expand(len(clean), -1, -1)
        return float(
            (sd.unet(sd.scheduler.add_noise(clean, noise, times), times, text).sample - noise).square().mean()
        )

    assert loss(TOKEN) < loss("piano") - 0.001


def test_diffusers_itself_loads_the_token(build: Callable[[str], Any], tmp_path: Path) -> None:
    out = learn(build("sd"), tmp_path / "t.safetensors", vectors=3)
    learned = load_file(out)[TOKEN]
    theirs, ours = build("sd"), build("sd")
    known = theirs.text_encoder.get_input_embeddings().weight.clone()
    theirs.load_textual_inversion(str(tmp_path), weight_name=out.name)
    assert load_embeddings(ours, [out]) == [TOKEN]
    for pipeline in (theirs, ours):
        rows = pipeline.text_encoder.get_input_embeddings().weight
        assert torch.equal(rows[: len(known)], known)
        assert torch.equal(rows[len(known) :], learned)
        assert pipeline.tokenizer.tokenize(f"a {TOKEN} {TOKEN}_1")[1:] == [TOKEN, f"{TOKEN}_1"]


def test_resuming_gives_the_same_bits(sd: Any, tmp_path: Path) -> None:
    whole = learn(sd, tmp_path / "whole.safetensors")
    calls: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> None:
        calls.append((done, total))
        if done == 5:
            raise KeyboardInterrupt

    parts = tmp_path / "parts.safetensors"
    with pytest.raises(KeyboardInterrupt):
        learn(sd, parts, on_progress=stop)
    assert not parts.exists()
    learn(sd, parts, on_progress=lambda done, total: calls.append((done, total)))
    assert calls == [(0, 6), (1, 6), (2, 6), (3, 6), (4, 6), (5, 6), (4, 6), (5, 6), (6, 6)]
    assert parts.read_bytes() == whole.read_bytes()
    short = learn(sd, tmp_path / "short.safetensors", steps=3)
    assert short.read_bytes() != whole.read_bytes()
    learn(sd, short)
    assert short.read_bytes() == whole.read_bytes()
    other = learn(sd, tmp_path / "other.safetensors", seed=1)
    assert not torch.equal(load_file(other)[TOKEN], load_file(whole)[TOKEN])


CHILD = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from tests.diffusion.test_inversion import learn
from tests.support.tiny_models import build_sd
learn(build_sd(), Path(sys.argv[2]), on_progress=lambda done, total:
      os.kill(os.getpid(), signal.SIGKILL) if done == 5 else None)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_resuming_after_a_kill_gives_the_same_bits(sd: Any, tmp_path: Path) -> None:
    out = tmp_path / "killed.safetensors"
    killed = subprocess.run(
        [sys.executable, "-c", CHILD, str(Path(__file__).parents[2]), str(out)],
        check=False,
        timeout=WAIT_SECONDS,
    )
    assert killed.returncode == -signal.SIGKILL
    left = tmp_path / "killed.safetensors.checkpoint"
    with safe_open(left, "pt") as file:
        assert '"step": 4' in file.metadata()["diffugen"]
    assert not out.exists()
    learn(sd, out)
    assert out.read_bytes() == learn(sd, tmp_path / "whole.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "killed.safetensors",
        "killed.safetensors.checkpoint",
        "whole.safetensors",
        "whole.safetensors.checkpoint",
    ]


@pytest.mark.parametrize("sampler", ["pndm", "euler", "dpmsolver-multistep"])
def test_the_sampler_does_not_matter(build: Callable[[str], Any], tmp_path: Path, sampler: str) -> None:
    ours, other = build("sd"), build("sd")
    set_scheduler(other, sampler)
    assert type(other.scheduler) is not type(ours.scheduler)
    first, second = (
        learn(one, tmp_path / f"{name}.safetensors", steps=2) for name, one in (("a", ours), ("b", other))
    )
    assert first.read_bytes() == second.read_bytes()


def test_learning_in_bfloat16_keeps_the_token_in_float32(sd: Any, tmp_path: Path) -> None:
    learned = load_file(learn(sd.to(torch.bfloat16), tmp_path / "t.safetensors"))[TOKEN]
    assert learned.dtype == torch.float32
    assert not torch.equal(learned, learned.bfloat16().float())


def test_images_are_cropped_to_the_models_shape_not_squeezed(sd: Any) -> None:
    wide = np.zeros((64, 192, 3), np.uint8)
    wide[:, 64:128] = 255
    white = encode_images(sd, [np.full((64, 64, 3), 255, np.uint8)], False)
    assert encode_images(sd, [wide], False).shape == (1, 1, 4, 16, 16)
    assert torch.allclose(encode_images(sd, [wide], False), white, atol=1e-5)
    both = encode_images(sd, photos(), True)
    assert both.shape == (3, 2, 4, 16, 16)
    assert not torch.equal(both[:, 0], both[:, 1])


@pytest.mark.parametrize(
    ("changes", "condition", "way_out"),
    [
        ({"token": "piano"}, "'piano' is a token of this model already", "not a word yet"),
        ({"token": "a cone"}, "one word without spaces", "'a cone'"),
        ({"token": ""}, "one word without spaces", "''"),
        ({"token": "<Cone>"}, "ignores case", "'<cone>'"),
        ({"init": "zebra"}, "'zebra' is 5 to it: 'z', 'e', 'b', 'r', 'a</w>'", "shorter or more common"),
        ({"init": "grand piano"}, "'grand piano' is 2 to it", "shorter or more common"),
        ({"init": ""}, "'' is 0 to it: none", "shorter or more common"),
        ({"images": []}, "no images to learn the token from", "3 to 8"),
        ({"vectors": 0}, "vectors must be at least 1", "got 0"),
        ({"vectors": 80}, "'a photo of a {}' with 80 vectors is longer than the 77 tokens", "fewer vectors"),
        ({"steps": 0}, "steps must be at least 1", "got 0"),
        ({"batch_size": -1}, "batch_size must be at least 1", "got -1"),
        ({"learning_rate": 0.0}, "learning_rate must be a number above 0", "got 0"),
        ({"learning_rate": 1e30}, "diverged", "below 1e+30"),
        ({"templates": ["a photo"]}, "captions need {}", "['a photo']"),
        ({"templates": []}, "captions need {}", "[]"),
    ],
)
def test_bad_arguments(
    sd: Any, tmp_path: Path, changes: dict[str, Any], condition: str, way_out: str
) -> None:
    with pytest.raises(DiffugenError) as caught:
        learn(sd, tmp_path / "t.safetensors", **changes)
    assert condition in str(caught.value) and way_out in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("family", "change", "condition"),
    [
        ("sdxl", None, "StableDiffusionXLPipeline cannot learn a token here: it has 2 text encoders"),
        ("sd3", None, "StableDiffusion3Pipeline does not support textual-inversion tokens"),
        ("flux", None, "FluxPipeline does not support textual-inversion tokens"),
        ("sd", lambda one: one.to(torch.float16), "float16, in which small gradients vanish"),
        ("sd", lambda one: one.scheduler.register_to_config(prediction_type="sample"), "predicts 'sample'"),
        ("sd", lambda one: one.unet.register_to_config(in_channels=9), "reads 9 channels"),
    ],
)
def test_models_that_cannot_learn(
    build: Callable[[str], Any],
    tmp_path: Path,
    family: str,
    change: Callable[[Any], Any] | None,
    condition: str,
) -> None:
    pipeline = build(family)
    if change is not None:
        change(pipeline)
    with pytest.raises(ModelError) as caught:
        learn(pipeline, tmp_path / "t.safetensors")
    assert condition in str(caught.value)


def test_out_of_memory_names_the_batch_size(sd: Any, tmp_path: Path) -> None:
    def run_out(*_: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    sd.unet.register_forward_pre_hook(run_out)
    message = r"out of memory while learning '<cone>' with batch_size 2 on cpu: use a smaller batch_size"
    with pytest.raises(ModelError, match=message):
        learn(sd, tmp_path / "t.safetensors")


def test_other_runtime_errors_are_not_swallowed(sd: Any, tmp_path: Path) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("a bug")

    sd.unet.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="a bug"):
        learn(sd, tmp_path / "t.safetensors")


def test_files_of_another_training_are_not_overwritten(sd: Any, tmp_path: Path) -> None:
    out = learn(sd, tmp_path / "t.safetensors")
    data = out.read_bytes()
    for changes, condition in (
        ({"learning_rate": 0.01}, "learning_rate 0.05 -> 0.01"),
        ({"images": photos(2)}, "images "),
        ({"templates": ["a {}"]}, f"templates {list(TEMPLATES)} -> ['a {{}}']"),
        ({"steps": 4}, "steps 6 -> 4"),
    ):
        with pytest.raises(DiffugenError) as caught:
            learn(sd, out, **changes)
        assert condition in str(caught.value)
    checkpoint = tmp_path / "t.safetensors.checkpoint"
    checkpoint.write_bytes(b"damaged")
    with pytest.raises(DiffugenError, match="cannot read the checkpoint"):
        learn(sd, out)
    checkpoint.unlink()
    with pytest.raises(DiffugenError, match="exists already"):
        learn(sd, out)
    assert out.read_bytes() == data


def tensor(vectors: int = 1, width: int = WIDTH) -> torch.Tensor:
    return torch.randn((vectors, width), generator=torch.Generator().manual_seed(vectors))


AUTOMATIC = {"string_to_token": {"*": 265}, "string_to_param": {"*": tensor(2)}, "name": "MyCone", "step": 10}


@pytest.mark.parametrize(
    ("name", "content", "token", "vectors"),
    [
        ("t.safetensors", {TOKEN: tensor()}, TOKEN, 1),
        ("t.safetensors", {TOKEN: tensor(3)}, TOKEN, 3),
        ("t.safetensors", {TOKEN: tensor()[0]}, TOKEN, 1),
        ("t.safetensors", {TOKEN: tensor().half()}, TOKEN, 1),
        ("my-cone.safetensors", {"emb_params": tensor(2)}, "my-cone", 2),
        ("t.bin", {TOKEN: tensor()[0]}, TOKEN, 1),
        ("t.pt", {TOKEN: torch.nn.Parameter(tensor(2))}, TOKEN, 2),
        ("t.pt", AUTOMATIC, "mycone", 2),
        ("My-Cone.pt", {**AUTOMATIC, "name": None}, "my-cone", 2),
    ],
)
def test_every_file_format_is_read(
    sd: Any, tmp_path: Path, name: str, content: Any, token: str, vectors: int
) -> None:
    path = tmp_path / name
    save_file(content, path) if path.suffix == ".safetensors" else torch.save(content, path)
    known = sd.text_encoder.get_input_embeddings().weight.clone()
    assert load_embeddings(sd, [str(path)]) == [token]
    rows = sd.text_encoder.get_input_embeddings().weight
    assert torch.equal(rows[: len(known)], known)
    ((expected,),) = read_embeddings(path).values()
    assert torch.equal(rows[len(known) :], expected) and len(expected) == vectors
    assert sd.maybe_convert_prompt(f"a {token}", sd.tokenizer).split()[1:] == [
        token,
        *(f"{token}_{number}" for number in range(1, vectors)),
    ]


def test_sdxl_takes_vectors_for_both_encoders(build: Callable[[str], Any], tmp_path: Path) -> None:
    pipeline = build("sdxl")
    content = {"clip_l": tensor(2), "clip_g": tensor(2) + 1}
    save_file(content, tmp_path / "my-cone.safetensors")
    assert load_embeddings(pipeline, [tmp_path / "my-cone.safetensors"]) == ["my-cone"]
    for encoder, key in ((pipeline.text_encoder, "clip_l"), (pipeline.text_encoder_2, "clip_g")):
        assert torch.equal(encoder.get_input_embeddings().weight[-2:], content[key])
    assert index_tokens(pipeline, "a my-cone on the road", ["my-cone"]).positions == ((2, 3),)


def test_a_heat_map_averages_all_vectors_of_a_token(sd: Any, tmp_path: Path) -> None:
    save_file({TOKEN: 3 * tensor(3)}, tmp_path / "t.safetensors")
    load_embeddings(sd, [tmp_path / "t.safetensors"])
    prompt = f"a photo of a {TOKEN} on the road"
    index = index_tokens(sd, prompt, [TOKEN, "road"])
    assert index.positions == ((5, 6, 7), (10,))
    maps = []
    for positions in [((5, 6, 7),), ((5,),), ((6,),), ((7,),)]:
        with trace(sd, [type(index)(positions, index.ids)]) as traced:
            sd(prompt, num_inference_steps=2, height=64, width=96, generator=torch.Generator().manual_seed(0))
        maps.append(next(iter(traced.maps()[0].values())).astype(np.float64))
    whole, *parts = maps
    assert not np.allclose(parts[0], parts[1], atol=1e-4)
    assert np.allclose(whole, np.mean(parts, axis=0), atol=1e-3)


class Malicious:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (os.mkdir, ("ran-code",))


@pytest.mark.parametrize(
    ("name", "content", "condition"),
    [
        ("t.safetensors", None, "no file of textual-inversion tokens at"),
        ("t.safetensors", b"damaged", "cannot read"),
        ("t.pt", b"damaged", "cannot read"),
        ("t.pt", {TOKEN: Malicious()}, "never code"),
        ("t.pt", [1, 2], "holds a list"),
        ("t.pt", {}, "it is empty"),
        ("t.pt", {TOKEN: "text"}, "is str"),
        ("t.pt", {"string_to_param": {"other": tensor()}, "name": TOKEN}, "is NoneType"),
        ("t.safetensors", {TOKEN: torch.zeros(2, 3, WIDTH)}, "is a tensor (2, 3, 32)"),
        ("t.safetensors", {TOKEN: torch.zeros(2, WIDTH, dtype=torch.int64)}, "of torch.int64"),
        ("t.safetensors", {TOKEN: torch.full((1, WIDTH), torch.nan)}, "NaN or infinite values"),
        ("t.safetensors", {TOKEN: tensor(2, 48)}, "are 48 wide, but this model's text encoder has width 32"),
        (
            "t.safetensors",
            {"clip_l": tensor(), "clip_g": tensor()},
            "vectors for 2 text encoder(s), but the model has 1",
        ),
        ("t.safetensors", {"piano": tensor()}, "'piano' is a token of this model already"),
        ("t.safetensors", {" ": tensor()}, "reads as nothing"),
        ("t.safetensors", {"<good>": tensor()}, "both hold the token '<good>'"),
        ("t.safetensors", {"<there>": tensor()}, "'<there>' is a token of this model already"),
        ("t.safetensors", {"<there>_1": tensor()}, "'<there>' is a token of this model already"),
        ("t.txt", b"text", "does not have the suffix"),
    ],
)
def test_bad_files_leave_the_pipeline_unchanged(
    sd: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: Any, condition: str
) -> None:
    monkeypatch.chdir(tmp_path)
    save_file({"<there>": tensor()}, tmp_path / "there.safetensors")
    load_embeddings(sd, [tmp_path / "there.safetensors"])
    save_file({"<good>": tensor()}, tmp_path / "good.safetensors")
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        save_file(content, path) if path.suffix == ".safetensors" else torch.save(content, path)
    words, rows = len(sd.tokenizer), sd.text_encoder.get_input_embeddings().weight.clone()
    with pytest.raises(ModelError) as caught:
        load_embeddings(sd, [tmp_path / "good.safetensors", path])
    assert condition in str(caught.value) and name in str(caught.value)
    assert len(sd.tokenizer) == words
    assert torch.equal(sd.text_encoder.get_input_embeddings().weight, rows)
    assert not (tmp_path / "ran-code").exists()


def test_a_file_with_two_tokens(sd: Any, tmp_path: Path) -> None:
    save_file({"<one>": tensor(2), "<two>": tensor(3)}, tmp_path / "t.safetensors")
    assert load_embeddings(sd, [tmp_path / "t.safetensors"]) == ["<one>", "<two>"]
    assert index_tokens(sd, "a <two> and a <one>", ["<one>", "<two>"]).positions == ((7, 8), (2, 3, 4))
