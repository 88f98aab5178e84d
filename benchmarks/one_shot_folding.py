"""Model folding with REPAIR: units that are alike are merged, none is removed; a baseline of the field.

For each group the units' weights, scaled by the batch norm that follows, are clustered by k-means; what makes
a cluster is the mean of its units, what reads it the sum of their columns; batch-norm statistics are computed
again. Widths are uniform. Source: Wang et al. 2025, "Forget the Data and Fine-Tuning! Just Fold the Network
to Compress" (arXiv:2502.10216), with the statistics of REPAIR (Jordan et al. 2022, arXiv:2211.08403).

Shape letters: u units of a group, d weights of a unit, c clusters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tpsprune.numerics.macs import count_macs
from tpsprune.pruning.groups import Group, PrunedGroup, Slice, element_index
from tpsprune.pruning.layers import tensor_axes, tensor_named
from tpsprune.pruning.planning import plan_widths
from tpsprune.pruning.recalibration import recalibrate_norms
from tpsprune.pruning.surgery import pruned_copy
from tpsprune.recipe.prune import Macs, Prune


def folded(model: nn.Module, batches: Sequence[Tensor], share: float) -> tuple[nn.Module, float]:
    """Return a folded copy at a share of the multiply-accumulates, and the share that it has."""
    settings = Prune(target=Macs(share), widths="uniform", units="magnitude", round_to=1)
    planned = plan_widths(model, batches, settings)
    merged = pruned_copy(model, ())
    pruned = []
    for group in planned.narrowed:
        clusters_u = cluster(model, group, planned.width_of[group.name])
        merge(merged, group, clusters_u)
        firsts = [clusters_u.index(each) for each in sorted(set(clusters_u))]
        pruned.append(PrunedGroup.of(group, firsts))
    ticket, _ = recalibrate_norms(pruned_copy(merged, pruned), model, batches)
    return ticket, count_macs(ticket, batches[0]).total / count_macs(model, batches[0]).total


def cluster(model: nn.Module, group: Group, count: int) -> list[int]:
    """Return the cluster of each unit, by the weights that make it."""
    made = [
        each for each in group.slices if each.module in group.producers and not _reads(model, group, each)
    ]
    rows_ud = torch.cat([_rows(model, each, group.width).flatten(1) for each in made], 1)
    for name in group.members:
        norm = model.get_submodule(name)
        if isinstance(norm, _BatchNorm) and norm.running_var is not None:
            scale_u = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
            rows_ud = rows_ud * scale_u[: group.width, None]
            break
    found = KMeans(count, n_init=4, random_state=0).fit_predict(rows_ud.double().numpy())
    return [int(each) for each in found]


def merge(model: nn.Module, group: Group, clusters_u: Sequence[int]) -> None:
    """Give the first unit of each cluster the mean of its units, and their sum where they are read."""
    members = {each: [u for u, own in enumerate(clusters_u) if own == each] for each in set(clusters_u)}
    with torch.no_grad():
        for layout in group.slices:
            tensor = tensor_named(model, layout.tensor)
            if tensor is None:
                continue
            rows, index_ue = tensor.movedim(layout.axis, 0), element_index(layout, group.width)
            for units in members.values():
                whole = rows[index_ue[units]]
                rows[index_ue[units[0]]] = whole.sum(0) if _reads(model, group, layout) else whole.mean(0)


def _reads(model: nn.Module, group: Group, layout: Slice) -> bool:
    """Return whether a slice is of the inputs of a layer that mixes the units."""
    consumers = {each.module for each in group.consumers}
    module = model.get_submodule(layout.module)
    return (
        layout.module in consumers
        and tensor_axes(module, "in").get(layout.tensor.rpartition(".")[2]) == layout.axis
    )


def _rows(model: nn.Module, layout: Slice, width: int) -> Tensor:
    tensor = tensor_named(model, layout.tensor)
    if tensor is None:
        return torch.zeros(width, 0)
    return tensor.detach().movedim(layout.axis, 0)[element_index(layout, width)]
