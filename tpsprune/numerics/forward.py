"""The forward pass: how a model is called, in which mode and precision, and what it multiplies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import fields, is_dataclass
from math import inf
from typing import Any, Final

import torch
from torch import Tensor, nn

from tpsprune.numerics.trees import WholeBatch, WithCalls

HALF_PRECISION: Final = (torch.float16, torch.bfloat16)


def call_model(model: nn.Module, batch: Any) -> Any:
    """Call ``model`` on a batch: a mapping by keyword, a tuple by position, all else as one argument.

    Of a batch with other calls (``WithCalls``) the outputs of all come back, in a list.
    """
    if isinstance(batch, WithCalls):
        inputs = batch.data.data if isinstance(batch.data, WholeBatch) else batch.data
        return [call_model(model, batch.data), *(call(model, inputs) for call in batch.also)]
    if isinstance(batch, WholeBatch):
        batch = batch.data
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, tuple):
        return model(*batch)
    return model(batch)


def logits_of(output: Any) -> Tensor:
    """Return the tensor of scores in a model's output: itself, ``.logits``, ``['logits']``, or the first.

    Raises:
        TypeError: there is no tensor there.
    """
    if isinstance(output, Mapping) and "logits" in output:
        output = output["logits"]
    elif hasattr(output, "logits"):
        output = output.logits
    elif isinstance(output, tuple | list) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise TypeError(f"the model returned {type(output).__name__}, where a tensor of scores is needed")
    return output


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[nn.Module]:
    """Set every module to evaluation mode, and restore each module's mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def fixed_seed(seed: int = 0) -> Iterator[None]:
    """Have torch draw the same random numbers on every entry; afterwards its generators are as they were."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


def random_state() -> tuple[Tensor, ...]:
    """Return the states of the generators that a forward pass draws from."""
    return (torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_available() else []))


def set_random_state(state: tuple[Tensor, ...]) -> None:
    """Restore what ``random_state`` returned."""
    torch.set_rng_state(state[0])
    for of_cuda in state[1:]:
        torch.cuda.set_rng_state(of_cuda)


@contextmanager
def training_mode(model: nn.Module) -> Iterator[nn.Module]:
    """Set every module to training mode but those that would count what passes, and restore each one's."""
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    for module, _ in modes:
        if getattr(module, "track_running_stats", False):
            module.eval()
    try:
        yield model
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def observe_inputs(
    model: nn.Module, names: Iterable[str], observe: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Call ``observe(name, input)`` whenever a named layer is about to be called."""
    with ExitStack() as stack:
        for name in names:

            def hook(
                _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str = name
            ) -> None:
                if (inputs := first_input(args, kwargs)) is not None:
                    observe(name, inputs)

            handle = model.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        yield


def first_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Return the first tensor that a layer is called with, by position or by name; none if it is empty."""
    inputs = next(iter((*args, *kwargs.values())), None)
    return inputs.detach() if isinstance(inputs, Tensor) and inputs.ndim and inputs.numel() else None


def widened(tensor: Tensor) -> Tensor:
    """Return ``tensor`` in float64, or in float32 where its device has nothing wider (Apple's MPS)."""
    return tensor.to(torch.float32 if tensor.device.type == "mps" else torch.float64)


def has_strided_pointwise(model: nn.Module, below: float = inf) -> bool:
    """Return whether some 1 × 1 convolution skips pixels, and reads fewer channels than ``below``."""
    return any(
        isinstance(each, nn.Conv2d)
        and each.kernel_size == (1, 1)
        and each.stride != (1, 1)
        and each.in_channels // each.groups < below
        for each in model.modules()
    )


def is_without_avx512() -> bool:
    """Return whether the kernels of this processor are narrower than 16 numbers."""
    return torch.backends.cpu.get_cpu_capability() != "AVX512"


@contextmanager
def sound_backward(model: nn.Module) -> Iterator[None]:
    """Keep off a kernel of oneDNN that writes beyond its memory, for a pass forward and backward.

    The gradient of a strided 1 × 1 convolution's weight, channels-last and with fewer than eight inputs,
    overruns a buffer on processors without AVX-512 (torch 2.13: "double free or corruption" some calls
    later).
    """
    enabled = torch._C._get_mkldnn_enabled()
    if enabled and is_without_avx512() and has_strided_pointwise(model, below=8):
        torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(enabled)


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute float32 products on a GPU in float32, not in TF32, until the block is left."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def flat_tensors(output: Any) -> Iterator[Tensor]:
    """Yield every floating-point tensor in a model's output, however it is nested."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
        return
    parts: Any = ()
    if isinstance(output, Mapping):
        parts = output.values()
    elif isinstance(output, tuple | list):
        parts = output
    elif is_dataclass(output) and not isinstance(output, type):
        parts = [getattr(output, field.name) for field in fields(output)]
    for part in parts:
        yield from flat_tensors(part)


def item_tensors(output: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors that have an axis of items: no loss, no single number."""
    return (tensor for tensor in flat_tensors(output) if tensor.ndim)
