"""Where and in which numbers a run computes, and the randomness that a resumed run repeats.

Order and augmentation follow from (seed, position) alone; dropout from the generators' state.
"""

from __future__ import annotations

import ctypes
import os
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tpsprune.errors import DeviceError
from tpsprune.numerics.forward import has_strided_pointwise, is_without_avx512
from tpsprune.numerics.trees import Tree, map_tensors
from tpsprune.recipe.train import Train

_ORDER, _AUGMENT, _STEP = 1, 2, 3
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""As ``malloc.h`` numbers them."""
_ALL_KEPT, _NONE_KEPT = (2**30, 2**31 - 1), (2**16, 2**16)
"""Bytes from which a tensor is a mapping of its own, and from which freed memory is given back."""


@dataclass(frozen=True, slots=True)
class Execution:
    """A device and how it is used; ``autocast`` is the type of mixed-precision kernels, if any.

    ``compiles``: training steps go through ``torch.compile``.
    """

    device: torch.device
    autocast: torch.dtype | None
    channels_last: bool
    compiles: bool = False

    @classmethod
    def of(cls, settings: Train, device: torch.device, model: nn.Module | None = None) -> Execution:
        """Resolve the recipe's ``auto`` settings for ``device`` and, on a CPU, for ``model`` (the dense one).

        Channels-last is chosen by a rule, never by the clock: the order of summation follows from the layout,
        so a timing would decide the bits of a ticket, and two arms might differ in them. By the rule it
        follows from recipe and machine alone: a resumed run, and every arm of a comparison, has the same.

        The rule on a CPU: channels-last where oneDNN computes and some convolution has a kernel larger than
        its stride. A patch embedding is none: of a ViT little else is convolution. Processor time of a
        training step, channels-last to contiguous (torch 2.13, AMD EPYC with AVX-512, one thread, by turns):
        the CNNs of ``digits`` 0.78 and ``fashion-mnist`` 0.79 (with odd widths 0.65), ResNet-20 0.80,
        MobileNetV2 0.65, EfficientNet-Lite0 0.52, DenseNet-121 0.82, ResNet-18 0.93 to 0.97; no gain in
        ConvNeXt (1.00) and a ViT (1.00); a loss where weights outweigh the images, as in ResNet-18 with 16
        images of 64 pixels (1.05 to 1.10) or a CNN of 4, 6 and 8 channels (1.09): there use
        ``contiguous``. Where a 1 × 1 convolution skips pixels, as in a ResNet, not without AVX-512: a ticket
        of fewer than eight channels would meet the fault of ``sound_backward``.
        """
        fast_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        wants_bfloat16 = settings.precision == "bfloat16" or (settings.precision == "auto" and fast_bfloat16)
        # fully_shard takes weights whose elements lie in order.
        is_free = settings.memory_format == "auto" and settings.spread != "shard"
        wants_channels_last = settings.memory_format == "channels-last" or (
            is_free and (device.type == "cuda" or _gains_on_cpu(model))
        )
        return cls(device, torch.bfloat16 if wants_bfloat16 else None, wants_channels_last, settings.compile)

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

    def compiled(self, model: nn.Module) -> nn.Module:
        """Return ``model``, or where that is wanted a compiled module that shares its tensors.

        Nothing compiled before is used again, in memory or on disk: a ticket is code of the dense model at
        other widths, of which torch compiles few and then none without a word; and an arm that found
        another's code would be spared what the other was charged. On a GPU with CUDA graphs where torch
        finds that they hold. The work is done at the first call and its backward pass, seconds to minutes.
        """
        if not self.compiles:
            return model
        torch.compiler.reset()
        mode = "reduce-overhead" if self.device.type == "cuda" else "default"
        compiled: nn.Module = torch.compile(model, dynamic=False, mode=mode)  # type: ignore[assignment]
        return compiled

    def arrange(self, inputs: Tree) -> Tree:
        """Lay the images of a batch out as the model's convolutions want them."""
        return map_tensors(inputs, _channels_last) if self.channels_last else inputs

    def describe(self) -> str:
        """Return device and layout for records: ``cpu, channels-last`` or the GPU's name in place of it."""
        layout = ", channels-last" if self.channels_last else ""
        if self.device.type == "cuda":
            return f"cuda ({torch.cuda.get_device_name(self.device)}){layout}"
        return f"{self.device.type}{layout}"


