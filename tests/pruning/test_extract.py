"""An extraction as one transaction, on models and batches of all kinds."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.pruning import nets_structure as zoo
from tests.unchanged import unchanged
from tpsprune.errors import PruneError
from tpsprune.numerics.macs import count_macs
from tpsprune.pruning import Extraction, extract, find_groups
from tpsprune.pruning.calibration import CalibrationStatistics
from tpsprune.pruning.observations import hold_out
from tpsprune.pruning.output_error import output_error
from tpsprune.pruning.planning import plan_widths
from tpsprune.pruning.race import race
from tpsprune.pruning.recalibration import recalibrate_norms
from tpsprune.pruning.reconstruction import share_held
from tpsprune.recipe.prune import Macs, Prune, Tolerance, Widths

CASES = ["cnn", "residual", "mixed", "mlp", "token-mlp", "transformer"]


def settle(model: nn.Module, batch: Tensor) -> nn.Module:
    """Give batch norms statistics of the data, as training does."""
    with torch.no_grad():
        for _ in range(40):
            model.train()(batch)
    return model


@pytest.mark.parametrize("name", CASES)
def test_the_target_is_met_and_the_model_is_not_touched(name: str) -> None:
    model, batch = zoo.case(name)
    with unchanged(model.train()):
        found = extract(model, batch.split(16), Prune(target=Macs(0.7)))
    counted = count_macs(found.ticket, batch).total / count_macs(model, batch).total
    assert found.macs_share == pytest.approx(counted)
    assert 0.5 < found.macs_share <= 0.7
    assert all(module.training for module in found.ticket.modules())
    assert [change.group for change in found.changes] == [each.name for each in found.plan.groups]
    assert [change.width_after for change in found.changes] == [len(each.kept) for each in found.plan.groups]
    assert {change.effective_rank for change in found.changes} == {None}


def test_the_same_call_gives_the_same_ticket() -> None:
    tickets = []
    for seed in (1, 2):
        model, batch = zoo.case("cnn")
        torch.manual_seed(seed)
        tickets.append(extract(model, [batch], Prune(target=Macs(0.5))).ticket.state_dict())
    assert all(torch.equal(tickets[0][key], tickets[1][key]) for key in tickets[0])


class Autoencoder(nn.Module):
    """A variational one: its latent numbers are drawn on every call, in evaluation mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(8, 32), nn.ReLU())
        self.mean, self.log_variance = nn.Linear(32, 6), nn.Linear(32, 6)
        self.decoder = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 8))

    def forward(self, x_bd: Tensor) -> Tensor:
        hidden = self.hidden(x_bd)
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        return self.decoder(mean + (0.5 * log_variance).exp() * torch.randn_like(mean))


def test_a_model_that_draws_random_numbers_is_pruned_but_for_what_they_are_drawn_for() -> None:
    torch.manual_seed(0)
    model, batch = Autoencoder().eval(), torch.randn(256, 8)
    states, tickets = [], []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        found = extract(model, batch.split(64), Prune(target=Macs(0.5)))
        states.append(torch.equal(before, torch.get_rng_state()))
        tickets.append(found.ticket.state_dict())
    assert [each.group for each in found.changes] == ["hidden.0", "decoder.0"]
    assert all("draws random numbers for each of its units" in each.reason for each in found.unpruned[:1])
    assert found.unpruned[0].name == "mean"
    assert states == [True, True]
    assert all(torch.equal(tickets[0][key], tickets[1][key]) for key in tickets[0])


def test_layers_left_alone_keep_their_width() -> None:
    model, batch = zoo.case("cnn")
    found = extract(model, [batch], Prune(target=Macs(0.7), ignored_layers=("body.0",)))
    assert [change.group for change in found.changes] == ["body.3"]
    assert len(found.ticket.body[0].weight) == 6
    assert found.unpruned[0].reason == "excluded by 'body.0'"


def test_few_rows_are_enough_and_noted() -> None:
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


