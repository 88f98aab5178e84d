"""Several sizes of one model from one look at it: each smaller one has some of the larger one's units."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from tpsprune.errors import PruneError
from tpsprune.numerics.forward import fixed_seed, full_precision
from tpsprune.numerics.objective import CROSS_ENTROPY, Objective
from tpsprune.pruning.costs import sliced_shell
from tpsprune.pruning.opening import open_layers
from tpsprune.pruning.planning import WidthPlan, order_units, plan_size, plan_widths
from tpsprune.recipe.prune import Joules, Latency, Prune, Share, Tolerance


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
    objective: Objective = CROSS_ENTROPY,
    look: WidthPlan | None = None,
    known: Mapping[Share, Mapping[str, int]] | None = None,
) -> tuple[WidthPlan, ...]:
    """Return a plan for each target, the largest ticket first; ``draw`` makes the ticket of each.

    Groups, statistics and order of units are found once. No group is wider in a smaller ticket than in a
    larger one, and keeps the first units of one order: so they are nested.

    Args:
        model: as ``extract`` takes it; so are ``batches``, ``labels``, ``clock``, ``seed``, ``objective``.
        settings: their target does not count.
        targets: of one kind, in any order.
        look: a plan of this model by these settings, of an earlier call: nothing is measured again.
        known: widths, by group, of tickets that there are already, which the others are nested with.

    Raises:
        PruneError: as ``plan_widths``, of the least target first; layers of low rank were asked for.

    Cost: ``plan_widths`` once, without a look; the order of all units.
    """
    if settings.low_rank:
        raise PruneError(
            "low_rank: the layers that are split are not those of a larger ticket; draw each by itself"
        )
    if not targets:
        return ()
    known = {} if known is None else known
    ordered = sorted({*targets, *known}, key=order_of_size, reverse=True)
    # The least first: what is out of reach is refused before anything else is planned.
    least = replace(settings, target=min(targets, key=order_of_size))
    if look is None:
        look = plan_widths(
            model,
            batches,
            least,
            labels=labels,
            clock=clock,
            seed=seed,
            objective=objective,
            chooses=not isinstance(least.target, Latency | Joules),
        )
        look = order_units(look, model, least)
    widths_of = {
        target: tuple(widths.get(group.name, group.width) for group in look.groups)
        for target, widths in known.items()
    }
    plans: list[WidthPlan] = []
    within: Sequence[int] | None = None
    for rank, target in enumerate(ordered):
        if target in known:
            within = widths_of[target]
            continue
        beyond = next((widths_of[each] for each in ordered[rank:] if each in known), None)
        own = replace(settings, target=target)
        plans.append(plan_size(look, model, own, within=within, beyond=beyond, clock=clock))
        within = plans[-1].widths
    return tuple(plans)


def order_of_size(target: Share) -> float:
    """Return what orders targets as their tickets' sizes: of a model that may lose more less is left."""
    return -target.share if isinstance(target, Tolerance) else target.share


def shell_of(model: nn.Module, planned: WidthPlan) -> nn.Module:
    """Return the model at the widths of a plan, with weights that nothing was fitted to."""
    opened_model, _ = open_layers(model, planned.prunability.opened)
    return sliced_shell(opened_model, planned.groups, planned.widths)
