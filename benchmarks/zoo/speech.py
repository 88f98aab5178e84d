"""Synthesised speech with pauses, in noise, and which windows of it have speech in them.

flite and eSpeak NG read real sentences aloud; noise is white, pink, a hum of the mains, or the babble of six.
Shape letters: n clips, t samples, w windows, f frequencies.
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import tempfile
import wave
from pathlib import Path

import numpy as np
import torch
from scipy.signal import resample_poly
from torch import Tensor

from benchmarks.zoo.places import Missing
from benchmarks.zoo.silero import WINDOW
from benchmarks.zoo.texts import docstrings, help_topics

RATE_HZ = 16_000
SENTENCES, CLIP_WINDOWS = 40, 32
SNRS_DB = (0, 5, 10, 20)
NOISES = ("white", "pink", "hum", "babble")
SPEECH_DB = -35
"""A window has speech in it if it is not quieter than this, clean, beside the voice's loudness."""
VOICES = {
    "calibration": ("flite rms", "flite kal16", "espeak-ng en-us", "espeak-ng en-gb+f3"),
    "test": ("flite slt", "flite awb", "espeak-ng en-gb-scotland", "espeak-ng en-us+f2"),
}


def clips(count: int, seed: int, part: str) -> tuple[Tensor, Tensor]:
    """Return clips (n, t) of one second, and which of their windows have speech in them (n, w).

    ``part`` is ``calibration`` or ``test``: other voices and other sentences. Noise kinds and ratios take
    turns; the loudness of the voice is drawn between -40 and -20 dB of full scale.

    Raises:
        Missing: a program that speaks is not installed.
    """
    streams = [stream(part, voice) for voice in VOICES[part]]
    generator = torch.Generator().manual_seed(seed)
    length = CLIP_WINDOWS * WINDOW
    noisy, speech = [], []
    for number in range(count):
        voice, kind = number % len(streams), number // len(streams) % len(NOISES)
        ratio_db = SNRS_DB[number // len(streams) // len(NOISES) % len(SNRS_DB)]
        clean_t = _part(streams[voice], length, generator)
        noise_t = noise(NOISES[kind], length, streams, generator)
        loudness = 10 ** (torch.empty(()).uniform_(-40, -20, generator=generator) / 20)
        noisy.append(loudness * (clean_t + 10 ** (-ratio_db / 20) * noise_t))
        power_w = clean_t.unflatten(0, (CLIP_WINDOWS, WINDOW)).square().mean(1)
        speech.append(power_w >= 10 ** (SPEECH_DB / 10))
    return torch.stack(noisy), torch.stack(speech)


def noise(kind: str, length: int, streams: list[Tensor], generator: torch.Generator) -> Tensor:
    """Return noise (t) of a mean square of one."""
    if kind == "babble":
        found_t = torch.stack(
            [_part(streams[number % len(streams)], length, generator) for number in range(6)]
        ).sum(0)
    elif kind == "hum":
        phase_f, size_f = (
            2 * torch.pi * torch.rand(12, generator=generator),
            torch.rand(12, generator=generator),
        )
        hertz_f = 50.0 * torch.arange(1, 13)
        angle_ft = 2 * torch.pi * hertz_f[:, None] * torch.arange(length) / RATE_HZ + phase_f[:, None]
        found_t = (size_f[:, None] * torch.sin(angle_ft)).sum(0)
        found_t = found_t + 0.1 * torch.randn(length, generator=generator)
    else:
        found_t = torch.randn(length, generator=generator)
        if kind == "pink":
            spectrum_f = torch.fft.rfft(found_t)
            spectrum_f = spectrum_f / torch.arange(len(spectrum_f)).clamp(min=1).sqrt()
            found_t = torch.fft.irfft(spectrum_f, length)
    return found_t / found_t.square().mean().sqrt()


@functools.cache
def stream(part: str, voice: str) -> Tensor:
    """Return a voice reading sentences, pauses of 0.3 to 2 s between them; speech has mean square one."""
    generator = torch.Generator().manual_seed(VOICES[part].index(voice))
    texts = docstrings() if part == "calibration" else help_topics()[1]
    chosen = sentences(texts)[VOICES[part].index(voice) * SENTENCES :][:SENTENCES]
    pieces = []
    for text in chosen:
        pause = torch.empty(()).uniform_(0.3, 2.0, generator=generator)
        pieces += [spoken(voice, text), torch.zeros(int(pause * RATE_HZ))]
    whole_t = torch.cat(pieces)
    power_w = whole_t[: len(whole_t) // WINDOW * WINDOW].unflatten(0, (-1, WINDOW)).square().mean(1)
    return whole_t / power_w[power_w > power_w.mean() / 10].mean().sqrt()


def sentences(texts: list[str]) -> list[str]:
    """Return the sentences of seven words or more that are nothing but words, each once."""
    whole = (each for text in texts for each in re.split(r"(?<=[.?!])\s+", text))
    return list(
        dict.fromkeys(each for each in whole if re.fullmatch(r"[A-Z][a-z]*( [a-zA-Z,]+){6,20}\.", each))
    )


def spoken(voice: str, text: str) -> Tensor:
    """Return samples (t) at 16 kHz of a text read aloud.

    Raises:
        Missing: the program that speaks is not installed.
    """
    program, name = voice.split()
    if shutil.which(program) is None:
        raise Missing(f"{program} is not installed: `apt-get install flite espeak-ng` brings what speaks")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "spoken.wav"
        to_file = ["-voice", name, "-t", text, "-o"] if program == "flite" else ["-v", name, text, "-w"]
        subprocess.run([program, *to_file, str(file)], check=True)
        with wave.open(str(file)) as read:
            rate = read.getframerate()
            samples = np.frombuffer(read.readframes(read.getnframes()), dtype="<i2") / 2**15
    return torch.from_numpy(resample_poly(samples, RATE_HZ, rate)).float()


def _part(whole_t: Tensor, length: int, generator: torch.Generator) -> Tensor:
    start = int(torch.randint(len(whole_t) - length, (), generator=generator))
    return whole_t[start : start + length]
