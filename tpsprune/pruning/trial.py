"""The proof that a group is prunable: pruning half of it gives the same outputs as masking that half.

A graph is made from names of operations; only behaviour proves that a unit can be pruned. What mixes units
without weights (attention heads, a mean over channels), what the trace did not see and what does not run at
another width all fail here. The subject, a model with random weights, is pruned and masked in place and
restored, never copied.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, nn

from tpsprune.errors import first_line
from tpsprune.numerics.forward import (
    HALF_PRECISION,
    call_model,
    evaluation_mode,
    fixed_seed,
    flat_tensors,
    random_state,
    sound_backward,
    training_mode,
)
from tpsprune.pruning.coupling import Candidate, Proposal, unwrapped_parameters
from tpsprune.pruning.groups import Group, PrunedGroup, Slice, element_index
from tpsprune.pruning.layers import tensor_axes, tensor_named
from tpsprune.pruning.surgery import copy_model, hold_scale, mask_units, masked_tensors, prune_in_place

T = TypeVar("T")

TOLERANCE = 1e-3
NO_MATTER: Final = "the output does not depend on its"
GOLDEN: Final = (5**0.5 - 1) / 2
"""Multiples of it, modulo one, are spread evenly, however many there are."""


def randomised_copy(model: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode with random weights, the same on every call.

    Weights that happen to be zero (a residual branch at its start) or dead would hide a wrong group.
    Half precision becomes single precision.
    """
    subject = copy_model(model).eval()
    generator = torch.Generator().manual_seed(0)
    for name, tensor in (*subject.named_parameters(), *subject.named_buffers()):
        if tensor.dtype in HALF_PRECISION:
            tensor.data = tensor.data.float()
        random = torch.randn(tensor.shape, generator=generator)
        if not isinstance(tensor, nn.Parameter) or not tensor.is_floating_point():
            continue
        if not tensor.ndim:  # A scale of the whole, of a branch that begins as nothing.
            tensor.data.masked_fill_(tensor.data == 0, 1.0)
            continue
        if tensor.ndim > 1:
            random *= (len(tensor) / max(1, tensor.numel())) ** 0.5
        else:
            random = 0.2 * random + (1.0 if name.endswith("weight") else 0.0)
        tensor.data.copy_(random)
    return subject


def outputs_of(model: nn.Module, batch: Any) -> list[Tensor]:
    """Return every floating-point tensor of a model's output, without gradients and with a fixed seed."""
    return _outputs_and_draws(model, batch)[0]


def _outputs_and_draws(model: nn.Module, batch: Any) -> tuple[list[Tensor], Tensor]:
    """Return the outputs, and the state of the generator afterwards: how much was drawn from it."""
    with torch.no_grad(), fixed_seed():
        return list(flat_tensors(call_model(model, batch))), random_state()[-1]


def are_close(expected: list[Tensor], found: list[Tensor]) -> bool:
    """Return whether outputs are equal but for rounding, as measured by the spread of those expected."""
    return all(
        bool((a - b).abs().max() <= TOLERANCE * (a - a.mean()).abs().max().clamp_min(1e-12))
        for a, b in zip(expected, found, strict=True)
        if a.numel()
    )


def prune_half(group: Group, rank: int = 0) -> PrunedGroup:
    """Return what a trial makes of a group: about half its units kept, picked at random, always the same.

    The share differs by ``rank``, from 3/8 to 5/8: groups that the model's own code needs equally wide,
    though no tensor says so, would all pass at one half.
    """
    order = torch.randperm(group.width, generator=torch.Generator().manual_seed(0)).tolist()
    share = 0.5 + 0.25 * ((rank * GOLDEN + 0.5) % 1.0 - 0.5)
    return PrunedGroup.of(group, order[: max(1, math.floor(share * group.width))])


@contextmanager
def restoring(subject: nn.Module, groups: Sequence[Group]) -> Iterator[None]:
    """Let a model be pruned, or ``groups`` of it be masked, in place, and restore it."""
    stored = []
    for module in subject.modules():
        tables = {name: dict(module.__dict__[name]) for name in ("_parameters", "_buffers", "_modules")}
        stored.append((module, module.__dict__ | tables))
    try:
        for name in dict.fromkeys(name for group in groups for name in masked_tensors(group)):
            if (old := tensor_named(subject, name)) is not None:
                owner, _, tensor = name.rpartition(".")
                clone = nn.Parameter(old.detach().clone(), old.requires_grad)
                setattr(subject.get_submodule(owner), tensor, clone)
        yield
    finally:
        for module, state in stored:
            module.__dict__.clear()
            module.__dict__.update(state)


