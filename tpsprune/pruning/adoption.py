"""A model that another tool has pruned, fitted anew to the dense model that it was pruned from."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from tpsprune.errors import PruneError
from tpsprune.numerics.forward import fixed_seed, full_precision
from tpsprune.numerics.trees import take_items
from tpsprune.pruning.alignment import FAR, align_units
from tpsprune.pruning.extract import Extraction, draw
from tpsprune.pruning.fitted import choose_and_fit
from tpsprune.pruning.groups import PrunedGroup
from tpsprune.pruning.observations import hold_out
from tpsprune.pruning.opening import open_what_computes_alike
from tpsprune.pruning.output_error import output_error
from tpsprune.pruning.planning import WidthPlan, plan_widths
from tpsprune.pruning.prunability import find_groups
from tpsprune.pruning.surgery import pruned_copy
from tpsprune.recipe.prune import Prune, Widths

EQUAL: Final = 1e-9
"""A distance that rounding leaves between units of equal weights."""


@full_precision()
@fixed_seed()
def refit_pruned(
    pruned: Mapping[str, Tensor], model: nn.Module, batches: Sequence[Any], settings: Prune
) -> tuple[Extraction, nn.Module]:
    """Return the ticket of the units that another tool has kept, fitted to the dense model, and the other's.

    Units are found by their weights (``align_units``). The ticket takes nothing else from the pruned model:
    its weights are the dense model's, compensated and reconstructed. A note has what both leave of the
    output error on calibration data held out, the ticket fitted on the rest.

    Args:
        pruned: the state dict of the pruned model.
        model: dense; not changed.
        batches: prepared calibration batches.
        settings: of compensation and reconstruction; the target does not count.

    Raises:
        PruneError: as ``extract`` and ``align_units``; the pruned model's units are nobody's here; or it errs
            less as it is, as one may that was trained since.

    Cost: the search for groups twice; an extraction without measured cuts, and a walk on the items that are
    not held out.
    """
    two_items = take_items(batches[0], torch.arange(2))
    opened_model, opened, closed = open_what_computes_alike(model, two_items)
    groups = find_groups(opened_model, two_items, settings.ignored_layers, closed=closed).groups
    dense = dict(opened_model.state_dict())
    pruned = _with_opened(pruned, dense, model.state_dict())
    kept, distance = align_units(groups, dense, pruned)
    if not kept:
        raise PruneError("the pruned model has the shapes of the dense one: there is nothing to fit")
    if distance > FAR:
        differ = f"their weights differ by {distance:.2f} of what those of units at random do"
        raise PruneError(f"the units of the pruned model are not the dense model's: {differ}")
    settings = replace(
        settings,
        target=Widths({name: len(units) for name, units in kept.items()}),
        embedding_width=True,
        low_rank=False,
    )
    planned = replace(plan_widths(model, batches, settings), given=kept)
    other = _their_model(pruned, opened_model if opened else model, planned, kept)
    fit, held = hold_out(batches)
    before = output_error(other, model, held)
    after = output_error(choose_and_fit(model, fit, settings, planned).ticket, model, held)
    if not after < before:
        errors = f"its outputs err by {before:.3g} on calibration data held out, fitted anew by {after:.3g}"
        raise PruneError(f"fitting the pruned model anew brings nothing: {errors}")
    found = draw(model, batches, settings, planned)
    errors = f"the pruned model's outputs err by {before:.3g}, those of the ticket by {after:.3g}"
    note = f"on calibration data held out {errors}"
    if distance > EQUAL:
        note += f"; units were found by weights that differ by {distance:.2g} of what units at random do"
    return replace(found, notes=(note, *found.notes)), other


def _with_opened(
    pruned: Mapping[str, Tensor], opened: Mapping[str, Tensor], dense: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the pruned model's tensors with those of modules that are opened here, which must be whole.

    Raises:
        PruneError: such a module was pruned: which part of a packed tensor is what, widths alone do not say.
    """
    for name in (each for each in dense if each not in opened and each in pruned):
        if dense[name].shape != pruned[name].shape:
            raise PruneError(f"{name} holds several layers in one, and is smaller in the pruned model")
    return {**pruned, **{name: each for name, each in opened.items() if name not in dense}}


def _their_model(
    pruned: Mapping[str, Tensor], like: nn.Module, planned: WidthPlan, kept: Mapping[str, Sequence[int]]
) -> nn.Module:
    """Return the other tool's model: the dense one sliced to its shapes, with its weights."""
    narrowed = [PrunedGroup.of(group, kept[group.name]) for group in planned.groups if group.name in kept]
    theirs = pruned_copy(like, narrowed)
    theirs.load_state_dict({name: copy.deepcopy(pruned[name]) for name in theirs.state_dict()})
    return theirs
