"""Importances of units as others define them: torch-pruning's, on our own groups, for comparison.

torch-pruning's formulas are called as they are. They get our groups in place of its own, so that attention
heads and the groups of a grouped convolution have a score too, and so that no threshold, ratio or traversal
of that library decides anything.

Shape letters: n units, e elements along an axis.

Source: Fang et al. 2023, "DepGraph: Towards Any Structural Pruning", CVPR; its code's ``reproduce/main.py``
for the names of the importances.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final

import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tpsprune.errors import PruneError, did_you_mean
from tpsprune.numerics.forward import call_model, evaluation_mode, item_tensors, sound_backward
from tpsprune.numerics.objective import CROSS_ENTROPY, Objective
from tpsprune.numerics.trees import map_tensors, take_items
from tpsprune.pruning.groups import Consumer, Group, Slice, element_index
from tpsprune.pruning.layers import MIXERS, is_depthwise, tensor_axes
from tpsprune.pruning.surgery import copy_model

_IMPORTANCES: Final[Mapping[str, Callable[[], Any]]] = {
    "magnitude": lambda: torch_pruning.importance.GroupMagnitudeImportance(p=1),
    "group-norm": lambda: torch_pruning.importance.GroupMagnitudeImportance(p=2),
    "taylor": torch_pruning.importance.GroupTaylorImportance,
    "synflow": torch_pruning.importance.GroupTaylorImportance,
    "bn-scale": torch_pruning.importance.BNScaleImportance,
    "lamp": torch_pruning.importance.LAMPImportance,
    "fpgm": torch_pruning.importance.FPGMImportance,
}
KINDS: Final = (*_IMPORTANCES, "random")
"""The scores there are. OBDC is not among them: it works on attention networks only."""


@dataclass(frozen=True, slots=True)
class _Item:
    """One line of a group as torch-pruning's importances read it: a layer, its side, its elements' units."""

    layer: nn.Module
    pruning_fn: Any
    elements: tuple[int, ...]
    root_idxs: tuple[int, ...]

    @property
    def target(self) -> Any:
        """What newer importances call the layer."""
        return SimpleNamespace(module=self.layer)

    @property
    def handler(self) -> Any:
        """What newer importances call the side."""
        return self.pruning_fn

    def __iter__(self) -> Iterator[Any]:
        """Unpack into the dependency and its elements, as torch-pruning's group items do."""
        return iter((self, list(self.elements)))


def score_units(
    model: nn.Module,
    batches: Sequence[Any],
    groups: Sequence[Group],
    kind: str,
    *,
    labels: Sequence[Tensor] | None = None,
    seed: int = 0,
    objective: Objective = CROSS_ENTROPY,
) -> dict[str, Tensor]:
    """Return for each group one score per unit, ``scores_n``; the higher is kept.

    With w all weights that unit u owns in one tensor (a producer's rows, a consumer's columns, a batch or
    layer norm's scale), summed over the unit's elements and averaged over the group's tensors:

    - ``magnitude``: Σ|w|. ``group-norm``: Σw². ``lamp``: the latter over the sum of all that are not smaller.
    - ``taylor``: Σ|w · ∂loss/∂w|, loss the mean of the ``objective`` over the batches; ``bn-scale``: |γ|.
    - ``synflow``: Σ|w · ∂R/∂w| of the model with |w| for every weight, R the sum of its outputs for an input
      of ones (token ids are taken from the first item): what flows through the unit, without any data.
    - ``fpgm``: Σ distances of w² to that of every other element: what lies amid the others is pruned.
    - ``random``: uniform in [0, 1).

    All but ``lamp`` and ``random`` are over their mean, so that scores of different groups compare. A group
    whose scores are all zero keeps them as they are. Embeddings, depthwise convolutions and parameters
    outside layers count for nothing, as in torch-pruning.

    Args:
        model: not changed.
        batches: prepared calibration batches; ``taylor`` alone runs them, ``synflow`` reads their shapes.
        groups: of this model.
        kind: one of ``KINDS``.
        labels: as the objective wants them, one tensor for each batch; ``taylor`` alone needs them.
        seed: for ``random``; torch's own generator is neither read nor moved.
        objective: what ``taylor`` takes the gradient of; cross-entropy over classes (items …) by default.

    Raises:
        PruneError: no such kind; ``taylor`` without labels or with too few of them; a group in which the
            formula finds nothing to score, as ``bn-scale`` in one without batch norm: torch-pruning would
            skip such a group silently.

    Cost: the weights once; ``fpgm`` e² distances for each tensor; ``taylor`` one pass forward and backward,
    ``synflow`` one of a single item.

    Source of ``synflow``: Tanaka et al. 2020 (arXiv 2006.05467), equation 3 and its code; here once, not in
    rounds, and summed over a unit.
    """
    if kind not in KINDS:
        raise PruneError(f"units = {kind!r} is no importance{did_you_mean(kind, KINDS)}")
    if kind == "random":
        generator = torch.Generator().manual_seed(seed)
        return {group.name: torch.rand(group.width, generator=generator) for group in groups}
    work = copy_model(model)
    for parameter in work.parameters():
        parameter.requires_grad_(True)
    if kind == "taylor":
        _take_gradients(work, batches, labels, objective)
    elif kind == "synflow":
        _let_flow(work, batches[0])
    formula = _IMPORTANCES[kind]()
    # Its scores are as long as the first tensor's axis and would be normalised over that.
    normalizer, formula.normalizer = formula.normalizer, None
    return {group.name: _scores(work, group, kind, formula, normalizer) for group in groups}


