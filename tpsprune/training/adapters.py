"""Training few numbers in the place of all: the head alone, or low-rank factors of a change of the weights.

Shape letters: m rows and n columns of a weight (its outputs, and all that one output reads), x = max(m, n),
r rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt
from typing import Final, Literal, TypeAlias, final

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from tpsprune.errors import Fault, RecipeError

Kind: TypeAlias = Literal["head", "lora", "singlora"]
RAMP_SHARE: Final = 0.1
"""Of the steps of a training, over which SingLoRA's change is let in."""
SMALL: Final = 0.1
"""By which SingLoRA's first factors are multiplied: as published they undo what was fitted at a cut."""


def find_adapted(model: nn.Module, kind: Kind) -> list[nn.Linear | _ConvNd]:
    """Return the layers that an adapter trains: linear ones and convolutions, or the last linear one.

    Layers that are frozen, or compute their weight, stay as they are.

    Raises:
        RecipeError: there is none.
    """
    wanted: type[nn.Linear] | tuple[type[nn.Linear], type[_ConvNd]] = nn.Linear
    if kind != "head":
        wanted = (nn.Linear, _ConvNd)
    found = [
        module
        for module in model.modules()
        if isinstance(module, wanted)
        and isinstance(module.weight, nn.Parameter)
        and module.weight.requires_grad
    ]
    if not found:
        layers = "linear layer" if kind == "head" else "linear layer and no convolution"
        message = f"'{kind}' has nothing to train here: the model has no {layers} that is not frozen"
        raise RecipeError("recipe", [Fault("retrain.adapter", f"{message}; use 'none'")])
    return found[-1:] if kind == "head" else found


@final
class LowRankChange(nn.Module):
    """A change of one weight, as a matrix (m, n): s u B A (``lora``) or s u A_m A_nᵀ (``singlora``).

    ``singlora`` has one factor A (x, r); A_m and A_n are its first m and n rows. Of a square weight the
    change is symmetric, and A Q gives the same for any orthogonal Q. ``lora`` has B (m, r) = 0 and A (r, n).
    So x r numbers against (m + n) r.
    """

    original: Tensor

    def __init__(
        self, weight: nn.Parameter, kind: Kind, *, rank: int, scale: float, start: float, seed: int
    ) -> None:
        super().__init__()
        self._weight = (weight,)  # In a tuple: it is the model's, no parameter of this module.
        self.scale = scale
        self.register_buffer("original", weight.detach().clone())
        rows, columns = weight.flatten(1).shape
        rank = min(rank, rows, columns)
        if kind == "lora":
            self.b_mr = nn.Parameter(weight.new_zeros(rows, rank))
            self.a_rn = nn.Parameter(_uniform(weight, (rank, columns), 1 / sqrt(columns), seed))
        else:
            size = (max(rows, columns), rank)
            self.a_xr = nn.Parameter(start * _uniform(weight, size, 1 / sqrt(rank), seed))

    @property
    def weight(self) -> nn.Parameter:
        """The weight, as it is now."""
        return self._weight[0]

    def at(self, ramp: float) -> Tensor:
        """Return the change in the shape of the weight, at u = ``ramp``."""
        rows, columns = self.weight.flatten(1).shape
        if hasattr(self, "b_mr"):
            change_mn = self.b_mr @ self.a_rn
        else:
            change_mn = self.a_xr[:rows] @ self.a_xr[:columns].T
        return (self.scale * ramp * change_mn).view(self.weight.shape)


