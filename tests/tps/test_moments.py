"""``moments``: coherence of a unit's squared pre-activation with the labels, in any model."""

from __future__ import annotations

import re
from math import log
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.tps.conftest import Addition, Pairs, built
from tests.unchanged import unchanged
from tpsprune.data.dataset import Preparation
from tpsprune.errors import VariantError
from tpsprune.numerics.coherence import moment_coherence
from tpsprune.recipe.train import Train
from tpsprune.records import TaskFacts
from tpsprune.tps import Regulariser
from tpsprune.training import Execution, fit, make_optimizer

BITS = TaskFacts(input_kind="vector", input_shape=(6,), classes=2)


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.head = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, inputs_nd: Tensor) -> Tensor:
        scores: Tensor = self.head(torch.relu(self.gate(inputs_nd)) * self.up(inputs_nd))
        return scores


def bits() -> Addition:
    inputs_nd = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 6)
    return inputs_nd, (inputs_nd[:, 0] * inputs_nd[:, 3] > 0).long()


def plain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))


def moments(model: nn.Module, facts: TaskFacts, data: Addition, **given: Any) -> Regulariser:
    return built(model, facts, data, **{"variant": "moments", "coupling": 1.0} | given)


def penalty_of(regulariser: Regulariser, model: nn.Module, data: Addition, *given: Any) -> Tensor:
    """Return the penalty after a forward pass of the data, which it listened to."""
    with regulariser.listening():
        model(data[0])
    penalty = regulariser.penalty(0, data[1], *given)
    assert penalty is not None
    return penalty


def test_the_penalty_is_one_minus_the_mean_coherence_of_what_the_forward_pass_put_out() -> None:
    model, (inputs, labels) = plain(), bits()
    regulariser = moments(model, BITS, (inputs, labels))
    penalty = penalty_of(regulariser, model, (inputs, labels))
    expected = 1.0 - moment_coherence(model[0](inputs)[:, None], None, labels).mean()
    torch.testing.assert_close(penalty, expected)
    assert regulariser.shares_forward_pass


@pytest.mark.parametrize(
    ("layers", "names"),
    [((), ["0"]), (("2",), ["2"]), (("0", "2"), ["0", "2"]), (("0 * 2",), ["0 * 2"])],
)
def test_it_couples_the_layers_named_or_the_first(layers: tuple[str, ...], names: list[str]) -> None:
    readings = moments(plain(), BITS, bits(), layers=layers).order_parameters(step=0, epoch=0.0)
    groups = [reading.group for reading in readings if reading.signal == "tps_coherence"]
    assert groups == [*names, ""]


def test_a_gated_units_factors_are_multiplied() -> None:
    model, (inputs, labels) = Gated(), bits()
    readings = moments(model, BITS, (inputs, labels), layers=("gate*up",)).order_parameters(step=0, epoch=0.0)
    (found,) = [r.value for r in readings if r.signal == "tps_coherence" and r.group == "gate * up"]
    expected = moment_coherence(model.gate(inputs)[:, None], model.up(inputs)[:, None], labels).mean()
    assert found == pytest.approx(float(expected.detach()))


def test_of_a_convolution_units_are_channels_and_positions_are_averaged(
    image_net: nn.Sequential, image_facts: TaskFacts
) -> None:
    torch.manual_seed(0)
    inputs, labels = torch.randn(20, 1, 8, 8), torch.randint(0, 5, (20,))
    penalty = penalty_of(moments(image_net, image_facts, (inputs, labels)), image_net, (inputs, labels))
    by_channel_ism = image_net[0](inputs).permute(0, 2, 3, 1).flatten(1, 2)
    torch.testing.assert_close(penalty, 1.0 - moment_coherence(by_channel_ism, None, labels).mean())


def test_reading_it_leaves_mode_statistics_hooks_and_gradients_alone(
    image_net: nn.Sequential, image_facts: TaskFacts
) -> None:
    inputs, labels = torch.randn(20, 1, 8, 8), torch.randint(0, 5, (20,))
    regulariser = moments(image_net, image_facts, (inputs, labels))
    with unchanged(image_net):
        regulariser.order_parameters(step=0, epoch=0.0)


def test_a_training_with_it_is_the_training_on_the_sum_of_both_losses() -> None:
    (inputs, labels), settings = (
        bits(),
        Train(epochs=20, batch_size="full", learning_rate=0.01, warmup_share=0.0, schedule="constant"),
    )
    torch.manual_seed(0)
    ours, theirs = plain(), plain()
    theirs.load_state_dict(ours.state_dict())
    regulariser = moments(ours, BITS, (inputs, labels), coupling=3.0)
    ticks = fit(
        ours,
        make_optimizer(ours, settings),
        inputs,
        labels,
        prepare=Preparation(),
        settings=settings,
        execution=Execution(torch.device("cpu"), None, channels_last=False),
        seed=0,
        first_step=0,
        last_step=20,
        total_steps=20,
        penalty=regulariser,
    )
    optimizer = make_optimizer(theirs, settings)
    for _ in ticks:
        optimizer.zero_grad()
        coherence_m = moment_coherence(theirs[0](inputs)[:, None], None, labels)
        task_loss = nn.functional.cross_entropy(theirs(inputs), labels)
        left = (task_loss.detach() / log(2)).clamp(max=1.0)
        (task_loss + 3.0 * left * (1.0 - coherence_m.mean())).backward()
        optimizer.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


