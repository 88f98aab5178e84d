"""A model spread over processes: each holds a part of every weight, and blocks open one after another.

torch's ``fully_shard`` (FSDP2) does the work: a block's weights are gathered when it is called, and let go
when it is left; gradients are summed into each process's part. Every call of the model, and every read of a
whole weight, is made by all processes together. The model is built whole in the first process alone, in its
host memory or in files; the others build it without numbers, and take one block at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Final

import torch
from torch import Tensor, nn

from tpsprune.errors import ModelError
from tpsprune.numerics.peers import AbstractPeers, whole

Moments = dict[str, dict[str, Tensor]]
LISTS: Final = (nn.ModuleList, nn.Sequential)


def blocks_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the blocks that repeat: children of one list, of one class, with weights and parts of their own.

    The outermost ones; a list is a ``ModuleList`` or ``Sequential``, and lists in a list are no blocks where
    they have some.

    >>> block = lambda: nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    >>> list(blocks_of(nn.Sequential(block(), block(), nn.Linear(2, 1))))
    ['0', '1']

    Raises:
        ModelError: there are none.
    """
    found = dict(_repeating(model, ""))
    if not found:
        raise ModelError(
            f"train.spread = 'shard': {type(model).__name__} has no blocks that repeat (several modules of "
            "one class, with parts of their own, in a ModuleList or Sequential) to open one after another; "
            "train.spread = 'replicate' trains it"
        )
    return found


def _repeating(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    children = {f"{path}{name}": child for name, child in module.named_children()}
    for name, child in children.items():
        alike = sum(type(each) is type(child) for each in children.values())
        has_parts = next(child.children(), None) is not None
        has_weights = next(child.parameters(), None) is not None
        inner = list(_repeating(child, f"{name}.")) if type(child) in LISTS else []
        if isinstance(module, LISTS) and alike > 1 and has_parts and has_weights and not inner:
            yield name, child
        else:
            yield from inner or _repeating(child, f"{name}.")


def without_numbers(peers: AbstractPeers) -> torch.device | nullcontext[None]:
    """Return the context in which a model is built: with its numbers in the first process alone."""
    return nullcontext() if peers.is_first else torch.device("meta")


def spread_out(model: nn.Module, device: torch.device, peers: AbstractPeers) -> nn.Module:
    """Spread a model over the processes, in place: that of the first process, in all the same.

    Cost: every weight is sent once; each process holds one block whole at a time, and what lies outside of
    the blocks.

    Raises:
        ModelError: it has no blocks that repeat, or two of them share a weight.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    blocks, parts = check_spread(model)
    mesh = init_device_mesh(device.type, (peers.size,))
    for name, modules in parts.items():
        _bring(modules, device, peers)
        # Let go after a pass as well: what is read between two steps is then the parts.
        sharded = fully_shard(blocks.get(name, model), mesh=mesh, reshard_after_forward=True)
        assert isinstance(sharded, FSDPModule)
        sharded.set_gradient_divide_factor(1.0)  # The loss is divided already.
        sharded.set_force_sum_reduction_for_comms(True)
    return model


def check_spread(model: nn.Module) -> tuple[dict[str, nn.Module], dict[str, list[nn.Module]]]:
    """Return the blocks of a model that can be spread, and the modules of each; last those in none.

    Raises:
        ModelError: as ``spread_out``.
    """
    blocks = blocks_of(model)
    parts = _parts(model, blocks)
    _refuse_shared(model, parts)
    return blocks, parts


def is_spread(model: nn.Module) -> bool:
    """Return whether some weight lies in parts on several processes."""
    return any(hasattr(each, "full_tensor") for each in model.parameters())


def tied_names(model: nn.Module) -> dict[str, str]:
    """Return the further names of parameters that have several, each with the first one."""
    first: dict[nn.Parameter, str] = {}
    for name, each in model.named_parameters(remove_duplicate=False):
        first.setdefault(each, name)
    every = model.named_parameters(remove_duplicate=False)
    return {name: first[each] for name, each in every if first[each] != name}


def largest_open(model: nn.Module) -> int:
    """Return how many weights of a model are open on a process at most: those in no block, and a block's.

    Another block may lie ready beside them, which torch gathers ahead while one is computed.
    """
    _, modules_of = check_spread(model)
    parts = {
        name: sum(each.numel() for module in modules for each in module.parameters(recurse=False))
        for name, modules in modules_of.items()
    }
    return parts.pop("") + max(parts.values())


def gather(
    tensors: Mapping[str, Tensor],
    peers: AbstractPeers,
    holding: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> dict[str, Tensor]:
    """Return copies of tensors, whole, on the first process's host; none in the others. One at a time.

    They are made within ``holding()``, which decides where they lie.
    """
    found = {}
    for name, each in tensors.items():
        one = whole(each.detach())
        if peers.is_first:
            with holding():
                found[name] = one.to("cpu", copy=True)
    return found


def deal_out(moments: Moments, model: nn.Module, peers: AbstractPeers) -> Moments:
    """Return the first process's optimiser state in parts, laid out as the parameters of ``model``."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    described = peers.first(
        lambda: {
            name: {
                key: [list(each.shape), str(each.dtype).removeprefix("torch.")] for key, each in own.items()
            }
            for name, own in moments.items()
        }
    )
    dealt: Moments = {}
    for name, parameter in model.named_parameters():
        for key, (shape, kind) in described.get(name, {}).items():
            device = parameter.device
            if peers.is_first:
                sent = moments[name][key].to(device).contiguous()
            else:
                sent = torch.empty(shape, dtype=getattr(torch, kind), device=device)
            peers.write([sent])
            if isinstance(parameter, DTensor) and sent.shape == parameter.shape:
                sent = distribute_tensor(
                    sent, parameter.device_mesh, parameter.placements, src_data_rank=None
                )
            dealt.setdefault(name, {})[key] = sent
    return dealt