@final
class Adapter(nn.Module):
    """What trains of a model in the place of all of it; the model keeps its shape, names and plain weights.

    Its parameters are what the optimiser holds: those of the last linear layer (``head``), or the factors of
    a change of each weight (``lora``, ``singlora``). Two parts of a step are its own: ``pull_back`` turns the
    gradients of the weights into those of the factors, by the chain rule, and after the optimiser ``write``
    sets the weights to W₀ + change. So whatever reads the model meanwhile sees what the ticket will be, and
    nothing is left to merge: ``release`` only lets everything train again. Biases and norms do not train.

    SingLoRA's change is let in by u(t) = min(t / T, 1), t steps taken, T = ``ramp_steps``: it starts at the
    model exactly. LoRA does since B = 0.

    Its state holds W₀, the factors, t and T: with the model's, all that a resumed run needs.

    Args:
        model: what its owner has frozen stays so.
        kind: of adapter.
        rank: r, never more than a weight has rows or columns.
        ramp_steps: T.
        seed: of the first factors; torch's own generator is neither read nor moved.
        scale: s = α / r.
        start: what SingLoRA's first factors, uniform within ± 1 / √r, are multiplied by.

    Raises:
        RecipeError: the model has nothing to adapt.

    Cost: a step makes the gradients of the adapted weights, as it would without, and some products of rank r;
    the optimiser's state is that of the factors. Memory: a copy of the adapted weights.

    Source: Hu et al. 2021, "LoRA" (arXiv:2106.09685); Bensaïd et al. 2025, "SingLoRA" (arXiv:2507.05566).
    """

    steps: Tensor
    """t and T."""

    def __init__(
        self,
        model: nn.Module,
        kind: Kind,
        *,
        rank: int = 4,
        ramp_steps: int = 1,
        seed: int = 0,
        scale: float = 1.0,
        start: float = SMALL,
    ) -> None:
        super().__init__()
        layers = find_adapted(model, kind)
        self.kind = kind
        self._model = (model,)
        # A weight that several layers share is changed once.
        weights = [each for layer in layers for name, each in layer.named_parameters() if name == "weight"]
        kept = weights = list(dict.fromkeys(weights))
        if kind == "head":
            self.head = layers[0]
            kept, weights = list(layers[0].parameters()), []
        self.changes = nn.ModuleList(
            LowRankChange(weight, kind, rank=rank, scale=scale, start=start, seed=seed + number)
            for number, weight in enumerate(weights)
        )
        trains = {id(each) for each in kept}
        self._frozen = [each for each in model.parameters() if each.requires_grad and id(each) not in trains]
        for each in self._frozen:
            each.requires_grad = False
        self.register_buffer("steps", torch.tensor([0, ramp_steps]))

    @property
    def ramp(self) -> float:
        """U of the step to come: 1 but for SingLoRA."""
        taken, whole = self.steps.tolist()
        return min(taken / whole, 1.0) if self.kind == "singlora" else 1.0

    def set_modes(self) -> None:
        """Put what a head reads into evaluation mode: it does not change, its batch norms neither."""
        if self.kind == "head":
            self._model[0].eval()

    def pull_back(self) -> None:
        """Turn the gradients of the model's weights into those of the factors."""
        found = [(each, each.weight.grad) for each in self._each() if each.weight.grad is not None]
        if found:
            changes = [each.at(self.ramp) for each, _ in found]
            torch.autograd.backward(changes, [gradient for _, gradient in found])
        for each, _ in found:
            each.weight.grad = None

    @torch.no_grad()
    def write(self) -> None:
        """Count a step, and write the weights that follow from the factors."""
        self.steps[0] += 1
        for each in self._each():
            each.weight.copy_(each.original + each.at(self.ramp))

    def release(self) -> None:
        """Let everything train again that did before; the weights stay as they are."""
        for each in self._frozen:
            each.requires_grad = True

    def _each(self) -> Iterator[LowRankChange]:
        return (each for each in self.changes if isinstance(each, LowRankChange))


def _uniform(like: Tensor, size: tuple[int, ...], bound: float, seed: int) -> Tensor:
    """Return numbers uniform within ± ``bound``, in the type and on the device of ``like``."""
    drawn = torch.rand(size, generator=torch.Generator().manual_seed(seed))
    return (bound * (2.0 * drawn - 1.0)).to(like)
