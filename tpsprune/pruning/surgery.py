"""Pruning at the level of tensors: a model sliced to the units kept, and the same model masked instead.

The sliced model is the ticket. The masked one computes the same at the old shape, and is what the ticket is
verified against.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tpsprune.errors import PruneError
from tpsprune.pruning.groups import Attribute, Group, PrunedGroup, element_index
from tpsprune.pruning.layers import (
    MaskedNorm,
    length,
    mask_consumer,
    mask_norm,
    mixer,
    norms_over_units,
    tensor_axes,
    tensor_named,
    unmask_norm,
    update_sizes,
)

KeptElements = dict[str, dict[int, Tensor]]
"""By tensor name and axis, the elements kept, in the numbering of the dense model."""


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor in a model's state dict."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict(keep_vars=True).items()}


def elements_kept(shapes: Mapping[str, Sequence[int]], pruned: Sequence[PrunedGroup]) -> KeptElements:
    """Return which elements of which axes are kept; axes that lose nothing are left out.

    Args:
        shapes: of the dense model's tensors, by name.
        pruned: what becomes of each group; several may share an axis, as after a concatenation, and some
            may name a bias that is not there.
    """
    masks: dict[str, dict[int, Tensor]] = defaultdict(dict)
    for group in pruned:
        removed = list(group.removed)
        for each in (each for each in group.slices if each.tensor in shapes):
            whole = torch.ones(shapes[each.tensor][each.axis], dtype=torch.bool)
            mask = masks[each.tensor].setdefault(each.axis, whole)
            mask[element_index(each, group.width)[removed].flatten()] = False
    return {
        tensor: {axis: mask.nonzero().squeeze(1) for axis, mask in axes.items() if not mask.all()}
        for tensor, axes in masks.items()
    }


def take(tensor: Tensor, axes: Mapping[int, Tensor]) -> Tensor:
    """Return the elements kept along each axis, in the memory format that the tensor had."""
    taken = tensor
    for axis, elements in axes.items():
        taken = taken.index_select(axis, elements.to(tensor.device))
    channels_last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.ndim)
    if channels_last and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=channels_last):
        return taken.contiguous(memory_format=channels_last)
    return taken


def copy_model(model: nn.Module) -> nn.Module:
    """Return a deep copy of a model.

    Raises:
        PruneError: the model cannot be copied, as where masks or the old weight norm hold a weight that
            is computed on every call.
    """
    try:
        return copy.deepcopy(model)
    except RuntimeError as error:
        raise PruneError(
            f"the model cannot be copied ({str(error).split('. ')[0]}); make masks and weight norms "
            "permanent first (torch.nn.utils.prune.remove, torch.nn.utils.remove_weight_norm)"
        ) from error


def pruned_copy(model: nn.Module, pruned: Sequence[PrunedGroup]) -> nn.Module:
    """Return a copy of ``model`` without the pruned units; what is kept is equal bit for bit.

    Modes, devices, number types, memory formats and ``requires_grad`` flags are those of ``model``.
    Parameters that lose elements are new objects: an optimizer has to be made again.
    """
    ticket = copy_model(model)
    prune_in_place(ticket, pruned)
    return ticket


def prune_in_place(model: nn.Module, pruned: Sequence[PrunedGroup]) -> None:
    """Slice ``model`` itself; see ``pruned_copy``. A norm that ``mask_units`` replaced is restored first."""
    unmask_norms(model)
    touched: dict[str, nn.Module] = {}
    for name, axes in elements_kept(shapes_of(model), pruned).items():
        owner, _, tensor_name = name.rpartition(".")
        module = touched[owner] = model.get_submodule(owner)
        old: Tensor = getattr(module, tensor_name)
        new = take(old.detach(), axes)
        is_parameter = isinstance(old, nn.Parameter)
        setattr(
            module, tensor_name, nn.Parameter(new, requires_grad=old.requires_grad) if is_parameter else new
        )
    for group in pruned:
        for attribute in group.attributes if group.removed else ():
            holder, name = _holder_of(model, attribute)
            value = getattr(holder, name)
            # It falls in proportion, for a number that follows heads and their width falls with both.
            if isinstance(value, tuple | list):  # A shape of one number remains a shape.
                value = type(value)((value[0] * len(group.kept) // group.width,))
            else:
                value = value * len(group.kept) // group.width
            setattr(holder, name, value)
    for module in touched.values():
        update_sizes(module)


def _holder_of(model: nn.Module, attribute: Attribute) -> tuple[Any, str]:
    """Return what stores a number and under which name: the module, or a configuration of its own.

    Modules share one configuration; the one whose number changes gets a copy.
    """
    module = model.get_submodule(attribute.module)
    inside, _, name = attribute.name.rpartition(".")
    if not inside:
        return module, name
    own = copy.copy(getattr(module, inside))
    setattr(module, inside, own)
    return own, name


def widened_copy(
    like: nn.Module, ticket: nn.Module, groups: Sequence[Group], pruned: Sequence[PrunedGroup]
) -> nn.Module:
    """Return the ticket at the shape of ``like``, the pruned units masked: it computes the same.

    Args:
        like: the model that ``ticket`` was sliced from; its values remain where the ticket has none.
        ticket: with whatever values it has now, and scales held (``hold_scale``).
        groups: that lost units.
        pruned: what became of each.
    """
    masked = copy_model(like)
    values, kept = _tensors_of(ticket), elements_kept(shapes_of(like), pruned)
    theirs = _tensors_of(masked)
    # Of a tensor under several names the one counts under which it was sliced.
    name_of = {id(tensor): name for name, tensor in sorted(theirs.items(), key=lambda each: each[0] in kept)}
    with torch.no_grad():
        for name in name_of.values():
            tensor = theirs[name]
            if axes := kept.get(name):
                every = [axes.get(axis, torch.arange(size)) for axis, size in enumerate(tensor.shape)]
                tensor.detach()[torch.meshgrid(*every, indexing="ij")] = values[name].detach()
            else:
                tensor.copy_(values[name])
        for group, each in zip(groups, pruned, strict=True):
            _scale_queries(masked, group, 1.0 / scale_held(group, len(each.kept)))
    for group, each in zip(groups, pruned, strict=True):
        mask_units(masked, group, each.removed)
    return masked


def _tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers, those too that a state dict leaves out, under all their names."""
    parameters = model.named_parameters(remove_duplicate=False)
    return {**dict(parameters), **dict(model.named_buffers(remove_duplicate=False))}


