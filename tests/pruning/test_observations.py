"""Sampled places, and joint moments of batches that come one by one against all rows at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.pruning import nets_structure as zoo
from tests.pruning.observed import (
    disturbed,
    elements_of,
    layer_inputs,
    moments_of_signals,
    moments_of_windows,
    noise,
)
from tpsprune.numerics.trees import WholeBatch
from tpsprune.pruning.groups import Consumer
from tpsprune.pruning.observations import (
    MOST_EXACT,
    JointSums,
    count_places,
    count_signal_places,
    count_windows,
    read_outputs,
    read_signals,
    read_windows,
    sample_items,
    sample_places,
)


@pytest.mark.parametrize("columns", [5, 513])
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


def covariance(a_rp: Tensor, b_rq: Tensor) -> Tensor:
    return (a_rp - a_rp.mean(0)).T @ (b_rq - b_rq.mean(0)) / len(a_rp)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 4, 3, padding=1),
        nn.Conv2d(3, 4, (3, 1), stride=2, padding=(1, 0)),
        nn.Conv2d(3, 4, 3, dilation=2, padding="same"),
    ],
    ids=["plain", "strided", "dilated"],
)
def test_the_moments_are_those_of_torchs_unfold(layer: nn.Conv2d) -> None:
    torch.manual_seed(0)
    layer = layer.double()
    batches = [noise(5, 3, 7, 7).double(), noise(4, 3, 7, 7, seed=1).double()]
    whole = moments_of_windows(layer, layer, batches).whole
    images = torch.cat(batches)
    padding = 2 if layer.padding == "same" else layer.padding
    x_rp = functional.unfold(images, layer.kernel_size, layer.dilation, padding, layer.stride)
    x_rp = x_rp.transpose(1, 2).flatten(0, 1)
    y_rq = layer(images).flatten(2).transpose(1, 2).flatten(0, 1)
    assert whole.rows == len(x_rp)
    torch.testing.assert_close(whole.mean_x_gp[0], x_rp.mean(0))
    torch.testing.assert_close(whole.xx_gpp[0], covariance(x_rp, x_rp))
    torch.testing.assert_close(whole.xy_gpq[0], covariance(x_rp, y_rq))
    torch.testing.assert_close(whole.yy_gq[0], covariance(y_rq, y_rq).diagonal())
    tokens, linear = noise(8, 5, 3).double(), nn.Linear(3, 2).double()
    rows = tokens.flatten(0, 1)
    of_tokens = moments_of_windows(linear, linear, [tokens]).whole
    torch.testing.assert_close(of_tokens.xx_gpp[0], covariance(rows, rows))


def test_places_are_drawn_by_the_generator_alone_each_once_and_in_order() -> None:
    state = torch.get_rng_state()
    first, again, other = (
        sample_places(1444, 512, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len(first) == 512
    assert bool((first.diff() > 0).all())
    assert torch.equal(sample_places(5, 9, torch.Generator()), torch.arange(5))


def test_what_is_seen_at_some_places_is_part_of_what_is_seen_at_all() -> None:
    layer, image = nn.Conv2d(3, 4, 3, stride=2, padding=1, groups=1), noise(2, 3, 9, 7)
    assert count_windows(layer, image) == 5 * 4
    some = torch.tensor([0, 3, 19])
    everywhere = read_windows(layer, image, torch.arange(20))
    assert everywhere.shape == (2, 20, 1, 3 * 9)
    assert torch.equal(read_windows(layer, image, some), everywhere[:, some])


@pytest.mark.parametrize("name", ["cnn", "mixed", "transformer"])
def test_streamed_moments_are_those_of_all_activations_kept(name: str) -> None:
    dense, batch = zoo.case(name)
    dense = dense.double().eval()
    batch = batch.double() if batch.is_floating_point() else batch
    module, consumer, width = {
        "cnn": ("head", Consumer("head", 0, 9, positions=9), 8),
        "mixed": ("merge", Consumer("merge", 6, 1), 5),
        "transformer": ("o", Consumer("o", 0, 4), 2),
    }[name]
    rows, inputs = [], []
    for model in (dense, disturbed(dense)):
        inputs.append(
            layer_inputs(model, module, batch) + 100.0
        )  # Far from zero, where raw products lose digits.
        each = inputs[-1].movedim(1, -1) if name == "mixed" else inputs[-1]
        taken = [[each[..., element] for element in signal] for signal in elements_of(consumer, width)]
        rows.append(torch.stack([torch.stack(signal).flatten() for signal in taken], dim=1))
    pairs = zip(inputs[0].split(7), inputs[1].split(7), strict=True)
    joints = moments_of_signals(dense.get_submodule(module), consumer, width, pairs)
    y_rn, x_rn = rows
    expected = torch.cov(torch.cat([x_rn, y_rn], dim=1).T, correction=0)
    n = len(joints.whole.xx_gpp[0])
    assert (joints.whole.rows, n) == (len(x_rn), x_rn.shape[1])
    torch.testing.assert_close(joints.whole.xx_gpp[0], expected[:n, :n])
    torch.testing.assert_close(joints.whole.xy_gpq[0], expected[:n, n:])
    torch.testing.assert_close(joints.whole.yy_gq[0], expected[n:, n:].diagonal())
    torch.testing.assert_close(joints.whole.mean_x_gp[0], x_rn.mean(0))
    torch.testing.assert_close(joints.whole.mean_y_gq[0], y_rn.mean(0))
    torch.testing.assert_close(joints.about_zero().whole.xy_gpq[0], x_rn.T @ y_rn / len(x_rn))
    assert joints.fit is not None
    assert joints.held is not None
    # Of batches of 7, 7, 7, 7 and 4 items one each is held out.
    assert (32 * joints.held.rows, 32 * joints.fit.rows) == (5 * len(x_rn), 27 * len(x_rn))


@pytest.mark.parametrize("layer", [nn.Linear(6, 3), nn.Conv1d(6, 3, 3), nn.Conv2d(6, 3, (3, 1), padding=1)])
def test_a_layer_called_on_a_single_item_is_seen_as_on_a_batch_of_one(layer: nn.Module) -> None:
    inner = len(getattr(layer, "kernel_size", ()))
    one = torch.randn(6, *[5] * inner, generator=torch.Generator().manual_seed(0))
    consumer = Consumer("layer", 0, 1)
    places = count_signal_places(layer, one, consumer)
    assert places == count_signal_places(layer, one[None], consumer) == 5**inner
    windows_s = torch.arange(count_windows(layer, one[None]))
    assert count_windows(layer, one) == len(windows_s)
    for single, batch in (
        [read_signals(layer, each, consumer, 6, torch.arange(places)) for each in (one, one[None])],
        [read_windows(layer, each, windows_s) for each in (one, one[None])],
        [read_outputs(layer, layer(each), windows_s) for each in (one, one[None])],
    ):
        torch.testing.assert_close(single, batch)


@pytest.mark.parametrize(
    ("sizes", "items", "ranks"),
    [([40] * 8, 32, [0, 2, 4, 6]), ([1] * 8, 6, [0, 1, 2, 4, 5, 6]), ([40] * 8, 240, [0, 1, 2, 4, 5, 6])],
    ids=["four at the least", "items alone", "as many as are asked for"],
)
def test_batches_that_cannot_be_split_are_sampled_whole_each_once_and_evenly(
    sizes: list[int], items: int, ranks: list[int]
) -> None:
    batches = [WholeBatch(rank, size) for rank, size in enumerate(sizes)]
    assert [batch.data for batch in sample_items(batches, items, 8)] == ranks


def test_rows_are_as_many_as_the_columns_need_and_as_they_cost() -> None:
    assert [count_places(columns, 1) for columns in (9, 256, 512, 1024, 1536)] == [
        32768, 32768, 16384, 8192, 12288,
    ]  # fmt: skip
    assert count_places(9, 1, layers=64) == 2**23 // 576
    assert count_places(9, 1, layers=960) == 4096
    assert count_places(256, 1000) == 33


def test_autocast_around_an_extraction_does_not_reach_the_products() -> None:
    x_bsgp = noise(8, 90, 1, MOST_EXACT + 1)  # So many columns stay in single precision.
    found = []
    for cast in (False, True):
        sums = JointSums()
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            sums.add(x_bsgp, x_bsgp[..., :3])
        found.append(sums.moments().whole.xy_gpq)
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)