ROWS = zoo.vectors()
X = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("make", "batches", "settings", "message"),
    [
        (zoo.mlp, [], {}, "the calibration data are empty"),
        (zoo.mlp, ["words"], {}, "the calibration data are empty"),
        (zoo.mlp, [ROWS, poisoned(ROWS)], {}, "calibration batch 1 holds values that are not"),
        (zoo.mlp, [zoo.vectors(16, 4)], {}, "cannot be called on two items of calibration batch 0: .*shape"),
        (zoo.mlp, [(ROWS, torch.zeros(64))], {}, "a tuple is passed by position"),
        (lambda: broken(zoo.mlp()), [ROWS], {}, "weights of the model are not finite, at 0.weight"),
        (zoo.mlp, [ROWS], {"target": Macs(0.01)}, r"cannot be reached: .* the least is 0\.\d+"),
        (zoo.mlp, [ROWS], {"ignored_layers": ("5",)}, "'5' matches no module"),
        (lambda: zoo.mlp((5, 3)), [ROWS], {}, "nothing that can be pruned\n  0: it is the model's output"),
        (lambda: Written(in_words), [X], {}, "the model returns str without a tensor of numbers"),
    ],
)
def test_what_cannot_be_done_is_refused_and_nothing_has_changed(
    make: Any, batches: list[Any], settings: dict[str, Any], message: str
) -> None:
    model = make()
    with unchanged(model), pytest.raises(PruneError, match=message):
        extract(model, batches, Prune(**settings))


def test_recalibration_is_kept_only_where_it_helps() -> None:
    model, batch = zoo.case("cnn")
    settle(model, batch)
    without = zoo.mlp()
    assert recalibrate_norms(without, without, [zoo.vectors()]) == (without, False)
    same, kept = recalibrate_norms(copy.deepcopy(model), model, [batch])
    shifted = copy.deepcopy(model)
    shifted.body[1].running_mean += 1.0
    momentum = shifted.body[1].momentum
    recalibrated, helped = recalibrate_norms(shifted, model, [batch])
    assert not kept
    assert output_error(same, model, [batch]) == 0.0
    assert helped
    assert output_error(recalibrated, model, [batch]) < 0.1 * output_error(shifted, model, [batch])
    assert recalibrated.body[1].momentum == momentum
    assert recalibrated.body[1].num_batches_tracked == shifted.body[1].num_batches_tracked
    assert all(module.training for module in recalibrated.modules())


def test_layers_are_fitted_on_fewer_items_where_memory_is_short_and_that_is_noted() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 4))
    batches = list(torch.randn(64, 64).split(16))
    # The widest input is 64 numbers: five of it for each item are 1280 bytes.
    half = 64 * 1280 / 2 / 2**30
    assert share_held(CalibrationStatistics(item_bytes=256), batches, half) == 0.5
    notes = {
        gib: extract(model, batches, Prune(target=Macs(0.6), activation_gib=gib)).notes for gib in (half, 1.0)
    }
    assert notes[half] == (
        "layers were fitted on 50% of the 64 calibration items, to hold no more activations than "
        "prune.activation_gib allows",
    )
    assert notes[1.0] == ()


def test_a_tolerance_holds_for_each_group_of_the_dense_model_and_a_note_says_so() -> None:
    torch.manual_seed(0)
    model = zoo.mlp((5, 32, 24, 3))
    found = extract(model, [zoo.vectors(512)], Prune(target=Tolerance(0.05)))
    assert all(0.0 < each.residual_share <= 0.05 for each in found.changes)
    (note,) = (note for note in found.notes if note.startswith("the tolerance of 0.05"))
    assert "each group of the dense model by itself" in note
    of_macs = extract(model, [zoo.vectors(512)], Prune(target=Macs(0.5)))
    assert not any("tolerance" in note for note in of_macs.notes)


