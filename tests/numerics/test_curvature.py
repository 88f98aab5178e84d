"""The exact Hessian of small models, the index it has, and what Lanczos steps say of it."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.unchanged import unchanged
from tpsprune.numerics.curvature import (
    Curvature,
    Product,
    curvature_of,
    hessian_product,
    lanczos,
    lanczos_curvature,
    loss_gradient,
    loss_hessian,
    orthogonal,
)


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


class Products(nn.Module):
    """Σ_m u_m v_m x₁ x₂: what can tell XOR, each hidden unit a product of the inputs."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.u, self.v = nn.Parameter(torch.zeros(units)), nn.Parameter(torch.zeros(units))

    def forward(self, inputs: Tensor) -> Tensor:
        return (self.u @ self.v) * inputs.prod(1)


def by_lanczos(product: Product, like: Tensor, steps: int = 40, probes: int = 1) -> Curvature:
    return lanczos_curvature(product, like, steps, probes)


def tanh_net(generator: torch.Generator, steps: int = 60) -> tuple[nn.Sequential, Tensor, Tensor]:
    """490 parameters, on the way down."""
    model = nn.Sequential(nn.Linear(16, 18), nn.Tanh(), nn.Linear(18, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    inputs = torch.randn(96, 16, generator=generator, dtype=torch.float64)
    labels = (inputs[:, 0] > 0).long() + 2 * (inputs[:, 1] * inputs[:, 2] > 0).long()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    model.zero_grad()
    return model, inputs, labels


def test_of_a_diagonal_hessian_every_eigenvalue_settles() -> None:
    spectrum = torch.cat([torch.linspace(-2.0, -0.1, 9), torch.linspace(0.3, 5.0, 21)]).double()
    found = by_lanczos(lambda v: spectrum * v, spectrum)
    assert found.smallest == pytest.approx(-2.0, abs=1e-10)
    assert found.largest == pytest.approx(5.0, abs=1e-10)
    share = float(spectrum[:9].abs().sum() / spectrum.abs().sum())
    assert found.negative_share == pytest.approx(share, abs=1e-10)


def test_what_does_not_settle_is_sampled_by_its_trace() -> None:
    # A bulk of two eigenvalues far below the outer ones: signs count each as often as it is there.
    bulk = torch.tensor([-0.02, 0.01]).double().repeat_interleave(torch.tensor([40, 160]))
    spectrum = torch.cat([torch.tensor([-3.0, 7.0]).double(), bulk])
    found = by_lanczos(lambda v: spectrum * v, spectrum, steps=3)
    assert found.negative_share == pytest.approx(3.8 / 12.4, rel=1e-3)


def test_a_krylov_space_ends_with_the_eigenvalues_there_are() -> None:
    spectrum = torch.tensor([-1.0, 2.0, 3.0]).double().repeat(5)
    found = lanczos(lambda v: spectrum * v, torch.ones(15).double(), 40)
    assert found.values_k.tolist() == pytest.approx([-1.0, 2.0, 3.0])
    values, vectors = found.settled()
    assert torch.allclose(vectors * spectrum, values[:, None] * vectors)
    assert torch.allclose(vectors @ vectors.T, torch.eye(3).double())
    start = orthogonal(torch.eye(15).double()[0], vectors)
    beside = lanczos(lambda v: spectrum * v, start, 40, vectors)
    assert not (beside.basis_kp @ vectors.T).abs().gt(1e-10).any()
    many = by_lanczos(lambda v: spectrum * v, spectrum, probes=64)
    assert many.negative_share == pytest.approx(1 / 6, rel=0.1), "each counts as often as it is there"
    nothing = by_lanczos(torch.zeros_like, spectrum)
    assert (nothing.smallest, nothing.largest, nothing.negative_share) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("units", [1, 5])
def test_xor_has_a_saddle_with_as_many_ways_down_as_units(units: int) -> None:
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]).double()
    model = Products(units)

    def loss_of(net: nn.Module) -> Tensor:
        return 0.5 * functional.mse_loss(net(corners), corners.prod(1))

    exact = curvature_of(loss_hessian(model, loss_of))
    assert exact.index == units
    theta, gradient = loss_gradient(model, loss_of, torch.float64)
    assert not gradient.any(), "it is critical"
    for found in (exact, by_lanczos(hessian_product(theta, gradient), theta)):
        assert (found.smallest, found.largest) == (pytest.approx(-1.0), pytest.approx(1.0))
    assert exact.negative_share == pytest.approx(0.5)


