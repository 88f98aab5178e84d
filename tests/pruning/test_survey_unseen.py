"""What the trace does not see, or takes for something else, is found by the trial."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional

from tpsprune.pruning import Consumer, find_groups
from tpsprune.pruning.groups import Slice


def reasons(model: nn.Module, batch: Tensor) -> dict[str, str]:
    return {each.name: each.reason for each in find_groups(model, batch).left_alone}


class Hidden(nn.Module):
    """A branch that autograd does not see reads the stem as well."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(5, 6)
        self.aside = nn.Linear(6, 3)
        self.head = nn.Linear(6, 3)

    def forward(self, x_bd: Tensor) -> Tensor:
        h_bd = functional.relu(self.stem(x_bd))
        return self.head(h_bd) + self.aside(h_bd.detach()).detach()


def test_a_consumer_the_trace_cannot_see_is_found_by_the_trial(zoo: SimpleNamespace) -> None:
    found = reasons(Hidden(), zoo.vectors())
    assert found["stem"].startswith("the model does not run without some of its units")
    assert found["aside"] == "the trace from the output did not reach it"


class BareParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(5, 6)
        self.scale = nn.Parameter(torch.ones(6))
        self.head = nn.Linear(6, 3)

    def forward(self, x_bd: Tensor) -> Tensor:
        return self.head(self.stem(x_bd) * self.scale)


def test_a_bare_parameter_goes_with_its_units(zoo: SimpleNamespace) -> None:
    (group,) = find_groups(BareParameter(), zoo.vectors()).groups
    assert Slice("scale", 0, 0, 1) in group.slices


class RawProduct(nn.Module):
    """A matrix that no layer holds reads the stem."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(5, 6)
        self.raw = nn.Parameter(torch.randn(6, 3))

    def forward(self, x_bd: Tensor) -> Tensor:
        return functional.relu(self.stem(x_bd)) @ self.raw


def test_what_a_raw_matrix_reads_is_left_whole_and_named(zoo: SimpleNamespace) -> None:
    assert reasons(RawProduct(), zoo.vectors())["stem"] == "it is the model's output"


class StreamOut(nn.Module):
    """What comes out is the stream itself, under a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.down = nn.Linear(5, 6), nn.Linear(6, 9), nn.Linear(9, 6)
        self.norm = nn.LayerNorm(6)

    def forward(self, x_bd: Tensor) -> Tensor:
        x_bd = self.embed(x_bd)
        return self.norm(x_bd + self.down(functional.relu(self.up(x_bd))))


def test_a_stream_that_comes_out_under_a_norm_is_the_output(zoo: SimpleNamespace) -> None:
    assert reasons(StreamOut(), zoo.vectors()) == {"embed": "it is the model's output"}


class Interleaved(nn.Module):
    """Tokens side by side: the flatten puts unit u at u and at width + u, which the trace takes for 2u."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.Linear(5, 6)
        self.head = nn.Linear(12, 3)

    def forward(self, x_b2d: Tensor) -> Tensor:
        return self.head(functional.relu(self.each(x_b2d)).flatten(1))


def test_a_flatten_the_trace_misreads_is_read_place_by_place() -> None:
    (group,) = find_groups(Interleaved(), torch.randn(3, 2, 5)).groups
    assert group.consumers == (Consumer("head", 0, 1, repeat=2, stride=6),)
