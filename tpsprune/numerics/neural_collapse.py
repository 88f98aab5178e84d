"""Neural collapse: how near features and the last layer are to one point a class, all at equal angles.

Shape letters: n items, d features, c classes that occur among them.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from tpsprune.numerics.forward import widened

ROUNDINGS = 16
"""Singular values of the class means below so many roundings of the largest feature are rounding."""


@dataclass(frozen=True, slots=True)
class NeuralCollapse:
    """The four measures; each is 0 where collapse is complete.

    ``nc1``: variance within classes over that between them. ``nc2_norms``: coefficient of variation of the
    lengths of the class means; ``nc2_angles``: mean |cos + 1/(C − 1)| of two of them. ``nc3``: squared
    distance of the last layer's weight from the class means, both of length one; none where its weight is not
    known. ``nc4``: share of items whose class by the model is not that of the nearest mean.
    """

    nc1: float
    nc2_norms: float
    nc2_angles: float
    nc3: float | None
    nc4: float


def neural_collapse(
    features_nd: Tensor, labels_n: Tensor, decided_n: Tensor, weight_cd: Tensor | None = None
) -> NeuralCollapse:
    """Return NC1 to NC4 of the features that the last layer reads.

    With class means μ_c, their mean μ_G, M = (μ_c − μ_G), Σ_W = E[(h − μ_c)(h − μ_c)ᵀ] and Σ_B = MᵀM / C:

    - NC1 = tr(Σ_W Σ_B⁺) / C;
    - NC2: std ‖m_c‖ / mean ‖m_c‖, and the mean of |cos(m_c, m_c') + 1/(C − 1)| over c ≠ c';
    - NC3 = ‖W / ‖W‖_F − M / ‖M‖_F‖²_F;
    - NC4 = share of items for which argmin_c ‖h − μ_c‖ is not the class decided.

    Invariant to the scale of features and, weights turned with them, to turning; NC1 to any invertible linear
    map within the span of the means. Classes that do not occur are left out, in ``weight_cd`` too. It
    does not see earlier layers. Equal angles between C means take C − 1 features or more.

    Args:
        features_nd: one row an item.
        labels_n: the true class of each.
        decided_n: the class the model decides on.
        weight_cd: the last layer's weight, a row for each class there is.

    Raises:
        ValueError: fewer than two classes occur.

    Cost: n·d·c multiply-adds, no d × d matrix.

    Source: Papyan, Han and Donoho 2020 (arXiv 2008.08186); its notebook leaves out the division of NC1 by C.
    """
    classes_c, label_n = torch.unique(labels_n, return_inverse=True)
    count = len(classes_c)
    if count < 2:
        raise ValueError("neural collapse takes two classes or more")
    wide_nd = widened(features_nd)
    items_c = label_n.bincount(minlength=count)
    means_cd = wide_nd.new_zeros(count, wide_nd.shape[1]).index_add_(0, label_n, wide_nd) / items_c[:, None]
    centred_cd = means_cd - means_cd.mean(0)
    _, sigma_k, axes_kd = torch.linalg.svd(centred_cd / count**0.5, full_matrices=False)
    kind = features_nd.dtype if features_nd.is_floating_point() else torch.float32
    rank = int((sigma_k > ROUNDINGS * torch.finfo(kind).eps * wide_nd.abs().amax()).sum())
    within_nk = (wide_nd - means_cd[label_n]) @ axes_kd[:rank].T
    nc1 = float((within_nk.square().mean(0) / sigma_k[:rank].square()).sum()) / count if rank else inf
    lengths_c = torch.linalg.vector_norm(centred_cd, dim=1)
    unit_cd = centred_cd / lengths_c.clamp_min(1e-300)[:, None]
    off_cc = (unit_cd @ unit_cd.T + 1 / (count - 1)).abs()
    nearest_n = classes_c[torch.cdist(wide_nd, means_cd).argmin(1)]
    return NeuralCollapse(
        nc1=nc1,
        nc2_norms=float(lengths_c.std(unbiased=False) / lengths_c.mean().clamp_min(1e-300)),
        nc2_angles=float((off_cc.sum() - off_cc.diagonal().sum()) / (count * (count - 1))),
        nc3=None if weight_cd is None else _distance(widened(weight_cd[classes_c]), centred_cd),
        nc4=float((nearest_n != decided_n).double().mean()),
    )


def _distance(weight_cd: Tensor, means_cd: Tensor) -> float:
    first, second = (
        each / torch.linalg.matrix_norm(each).clamp_min(1e-300) for each in (weight_cd, means_cd)
    )
    return float((first - second).square().sum())