class Siamese(nn.Module):
    """A perceptron called on its input and on something quite different; with ``last`` a layer after it."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(5, 12), nn.Linear(12, 4)
        self.last = nn.Sequential(nn.ReLU(), nn.Linear(4, 4)) if last else nn.Identity()

    def forward(self, x_bd: Tensor) -> Tensor:
        return sum(self.last(self.down(torch.relu(self.up(each)))) for each in (x_bd, 3 - 4 * x_bd.square()))


@pytest.mark.parametrize(
    ("last", "refit", "width"),
    [(False, True, 6), (False, False, 6), (True, True, 2)],
    ids=["refit", "compensation alone", "refit of what pruning has changed"],
)
def test_over_all_calls_together_a_fitted_layer_is_right_on_average(
    last: bool, refit: bool, width: int
) -> None:
    """As least squares with an intercept is on all that it is fitted to."""
    torch.manual_seed(0)
    model, batch = Siamese(last).double(), zoo.vectors(512).double()
    ticket = extract(model, batch.split(64), Prune(target=Widths({"up": width}), reconstruct=refit)).ticket
    assert not torch.allclose(ticket(batch), model(batch), rtol=0, atol=0.01)
    torch.testing.assert_close(ticket(batch).mean(0), model(batch).mean(0), rtol=0, atol=1e-9)


HALF = Prune(target=Macs(0.5))


def perceptron(outputs: int = 4, middle: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(8, 32), *([middle] if middle else []), nn.ReLU(), nn.Linear(32, 32), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(32, outputs))


class Cat(nn.Module):
    def forward(self, parts: list[Tensor]) -> Tensor:
        return torch.cat(parts, 1)


class Written(nn.Module):
    """A forward pass written as a function, with a perceptron and other parts to call in it."""

    def __init__(self, function: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.net = perceptron()
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)


def in_words(own: Any, x: Tensor) -> str:
    return str(own.net(x).sum())


def casting(own: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return own.net(x).float()


def in_place(own: Any, x: Tensor) -> Tensor:
    """It runs, and has no gradient: what the sigmoid needs is written over."""
    y = torch.sigmoid(own.net(x))
    y[:, :2] = y[:, :2] * 2
    return y


def scaled_away(own: Any, x: Tensor) -> Tensor:
    """A branch that adds nothing."""
    h = functional.relu(own.stem(x))
    return own.head(h + own.scale * own.down(functional.relu(own.up(h))))


class Experts(nn.Module):
    """Each item is routed to one of two experts, by its own value."""

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


MASKED = [{"mask": torch.eye(5), "x": torch.randn(64, 5, 8)}]
RUNS: dict[str, tuple[nn.Module, list[Any]]] = {
    "last of one": (perceptron(), [X, X[:1]]),
    "one item": (perceptron(), [X[:1]]),
    "batches of one": (perceptron(), list(X.split(1))[:40]),
    "one output": (perceptron(1), list(X.split(8))),
    "vector norm": (perceptron(4, nn.BatchNorm1d(32)), list(X.split(8))),
    "vector norm, last of one": (perceptron(4, nn.BatchNorm1d(32)), [X[:255], X[255:]]),
    "a list as input": (Written(lambda own, x: own.net(x + own.cat([x[:, :4], x[:, 4:]])), cat=Cat()), [X]),
    "a vector as input": (
        Written(lambda own, x: own.net(x + own.add(torch.ones(6))), add=nn.Linear(6, 8)), [X],
    ),
    "autocast inside": (Written(casting), [X, X]),
    "a loss among the outputs": (Written(lambda own, x: (own.net(x), own.net(x).square().mean())), [X]),
    "no gradient": (Written(in_place), [X]),
    "a mask first": (Written(lambda own, mask, x: own.net(mask @ x).mean(1)), MASKED),
    "experts": (Experts(), [X[:128], X[128:]]),
    "bfloat16": (perceptron().bfloat16(), [X.bfloat16()]),
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_a_ticket_comes_out(name: str) -> None:
    model, batches = RUNS[name]
    with unchanged(model):
        found = extract(model, batches, Prune(target=Macs(0.6)))
    assert found.macs_share <= 0.6
    assert all(bool(tensor.isfinite().all()) for tensor in found.ticket.state_dict().values())
    assert not torch.is_autocast_enabled("cpu")


def test_small_batches_choose_and_fit_as_well_as_large_ones() -> None:
    errors = [
        output_error(extract(perceptron(1), batches, HALF).ticket, perceptron(1), [X])
        for batches in ([X], list(X.split(8)))
    ]
    assert errors[1] < 1.5 * errors[0] + 1e-3


def test_an_activation_in_place_changes_nothing_about_the_widths() -> None:
    model, in_place = perceptron(), perceptron()
    in_place[1].inplace = in_place[3].inplace = True
    widths = [[each.width_after for each in extract(net, [X], HALF).changes] for net in (model, in_place)]
    assert widths[0] == widths[1]


def test_a_branch_without_effect_loses_its_units_first() -> None:
    torch.manual_seed(0)
    parts = {"stem": nn.Linear(8, 16), "up": nn.Linear(16, 32), "down": nn.Linear(32, 16)}
    model = Written(scaled_away, **parts, head=nn.Linear(16, 4))
    model.scale = nn.Parameter(torch.zeros(16))
    after = {change.group: change.width_after for change in extract(model, [X], HALF).changes}
    assert after["up"] < 0.7 * 32
    assert after["stem"] == 16


@dataclass
class Scored:
    """An output as some libraries define it: scores, something else, and a field that may be missing."""

    logits: Tensor
    hidden: Tensor
    loss: Tensor | None = None


def both_outputs(own: Any, inputs: Tensor) -> Scored:
    """The hidden units are a part of the output."""
    second = functional.relu(own.hidden(functional.relu(own.stem(inputs))))
    return Scored(own.head(second), second)


def test_an_output_that_is_a_dataclass_is_read_field_by_field() -> None:
    parts = {"stem": nn.Linear(6, 16), "hidden": nn.Linear(16, 16), "head": nn.Linear(16, 3)}
    found = find_groups(Written(both_outputs, **parts), torch.randn(4, 6))
    assert [group.name for group in found.groups] == ["stem"]
    assert {each.name for each in found.unpruned} >= {"hidden", "head"}, "both are outputs"


def widths_of(found: Extraction) -> dict[str, int]:
    return {each.group: each.width_after for each in found.changes}


def test_the_best_quality_keeps_the_widths_that_err_least_on_items_held_out() -> None:
    model, batch = zoo.case("residual")
    fit, held = hold_out([batch])
    settings = Prune(target=Macs(0.6), recalibrate=False)
    errors = {}
    for rival in ("greedy", "uniform", "equal-residual"):
        widths = widths_of(extract(model, [batch], replace(settings, widths=rival)))  # type: ignore[arg-type]
        found = extract(model, fit, replace(settings, target=Widths(widths)))
        errors[tuple(widths.values())] = output_error(found.ticket, model, held)
    assert len(errors) > 1
    best = extract(model, [batch], replace(settings, quality="best"))
    assert errors[tuple(widths_of(best).values())] <= 1.05 * min(errors.values())
    assert best.times.race > 0


class Attention(nn.Module):
    """Attention whose scale follows the width of its heads."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 4
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(32, 32) for _ in range(4))

    def forward(self, x_bte: Tensor) -> Tensor:
        q, k, v = (
            layer(x_bte).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stream, self.attention, self.head = nn.Linear(8, 32), Attention(), nn.Linear(32, 5)

    def forward(self, x_btd: Tensor) -> Tensor:
        x_bte = self.stream(x_btd)
        return self.head((x_bte + self.attention(x_bte)).mean(1))


@pytest.mark.parametrize("refit", [True, False], ids=["refit", "compensation alone"])
def test_queries_that_are_compensated_keep_the_scale_that_was_held(refit: bool) -> None:
    torch.manual_seed(0)
    model = Attending().eval()
    with torch.no_grad():
        # Half of the stream says what the other half does, and of each head four dimensions are enough.
        attention = model.attention
        for layer in (model.stream, attention.o_proj):
            layer.weight[16:], layer.bias[16:] = layer.weight[:16], layer.bias[:16]
        for layer in (attention.q_proj, attention.k_proj):
            layer.weight.mul_(6.0)
            for low in range(4, 32, 8):
                layer.weight[low : low + 4] = 0.0
                layer.bias[low : low + 4] = 0.0
    batches = torch.randn(512, 6, 8, generator=torch.Generator().manual_seed(1)).split(128)
    (width,) = (
        each.name
        for each in find_groups(model, batches[0], head_width=True).groups
        if each.scores is not None
    )
    target = Widths({width: 4, "stream": 16})
    found = extract(model, batches, Prune(target=target, head_width=True, reconstruct=refit))
    assert output_error(found.ticket, model, batches) < 1e-6


def test_what_a_layer_reads_beside_a_far_stronger_direction_is_kept() -> None:
    """In single precision the weak directions beside a far stronger one are lost."""
    torch.manual_seed(0)
    strong = nn.functional.normalize(torch.randn(16), dim=0)
    model = zoo.mlp((16, 64, 64, 64, 4)).eval()
    with torch.no_grad():
        model[0].weight += 300.0 * strong
        model[2].weight -= model[2].weight.mean(1, keepdim=True)
    batches = torch.randn(1024, 16, generator=torch.Generator().manual_seed(1)).split(128)
    found = extract(model, batches, Prune(target=Macs(0.5)))
    in_double = extract(copy.deepcopy(model).double(), [x.double() for x in batches], Prune(target=Macs(0.5)))
    error = output_error(found.ticket, model, batches)
    # The activations themselves have single precision.
    assert error < 3.0 * output_error(in_double.ticket.float(), model, batches)


class Particular(nn.Module):
    """It does not run at some widths."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(16, 64), nn.Linear(64, 64), nn.Linear(64, 4)

    def forward(self, x_bd: Tensor) -> Tensor:
        hidden = self.first(x_bd).relu()
        if hidden.shape[-1] == 40:
            raise ValueError("forty units are not supported")
        return self.last(self.second(hidden).relu())


@pytest.mark.parametrize("compensate", [True, False])
def test_a_ticket_that_does_not_run_is_refused_with_what_its_code_says(compensate: bool) -> None:
    settings = Prune(target=Widths({"first": 40}), round_to=1, compensate=compensate)
    with pytest.raises(PruneError, match=r"the ticket does not run \(.*forty units are not supported\)"):
        extract(Particular(), torch.randn(256, 16).split(64), settings)


def test_in_a_race_widths_that_do_not_run_lose() -> None:
    model, batches = Particular(), torch.randn(256, 16).split(64)
    settings = Prune(target=Macs(0.55), round_to=1, quality="best")
    uniform = extract(model, batches, replace(settings, widths="uniform", quality="fast"))
    assert "first" in {each.group for each in uniform.changes}
    planned = plan_widths(model, batches, settings)
    rigged = replace(planned, widths=(40, *planned.widths[1:]))
    assert race(model, batches, settings, rigged, None)[0][0].widths != rigged.widths


class Hoarder(nn.Linear):
    """A layer whose state dict holds copies of its tensors."""

    forward = nn.Linear.forward

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = self.weight.clone()
        destination[f"{prefix}bias"] = self.bias.clone()


def test_a_layer_whose_state_dict_holds_copies_is_verified_by_its_own_tensors() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), Hoarder(64, 32), nn.Sigmoid(), nn.Linear(32, 4))
    found = extract(model, torch.randn(512, 16).split(128), Prune(target=Widths({"0": 16})))
    assert found.macs_share < 0.5
