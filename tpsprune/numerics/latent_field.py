"""An autoencoder applied to its own outputs: where its orbits end, and how far those of another model lie.

x → D(E(x)) and z → E(D(z)) are one orbit seen from two sides: D maps the second to the first, and the
Jacobians at corresponding points have the same eigenvalues but for zeros. Outputs are followed here: a ticket
may have fewer codes than its dense model, and as many outputs.

Shape letters: n items, a attractors; what follows are the axes of an item.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import Final, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import vjp
from torch.nn import functional

ITERATIONS: Final = (1, 10, 100)
POWER_STEPS: Final = 60
RADII: Final = 8
"""Attractors at which the Jacobian is read."""
SAME_PLACE: Final = 0.05
"""End points nearer than this share of the spread of the data are one attractor."""
BISECTIONS: Final = 18
MOST_SHAKEN: Final = 2.0**10
"""Standard deviations of a tensor's numbers by which they are shaken at most."""
Map: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Basins:
    """Where each item's orbit ends: the number of its attractor, and the attractors."""

    attractor_n: Tensor
    attractors_a: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """A model beside its original, and beside the original's weights shaken to the same output error.

    ``error`` is the root of the mean square by which outputs differ. Drift, by iterations, is the distance of
    the iterates from the original's, over the spread of its outputs, which are the first iterates: later ones
    may be in one place. ``basins`` is the share of items that run to the attractor that they run to in the
    original.
    """

    error: float
    drift: dict[str, float]
    shaken_drift: dict[str, float]
    basins: float
    shaken_basins: float


def iterate(model: Map, inputs_n: Tensor, times: int) -> Tensor:
    """Return the model's outputs of its outputs, so many times over."""
    for _ in range(times):
        inputs_n = model(inputs_n)
    return inputs_n


def basins_of(model: Map, inputs_n: Tensor) -> Basins:
    """Return the attractors that items run to in 100 iterations.

    End points are taken for attractors: where the model contracts slowly, they are still on their way.

    Cost: 100 passes, and a distance of every item to every attractor.
    """
    ends_n = iterate(model, inputs_n, ITERATIONS[-1])
    return attractors_of(ends_n, SAME_PLACE * float(_spread(inputs_n)))


def attractors_of(ends_n: Tensor, near: float) -> Basins:
    """Return the attractor of each end point: the first point of each place, one apart from all before."""
    found: list[Tensor] = []
    numbers = []
    for end in ends_n:
        distances = [float((end - each).norm()) for each in found]
        if not distances or min(distances) > near:
            found.append(end)
            numbers.append(len(found) - 1)
        else:
            numbers.append(distances.index(min(distances)))
    return Basins(torch.tensor(numbers, device=ends_n.device), torch.stack(found))


def spectral_radius(model: Map, point: Tensor) -> float:
    """Return the modulus of the largest eigenvalue of the Jacobian at a point, by power iteration.

    On the transposed Jacobian, which has the same eigenvalues. The geometric mean growth over the last half
    of the steps, so that a pair of complex eigenvalues, which turns, gives its modulus too. Below 1 orbits
    near by run to the point if it is fixed.

    Cost: a pass, and 60 backwards.
    """
    pull = vjp(lambda each: model(each[None])[0], point)[1]
    direction = torch.randn_like(point)
    growths = []
    for _ in range(POWER_STEPS):
        direction = pull(functional.normalize(direction.flatten(), dim=0).view_as(point))[0].detach()
        growths.append(float(direction.norm()))
    last = torch.tensor(growths[POWER_STEPS // 2 :]).clamp_min(1e-12)
    return float(last.log().mean().exp())


def mean_radius(model: Map, basins: Basins) -> float:
    """Return the mean spectral radius at the first eight attractors."""
    return fmean(spectral_radius(model, each) for each in basins.attractors_a[:RADII])


@torch.no_grad()
def compare_fields(model: nn.Module, other: Map, inputs_n: Tensor, basins: Basins) -> Moved:
    """Return how far another model moves the orbits of a model whose basins these are.

    Raises:
        ValueError: no shaking of the weights makes outputs err as much.

    Cost: 500 passes and a few.
    """
    error = output_error(model, other, inputs_n)
    shaken = shake_to(model, inputs_n, error)
    return Moved(
        error=error,
        drift=_drift(model, other, inputs_n),
        shaken_drift=_drift(model, shaken, inputs_n),
        basins=_shared(other, inputs_n, basins),
        shaken_basins=_shared(shaken, inputs_n, basins),
    )


def shake_to(model: nn.Module, inputs_n: Tensor, error: float) -> nn.Module:
    """Return a copy whose weights are shaken, each tensor by its own size, until the outputs err so much.

    Raises:
        ValueError: they never do.
    """
    noise = {name: torch.randn_like(each) * _size(each) for name, each in model.named_parameters()}
    shaken = copy.deepcopy(model)

    def error_at(share: float) -> float:
        for name, each in shaken.named_parameters():
            each.copy_(model.get_parameter(name) + share * noise[name])
        return output_error(model, shaken, inputs_n)

    with torch.no_grad():
        low, high = 0.0, 1.0
        while error_at(high) < error:
            low, high = high, 2.0 * high
            if high > MOST_SHAKEN:
                raise ValueError("no shaking of the dense weights makes outputs err as much")
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if error_at(middle) < error else (low, middle)
    return shaken


def output_error(model: Map, other: Map, inputs_n: Tensor) -> float:
    """Return the root of the mean square by which the outputs of two models differ."""
    return float((model(inputs_n) - other(inputs_n)).square().mean().sqrt())


def _size(weight: Tensor) -> Tensor:
    return weight.detach().std() if weight.numel() > 1 else weight.detach().abs().mean()


def _spread(points_n: Tensor) -> Tensor:
    """Return the root of the mean squared distance from the mean."""
    return (points_n - points_n.mean(0)).flatten(1).square().sum(1).mean().sqrt()


def _drift(model: Map, other: Map, inputs_n: Tensor) -> dict[str, float]:
    found, done = {}, 0
    ours_n = theirs_n = inputs_n
    spread = _spread(model(inputs_n)).clamp_min(1e-6)
    for times in ITERATIONS:
        ours_n, theirs_n = (
            iterate(each, at_n, times - done) for each, at_n in ((model, ours_n), (other, theirs_n))
        )
        apart = (theirs_n - ours_n).flatten(1).square().sum(1).mean().sqrt()
        found[f"{times}"] = float(apart / spread)
        done = times
    return found


def _shared(other: Map, inputs_n: Tensor, basins: Basins) -> float:
    """Return the share of items whose end is nearest to the attractor that they have in the original."""
    ends_nd = iterate(other, inputs_n, ITERATIONS[-1]).flatten(1)
    nearest_n = torch.cdist(ends_nd, basins.attractors_a.flatten(1)).argmin(1)
    return float((nearest_n == basins.attractor_n).double().mean())
