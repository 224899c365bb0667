"""Tests of the miniature's tokenizer, autoencoder, denoiser and oracle at the smallest size."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch

from diffugen.miniature import autoencoder, denoiser, oracle
from diffugen.miniature.scenes import CLASSES
from diffugen.miniature.sets import scene_set

CAPTIONS = (
    "a photo of a black grand piano on a road, rainy, night",
    "a red car and a traffic cone on a road",
)


@pytest.fixture(scope="module")
def rgb() -> np.ndarray:
    return np.stack([drawn.rgb for drawn in scene_set("uniform", 300, (48, 32))])


def test_every_known_word_is_one_token(tmp_path: Path) -> None:
    tokenizer = denoiser.build_tokenizer(CAPTIONS, tmp_path)
    for word in {word for caption in CAPTIONS for word in caption.replace(",", " ,").split()}:
        assert len(tokenizer(word).input_ids) == 3, f"{word!r} is split into {tokenizer.tokenize(word)}"
    unknown = tokenizer("zebra").input_ids
    assert len(unknown) > 3 and tokenizer.decode(unknown, skip_special_tokens=True).strip() == "zebra"


def test_words_with_a_common_prefix_are_one_token_each(tmp_path: Path) -> None:
    words = ("grand", "granite", "gran", "car", "carpet", "scar", "road", "broad")
    tokenizer = denoiser.build_tokenizer([" ".join(words)], tmp_path)
    assert tokenizer.tokenize(" ".join(words)) == [f"{word}</w>" for word in words]


def test_a_word_does_not_affect_other_tokens(tmp_path: Path) -> None:
    """The purpose of a text encoder without layers: a word changes only the embedding of its own token."""
    tokenizer = denoiser.build_tokenizer(CAPTIONS, tmp_path)
    encoder = denoiser.build_text_encoder(tokenizer)
    ids = tokenizer(["a red car on a road", "a red piano on a road"], return_tensors="pt").input_ids
    one, two = encoder(ids)[0]
    changed = (one - two).abs().sum(-1) > 0
    assert changed.tolist() == (ids[0] != ids[1]).tolist() and changed.sum() == 1


def test_encoder_is_the_linear_projection_it_claims(rgb: np.ndarray) -> None:
    """Latents explain as much variance as the principal components do, up to float32 accuracy."""
    model = autoencoder.build_autoencoder(rgb)
    with torch.no_grad():
        latents = (
            model.encode(autoencoder.to_unit(rgb))
            .latents.permute(0, 2, 3, 1)
            .reshape(-1, model.config.latent_channels)
        )
    patches = (
        rgb.reshape(len(rgb), 8, 4, 12, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(len(latents), 48) / 255
    )
    design = np.c_[latents.double().numpy(), np.ones(len(latents))]
    fit = design @ np.linalg.lstsq(design, patches, rcond=None)[0]
    spectrum = np.sort(np.linalg.eigvalsh(np.cov(patches.T)))[::-1]
    assert ((patches - fit) ** 2).sum(1).mean() == pytest.approx(
        spectrum[model.config.latent_channels :].sum(), rel=1e-3
    )


def test_decoder_learns_and_can_be_saved(rgb: np.ndarray, tmp_path: Path) -> None:
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    model = autoencoder.build_autoencoder(rgb)
    before = autoencoder.peak_signal_to_noise(model, rgb[:40])
    autoencoder.train_decoder(model, rgb, steps=25, batch_size=4)
    after = autoencoder.peak_signal_to_noise(model, rgb[:40])
    assert after > before + 3
    model.save_pretrained(tmp_path)
    again = AutoencoderTiny.from_pretrained(tmp_path)
    assert autoencoder.peak_signal_to_noise(again, rgb[:40]) == pytest.approx(after, abs=1e-4)


def tiny_training(folder: Path) -> tuple[denoiser.DenoiserTraining, torch.Tensor]:
    torch.manual_seed(0)
    tokenizer = denoiser.build_tokenizer(CAPTIONS, folder)
    unet = denoiser.build_unet(4, 8, (16, 32))
    ids = tokenizer(["", *CAPTIONS], padding="max_length", return_tensors="pt").input_ids
    return denoiser.start_training(unet, denoiser.build_text_encoder(tokenizer), 1e-3), ids


def run(training: denoiser.DenoiserTraining, ids: torch.Tensor, steps: int, last: int) -> list[float]:
    latents = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(5)).half()
    losses: list[float] = []
    stop = StopIteration()

    def on_step(step: int, loss: float) -> None:
        losses.append(loss)
        if step == last:
            raise stop

    with contextlib.suppress(StopIteration):
        denoiser.train_denoiser(
            training, latents, ids[1:], ids[0], steps=steps, batch_size=4, learning_rate=2e-3, on_step=on_step
        )
    return losses


def test_denoiser_training_learns(tmp_path: Path) -> None:
    training, ids = tiny_training(tmp_path)
    losses = run(training, ids, 60, 60)
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])


def test_a_resumed_denoiser_training_gives_the_same_weights(tmp_path: Path) -> None:
    whole, ids = tiny_training(tmp_path)
    run(whole, ids, 6, 6)
    first, _ = tiny_training(tmp_path)
    run(first, ids, 6, 3)
    torch.save(first.state(), tmp_path / "state.pt")
    second, _ = tiny_training(tmp_path)
    second.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    assert second.step == 3
    run(second, ids, 6, 6)
    for name, value in whole.parameters().items():
        assert torch.equal(value, second.parameters()[name]), name
        assert torch.equal(whole.average[name], second.average[name]), name


def test_class_map_and_iou() -> None:
    drawn = next(one for one in scene_set("uniform", 50, (48, 32)) if len(set(one.class_names)) == 2)
    truth = oracle.class_map(drawn)[None]
    scores = oracle.intersection_over_union(truth, truth)
    assert {name for name, value in scores.items() if value == 1.0} == set(drawn.class_names)
    nothing = oracle.intersection_over_union(truth, np.zeros_like(truth))
    assert all(nothing[name] == 0.0 for name in drawn.class_names)
    assert oracle.found(truth[0], drawn.class_names[0]) and not oracle.found(np.zeros_like(truth[0]), "car")


def test_oracle_learns_and_can_be_saved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = oracle.build_oracle()
    losses: list[float] = []
    oracle.train_oracle(
        model, size_wh=(48, 32), steps=25, batch_size=4, on_step=lambda _, loss: losses.append(loss)
    )
    assert np.mean(losses[-5:]) < 0.6 * losses[0]
    model.half().save_pretrained(tmp_path)
    labels = oracle.segment(
        oracle.load_oracle(tmp_path), [drawn.rgb for drawn in scene_set("uniform", 3, (48, 32))]
    )
    assert labels.shape == (3, 32, 48) and labels.max() <= len(CLASSES)
