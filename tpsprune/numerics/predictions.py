"""Two models' predictions beside each other, and one model's beside the truth.

Shape letters: n predictions, c classes, d or e numbers of a state, m others.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import correlation

import torch
from scipy.stats import rankdata
from torch import Tensor
from torch.nn import functional

from tpsprune.numerics.forward import widened

BINS = 15
RIDGE = 1e-6
"""Of the mean variance: enough for states that never vary, nothing for those that do."""


def agreement(first_nc: Tensor, second_nc: Tensor) -> float:
    """Return the share of predictions in which two models decide on the same class."""
    return float((first_nc.argmax(1) == second_nc.argmax(1)).double().mean())


def divergence(first_nc: Tensor, second_nc: Tensor) -> float:
    """Return the mean KL(p ‖ q) in nats, p and q the softmax of the first and the second model's scores.

    A class that the first rules out (a score of −∞) adds nothing; one that the second alone rules out makes
    it infinite. NaN where a score is.
    """
    log_p_nc, log_q_nc = (functional.log_softmax(widened(each), dim=1) for each in (first_nc, second_nc))
    parts_nc = torch.where(log_p_nc == -torch.inf, 0.0, log_p_nc.exp() * (log_p_nc - log_q_nc))
    found = float(parts_nc.sum(1).mean())
    return found if not found <= 0 else 0.0  # NaN stays


def calibration_error(scores_nc: Tensor, labels_n: Tensor, bins: int = BINS) -> float:
    """Return the expected calibration error: Σ_b share_b · |accuracy_b − confidence_b| over equal bins.

    Confidence is the largest probability; bins are (0, 1/b], (1/b, 2/b], and so on. It depends on the
    number of bins and is biased upwards where they hold few predictions.

    Source: Guo et al. 2017 (arXiv 1706.04599), equation 3.
    """
    confidence_n, decided_n = widened(scores_nc).softmax(1).max(1)
    bin_n = (confidence_n * bins).ceil().long().clamp(1, bins) - 1
    gap_n = (decided_n == labels_n).to(confidence_n) - confidence_n
    gap_b = confidence_n.new_zeros(bins).index_add_(0, bin_n, gap_n)
    return float(gap_b.abs().sum() / len(labels_n))


def roc_area(inside_n: Tensor, outside_m: Tensor) -> float:
    """Return the area under the ROC curve: how likely a value inside is above one outside, ties by half.

    0.5 is chance; below it the order is reversed.
    """
    ranks = torch.from_numpy(rankdata(torch.cat([inside_n, outside_m]).cpu().numpy()))
    count, others = len(inside_n), len(outside_m)
    return float((ranks[:count].sum() - count * (count + 1) / 2) / (count * others))


def explained(found_nd: Tensor, wanted_nd: Tensor) -> float:
    """Return R² = 1 − ‖found − wanted‖² / ‖wanted − mean‖², over all numbers of the outputs at once.

    1 where they are equal; below 0 where the mean itself does better. NaN where ``wanted`` never varies.
    """
    wide_nd = widened(wanted_nd)
    about = (wide_nd - wide_nd.mean(0)).square().sum()
    left = (widened(found_nd) - wide_nd).square().sum()
    return float(1.0 - left / about) if float(about) > 0 else torch.nan


def affine_explained(source_nd: Tensor, target_ne: Tensor, item_n: Tensor | None = None) -> float:
    """Return how much of ``target`` an affine map of ``source`` explains: R² on the half left out.

    Rows of items of even number fit A, b of target ≈ A·source + b by least squares, those of odd number
    judge. ``item_n`` is the item of each row, so that no item's places stand on both sides; without it each
    row is an item.
    Invariant to shift, turn, scale and any invertible map of the source, up to the ridge. NaN where half the
    rows are no more than the features, which any map would fit, or ``target`` never varies.

    Cost: n·d² multiply-adds.
    """
    source_nd, target_ne = widened(source_nd), widened(target_ne)
    item_n = torch.arange(len(source_nd)) if item_n is None else item_n
    fitted, judged = item_n % 2 == 0, item_n % 2 == 1
    if len(source_nd[fitted]) <= source_nd.shape[1] + 1:
        return torch.nan
    middle_d, middle_e = source_nd[fitted].mean(0), target_ne[fitted].mean(0)
    x_nd, y_ne = source_nd[fitted] - middle_d, target_ne[fitted] - middle_e
    gram_dd = x_nd.T @ x_nd
    ridge = RIDGE * gram_dd.diagonal().mean().clamp_min(1e-300)
    map_de = torch.linalg.solve(gram_dd + ridge * torch.eye(len(gram_dd)).to(gram_dd), x_nd.T @ y_ne)
    found_ne = (source_nd[judged] - middle_d) @ map_de + middle_e
    about = (target_ne[judged] - middle_e).square().sum()
    left = (found_ne - target_ne[judged]).square().sum()
    return float(1.0 - left / about) if float(about) > 0 else torch.nan


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Return Spearman's correlation: that of the ranks, equal values at their mean rank.

    0 where one of the two never varies. Invariant to any increasing map of either.
    """
    if len(set(first)) < 2 or len(set(second)) < 2:
        return 0.0
    return correlation(rankdata(first).tolist(), rankdata(second).tolist())
