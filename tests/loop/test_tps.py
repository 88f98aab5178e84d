"""TPS in a user's loop: numbers against closed forms, and everything that a loop may be wrapped in."""

from __future__ import annotations

import copy
import io
from math import log
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import tpsprune
from tests.loop.conftest import Data, assert_equal_weights, small_net, trained, weights_of
from tests.tps.conftest import MODULUS, PairNet
from tpsprune.errors import LoopError, RecipeError, RunFolderError, TpspruneError, VariantError
from tpsprune.numerics.coherence import moment_coherence, triadic_force
from tpsprune.recipe.train import Tps
from tpsprune.records import TaskFacts
from tpsprune.tps import build

VARIANTS: dict[str, dict[str, Any]] = {
    "weights": {},
    "weights in the loss": {"variant": "weights", "apply": "loss"},
    "neurons": {"refresh_steps": 2},
    "neurons in the loss": {"variant": "neurons", "apply": "loss", "refresh_steps": 2},
    "moments": {},
}


def made(model: nn.Module, optimizer: Any, data: Data, case: str) -> tpsprune.TPS:
    settings = {"variant": case} | VARIANTS[case]
    return tpsprune.TPS(model, optimizer, data=data, **settings)


def sgd(model: nn.Module, rate: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=rate)


def gradient(model: nn.Module) -> list[Tensor]:
    found = [each.grad.clone() for each in model.parameters() if each.grad is not None]
    assert len(found) == len(list(model.parameters()))
    return found


@pytest.fixture
def pairs() -> Data:
    tokens_i2 = torch.cartesian_prod(torch.arange(MODULUS), torch.arange(MODULUS))
    return tokens_i2, tokens_i2.sum(1) % MODULUS


def test_a_step_moves_each_weight_by_its_own_learning_rate_times_its_force(
    net: nn.Sequential, data: Data
) -> None:
    rates = {"0.weight": 0.1, "0.bias": 0.1, "2.weight": 0.3, "2.bias": 0.3}
    groups = [{"params": [weight], "lr": rates[name]} for name, weight in net.named_parameters()]
    optimizer = torch.optim.SGD(groups)
    tps = tpsprune.TPS(net, optimizer, variant="weights", coupling=2.0)
    x, y = data
    cross_entropy(net(x), y).backward()
    stepped = {
        name: weight.detach() - rates[name] * weight.grad
        for name, weight in net.named_parameters()
        if weight.grad is not None
    }
    optimizer.step()
    for name, weight in net.named_parameters():
        expected = stepped[name]
        if name.endswith("weight"):
            rms = expected.square().mean().sqrt()
            force = triadic_force((expected / rms).flatten()).view_as(expected)
            expected = expected + 2.0 * rates[name] * rms * force
        torch.testing.assert_close(weight.detach(), expected)
    assert tps.steps == 1
    assert float(tps(y)) == 0.0, "what is decoupled adds nothing to the loss"


def test_the_learning_rate_is_that_of_the_step_and_not_that_of_the_beginning(data: Data) -> None:
    after = []
    for rates in ((0.1, 0.1), (0.1, 0.0)):
        net = small_net()
        optimizer = sgd(net)
        with tpsprune.TPS(net, optimizer, variant="weights"):
            for rate in rates:
                optimizer.param_groups[0]["lr"] = rate
                before = weights_of(net)
                optimizer.step()  # without gradients, so that nothing but TPS moves
        after.append(not torch.equal(before[0], net[0].weight))
    assert after == [True, False]


def test_weights_that_the_optimiser_does_not_train_are_not_moved(net: nn.Sequential, data: Data) -> None:
    optimizer = torch.optim.SGD(net[0].parameters(), lr=0.1)
    tpsprune.TPS(net, optimizer, variant="weights")
    before = weights_of(net)
    optimizer.step()
    assert not torch.equal(before[0], net[0].weight)
    assert torch.equal(before[2], net[2].weight)


