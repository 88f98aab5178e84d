"""What the model's outputs lose when a group alone is cut: measured, not derived from slopes.

The residual share of a group says how well its units estimate one another, up to a factor of the group's own:
what an error there is worth at the end of the network. Slopes give that factor for small errors only; with
half of the units gone errors are not small. So it is measured once, and the curve of the residual goes
through the point measured.

Shape letters: n signals (units times features) of a consumer, k those kept, r those removed, p positions of a
signal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn

from tpsprune.numerics.moments import Moments
from tpsprune.numerics.peers import ALONE, AbstractPeers
from tpsprune.numerics.trees import item_count
from tpsprune.pruning.groups import Consumer, Group, element_index
from tpsprune.pruning.layers import channels_first
from tpsprune.pruning.observations import hold_out, sample_items, with_items
from tpsprune.pruning.output_error import error_of, predict

RIDGE: Final = 1e-4
"""Of the mean variance of a signal, as little as an estimate from few rows bears."""
NOTHING: Final = 1e-20
"""A variance below it is that of dead units, and their covariance singular."""
MOST_ITEMS: Final = 64
LEAST_ITEMS: Final = 8
SHARE_OF_A_PASS: Final = 0.5
"""All measurements together take about as many items as this share of the calibration data holds."""
AT_A_TIME: Final = 32


def measure_cuts(
    model: nn.Module,
    batches: Sequence[Any],
    classes: Mapping[str, Sequence[tuple[Group, Sequence[int]]]],
    moments: Mapping[Consumer, Moments],
    peers: AbstractPeers = ALONE,
) -> dict[str, float]:
    """Return for each class the error of the outputs where its groups have only the units given.

    Every consumer of the class sees estimates of the signals removed from those kept, by least squares: what
    compensation of that class alone gives. The error is that of ``output_error``, on items held out.

    Args:
        model: not changed; called in evaluation mode.
        batches: prepared calibration batches.
        classes: the groups of each class (``ties``), each with the units that it keeps.
        moments: of the signals of each consumer.
        peers: each measures some of the classes.

    Cost: a pass for each class over 8 to 64 items, half of the calibration data in all or those eight.
    """
    few = items_to_measure(batches, len(classes))
    dense = list(predict(model, few))

    def measure(name: str) -> float:
        with _estimating(model, classes[name], moments):
            return error_of(predict(model, few), iter(dense))

    return dict(zip(classes, peers.deal(list(classes), measure), strict=True))


def items_to_measure(batches: Sequence[Any], times: int) -> list[Any]:
    """Return items held out for so many measurements: 8 to 64, or those that make half a pass in all."""
    _, held = hold_out(batches)
    wanted = int(SHARE_OF_A_PASS * sum(map(item_count, batches)) / max(1, times))
    return list(sample_items(held, max(LEAST_ITEMS, min(MOST_ITEMS, wanted)), AT_A_TIME))


@contextmanager
def _estimating(
    model: nn.Module, members: Sequence[tuple[Group, Sequence[int]]], moments: Mapping[Consumer, Moments]
) -> Iterator[None]:
    """Have consumers see, of the units that are not kept, estimates from those that are."""
    with ExitStack() as stack:
        for group, kept in members:
            for consumer in (each for each in group.consumers if each in moments):
                module = model.get_submodule(consumer.module)
                estimate = _estimate(module, group, consumer, kept, moments[consumer])

                def hook(
                    _module: nn.Module,
                    args: tuple[Any, ...],
                    kwargs: dict[str, Any],
                    estimate: Callable[[Tensor], Tensor] = estimate,
                ) -> tuple[tuple[Any, ...], dict[str, Any]]:
                    if args:
                        return (estimate(args[0]), *args[1:]), kwargs
                    name = next(iter(kwargs))
                    return args, {**kwargs, name: estimate(kwargs[name])}

                stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield


def _estimate(
    module: nn.Module, group: Group, consumer: Consumer, kept: Sequence[int], moments: Moments
) -> Callable[[Tensor], Tensor]:
    """Return what replaces the removed signals in a consumer's input: E[y_r | x_k], linear."""
    features = consumer.features
    is_kept_n = torch.zeros(group.width, features, dtype=torch.bool)
    is_kept_n[list(kept)] = True
    kept_k, removed_r = is_kept_n.flatten().nonzero()[:, 0], (~is_kept_n.flatten()).nonzero()[:, 0]
    covariance_nn, mean_n = moments.covariance_nn, moments.mean_n
    kept_k, removed_r = kept_k.to(mean_n.device), removed_r.to(mean_n.device)
    own_kk = covariance_nn[kept_k][:, kept_k].clone()
    scale = own_kk.diagonal().mean().clamp_min(NOTHING)
    own_kk.diagonal().add_(RIDGE * scale)
    map_rk = torch.linalg.solve(own_kk, covariance_nn[kept_k][:, removed_r]).mT
    intercept_r = mean_n[removed_r] - map_rk @ mean_n[kept_k]
    place_np = element_index(consumer, group.width).reshape(len(mean_n), -1).to(mean_n.device)
    axis = 1 if channels_first(module) else -1

    def estimate(inputs: Tensor) -> Tensor:
        x = with_items(module, inputs).movedim(axis, -1).clone()
        x_kp = x[..., place_np[kept_k]]
        y_rp = map_rk.to(x) @ x_kp + intercept_r.to(x)[:, None]
        x[..., place_np[removed_r]] = y_rp
        return x.movedim(-1, axis).reshape(inputs.shape)

    return estimate
