"""The curvature of a loss: its Hessian, whole for small models, and its ends and sign by Lanczos for others.

Shape letters: p numbers of all parameters that train, k Lanczos steps, r rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from tpsprune.numerics.forward import evaluation_mode, widened

MOST_PARAMETERS: Final = 2000
NEGATIVE: Final = 1e-3
"""An eigenvalue below minus this share of the largest in magnitude counts as negative, not as rounding."""
LANCZOS_STEPS: Final = 40
PROBES: Final = 4
ROWS: Final = 64
"""Rows of a whole Hessian that are computed at a time."""
Product: TypeAlias = Callable[[Tensor], Tensor]
"""A Hessian (p, p) as what it makes of a vector (p,), or of each row of a matrix (r, p)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curvature:
    """Of a Hessian of ``parameters`` rows: the ends of its spectrum, and the negative share.

    ``negative_share`` is Σ_{λ<0} |λ| / Σ |λ|: unlike the index it does not hang on where zero ends.
    """

    parameters: int
    smallest: float
    largest: float
    negative_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ExactCurvature(Curvature):
    """The same of a whole spectrum, with the index: how many eigenvalues are negative."""

    index: int


def loss_gradient(
    model: nn.Module, loss_of: Callable[[nn.Module], Tensor], dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Return the parameters that train, end to end (p,), and the loss's gradient there, differentiable again.

    Args:
        model: not changed; in evaluation mode for the pass.
        loss_of: the loss as a function of a model that computes as this one with other parameters.
        dtype: of parameters and buffers in the pass; those of the model without.

    Raises:
        RuntimeError: a part of the model has no second derivative.
    """
    trained = {name: each.detach() for name, each in model.named_parameters() if each.requires_grad}
    sizes = [each.numel() for each in trained.values()]
    state = {
        name: each.detach().to(dtype) if dtype and each.is_floating_point() else each.detach()
        for name, each in (*model.named_parameters(), *model.named_buffers())
        if name not in trained
    }
    theta_p = torch.cat([each.to(dtype or each.dtype).flatten() for each in trained.values()])
    # Only attention in plain operations can be differentiated twice.
    with evaluation_mode(model), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        theta_p = theta_p.detach().requires_grad_()
        parts = zip(trained.items(), torch.split(theta_p, sizes), strict=True)
        held = {**state, **{name: part.view(old.shape) for (name, old), part in parts}}
        loss = loss_of(
            lambda *args, **kwargs: functional_call(model, held, args, kwargs)  # type: ignore[arg-type]
        )
        (gradient_p,) = torch.autograd.grad(loss, theta_p, create_graph=True)
    # Such a part raises only where a path leads through it, and none does: its share would go unseen.
    if any(each.name() == "torch::autograd::Error" for each in _nodes(gradient_p)):
        raise RuntimeError("an operation is marked with @once_differentiable")
    return theta_p, gradient_p


def _nodes(tensor: Tensor) -> set[Any]:
    """Return what autograd has recorded of how a tensor was computed."""
    found: set[Any] = set()
    left = [tensor.grad_fn]
    while left:
        if (node := left.pop()) is not None and node not in found:
            found.add(node)
            left += [before for before, _ in node.next_functions]
    return found


def hessian_product(theta_p: Tensor, gradient_p: Tensor) -> Product:
    """Return v ↦ H v for the parameters and the gradient of ``loss_gradient``; of a matrix, for every row.

    Cost of a product: a pass backward through the gradient's own computation, twice a pass of training; the
    memory of that computation is held until the product is let go.
    """
    if gradient_p.grad_fn is None:  # the loss is linear in all parameters
        return torch.zeros_like

    def product(v: Tensor) -> Tensor:
        rows = v.ndim == 2
        (found,) = torch.autograd.grad(gradient_p, theta_p, v, retain_graph=True, is_grads_batched=rows)
        return found

    return product


def loss_hessian(
    model: nn.Module, loss_of: Callable[[nn.Module], Tensor], dtype: torch.dtype | None = torch.float64
) -> Tensor:
    """Return the Hessian (p, p) of a loss in all parameters that train, in evaluation mode, end to end.

    Exact, by reverse differentiation twice. Of ReLU nets it does not see the kinks: within a region they are
    pieces of lower degree.

    Args:
        model: not changed.
        loss_of: the loss as a function of a model that computes as this one with other parameters.
        dtype: of parameters and buffers in the pass; the model's own with none.

    Raises:
        ValueError: there are more than 2,000 parameters; p² numbers and p passes would be too many.
        RuntimeError: a part of the model has no second derivative.

    Cost: p products of ``hessian_product``; p² numbers.
    """
    count = sum(each.numel() for each in model.parameters() if each.requires_grad)
    if count > MOST_PARAMETERS:
        raise ValueError(f"{count:,} parameters; the exact Hessian is of {MOST_PARAMETERS:,} at most")
    theta_p, gradient_p = loss_gradient(model, loss_of, dtype)
    return whole_hessian(hessian_product(theta_p, gradient_p), theta_p)


def whole_hessian(product: Product, like_p: Tensor) -> Tensor:
    """Return the Hessian (p, p) that a product is of, 64 rows at a time; p² numbers."""
    eye_pp = torch.eye(len(like_p), dtype=like_p.dtype, device=like_p.device)
    return torch.cat([product(rows_rp) for rows_rp in torch.split(eye_pp, ROWS)])


def curvature_of(hessian_pp: Tensor) -> ExactCurvature:
    """Return index, ends and negative share of a Hessian.

    The index hangs on ``NEGATIVE``: most eigenvalues of a net lie near zero. Invariant to turning and to
    positive scale. Cost: one eigenvalue problem of p × p.
    """
    lambda_p = torch.linalg.eigvalsh(hessian_pp.cpu())
    size = float(lambda_p.abs().max())
    return ExactCurvature(
        parameters=len(lambda_p),
        index=int((lambda_p < -NEGATIVE * size).sum()),
        smallest=float(lambda_p[0]),
        largest=float(lambda_p[-1]),
        negative_share=_negative_share(lambda_p, torch.ones_like(lambda_p)),
    )


def lanczos_curvature(
    product: Product, like_p: Tensor, steps: int = LANCZOS_STEPS, probes: int = PROBES, seed: int = 0
) -> Curvature:
    """Return the ends and the negative share of a Hessian known by its products alone.

    From a few vectors of random signs Lanczos steps give Ritz values θ_j and, by the first entries τ_j of
    their vectors, a quadrature: mean over probes of Σ τ_j² f(θ_j) ≈ tr f(H) / p. The ends are the outermost
    Ritz values of all probes, never outside of the spectrum. There is no index: most eigenvalues of a net
    lie next to zero, on either side, where a quadrature of few nodes does not count them.

    Args:
        product: of ``hessian_product``.
        like_p: a vector of the right length, dtype and device.
        steps: k for each probe.
        probes: how many vectors.
        seed: of the vectors.

    Cost: k products for each probe, k² p multiply-adds to keep their vectors orthogonal, k p numbers.

    Source: Golub and Welsch 1969; Ghorbani, Krishnan and Xiao 2019 (arXiv 1901.10159).
    """
    generator = torch.Generator().manual_seed(seed)
    nodes, weights = [], []
    for _ in range(probes):
        signs_p = torch.randint(2, (len(like_p),), generator=generator).to(like_p) * 2 - 1
        theta_k, vectors_kk = torch.linalg.eigh(tridiagonal(product, signs_p, steps))
        nodes.append(theta_k)
        weights.append(vectors_kk[0].square())
    theta, weight = torch.cat(nodes), torch.cat(weights)
    return Curvature(
        parameters=len(like_p),
        smallest=float(theta.min()),
        largest=float(theta.max()),
        negative_share=_negative_share(theta, weight),
    )


def tridiagonal(product: Product, start_p: Tensor, steps: int) -> Tensor:
    """Return T (k, k) = Qᵀ H Q for an orthonormal basis Q of H's Krylov space from a vector.

    Each vector is made orthogonal to all before it, twice over. Fewer than ``steps`` rows where the space
    ends sooner: T then has the eigenvalues of H that the vector has a part in.
    """
    basis_kp = start_p.new_empty(min(steps, len(start_p)), len(start_p))
    next_p = start_p
    alpha: list[float] = []
    beta = [float(start_p.norm())]
    for k in range(len(basis_kp)):
        basis_kp[k] = next_p / beta[-1]
        next_p = product(basis_kp[k])
        size = float(next_p.norm())
        alpha.append(float(basis_kp[k] @ next_p))
        for _ in range(2):
            next_p = next_p - basis_kp[: k + 1].T @ (basis_kp[: k + 1] @ next_p)
        beta.append(float(next_p.norm()))
        if beta[-1] <= 10 * torch.finfo(next_p.dtype).eps * max(size, abs(alpha[0])):
            break
    beside = torch.tensor(beta[1 : len(alpha)], dtype=torch.float64)
    return torch.tensor(alpha, dtype=torch.float64).diag() + beside.diag(1) + beside.diag(-1)


def _negative_share(lambda_p: Tensor, weight_p: Tensor) -> float:
    """Return Σ_{λ<0} w|λ| / Σ w|λ|; 0 where all is zero."""
    size_p = widened(lambda_p.abs() * weight_p)
    total = float(size_p.sum())
    return float(size_p[lambda_p < 0].sum()) / total if total > 0 else 0.0
