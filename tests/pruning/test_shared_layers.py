"""Layers that are called several times in a pass: fitted to all their calls, aimed at the dense model's."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from tpsprune.pruning import extract
from tpsprune.recipe.prune import Prune, Widths


class Siamese(nn.Module):
    """A perceptron called on what comes in and on something quite different."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(5, 12), nn.Linear(12, 4)

    def forward(self, x_bd: Tensor) -> Tensor:
        return sum(self.down(torch.relu(self.up(each))) for each in (x_bd, 3 - 4 * x_bd.square()))


@pytest.mark.parametrize("refit", [True, False], ids=["refit", "fold alone"])
def test_over_all_calls_together_a_fitted_layer_is_right_on_average(
    zoo: SimpleNamespace, refit: bool
) -> None:
    """As least squares with an intercept is on all that it is fitted to."""
    torch.manual_seed(0)
    model, batch = Siamese().double(), zoo.vectors(256).double()
    ticket = extract(model, batch.split(64), Prune(target=Widths({"up": 6}), refit=refit)).ticket
    assert not torch.allclose(ticket(batch), model(batch), rtol=0, atol=0.05)
    torch.testing.assert_close(ticket(batch).mean(0), model(batch).mean(0), rtol=0, atol=1e-9)


class MovedSiamese(Siamese):
    """One more layer is called on both, whose inputs a cut moves."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 4)

    def forward(self, x_bd: Tensor) -> Tensor:
        both = (self.down(torch.relu(self.up(each))) for each in (x_bd, 3 - 4 * x_bd.square()))
        return sum(self.last(torch.relu(each)) for each in both)


def test_a_layer_called_several_times_aims_at_what_the_dense_one_says_not_at_its_own_inputs(
    zoo: SimpleNamespace,
) -> None:
    torch.manual_seed(0)
    model, batch = MovedSiamese().double(), zoo.vectors(512).double()
    ticket = extract(model, batch.split(64), Prune(target=Widths({"up": 2}))).ticket
    assert not torch.allclose(ticket(batch), model(batch), rtol=0, atol=0.01)
    torch.testing.assert_close(ticket(batch).mean(0), model(batch).mean(0), rtol=0, atol=1e-9)