def scale_held(group: Group, kept: int) -> float:
    """Return by what queries grow where a module makes its scale from the width of its heads: (k / d)^½."""
    return (kept / group.width) ** 0.5 if group.scores and group.scores.scale_follows else 1.0


def hold_scale(ticket: nn.Module, group: Group, kept: int) -> None:
    """Undo, in place, what a module makes of its scale when its heads are ``kept`` wide: q · (kept / d)^½.

    For any group; it does nothing where the module's scale is fixed. To be done once, on the ticket, after it
    is sliced and not on the masked model: there the heads are as wide as they were.
    """
    _scale_queries(ticket, group, scale_held(group, kept))


def _scale_queries(model: nn.Module, group: Group, factor: float) -> None:
    if group.scores is None or factor == 1.0:
        return
    query = group.scores.query
    with torch.no_grad():
        for name in tensor_axes(model.get_submodule(query), "out"):
            if (tensor := tensor_named(model, f"{query}.{name}")) is not None:
                tensor.mul_(factor)


def mask_units(model: nn.Module, group: Group, removed: Sequence[int]) -> None:
    """Mask some units of a group, in place: what pruning them computes, at the old shape.

    The weights by which consumers read them become zero, and the norms among the group's members norm over
    the units kept (each is replaced by a ``layers.MaskedNorm`` with the same parameters). Of a group of head
    width the rows that give the dimensions become zero, in queries and keys.
    """
    units = list(removed)
    if not units:
        return
    for each in group.slices if group.scores is not None else ():
        if (tensor := tensor_named(model, each.tensor)) is not None:
            rows = tensor.detach().movedim(each.axis, 0)
            rows[element_index(each, group.width, rows.device)[units].flatten()] = 0.0
    for consumer in group.consumers:
        mask_consumer(mixer(model, consumer.module), consumer, group.width, units)
    for member in group.members:
        norm = model.get_submodule(member)
        if norms_over_units(norm):
            layout = next(each for each in group.slices if each.module == member)
            elements = element_index(layout, group.width)[units].flatten()
            model.set_submodule(member, mask_norm(norm, length(norm, "both"), elements))


def masked_tensors(group: Group) -> tuple[str, ...]:
    """Return the names of the parameters that ``mask_units`` writes to; a bias among them may be missing."""
    if group.scores is not None:
        return tuple(dict.fromkeys(slice_.tensor for slice_ in group.slices))
    return tuple(dict.fromkeys(f"{consumer.module}.weight" for consumer in group.consumers))


def unmask_norms(model: nn.Module) -> None:
    """Restore, in place, the norms that ``mask_units`` replaced: they norm over every unit again."""
    for name, module in list(model.named_modules()):
        if isinstance(module, MaskedNorm):
            model.set_submodule(name, unmask_norm(module))


def add_biases(model: nn.Module, modules: Sequence[str]) -> None:
    """Give layers without a bias one of zeros, in place; frozen where their weight is."""
    for name in modules:
        weight = mixer(model, name).weight
        zeros_o = torch.zeros(len(weight), dtype=weight.dtype, device=weight.device)
        bias = nn.Parameter(zeros_o, requires_grad=weight.requires_grad)
        model.get_submodule(name).register_parameter("bias", bias)
