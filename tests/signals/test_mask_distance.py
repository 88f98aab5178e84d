from __future__ import annotations

import pytest
import torch
from torch import nn

from tpsprune.numerics.moments import Elements
from tpsprune.records.readings import Reading, Status
from tpsprune.signals.mask_distance import MaskDistance, MaskMemory, kept_mask, mask_distance
from tpsprune.signals.signal import View


def view(model: nn.Sequential, step: int = 0, *, scaled: bool = False) -> View:
    index_uf = torch.arange(len(model[0].weight))[:, None]
    written = {"0": (Elements("0.weight", 0, index_uf), Elements("0.bias", 0, index_uf))}
    scales = {"0": (Elements("1.weight", 0, index_uf),)} if scaled else {}
    return View(model, (), step, float(step), {}, written=written, scaled=scales)


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


def test_of_equal_scores_the_first_is_kept_and_never_none() -> None:
    assert kept_mask([torch.ones(4)], 0.5, together=False).tolist() == [True, True, False, False]
    assert kept_mask([torch.ones(3)], 0.01, together=False).tolist() == [True, False, False]


def test_the_distance_is_the_largest_share_that_differs_from_the_last_mask() -> None:
    masks_mn = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 1, 1], [0, 1, 1, 0]], dtype=torch.bool)
    # Against the last: 2, 2 and 2 of 4; the first two of them alone differ in more than it does not see.
    assert mask_distance(masks_mn) == 0.5
    assert mask_distance(masks_mn[[0, 0]]) == 0.0
    assert mask_distance(torch.stack([masks_mn[0], ~masks_mn[0]])) == 1.0


def test_four_masks_are_not_enough_and_weights_at_rest_have_no_distance() -> None:
    found = readings_of([net()] * 6)
    assert [each.status for each in found[:4]] == [Status.NOT_YET] * 4
    assert found[3].reason == "4 of 5 masks drawn"
    assert [each.value for each in found[4:]] == [0.0, 0.0]


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


def test_other_widths_begin_anew() -> None:
    found = readings_of([*[net()] * 5, net(3)])
    assert found[-1].reason == "1 of 5 masks drawn"


def test_scores_that_are_not_finite_say_so_and_draw_no_mask() -> None:
    broken = net()
    broken[0].weight.data[0, 0] = torch.nan
    found = readings_of([broken, *[net()] * 4])
    assert found[0].status is Status.NOT_FINITE
    assert found[-1].reason == "4 of 5 masks drawn"


def test_without_groups_the_reading_says_so() -> None:
    _, (reading,) = MaskDistance().step(MaskMemory(), View(nn.Linear(2, 2), (), 0, 0.0, {}))
    assert reading.status is Status.NOT_APPLICABLE


def test_a_memory_comes_back_from_its_checkpoint() -> None:
    signal = MaskDistance()
    memory, _ = signal.step(signal.start(), view(net()))
    again = signal.unpack(*signal.pack(memory))
    assert again.widths == memory.widths
    assert all(torch.equal(a, b) for a, b in zip(again.masks, memory.masks, strict=True))
    assert signal.unpack(*signal.pack(signal.start())).masks == ()
    with pytest.raises(KeyError):
        signal.unpack({}, {})


def test_a_group_that_no_layer_writes_alone_is_passed_over() -> None:
    seen = view(net())
    both = View(seen.model, (), 0, 0.0, {}, written={"packed": (), **seen.written})
    memory, (reading,) = MaskDistance().step(MaskMemory(), both)
    assert memory.widths == (4,)
    assert reading.reason == "1 of 5 masks drawn"
