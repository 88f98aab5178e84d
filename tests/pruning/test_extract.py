from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tpsprune.errors import PruneError
from tpsprune.numerics.forward import count_macs
from tpsprune.pruning import extract
from tpsprune.pruning.calibration import CalibrationStatistics
from tpsprune.pruning.layers import refit
from tpsprune.pruning.reconstruction import share_held
from tpsprune.pruning.repair import output_error, recalibrate_norms
from tpsprune.recipe.prune import Prune
from tpsprune.recipe.target import Macs, Tolerance

CASES = ["cnn", "residual", "mixed", "mlp", "token-mlp", "transformer"]


def state_of(model: nn.Module) -> tuple[dict[str, Tensor], list[tuple[bool, ...]]]:
    state = copy.deepcopy(model.state_dict())
    return state, [(m.training, *(p.requires_grad for p in m.parameters(False))) for m in model.modules()]


def settle(model: nn.Module, batch: Tensor) -> nn.Module:
    """Give batch norms statistics of the data, as training does."""
    with torch.no_grad():
        for _ in range(40):
            model.train()(batch)
    return model


@pytest.mark.parametrize("name", CASES)
def test_the_target_is_met_and_the_model_is_not_touched(zoo: SimpleNamespace, name: str) -> None:
    model, batch = zoo.case(name)
    model.train()
    (state, flags), modules = state_of(model), str(model)
    found = extract(model, batch.split(16), Prune(target=Macs(0.7)))
    after, flags_after = state_of(model)
    assert all(torch.equal(state[key], after[key]) for key in state)
    assert (flags_after, str(model)) == (flags, modules)
    counted = count_macs(found.ticket, batch).total / count_macs(model, batch).total
    assert found.macs_share == pytest.approx(counted)
    assert 0.5 < found.macs_share <= 0.7
    assert all(module.training for module in found.ticket.modules())
    assert [change.group for change in found.changes] == [cut.name for cut in found.plan.groups]
    assert [change.width_after for change in found.changes] == [len(cut.kept) for cut in found.plan.groups]


@pytest.mark.parametrize("name", ["cnn", "residual", "mixed", "transformer"])
def test_the_fold_is_no_worse_than_the_plain_cut_of_the_same_probe(zoo: SimpleNamespace, name: str) -> None:
    model, batch = zoo.case(name)
    settle(model, batch)
    errors = [
        output_error(extract(model, [batch], Prune(target=Macs(0.6), fold=fold)).ticket, model, [batch])
        for fold in (True, False)
    ]
    assert errors[0] < errors[1]


def with_copies(
    layers: nn.Sequential, first: int, second: int, *, batch_norm: int | None = None
) -> nn.Module:
    """Double the units of layer ``first``: scaled copies, of which layer ``second`` hears random shares."""
    doubled = copy.deepcopy(layers)
    make, read = doubled[first], doubled[second]
    scale = torch.rand(len(make.weight), dtype=torch.float64) + 0.5
    shape = (-1, *[1] * (make.weight.ndim - 1))
    make.weight = nn.Parameter(torch.cat([make.weight, make.weight * scale.reshape(shape)]))
    make.bias = nn.Parameter(torch.cat([make.bias, make.bias * scale]))
    share = torch.rand(len(scale), dtype=torch.float64)
    across = (1, -1, *[1] * (read.weight.ndim - 2))
    read.weight = nn.Parameter(
        torch.cat(
            [read.weight * (1 - share).reshape(across), read.weight * (share / scale).reshape(across)], 1
        )
    )
    refit(make)
    refit(read)
    return doubled


