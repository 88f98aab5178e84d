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
PROBES: Final = 1
SETTLED: Final = 1e-2
"""An eigenvalue is known where what is left over of its vector's product is below this share of it."""
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


@dataclass(frozen=True, slots=True, eq=False)
class Krylov:
    """What Lanczos steps find: an orthonormal basis Q (k, p), and T = Q H Qᵀ by its eigenpairs.

    ``values`` (k,) are the Ritz values, ascending, ``vectors`` (k, k) has T's eigenvectors as columns, and
    ``rest`` is the length by which H leaves the space.
    """

    basis_kp: Tensor
    values_k: Tensor
    vectors_kk: Tensor
    rest: float

    def settled(self) -> tuple[Tensor, Tensor]:
        """Return the eigenvalues (r,) that are known to a hundredth of themselves, and vectors (r, p)."""
        residual_k = (self.rest * self.vectors_kk[-1]).abs()
        known_k = residual_k < SETTLED * self.values_k.abs()
        return self.values_k[known_k], self.vectors_kk[:, known_k].T.to(self.basis_kp) @ self.basis_kp


def lanczos_curvature(
    product: Product, like_p: Tensor, steps: int = LANCZOS_STEPS, probes: int = PROBES, seed: int = 0
) -> Curvature:
    """Return the ends and the negative share of a Hessian known by its products alone.

    Lanczos steps from a Gaussian vector settle the outer eigenvalues, r of them. The rest is sampled: of a
    vector of random signs made orthogonal to theirs, v, the Ritz values θ_j of as many steps and the first
    entries τ_j of their vectors are a quadrature, ‖v‖² Σ τ_j² f(θ_j) ≈ Σ f(λ) over the p − r others. The
    ends are the outermost Ritz values, never outside of the spectrum. There is no index: most eigenvalues of
    a net lie next to zero, on either side, where a quadrature of few nodes does not count them.

    Args:
        product: of ``hessian_product``.
        like_p: a vector of the right length, dtype and device.
        steps: k for each vector.
        probes: how many vectors sample the rest.
        seed: of the vectors.

    Cost: k products for each vector, the first included; k² p multiply-adds to keep its space orthogonal,
    and up to 2 k p numbers.

    Source: Golub and Welsch 1969; Ghorbani, Krishnan and Xiao 2019 (arXiv 1901.10159); the outer part apart
    as in Meyer et al. 2021 (arXiv 2010.09649).
    """
    generator = torch.Generator().manual_seed(seed)
    first = lanczos(product, torch.randn(len(like_p), generator=generator).to(like_p), steps)
    outer_r, vectors_rp = first.settled()
    nodes, weights, ends = [outer_r], [torch.ones_like(outer_r)], [first.values_k]
    for _ in range(probes):
        signs_p = torch.randint(2, (len(like_p),), generator=generator).to(like_p) * 2 - 1
        v_p = orthogonal(signs_p, vectors_rp)
        square = float(v_p.square().sum())
        if square < SETTLED**2:  # every eigenvalue has settled
            break
        found = lanczos(product, v_p, steps, vectors_rp)
        nodes.append(found.values_k)
        weights.append(found.vectors_kk[0].square() * square / probes)
        ends.append(found.values_k)
    return Curvature(
        parameters=len(like_p),
        smallest=float(torch.cat(ends).min()),
        largest=float(torch.cat(ends).max()),
        negative_share=_negative_share(torch.cat(nodes), torch.cat(weights)),
    )


def lanczos(product: Product, start_p: Tensor, steps: int, beside_rp: Tensor | None = None) -> Krylov:
    """Return the Krylov space of a Hessian from a vector that is orthogonal to the rows beside it, if any.

    Each vector is made orthogonal to all before it. Fewer than ``steps`` where the space ends sooner: the
    Ritz values are then the eigenvalues that the vector has a part in.
    """
    kept = 0 if beside_rp is None else len(beside_rp)
    rows = min(steps, len(start_p) - kept)
    all_p = start_p.new_empty(kept + rows, len(start_p))
    if beside_rp is not None:
        all_p[:kept] = beside_rp
    next_p = start_p
    alpha: list[float] = []
    beta = [float(start_p.norm())]
    for k in range(kept, kept + rows):
        all_p[k] = next_p / beta[-1]
        next_p = product(all_p[k])
        size = float(next_p.norm())
        alpha.append(float(all_p[k] @ next_p))
        next_p = orthogonal(next_p, all_p[: k + 1])
        beta.append(float(next_p.norm()))
        if beta[-1] <= 10 * torch.finfo(next_p.dtype).eps * max(size, abs(alpha[0])):
            break
    across = torch.tensor(beta[1 : len(alpha)], dtype=torch.float64)
    t_kk = torch.tensor(alpha, dtype=torch.float64).diag() + across.diag(1) + across.diag(-1)
    values_k, vectors_kk = torch.linalg.eigh(t_kk)
    return Krylov(all_p[kept : kept + len(alpha)], values_k, vectors_kk, beta[-1])


def orthogonal(vector_p: Tensor, rows_rp: Tensor) -> Tensor:
    """Return a vector without its part in orthonormal rows, taken away twice, since once leaves rounding."""
    for _ in range(2):
        vector_p = vector_p - rows_rp.T @ (rows_rp @ vector_p)
    return vector_p


def _negative_share(lambda_p: Tensor, weight_p: Tensor) -> float:
    """Return Σ_{λ<0} w|λ| / Σ w|λ|; 0 where all is zero."""
    size_p = widened(lambda_p.abs() * weight_p)
    total = float(size_p.sum())
    return float(size_p[lambda_p < 0].sum()) / total if total > 0 else 0.0
