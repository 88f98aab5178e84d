"""Several sizes of one model from one look at it: each smaller one has some of the larger one's units."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from tpsprune.errors import PruneError
from tpsprune.numerics.forward import fixed_seed, full_precision
from tpsprune.pruning.costs import sliced_shell
from tpsprune.pruning.opening import open_layers
from tpsprune.pruning.planning import WidthPlan, plan_size, plan_widths
from tpsprune.recipe.prune import Prune, Share, Tolerance


@full_precision()
@fixed_seed()
def plan_sizes(
    model: nn.Module,
    batches: Sequence[Any],
    settings: Prune,
    targets: Sequence[Share],
    *,
    labels: Sequence[Tensor] | None = None,
    clock: Callable[[nn.Module], float] | None = None,
    seed: int = 0,
) -> tuple[WidthPlan, ...]:
    """Return a plan for each target, the largest ticket first; ``draw`` makes the ticket of each.

    Groups, statistics and order of units are found once. No group is wider in a smaller ticket than in a
    larger one, and keeps the first units of one order: so they are nested.

    Args:
        model: as ``extract`` takes it; so are ``batches``, ``labels``, ``clock`` and ``seed``.
        settings: their target does not count.
        targets: of one kind, in any order.

    Raises:
        PruneError: as ``plan_widths``, of the least target first; layers of low rank were asked for.

    Cost: ``plan_widths`` once.
    """
    if settings.low_rank:
        raise PruneError(
            "low_rank: the layers that are split are not those of a larger ticket; draw each by itself"
        )
    # Of a model that may lose more less is left.
    ordered = sorted(targets, key=lambda each: each.share if isinstance(each, Tolerance) else -each.share)
    least = replace(settings, target=ordered[-1])
    planned = plan_widths(model, batches, least, labels=labels, clock=clock, seed=seed)
    plans: list[WidthPlan] = []
    for target in ordered:
        within = plans[-1].widths if plans else None
        plans.append(plan_size(planned, model, replace(settings, target=target), within=within, clock=clock))
    return tuple(plans)


def shell_of(model: nn.Module, planned: WidthPlan) -> nn.Module:
    """Return the model at the widths of a plan, with weights that nothing was fitted to."""
    opened_model, _ = open_layers(model, planned.prunability.opened)
    return sliced_shell(opened_model, planned.groups, planned.widths)
