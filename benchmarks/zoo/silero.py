"""Silero VAD at 16 kHz, with its package's weights: how likely there is speech in a window of 32 ms.

Architecture: ``tinygrad_model.py`` of PyPI's ``silero-vad`` (MIT). What the package runs is a script, which
cannot be pruned; this has the script's weights and gives its probabilities. (The package's safetensors file
is of another training.) Shape letters: n clips, t samples, w windows, s samples of a window, c channels.
"""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.zoo.places import Missing

WINDOW, CONTEXT = 512, 64


@final
class Silero(nn.Module):
    """309,633 weights: a spectrum, four convolutions and an LSTM over the windows of a clip."""

    def __init__(self) -> None:
        super().__init__()
        self.spectrum = nn.Conv1d(1, 258, 256, stride=128, bias=False)
        self.convs = nn.Sequential(
            *(nn.Conv1d(129, 128, 3, padding=1), nn.ReLU(), nn.Conv1d(128, 64, 3, stride=2, padding=1)),
            *(nn.ReLU(), nn.Conv1d(64, 64, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Conv1d(64, 128, 3, padding=1), nn.ReLU()),
        )
        self.lstm = nn.LSTM(128, 128, batch_first=True)
        self.head = nn.Linear(128, 1)

    def forward(self, clips_nt: Tensor) -> Tensor:
        """Return the probability of speech in each window of 512 samples (n, w); clips are whole windows."""
        windows_nws = functional.pad(clips_nt, (CONTEXT, 0)).unfold(1, CONTEXT + WINDOW, WINDOW)
        padded = functional.pad(windows_nws.flatten(0, 1), (0, CONTEXT), "reflect")
        real, imaginary = self.spectrum(padded[:, None]).chunk(2, 1)
        found = self.convs((real.square() + imaginary.square()).sqrt())
        states_nwc, _ = self.lstm(found[:, :, 0].unflatten(0, windows_nws.shape[:2]))
        return torch.sigmoid(self.head(states_nwc.relu()))[:, :, 0]


def silero() -> Silero:
    """Return the trained net; the spectrum is no weight of it, and stays frozen.

    Raises:
        Missing: the package is not installed.
    """
    shipped = [value for name, value in script().state_dict().items() if name.startswith("_model.")]
    shipped[-2] = shipped[-2][:, :, 0]  # The head was a convolution over one place.
    model = Silero()
    model.load_state_dict(dict(zip(model.state_dict(), shipped, strict=True)))
    model.spectrum.requires_grad_(requires_grad=False)
    return model.eval()


def script() -> torch.jit.ScriptModule:
    """Return the package's own model: called with a window (n, 512) and the rate, it keeps its state.

    Raises:
        Missing: the package is not installed.
    """
    package = find_spec("silero_vad")
    if package is None or package.origin is None:
        raise Missing("silero-vad is not installed: `pip install --no-deps silero-vad` brings its weights")
    with warnings.catch_warnings():  # Scripts are on their way out of PyTorch; its weights are in this one.
        warnings.simplefilter("ignore")
        found: torch.jit.ScriptModule = torch.jit.load(Path(package.origin).parent / "data/silero_vad.jit")
    return found.eval()
