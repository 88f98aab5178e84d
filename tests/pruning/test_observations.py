"""Joint moments of batches that come one by one, against all rows at once."""

from __future__ import annotations

import pytest
import torch

from tpsprune.pruning.observations import MOST_EXACT, JointSums


@pytest.mark.parametrize("columns", [5, MOST_EXACT + 1])
@pytest.mark.parametrize(("dtype", "away"), [(torch.float32, 30.0), (torch.float64, 1e7)])
def test_streamed_moments_are_those_of_all_rows_at_once(
    columns: int, dtype: torch.dtype, away: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    x_bsgp = (torch.randn(24, 40, 1, columns, generator=generator, dtype=torch.float64) + away).to(dtype)
    y_bsgq = x_bsgp[..., :3] - x_bsgp[..., 1:4] + away
    sums = JointSums()
    for x, y in zip(x_bsgp.split(8), y_bsgq.split(8), strict=True):
        sums.add(x, y)
    whole = sums.moments().whole
    x_rp, y_rq = (each.flatten(0, 2).double() for each in (x_bsgp, y_bsgq))
    assert whole.rows == len(x_rp)
    assert whole.xx_gpp.dtype == torch.float64
    torch.testing.assert_close(whole.mean_x_gp[0], x_rp.mean(0), rtol=1e-6, atol=0)
    torch.testing.assert_close(whole.mean_y_gq[0], y_rq.mean(0), rtol=1e-6, atol=0)
    x_rp, y_rq = x_rp - x_rp.mean(0), y_rq - y_rq.mean(0)
    torch.testing.assert_close(whole.xx_gpp[0], x_rp.T @ x_rp / len(x_rp), rtol=0, atol=2e-6)
    torch.testing.assert_close(whole.xy_gpq[0], x_rp.T @ y_rq / len(x_rp), rtol=0, atol=2e-6)
    torch.testing.assert_close(whole.yy_gq[0], y_rq.square().mean(0), rtol=0, atol=2e-6)
