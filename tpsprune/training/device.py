"""Where and in which numbers a run computes."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tpsprune.errors import DeviceError
from tpsprune.numerics.trees import Tree, map_tensors
from tpsprune.recipe.train import Train

__all__ = ["Execution", "choose_device", "prepare_process"]


@dataclass(frozen=True, slots=True)
class Execution:
    """A device and how it is used; ``autocast`` is the type of mixed-precision kernels, if any."""

    device: torch.device
    autocast: torch.dtype | None
    channels_last: bool

    @classmethod
    def of(cls, settings: Train, device: torch.device) -> Execution:
        """Settle the recipe's ``auto`` words for ``device``."""
        fast_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        wants_bfloat16 = settings.precision == "bfloat16" or (settings.precision == "auto" and fast_bfloat16)
        wants_channels_last = settings.memory_format == "channels-last" or (
            settings.memory_format == "auto" and device.type == "cuda"
        )
        return cls(device, torch.bfloat16 if wants_bfloat16 else None, wants_channels_last)

    def autocasting(self) -> torch.autocast:
        """Return the context in which forward passes run; one that does nothing without autocast."""
        return torch.autocast(
            self.device.type, dtype=self.autocast or torch.bfloat16, enabled=self.autocast is not None
        )

    def place(self, model: nn.Module) -> nn.Module:
        """Move ``model`` to the device, its convolutions channels-last where that is wanted."""
        model = model.to(self.device)
        if self.channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model

    def arrange(self, inputs: Tree) -> Tree:
        """Lay the images of a batch out as the model's convolutions want them."""
        return map_tensors(inputs, _channels_last) if self.channels_last else inputs

    @property
    def width_step(self) -> int:
        """Return what layer widths had better be multiples of: 8 where CUDA computes in bfloat16, else 1.

        On an H100 a training step of ResNet-20 (batch 512, channels last) took 12.1 ms at a first width of
        64, but 18.7 at 60, 14.5 at 56, 11.7 at 48, 15.8 at 44, 11.7 at 40 and 7.8 at 32: few operations
        less are no time less, and an uneven width is time more.
        """
        return 8 if self.device.type == "cuda" and self.autocast is not None else 1

    def describe(self) -> str:
        """Return the device in words, for records: ``cpu`` or the GPU's name."""
        if self.device.type == "cuda":
            return f"cuda ({torch.cuda.get_device_name(self.device)})"
        return self.device.type


def choose_device(word: str) -> torch.device:
    """Return the device for ``auto``, ``cpu`` or ``cuda``.

    Raises:
        DeviceError: ``cuda`` was asked for and there is none.
    """
    if word == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            "--device cuda: no CUDA device is available to this PyTorch "
            f"({torch.__version__}); use --device cpu or auto"
        )
    if word == "auto":
        word = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(word)


def prepare_process(settings: Train, seed: int, device: torch.device) -> None:
    """Fix threads, seeds and kernels of this process, so that CPU runs repeat bit for bit.

    On a GPU kernels stay free to choose their order of summation: equal seeds give close runs there, not
    equal ones.
    """
    torch.set_num_threads(settings.threads or _usable_cores())
    torch.manual_seed(seed)
    # The other way to ask for this, use_deterministic_algorithms, imports the compiler: seconds of start.
    torch.set_deterministic_debug_mode("warn" if device.type == "cpu" else "default")
    # Filling fresh memory with NaN on each allocation would be paid on every step for nothing.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    # float32 is to mean float32: a cut is verified to a precision that TF32 does not have.
    torch.backends.cudnn.allow_tf32 = False


def _channels_last(part: Tensor) -> Tensor:
    return part.contiguous(memory_format=torch.channels_last) if part.ndim == 4 else part


def _usable_cores() -> int:
    """Return the cores this process may run on, which in a container are fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
