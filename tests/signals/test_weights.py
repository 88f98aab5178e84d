"""What the weights say without any data: mask distance, condensation, norm."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tpsprune.numerics.moments import Elements
from tpsprune.records.readings import Reading, Status
from tpsprune.signals.signal import View
from tpsprune.signals.weights import (
    Condensation,
    MaskDistance,
    MaskMemory,
    Norm,
    condensed_share,
    kept_mask,
    mask_distance,
    parameter_norm,
)


def view(model: nn.Module, step: int = 0, *, scaled: bool = False) -> View:
    index_uf = torch.arange(len(model[0].weight))[:, None]
    producers = {"0": (Elements("0.weight", 0, index_uf), Elements("0.bias", 0, index_uf))}
    scales = {"0": (Elements("1.weight", 0, index_uf),)} if scaled else {}
    return View(model, (), step, float(step), {}, producers=producers, norm_scales=scales)


def with_packed(seen: View) -> View:
    return View(seen.model, (), 0, 0.0, {}, producers={"packed": (), **seen.producers})


def net(width: int = 4) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width), nn.Linear(width, 2))
    model[0].weight.data = torch.arange(1.0, 1 + width)[:, None].repeat(1, 2)
    model[0].bias.data.zero_()
    return model


def readings_of(models: list[nn.Sequential], *, scaled: bool = False) -> list[Reading]:
    signal, found = MaskDistance(), []
    memory = signal.start()
    for step, model in enumerate(models):
        memory, (reading,) = signal.step(memory, view(model, step, scaled=scaled))
        found.append(reading)
    return found


def test_a_mask_keeps_the_highest_of_each_group_or_of_all_together() -> None:
    scores = [torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([9.0, 8.0])]
    assert kept_mask(scores, 0.5, together=False).tolist() == [False, False, True, True, True, False]
    assert kept_mask(scores, 0.5, together=True).tolist() == [False, False, False, True, True, True]
    assert kept_mask([torch.ones(4)], 0.5, together=False).tolist() == [True, True, False, False]
    assert kept_mask([torch.ones(3)], 0.01, together=False).tolist() == [True, False, False]


def test_the_distance_is_the_largest_share_that_differs_from_the_last_mask() -> None:
    masks_mn = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 1, 1], [0, 1, 1, 0]], dtype=torch.bool)
    # Against the last: 2, 2 and 2 of 4; the first two of them alone differ in more than it does not see.
    assert mask_distance(masks_mn) == 0.5
    assert mask_distance(masks_mn[[0, 0]]) == 0.0
    assert mask_distance(torch.stack([masks_mn[0], ~masks_mn[0]])) == 1.0


def test_four_masks_are_not_enough_and_weights_at_rest_have_no_distance() -> None:
    found = readings_of([*[net()] * 6, net(3)])
    assert [each.status for each in found[:4]] == [Status.NOT_YET] * 4
    assert found[3].reason == "4 of 5 masks taken"
    assert [each.value for each in found[4:6]] == [0.0, 0.0]
    assert found[6].reason == "1 of 5 masks taken", "other widths begin anew"


def test_a_unit_that_overtakes_another_is_seen_for_four_more_readings() -> None:
    changed = net()
    changed[0].weight.data[0] = 3.5
    found = readings_of([*[net()] * 4, *[changed] * 5])
    assert [each.value for each in found[4:]] == [0.5, 0.5, 0.5, 0.5, 0.0]


def test_the_scales_of_batch_norms_count_before_the_weights() -> None:
    changed = net()
    changed[1].weight.data = torch.tensor([-9.0, 1.0, 1.0, 1.0])
    moved = readings_of([*[net()] * 4, changed], scaled=True)[-1]
    assert moved.value == 0.0, "the first two of equal scales are kept, the first is still among them"
    changed[1].weight.data = torch.tensor([0.0, 0.0, 5.0, 5.0])
    assert readings_of([*[net()] * 4, changed], scaled=True)[-1].value == 1.0
    assert readings_of([*[net()] * 4, changed])[-1].value == 0.0


def test_scores_that_are_not_finite_say_so_and_give_no_mask() -> None:
    broken = net()
    broken[0].weight.data[0, 0] = torch.nan
    found = readings_of([broken, *[net()] * 4])
    assert found[0].status is Status.NOT_FINITE
    assert found[-1].reason == "4 of 5 masks taken"


def test_a_memory_of_masks_comes_back_from_its_checkpoint() -> None:
    signal = MaskDistance()
    memory, _ = signal.step(signal.start(), with_packed(view(net())))
    again = signal.unpack(*signal.pack(memory))
    assert again.widths == memory.widths == (4,), "a group that no layer produces alone is passed over"
    assert all(torch.equal(a, b) for a, b in zip(again.masks, memory.masks, strict=True))
    assert signal.unpack(*signal.pack(signal.start())).masks == ()
    with pytest.raises(KeyError):
        signal.unpack({}, {})


def test_without_groups_the_readings_say_so() -> None:
    nothing = View(nn.Linear(2, 2), (), 0, 0.0, {})
    for signal, memory in ((MaskDistance(), MaskMemory()), (Condensation(), None)):
        _, (reading,) = signal.step(memory, nothing)
        assert (reading.status, reading.reason) == (
            Status.NOT_APPLICABLE,
            "there is no prunable group to read",
        )


def families_counted_slowly(rows: list[list[float]], tolerance: float) -> int:
    """Twins joined one by one."""

    def twins(a: list[float], b: list[float]) -> bool:
        lengths = [sum(x * x for x in each) ** 0.5 for each in (a, b)]
        if not all(lengths):
            return lengths[0] == lengths[1]
        return abs(sum(x * y for x, y in zip(a, b, strict=True))) / (lengths[0] * lengths[1]) >= 1 - tolerance

    families = [{unit} for unit in range(len(rows))]
    for i in range(len(rows)):
        for j in range(i):
            if twins(rows[i], rows[j]):
                mine = next(each for each in families if i in each)
                theirs = next(each for each in families if j in each)
                if mine is not theirs:
                    mine |= theirs
                    families.remove(theirs)
    return len(families)


A, B = torch.eye(2)
FAN = torch.tensor([0.0, 0.15, 0.3, 0.45])  # Neighbours alone are within the tolerance.


@pytest.mark.parametrize(
    ("weights_ud", "share"),
    [
        (torch.stack([A, B, 3 * A, -2 * B, A]), 3 / 5),
        (torch.eye(6), 0.0),
        (torch.stack([0 * A, 0 * A, A, B]), 1 / 4),
        *(
            (torch.stack([FAN.cos(), FAN.sin()], 1)[[*order]], 3 / 4)
            for order in ((0, 1, 2, 3), (3, 0, 2, 1))
        ),
    ],
    ids=["copies scaled and negated", "right angles", "units without weights", "a chain", "in any order"],
)
def test_all_but_one_of_each_family_of_twins_could_be_pruned(weights_ud: Tensor, share: float) -> None:
    assert condensed_share(weights_ud) == pytest.approx(share)
    weights_ud = weights_ud.clone()
    weights_ud[0, 0] = torch.inf
    assert condensed_share(weights_ud) != condensed_share(weights_ud), "not finite: no share"


@given(
    st.lists(st.tuples(*[st.integers(-2, 2)] * 3), min_size=1, max_size=9),
    st.floats(0.001, 0.3),
    st.integers(0, 99),
)
def test_the_share_is_that_of_the_slow_count_and_invariant(
    rows: list[tuple[int, int, int]], tolerance: float, seed: int
) -> None:
    weights_ud = torch.tensor(rows, dtype=torch.float32)
    found = condensed_share(weights_ud, tolerance)
    slow = families_counted_slowly([list(map(float, row)) for row in rows], tolerance + 1e-6)
    exact = families_counted_slowly([list(map(float, row)) for row in rows], tolerance - 1e-6)
    assert found in (pytest.approx(1 - slow / len(rows)), pytest.approx(1 - exact / len(rows)))
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(rows), generator=generator)
    lengths = 2.0 ** torch.randint(-3, 4, (len(rows), 1), generator=generator)
    changed_ud = (weights_ud * lengths)[order][:, [2, 0, 1]]
    assert condensed_share(changed_ud, tolerance) == pytest.approx(found)


@pytest.mark.parametrize(("bias", "share"), [(2.0, 0.5), (-2.0, 0.0)])
def test_a_bias_tells_two_units_apart(bias: float, share: float) -> None:
    model = net(2)
    model[0].weight.data, model[0].bias.data = torch.tensor([[1.0, 0], [2, 0]]), torch.tensor([1.0, bias])
    readings = Condensation().read(with_packed(view(model)))
    assert [(each.group, each.status, each.value) for each in readings] == [
        ("packed", Status.NOT_APPLICABLE, None),
        ("0", Status.OK, share),
        ("", Status.OK, share),
    ]


def test_the_norm_is_the_length_of_all_parameters_in_one_vector() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    flat = torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])
    (reading,) = Norm().read(View(model, (), 7, 0.5, {}))
    assert reading.value == pytest.approx(float(flat.norm()))
    assert (reading.signal, reading.group, reading.step, reading.epoch) == ("norm", "", 7, 0.5)
    model[0].weight.data[0, 0] = torch.nan
    (reading,) = Norm().read(View(model, (), 7, 0.5, {}))
    assert (reading.status, reading.value) == (Status.NOT_FINITE, None)


def test_frozen_parameters_do_not_count_and_shared_ones_count_once() -> None:
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    model[0].weight.data.fill_(3.0)
    model[1].weight = model[0].weight
    assert float(parameter_norm(model)) == 3.0
    model[0].weight.requires_grad_(False)
    assert float(parameter_norm(model)) == 0.0
