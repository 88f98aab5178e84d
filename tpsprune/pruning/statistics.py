"""What consumers are fed by the dense model and by the model as cut so far, side by side, streamed.

Shape letters: b items, r rows (items times positions), n units.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from tpsprune.numerics.forward import call_model, evaluation_mode
from tpsprune.numerics.moments import as_rows
from tpsprune.numerics.precision import widened
from tpsprune.pruning.groups import Consumer

__all__ = ["PairMoments", "call_order", "pair_moments"]


@dataclass(frozen=True, slots=True, eq=False)
class PairMoments:
    """Moments of n units at one consumer: x as the cut model feeds it, y as the dense model does.

    Covariances are biased; ``xy_nn[i, j]`` is that of x_i with y_j. Double precision where there is one.
    """

    rows: int
    mean_x_n: Tensor
    mean_y_n: Tensor
    xx_nn: Tensor
    xy_nn: Tensor
    yy_nn: Tensor


def pair_moments(
    dense: nn.Module, cut: nn.Module, batches: Iterable[Any], widths: Mapping[Consumer, int]
) -> dict[Consumer, PairMoments]:
    """Return the joint moments at each consumer of what two models of one shape feed it.

    Both models are called in evaluation mode, once per batch; with ``cut is dense`` only one of them.
    A consumer that is called several times in a pass adds up its calls; one that is not called, or is
    fed no row, is left out. Padding is not seen: a row is a position of the input itself.

    Cost: the forward passes, and 3·r·n² multiply-adds for each consumer.
    """
    sums = {consumer: _Sums(width) for consumer, width in widths.items()}
    with torch.no_grad(), evaluation_mode(dense), evaluation_mode(cut):
        for batch in batches:
            fed_y = _fed(dense, batch, widths)
            fed_x = fed_y if cut is dense else _fed(cut, batch, widths)
            for consumer, each in sums.items():
                for x_rn, y_rn in zip(fed_x[consumer], fed_y[consumer], strict=True):
                    each.add(x_rn, y_rn)
    return {consumer: each.moments() for consumer, each in sums.items() if each.rows}


def call_order(model: nn.Module, batch: Any, consumers: Sequence[Consumer]) -> tuple[Consumer, ...]:
    """Return the consumers in the order in which a forward pass first calls them."""
    called: list[str] = []
    with ExitStack() as stack:
        stack.enter_context(evaluation_mode(model))
        stack.enter_context(torch.no_grad())
        for name in {consumer.module for consumer in consumers}:
            handle = model.get_submodule(name).register_forward_pre_hook(
                lambda _module, _args, name=name: called.append(name)
            )
            stack.callback(handle.remove)
        call_model(model, batch)
    return tuple(sorted(consumers, key=lambda consumer: (called.index(consumer.module), consumer.offset)))


def _fed(model: nn.Module, batch: Any, widths: Mapping[Consumer, int]) -> dict[Consumer, list[Tensor]]:
    fed: dict[Consumer, list[Tensor]] = defaultdict(list)
    with ExitStack() as stack:
        for consumer, width in widths.items():
            module = model.get_submodule(consumer.module)

            def keep(
                module: nn.Module,
                args: tuple[Any, ...],
                kwargs: dict[str, Any],
                consumer: Consumer = consumer,
                width: int = width,
            ) -> None:
                given = args[0] if args else kwargs["input"]
                fed[consumer].append(_rows(module, given, consumer, width))

            stack.callback(module.register_forward_pre_hook(keep, with_kwargs=True).remove)
        call_model(model, batch)
    return fed


def _rows(module: nn.Module, given: Tensor, consumer: Consumer, width: int) -> Tensor:
    channels_first = isinstance(module, _ConvNd)
    axis = 1 if channels_first else given.ndim - 1
    own = given.narrow(axis, consumer.offset, width * consumer.block)
    rows_rn = as_rows(own, width, channels_first=channels_first)
    return widened(rows_rn)


class _Sums:
    """Running sums about the dense model's first mean, so that units far from zero lose no digits."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.rows = 0
        self.shift_n = self.sums_2n = self.products = torch.empty(0)

    def add(self, x_rn: Tensor, y_rn: Tensor) -> None:
        if not self.rows:
            self.shift_n = y_rn.mean(0)
            self.sums_2n = y_rn.new_zeros(2 * self.width)
            self.products = y_rn.new_zeros(2 * self.width, 2 * self.width)
        both_r2n = torch.cat([x_rn - self.shift_n, y_rn - self.shift_n], dim=1)
        self.rows += len(both_r2n)
        self.sums_2n += both_r2n.sum(0)
        self.products.addmm_(both_r2n.T, both_r2n)

    def moments(self) -> PairMoments:
        n = self.width
        mean_2n = self.sums_2n / self.rows
        covariance = self.products / self.rows - torch.outer(mean_2n, mean_2n)
        return PairMoments(
            self.rows,
            self.shift_n + mean_2n[:n],
            self.shift_n + mean_2n[n:],
            covariance[:n, :n],
            covariance[:n, n:],
            covariance[n:, n:],
        )
