"""What of a model can be cut, and what cannot and why."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from tpsprune.errors import PruneError, did_you_mean
from tpsprune.numerics.forward import call_model
from tpsprune.numerics.trees import take_items
from tpsprune.pruning.attention import attention_groups
from tpsprune.pruning.candidates import Candidate, Proposal, candidates
from tpsprune.pruning.graph import couplings
from tpsprune.pruning.groups import Group, Survey
from tpsprune.pruning.head_width_candidates import HEAD_WIDTH, head_width_candidates
from tpsprune.pruning.layers import fault_of, is_depthwise, is_mixer
from tpsprune.pruning.proving import Proving
from tpsprune.pruning.trial import shaken
from tpsprune.records import LeftAlone

__all__ = ["survey"]


def survey(
    model: nn.Module, example_batch: Any, leave_alone: Sequence[str] = (), *, head_width: bool = False
) -> Survey:
    """Find the groups of units that can be cut from ``model``, each proved by a trial cut.

    Attention heads come first (``attention``), then what the trace couples (``graph``, ``candidates``), each
    with the bare parameters on its stream. Left alone, with a reason, is what is the model's output, what
    is read by a layer that cannot be cut (recurrent layers, parametrised or tied weights), units that are
    not laid out in order, and what fails its trial: more than the consumers depends on the units. Frozen
    layers are cut like others and stay frozen.

    Args:
        model: not changed; called in evaluation mode.
        example_batch: one prepared batch; its first two items are used.
        leave_alone: ``fnmatch`` patterns of module names whose output units stay; a pattern that
            matches a container holds for everything in it. What these layers read may still be cut.
        head_width: whether to look for the width of attention heads too (``head_width_candidates``).

    Raises:
        PruneError: a pattern matches no module, or the model does not run in single precision.

    Cost: one trace, a copy, and some five passes over two items where the first guess at everything is
    right; a pass or two more for each group that fails, and for each that may have bare parameters. Of head
    widths, a pass for each attention.
    """
    spared = _matches(model, leave_alone)
    order = {name: rank for rank, (name, _) in enumerate(model.named_modules())}
    tied = _tied(model)
    batch = take_items(example_batch, torch.arange(2))
    traced = couplings(model, batch)
    subject, single = shaken(model), _single_precision(batch)
    _refuse_unrunnable(subject, single)
    proving = Proving(subject, single, tied, spared)

    heads: dict[str, list[Group]] = defaultdict(list)
    for group in attention_groups(model):
        heads[group.name].append(group)
    of_heads = [Candidate(tuple((Proposal(group),) for group in groups)) for groups in heads.values()]
    proving.prove(of_heads)
    by_attention = set(proving.accepted)
    left_alone = []
    if head_width:
        narrower = proving.prove(head_width_candidates(model, subject, single))
        left_alone += [LeftAlone(name=name, reason=_words(reason)) for name, reason in narrower.items()]
    for name, reason in proving.prove(list(candidates(model, traced))).items():
        # What torch-pruning makes of the inside of an attention is heard only where its heads are not cut.
        if not (isinstance(reason, Group) and reason.name in by_attention):
            left_alone.append(LeftAlone(name=name, reason=_words(reason)))
    left_alone += [LeftAlone(name=name, reason=reason) for name, reason in proving.clashes().items()]
    left_alone += _never_met(model, {touch.module for each in traced for touch in each.touches})
    groups = sorted(proving.accepted.values(), key=lambda group: order[_place(group.name)])
    left_alone.sort(key=lambda each: order[_place(each.name)])
    coupled = {
        touch.module: each.root for each in reversed(traced) for touch in each.touches if touch.side != "in"
    }
    return Survey(tuple(groups), tuple(left_alone), coupled)


def _words(reason: str | Group) -> str:
    return f"its units are also those of {reason.name}" if isinstance(reason, Group) else reason


def _place(name: str) -> str:
    """Return the module that a group is named after."""
    return name.removesuffix(HEAD_WIDTH)


def _refuse_unrunnable(subject: nn.Module, batch: Any) -> None:
    try:
        with torch.no_grad():
            call_model(subject, batch)
    except Exception as error:  # the model's own code runs here, and may raise anything
        words = " ".join(str(error).split()) or type(error).__name__
        raise PruneError(
            "the model does not run in single precision with weights drawn anew, as trial cuts do: "
            f"{words}; a model that casts nothing to half precision itself would do (train.precision does)"
        ) from error


def _matches(model: nn.Module, patterns: Sequence[str]) -> dict[str, str]:
    """Return the modules that patterns name, themselves or by what they lie in, with the pattern."""
    names = [name for name, _ in model.named_modules() if name]
    matched: dict[str, str] = {}
    for pattern in patterns:
        hits = [name for name in names if fnmatchcase(name, pattern)]
        if not hits:
            raise PruneError(
                f"prune.leave_alone: {pattern!r} matches no module of the model{did_you_mean(pattern, names)}"
            )
        inside = tuple(f"{hit}." for hit in hits)
        matched.update({name: pattern for name in names if name in hits or name.startswith(inside)})
    return matched


def _tied(model: nn.Module) -> dict[str, str]:
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


def _never_met(model: nn.Module, touched: Iterable[str]) -> Iterator[LeftAlone]:
    met = set(touched)
    whole = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention, nn.Embedding)
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if not (isinstance(module, whole) or is_mixer(module)) or name in met:
            continue
        if inside and name.startswith(inside):
            continue
        if isinstance(module, nn.RNNBase | nn.RNNCellBase | nn.MultiheadAttention):
            inside = (*inside, f"{name}.")
            yield LeftAlone(name=name, reason=fault_of(module))
        elif is_depthwise(module):
            yield LeftAlone(name=name, reason="no layer before it can be cut")
        else:
            yield LeftAlone(name=name, reason="the trace from the output did not reach it")


def _single_precision(batch: Any) -> Any:
    if isinstance(batch, Tensor):
        return batch.float() if batch.dtype in (torch.float16, torch.bfloat16) else batch
    if isinstance(batch, Mapping):
        return {name: _single_precision(part) for name, part in batch.items()}
    if isinstance(batch, tuple | list):
        return type(batch)(_single_precision(part) for part in batch)
    return batch