@pytest.mark.parametrize("case", VARIANTS)
def test_a_users_loop_is_that_of_the_training_loop(case: str, data: Data) -> None:
    x, y = data
    settings = {"variant": case} | VARIANTS[case]
    mine, other = small_net(), small_net()
    optimizer = sgd(mine)
    terms = trained(mine, optimizer, made(mine, optimizer, data, case), data, 5)
    facts = TaskFacts(input_kind="vector", input_shape=(8,), classes=3)
    regulariser = build(
        Tps(warmup_share=0.0, **settings), other, facts, train_inputs=x, train_labels=y, total_steps=5
    )
    assert regulariser is not None
    optimizer = sgd(other)
    for step in range(5):
        with regulariser.listening():
            loss = cross_entropy(other(x), y)
        term = regulariser.penalty(step, y, loss)
        (loss if term is None else loss + term).backward()
        optimizer.step()
        regulariser.move(step, 0.1)
        optimizer.zero_grad()
        assert terms[step] == (0.0 if term is None else pytest.approx(float(term.detach()), rel=1e-6))
    assert_equal_weights(mine, other)


def test_the_term_of_moments_is_one_less_coherence_eased_by_what_is_left_to_learn(
    net: nn.Sequential, data: Data
) -> None:
    x, y = data
    tps = tpsprune.TPS(net, sgd(net), variant="moments", data=data, coupling=0.5)
    with tps.listening():
        loss = cross_entropy(net(x), y)
    eased = min(1.0, float(loss.detach()) / log(3))
    coherence_m = moment_coherence(net[0](x)[:, None], None, y)
    torch.testing.assert_close(tps(y, loss), 0.5 * eased * (1.0 - coherence_m.mean()))


def test_coupling_rises_over_the_warm_up_and_is_then_constant(net: nn.Sequential, data: Data) -> None:
    optimizer = sgd(net, 0.0)
    tps = tpsprune.TPS(net, optimizer, variant="weights", apply="loss", coupling=3.0, warmup_steps=4)
    terms = trained(net, optimizer, tps, data, 7)
    assert [term / terms[-1] for term in terms] == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0])


@pytest.mark.parametrize("case", ["weights in the loss", "neurons in the loss"])
def test_accumulated_over_parts_the_gradient_is_that_of_the_whole_batch(case: str, data: Data) -> None:
    x, y = data
    found = []
    for parts in (1, 4):
        net = small_net()
        tps = made(net, sgd(net), data, case)
        for x_part, y_part in zip(x.chunk(parts), y.chunk(parts), strict=True):
            loss = cross_entropy(net(x_part), y_part)
            ((loss + tps(y_part, loss)) / parts).backward()
        found.append(gradient(net))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("variant", ["labels", "fourier"])
def test_what_reads_all_pairs_has_one_gradient_however_the_batch_is_parted(variant: str, pairs: Data) -> None:
    tokens, labels = pairs
    found = []
    for parts in (1, 11):
        torch.manual_seed(0)
        net = PairNet()
        tps = tpsprune.TPS(net, sgd(net), variant=variant, data=pairs)  # type: ignore[arg-type]
        assert tps.variant == variant
        for tokens_part, labels_part in zip(tokens.chunk(parts), labels.chunk(parts), strict=True):
            loss = cross_entropy(net(tokens_part), labels_part)
            ((loss + tps(labels_part, loss)) / parts).backward()
        found.append(gradient(net))
    torch.testing.assert_close(found[0], found[1])


def test_accumulated_moments_have_the_mean_gradient_of_their_parts(data: Data) -> None:
    x, y = data
    parts = list(zip(x.chunk(2), y.chunk(2), strict=True))
    net = small_net()
    tps = made(net, sgd(net), data, "moments")
    for x_part, y_part in parts:
        with tps.listening():
            loss = cross_entropy(net(x_part), y_part)
        ((loss + tps(y_part, loss)) / 2).backward()
    together = gradient(net)
    alone = []
    for x_part, y_part in parts:
        net = small_net()
        loss = cross_entropy(net(x_part), y_part)
        eased = (loss.detach() / log(3)).clamp(max=1.0)
        coherence_m = moment_coherence(net[0](x_part)[:, None], None, y_part)
        (loss + eased * (1.0 - coherence_m.mean())).backward()
        alone.append(gradient(net))
    torch.testing.assert_close(together, [(one + other) / 2 for one, other in zip(*alone, strict=True)])


def test_what_is_decoupled_moves_once_a_step_and_not_once_a_part(data: Data) -> None:
    x, y = data
    found = []
    for parts in (1, 4):
        net = small_net()
        optimizer = sgd(net)
        tps = made(net, optimizer, data, "weights")
        for x_part, y_part in zip(x.chunk(parts), y.chunk(parts), strict=True):
            loss = cross_entropy(net(x_part), y_part)
            ((loss + tps(y_part, loss)) / parts).backward()
        optimizer.step()
        assert tps.steps == 1
        found.append(weights_of(net))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("case", VARIANTS)
