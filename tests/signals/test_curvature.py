"""The signal of the Hessian's spectrum."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

import tpsprune
from tests.unchanged import unchanged
from tpsprune.numerics.curvature import (
    curvature_of,
    hessian_product,
    lanczos_curvature,
    loss_gradient,
    loss_hessian,
)
from tpsprune.recipe.schema import watched_names
from tpsprune.recipe.train import Watch
from tpsprune.records.readings import Reading, Status
from tpsprune.signals import curvature as signal_module
from tpsprune.signals.curvature import HessianSpectrum
from tpsprune.signals.signal import View


def view(model: nn.Module, *pairs: tuple[Any, Tensor]) -> View:
    return View(model, tuple(x for x, _ in pairs), 3, 1.5, {}, labels=tuple(y for _, y in pairs))


def net(hidden: int = 6) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, hidden), nn.Dropout(0.5), nn.Tanh(), nn.Linear(hidden, 3))


def by_name(readings: tuple[Reading, ...]) -> dict[str, Reading]:
    return {each.signal: each for each in readings}


INPUTS, LABELS = torch.randn(40, 4, generator=torch.Generator().manual_seed(1)), torch.arange(40) % 3


def test_of_a_small_net_it_reads_the_whole_spectrum_over_all_batches() -> None:
    model = net()
    with unchanged(model):
        found = by_name(
            HessianSpectrum().read(view(model, (INPUTS[:25], LABELS[:25]), (INPUTS[25:], LABELS[25:])))
        )
    assert tuple(found) == watched_names(("hessian",))
    wanted = curvature_of(
        loss_hessian(model, lambda each: functional.cross_entropy(each(INPUTS.double()), LABELS))
    )
    assert found["hessian_min"].value == pytest.approx(wanted.smallest, rel=1e-4)
    assert found["hessian_max"].value == pytest.approx(wanted.largest, rel=1e-4)
    assert found["hessian_negative_share"].value == pytest.approx(wanted.negative_share, rel=1e-4)
    assert found["hessian_index"].value == wanted.index > 0
    assert found["hessian_index_share"].value == pytest.approx(wanted.index / wanted.parameters)


def test_batches_by_keyword_are_taken_by_keyword() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net()

        def forward(self, *, x: Tensor) -> dict[str, Tensor]:
            return {"logits": self.inner(x)}

    model = Named()
    found = HessianSpectrum().read(view(model, ({"x": INPUTS}, LABELS)))
    assert [each.value for each in found] == [
        each.value for each in HessianSpectrum().read(view(model.inner, (INPUTS, LABELS)))
    ]


def test_of_a_larger_one_it_estimates_the_ends_and_counts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net(60)
    monkeypatch.setattr(signal_module, "MOST_PARAMETERS", 480)
    found = by_name(HessianSpectrum().read(view(model, (INPUTS, LABELS))))
    theta, gradient = loss_gradient(model, lambda each: functional.cross_entropy(each(INPUTS), LABELS))
    wanted = lanczos_curvature(hessian_product(theta, gradient), theta)
    assert found["hessian_min"].value == wanted.smallest
    assert found["hessian_negative_share"].value == wanted.negative_share
    for name in ("hessian_index", "hessian_index_share"):
        assert found[name].status is Status.NOT_APPLICABLE
        assert found[name].reason == "483 parameters train; the spectrum is exact of 480 at most"
    model[3].requires_grad_(False)
    fewer = by_name(HessianSpectrum().read(view(model, (INPUTS, LABELS))))
    assert fewer["hessian_index"].status is Status.OK, "what does not train does not count"


@pytest.mark.parametrize(
    ("model", "labels", "reason"),
    [
        (net(), None, "the calibration data have no labels"),
        (net(), torch.rand(40), "the labels are not classes, one for each item"),
        (net().requires_grad_(False), LABELS, "no parameter is trained"),
    ],
)
def test_what_has_no_loss_has_no_spectrum(model: nn.Module, labels: Tensor | None, reason: str) -> None:
    seen = view(model, (INPUTS, LABELS if labels is None else labels))
    (reading,) = HessianSpectrum().read(replace(seen, labels=()) if labels is None else seen)
    assert (reading.signal, reading.status, reading.reason) == ("hessian_min", Status.NOT_APPLICABLE, reason)


def test_weights_that_are_not_finite_are_marked() -> None:
    model = net()
    model[0].weight.data[0, 0] = torch.nan
    (reading,) = HessianSpectrum().read(view(model, (INPUTS, LABELS)))
    assert reading.status is Status.NOT_FINITE


class Once(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    @once_differentiable
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient


def test_a_model_without_second_derivatives_says_so() -> None:
    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net()

        def forward(self, x: Tensor) -> Tensor:
            return Once.apply(self.inner(x))

    (reading,) = HessianSpectrum().read(view(Doubled(), (INPUTS, LABELS)))
    assert reading.status is Status.NOT_APPLICABLE
    assert "twice" in reading.reason
    assert "once_differentiable" in reading.reason


def test_it_is_read_on_request_alone() -> None:
    assert "hessian" not in Watch().signals
    with tpsprune.Watch(net(), [INPUTS], [LABELS], signals=["hessian"], every_steps=1) as watch:
        watch.step(1)
    value = watch["hessian_index"]
    assert value is not None
    assert value > 0
