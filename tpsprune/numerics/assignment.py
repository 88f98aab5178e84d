"""The cheapest assignment of rows to columns."""

from __future__ import annotations

from scipy.optimize import linear_sum_assignment
from torch import Tensor


def assign(cost_kn: Tensor) -> list[int]:
    """Return the column of each row, all different, so that the sum of the costs is least.

    >>> import torch
    >>> assign(torch.tensor([[4.0, 1.0, 3.0], [2.0, 0.0, 5.0]]))
    [1, 0]

    Raises:
        ValueError: there are more rows than columns, or a cost is no number.

    Cost: k²·n. Source: Crouse 2016, "On implementing 2D rectangular assignment algorithms".
    """
    if len(cost_kn) > cost_kn.shape[1]:
        raise ValueError("more rows than columns")
    _, columns = linear_sum_assignment(cost_kn.cpu().numpy())
    return [int(each) for each in columns]
