"""How much an error at a layer's output is heard at the end: the model's own slopes, without labels.

Shape letters: b items, q outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn

from tpsprune.numerics.forward import call_model, evaluation_mode, widened
from tpsprune.numerics.trees import item_count
from tpsprune.pruning.layers import channels_first
from tpsprune.pruning.rows import some
from tpsprune.pruning.trial import item_tensors

__all__ = ["sensitivities"]

ITEMS: Final = 32
"""How many items of the probe are enough: a mean of squares over them and over all places."""
AT_A_TIME: Final = 8


def sensitivities(
    model: nn.Module, probe: Sequence[Any], names: Sequence[str], *, seed: int = 0
) -> dict[str, Tensor]:
    """Return for each layer ``sensitivity_q``: what a unit of variance at an output costs at the end.

    With z_q(s) a layer's output q at place s and o the model's outputs, each over its standard deviation,

        d_q = Σ_s E[ (∂(v·o) / ∂z_q(s))² ],      v of independent random signs,

    is the mean squared error of o, summed, per variance of an independent small error at z_q. It does not
    see that errors of places and layers are correlated, nor what a large error does.

    Args:
        model: called in evaluation mode; its parameters' flags are put back.
        probe: prepared batches; some 32 items are used.
        names: of layers.
        seed: of the signs.

    Returns:
        A tensor for each layer that the outputs depend on; double precision where there is one. Nothing at
        all where the model has no gradient.

    Cost: a pass forward and backward over those items.
    """
    generator = torch.Generator().manual_seed(seed)
    sums: dict[str, Tensor] = {}
    seen = 0
    with evaluation_mode(model), _all_gradients(model), torch.enable_grad():
        for batch in some(probe, ITEMS, AT_A_TIME):
            said: dict[str, list[Tensor]] = {name: [] for name in names}
            with ExitStack() as stack:
                for name in names:

                    def keep(
                        _module: nn.Module, _args: Any, out: Any, outs: list[Tensor] = said[name]
                    ) -> Tensor | None:
                        if not isinstance(out, Tensor) or not out.requires_grad:
                            return None
                        outs.append(out)
                        # What comes next may work in place: the slope is wanted before it.
                        return out.clone()

                    stack.callback(model.get_submodule(name).register_forward_hook(keep).remove)
                outputs = [out for out in item_tensors(call_model(model, batch)) if out.requires_grad]
            flat = [(name, out) for name, outs in said.items() for out in outs]
            if not outputs or not flat:
                return {}
            total = torch.stack([_projected(out, generator) for out in outputs]).sum()
            try:
                slopes = torch.autograd.grad(total, [out for _, out in flat], allow_unused=True)
            except RuntimeError:  # Code that works in place may run and still have no gradient.
                return {}
            for (name, _), slope in zip(flat, slopes, strict=True):
                if slope is not None:
                    axis = 1 if channels_first(model.get_submodule(name)) else -1
                    squares_q = widened(slope).square().movedim(axis, -1).flatten(0, -2).sum(0)
                    sums[name] = sums.get(name, torch.zeros_like(squares_q)) + squares_q
            seen += item_count(batch)
    return {name: squares_q / seen for name, squares_q in sums.items() if bool(squares_q.isfinite().all())}


def _projected(out: Tensor, generator: torch.Generator) -> Tensor:
    """Return a random sum of an output's elements, each output over its spread in this batch."""
    signs = torch.randint(0, 2, out.shape, generator=generator).to(out) * 2 - 1
    spread = out.detach().float().std(correction=0).to(out.dtype)
    # An output that does not vary has no scale of its own, and nothing to lose.
    spread = torch.where(spread > 0, spread, torch.inf)
    projected: Tensor = (out * signs / spread).float().sum() / max(1, out[0].numel()) ** 0.5
    return projected


@contextmanager
def _all_gradients(model: nn.Module) -> Iterator[None]:
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in flags:
        parameter.requires_grad_(parameter.is_floating_point())
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
