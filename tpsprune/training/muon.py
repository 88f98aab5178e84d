"""Muon: the momentum of hidden matrices made orthogonal; all else is left to another optimiser.

Shape letters: m rows and n columns of a matrix, for a convolution its filters and the numbers of one.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any, Final, final

import torch
from torch import Tensor, nn

COEFFICIENTS: Final = (3.4445, -4.775, 2.0315)
ITERATIONS: Final = 5
TINY: Final = 1e-7
ADAMW_RMS: Final = 0.2
"""Root mean square of a number's step, over the learning rate, as AdamW's are."""
BUFFER: Final = "momentum_buffer"
_NO_MATRICES: Final = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm)


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """Return the weights that Muon moves: those of hidden layers that are one matrix.

    A weight of two axes whose name says ``weight`` (a linear layer's, the packed one of attention, a
    recurrent one's), or that of a convolution of one group, not transposed: its filters are the rows. Left
    out are tables (``nn.Embedding``), layers tied to one, the last weight in order of definition, taken for
    the model's outputs, and all that is no single matrix: vectors, grouped convolutions, experts in tensors
    of three axes, positions and states under another name.

    Does not see which layer is computed last: a model that defines its output layer earlier has it moved by
    Muon, and its last hidden one by AdamW. Layers are asked for no data.
    """
    weights: dict[str, nn.Parameter] = {}
    left_out: set[nn.Parameter] = set()
    for place, module in model.named_modules(remove_duplicate=False):
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, _NO_MATRICES):
                left_out.add(parameter)
            elif "weight" in name and parameter.ndim >= 2:
                weights[f"{place}.{name}"] = parameter
                if not (parameter.ndim == 2 or _is_one_matrix(module)):
                    left_out.add(parameter)
    left_out.update(list(weights.values())[-1:])
    return [each for each in dict.fromkeys(weights.values()) if each not in left_out]


def _is_one_matrix(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and module.groups == 1


def orthogonalise(update_mn: Tensor) -> Tensor:
    """Return a matrix with the singular vectors of ``update_mn`` and singular values near 1.

    Five steps X ← a X + (b A + c A²) X, A = X Xᵀ, from X = M / ‖M‖_F (a quintic Newton-Schulz iteration),
    in bfloat16. Singular values above about 1/100 of the Frobenius norm end between 0.68 and 1.21, not at 1:
    the coefficients give up the limit for steepness at zero. Smaller ones stay below; zero stays zero.

    Cost: with s the smaller of m and n, 10 s m n + 5 s³ multiply-adds.

    Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks";
    ``torch.optim.Muon`` (torch 2.9 and later) computes the same.
    """
    a, b, c = COEFFICIENTS
    is_tall = update_mn.size(0) > update_mn.size(1)
    x = update_mn.bfloat16()
    x = x.T if is_tall else x
    x = x / x.norm().clamp(min=TINY)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x


@final
class Muon(torch.optim.Optimizer):
    """B ← β B + (1 − β) G; W ← W − η λ W − η 0.2 √max(m, n) O, with O the orthogonalised (1 − β) G + β B.

    O is ``orthogonalise``'s, the look-ahead Nesterov's; W is a matrix, or a convolution as one: its filters
    as rows. By the factor each number moves as far as under AdamW, root mean square 0.2 η, so that one
    learning rate and one weight decay serve for both.

    Written here because ``torch.optim.Muon`` takes neither convolutions nor a torch before 2.9; equal to it,
    with ``adjust_lr_fn="match_rms_adamw"``, to the bit on matrices (a test).

    Source: as ``orthogonalise``; the factor: Liu et al. 2025, "Muon is Scalable for LLM Training"
    (arXiv:2502.16982).
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)

    def __init__(self, groups: Sequence[dict[str, Any]], *, lr: float, momentum: float) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # noqa: ARG002 -- torch's signature
        """Move every matrix that has a gradient; a closure is not called."""
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if BUFFER not in state:
                    state[BUFFER] = torch.zeros_like(weight)
                state[BUFFER].lerp_(weight.grad, 1 - momentum)
                update_mn = weight.grad.lerp(state[BUFFER], momentum).flatten(1)
                rate = lr * (ADAMW_RMS * sqrt(max(update_mn.shape)))
                weight.mul_(1 - lr * group["weight_decay"])
                weight.add_(orthogonalise(update_mn).reshape(weight.shape), alpha=-rate)


@final
class Joined(torch.optim.Optimizer):
    """Several optimisers as one: all their groups, one state, one step."""

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._parts = tuple(parts)
        self._matrices = frozenset(
            each
            for part in parts
            if isinstance(part, Muon)
            for group in part.param_groups
            for each in group["params"]
        )
        for part in parts:
            part.state = self.state

    def step(self, closure: Any = None) -> Any:  # noqa: ARG002 -- torch's signature
        """Have each take its step; a closure is not called."""
        for part in self._parts:
            part.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load state and groups, as torch's optimisers do; the parts go on with the same ones."""
        super().load_state_dict(state_dict)
        first = 0
        for part in self._parts:
            last = first + len(part.param_groups)
            part.param_groups, part.state = self.param_groups[first:last], self.state
            first = last

    def takes(self, parameter: nn.Parameter, entries: Mapping[str, Tensor]) -> bool:
        """Return whether state is of the kind that the parameter's optimiser holds for it."""
        return (BUFFER in entries) is (parameter in self._matrices)