def trial_faults(
    subject: nn.Module, groups: Sequence[Group], batch: Any, *, trains: bool = False
) -> list[str]:
    """Return for each group why half of it cannot be pruned from a randomised model, or an empty string.

    All are tried at once; where that fails, each half of them by itself, down to the single ones. Groups
    that hold up together do so each by itself, as none of them is one the output does not depend on.

    Cost: three passes over ``batch`` where all is well, else some 2·log₂(groups) for each that fails.
    """
    faults = [""] * len(groups)
    if not groups:
        return faults
    whole = outputs_of(subject, batch)

    def halve(ranks: Sequence[int]) -> None:
        fault = ""
        if ranks:
            fault = joint_fault(subject, [groups[rank] for rank in ranks], batch, whole, trains=trains)
        if fault.startswith(NO_MATTER) and len(ranks) == 1:
            fault = _fault_reversed(subject, groups[ranks[0]], batch)
        if fault and len(ranks) == 1:
            faults[ranks[0]] = fault
        elif fault:
            halve(ranks[: len(ranks) // 2])
            halve(ranks[len(ranks) // 2 :])

    together = []
    for rank, matters in enumerate(_output_depends_on(subject, groups, batch)):
        if matters:
            together.append(rank)
        else:
            halve([rank])
    halve(together)
    return faults


def joint_fault(
    subject: nn.Module,
    groups: Sequence[Group],
    batch: Any,
    whole: list[Tensor] | None = None,
    *,
    trains: bool = False,
) -> str:
    """Return why half of each of ``groups`` cannot be pruned at once, or an empty string.

    ``whole`` are the outputs of the randomised model as it is; none for groups that are known to matter to
    them. ``trains``: call the pruned model in training mode too (``calls_more_in_training``).
    """
    pruned = [prune_half(group, rank) for rank, group in enumerate(groups)]
    try:
        with restoring(subject, groups):
            for group, half in zip(groups, pruned, strict=True):
                mask_units(subject, group, half.removed)
            masked, drawn_masked = _outputs_and_draws(subject, batch)
        with restoring(subject, ()):
            prune_in_place(subject, pruned)
            for group, half in zip(groups, pruned, strict=True):
                hold_scale(subject, group, len(half.kept))
            ticket, drawn = _outputs_and_draws(subject, batch)
            training_fault = _fault_in_training(subject, batch) if trains else ""
    # Whatever the model's own code raises at another width is the reason sought.
    except Exception as error:  # noqa: BLE001
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return f"the model does not run without some of its units ({reason})"
    consumed = any(group.consumers for group in groups)
    if whole is not None and all(torch.equal(a, b) for a, b in zip(whole, masked, strict=True)):
        return f"{NO_MATTER} {'consumers' if consumed else 'queries and keys'}"
    if [tensor.shape for tensor in masked] != [tensor.shape for tensor in ticket]:
        return "it is the model's output"
    if not are_close(masked, ticket):
        if not torch.equal(drawn, drawn_masked):
            return "the model draws random numbers for each of its units: with fewer, others for those kept"
        if not consumed:
            return "narrower heads give other scores, and no scale of d^(−1/2) explains it"
        return "more than its consumers depend on it (attention heads, or a norm or mean over units)"
    return training_fault and f"a layer that runs in training only reads its units ({training_fault})"


def calls_more_in_training(model: nn.Module, batch: Any) -> bool:
    """Return whether the model runs in training mode, and calls modules there that it does not else.

    Auxiliary heads and branches of a loss are such: no output in evaluation mode leads to them.
    """
    calls: list[set[str]] = []
    for mode in (evaluation_mode, training_mode):
        called: set[str] = set()
        with ExitStack() as stack:
            for name, module in model.named_modules():

                def note(*_: Any, name: str = name, called: set[str] = called) -> None:
                    called.add(name)

                stack.callback(module.register_forward_pre_hook(note).remove)
            stack.enter_context(mode(model))
            try:
                outputs_of(model, batch)
            # A model that does not run in training has nothing there to protect.
            except Exception:  # noqa: BLE001
                return False
        calls.append(called)
    return not calls[1] <= calls[0]


def _fault_in_training(model: nn.Module, batch: Any) -> str:
    with training_mode(model):
        try:
            outputs_of(model, batch)
        except Exception as error:  # noqa: BLE001
            return first_line(error)
    return ""


def _fault_reversed(subject: nn.Module, group: Group, batch: Any) -> str:
    """Return the fault of a group with its producers' weights negated: rectified units at rest are active.

    Of the few units of a squeeze that see one place of two items, all of a half may be at rest by chance.
    """
    with restoring(subject, ()):
        for name in group.producers:
            module = subject.get_submodule(name)
            for key, parameter in module.named_parameters(recurse=False):
                module._parameters[key] = nn.Parameter(-parameter.detach(), parameter.requires_grad)
        return joint_fault(subject, (group,), batch, outputs_of(subject, batch))


def _output_depends_on(subject: nn.Module, groups: Sequence[Group], batch: Any) -> list[bool]:
    """Return for each group whether the output depends on what ``mask_units`` writes to, by autograd.

    Code that works in place may run and still have no gradient: then none of them counts as mattering.
    """
    weights = {
        name: tensor
        for group in groups
        for name in masked_tensors(group)
        if (tensor := tensor_named(subject, name)) is not None
    }
    flags = {name: weight.requires_grad for name, weight in weights.items()}
    try:
        matters = gradients_of(subject, list(weights.values()), batch, lambda each: bool(each.any()))
    except RuntimeError:
        matters = []
    finally:
        for name, weight in weights.items():
            weight.requires_grad_(flags[name])
    matter = {name for name, fact in zip(weights, matters, strict=False) if fact}
    return [not matter.isdisjoint(masked_tensors(group)) for group in groups]


def gradients_of(
    subject: nn.Module, wanted: Sequence[Tensor], batch: Any, fact: Callable[[Tensor], T]
) -> list[T | None]:
    """Return a fact of each gradient of a random sum of all outputs; none where they have no gradient.

    A gradient is dropped once its fact is known: a model's are never all there at once.
    """
    if not wanted:
        return []
    facts: list[T | None] = [None] * len(wanted)
    held = [tensor.grad for tensor in wanted]

    def note(tensor: Tensor, place: int) -> None:
        if tensor.grad is not None:
            facts[place], tensor.grad = fact(tensor.grad), None

    generator = torch.Generator().manual_seed(0)
    with ExitStack() as stack:
        for place, tensor in enumerate(wanted):
            tensor.requires_grad_(True).grad = None
            own: Any = tensor
            stack.callback(own.register_post_accumulate_grad_hook(partial(note, place=place)).remove)
        stack.callback(_set_gradients, wanted, held)
        stack.enter_context(torch.enable_grad())
        stack.enter_context(fixed_seed())
        stack.enter_context(sound_backward(subject))
        parts = [
            (part * torch.randn(part.shape, generator=generator).to(part)).sum().cpu().double()
            for part in flat_tensors(call_model(subject, batch))
        ]
        total: Any = torch.stack(parts).sum() if parts else torch.zeros(())
        if total.requires_grad:
            total.backward(inputs=list(wanted))
    return facts


def _set_gradients(tensors: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    for tensor, gradient in zip(tensors, gradients, strict=True):
        tensor.grad = gradient


def unwrapped_slices(
    subject: nn.Module, group: Group, unwrapped: Mapping[str, nn.Parameter], batch: Any
) -> tuple[Slice, ...]:
    """Return where parameters that no layer holds (positions, a scale) have elements of a group's units.

    Along an axis that is laid out as some tensor of the group is, or one element per unit, the gradient of
    the output is zero exactly at the masked units, and not zero everywhere.

    Cost: one pass forward and backward where such a parameter has an axis of such a length, else none.
    """
    shapes = {name: parameter.shape for name, parameter in subject.named_parameters()}
    layouts = {
        (each.offset, each.block, each.repeat, each.stride): shapes[each.tensor][each.axis]
        for each in group.slices
        if each.tensor in shapes
    }
    layouts[0, 1, 1, 0] = group.width
    held = {each.tensor for each in group.slices}
    places = [
        Slice(name, axis, *layout)
        for name, parameter in unwrapped.items()
        if name not in held
        for axis, size in enumerate(parameter.shape)
        for layout, length in layouts.items()
        if length == size
    ]
    if not places:
        return ()
    half = prune_half(group)
    names = list(dict.fromkeys(place.tensor for place in places))
    with restoring(subject, (group,)):
        try:
            mask_units(subject, group, half.removed)
            own = dict(subject.named_parameters())
            found_here = gradients_of(subject, [own[name] for name in names], batch, lambda each: each)
            gradients = dict(zip(names, found_here, strict=True))
        # A wrong guess at where units lie; the trial will refuse it.
        except Exception:  # noqa: BLE001
            return ()
    found: dict[str, Slice] = {}
    for place in places:
        gradient = gradients.get(place.tensor)
        if gradient is None or place.tensor in found:
            continue
        index = element_index(place, group.width, gradient.device)
        rows = gradient.movedim(place.axis, 0)
        at_removed, at_kept = (rows[index[list(units)].flatten()] for units in (half.removed, half.kept))
        if not at_removed.any() and at_kept.any():
            found[place.tensor] = place
    return tuple(found.values())


class Prover:
    """Proves candidates; holds the groups accepted so far.

    Args:
        subject: the randomised model; it is pruned in place and restored.
        batch: one batch that it is called on.
        tied: modules whose parameters are also those of another one, by name.
        excluded: modules whose units are kept, with the reason.
    """

    def __init__(
        self, subject: nn.Module, batch: Any, tied: Mapping[str, str], excluded: Mapping[str, str]
    ) -> None:
        self.accepted: dict[str, Group] = {}
        self._subject = subject
        self._batch = batch
        self._tied = tied
        self._excluded = excluded
        self._trains = calls_more_in_training(subject, batch)
        self._unwrapped = unwrapped_parameters(subject)
        self._shapes = {name: tensor.shape for name, tensor in subject.state_dict().items()}
        self._claims: dict[tuple[str, int], list[tuple[Group, Tensor]]] = defaultdict(list)

    def prove(self, candidates: Sequence[Candidate]) -> dict[str, str | Group]:
        """Accept of each candidate the first way that holds; return why the others do not, by group name.

        In place of a reason stands the accepted group that has some of the same units.
        """
        reasons: dict[str, str | Group] = {}
        rank = 0
        pending = list(candidates)
        while pending:
            outcome = self._try_all([proposal for each in pending for proposal in each.ways[rank]])
            for proposal, reason in outcome.values():
                if reason:
                    reasons.setdefault(proposal.group.name, reason)
            pending = [
                each
                for each in pending
                if len(each.ways) > rank + 1 and all(outcome[id(proposal)][1] for proposal in each.ways[rank])
            ]
            rank += 1
        # Reasons are reported for the way with the most groups.
        named = {proposal.group.name for each in candidates for proposal in max(each.ways, key=len)}
        return {name: why for name, why in reasons.items() if name in named and name not in self.accepted}

    def drop_clashes(self) -> dict[str, str]:
        """Give up the groups that cannot be pruned along with those before; return the reason for each."""
        groups = list(self.accepted.values())

        def fault(together: Sequence[Group]) -> str:
            return joint_fault(self._subject, together, self._batch, trains=self._trains)

        if not groups or not fault(groups):
            return {}
        kept: list[Group] = []
        for group in groups:
            if not fault([*kept, group]):
                kept.append(group)
        self.accepted = {group.name: group for group in kept}
        dropped = [group.name for group in groups if group.name not in self.accepted]
        return dict.fromkeys(dropped, "it cannot be pruned along with the groups before it")

    def _try_all(self, proposals: Sequence[Proposal]) -> dict[int, tuple[Proposal, str | Group]]:
        """Return the outcome of each proposal, those tried again that one in vain had stood in the way of."""
        outcome: dict[int, tuple[Proposal, str | Group]] = {}
        while proposals:
            outcome |= self._try(proposals)
            blocked = [
                proposal
                for proposal, reason in (outcome[id(each)] for each in proposals)
                if isinstance(reason, Group) and reason.name not in self.accepted
            ]
            proposals = blocked if len(blocked) < len(proposals) else []
        return outcome

    def _try(self, proposals: Sequence[Proposal]) -> dict[int, tuple[Proposal, str | Group]]:
        """Return each proposal by its id with the reason against it, empty where it is now accepted."""
        outcome: dict[int, tuple[Proposal, str | Group]] = {}
        trials: list[tuple[Proposal, Group]] = []
        for proposal in proposals:
            group = proposal.group
            reason = self._structural_fault(proposal)
            outcome[id(proposal)] = proposal, reason
            if reason:
                continue
            # A group that others of this round share units with waits for none of them: the first is taken.
            for place, mask in self._masks(group):
                self._claims[place].append((group, mask))
            if group.scores is None:  # The dimensions of heads have no unwrapped parameters.
                extra = unwrapped_slices(self._subject, group, self._unwrapped, self._batch)
                group = replace(group, slices=(*group.slices, *extra))
            trials.append((proposal, group))
        faults = trial_faults(self._subject, [group for _, group in trials], self._batch, trains=self._trains)
        for (proposal, group), fault in zip(trials, faults, strict=True):
            outcome[id(proposal)] = proposal, fault
            if fault:
                for place, _ in self._masks(proposal.group):
                    claims = self._claims[place]
                    self._claims[place] = [each for each in claims if each[0] is not proposal.group]
            else:
                self.accepted[group.name] = group
        return outcome

    def _structural_fault(self, proposal: Proposal) -> str | Group:
        group = proposal.group
        if reason := next((self._excluded[name] for name in group.producers if name in self._excluded), ""):
            return reason
        if proposal.fault:
            return self._known_inside(group) or proposal.fault
        touched = (*group.producers, *group.members, *(each.module for each in group.consumers))
        if shared := next((name for name in touched if name in self._tied), ""):
            return f"the weight of {shared} is also that of {self._tied[shared]}"
        if group.width == 1:
            return "it has one unit only"
        if any(
            int(element_index(each, group.width).max()) >= self._shapes[each.tensor][each.axis]
            for each in group.slices
            if each.tensor in self._shapes
        ):
            return "its units do not fit its tensors"
        for place, mask in self._masks(group):
            for other, theirs in self._claims[place]:
                if bool((mask & theirs).any()) and not _are_crosswise(group, other):
                    return other
        return ""

    def _known_inside(self, group: Group) -> Group | None:
        """Return the accepted group that makes some of these units, if any: heads, or channels of a scan.

        What the trace sees of the inside is no reason then.
        """
        if group.scores is not None:  # The dimensions of heads have reasons of their own.
            return None
        made = {(each.tensor, each.axis) for each in group.slices if each.module in group.producers}
        if not made:  # Nothing but its root is known where the trace fails.
            root = tensor_axes(self._subject.get_submodule(group.name), "out")
            made = {(f"{group.name}.{tensor}", axis) for tensor, axis in root.items()}
        return next(
            (
                other
                for other in self.accepted.values()
                if made & {(each.tensor, each.axis) for each in other.slices}
            ),
            None,
        )

    def _masks(self, group: Group) -> Iterator[tuple[tuple[str, int], Tensor]]:
        """Yield which elements of which axes belong to a group."""
        for each in group.slices:
            if each.tensor in self._shapes:
                mask = torch.zeros(self._shapes[each.tensor][each.axis], dtype=torch.bool)
                index = element_index(each, group.width).flatten()
                mask[index[index < len(mask)]] = True
                yield (each.tensor, each.axis), mask


def _are_crosswise(first: Group, second: Group) -> bool:
    """Return whether one has whole heads and the other the dimensions of just those: neither hides the other.

    Of every head that is kept the same dimensions are kept, so an axis pruned by both keeps a product.
    """
    width, heads = (first, second) if first.scores is not None else (second, first)
    if width.scores is None or heads.kind != "heads":
        return False
    own = {(each.tensor, each.axis) for each in width.slices}
    return all(
        not (each.offset % width.width or each.block % width.width or each.stride % width.width)
        for each in heads.slices
        if (each.tensor, each.axis) in own
    )
