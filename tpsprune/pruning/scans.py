"""Channels of selective scans (Mamba), which no trace can follow: weights are used outside their layers.

A channel of the scan is one of the first half of what ``in_proj`` gives and its gate, one of the second; a
kernel of the depthwise convolution, a row of ``A_log``, an element of ``D``, and a step that ``dt_proj``
gives. ``x_proj`` and ``out_proj`` mix them. Nothing here is proved; ``trial`` does that.

Source: Gu and Dao 2023, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces"
(arXiv:2312.00752).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from torch import Tensor, nn

from tpsprune.pruning.groups import Attribute, Consumer, Group, Slice
from tpsprune.pruning.layers import Side, is_depthwise, is_mixer, length

LAYERS: Final = ("in_proj", "conv1d", "x_proj", "dt_proj", "out_proj")


def propose_scan_groups(model: nn.Module) -> Iterator[Group]:
    """Yield a group of channels for each selective scan, recognised by the names of its layers and sizes."""
    for place, scan in model.named_modules():
        channels = _count_channels(scan)
        if not channels:
            continue
        name = {layer: f"{place}.{layer}" if place else layer for layer in LAYERS}
        own = [f"{place}.{tensor}" if place else tensor for tensor in ("A_log", "D")]
        given = [
            Slice(f"{name[layer]}.{tensor}", 0, 0, 1, *((2, channels) if layer == "in_proj" else ()))
            for layer in ("in_proj", "conv1d", "dt_proj")
            for tensor in ("weight", "bias")
        ]
        read = [Slice(f"{name[layer]}.weight", 1, 0, 1) for layer in ("x_proj", "out_proj")]
        yield Group(
            name=name["in_proj"],
            width=channels,
            producers=(name["in_proj"], name["dt_proj"]),
            members=(name["conv1d"],),
            consumers=tuple(Consumer(name[layer], 0, 1) for layer in ("x_proj", "out_proj")),
            slices=(*given, *(Slice(tensor, 0, 0, 1) for tensor in own), *read),
            attributes=tuple(
                Attribute(place, number, value // channels)
                for number, value in vars(scan).items()
                if type(value) is int and value in (channels, 2 * channels)
            ),
        )


def _count_channels(scan: nn.Module) -> int:
    """Return how many channels a module scans; none where it is no selective scan."""
    layers = dict(scan.named_children())
    decay, skip = getattr(scan, "A_log", None), getattr(scan, "D", None)
    if not (isinstance(decay, Tensor) and isinstance(skip, Tensor) and layers.keys() >= set(LAYERS)):
        return 0
    channels = len(skip)
    sides: dict[str, tuple[Side, int]] = {
        "in_proj": ("out", 2 * channels),
        "x_proj": ("in", channels),
        "dt_proj": ("out", channels),
        "out_proj": ("in", channels),
    }
    fits = all(
        is_mixer(layers[name]) and length(layers[name], side) == size for name, (side, size) in sides.items()
    )
    return channels if fits and decay.shape[:1] == skip.shape and is_depthwise(layers["conv1d"]) else 0
