from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tpsprune.errors import VariantError
from tpsprune.recipe.train import Tps
from tpsprune.records import TaskFacts
from tpsprune.tps import Regulariser, build

PUBLISHED = 1e-4


def two_norms() -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Flatten()
    )
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([1.0, -2.0, 0.0]))
        model[3].weight.copy_(torch.tensor([0.25, -0.5]))
    return model


def built(model: nn.Module, facts: TaskFacts, **given: Any) -> Regulariser:
    settings = Tps(**({"variant": "bn-l1", "coupling": PUBLISHED, "warmup_share": 0.0} | given))
    inputs, labels = torch.zeros(4, *facts.input_shape), torch.zeros(4, dtype=torch.int64)
    found = build(settings, model, facts, train_inputs=inputs, train_labels=labels, total_steps=100)
    assert found is not None
    return found


def penalty_of(regulariser: Regulariser) -> Tensor:
    penalty = regulariser.penalty(0)
    assert penalty is not None
    return penalty


def test_the_penalty_is_the_coefficient_times_the_plain_sum_of_all_scales(image_facts: TaskFacts) -> None:
    regulariser = built(two_norms(), image_facts)
    assert regulariser.in_loss
    assert penalty_of(regulariser).item() == pytest.approx(PUBLISHED * 3.75)


def test_each_scale_is_pulled_to_zero_by_the_coefficient_and_nothing_else_is(image_facts: TaskFacts) -> None:
    model = two_norms()
    penalty_of(built(model, image_facts)).backward()
    for norm in (model[1], model[3]):
        torch.testing.assert_close(norm.weight.grad, PUBLISHED * norm.weight.detach().sign())
    others = [value for name, value in model.named_parameters() if name not in {"1.weight", "3.weight"}]
    assert all(value.grad is None for value in others)


def test_it_reads_the_sum_of_all_scales_and_no_coherence(image_facts: TaskFacts) -> None:
    readings = built(two_norms(), image_facts).order_parameters(step=0, epoch=0.0)
    assert {reading.signal for reading in readings} == {"tps_energy"}
    assert {reading.group: reading.value for reading in readings} == pytest.approx(
        {"1": 2 * 3.0, "3": 2 * 0.75, "": 3.75}
    )


def test_with_sqrt_n_each_batch_norm_is_over_the_root_of_its_scales(image_facts: TaskFacts) -> None:
    regulariser = built(two_norms(), image_facts, scaling="sqrt-n")
    expected = PUBLISHED * (3.0 / 3**0.5 + 0.75 / 2**0.5)
    assert penalty_of(regulariser).item() == pytest.approx(expected)


def test_frozen_scales_and_norms_without_any_are_left_out_and_a_shared_one_counts_once(
    image_facts: TaskFacts,
) -> None:
    shared = nn.BatchNorm2d(2)
    frozen = nn.BatchNorm2d(2).requires_grad_(False)
    model = nn.Sequential(shared, shared, frozen, nn.BatchNorm2d(2, affine=False))
    assert penalty_of(built(model, image_facts)).item() == pytest.approx(PUBLISHED * 2)


def test_half_precision_scales_are_summed_in_single(image_facts: TaskFacts) -> None:
    model = nn.Sequential(nn.BatchNorm1d(70_000)).half()
    assert penalty_of(built(model, image_facts)).item() == pytest.approx(PUBLISHED * 70_000)


def test_built_again_after_a_cut_it_weighs_the_scales_that_are_left(image_facts: TaskFacts) -> None:
    model = two_norms()
    model[0], model[1] = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)
    assert penalty_of(built(model, image_facts)).item() == pytest.approx(PUBLISHED * 2.75)


def test_without_a_batch_norm_it_is_refused_with_what_fits(image_facts: TaskFacts) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    words = (
        r"^'bn-l1' needs a batch norm with trainable scales; this model has none\."
        r" What fits: weights, neurons\.$"
    )
    with pytest.raises(VariantError, match=words):
        built(model, image_facts)


def test_it_cannot_be_decoupled(image_facts: TaskFacts) -> None:
    with pytest.raises(VariantError, match=r"'bn-l1', which has no phases of its own to move\."):
        built(two_norms(), image_facts, apply="decoupled")