def _parts(model: nn.Module, blocks: Mapping[str, nn.Module]) -> dict[str, list[nn.Module]]:
    """Return the modules of each block, and under the name of the root, last, those in none."""
    parts = {name: list(block.modules()) for name, block in blocks.items()}
    inside = {module for modules in parts.values() for module in modules}
    return parts | {"": [module for module in model.modules() if module not in inside]}


def _refuse_shared(model: nn.Module, parts: Mapping[str, Sequence[nn.Module]]) -> None:
    owner: dict[Tensor, str] = {}
    for part, modules in parts.items():
        for each in (each for module in modules for each in module.parameters(recurse=False)):
            if owner.setdefault(each, part) != part:
                name = next(name for name, found in model.named_parameters() if found is each)
                other = f"block '{part}'" if part else "a module outside of the blocks"
                raise ModelError(
                    f"train.spread = 'shard': '{name}' of block '{owner[each]}' is shared with {other}, and "
                    "blocks open one after another; train.spread = 'replicate' trains it"
                )


@torch.no_grad()
def _bring(modules: Sequence[nn.Module], device: torch.device, peers: AbstractPeers) -> None:
    """Have the modules' own tensors on the device, those of the first process; what is tied stays tied."""
    brought: dict[Tensor, Tensor] = {}

    def bring(tensor: Tensor) -> Tensor:
        if tensor not in brought:
            on_device = torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.to(device)
            on_device = on_device.detach().contiguous()
            brought[tensor] = (
                nn.Parameter(on_device, requires_grad=tensor.requires_grad)
                if isinstance(tensor, nn.Parameter)
                else on_device
            )
        return brought[tensor]

    for module in modules:
        # Set by name, a buffer that is not persistent would become one that is.
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    held[name] = bring(tensor)  # type: ignore[assignment]
    peers.write([each for each in brought.values() if each.numel()])