def highest(scores_n: Tensor, count: int) -> tuple[int, ...]:
    """Return the ``count`` units of highest score, the highest first; of equal ones the lowest."""
    order = torch.argsort(scores_n, descending=True, stable=True)
    return tuple(order[:count].tolist())


def _scores(model: nn.Module, group: Group, kind: str, formula: Any, normalizer: str) -> Tensor:
    items = list(_items(model, group))
    # The first tensor's length is that of the sums: it must have an element for every unit.
    scored_n = formula(items)
    if scored_n is None:
        needed = "no batch norm with a scale" if kind == "bn-scale" else "nothing that this formula can score"
        raise PruneError(
            f"units = {kind!r}: group {group.name!r} holds {needed}; name it in prune.ignored_layers, or "
            "choose other units"
        )
    scores_n: Tensor = scored_n[: group.width]
    if not bool(scores_n.isfinite().all()) and kind != "lamp":
        raise PruneError(
            f"units = {kind!r}: scores of group {group.name!r} are not finite: a weight or a gradient is "
            "not, or is too large; choose other units"
        )
    if not bool(scores_n.any()):
        return scores_n.float()
    normed_n: Tensor = formula._normalize(scores_n, normalizer)
    # The formula of lamp divides zero by zero where units are zero.
    return normed_n.nan_to_num(0.0).float()


def _items(model: nn.Module, group: Group) -> Iterator[_Item]:
    for slice_ in group.slices:
        name, _, tensor = slice_.tensor.rpartition(".")
        if tensor == "weight" and (side := _out_side(module := model.get_submodule(name), slice_)):
            yield _item(module, side, slice_, group.width)
    for consumer in group.consumers:
        module = model.get_submodule(consumer.module)
        linear = isinstance(module, nn.Linear)
        side = torch_pruning.prune_linear_in_channels if linear else torch_pruning.prune_conv_in_channels
        yield _item(module, side, consumer, group.width)


def _out_side(module: nn.Module, slice_: Slice) -> Any:
    """Return torch-pruning's name for what a slice of a weight is, or nothing where it has no score."""
    if isinstance(module, MIXERS):
        if is_depthwise(module) or slice_.axis != tensor_axes(module, "out")["weight"]:
            return None
        linear = isinstance(module, nn.Linear)
        return torch_pruning.prune_linear_out_channels if linear else torch_pruning.prune_conv_out_channels
    if isinstance(module, _BatchNorm) and module.affine:
        return torch_pruning.prune_batchnorm_out_channels
    if isinstance(module, nn.LayerNorm) and module.elementwise_affine:
        return torch_pruning.prune_layernorm_out_channels
    return None


def _item(module: nn.Module, side: Any, layout: Slice | Consumer, width: int) -> _Item:
    index = element_index(layout, width)
    units = torch.arange(width)[:, None].expand_as(index)
    elements, order = index.flatten().sort()
    return _Item(module, side, tuple(elements.tolist()), tuple(units.flatten()[order].tolist()))


def _take_gradients(
    model: nn.Module, batches: Sequence[Any], labels: Sequence[Tensor] | None, objective: Objective
) -> None:
    if labels is None:
        raise PruneError(
            "units = 'taylor' needs the labels of the calibration data, and there are none; pass them as "
            "labels, one tensor for each batch, or choose units that need none, as 'interpolation'"
        )
    if len(labels) != len(batches):
        raise PruneError(
            f"units = 'taylor': {len(labels)} label tensors for {len(batches)} calibration batches"
        )
    counted = 0
    with evaluation_mode(model), torch.enable_grad(), sound_backward(model):
        for batch, label in zip(batches, labels, strict=True):
            sums = objective.sums(call_model(model, batch), label)
            sums.loss.backward()  # type: ignore[no-untyped-call]
            counted += int(sums.counted)
    _fill_gradients(model)
    for parameter in model.parameters():
        assert parameter.grad is not None, "it was filled"
        parameter.grad /= max(counted, 1)


def _let_flow(model: nn.Module, batch: Any) -> None:
    """Make all weights of a copy positive; take the gradient of its outputs' sum for an input of ones."""
    one = take_items(batch, torch.zeros(1, dtype=torch.int64))
    # In double precision: over many layers of positive weights the flow passes what single can hold.
    is_wide = all(each.device.type != "mps" for each in model.parameters())
    wide = torch.float64 if is_wide else torch.float32
    model.to(wide)
    ones = map_tensors(
        one, lambda each: torch.ones_like(each, dtype=wide) if each.is_floating_point() else each
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
    with evaluation_mode(model), torch.enable_grad(), sound_backward(model):
        outputs = [each.sum() for each in item_tensors(call_model(model, ones))]
        torch.stack(outputs).sum().backward()  # type: ignore[no-untyped-call]
    _fill_gradients(model)
    # As much flows through every layer: over the largest single flow nothing is too large for the formula.
    flows = [(each * each.grad).abs().max() for each in model.parameters() if each.grad is not None]
    largest = torch.stack(flows).max().detach().clamp_min(torch.finfo(wide).tiny)
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad /= largest


def _fill_gradients(model: nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
