"""How large a model is: figures that are the same on every machine."""

from __future__ import annotations

from typing import Any

from torch import nn

from tpsprune.numerics.forward import count_macs
from tpsprune.records import Size
from tpsprune.runs.tensors import file_bytes

__all__ = ["size"]


def size(model: nn.Module, batch: Any) -> Size:
    """Weigh a model: parameters, multiply-accumulates per item of ``batch``, bytes on disk.

    A parameter that several modules share is counted once. Bytes are those of the state dict as
    safetensors, to the byte: there shared tensors are written in full, once a name, and buffers count.
    Weights set to zero weigh as much as any other; only units that are gone make a model smaller.

    Cost: one forward pass without data.
    """
    return Size(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        macs=count_macs(model, batch).total,
        bytes=file_bytes(model.state_dict()),
    )