@pytest.mark.parametrize("kind", ["linear", "convolution"])
@pytest.mark.parametrize("new_biases", [True, False])
def test_copies_are_merged_without_loss(zoo: SimpleNamespace, kind: str, new_biases: bool) -> None:
    if kind == "linear":
        plain, batch = zoo.mlp((5, 6, 3)).double(), zoo.vectors(200).double()
    else:
        plain = nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 3, 3, padding=1)
        ).double()
        batch = zoo.images(32).double()
    model = with_copies(plain, 0, 2)
    torch.testing.assert_close(model(batch), plain(batch))
    found = extract(model, batch.split(8), Prune(target=Macs(0.5), new_biases=new_biases))
    assert found.changes[0].width_after == 6
    assert {unit % 6 for unit in found.plan.groups[0].kept} == set(range(6))
    assert found.changes[0].residual_share == pytest.approx(0.0, abs=1e-9)
    assert output_error(found.ticket, model, [batch]) ** 0.5 < 1e-4
    torch.testing.assert_close(found.ticket(batch), plain(batch), atol=1e-3, rtol=1e-3)


def test_frozen_layers_are_cut_and_stay_frozen(zoo: SimpleNamespace) -> None:
    model, batch = zoo.case("cnn")
    model.body[0].weight.requires_grad_(False)
    model.body[3].weight.requires_grad_(False)
    ticket = extract(model, [batch], Prune(target=Macs(0.4))).ticket
    assert len(ticket.body[0].weight) < 6
    flags = {name: parameter.requires_grad for name, parameter in ticket.named_parameters()}
    assert [name for name, flag in flags.items() if not flag] == [
        "body.0.weight",
        "body.3.weight",
        "body.3.bias",
    ]
    everything = zoo.case("cnn")[0].requires_grad_(False)
    assert extract(everything, [batch], Prune(target=Macs(0.4))).macs_share <= 0.4