def test_a_compiled_model_has_the_same_numbers(case: str, data: Data) -> None:
    reference, inner = small_net(), small_net()
    compiled = torch.compile(inner, backend="aot_eager")
    optimizer = sgd(reference)
    expected = trained(reference, optimizer, made(reference, optimizer, data, case), data, 4)
    optimizer = sgd(compiled)
    tps = made(compiled, optimizer, data, case)
    found = trained(compiled, optimizer, tps, data, 2)
    with torch.no_grad():
        compiled(data[0])  # an evaluation between, which nothing listens to
    found += trained(compiled, optimizer, tps, data, 2)
    assert found == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(weights_of(inner), weights_of(reference))


# Torch looks at it itself, in a hook that it compiles apart.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_a_model_compiled_in_place_after_tps_is_made_is_listened_to(data: Data) -> None:
    reference, compiled = small_net(), small_net()
    optimizer = sgd(reference)
    expected = trained(reference, optimizer, made(reference, optimizer, data, "moments"), data, 3)
    optimizer = sgd(compiled)
    tps = made(compiled, optimizer, data, "moments")
    compiled.compile(backend="aot_eager")
    assert trained(compiled, optimizer, tps, data, 3) == pytest.approx(expected, rel=1e-5)


def test_code_compiled_before_and_for_another_model_is_not_taken_for_one_that_is_listened_to(
    data: Data,
) -> None:
    reference = small_net()
    optimizer = sgd(reference)
    expected = trained(reference, optimizer, made(reference, optimizer, data, "moments"), data, 3)
    without, inner = torch.compile(small_net(), backend="aot_eager"), small_net()
    compiled = torch.compile(inner, backend="aot_eager")
    for model in (without, compiled, without):
        model(data[0]).sum().backward()
    compiled.zero_grad()
    optimizer = sgd(compiled)
    tps = made(compiled, optimizer, data, "moments")
    compiled(data[0])
    assert trained(compiled, optimizer, tps, data, 3) == pytest.approx(expected, rel=1e-5)
    tps.close()
    assert type(inner[0]) is nn.Linear


@pytest.mark.parametrize("case", VARIANTS)
def test_under_autocast_the_term_is_in_full_precision(case: str, net: nn.Sequential, data: Data) -> None:
    x, y = data
    optimizer = sgd(net)
    tps = made(net, optimizer, data, case)
    for _ in range(3):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with tps.listening():
                logits = net(x)
                loss = cross_entropy(logits, y)
            term = tps(y, loss)
        assert logits.dtype == torch.bfloat16
        assert term.dtype == torch.float32
        (loss + term).backward()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            optimizer.step()
        optimizer.zero_grad()
    assert all(bool(weight.isfinite().all()) for weight in net.parameters())


@pytest.mark.parametrize("case", ["weights in the loss", "neurons in the loss"])
def test_what_reads_weights_is_the_same_under_autocast(case: str, data: Data) -> None:
    net = small_net()
    tps = made(net, sgd(net), data, case)
    expected = tps()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(tps(), expected)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_a_gradient_scaler_leaves_out_moves_and_counts_nothing(fused: bool, data: Data) -> None:
    net = small_net()
    optimizer = torch.optim.AdamW(net.parameters(), fused=fused)
    tps = made(net, optimizer, data, "weights")
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    before = weights_of(net)
    scaler.scale(cross_entropy(net(data[0]), data[1]) * torch.inf).backward()
    scaler.step(optimizer)
    scaler.update()
    assert tps.steps == 0
    torch.testing.assert_close(weights_of(net), before, rtol=0, atol=0)
    optimizer.zero_grad()
    scaler.scale(cross_entropy(net(data[0]), data[1])).backward()
    scaler.step(optimizer)
    assert tps.steps == 1


@pytest.mark.usefixtures("single_process")
@pytest.mark.parametrize("case", VARIANTS)
def test_a_model_spread_over_processes_has_the_same_numbers(case: str, data: Data) -> None:
    reference, inner = small_net(), small_net()
    wrapped = nn.parallel.DistributedDataParallel(inner)
    optimizer = sgd(reference)
    expected = trained(reference, optimizer, made(reference, optimizer, data, case), data, 4)
    optimizer = sgd(wrapped)
    assert trained(wrapped, optimizer, made(wrapped, optimizer, data, case), data, 4) == pytest.approx(
        expected
    )
    torch.testing.assert_close(weights_of(inner), weights_of(reference))


