"""The cut itself: a copy of a model whose tensors hold only the units that stay, bit for bit."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from tpsprune.errors import PruneError
from tpsprune.pruning.groups import Attribute, Group, GroupCut
from tpsprune.pruning.layers import deafen, length, mixer, refit, tensor_named
from tpsprune.pruning.layout import element_index
from tpsprune.pruning.norms import MaskedNorm, masked, norms_over_units, unmasked

__all__ = [
    "Elements",
    "cut_copy",
    "cut_in_place",
    "elements_kept",
    "fresh_copy",
    "silence",
    "silenced_tensors",
    "take",
    "unmask",
]

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
    """Cut ``model`` itself; see ``cut_copy``. What stands in for a norm (``silence``) is that norm again."""
    unmask(model)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict(keep_vars=True).items()}
    touched: dict[str, nn.Module] = {}
    for name, axes in elements_kept(shapes, cuts).items():
        owner, _, tensor_name = name.rpartition(".")
        module = touched[owner] = model.get_submodule(owner)
        old: Tensor = getattr(module, tensor_name)
        new = take(old.detach(), axes)
        setattr(
            module,
            tensor_name,
            nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new,
        )
    for cut in (each for each in cuts if each.removed):
        for attribute in cut.attributes:
            _remember(model.get_submodule(attribute.module), attribute, cut)
    for module in touched.values():
        refit(module)


def _remember(module: nn.Module, attribute: Attribute, cut: GroupCut) -> None:
    """Let what a module remembers about its units fall as they do; a shape of one number stays a shape.

    A number that follows the heads and their width falls by both.
    """
    old = getattr(module, attribute.name)
    is_shape = isinstance(old, tuple | list)
    value = (old[0] if is_shape else old) * len(cut.kept) // cut.width
    setattr(module, attribute.name, type(old)((value,)) if is_shape else value)


def silence(model: nn.Module, group: Group, removed: Sequence[int]) -> None:
    """Make a model deaf to some units of a group, in place: the cut, at the old shape.

    Its consumers hear zero from them, and the norms among its members norm over the units that stay (each
    is replaced by a ``norms.MaskedNorm`` with the same parameters; ``cut_in_place`` puts it back). Of a group
    of head width the rows that give the dimensions are set to zero, in queries and keys.
    """
    gone = list(removed)
    if not gone:
        return
    if group.scores is not None:
        for each in group.slices:
            if (tensor := tensor_named(model, each.tensor)) is not None:
                rows = tensor.detach().movedim(each.axis, 0)
                rows[element_index(each, group.width, rows.device)[gone].flatten()] = 0.0
    for consumer in group.consumers:
        deafen(mixer(model, consumer.module), consumer, group.width, gone)
    for member in group.members:
        norm = model.get_submodule(member)
        if norms_over_units(norm):
            layout = next(each for each in group.slices if each.tensor.rpartition(".")[0] == member)
            elements = element_index(layout, group.width)[gone].flatten()
            model.set_submodule(member, masked(norm, length(norm, "both"), elements))


def silenced_tensors(group: Group) -> tuple[str, ...]:
    """Return the names of the parameters that ``silence`` writes to; a bias among them may not be there."""
    if group.scores is not None:
        return tuple(dict.fromkeys(slice_.tensor for slice_ in group.slices))
    return tuple(dict.fromkeys(f"{consumer.module}.weight" for consumer in group.consumers))


def unmask(model: nn.Module) -> None:
    """Put back, in place, the norms that ``silence`` replaced: every unit is heard by them again."""
    for name, module in list(model.named_modules()):
        if isinstance(module, MaskedNorm):
            model.set_submodule(name, unmasked(module))
