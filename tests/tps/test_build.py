from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tpsprune.errors import VariantError
from tpsprune.models.architectures import Transformer
from tpsprune.recipe.train import Tps
from tpsprune.records import TaskFacts
from tpsprune.tps import Regulariser, build

Addition = tuple[Tensor, Tensor]


def built(
    model: nn.Module, facts: TaskFacts, data: Addition | None = None, **given: Any
) -> Regulariser | None:
    inputs, labels = data or (torch.zeros(4, *facts.input_shape), torch.zeros(4, dtype=torch.int64))
    return build(Tps(**given), model, facts, train_inputs=inputs, train_labels=labels, total_steps=100)


@pytest.mark.parametrize("given", [{"variant": "none"}, {"variant": "weights", "coupling": 0.0}])
def test_nothing_asked_for_is_nothing_built(
    given: dict[str, Any], image_net: nn.Module, image_facts: TaskFacts
) -> None:
    assert built(image_net, image_facts, **given) is None


@pytest.mark.parametrize(
    ("variant", "in_loss"), [("weights", False), ("neurons", False), ("fourier", True), ("labels", True)]
)
def test_auto_moves_phases_and_puts_triplets_in_the_loss(
    variant: str, in_loss: bool, pair_net: nn.Module, cyclic_facts: TaskFacts, addition: Addition
) -> None:
    regulariser = built(pair_net, cyclic_facts, addition, variant=variant)
    assert regulariser is not None
    assert (regulariser.variant_name, regulariser.in_loss) == (variant, in_loss)


def test_auto_is_labels_where_it_fits_and_nothing_elsewhere(
    pair_net: nn.Module,
    cyclic_facts: TaskFacts,
    addition: Addition,
    image_net: nn.Module,
    image_facts: TaskFacts,
) -> None:
    chosen = built(pair_net, cyclic_facts, addition)
    assert chosen is not None
    assert chosen.variant_name == "labels"
    assert built(image_net, image_facts) is None
    assert built(pair_net, cyclic_facts, addition, coupling=0.0) is None
    attention = Transformer(11, 8, 2, 16, 11)
    assert built(attention, cyclic_facts, addition) is None
    assert built(attention, cyclic_facts, addition, variant="labels") is not None


@pytest.mark.parametrize("variant", ["weights", "neurons"])
def test_phases_go_into_the_loss_if_so_asked(
    variant: str, image_net: nn.Module, image_facts: TaskFacts
) -> None:
    regulariser = built(image_net, image_facts, variant=variant, apply="loss")
    assert regulariser is not None
    assert regulariser.in_loss


@pytest.mark.parametrize("variant", ["fourier", "labels"])
def test_triplets_cannot_be_decoupled(
    variant: str, pair_net: nn.Module, cyclic_facts: TaskFacts, addition: Addition
) -> None:
    words = (
        rf"^tps\.apply = 'decoupled' does not fit '{variant}', which has no phases of its own to move\."
        r" What fits: auto, loss\.$"
    )
    with pytest.raises(VariantError, match=words):
        built(pair_net, cyclic_facts, addition, variant=variant, apply="decoupled")


def test_labels_on_images_is_refused_with_what_fits(image_net: nn.Module, image_facts: TaskFacts) -> None:
    words = (
        r"^'labels' needs two token inputs and a model with unit triplets; this task has image inputs\."
        r" What fits: weights, neurons, moments, bn-l1\.$"
    )
    with pytest.raises(VariantError, match=words):
        built(image_net, image_facts, variant="labels")


def test_labels_on_three_tokens_is_refused(pair_net: nn.Module, cyclic_facts: TaskFacts) -> None:
    with pytest.raises(
        VariantError,
        match=r"; this task has inputs of shape \(3,\)\. What fits: weights, neurons, moments\.$",
    ):
        built(pair_net, replace(cyclic_facts, input_shape=(3,)), variant="labels")


def test_labels_on_a_model_without_triplets_is_refused(cyclic_facts: TaskFacts, addition: Addition) -> None:
    model = nn.Sequential(nn.Embedding(11, 4), nn.Flatten(), nn.Linear(8, 11))
    with pytest.raises(
        VariantError, match=r"; this model has no unit triplets\. What fits: weights, neurons\.$"
    ):
        built(model, cyclic_facts, addition, variant="labels")


def test_fourier_without_cyclic_order_is_refused_and_labels_named(
    pair_net: nn.Module, cyclic_facts: TaskFacts, addition: Addition
) -> None:
    words = (
        r"^'fourier' needs two token inputs in cyclic order, as many classes as tokens and a model with unit"
        r" triplets; the tokens of this task have no cyclic order\."
        r" What fits: weights, neurons, moments, labels\.$"
    )
    with pytest.raises(VariantError, match=words):
        built(pair_net, replace(cyclic_facts, cyclic=False), addition, variant="fourier")


def test_fourier_with_fewer_classes_than_tokens_is_refused(
    pair_net: nn.Module, cyclic_facts: TaskFacts, addition: Addition
) -> None:
    with pytest.raises(
        VariantError,
        match=r"; this task has 11 tokens and 7 classes\. What fits: weights, neurons, moments, labels\.$",
    ):
        built(pair_net, replace(cyclic_facts, classes=7), addition, variant="fourier")


def test_fourier_on_images_is_refused(image_net: nn.Module, image_facts: TaskFacts) -> None:
    with pytest.raises(
        VariantError, match=r"; this task has image inputs\. What fits: weights, neurons, moments, bn-l1\.$"
    ):
        built(image_net, image_facts, variant="fourier")


@pytest.mark.parametrize(
    ("variant", "needs"),
    [
        ("weights", "a trainable linear, convolution or embedding layer"),
        ("neurons", "a trainable linear or convolution layer of 3 units and 2 inputs or more"),
    ],
)
def test_a_model_without_a_layer_to_act_on_is_refused(
    variant: str, needs: str, image_facts: TaskFacts
) -> None:
    model = nn.Sequential(nn.BatchNorm2d(1, affine=False))
    with pytest.raises(
        VariantError, match=rf"^'{variant}' needs {needs}; this model has none\. What fits: none\.$"
    ):
        built(model, image_facts, variant=variant)


def test_neurons_on_a_layer_of_two_units_is_refused_and_weights_named(image_facts: TaskFacts) -> None:
    with pytest.raises(VariantError, match=r"this model has none\. What fits: weights\.$"):
        built(nn.Linear(8, 2), image_facts, variant="neurons")


@pytest.mark.parametrize("variant", ["labels", "fourier", "moments"])
@pytest.mark.parametrize("loss", ["mse", "bce", "next-token", "theirs:loss"])
def test_what_ends_in_classes_is_refused_where_the_loss_is_another(
    variant: str, loss: str, pair_net: nn.Module, cyclic_facts: TaskFacts, addition: Addition
) -> None:
    facts = replace(cyclic_facts, loss=loss)
    words = rf"; this task has loss '{loss}', not cross-entropy\. What fits: weights, neurons\.$"
    with pytest.raises(VariantError, match=words):
        built(pair_net, facts, addition, variant=variant)
    assert built(pair_net, facts, addition) is None, "'auto' finds nothing that fits"
    assert built(pair_net, facts, addition, variant="weights") is not None