@pytest.mark.usefixtures("single_process")
def test_a_sharded_model_is_refused(data: Data) -> None:
    from torch.distributed.fsdp import fully_shard

    net = small_net()
    fully_shard(net, mesh=torch.distributed.init_device_mesh("cpu", (1,)))
    with pytest.raises(TpspruneError, match=r"'0\.weight' is sharded over processes"):
        tpsprune.TPS(net, sgd(net), variant="weights")


@pytest.mark.parametrize("case", VARIANTS)
def test_a_loop_that_goes_on_from_a_checkpoint_ends_as_one_that_was_never_broken_off(
    case: str, data: Data
) -> None:
    straight = small_net()
    optimizer = sgd(straight)
    trained(straight, optimizer, made(straight, optimizer, data, case), data, 7)
    first = small_net()
    optimizer = sgd(first)
    tps = made(first, optimizer, data, case)
    trained(first, optimizer, tps, data, 3)
    file = io.BytesIO()
    torch.save({"model": first.state_dict(), "tps": tps.state_dict()}, file)
    file.seek(0)
    checkpoint = torch.load(file, weights_only=True)
    second = small_net(seed=9)
    second.load_state_dict(checkpoint["model"])
    optimizer = sgd(second)
    tps = made(second, optimizer, data, case)
    tps.load_state_dict(checkpoint["tps"])
    assert tps.steps == 3
    trained(second, optimizer, tps, data, 4)
    assert_equal_weights(second, straight)


def test_a_state_of_something_else_is_refused(net: nn.Sequential, data: Data) -> None:
    optimizer = sgd(net)
    weights, neurons = (tpsprune.TPS(net, optimizer, variant=v) for v in ("weights", "neurons"))  # type: ignore[arg-type]
    with pytest.raises(LoopError, match=r"TPS: variant is 'weights' in the state and 'neurons' here"):
        neurons.load_state_dict(weights.state_dict())
    with pytest.raises(RunFolderError, match=r"holds variant 'neurons' with no tensors"):
        neurons.load_state_dict(neurons.state_dict() | {"tensors": {}})
    with pytest.raises(LoopError, match=r"the state is None, and 'tpsprune\.tps/2' is needed"):
        weights.load_state_dict({"steps": 3})
    with pytest.raises(LoopError, match=r"variant is 'weights' in the state and 'none' here"):
        tpsprune.TPS(net, optimizer, variant="none").load_state_dict(weights.state_dict())
    for name in ("settings", "steps", "tensors"):
        cut_short = {key: value for key, value in weights.state_dict().items() if key != name}
        with pytest.raises(
            LoopError, match=rf"TPS: the state lacks '{name}'; use all that state_dict returned"
        ):
            weights.load_state_dict(cut_short)
    assert weights.steps == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"coupling": 2.0}, r"TPS: coupling is 1\.0 in the state and 2\.0 here"),
        ({"apply": "loss"}, r"TPS: apply is 'decoupled' in the state and 'loss' here"),
        ({"scaling": "sqrt-n"}, r"TPS: scaling is 'none' in the state and 'sqrt-n' here"),
        ({"refresh_steps": 7}, r"TPS: refresh_steps is 50 in the state and 7 here"),
    ],
)
def test_a_state_made_with_another_setting_is_refused(
    settings: dict[str, Any], words: str, net: nn.Sequential
) -> None:
    state = tpsprune.TPS(net, sgd(net), variant="neurons").state_dict()
    with pytest.raises(LoopError, match=words):
        tpsprune.TPS(net, sgd(net), variant="neurons", **settings).load_state_dict(state)


def test_a_state_of_other_layers_or_sizes_is_refused(data: Data) -> None:
    def made_of(width: int, **settings: Any) -> tpsprune.TPS:
        net = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 6), nn.ReLU(), nn.Linear(6, 3))
        return tpsprune.TPS(net, sgd(net), variant="moments", data=data, **settings)

    state = made_of(12, layers=["2"]).state_dict()
    with pytest.raises(LoopError, match=r"TPS: oscillators of '0' is None in the state and 12 here"):
        made_of(12, layers=["0", "2"]).load_state_dict(state)
    with pytest.raises(LoopError, match=r"TPS: oscillators of '2' is 6 in the state and None here"):
        made_of(12, layers=[]).load_state_dict(
            state | {"settings": state["settings"] | {"oscillators of '0'": 12}}
        )
    with pytest.raises(LoopError, match=r"TPS: degree is 2 in the state and 3 here"):
        made_of(12, layers=["2"], degree=3).load_state_dict(state)
    with pytest.raises(LoopError, match=r"TPS: oscillators of '0' is 12 in the state and 10 here"):
        made_of(10).load_state_dict(made_of(12).state_dict())