def choose_device(name: str) -> torch.device:
    """Return the device for ``auto``, ``cpu`` or ``cuda``; where a launcher started several, its own GPU.

    Raises:
        DeviceError: ``cuda`` was requested and there is none, or fewer than processes on this machine.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            "--device cuda: no CUDA device is available to this PyTorch "
            f"({torch.__version__}); use --device cpu or auto"
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    local, started = _local_rank()
    if name != "cuda" or started == 1:
        return torch.device(name)
    if started > torch.cuda.device_count():
        raise DeviceError(
            f"--device cuda: {started} processes were started on this machine, which has "
            f"{torch.cuda.device_count()} GPUs: start as many as there are GPUs"
        )
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    return device


def _local_rank() -> tuple[int, int]:
    """Return the number of this process on its machine, and of how many, as torchrun and others set them."""
    return int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def prepare_process(settings: Train, seed: int, device: torch.device) -> None:
    """Fix threads, seeds and kernels of this process, so that CPU runs repeat bit for bit.

    On a GPU kernels are free to choose their order of summation: equal seeds give close runs there, not
    equal ones.
    """
    torch.set_num_threads(settings.threads or max(1, _usable_cores() // _local_rank()[1]))
    _keep_freed_memory(_NONE_KEPT if settings.spread == "shard" else _ALL_KEPT)
    torch.manual_seed(seed)
    # The other way to request this, use_deterministic_algorithms, imports the compiler: seconds of start.
    torch.set_deterministic_debug_mode("warn" if device.type == "cpu" else "default")
    # Filling fresh memory with NaN on each allocation would be paid on every step for nothing.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    # float32 is to mean float32: pruning is verified to a precision that TF32 does not have.
    torch.backends.cudnn.allow_tf32 = False


def _keep_freed_memory(thresholds: tuple[int, int]) -> None:
    """Have the GNU C library keep what is freed for the next tensor, or not, for the rest of this process.

    By default a large tensor is a fresh mapping each time, and its first use a fault for every 4 KiB: of a
    training step of a CNN on 28 × 28 pixels, batch 128, that was 14 % of the processor time on one thread,
    and a third on two, which wait for each other there. The price: the process holds what it held at most;
    of a model whose blocks open one after another, 1.54 GB where it needs 1.04 (67 million parameters).
    Other C libraries are left as they are.

    Source: mallopt(3), M_MMAP_THRESHOLD and M_TRIM_THRESHOLD.
    """
    if "CS_GNU_LIBC_VERSION" not in os.confstr_names:
        return
    allocator = ctypes.CDLL(None)
    allocator.mallopt(_MMAP_THRESHOLD, thresholds[0])
    allocator.mallopt(_TRIM_THRESHOLD, thresholds[1])


def require_compiler(device: torch.device) -> None:
    """Compile one addition, so that what is missing is known before a run begins.

    Raises:
        DeviceError: it fails, mostly for want of a C++ compiler.
    """
    import torch.compiler.config

    # Else an arm that finds the code of another on disk is spared seconds that the other was charged.
    torch.compiler.config.force_disable_caches = True
    warnings.filterwarnings("ignore", message="dynamo_pgo force disabled")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # imports of torch's own warn
            torch.compile(lambda tensor: tensor + 1)(torch.zeros(8, device=device))
    except RuntimeError as error:  # what torch raises when compiling fails is of this kind
        reason = str(error).strip().splitlines()[0]
        raise DeviceError(
            f"train.compile: torch.compile does not work here: {reason}; install a C++ compiler (g++, or one "
            "that CXX names), or use train.compile = false"
        ) from error


def _gains_on_cpu(model: nn.Module | None) -> bool:
    """Return whether ``Execution.of`` has this model compute channels-last on a CPU."""
    if model is None or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if is_without_avx512() and has_strided_pointwise(model):
        return False
    return any(
        any(kernel > stride for kernel, stride in zip(module.kernel_size, module.stride, strict=True))
        for module in model.modules()
        if isinstance(module, nn.Conv2d)
    )


def _channels_last(part: Tensor) -> Tensor:
    return part.contiguous(memory_format=torch.channels_last) if part.ndim == 4 else part


def _usable_cores() -> int:
    """Return the cores this process may run on, which in a container are fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def epoch_order(items: int, seed: int, epoch: int) -> Tensor:
    """Return the order in which epoch number ``epoch`` visits ``items`` items; depends on nothing else."""
    return torch.randperm(items, generator=_generator(seed, _ORDER, epoch))


def augmentation_generator(seed: int, epoch: int) -> torch.Generator:
    """Return the generator of one epoch's augmentation; depends on nothing but seed and epoch."""
    return _generator(seed, _AUGMENT, epoch)


def step_seed(seed: int, position: int) -> int:
    """Return the seed of dropout and the like in one shard of one step."""
    return _mixed(seed, _STEP, position)


def random_state() -> dict[str, Tensor]:
    """Return the state of PyTorch's own generators (dropout draws from them), one tensor each."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state |= {f"cuda.{index}": item for index, item in enumerate(torch.cuda.get_rng_state_all())}
    return state


def load_random_state(state: dict[str, Tensor]) -> None:
    """Restore PyTorch's generators to what ``random_state`` returned, but for GPUs that are not here."""
    torch.set_rng_state(state["cpu"])
    for name, item in state.items():
        index = int(name.removeprefix("cuda.")) if name.startswith("cuda.") else None
        if index is not None and index < torch.cuda.device_count():
            torch.cuda.set_rng_state(item, index)


def _generator(seed: int, purpose: int, position: int) -> torch.Generator:
    return torch.Generator().manual_seed(_mixed(seed, purpose, position))


def _mixed(seed: int, purpose: int, position: int) -> int:
    # Odd multipliers keep distinct (seed, purpose, position) distinct modulo 2^63 for all practical runs.
    return (
        seed * 6364136223846793005 + purpose * 1442695040888963407 + position * 2862933555777941757
    ) % 2**63
