"""The miniature's autoencoder: a principal-component encoder and a trained convolutional decoder.

The encoder is linear and needs no training: the principal components of 4x4 pixel patches, written into the
weights of diffusers' `AutoencoderTiny` with an encoder without blocks. So colours are kept exactly, and the
denoiser can be trained on the latents before the decoder exists. The decoder is trained on noisy latents,
because generated latents are not clean.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderTiny

PATCH = 4
LATENT_CHANNELS = 12
_WIDTH = 48


def build_autoencoder(rgb: NDArray[np.uint8]) -> AutoencoderTiny:
    """Build the autoencoder with its encoder fitted to images and its decoder untrained.

    Latent channel i is scaled to a standard deviation proportional to the square root of the component's own,
    so fine detail is neither lost in noise nor as strong as coarse structure.

    Args:
        rgb: uint8 (N, H, W, 3), H and W multiples of 4.
    """
    import torch
    from diffusers import AutoencoderTiny

    model = AutoencoderTiny(
        encoder_block_out_channels=(_WIDTH,) * 3,
        decoder_block_out_channels=(_WIDTH,) * 3,
        num_encoder_blocks=(0, 0, 0),
        num_decoder_blocks=(4, 2, 1),
        latent_channels=LATENT_CHANNELS,
        upsampling_scaling_factor=2,
        upsample_fn="nearest",
    )
    mean, components, spread = _principal_components(rgb)
    wanted = np.sqrt(spread / spread[0])
    wanted *= 0.9 / np.sqrt((wanted**2).mean())
    matrix = components * (wanted / spread)[:, None]
    convs = [layer for layer in model.encoder.layers if isinstance(layer, torch.nn.Conv2d)]
    with torch.no_grad():
        for conv in convs:
            conv.weight.zero_()
            if conv.bias is not None:
                conv.bias.zero_()
        for channel in range(3):
            convs[0].weight[channel, channel, 1, 1] = 1
        for level, channels in ((1, 3), (2, 12)):
            # Space to depth: taps 1 and 2 of a padded 3x3 stride-2 kernel are rows 2i and 2i + 1.
            for offset in range(4):
                row, column = 1 + offset // 2, 1 + offset % 2
                for channel in range(channels):
                    convs[level].weight[offset * channels + channel, channel, row, column] = 1
        convs[3].weight[:, :, 1, 1] = torch.from_numpy(matrix).float()
        convs[3].bias.copy_(torch.from_numpy(-matrix @ mean).float())
    return model.requires_grad_(False).eval()


def _patches(rgb: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return (M, 48) patches in [0, 1], with values in the order of two space-to-depth steps."""
    x = rgb.astype(np.float64) / 255
    for _ in range(2):
        count, height, width, channels = x.shape
        x = x.reshape(count, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(count, height // 2, width // 2, 4 * channels)
    return x.reshape(-1, 3 * PATCH**2)


def _principal_components(
    rgb: NDArray[np.uint8],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    patches = _patches(rgb)
    mean = patches.mean(0)
    values, vectors = np.linalg.eigh(np.cov((patches - mean).T))
    order = np.argsort(values)[::-1][:LATENT_CHANNELS]
    return mean, vectors[:, order].T, np.sqrt(values[order])


def to_unit(rgb: NDArray[np.uint8]) -> torch.Tensor:
    """Convert uint8 (N, H, W, 3) to float32 (N, 3, H, W) in [-1, 1]."""
    import torch

    return torch.from_numpy(np.array(rgb)).permute(0, 3, 1, 2).float() / 127.5 - 1


def train_decoder(
    model: AutoencoderTiny,
    rgb: NDArray[np.uint8],
    *,
    steps: int,
    batch_size: int = 16,
    learning_rate: float = 2e-3,
    seed: int = 0,
    device: str = "cpu",
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Train the decoder in place to restore images from noisy latents.

    Args:
        model: From `build_autoencoder`.
        rgb: uint8 (N, H, W, 3) training images.
        steps: Optimiser steps.
        batch_size: Images per step.
        learning_rate: Peak rate of the one-cycle schedule.
        seed: Determines batches and noise.
        device: Torch device.
        on_step: Called with the number of the step and its loss.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    decoder = model.decoder.requires_grad_(True).train().to(device)
    encoder = model.encoder.to(device)
    optimiser = torch.optim.AdamW(decoder.parameters(), lr=learning_rate, weight_decay=0.0, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        picks = torch.randint(0, len(rgb), (batch_size,), generator=generator).numpy()
        target = to_unit(rgb[picks]).to(device)
        with torch.no_grad():
            latents = encoder(target)
        noise = torch.randn(latents.shape, generator=generator).to(device)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            restored = decoder(latents + 0.06 * noise)
        error = restored.float() - target
        edges = error.diff(dim=-1).square().mean() + error.diff(dim=-2).square().mean()
        loss = error.square().mean() + 0.2 * error.abs().mean() + 0.5 * edges
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        on_step(step + 1, float(loss.detach()))
    model.requires_grad_(False).eval()


def peak_signal_to_noise(model: AutoencoderTiny, rgb: NDArray[np.uint8]) -> float:
    """Return the peak signal-to-noise ratio, in dB, of reconstructions of images uint8 (N, H, W, 3)."""
    import torch

    with torch.no_grad():
        target = to_unit(rgb)
        restored = model.decoder(model.encoder(target)).clamp(-1, 1)
        error = float(((restored - target) / 2).square().mean())
    return float(-10 * np.log10(error))