def test_a_warm_up_may_be_another_than_that_of_the_state(net: nn.Sequential, data: Data) -> None:
    settings: dict[str, Any] = {"variant": "weights", "apply": "loss"}
    first = tpsprune.TPS(net, (optimizer := sgd(net, 0.0)), warmup_steps=4, **settings)
    trained(net, optimizer, first, data, 2)
    longer = tpsprune.TPS(net, sgd(net), warmup_steps=8, **settings)
    longer.load_state_dict(first.state_dict())
    assert longer.steps == 2
    assert float(longer().detach()) == pytest.approx(float(first().detach()) / 2)


@pytest.mark.parametrize(
    ("case", "signals"),
    [("weights", {"tps_energy", "tps_z1", "tps_z2"}), ("moments", {"tps_energy", "tps_coherence"})],
)
def test_order_parameters_are_read_by_group_and_as_a_mean(
    case: str, signals: set[str], net: nn.Sequential, data: Data
) -> None:
    optimizer = sgd(net)
    tps = made(net, optimizer, data, case)
    trained(net, optimizer, tps, data, 2)
    readings = tps.order_parameters(epoch=0.5)
    assert {reading.signal for reading in readings} == signals
    assert {(reading.step, reading.epoch) for reading in readings} == {(2, 0.5)}
    assert {reading.group for reading in readings} == {"0", "2", ""} if case == "weights" else {"0", ""}


def test_reading_order_between_forward_pass_and_term_disturbs_neither(data: Data) -> None:
    terms = []
    for reads in (False, True):
        net = small_net()
        tps = made(net, sgd(net), data, "moments")
        with tps.listening():
            loss = cross_entropy(net(data[0]), data[1])
        if reads:
            tps.order_parameters()
        terms.append(float(tps(data[1], loss).detach()))
    assert terms[0] == terms[1]


def test_a_copy_of_the_model_is_not_listened_to(net: nn.Sequential, data: Data) -> None:
    x, y = data
    tps = made(net, sgd(net), data, "moments")
    copied = copy.deepcopy(net)
    with tps.listening():
        loss = cross_entropy(net(x), y)
        copied(torch.randn(5, 8))
    assert float(tps(y, loss).detach()) > 0.0


def test_closed_it_leaves_model_and_optimiser_as_they_were(net: nn.Sequential, data: Data) -> None:
    optimizer = sgd(net)
    with made(net, optimizer, data, "weights"):
        pass
    before = weights_of(net)
    optimizer.step()
    torch.testing.assert_close(weights_of(net), before, rtol=0, atol=0)
    with made(net, optimizer, data, "moments"):
        assert net[0]._forward_hooks
    assert not net[0]._forward_hooks


def test_auto_couples_labels_where_units_join_two_tokens(pairs: Data) -> None:
    net = PairNet()
    assert tpsprune.TPS(net, sgd(net), data=pairs).variant == "labels"


def test_auto_reports_it_where_it_does_nothing(net: nn.Sequential, data: Data) -> None:
    optimizer = sgd(net)
    with pytest.warns(UserWarning, match=r"'auto' finds nothing .* 'weights', 'neurons' or 'moments' acts"):
        tps = tpsprune.TPS(net, optimizer)
    assert (tps.variant, tps.order_parameters()) == ("none", ())
    assert trained(net, optimizer, tps, data, 2) == [0.0, 0.0]


def test_fourier_is_refused_where_the_labels_do_not_follow_the_order_of_the_tokens(pairs: Data) -> None:
    tokens, labels = pairs
    renamed = torch.randperm(MODULUS, generator=torch.Generator().manual_seed(3))
    net = PairNet()
    with pytest.raises(VariantError, match=r"follow the tokens' cyclic order to 0\.\d\d only"):
        tpsprune.TPS(net, sgd(net), variant="fourier", data=(renamed[tokens], renamed.flip(0)[labels]))


