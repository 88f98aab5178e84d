from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tpsprune.errors import RunFolderError
from tpsprune.numerics.coherence import triadic_energy, triadic_force
from tpsprune.recipe.tps import Tps
from tpsprune.records import TaskFacts
from tpsprune.tps import Regulariser, build
from tpsprune.tps.weights import Weights

Addition = tuple[Tensor, Tensor]
VARIANTS = ["weights", "neurons", "fourier", "labels"]


def built(
    model: nn.Module, facts: TaskFacts, data: Addition, total_steps: int = 100, **given: Any
) -> Regulariser:
    inputs, labels = data
    regulariser = build(
        Tps(**{"warmup_share": 0.0} | given),
        model,
        facts,
        train_inputs=inputs,
        train_labels=labels,
        total_steps=total_steps,
    )
    assert regulariser is not None
    return regulariser


def energies(model: nn.Module) -> Tensor:
    return Weights(model).energies().detach()


def weights_of(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def trained(model: nn.Module, regulariser: Regulariser, data: Addition, steps: range) -> None:
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


def test_coupling_rises_in_a_line_and_then_stays(
    pair_net: nn.Module, cyclic_facts: TaskFacts, addition: Addition
) -> None:
    regulariser = built(pair_net, cyclic_facts, addition, variant="labels", coupling=3.0, warmup_share=0.2)
    assert [regulariser.coupling(step) for step in (0, 5, 10, 20, 21, 1000)] == pytest.approx(
        [0.0, 0.75, 1.5, 3.0, 3.0, 3.0]
    )


def test_without_warm_up_coupling_is_whole_from_the_start(
    pair_net: nn.Module, cyclic_facts: TaskFacts, addition: Addition
) -> None:
    assert built(pair_net, cyclic_facts, addition, variant="labels", coupling=3.0).coupling(0) == 3.0


def test_the_penalty_is_coupling_times_the_mean_energy_of_the_groups(
    pair_net: nn.Module, cyclic_facts: TaskFacts, addition: Addition
) -> None:
    regulariser = built(pair_net, cyclic_facts, addition, variant="weights", apply="loss", coupling=0.3)
    penalty = regulariser.penalty(0)
    assert penalty is not None
    torch.testing.assert_close(penalty.detach(), 0.3 * energies(pair_net).mean())


def test_square_root_scaling_divides_each_groups_penalty_by_the_root_of_its_oscillators(
    pair_net: nn.Module, cyclic_facts: TaskFacts, addition: Addition
) -> None:
    regulariser = built(
        pair_net, cyclic_facts, addition, variant="weights", apply="loss", coupling=2.0, scaling="sqrt-n"
    )
    roots_g = torch.tensor([66.0, 108.0, 99.0]).sqrt()
    penalty = regulariser.penalty(0)
    assert penalty is not None
    torch.testing.assert_close(penalty.detach(), 2.0 * (energies(pair_net) / roots_g).mean())


@pytest.mark.parametrize(("scaling", "share"), [("none", 1.0), ("sqrt-n", 99.0**-0.5)])
def test_a_move_is_learning_rate_times_coupling_times_force(
    scaling: str, share: float, pair_net: nn.Module, cyclic_facts: TaskFacts, addition: Addition
) -> None:
    head = pair_net.get_parameter("head.weight")
    before = head.detach().clone()
    rms = before.square().mean().sqrt()
    regulariser = built(
        pair_net, cyclic_facts, addition, variant="weights", coupling=4.0, warmup_share=0.5, scaling=scaling
    )
    regulariser.move(25, 0.1)
    step_size = 0.1 * 2.0 * share
    expected = before + step_size * rms * triadic_force((before / rms).flatten()).view_as(before)
    torch.testing.assert_close(head.detach(), expected)


@pytest.mark.parametrize("apply", ["auto", "loss"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_either_the_penalty_or_the_move_acts_never_both(
    variant: str, apply: str, pair_net: nn.Module, cyclic_facts: TaskFacts, addition: Addition
) -> None:
    regulariser = built(pair_net, cyclic_facts, addition, variant=variant, apply=apply)
    before = weights_of(pair_net)
    regulariser.move(1, 0.1)
    moved = any(not torch.equal(old, new) for old, new in zip(before, weights_of(pair_net), strict=True))
    assert moved is not regulariser.in_loss
    assert (regulariser.penalty(1) is not None) is regulariser.in_loss


@pytest.mark.parametrize(("variant", "apply"), [("labels", "loss"), ("weights", "decoupled")])
def test_at_coupling_zero_nothing_happens(
    variant: str, apply: str, pair_net: nn.Module, cyclic_facts: TaskFacts, addition: Addition
) -> None:
    regulariser = built(pair_net, cyclic_facts, addition, variant=variant, apply=apply, warmup_share=0.5)
    before = weights_of(pair_net)
    assert regulariser.penalty(0) is None
    regulariser.move(0, 0.1)
    assert all(torch.equal(old, new) for old, new in zip(before, weights_of(pair_net), strict=True))


def test_phase_variants_report_energy_and_order_by_group_and_as_a_mean(
    pair_net: nn.Module, cyclic_facts: TaskFacts, addition: Addition
) -> None:
    readings = built(pair_net, cyclic_facts, addition, variant="weights").order_parameters(step=7, epoch=1.5)
    values = {(reading.signal, reading.group): reading.value for reading in readings}
    groups = ["embedding", "hidden", "head", ""]
    assert list(values) == [(name, group) for name in ("tps_energy", "tps_z1", "tps_z2") for group in groups]
    head = pair_net.get_parameter("head.weight").detach().flatten()
    assert values["tps_energy", "head"] == pytest.approx(
        float(triadic_energy(head / head.square().mean().sqrt())), abs=1e-6
    )
    assert values["tps_energy", ""] == pytest.approx(float(energies(pair_net).mean()), abs=1e-6)
    assert {(reading.step, reading.epoch) for reading in readings} == {(7, 1.5)}


@pytest.mark.parametrize("variant", ["weights", "neurons"])
def test_weights_that_are_not_finite_are_read_as_such(
    variant: str, pair_net: nn.Module, cyclic_facts: TaskFacts, addition: Addition
) -> None:
    regulariser = built(pair_net, cyclic_facts, addition, variant=variant)
    pair_net.get_parameter("head.weight").data[0, 0] = float("nan")
    readings = regulariser.order_parameters(step=0, epoch=0.0)
    assert {reading.group for reading in readings if reading.value is None} == {"head", ""}


@pytest.mark.parametrize("variant", ["fourier", "labels"])
def test_triplet_variants_report_energy_and_coherence_once(
    variant: str, pair_net: nn.Module, cyclic_facts: TaskFacts, addition: Addition
) -> None:
    readings = built(pair_net, cyclic_facts, addition, variant=variant).order_parameters(step=0, epoch=0.0)
    values = {(reading.signal, reading.group): reading.value for reading in readings}
    assert {("tps_energy", ""), ("tps_coherence", "")} <= set(values)
    assert len(values) == len(readings)
    energy, coherence = values["tps_energy", ""], values["tps_coherence", ""]
    assert energy is not None
    assert coherence is not None
    assert energy + coherence == pytest.approx(1.0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_resumed_from_its_state_goes_on_bit_for_bit(
    variant: str, pair_net: nn.Module, cyclic_facts: TaskFacts, addition: Addition
) -> None:
    given: dict[str, Any] = {"variant": variant, "refresh_steps": 10, "warmup_share": 0.5}
    regulariser = built(pair_net, cyclic_facts, addition, **given)
    trained(pair_net, regulariser, addition, range(7))
    weights = {name: value.clone() for name, value in pair_net.state_dict().items()}
    tensors, plain = regulariser.state()
    tensors = {name: value.clone() for name, value in tensors.items()}
    trained(pair_net, regulariser, addition, range(7, 24))
    through = weights_of(pair_net)

    pair_net.load_state_dict(weights)
    resumed = built(pair_net, cyclic_facts, addition, **given)
    resumed.load_state(tensors, plain)
    trained(pair_net, resumed, addition, range(7, 24))
    assert all(torch.equal(old, new) for old, new in zip(through, weights_of(pair_net), strict=True))


@pytest.mark.parametrize("apply", ["decoupled", "loss"])
def test_planes_are_fitted_anew_when_a_refresh_is_due(
    apply: str, pair_net: nn.Module, cyclic_facts: TaskFacts, addition: Addition
) -> None:
    given: dict[str, Any] = {"variant": "neurons", "apply": apply, "refresh_steps": 10}
    regulariser = built(pair_net, cyclic_facts, addition, **given)
    old = regulariser.state()[0]["plane.head"]
    nn.init.normal_(pair_net.get_parameter("head.weight"))
    due = built(pair_net, cyclic_facts, addition, **given).state()[0]["plane.head"]
    for step, plane_d2 in ((9, old), (10, due)):
        regulariser.penalty(step)
        regulariser.move(step, 0.0)
        assert torch.equal(regulariser.state()[0]["plane.head"], plane_d2)


def test_the_planes_of_neurons_are_needed_for_that(
    pair_net: nn.Module, cyclic_facts: TaskFacts, addition: Addition
) -> None:
    regulariser = built(pair_net, cyclic_facts, addition, variant="neurons", refresh_steps=10)
    trained(pair_net, regulariser, addition, range(7))
    built_anew = built(pair_net, cyclic_facts, addition, variant="neurons", refresh_steps=10)
    old, new = regulariser.state()[0], built_anew.state()[0]
    assert sorted(old) == ["plane.head", "plane.hidden"]
    assert not torch.equal(old["plane.head"], new["plane.head"])


def test_a_state_of_another_variant_or_of_other_layers_is_refused(
    pair_net: nn.Module, cyclic_facts: TaskFacts, addition: Addition
) -> None:
    neurons = built(pair_net, cyclic_facts, addition, variant="neurons")
    tensors, plain = neurons.state()
    labels = built(pair_net, cyclic_facts, addition, variant="labels")
    with pytest.raises(
        RunFolderError, match=r"^tps: the checkpoint holds variant 'labels' with no tensors, where"
    ):
        neurons.load_state(*labels.state())
    words = r"where this run needs variant 'neurons' with plane\.head \(9, 2\), plane\.hidden \(12, 2\)$"
    with pytest.raises(RunFolderError, match=words):
        neurons.load_state({"plane.head": tensors["plane.head"]}, plain)


def test_only_fourier_has_a_note_of_harm(
    pair_net: nn.Module, cyclic_facts: TaskFacts, addition: Addition
) -> None:
    stuck = ([0.1, 0.1, 0.1], [3.0, 2.0, 1.0])
    for variant in ("weights", "neurons", "labels"):
        assert built(pair_net, cyclic_facts, addition, variant=variant).harm_note(*stuck) is None
    note = built(pair_net, cyclic_facts, addition, variant="fourier").harm_note(*stuck)
    assert note is not None
    assert note.startswith("tps: coherence stays at 0.10")


def test_fourier_on_renamed_tokens_says_so_before_any_reading(
    pair_net: nn.Module, cyclic_facts: TaskFacts
) -> None:
    tokens_i2 = torch.cartesian_prod(torch.arange(11), torch.arange(11))
    answers = tokens_i2.sum(1) % 11
    assert built(pair_net, cyclic_facts, (tokens_i2, answers), variant="fourier").harm_note([], []) is None
    renamed = (torch.randperm(11)[tokens_i2], torch.randperm(11)[answers])
    note = built(pair_net, cyclic_facts, renamed, variant="fourier").harm_note([], [])
    assert note is not None
    assert note.startswith("tps: the training labels follow the tokens' cyclic order to 0.")
