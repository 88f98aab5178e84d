"""The cut itself: a copy of a model whose tensors hold only the units that stay, bit for bit."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from tpsprune.errors import PruneError
from tpsprune.pruning.groups import Group, GroupCut
from tpsprune.pruning.layers import input_axis, mixer, refit, units_first
from tpsprune.pruning.layout import element_index

__all__ = ["Elements", "cut_copy", "cut_in_place", "elements_kept", "fresh_copy", "silence", "take"]

Elements = dict[str, dict[int, Tensor]]
"""By tensor name and axis, the elements that stay, in the numbering of the dense model."""


def elements_kept(shapes: Mapping[str, Sequence[int]], cuts: Sequence[GroupCut]) -> Elements:
    """Return which elements of which axes stay; axes that lose nothing are left out.

    Args:
        shapes: of the dense model's tensors, by name.
        cuts: one for each group; several may share an axis, as after a concatenation, and some may
            name a bias that is not there.
    """
    stays: dict[str, dict[int, Tensor]] = defaultdict(dict)
    for cut in cuts:
        units = torch.zeros(cut.width, dtype=torch.bool)
        units[list(cut.kept)] = True
        for slice_ in (each for each in cut.slices if each.tensor in shapes):
            length = shapes[slice_.tensor][slice_.axis]
            axis = stays[slice_.tensor].setdefault(slice_.axis, torch.ones(length, dtype=torch.bool))
            axis[element_index(slice_, cut.width)[~units].flatten()] = False
    return {
        tensor: {axis: mask.nonzero().squeeze(1) for axis, mask in axes.items() if not mask.all()}
        for tensor, axes in stays.items()
    }


def take(tensor: Tensor, axes: Mapping[int, Tensor]) -> Tensor:
    """Return the elements that stay along each axis, in the memory format the tensor had."""
    taken = tensor
    for axis, elements in axes.items():
        taken = taken.index_select(axis, elements.to(tensor.device))
    channels_last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.ndim)
    if channels_last and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=channels_last):
        return taken.contiguous(memory_format=channels_last)
    return taken


def fresh_copy(model: nn.Module) -> nn.Module:
    """Return a deep copy of a model, to be worked on in its place.

    Raises:
        PruneError: the model cannot be copied, as where masks or the old weight norm hold a weight that
            is computed anew on every call.
    """
    try:
        return copy.deepcopy(model)
    except RuntimeError as error:
        raise PruneError(
            f"the model cannot be copied ({str(error).split('. ')[0]}); make masks and weight norms "
            "permanent first (torch.nn.utils.prune.remove, torch.nn.utils.remove_weight_norm)"
        ) from error


def cut_copy(model: nn.Module, cuts: Sequence[GroupCut]) -> nn.Module:
    """Return a copy of ``model`` without the units that go; what stays is equal bit for bit.

    Modes, devices, number types, memory formats and ``requires_grad`` flags are those of ``model``.
    Parameters that lose elements are new objects: an optimizer has to be made anew.
    """
    ticket = fresh_copy(model)
    cut_in_place(ticket, cuts)
    return ticket


def cut_in_place(model: nn.Module, cuts: Sequence[GroupCut]) -> None:
    """Cut ``model`` itself; see ``cut_copy``."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict(keep_vars=True).items()}
    for name, axes in elements_kept(shapes, cuts).items():
        owner, _, tensor_name = name.rpartition(".")
        module = model.get_submodule(owner)
        old: Tensor = getattr(module, tensor_name)
        new = take(old.detach(), axes)
        setattr(
            module,
            tensor_name,
            nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new,
        )
        if isinstance(module, _NormBase):
            module.num_features = len(new)
        refit(module)


def silence(model: nn.Module, group: Group, removed: Sequence[int]) -> None:
    """Make the consumers of a group deaf to some of its units, in place: the cut, at the old shape."""
    with torch.no_grad():
        for consumer in group.consumers:
            module = mixer(model, consumer.module)
            rows = units_first(
                module.weight, input_axis(module), consumer.offset, group.width, consumer.block
            )
            rows[list(removed)] = 0.0
