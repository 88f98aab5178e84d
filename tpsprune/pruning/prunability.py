"""What of a model can be pruned: its groups, what is left alone and why, and what becomes of each layer."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Final, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tpsprune.errors import PruneError, did_you_mean, first_line
from tpsprune.numerics.forward import HALF_PRECISION, call_model, fixed_seed
from tpsprune.numerics.libraries import is_of_transformers
from tpsprune.numerics.macs import MacCount, count_macs
from tpsprune.numerics.moments import Elements
from tpsprune.numerics.routing import dealt_to_all, routed
from tpsprune.numerics.trees import map_tensors, take_items
from tpsprune.pruning.attention import join_heads, propose_head_groups
from tpsprune.pruning.compensation import can_gain_bias
from tpsprune.pruning.costs import CostModel, cost_model, own_macs, parents_of
from tpsprune.pruning.coupling import Candidate, Proposal, propose_groups, trace_couplings
from tpsprune.pruning.groups import Group, Prunability, element_index
from tpsprune.pruning.head_width import HEAD_WIDTH, propose_head_widths
from tpsprune.pruning.layers import fault_of, is_depthwise, is_mixer, length, mixer
from tpsprune.pruning.open_attention import OpenAttention
from tpsprune.pruning.open_experts import OpenExperts
from tpsprune.pruning.opening import is_closed, open_layers, open_what_computes_alike
from tpsprune.pruning.scans import propose_scan_groups
from tpsprune.pruning.ties import Classes
from tpsprune.pruning.trial import Prover, randomised_copy
from tpsprune.pruning.widths import check_widths
from tpsprune.recipe.prune import Macs, Prune
from tpsprune.records import CheckedLayer, Unpruned

RECURRENT = (nn.RNNBase, nn.RNNCellBase)
ALIGNED_BYTES: Final = 16
"""Rows of experts begin at multiples of so many bytes: grouped products take no others."""
EMBEDDING: Final = re.compile(r"(^|[._])embeddings?(\.|$)")
WHOLE_EMBEDDING: Final = "it is an embedding's, which prune.embedding_width = true would prune"


@fixed_seed()
@routed(dealt_to_all)
def find_groups(
    model: nn.Module,
    example_batch: Any,
    ignored_layers: Sequence[str] = (),
    *,
    head_width: bool = False,
    embedding_width: bool = True,
    closed: Mapping[str, str] | None = None,
) -> Prunability:
    """Find the groups of units that can be pruned from ``model``, each proved by a trial.

    Attention heads come first (``attention``), then what the trace couples (``coupling``), each with the
    unwrapped parameters that its units have elements of. Left alone, with a reason, is what is the model's
    output, what is read by a layer that cannot be pruned (recurrent layers, parametrised or tied weights),
    units that are not laid out in order, and what fails its trial: more than the consumers depends on the
    units. Frozen layers are pruned like others and remain frozen.

    Args:
        model: not changed; called in evaluation mode.
        example_batch: one prepared batch; its first two items are used.
        ignored_layers: ``fnmatch`` patterns of module names whose output units are kept; a pattern that
            matches a container holds for everything in it. What these layers read may still be pruned.
        head_width: whether to find the width of attention heads too (``head_width``).
        embedding_width: whether the units of an embedding, and of the stream that it feeds, may go.
        closed: modules that could not be opened (``opening``), with the reason.

    Raises:
        PruneError: a pattern matches no module, or the model does not run in single precision.

    Cost: one trace, a copy, and some five passes over two items where the first guess at everything is
    right; a pass or two more for each group that fails, and for each that may have unwrapped parameters. Of
    head widths, a pass for each attention.
    """
    excluded = _match_modules(model, ignored_layers)
    if not embedding_width:
        excluded = dict.fromkeys(_embeddings(model), WHOLE_EMBEDDING) | excluded
    batch = take_items(example_batch, torch.arange(2))
    couplings = trace_couplings(model, batch)
    subject = randomised_copy(model)
    single = map_tensors(batch, lambda each: each.float() if each.dtype in HALF_PRECISION else each)
    _refuse_unrunnable(subject, single)
    prover = Prover(subject, single, _find_tied(model), excluded)

    heads: dict[str, list[Group]] = defaultdict(list)
    for group in propose_head_groups(model):
        heads[group.name].append(group)
    tried = prover.prove([Candidate(tuple((Proposal(way),) for way in ways)) for ways in heads.values()])
    left = [ways for name, ways in heads.items() if name not in prover.accepted]
    joined = [ways for ways in join_heads(model, left) if ways]
    prover.prove([Candidate(tuple((Proposal(way),) for way in ways)) for ways in joined])
    prover.prove([Candidate(((Proposal(scan),),)) for scan in propose_scan_groups(model)])
    known = set(prover.accepted)
    reasons: list[tuple[str, str | Group]] = []
    if head_width:
        reasons += prover.prove(propose_head_widths(model, subject, single)).items()
    for name, reason in prover.prove(list(propose_groups(model, couplings))).items():
        # torch-pruning's reason about the inside of an attention (or a scan) counts only where that is whole.
        if not (isinstance(reason, Group) and reason.name in known):
            reasons.append((name, reason))
    reasons += prover.drop_clashes().items()
    met = {side.module for each in couplings for side in each.sides} | {each.root for each in couplings}
    met |= {each.module for name in known & prover.accepted.keys() for each in prover.accepted[name].slices}
    reasons += _never_met(model, met, {name: why for name, why in tried.items() if isinstance(why, str)})
    # What stays closed says why itself, whatever the trace made of it.
    if closed:
        reasons = [each for each in reasons if each[0] not in closed] + list(closed.items())

    order = {name: rank for rank, (name, _) in enumerate(model.named_modules())}

    def place(name: str) -> int:
        """Return the rank of the module that a group is named after."""
        return order[name.removesuffix(HEAD_WIDTH)]

    unpruned = [
        Unpruned(
            name=name,
            reason=f"its units are also those of {reason.name}" if isinstance(reason, Group) else reason,
        )
        for name, reason in sorted(reasons, key=lambda each: place(each[0]))
    ]
    groups, apart = _tie_experts(model, list(prover.accepted.values()))
    reasons += apart.items()
    groups.sort(key=lambda group: place(group.name))
    coupled = {
        side.module: each.root for each in reversed(couplings) for side in each.sides if side.side != "in"
    }
    opened = (
        name for name, module in model.named_modules() if isinstance(module, OpenAttention | OpenExperts)
    )
    return Prunability(tuple(groups), tuple(unpruned), coupled, tuple(opened))


def _tie_experts(model: nn.Module, groups: Sequence[Group]) -> tuple[list[Group], dict[str, str]]:
    """Tie the groups inside the experts of a module, or leave all alone where those of one stay whole."""
    opened = {name: module for name, module in model.named_modules() if isinstance(module, OpenExperts)}
    experts_of: dict[str, list[Group]] = {name: [] for name in opened}
    loose: list[Group] = []
    for group in groups:
        home = next((name for name in parents_of(group.name) if name in opened), None)
        if home is None:
            loose.append(group)
        else:
            weight = mixer(model, group.producers[0]).weight
            multiple = max(1, ALIGNED_BYTES // weight.element_size())
            experts_of[home].append(replace(group, tied_to=home, multiple=multiple))
    reasons: dict[str, str] = {}
    for name, inside in experts_of.items():
        if len(inside) == len(list(opened[name].children())):
            loose += inside
        elif inside:
            reasons |= {each.name: "some experts beside it cannot be pruned" for each in inside}
    return loose, reasons


def _refuse_unrunnable(subject: nn.Module, batch: Any) -> None:
    try:
        with torch.no_grad():
            call_model(subject, batch)
    except Exception as error:  # the model's own code runs here, and may raise anything
        message = " ".join(str(error).split()) or type(error).__name__
        raise PruneError(
            "the model does not run in single precision with random weights, as trials of groups do: "
            f"{message}; expected a model that casts nothing to half precision itself (train.precision does)"
        ) from error


def _match_modules(model: nn.Module, patterns: Sequence[str]) -> dict[str, str]:
    """Return the modules that patterns name, themselves or by what they lie in, with the reason."""
    names = [name for name, _ in model.named_modules() if name]
    matched: dict[str, str] = {}
    for pattern in patterns:
        hits = [name for name in names if fnmatchcase(name, pattern)]
        if not hits:
            raise PruneError(
                f"prune.ignored_layers: {pattern!r} matches no module of the model"
                f"{did_you_mean(pattern, names)}"
            )
        inside = tuple(f"{hit}." for hit in hits)
        reason = f"excluded by {pattern!r}"
        matched.update({name: reason for name in names if name in hits or name.startswith(inside)})
    return matched


def _embeddings(model: nn.Module) -> list[str]:
    """Return the layers that begin a residual stream: embeddings, and layers within a module of that name."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) or (is_mixer(module) and EMBEDDING.search(name))
    ]