def test_it_lets_go_as_the_task_is_learned_and_no_other_variant_does() -> None:
    model, (inputs, labels) = plain(), bits()
    regulariser = moments(model, BITS, (inputs, labels))
    terms = []
    for loss in (None, 5.0, log(2), 0.5 * log(2), 0.0):
        given = None if loss is None else torch.tensor(loss)
        term = penalty_of(regulariser, model, (inputs, labels), given)
        terms.append(float(term.detach()) / float(terms[0] if terms else 1.0))
    assert terms[1:] == pytest.approx([1.0, 1.0, 0.5, 0.0])
    weights = moments(model, BITS, (inputs, labels), variant="weights", apply="loss")
    full, still = (penalty_of(weights, model, (inputs, labels), each) for each in (None, torch.tensor(0.0)))
    assert torch.equal(full, still)


def test_descent_on_its_energy_finds_the_bits_whose_parity_is_the_label() -> None:
    torch.manual_seed(0)
    model, (inputs, labels) = plain(), bits()
    regulariser = moments(model, BITS, (inputs, labels))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(300):
        optimizer.zero_grad()
        penalty_of(regulariser, model, (inputs, labels)).backward()
        optimizer.step()
    size_md = model[0].weight.detach().abs()
    assert float(size_md[:, [0, 3]].min()) > 5 * float(size_md[:, [1, 2, 4, 5]].max())


def test_labels_of_held_out_items_cannot_reach_the_weights(pairs: Pairs) -> None:
    inputs, labels = pairs.data
    grads = []
    for held_out in (labels[40:], (labels[40:] + 3) % 11):
        data = inputs[:40], torch.cat((labels[:40], held_out))[:40]
        pairs.net.zero_grad()
        penalty_of(moments(pairs.net, pairs.facts, data), pairs.net, data).backward()
        grads.append(pairs.net.get_parameter("hidden.weight").grad.clone())  # type: ignore[union-attr]
    assert torch.equal(*grads)


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        (("00",), "tps.layers: no linear or convolution layer '00'"),
        (("0 * 2 * 4",), "tps.layers: '0 * 2 * 4' has 3 factors; expected 'layer' or 'gate * up'"),
        (("0 * 4",), "tps.layers: the factors of '0 * 4' have 8 and 2 units; expected equally many"),
    ],
)
def test_layers_that_cannot_be_had_are_refused(layers: tuple[str, ...], words: str) -> None:
    with pytest.raises(VariantError, match=re.escape(words)):
        moments(plain(), BITS, bits(), layers=layers)


class Odd(nn.Module):
    """A first layer that is never called, one that is called on rows of tokens, and one on items."""

    def __init__(self) -> None:
        super().__init__()
        self.idle, self.by_token, self.head = nn.Linear(6, 8), nn.Linear(3, 8), nn.Linear(16, 2)

    def forward(self, inputs_nd: Tensor) -> Tensor:
        scores: Tensor = self.head(self.by_token(inputs_nd.view(-1, 3)).view(-1, 16))
        return scores


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        (("idle",), r"^tps\.layers: 'idle' is not called in a forward pass$"),
        ((), r"^'moments' finds no layer before the scores that is called once"),
        (
            ("by_token",),
            r"^tps\.layers: 'by_token' outputs 6 rows for 3 items; choose a layer with one row for each",
        ),
    ],
)
def test_a_layer_that_cannot_be_read_item_by_item_is_refused(layers: tuple[str, ...], words: str) -> None:
    with pytest.raises(VariantError, match=words):
        moments(Odd(), BITS, bits(), layers=layers)


class Attentive(nn.Module):
    """Attention, whose own projection is called by no one, then units."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.units, self.head = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, inputs_nd: Tensor) -> Tensor:
        stream = inputs_nd[:, None]
        scores: Tensor = self.head(torch.relu(self.units(self.attention(stream, stream, stream)[0][:, 0])))
        return scores


class Twice(nn.Module):
    """One layer called twice, and a complex one."""

    def __init__(self) -> None:
        super().__init__()
        self.again, self.head = nn.Linear(6, 6), nn.Linear(6, 2)
        self.turned = nn.Linear(6, 6, dtype=torch.complex64)

    def forward(self, inputs_nd: Tensor) -> Tensor:
        scores: Tensor = self.head(self.turned(self.again(torch.relu(self.again(inputs_nd))) + 0j).abs())
        return scores


def groups(model: nn.Module, **given: Any) -> list[str]:
    readings = moments(model, BITS, bits(), **given).order_parameters(step=0, epoch=0.0)
    return [each.group for each in readings if each.signal == "tps_coherence" and each.group]


def test_the_first_layer_is_the_first_called_that_a_gradient_reaches() -> None:
    assert groups(Attentive()) == ["units"]
    frozen = plain()
    frozen[0].requires_grad_(False)
    assert groups(frozen) == ["2"]
    with pytest.raises(VariantError, match=r"^tps\.layers: '0' is frozen, and so is all before it"):
        moments(frozen, BITS, bits(), layers=("0",))


@pytest.mark.parametrize(
    ("layer", "words"),
    [("again", "is called 2 times in one forward pass"), ("turned", "outputs complex numbers")],
)
def test_a_layer_called_twice_or_of_complex_numbers_is_refused(layer: str, words: str) -> None:
    with pytest.raises(VariantError, match=rf"^tps\.layers: '{layer}' {words}"):
        moments(Twice(), BITS, bits(), layers=(layer,))
