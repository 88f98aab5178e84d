"""The regulariser: what is built or refused, how it couples, what it reads, and that it resumes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.tps.conftest import Addition, Pairs, built, try_build
from tpsprune.errors import RunFolderError, VariantError
from tpsprune.models.architectures import Transformer
from tpsprune.numerics.coherence import triadic_energy, triadic_force
from tpsprune.records import TaskFacts
from tpsprune.tps import Regulariser
from tpsprune.tps.phases import Weights

VARIANTS = ["weights", "neurons", "fourier", "labels"]
PUBLISHED = 1e-4
"""The coefficient with which ``bn-l1`` was published."""


@pytest.mark.parametrize("settings", [{"variant": "none"}, {"variant": "weights", "coupling": 0.0}])
def test_without_a_variant_or_a_coupling_nothing_is_built(
    settings: dict[str, Any], image_net: nn.Module, image_facts: TaskFacts
) -> None:
    assert try_build(image_net, image_facts, **settings) is None


@pytest.mark.parametrize(
    ("variant", "in_loss"), [("weights", False), ("neurons", False), ("fourier", True), ("labels", True)]
)
def test_auto_moves_phases_and_puts_triplets_in_the_loss(variant: str, in_loss: bool, pairs: Pairs) -> None:
    regulariser = try_build(pairs.net, pairs.facts, pairs.data, variant=variant)
    assert regulariser is not None
    assert (regulariser.variant_name, regulariser.in_loss) == (variant, in_loss)


def test_auto_is_labels_where_it_fits_and_nothing_elsewhere(
    pairs: Pairs,
    image_net: nn.Module,
    image_facts: TaskFacts,
) -> None:
    chosen = try_build(pairs.net, pairs.facts, pairs.data)
    assert chosen is not None
    assert chosen.variant_name == "labels"
    assert try_build(image_net, image_facts) is None
    assert try_build(pairs.net, pairs.facts, pairs.data, coupling=0.0) is None
    attention = Transformer(11, 8, 2, 16, 11)
    assert try_build(attention, pairs.facts, pairs.data) is None
    assert try_build(attention, pairs.facts, pairs.data, variant="labels") is not None


IMAGES = "What fits: weights, neurons, moments, bn-l1."
TOKENS = "What fits: weights, neurons, moments, labels."
LAYERS = "a trainable linear or convolution layer of 3 units and 2 inputs or more"
PAIRS = "two token inputs and a model with unit triplets"
CYCLIC = "two token inputs in cyclic order, as many classes as tokens and a model with unit triplets"


@pytest.mark.parametrize(
    ("variant", "net", "changes", "words"),
    [
        ("labels", "image", {}, f"'labels' needs {PAIRS}; this task has image inputs. " + IMAGES),
        (
            "labels",
            "pair",
            {"input_shape": (3,)},
            "; this task has inputs of shape (3,). What fits: weights, neurons, moments.",
        ),
        ("labels", "flat", {}, "; this model has no unit triplets. What fits: weights, neurons."),
        (
            "fourier",
            "pair",
            {"cyclic": False},
            f"'fourier' needs {CYCLIC}; the tokens of this task have no cyclic order. {TOKENS}",
        ),
        ("fourier", "pair", {"classes": 7}, "; this task has 11 tokens and 7 classes. " + TOKENS),
        ("fourier", "image", {}, "; this task has image inputs. " + IMAGES),
        (
            "weights",
            "norm",
            {},
            "needs a trainable linear, convolution or embedding layer; this model has none. What fits: none.",
        ),
        ("neurons", "norm", {}, f"'neurons' needs {LAYERS}; this model has none. What fits: none."),
        ("neurons", "two", {}, "this model has none. What fits: weights."),
        (
            "bn-l1",
            "layer",
            {},
            "needs a batch norm with trainable scales; this model has none. What fits: weights, neurons.",
        ),
        (
            "moments",
            "layer",
            {},
            "'moments' needs a linear or convolution layer before the one that gives the scores",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_what_does(
    variant: str,
    net: str,
    changes: dict[str, Any],
    words: str,
    pairs: Pairs,
    image_net: nn.Module,
    image_facts: TaskFacts,
) -> None:
    model = {
        "pair": pairs.net,
        "image": image_net,
        "flat": nn.Sequential(nn.Embedding(11, 4), nn.Flatten(), nn.Linear(8, 11)),
        "norm": nn.Sequential(nn.BatchNorm2d(1, affine=False)),
        "two": nn.Linear(8, 2),
        "layer": nn.Sequential(nn.Flatten(), nn.Linear(64, 5)),
    }[net]
    has_tokens = net in {"pair", "flat"}
    facts = replace(pairs.facts if has_tokens else image_facts, **changes)
    with pytest.raises(VariantError, match=re.escape(words)):
        try_build(model, facts, pairs.data if has_tokens else None, variant=variant)


@pytest.mark.parametrize("variant", ["fourier", "labels", "bn-l1"])
def test_what_has_no_phases_cannot_be_decoupled(variant: str, pairs: Pairs) -> None:
    model = nn.ModuleDict({"norm": nn.BatchNorm1d(2)}) if variant == "bn-l1" else pairs.net
    words = (
        rf"^tps\.apply = 'decoupled' does not fit '{variant}', which has no phases of its own to move\."
        r" What fits: auto, loss\.$"
    )
    with pytest.raises(VariantError, match=words):
        try_build(model, pairs.facts, pairs.data, variant=variant, apply="decoupled")


@pytest.mark.parametrize("variant", ["labels", "fourier", "moments"])
@pytest.mark.parametrize("loss", ["mse", "bce", "next-token", "theirs:loss"])
def test_what_ends_in_classes_is_refused_where_the_loss_is_another(
    variant: str, loss: str, pairs: Pairs
) -> None:
    facts = replace(pairs.facts, loss=loss)
    words = rf"; this task has loss '{loss}', not cross-entropy\. What fits: weights, neurons\.$"
    with pytest.raises(VariantError, match=words):
        try_build(pairs.net, facts, pairs.data, variant=variant)
    assert try_build(pairs.net, facts, pairs.data) is None, "'auto' finds nothing that fits"
    assert try_build(pairs.net, facts, pairs.data, variant="weights") is not None


def energies(model: nn.Module) -> Tensor:
    return Weights(model).energies().detach()


def weights_of(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def train(model: nn.Module, regulariser: Regulariser, data: Addition, steps: range) -> None:
    inputs, labels = data
    for step in steps:
        model.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        penalty = regulariser.penalty(step)
        (loss if penalty is None else loss + penalty).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter.sub_(0.1 * parameter.grad)
        regulariser.move(step, 0.1)


def test_coupling_rises_linearly_and_is_then_constant(pairs: Pairs) -> None:
    regulariser = pairs.built(variant="labels", coupling=3.0, warmup_share=0.2)
    assert [regulariser.coupling(step) for step in (0, 5, 10, 20, 21, 1000)] == pytest.approx(
        [0.0, 0.75, 1.5, 3.0, 3.0, 3.0]
    )
    assert pairs.built(variant="labels", coupling=3.0).coupling(0) == 3.0
    regulariser.schedule = lambda step: float(step % 2)
    assert [regulariser.coupling(step) for step in (0, 5, 1000)] == [0.0, 1.0, 0.0]
    assert regulariser.penalty(1000) is None


def test_the_penalty_is_coupling_times_the_mean_energy_of_the_groups(pairs: Pairs) -> None:
    regulariser = pairs.built(variant="weights", apply="loss", coupling=0.3)
    penalty = regulariser.penalty(0)
    assert penalty is not None
    torch.testing.assert_close(penalty.detach(), 0.3 * energies(pairs.net).mean())


def test_square_root_scaling_divides_each_groups_penalty_by_the_root_of_its_oscillators(pairs: Pairs) -> None:
    regulariser = pairs.built(variant="weights", apply="loss", coupling=2.0, scaling="sqrt-n")
    roots_g = torch.tensor([66.0, 108.0, 99.0]).sqrt()
    penalty = regulariser.penalty(0)
    assert penalty is not None
    torch.testing.assert_close(penalty.detach(), 2.0 * (energies(pairs.net) / roots_g).mean())


@pytest.mark.parametrize(("scaling", "share"), [("none", 1.0), ("sqrt-n", 99.0**-0.5)])
def test_a_move_is_learning_rate_times_coupling_times_force(scaling: str, share: float, pairs: Pairs) -> None:
    head = pairs.net.get_parameter("head.weight")
    before = head.detach().clone()
    rms = before.square().mean().sqrt()
    regulariser = pairs.built(variant="weights", coupling=4.0, warmup_share=0.5, scaling=scaling)
    regulariser.move(25, 0.1)
    step_size = 0.1 * 2.0 * share
    expected = before + step_size * rms * triadic_force((before / rms).flatten()).view_as(before)
    torch.testing.assert_close(head.detach(), expected)


@pytest.mark.parametrize("apply", ["auto", "loss"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_either_the_penalty_or_the_move_acts_never_both(variant: str, apply: str, pairs: Pairs) -> None:
    regulariser = pairs.built(variant=variant, apply=apply)
    before = weights_of(pairs.net)
    regulariser.move(1, 0.1)
    moved = any(not torch.equal(old, new) for old, new in zip(before, weights_of(pairs.net), strict=True))
    assert moved is not regulariser.in_loss
    assert (regulariser.penalty(1) is not None) is regulariser.in_loss


@pytest.mark.parametrize(("variant", "apply"), [("labels", "loss"), ("weights", "decoupled")])
def test_at_coupling_zero_nothing_happens(variant: str, apply: str, pairs: Pairs) -> None:
    regulariser = pairs.built(variant=variant, apply=apply, warmup_share=0.5)
    before = weights_of(pairs.net)
    assert regulariser.penalty(0) is None
    regulariser.move(0, 0.1)
    assert all(torch.equal(old, new) for old, new in zip(before, weights_of(pairs.net), strict=True))


def test_phase_variants_report_energy_and_order_by_group_and_as_a_mean(pairs: Pairs) -> None:
    readings = pairs.built(variant="weights").order_parameters(step=7, epoch=1.5)
    values = {(reading.signal, reading.group): reading.value for reading in readings}
    groups = ["embedding", "hidden", "head", ""]
    assert list(values) == [(name, group) for name in ("tps_energy", "tps_z1", "tps_z2") for group in groups]
    head = pairs.net.get_parameter("head.weight").detach().flatten()
    assert values["tps_energy", "head"] == pytest.approx(
        float(triadic_energy(head / head.square().mean().sqrt())), abs=1e-6
    )
    assert values["tps_energy", ""] == pytest.approx(float(energies(pairs.net).mean()), abs=1e-6)
    assert {(reading.step, reading.epoch) for reading in readings} == {(7, 1.5)}


@pytest.mark.parametrize("variant", ["weights", "neurons"])
def test_weights_that_are_not_finite_are_read_as_such(variant: str, pairs: Pairs) -> None:
    regulariser = pairs.built(variant=variant)
    pairs.net.get_parameter("head.weight").data[0, 0] = float("nan")
    readings = regulariser.order_parameters(step=0, epoch=0.0)
    assert {reading.group for reading in readings if reading.value is None} == {"head", ""}


@pytest.mark.parametrize("variant", ["fourier", "labels"])
def test_triplet_variants_report_energy_and_coherence_once(variant: str, pairs: Pairs) -> None:
    readings = pairs.built(variant=variant).order_parameters(step=0, epoch=0.0)
    values = {(reading.signal, reading.group): reading.value for reading in readings}
    assert {("tps_energy", ""), ("tps_coherence", "")} <= set(values)
    assert len(values) == len(readings)
    energy, coherence = values["tps_energy", ""], values["tps_coherence", ""]
    assert energy is not None
    assert coherence is not None
    assert energy + coherence == pytest.approx(1.0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_resumed_from_its_state_goes_on_bit_for_bit(variant: str, pairs: Pairs) -> None:
    settings: dict[str, Any] = {"variant": variant, "refresh_steps": 10, "warmup_share": 0.5}
    regulariser = pairs.built(**settings)
    train(pairs.net, regulariser, pairs.data, range(7))
    weights = {name: value.clone() for name, value in pairs.net.state_dict().items()}
    tensors, values = regulariser.state()
    tensors = {name: value.clone() for name, value in tensors.items()}
    train(pairs.net, regulariser, pairs.data, range(7, 24))
    through = weights_of(pairs.net)

    pairs.net.load_state_dict(weights)
    resumed = pairs.built(**settings)
    resumed.load_state(tensors, values)
    train(pairs.net, resumed, pairs.data, range(7, 24))
    assert all(torch.equal(old, new) for old, new in zip(through, weights_of(pairs.net), strict=True))


@pytest.mark.parametrize("apply", ["decoupled", "loss"])
def test_planes_are_fitted_again_when_a_refresh_is_due(apply: str, pairs: Pairs) -> None:
    settings: dict[str, Any] = {"variant": "neurons", "apply": apply, "refresh_steps": 10}
    regulariser = pairs.built(**settings)
    old = regulariser.state()[0]["plane.head"]
    nn.init.normal_(pairs.net.get_parameter("head.weight"))
    due = pairs.built(**settings).state()[0]["plane.head"]
    for step, plane_d2 in ((9, old), (10, due)):
        regulariser.penalty(step)
        regulariser.move(step, 0.0)
        assert torch.equal(regulariser.state()[0]["plane.head"], plane_d2)


def test_the_planes_of_neurons_are_needed_for_that(pairs: Pairs) -> None:
    regulariser = pairs.built(variant="neurons", refresh_steps=10)
    train(pairs.net, regulariser, pairs.data, range(7))
    rebuilt = pairs.built(variant="neurons", refresh_steps=10)
    old, new = regulariser.state()[0], rebuilt.state()[0]
    assert sorted(old) == ["plane.head", "plane.hidden"]
    assert not torch.equal(old["plane.head"], new["plane.head"])


def test_a_state_of_another_variant_or_of_other_layers_is_refused(pairs: Pairs) -> None:
    neurons = pairs.built(variant="neurons")
    tensors, values = neurons.state()
    labels = pairs.built(variant="labels")
    with pytest.raises(
        RunFolderError, match=r"^tps: the checkpoint holds variant 'labels' with no tensors, where"
    ):
        neurons.load_state(*labels.state())
    words = r"where this run needs variant 'neurons' with plane\.head \(9, 2\), plane\.hidden \(12, 2\)$"
    with pytest.raises(RunFolderError, match=words):
        neurons.load_state({"plane.head": tensors["plane.head"]}, values)


def test_only_fourier_has_a_note_of_harm(pairs: Pairs) -> None:
    stuck = ([0.1, 0.1, 0.1], [3.0, 2.0, 1.0])
    for variant in ("weights", "neurons", "labels"):
        assert pairs.built(variant=variant).harm_note(*stuck) is None
    note = pairs.built(variant="fourier").harm_note(*stuck)
    assert note is not None
    assert note.startswith("tps: coherence remains at 0.10")


def test_fourier_on_renamed_tokens_warns_before_any_reading(
    pair_net: nn.Module, cyclic_facts: TaskFacts
) -> None:
    tokens_i2 = torch.cartesian_prod(torch.arange(11), torch.arange(11))
    labels = tokens_i2.sum(1) % 11
    assert built(pair_net, cyclic_facts, (tokens_i2, labels), variant="fourier").harm_note([], []) is None
    renamed = (torch.randperm(11)[tokens_i2], torch.randperm(11)[labels])
    note = built(pair_net, cyclic_facts, renamed, variant="fourier").harm_note([], [])
    assert note is not None
    assert note.startswith("tps: the training labels follow the tokens' cyclic order to 0.")


def two_norms() -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Flatten()
    )
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([1.0, -2.0, 0.0]))
        model[3].weight.copy_(torch.tensor([0.25, -0.5]))
    return model


def scales(model: nn.Module, facts: TaskFacts, **given: Any) -> Regulariser:
    return built(model, facts, **{"variant": "bn-l1", "coupling": PUBLISHED} | given)


def penalty_of(regulariser: Regulariser) -> Tensor:
    penalty = regulariser.penalty(0)
    assert penalty is not None
    return penalty


def pruned() -> nn.Sequential:
    model = two_norms()
    model[0], model[1] = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)
    return model


def shared_and_frozen() -> nn.Sequential:
    shared, frozen = nn.BatchNorm2d(2), nn.BatchNorm2d(2).requires_grad_(False)
    return nn.Sequential(shared, shared, frozen, nn.BatchNorm2d(2, affine=False))


@pytest.mark.parametrize(
    ("make", "scaling", "total"),
    [
        (two_norms, "none", 3.75),
        (two_norms, "sqrt-n", 3.0 / 3**0.5 + 0.75 / 2**0.5),
        (shared_and_frozen, "none", 2.0),
        (lambda: nn.Sequential(nn.BatchNorm1d(70_000)).half(), "none", 70_000.0),
        (pruned, "none", 2.75),
    ],
    ids=[
        "all scales",
        "over the root of their number",
        "shared once, frozen not",
        "half precision",
        "pruned",
    ],
)
def test_the_penalty_of_scales_is_the_coefficient_times_their_sum(
    make: Callable[[], nn.Module], scaling: str, total: float, image_facts: TaskFacts
) -> None:
    regulariser = scales(make(), image_facts, scaling=scaling)
    assert regulariser.in_loss
    assert penalty_of(regulariser).item() == pytest.approx(PUBLISHED * total)


def test_each_scale_is_pulled_to_zero_by_the_coefficient_and_nothing_else_is(image_facts: TaskFacts) -> None:
    model = two_norms()
    penalty_of(scales(model, image_facts)).backward()
    for norm in (model[1], model[3]):
        torch.testing.assert_close(norm.weight.grad, PUBLISHED * norm.weight.detach().sign())
    others = [value for name, value in model.named_parameters() if name not in {"1.weight", "3.weight"}]
    assert all(value.grad is None for value in others)


def test_it_reads_the_sum_of_all_scales_and_no_coherence(image_facts: TaskFacts) -> None:
    readings = scales(two_norms(), image_facts).order_parameters(step=0, epoch=0.0)
    assert {reading.signal for reading in readings} == {"tps_energy"}
    assert {reading.group: reading.value for reading in readings} == pytest.approx(
        {"1": 2 * 3.0, "3": 2 * 0.75, "": 3.75}
    )