X, Y = torch.randn(12, 8, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"variant": "wieghts"}, r"variant: must be .*did you mean 'weights'\?"),
        ({"coupling": -1.0}, r"coupling: must be greater than or equal to 0 \(found -1\.0\)"),
        ({"coupling": float("nan")}, r"coupling: must be a finite number"),
        ({"coupling": -1.0, "degree": 4}, r"TPS has 2 faults:\n  coupling: .*\n  degree: must be 2 or 3"),
        ({"warmup_steps": -5}, r"TPS: warmup_steps: must be a whole number from 0 \(found -5\)"),
        ({"variant": "moments", "apply": "decoupled"}, r"TPS: apply: 'moments' works in the loss only"),
        ({"variant": "bn-l1"}, r"TPS: coupling: must be below 1 with 'bn-l1'"),
        ({"variant": "weights", "layers": ["0"]}, r"TPS: layers: is read by variant 'moments' only"),
    ],
)
def test_a_setting_that_cannot_be_is_reported_with_what_would_do(
    settings: dict[str, Any], words: str, net: nn.Sequential
) -> None:
    with pytest.raises(RecipeError, match=words):
        tpsprune.TPS(net, sgd(net), data=(X, Y), **settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"variant": "moments", "data": None}, r"TPS 'moments' needs data=\(inputs, labels\): a few hundred"),
        (
            {"variant": "labels", "data": None},
            r"TPS 'labels' needs data=\(inputs, labels\): the training pairs",
        ),
        ({"variant": "labels"}, r"'labels' needs two token inputs .* What fits: weights, neurons, moments"),
        ({"variant": "moments", "layers": ["O"]}, r"tps\.layers: no linear or convolution layer 'O'"),
        ({"variant": "moments", "data": X}, r"data is Tensor; expected a tensor of inputs and one of labels"),
        ({"variant": "moments", "data": (X, Y[:5])}, r"inputs of shape \(12, 8\) and labels of shape \(5,\)"),
        ({"variant": "moments", "data": (X, Y.float())}, r"type float32; expected one whole number an item"),
        ({"variant": "moments", "data": (X, Y - 1)}, r"data has a label of -1; use classes from 0"),
        ({"variant": "moments", "data": (X, Y + 1)}, r"labels go up to 3 and the model has 3 scores"),
        ({"variant": "moments", "data": (X[:, :4], Y)}, r"the model does not take the inputs of data: mat1"),
    ],
)
def test_data_that_does_not_fit_is_reported_with_what_would_do(
    settings: dict[str, Any], words: str, net: nn.Sequential
) -> None:
    with pytest.raises(VariantError, match=words):
        tpsprune.TPS(net, sgd(net), **({"data": (X, Y)} | settings))


def test_auto_on_pairs_needs_them() -> None:
    net = PairNet()
    with pytest.raises(VariantError, match=r"TPS 'auto' is 'labels' on this model, and needs data="):
        tpsprune.TPS(net, sgd(net))


def test_an_optimiser_of_other_weights_or_none_at_all_is_refused(net: nn.Sequential) -> None:
    with pytest.raises(VariantError, match=r"this optimiser trains none of them"):
        tpsprune.TPS(net, sgd(small_net()), variant="weights")
    with pytest.raises(LoopError, match=r"optimizer is float; expected the torch\.optim\.Optimizer"):
        tpsprune.TPS(net, 0.1, variant="weights")  # type: ignore[arg-type]


def test_a_term_of_moments_without_its_pass_or_its_labels_is_refused(net: nn.Sequential, data: Data) -> None:
    x, y = data
    tps = made(net, sgd(net), data, "moments")
    loss = cross_entropy(net(x), y)
    with pytest.raises(
        VariantError, match=r"has no output of '0': make the forward pass of this model within listening"
    ):
        tps(y, loss)
    with tps.listening():
        loss = cross_entropy(net(x), y)
    with pytest.raises(LoopError, match=r"needs the labels of the batch and its loss: tps\(labels, loss\)"):
        tps()
    with pytest.raises(VariantError, match=r"labels of shape \(48, 1\) and type int64"):
        tps(y[:, None], loss)
    for label in (-100, 3):
        with pytest.raises(
            VariantError,
            match=rf"got a label of {label}, and classes are from 0 to 2; use a batch without",
        ):
            tps(torch.where(torch.arange(len(y)) == 5, label, y), loss)
    with pytest.raises(VariantError, match=r"has outputs of 48 items of '0' and 4 labels"):
        tps(y[:4], loss)
