"""Models and batches as people bring them: none may end in a traceback or in a wrong ticket."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tpsprune.errors import PruneError
from tpsprune.pruning import extract, survey
from tpsprune.pruning.repair import output_error
from tpsprune.recipe.prune import Prune
from tpsprune.recipe.target import Macs

HALF = Prune(target=Macs(0.5))
X = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))


def net(outputs: int = 4, middle: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(8, 32), *([middle] if middle else []), nn.ReLU(), nn.Linear(32, 32), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(32, outputs))


class Cat(nn.Module):
    def forward(self, parts: list[Tensor]) -> Tensor:
        return torch.cat(parts, 1)


class Around(nn.Module):
    """Something in front of a perceptron; what it gives is added to the input."""

    def __init__(self, before: Callable[[nn.Module, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.before = before
        self.net = net()
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor, **more: Any) -> Any:
        return self.net(x + self.before(self, x))


class Casting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.net(x).float()


class TwoAnswers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out = self.net(x)
        return out, out.square().mean()


class InPlace(nn.Module):
    """Runs, and has no gradient: what the sigmoid needs is written over."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: Tensor) -> Tensor:
        y = torch.sigmoid(self.net(x))
        y[:, :2] = y[:, :2] * 2
        return y


class Masked(nn.Module):
    """A mask of places beside the items."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 4)

    def forward(self, mask: Tensor, x: Tensor) -> Tensor:
        return self.down(functional.relu(self.up(mask @ x))).mean(1)


class Experts(nn.Module):
    """Each item goes to one of two experts, by its own value."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 8))
        self.stem, self.gate = nn.Linear(8, 32), nn.Linear(32, 2)
        self.experts = nn.ModuleList(nn.Linear(32, 16) for _ in range(2))
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = functional.relu(self.stem(self.first(x)))
        chosen = self.gate(h).argmax(1)
        out = h.new_zeros(len(h), 16)
        for rank, expert in enumerate(self.experts):
            out[chosen == rank] = expert(h[chosen == rank])
        return self.head(functional.relu(out))


@pytest.mark.parametrize(
    ("model", "probe"),
    [
        (net(), [X, X[:1]]),
        (net(), [X[:1]]),
        (net(), list(X.split(1))[:40]),
        (net(1), list(X.split(8))),
        (net(4, nn.BatchNorm1d(32)), list(X.split(8))),
        (net(4, nn.BatchNorm1d(32)), [X[:255], X[255:]]),
        (Around(lambda own, x: own.cat([x[:, :4], x[:, 4:]]), cat=Cat()), [X]),
        (Around(lambda own, x: own.learned(torch.ones(6)), learned=nn.Linear(6, 8)), [X]),
        (Casting(), [X, X]),
        (TwoAnswers(), [X]),
        (InPlace(), [X]),
        (Masked(), [{"mask": torch.eye(5), "x": torch.randn(64, 5, 8)}]),
        (Experts(), [X[:128], X[128:]]),
        (net().bfloat16(), [X.bfloat16()]),
    ],
    ids=[
        "last of one",
        "one item",
        "batches of one",
        "one output",
        "vector norm",
        "vector norm, last of one",
        "a list goes in",
        "a vector goes in",
        "autocast inside",
        "a loss comes out",
        "no gradient",
        "a mask first",
        "experts",
        "bfloat16",
    ],
)
def test_a_ticket_comes_out(model: nn.Module, probe: list[Any]) -> None:
    found = extract(model, probe, Prune(target=Macs(0.6)))
    assert found.macs_share <= 0.6
    assert all(bool(tensor.isfinite().all()) for tensor in found.ticket.state_dict().values())
    assert not torch.is_autocast_enabled("cpu")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_small_batches_choose_and_fit_as_well_as_large_ones() -> None:
    errors = [
        output_error(extract(net(1), probe, HALF).ticket, net(1), [X]) for probe in ([X], list(X.split(8)))
    ]
    assert errors[1] < 1.5 * errors[0] + 1e-3


def test_an_activation_in_place_changes_nothing_about_the_widths() -> None:
    widths = []
    for inplace in (False, True):
        model = net()
        for module in model.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = inplace
        widths.append([change.width_after for change in extract(model, [X], HALF).changes])
    assert widths[0] == widths[1]


def test_a_branch_that_is_not_heard_gives_up_its_units_first() -> None:
    class Dead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.stem, self.up, self.down, self.head = (
                nn.Linear(8, 16),
                nn.Linear(16, 32),
                nn.Linear(32, 16),
                nn.Linear(16, 4),
            )
            self.scale = nn.Parameter(torch.zeros(16))

        def forward(self, x: Tensor) -> Tensor:
            h = functional.relu(self.stem(x))
            return self.head(h + self.scale * self.down(functional.relu(self.up(h))))

    after = {change.group: change.width_after for change in extract(Dead(), [X], HALF).changes}
    assert after["up"] < 0.7 * 32
    assert after["stem"] == 16


@pytest.mark.parametrize(
    ("probe", "words"),
    [
        ([torch.randn(16, 5)], r"cannot be called on two items of calibration batch 0: .*shape"),
        ([(X, torch.zeros(256))], r"a tuple goes in by position"),
        (["words"], r"the calibration data are empty"),
    ],
)
def test_a_probe_that_does_not_fit_is_told_in_words(probe: list[Any], words: str) -> None:
    with pytest.raises(PruneError, match=words):
        extract(net(), probe, HALF)


def test_an_answer_without_numbers_is_told_in_words() -> None:
    class Opaque(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, x: Tensor) -> str:
            return str(self.net(x).sum())

    with pytest.raises(PruneError, match="the model returns str without a tensor of numbers"):
        extract(Opaque(), [X], HALF)


@dataclass
class Answered:
    """What some libraries' models return: scores, something else, and what may be missing."""

    logits: Tensor
    hidden: Tensor
    loss: Tensor | None = None


class Answering(nn.Module):
    """A net whose answer is a dataclass, its hidden units a part of it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 16)
        self.hidden = nn.Linear(16, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, inputs: Tensor) -> Answered:
        first = functional.relu(self.stem(inputs))
        second = functional.relu(self.hidden(first))
        return Answered(self.head(second), second)


def test_an_answer_that_is_a_dataclass_is_read_field_by_field() -> None:
    found = survey(Answering(), torch.randn(4, 6))
    assert [group.name for group in found.groups] == ["stem"]
    assert {each.name for each in found.left_alone} >= {"hidden", "head"}, "both are what the model answers"