class Attentive(nn.Module):
    """Attention by torch's own kernel, which has no second derivative unless told to compute plainly."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(6, 8) for _ in range(3))
        self.norm = nn.BatchNorm1d(8)
        self.norm.running_mean = torch.arange(8.0)
        self.head = nn.Linear(8, 3)
        self.head.bias.requires_grad_(False)

    def forward(self, x_nld: Tensor) -> Tensor:
        q, k, v = (each(x_nld)[:, None] for each in (self.q, self.k, self.v))
        mixed = functional.scaled_dot_product_attention(q, k, v)[:, 0].mean(1)
        scores: Tensor = self.head(self.norm(mixed).tanh())
        return scores


def test_a_product_is_the_slope_of_the_gradient_through_attention_and_frozen_parts() -> None:
    torch.manual_seed(2)
    model = Attentive().train()
    inputs, labels = torch.randn(12, 5, 6), torch.arange(12) % 3
    model(inputs)  # a fused kernel is taken here
    drawn = torch.get_rng_state()

    def loss_of(net: nn.Module) -> Tensor:
        return functional.cross_entropy(net(inputs.to(next(iter(model.parameters())).dtype)), labels)

    with unchanged(model):
        theta, gradient = loss_gradient(model, loss_of)
        product = hessian_product(theta, gradient)
        v = torch.sign(torch.sin(torch.arange(len(theta)).float() + 0.5))
        found = product(v)
        rows = product(torch.stack([v, 2 * v, -v]))
    assert torch.equal(torch.get_rng_state(), drawn)
    assert len(theta) == sum(each.numel() for each in model.parameters()) - 3
    torch.testing.assert_close(rows, torch.stack([found, 2 * found, -found]), rtol=1e-4, atol=1e-6)

    model = model.double().eval()
    trained = [each for each in model.parameters() if each.requires_grad]
    step = 1e-6

    def gradient_at(shift: float) -> Tensor:
        with torch.no_grad():
            for parameter, part in zip(
                trained, torch.split(v.double(), [each.numel() for each in trained]), strict=True
            ):
                parameter.add_(shift * part.view_as(parameter))
        return torch.cat([each.flatten() for each in torch.autograd.grad(loss_of(model), trained)])

    slope = (gradient_at(step) - gradient_at(-2 * step)) / (2 * step)
    torch.testing.assert_close(found.double(), slope, rtol=1e-3, atol=1e-5)


def test_lanczos_agrees_with_the_whole_spectrum_of_a_tanh_net(generator: torch.Generator) -> None:
    model, inputs, labels = tanh_net(generator)

    def loss_of(net: nn.Module) -> Tensor:
        return functional.cross_entropy(net(inputs), labels)

    hessian = loss_hessian(model, loss_of)
    exact = curvature_of(hessian)
    assert exact.parameters == 494
    assert exact.index > 20
    theta, gradient = loss_gradient(model, loss_of)
    product = hessian_product(theta, gradient)
    found = by_lanczos(product, theta)
    assert found.smallest == pytest.approx(exact.smallest, rel=1e-3)
    assert found.largest == pytest.approx(exact.largest, rel=1e-6)
    assert found.negative_share == pytest.approx(exact.negative_share, rel=0.3)
    assert found.negative_share == pytest.approx(
        lanczos_curvature(lambda v: hessian @ v, theta.detach()).negative_share, rel=1e-6
    )
    many = by_lanczos(lambda v: hessian @ v, theta.detach(), steps=80, probes=64)
    assert many.negative_share == pytest.approx(exact.negative_share, rel=0.03), "that is no bias"


def test_ends_close_in_with_more_steps_and_never_leave_the_spectrum(generator: torch.Generator) -> None:
    model, inputs, labels = tanh_net(generator)
    hessian = loss_hessian(model, lambda net: functional.cross_entropy(net(inputs), labels))
    exact = curvature_of(hessian)
    errors = []
    for steps in (3, 6, 12, 24, 48):
        found = lanczos_curvature(lambda v: hessian @ v, hessian[0], steps, probes=1)
        low, high = found.smallest - exact.smallest, exact.largest - found.largest
        assert min(low, high) > -1e-12
        errors.append((low, high))
    for ends in zip(*errors, strict=True):
        assert all(later < earlier or later < 1e-12 for earlier, later in pairwise(ends))
        assert ends[-1] < 1e-4 * ends[0]


def test_the_order_of_hidden_units_does_not_matter(generator: torch.Generator) -> None:
    model, inputs, labels = tanh_net(generator)

    def spectra() -> tuple[Curvature, Curvature]:
        def loss_of(net: nn.Module) -> Tensor:
            return functional.cross_entropy(net(inputs), labels)

        theta, gradient = loss_gradient(model, loss_of)
        whole = curvature_of(loss_hessian(model, loss_of))
        return whole, by_lanczos(hessian_product(theta, gradient), theta, steps=80)

    before = spectra()
    order = torch.randperm(18, generator=generator)
    with torch.no_grad():
        for tensor in (model[0].weight, model[0].bias):
            tensor.copy_(tensor[order].clone())
        model[2].weight.copy_(model[2].weight[:, order].clone())
    after = spectra()
    assert after[0].negative_share == pytest.approx(before[0].negative_share, rel=1e-9)
    for one, other in zip(before, after, strict=True):
        assert other.smallest == pytest.approx(one.smallest, rel=1e-6)
        assert other.largest == pytest.approx(one.largest, rel=1e-6)


def test_a_loss_that_is_linear_has_no_curvature() -> None:
    model = nn.Linear(3, 1, bias=False)
    found = curvature_of(loss_hessian(model, lambda net: net(torch.ones(1, 3, dtype=torch.float64)).sum()))
    assert (found.index, found.negative_share, found.largest) == (0, 0.0, 0.0)
