"""What the signals are shown of a model: of each group the weights that put it out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tpsprune import pruning
from tpsprune.numerics.moments import unit_rows


class Net(nn.Module):
    """A residual stream that two convolutions write, and a layer whose weights lie the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.inner, self.back = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1, bias=False)
        self.up, self.head = nn.ConvTranspose2d(4, 5, 2), nn.Conv2d(5, 3, 1)

    def forward(self, x_bchw: Tensor) -> Tensor:
        x_bchw = torch.relu(self.norm(self.stem(x_bchw)))
        x_bchw = x_bchw + self.back(torch.relu(self.inner(x_bchw)))
        answer: Tensor = self.head(torch.relu(self.up(x_bchw)))
        return answer


def test_rows_are_all_that_is_written_into_a_unit_and_scales_those_of_its_batch_norm() -> None:
    model = Net()
    found = pruning.sites(model, pruning.survey(model, torch.randn(2, 2, 5, 5)))
    assert list(found.written) == list(found.consumers) == ["stem", "inner", "up"]
    stream_ud = unit_rows(model, found.written["stem"])
    expected = [model.stem.weight.flatten(1), model.stem.bias[:, None], model.back.weight.flatten(1)]
    assert sorted(stream_ud[1].tolist()) == sorted(torch.cat(expected, 1)[1].tolist())
    up_ud = unit_rows(model, found.written["up"])
    expected = [model.up.weight.transpose(0, 1).flatten(1), model.up.bias[:, None]]
    assert sorted(up_ud[2].tolist()) == sorted(torch.cat(expected, 1)[2].tolist())
    assert torch.equal(unit_rows(model, found.scaled["stem"])[:, 0], model.norm.weight)
    assert found.scaled["inner"] == found.scaled["up"] == ()


class Beside(nn.Module):
    """Layers that read the units of a group beside what is no group: inputs, and looked-up rows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.mixed = nn.Linear(3, 6), nn.Linear(6 + 3, 5)
        self.rows, self.head = nn.Embedding(4, 2), nn.Linear(5 + 2, 3)

    def forward(self, x_bd: Tensor, ids_b: Tensor) -> Tensor:
        read_bd = torch.relu(self.mixed(torch.cat([torch.relu(self.first(x_bd)), x_bd], 1)))
        answer: Tensor = self.head(torch.cat([self.rows(ids_b) + 1.0, read_bd], 1))
        return answer


def test_layers_that_read_a_group_beside_no_group_are_kept_from_signals_that_know_no_offset() -> None:
    model, batch = Beside(), (torch.randn(4, 3), torch.tensor([0, 1, 2, 3]))
    found = pruning.sites(model, pruning.survey(model, batch)).consumers
    assert found["first"] == found["mixed"] == {}
