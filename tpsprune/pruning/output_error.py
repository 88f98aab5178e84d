"""How far a model's outputs are from those of another: mean square difference over variance."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from tpsprune.numerics.forward import call_model, evaluation_mode, fixed_seed, item_tensors

ROUNDING: Final = 1e-6
"""Share of an output's size that single precision does not resolve, after a few operations."""


def output_error(model: nn.Module, dense: nn.Module, batches: Sequence[Any]) -> float:
    """Return the mean square difference of two models' outputs, over the variance of the second's.

    Variance is about each output's mean over all items, however they are batched; of outputs that do not vary
    (a single item, or one constant but for rounding) the mean square takes its place.
    """
    return error_of(predict(model, batches), predict(dense, batches))


def predict(model: nn.Module, batches: Iterable[Any]) -> Iterator[list[Tensor]]:
    """Yield a model's outputs that have items, batch by batch, in evaluation mode and without gradients."""
    for batch in batches:
        with torch.no_grad(), evaluation_mode(model), fixed_seed():
            outputs = list(item_tensors(call_model(model, batch)))
        # Outside the block: two of these generators alternate, and would restore modes in the wrong order.
        yield outputs


def error_of(found: Iterable[list[Tensor]], wanted: Iterable[list[Tensor]]) -> float:
    """Return the error of outputs that were kept or are being predicted; see ``output_error``."""
    error = 0.0
    spread: list[Spread] = []
    for ours, theirs in zip(found, wanted, strict=True):
        for place, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            error += float((a - b).float().square().sum())
            if place == len(spread):
                spread.append(Spread(b.float().mean(0)))
            spread[place].add(b.float())
    squares, raw = (sum(each.about_mean() for each in spread), sum(each.raw for each in spread))
    return error / max(squares if squares > ROUNDING**2 * raw else raw, 1e-30)


class Spread:
    """Running sums of an output about its first batch's mean."""

    def __init__(self, shift: Tensor) -> None:
        self.shift = shift
        self.items = self.elements = 0
        self.sum = torch.zeros_like(shift, dtype=torch.float32)
        self.square = self.raw = 0.0

    def add(self, output: Tensor) -> None:
        """Add the items of a batch."""
        self.raw += float(output.square().sum())
        self.elements += output.numel()
        # A batch of another length (sequences) has no common mean: about its own then.
        if output.shape[1:] != self.shift.shape:
            own = output.mean(0) if len(output) > 1 else output.mean()
            self.square += float((output - own).square().sum())
            return
        away = output - self.shift
        self.items += len(away)
        self.sum += away.sum(0)
        self.square += float(away.square().sum())

    def variance(self) -> float:
        """Return the mean square about the mean, about zero where nothing varies, of an element."""
        return max(1e-30, self.squares() / max(1, self.elements))

    def squares(self) -> float:
        """Return the sum of squares about the mean; where they are rounding, about zero."""
        own = self.about_mean()
        return own if own > ROUNDING**2 * self.raw else self.raw

    def about_mean(self) -> float:
        """Return the sum of squares about the mean of all items."""
        return max(0.0, self.square - float(self.sum.square().sum()) / max(1, self.items))
