"""Parameters that no layer holds: positions, a class token, a scale. The gradient says whose they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tpsprune.numerics.forward import call_model
from tpsprune.pruning.groups import Group, GroupCut, Slice
from tpsprune.pruning.layout import element_index
from tpsprune.pruning.surgery import silence
from tpsprune.pruning.trial import half_of, put_back, scalar

__all__ = ["on_the_stream"]


def on_the_stream(
    subject: nn.Module, group: Group, bare: Mapping[str, nn.Parameter], batch: Any
) -> tuple[Slice, ...]:
    """Return where bare parameters hold something for each unit of a group: on its stream, or gating it.

    Along an axis that is laid out as some tensor of the group is, or one element per unit, the gradient of
    the output is zero exactly where the silenced model does not listen, and nowhere else altogether.

    Cost: one pass forward and backward where a bare parameter has an axis of such a length, else none.
    """
    shapes = dict(subject.named_parameters())
    layouts = {
        (each.offset, each.block, each.repeat, each.stride): shapes[each.tensor].shape[each.axis]
        for each in group.slices
        if each.tensor in shapes
    }
    layouts[0, 1, 1, 0] = group.width
    held = {each.tensor for each in group.slices}
    places = [
        Slice(name, axis, *layout)
        for name, parameter in bare.items()
        if name not in held
        for axis, long in enumerate(parameter.shape)
        for layout, length in layouts.items()
        if length == long
    ]
    if not places:
        return ()
    cut = half_of(group)
    found = _gradients(subject, group, cut, list(dict.fromkeys(place.tensor for place in places)), batch)
    answer: dict[str, Slice] = {}
    for place in places:
        gradient = found.get(place.tensor)
        if gradient is None or place.tensor in answer:
            continue
        index = element_index(place, group.width, gradient.device)
        rows = gradient.movedim(place.axis, 0)
        if not rows[index[list(cut.removed)].flatten()].any() and rows[index[list(cut.kept)].flatten()].any():
            answer[place.tensor] = place
    return tuple(answer.values())


def _gradients(
    subject: nn.Module, group: Group, cut: GroupCut, names: list[str], batch: Any
) -> dict[str, Tensor | None]:
    """Return the gradients of parameters while the model is deaf to a group; none if it cannot be."""
    with put_back(subject, (group,)), torch.enable_grad():
        try:
            silence(subject, group, cut.removed)
            own = dict(subject.named_parameters())
            wanted = [own[name].requires_grad_(True) for name in names]
            total = scalar(call_model(subject, batch))
        # A wrong guess at where units lie; the trial will say so.
        except Exception:  # noqa: BLE001
            return {}
        if not total.requires_grad:
            return {}
        return dict(zip(names, torch.autograd.grad(total, wanted, allow_unused=True), strict=True))
