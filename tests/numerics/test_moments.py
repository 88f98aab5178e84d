from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.unchanged import unchanged
from tpsprune.numerics.forward import evaluation_mode
from tpsprune.numerics.moments import Moments, as_rows, gram, input_moments


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(torch.relu(self.inner(x)))


def conv_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 5, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(5 * 9, 6),
        nn.Dropout(0.5),
        nn.Linear(6, 2),
    )


def kept_inputs(model: nn.Module, batches: list[Any], names: list[str]) -> dict[str, list[Tensor]]:
    kept: dict[str, list[Tensor]] = {name: [] for name in names}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: kept[name].append(args[0].double())
        )
        for name in names
    ]
    with evaluation_mode(model), torch.no_grad():
        for batch in batches:
            model(batch)
    for handle in handles:
        handle.remove()
    return kept


def direct(rows_rn: Tensor) -> Moments:
    return Moments(len(rows_rn), rows_rn.mean(0), torch.cov(rows_rn.T, correction=0))


def assert_equal(found: Moments, expected: Moments) -> None:
    assert found.rows == expected.rows
    assert found.mean_n.dtype == found.covariance_nn.dtype == torch.float64
    torch.testing.assert_close(found.mean_n, expected.mean_n)
    torch.testing.assert_close(found.covariance_nn, expected.covariance_nn)


@pytest.mark.parametrize(("shape", "first"), [((2, 7), None), ((2, 6, 4, 4), True)])
def test_an_input_that_does_not_hold_the_units_is_refused(shape: tuple[int, ...], first: bool | None) -> None:
    with pytest.raises(ValueError, match="does not hold 3 units"):
        as_rows(torch.zeros(shape), 3, channels_first=first)


def test_moments_equal_those_of_all_activations_kept() -> None:
    model = conv_net()
    model(torch.randn(64, 1, 6, 6))
    batches = [torch.randn(size, 1, 6, 6) for size in (7, 1, 12)]
    widths = {"3": 4, "6": 5, "8": 6}
    found = input_moments(model, batches, widths)
    kept = kept_inputs(model, batches, list(widths))
    for name, width in widths.items():
        rows_rn = torch.cat([as_rows(inputs, width) for inputs in kept[name]])
        assert_equal(found[name], direct(rows_rn))


def test_a_module_called_twice_in_a_pass_adds_up_its_calls() -> None:
    model = Twice()
    batches = [torch.randn(5, 3), torch.randn(2, 3)]
    rows_rn = torch.cat(kept_inputs(model, batches, ["inner"])["inner"])
    assert_equal(input_moments(model, batches, {"inner": 3})["inner"], direct(rows_rn))


def test_units_far_from_zero_lose_no_digits() -> None:
    rows_rn = 1e6 + torch.randn(2000, 3, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(3, 2).double())
    found = input_moments(model, rows_rn.split(100), {"0": 3})["0"]
    torch.testing.assert_close(found.covariance_nn, direct(rows_rn).covariance_nn, rtol=1e-9, atol=1e-9)


def test_batches_may_be_mappings_and_inputs_passed_by_keyword() -> None:
    class ByKeyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(input=x)

    x = torch.randn(9, 3)
    assert_equal(input_moments(ByKeyword(), [{"x": x}], {"inner": 3})["inner"], direct(x.double()))


def test_a_module_that_is_never_called_is_left_out() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    model.unused = nn.Linear(4, 4)
    model.forward = model[0].forward  # type: ignore[method-assign]
    assert set(input_moments(model, [torch.randn(2, 3)], {"unused": 4})) == set()


def test_rows_are_items_and_positions_of_units() -> None:
    input_bchw = torch.arange(2 * 3 * 2 * 2.0).reshape(2, 3, 2, 2)
    rows_rn = as_rows(input_bchw, 3)
    assert rows_rn.shape == (8, 3)
    assert torch.equal(rows_rn[5], input_bchw[1, :, 0, 1])
    # Behind a flattened convolution each unit has a block of columns.
    assert torch.equal(as_rows(input_bchw.flatten(1), 3), rows_rn)
    input_btd, input_bhwd = torch.randn(4, 7, 3), torch.randn(2, 3, 5, 3)
    assert torch.equal(as_rows(input_btd, 3), input_btd.reshape(28, 3))
    # An image whose height is the width may still have its features last.
    assert torch.equal(as_rows(input_bhwd, 3, channels_first=False), input_bhwd.reshape(30, 3))


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was_found_even_when_it_fails(fails: bool) -> None:
    model = conv_net().train()
    model[7].eval()
    failing = pytest.raises(ValueError, match="does not hold") if fails else nullcontext()
    with unchanged(model), failing:
        input_moments(model, [torch.randn(3, 1, 6, 6)], {"3": 3 if fails else 4})


@pytest.mark.parametrize("columns", [1, 8, 9, 19, 33])
@pytest.mark.parametrize("before", [(), (2,)])
def test_a_gram_matrix_in_halves_is_the_product_and_symmetric(
    columns: int, before: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tpsprune.numerics.moments.BLOCK", 8)
    rows_rn = torch.randn(*before, 9, columns, dtype=torch.float64)
    found_nn = gram(rows_rn)
    torch.testing.assert_close(found_nn, rows_rn.mT @ rows_rn)
    torch.testing.assert_close(found_nn, found_nn.mT, rtol=0, atol=1e-12)


def test_units_that_stand_there_twice_give_two_rows() -> None:
    a, b = torch.arange(6.0).view(3, 2), torch.arange(6.0, 12.0).view(3, 2)
    # Three units of two columns each, and all of it twice.
    side_by_side = torch.cat([a.reshape(1, 6), b.reshape(1, 6)], 1)
    assert as_rows(side_by_side, 3, block=2).tolist() == [
        [0.0, 2.0, 4.0],
        [1.0, 3.0, 5.0],
        [6.0, 8.0, 10.0],
        [7.0, 9.0, 11.0],
    ]
    embedded = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 2))
    pairs = torch.tensor([[0, 1], [2, 4], [3, 3]])
    found = input_moments(embedded, [pairs], {"2": 3}, {"2": 1})["2"]
    assert_equal(found, direct(embedded[0](pairs).detach().double().reshape(-1, 3)))
    with pytest.raises(ValueError, match="does not hold 3 units"):
        as_rows(torch.zeros(2, 9), 3, block=2)