def test_a_ticket_trains_with_a_new_optimizer(zoo: SimpleNamespace) -> None:
    model, batch = zoo.case("residual")
    ticket = extract(model, [batch], Prune(target=Macs(0.5))).ticket
    labels = torch.arange(len(batch)) % 3
    optimizer = torch.optim.SGD(ticket.parameters(), lr=0.1)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(ticket(batch), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(parameter.grad is not None for parameter in ticket.parameters())


def test_the_same_call_gives_the_same_ticket(zoo: SimpleNamespace) -> None:
    tickets = []
    for seed in (1, 2):
        model, batch = zoo.case("cnn")
        torch.manual_seed(seed)
        tickets.append(extract(model, [batch], Prune(target=Macs(0.5))).ticket.state_dict())
    assert all(torch.equal(tickets[0][key], tickets[1][key]) for key in tickets[0])


def test_layers_left_alone_keep_their_width(zoo: SimpleNamespace) -> None:
    model, batch = zoo.case("cnn")
    found = extract(model, [batch], Prune(target=Macs(0.7), leave_alone=("body.0",)))
    assert [change.group for change in found.changes] == ["body.3"]
    assert len(found.ticket.body[0].weight) == 6
    assert found.left_alone[0].reason == "left alone as asked by 'body.0'"


def test_uniform_widths_keep_one_share_of_every_group(zoo: SimpleNamespace) -> None:
    model, batch = zoo.mlp((5, 40, 40, 3)), zoo.vectors()
    found = extract(model, [batch], Prune(target=Macs(0.5), widths="uniform"))
    first, second = found.changes
    assert abs(first.width_after - second.width_after) <= 1
    assert first.effective_rank is None


def test_half_precision_and_channels_last_come_back(zoo: SimpleNamespace) -> None:
    model, batch = zoo.case("cnn")
    model = model.to(torch.bfloat16, memory_format=torch.channels_last)
    ticket = extract(model, [batch.bfloat16()], Prune(target=Macs(0.5))).ticket
    assert {parameter.dtype for parameter in ticket.parameters()} == {torch.bfloat16}
    assert ticket.body[3].weight.is_contiguous(memory_format=torch.channels_last)


def test_few_rows_are_enough_and_said(zoo: SimpleNamespace) -> None:
    model, batch = zoo.mlp((5, 30, 3)), zoo.vectors(8)
    found = extract(model, [batch], Prune(target=Macs(0.5)))
    assert found.notes == ("0: the calibration data give 8 rows for 30 units; more would be better",)
    assert all(bool(value.isfinite().all()) for value in found.ticket.state_dict().values())


def poisoned(batch: Tensor) -> Tensor:
    batch = batch.clone()
    batch[0] = math.nan
    return batch


def broken(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        next(model.parameters()).fill_(math.inf)
    return model


@pytest.mark.parametrize(
    ("build", "settings", "message"),
    [
        (lambda z: (z.mlp(), []), {}, "the calibration data are empty"),
        (
            lambda z: (z.mlp(), [z.vectors(), poisoned(z.vectors())]),
            {},
            "calibration batch 1 holds values that are not",
        ),
        (lambda z: (broken(z.mlp()), [z.vectors()]), {}, "weights of the model are not finite, at 0.weight"),
        (
            lambda z: (z.mlp(), [z.vectors()]),
            {"target": Macs(0.01)},
            r"cannot be reached: .* the least is 0\.\d+",
        ),
        (
            lambda z: (z.mlp((5, 3)), [z.vectors()]),
            {},
            "nothing that can be cut\n  0: it is the model's output",
        ),
        (lambda z: (z.mlp(), [z.vectors()]), {"leave_alone": ("5",)}, "'5' matches no module"),
    ],
)
def test_what_cannot_be_done_is_refused_and_nothing_has_changed(
    zoo: SimpleNamespace, build: Any, settings: dict[str, Any], message: str
) -> None:
    model, probe = build(zoo)
    state, flags = state_of(model)
    with pytest.raises(PruneError, match=message):
        extract(model, probe, Prune(**settings))
    after, flags_after = state_of(model)
    assert flags_after == flags
    assert all(torch.equal(state[key], after[key]) for key in state)


def test_recalibration_is_kept_only_where_it_helps(zoo: SimpleNamespace) -> None:
    model, batch = zoo.case("cnn")
    settle(model, batch)
    same, kept = recalibrate_norms(copy.deepcopy(model), model, [batch])
    shifted = copy.deepcopy(model)
    shifted.body[1].running_mean += 1.0
    momentum = shifted.body[1].momentum
    mended, helped = recalibrate_norms(shifted, model, [batch])
    assert not kept
    assert output_error(same, model, [batch]) == 0.0
    assert helped
    assert output_error(mended, model, [batch]) < 0.1 * output_error(shifted, model, [batch])
    assert mended.body[1].momentum == momentum
    assert mended.body[1].num_batches_tracked == shifted.body[1].num_batches_tracked
    assert all(module.training for module in mended.modules())


def test_a_model_without_batch_norm_has_nothing_to_recalibrate(zoo: SimpleNamespace) -> None:
    model, batch = zoo.case("mlp")
    assert recalibrate_norms(model, model, [batch]) == (model, False)


def test_fewer_items_wait_in_the_walk_where_memory_is_short_and_the_notes_say_so() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 4))
    probe = list(torch.randn(64, 64).split(16))
    # The widest input is 64 numbers: five of it for each item are 1280 bytes.
    half = 64 * 1280 / 2 / 2**30
    assert share_held(CalibrationStatistics(item_bytes=256), probe, half) == 0.5
    notes = {
        gib: extract(model, probe, Prune(target=Macs(0.6), activation_gib=gib)).notes for gib in (half, 1.0)
    }
    assert notes[half] == (
        "layers were fitted on 50% of the 64 calibration items, to hold no more activations than "
        "prune.activation_gib allows",
    )
    assert notes[1.0] == ()


def test_a_tolerance_that_earlier_cuts_exceed_is_said_to_be(zoo: SimpleNamespace) -> None:
    torch.manual_seed(0)
    model = zoo.mlp((5, 32, 24, 3))
    found = extract(model, [zoo.vectors(512)], Prune(target=Tolerance(0.05)))
    first, second = found.changes
    assert first.residual_share <= 0.05 < second.residual_share
    said = next(note for note in found.notes if note.startswith("the tolerance of 0.05"))
    assert f"1 of 2 groups leave more, at most {second.residual_share:.3g} ({second.group})" in said
    asked_less = extract(model, [zoo.vectors(512)], Prune(target=Macs(0.5)))
    assert not any("tolerance" in note for note in asked_less.notes)
