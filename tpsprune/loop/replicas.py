"""A model that several processes hold copies of: met before anything is told, extracted once.

What ``DistributedDataParallel`` keeps equal are the parameters; running statistics differ between processes
once each has passed its own batches. So what is read and decided is the first process's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any, Final
from weakref import WeakKeyDictionary

from torch import Tensor, distributed, nn

from tpsprune import pruning
from tpsprune.errors import LoopError
from tpsprune.export import saves_itself
from tpsprune.loop.unwrap import replicas_of
from tpsprune.numerics.peers import ALONE, AbstractPeers, Gathered
from tpsprune.pruning import Extraction, Plan
from tpsprune.pruning.costs import Times
from tpsprune.records import GroupChange, Unpruned, dump, load

_MET: Final[WeakKeyDictionary[distributed.ProcessGroup, Gathered]] = WeakKeyDictionary()
"""Of each process group the processes, which are connected once: connections last as long as the group."""


def peers_of(models: Iterable[Any], replicated: bool | None, call: str) -> AbstractPeers:
    """Return the processes that make a call together; this one alone where its model is nobody else's.

    A model is replicated where one of ``models`` is wrapped in ``DistributedDataParallel``, or where the
    caller says so. All processes of ``torch.distributed`` have to make the call then, and are waited for.

    Raises:
        PeersError: a process has not come to the same call within ten minutes.
        LoopError: the model is replicated over some of the processes only.
    """
    wrappers = [found for each in models if isinstance(each, nn.Module) and (found := replicas_of(each))]
    if replicated is None:
        replicated = bool(wrappers)
    if not replicated or not distributed.is_available() or not distributed.is_initialized():
        return ALONE
    size = distributed.get_world_size()
    if size == 1:
        return ALONE
    for each in wrappers:
        if (count := distributed.get_world_size(each.process_group)) != size:
            raise LoopError(
                f"{call}: DistributedDataParallel has the model in {count} of {size} processes, and only a"
                " model of all is read together; pass replicated=False, or the module inside the wrapper"
            )
    world = distributed.group.WORLD
    assert world is not None, "it is initialised"
    if world not in _MET:
        _MET[world] = Gathered.met(call)
    else:
        _MET[world].meet(call)
    return _MET[world]


def tell_extraction(peers: AbstractPeers, model: nn.Module, make: Callable[[], Extraction]) -> Extraction:
    """Return in every process the extraction that the first one makes: equal plan, equal weights to the bit.

    The others replay the plan on their ``model``, which has the same tensors, and fill in the weights.

    Raises:
        TpspruneError: the first process met one.
    """
    if peers.size == 1:
        return make()
    made: list[Extraction] = []

    def describe() -> dict[str, Any]:
        found = make()
        made.append(found)
        return {
            "plan": found.plan.to_json(),
            "changes": [dump(each) for each in found.changes],
            "unpruned": [dump(each) for each in found.unpruned],
            "macs_share": found.macs_share,
            "notes": list(found.notes),
            "times": asdict(found.times),
        }

    told = peers.first(describe)
    weights = peers.first_tensors(lambda: _tensors_of(made[0].ticket, "cpu"))
    if made:
        return made[0]
    plan = Plan.from_json(told["plan"])
    ticket = pruning.replay(model, plan)
    ticket.load_state_dict({**ticket.state_dict(), **weights})
    return Extraction(
        ticket=saves_itself(ticket),
        plan=plan,
        changes=tuple(load(GroupChange, each) for each in told["changes"]),
        unpruned=tuple(load(Unpruned, each) for each in told["unpruned"]),
        macs_share=told["macs_share"],
        notes=tuple(told["notes"]),
        times=Times(**told["times"]),
    )


def _tensors_of(model: nn.Module, device: str) -> dict[str, Tensor]:
    state = model.state_dict()
    return {name: each.to(device) for name, each in state.items() if isinstance(each, Tensor)}