def _find_tied(model: nn.Module) -> dict[str, str]:
    """Return modules that hold a parameter together with another module, and that other one."""
    owners: dict[int, list[str]] = defaultdict(list)
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)].append(name)
    return {
        name: next(other for other in names if other != name)
        for names in owners.values()
        if len(set(names)) > 1
        for name in names
    }


def _never_met(model: nn.Module, met: set[str], tried: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield layers that no coupling reaches, with the reason; ``tried`` has those of heads."""
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        whole = isinstance(module, (*RECURRENT, nn.MultiheadAttention))
        if not (whole or isinstance(module, nn.Embedding) or is_mixer(module)) or name in met:
            continue
        if inside and name.startswith(inside):
            continue
        if whole:
            inside = (*inside, f"{name}.")
            yield name, fault_of(module)
        elif is_depthwise(module):
            yield name, "no layer before it can be pruned"
        else:
            yield name, tried.get(name, "the trace from the output did not reach it")


def find_and_price_groups(
    model: nn.Module, batch: Any, settings: Prune, closed: Mapping[str, str] | None = None
) -> tuple[Prunability, MacCount, CostModel]:
    """Find the groups of a model that is to be pruned, and count what it costs as a function of their widths.

    The cost is in the unit of the target: parameters for ``params``, else multiply-accumulates. Every
    bias that compensation might add is counted as a parameter. ``closed`` are modules that could not be
    opened.

    Raises:
        PruneError: a pattern matches nothing, nothing can be pruned, or a weight is not finite.
    """
    _check_finite(model)
    example = take_items(batch, torch.arange(2))
    found = find_groups(
        model,
        example,
        settings.ignored_layers,
        head_width=settings.head_width,
        embedding_width=_allows(settings.embedding_width, model),
        closed=closed,
    )
    if not found.groups:
        reasons = "".join(f"\n  {each.name}: {each.reason}" for each in found.unpruned[:5])
        more = len(found.unpruned) - 5
        reasons += f"\n  and {more} more" if more > 0 else ""
        raise PruneError(f"the model holds nothing that can be pruned{reasons}")
    count = _count(model, example)
    new_biases = layers_gaining_bias(model, found.groups, settings)
    if count.uncounted and isinstance(settings.target, Macs):
        raise PruneError(
            f"prune.target {settings.target}: {count.uncounted[0]} multiplies in a kernel of its own, which "
            "cannot be counted; use a target of params or latency"
        )
    return found, count, cost_model(model, found.groups, count, settings, new_biases, batch=example)


def _count(model: nn.Module, example: Any) -> MacCount:
    try:
        return count_macs(model, example)
    # The model's own code runs here, under a counter, and may raise anything.
    except Exception as error:
        raise PruneError(
            f"the model's multiply-accumulates cannot be counted ({first_line(error)}): what a unit costs is "
            "not known"
        ) from error


def layers_gaining_bias(model: nn.Module, groups: Iterable[Group], settings: Prune) -> tuple[str, ...]:
    """Return the consumers of ``groups`` that compensation is to give a bias."""
    if not (settings.compensate and _allows(settings.new_biases, model)):
        return ()
    names = dict.fromkeys(consumer.module for group in groups for consumer in group.consumers)
    # The tensors that experts are closed in have no room for one.
    experts = {name for name, module in model.named_modules() if isinstance(module, OpenExperts)}
    return tuple(
        name for name in names if can_gain_bias(mixer(model, name)) and experts.isdisjoint(parents_of(name))
    )


def _allows(setting: bool | Literal["auto"], model: nn.Module) -> bool:
    """Return what a setting is for a model: ``auto`` is no for one that has a configuration to fit.

    So have models of transformers, and adapters of PEFT, which are saved and loaded by it.
    """
    if isinstance(setting, bool):
        return setting
    return not (is_of_transformers(model) or hasattr(model, "peft_config"))


def check_target(model: nn.Module, batch: Any, settings: Prune) -> tuple[Prunability, MacCount]:
    """Return what of the model can be pruned, and its multiply-accumulates, if the target is within reach.

    To be called before training, not after. A target of latency is not tried: nothing is measured here.

    Raises:
        PruneError: as ``find_and_price_groups``, or as ``widths.check_widths``: the target is below what the
            narrowest widths allowed would cost, or names a group that is not there.
    """
    opened, names, closed = open_what_computes_alike(model, take_items(batch, torch.arange(2)))
    found, count, costs = find_and_price_groups(opened, batch, settings, closed)
    found = replace(found, opened=names)
    classes = Classes.of(found.groups)
    check_widths(classes.costs(costs), settings, classes.names, lambda: list_fixed(opened, found, count))
    return found, count


def _check_finite(model: nn.Module) -> None:
    """Refuse weights that a training has broken; a mask may hold infinities."""
    broken = [name for name, parameter in model.named_parameters() if not bool(parameter.isfinite().all())]
    broken += [name for name, buffer in model.named_buffers() if bool(buffer.isnan().any())]
    if broken:
        raise PruneError(
            f"the weights of the model are not finite, at {broken[0]}: training may have diverged"
        )


@dataclass(frozen=True, slots=True, eq=False)
class GroupTensors:
    """Where signals measure each group: its consumers, its producers' tensors, its batch norms' scales.

    The names are those that ``signals.View`` uses.
    """

    consumers: Mapping[str, Mapping[str, int]]
    written: Mapping[str, tuple[Elements, ...]]
    scaled: Mapping[str, tuple[Elements, ...]]
    blocks: Mapping[str, int] = field(default_factory=dict)


def tensors_by_group(model: nn.Module, found: Prunability) -> GroupTensors:
    """Return where signals measure each group of a model."""
    norms = {name for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    held = model.state_dict().keys()  # A plan also has slices of biases that a layer may gain.

    def elements(group: Group, modules: Iterable[str], tensors: Sequence[str]) -> tuple[Elements, ...]:
        wanted = held & {f"{name}.{tensor}" for name in modules for tensor in tensors}
        return tuple(
            Elements(each.tensor, each.axis, element_index(each, group.width))
            for each in group.slices
            if each.tensor in wanted
        )

    return GroupTensors(
        consumers=consumer_widths(model, found),
        written={group.name: elements(group, group.producers, ("weight", "bias")) for group in found.groups},
        scaled={
            group.name: elements(group, norms.intersection(group.members), ("weight",))
            for group in found.groups
        },
        blocks=consumer_blocks(found),
    )


def consumer_widths(model: nn.Module, found: Prunability) -> dict[str, dict[str, int]]:
    """Return, by group, the layers that read its units and nothing else, with their unit count.

    A layer that also reads something else, of another group or of none, is not among them.
    """
    return {
        group.name: {
            consumer.module: group.width
            for consumer in group.consumers
            if group.width * consumer.block * consumer.repeat
            == length(model.get_submodule(consumer.module), "in")
        }
        for group in found.groups
    }


def consumer_blocks(found: Prunability) -> dict[str, int]:
    """Return, of layers that are fed a group's units several times over, the columns of a unit each time.

    Embeddings of two tokens side by side are such an input.
    """
    return {
        consumer.module: consumer.block
        for group in found.groups
        for consumer in group.consumers
        if consumer.repeat > 1
    }


def list_layers(model: nn.Module, found: Prunability, count: MacCount) -> tuple[CheckedLayer, ...]:
    """Return every layer in model order: whatever holds parameters of its own, or multiplies by itself.

    Args:
        model: not changed; what the groups have open is listed open.
        found: what of it can be pruned.
        count: its multiply-accumulates.
    """
    still_closed = [name for name in found.opened if is_closed(model.get_submodule(name))]
    opened, _ = open_layers(model, still_closed)
    own = own_macs(count)
    produces: dict[str, list[str]] = defaultdict(list)
    follows: dict[str, list[str]] = defaultdict(list)
    reads: dict[str, list[str]] = defaultdict(list)
    for group in found.groups:
        consumers = [consumer.module for consumer in group.consumers]
        # A module that is no layer may hold a parameter with elements of each unit.
        holders = [each.module for each in group.slices if each.module not in (*group.producers, *consumers)]
        for groups_of, names in (
            (produces, group.producers),
            (follows, (*group.members, *group.cores, *holders)),
            (reads, consumers),
        ):
            for name in dict.fromkeys(names):
                groups_of[name].append(group.tied_to or group.name)
    reasons = {each.name: each.reason for each in found.unpruned}
    layers = []
    for name, module in opened.named_modules():
        parameters = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        macs = own.get(name, 0)
        if not parameters and macs <= 0:
            continue
        groups = produces[name] or follows[name]
        reason = fault_of(module) if isinstance(module, RECURRENT) else _reason(name, found, reasons)
        layers.append(
            CheckedLayer(
                name=name or "(the model itself)",
                kind=type(module).__name__,
                parameters=parameters,
                macs=macs,
                macs_share=macs / count.total if count.total else 0.0,
                fate="cut" if produces[name] else "follows" if follows[name] else "stays",
                groups=tuple(groups),
                reads=tuple(reads[name]),
                reason="" if groups else reason,
            )
        )
    return tuple(layers)


def list_fixed(model: nn.Module, found: Prunability, count: MacCount) -> list[CheckedLayer]:
    """Return the layers that lose nothing whatever the widths of the groups are: no unit and no input."""
    return [each for each in list_layers(model, found, count) if each.fate == "stays" and not each.reads]


def _reason(name: str, found: Prunability, reasons: Mapping[str, str]) -> str:
    """Return why a layer is not pruned: its own reason, that of its coupling, or of a module around it."""
    if name in reasons:
        return reasons[name]
    root = found.coupled.get(name, "")
    if root in reasons:
        return f"as {root}: {reasons[root]}"
    if around := next((each for each in parents_of(name) if each in reasons), None):
        return reasons[around]
    if inside := next((each for each in reasons if each.startswith(f"{name}.")), None):
        return f"as {inside}: {reasons[inside]}"
    return "nothing in it is a unit that could be pruned"
