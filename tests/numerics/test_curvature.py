"""The exact Hessian of small models, and the index it has."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tpsprune.numerics.curvature import curvature_of, loss_hessian


class Quadratic(nn.Module):
    """½ θᵀ A θ for a given A."""

    def __init__(self, matrix_pp: Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.randn(len(matrix_pp)))
        self.register_buffer("matrix", matrix_pp)

    def forward(self) -> Tensor:
        loss: Tensor = 0.5 * self.theta @ self.matrix @ self.theta
        return loss


def test_of_a_quadratic_it_is_the_matrix_and_the_index_its_negative_eigenvalues() -> None:
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    spectrum = torch.tensor([-3.0, -1.0, -1e-6, 0.5, 2.0, 4.0], dtype=torch.float64)
    matrix = basis @ torch.diag(spectrum) @ basis.T
    found = loss_hessian(Quadratic(matrix), lambda model: model())
    assert torch.allclose(found, matrix, atol=1e-9)
    curvature = curvature_of(found)
    assert (curvature.parameters, curvature.index) == (6, 2)
    assert curvature.smallest == pytest.approx(-3.0)
    assert curvature.largest == pytest.approx(4.0)
    assert curvature.negative_share == pytest.approx(4.000001 / 10.500001)
    assert curvature_of(7 * found).index == curvature.index


def test_at_the_origin_a_net_of_two_layers_is_a_saddle() -> None:
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Tanh(), nn.Linear(3, 1, bias=False))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    inputs = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    wanted = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    found = loss_hessian(model, lambda net: functional.mse_loss(net(inputs), wanted))
    # ∂²L/∂v_m ∂w_mi = −E[y x_i]·2: ±1 in pairs, so three negative of the nine and three zero.
    curvature = curvature_of(found)
    assert curvature.index == 3
    assert curvature.smallest == pytest.approx(-curvature.largest)


def test_it_is_what_finite_differences_of_the_gradient_give() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))
    inputs, labels = torch.randn(20, 3, dtype=torch.float64), torch.arange(20) % 2
    found = loss_hessian(model, lambda net: functional.cross_entropy(net(inputs), labels))
    model = model.double().eval()

    def gradient() -> Tensor:
        loss = functional.cross_entropy(model(inputs), labels)
        return torch.cat([each.flatten() for each in torch.autograd.grad(loss, list(model.parameters()))])

    weight, step = model[0].weight, 1e-5
    with torch.no_grad():
        weight[2, 1] += step
    above = gradient()
    with torch.no_grad():
        weight[2, 1] -= 2 * step
    slope = (above - gradient()) / (2 * step)
    assert torch.allclose(found[7], slope, atol=1e-6)
    assert torch.allclose(found, found.T, atol=1e-9)


def test_large_models_are_refused() -> None:
    with pytest.raises(ValueError, match="2,000 at most"):
        loss_hessian(nn.Linear(100, 30), lambda net: net(torch.zeros(1, 100)).sum())
