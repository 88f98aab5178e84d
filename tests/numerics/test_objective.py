"""Losses and qualities: against their formulas written out, whatever the batches, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from sklearn.metrics import r2_score
from torch import Tensor
from torch.nn import functional

from tpsprune.errors import RecipeError
from tpsprune.numerics.objective import CROSS_ENTROPY, IGNORED, Objective, Sums, r_squared

OWN = "theirs:loss"


def drawn(word: str, items: int = 30) -> tuple[Tensor, Tensor]:
    """Return scores and labels of some items, as each loss has them."""
    generator = torch.Generator().manual_seed(items)
    match word:
        case "mse" | "reconstruction":
            return torch.randn(items, 3, generator=generator), torch.randn(items, 3, generator=generator) + 5
        case "bce":
            scores = torch.randn(items, 4, generator=generator)
            return scores, torch.randint(2, (items, 4), generator=generator).float()
        case "next-token":
            labels = torch.randint(7, (items, 5), generator=generator)
            labels[::3, 2:] = IGNORED
            return torch.randn(items, 5, 7, generator=generator), labels
        case _:
            return torch.randn(items, 3, generator=generator), torch.randint(3, (items,), generator=generator)


def by_hand(word: str, scores: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return loss and quality by their definitions, number after number."""
    if word in ("mse", "reconstruction"):
        gaps = (scores - labels).square()
        weights = "uniform_average" if word == "mse" else "variance_weighted"
        return gaps.mean().item(), r2_score(labels.numpy(), scores.numpy(), multioutput=weights)
    losses, hits = [], []
    if word == "bce":
        for score, label in zip(scores.flatten().tolist(), labels.flatten().tolist(), strict=True):
            chance = 1 / (1 + math.exp(-score))
            losses.append(-math.log(chance if label else 1 - chance))
            hits.append((chance > 0.5) == bool(label))
    else:
        for row, label in zip(scores.flatten(0, -2).tolist(), labels.flatten().tolist(), strict=True):
            if label == IGNORED:
                continue
            losses.append(math.log(sum(map(math.exp, row))) - row[label])
            hits.append(max(range(len(row)), key=lambda place, row=row: row[place]) == label)  # type: ignore[misc]
    return sum(losses) / len(losses), sum(hits) / len(hits)


WORDS = ("cross-entropy", "next-token", "bce", "mse", "reconstruction")


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("at_a_time", [30, 7, 1])
def test_loss_and_quality_are_those_of_their_formulas_however_items_are_batched(
    word: str, at_a_time: int
) -> None:
    objective, (scores, labels) = Objective.of(word), drawn(word)
    batches = zip(scores.split(at_a_time), labels.split(at_a_time), strict=True)
    first, *others = [objective.sums(part, label) for part, label in batches]
    total = sum(others, start=first)
    assert objective.figures(total, labels) == pytest.approx(by_hand(word, scores, labels), rel=1e-5)
    assert objective.loss(scores, labels).item() == pytest.approx(by_hand(word, scores, labels)[0], rel=1e-5)


@pytest.mark.parametrize("word", WORDS)
def test_the_slope_of_the_sum_over_what_is_counted_is_the_slope_of_the_mean(word: str) -> None:
    objective, (scores, labels) = Objective.of(word), drawn(word)
    scores.requires_grad_()
    (mean,) = torch.autograd.grad(objective.loss(scores, labels), scores)
    sums = objective.sums(scores, labels)
    (total,) = torch.autograd.grad(sums.loss / sums.counted, scores)
    torch.testing.assert_close(mean, total)


@pytest.mark.parametrize("word", ["cross-entropy", "next-token"])
def test_smoothing_is_that_of_torch_and_is_not_in_what_is_evaluated(word: str) -> None:
    objective, (scores, labels) = Objective.of(word), drawn(word)
    smoothed = functional.cross_entropy(scores.flatten(0, -2), labels.flatten(), label_smoothing=0.3)
    torch.testing.assert_close(objective.loss(scores, labels, label_smoothing=0.3), smoothed)
    figures = objective.figures(objective.sums(scores, labels), labels)
    assert figures[0] == pytest.approx(objective.loss(scores, labels).item(), rel=1e-6)


@pytest.mark.parametrize("word", ["cross-entropy", "next-token"])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 10.0])
def test_a_temperature_divides_the_scores_in_training_and_after(word: str, temperature: float) -> None:
    scores, labels = drawn(word)
    warm = Objective.of(word, temperature)
    divided = Objective.of(word).loss(scores / temperature, labels)
    torch.testing.assert_close(warm.loss(scores, labels), divided)
    loss, quality = warm.figures(warm.sums(scores, labels), labels)
    assert loss == pytest.approx(divided.item(), rel=1e-6)
    assert quality == Objective.of(word).figures(Objective.of(word).sums(scores, labels), labels)[1]


@pytest.mark.parametrize("shape", [(30,), (30, 1)])
def test_one_target_may_come_with_an_axis_of_its_own_or_without(shape: tuple[int, ...]) -> None:
    objective, scores = Objective.of("mse"), drawn("mse")[0][:, :1]
    labels = drawn("mse")[1][:, 0]
    for output in (scores, scores[:, 0]):
        assert objective.loss(output, labels.reshape(shape)).item() == pytest.approx(
            (scores[:, 0] - labels).square().mean().item()
        )


def test_places_that_do_not_count_do_not_show() -> None:
    scores, labels = drawn("next-token")
    changed = torch.where((labels == IGNORED)[..., None], torch.randn(30, 5, 7), scores)
    objective = Objective.of("next-token")
    for read in (
        lambda found: objective.loss(found, labels),
        lambda found: torch.tensor(objective.figures(objective.sums(found, labels), labels)),
    ):
        torch.testing.assert_close(read(scores), read(changed))


def test_a_batch_in_which_no_place_counts_has_no_loss_and_no_slope() -> None:
    scores = torch.randn(2, 3, 7, requires_grad=True)
    loss = Objective.of("next-token").loss(scores, torch.full((2, 3), IGNORED))
    (slope,) = torch.autograd.grad(loss, scores)
    assert loss.item() == 0.0
    assert not slope.any()


def squares(outputs: Tensor, labels: Tensor) -> Tensor:
    return (outputs - labels).double().square().sum(0)


def test_r_squared_is_1_of_the_labels_and_0_of_their_mean() -> None:
    labels = drawn("mse")[1]
    assert r_squared(squares(labels, labels), labels) == 1.0
    assert r_squared(squares(labels.mean(0).expand_as(labels), labels), labels) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("factor", "shift"), [(1000.0, 0.0), (1.0, 50.0), (-0.01, 3.0)])
def test_r_squared_does_not_see_the_unit_of_a_target(factor: float, shift: float) -> None:
    scores, labels = (each.double() for each in drawn("mse"))
    moved = [each * factor + shift for each in (scores, labels)]
    assert r_squared(squares(*moved), moved[1]) == pytest.approx(r_squared(squares(scores, labels), labels))


def test_a_target_that_never_varies_counts_where_it_is_hit_exactly() -> None:
    labels = torch.tensor([[1.0, 2.0], [3.0, 2.0]])
    assert r_squared(squares(labels, labels), labels) == 1.0
    assert r_squared(squares(labels + torch.tensor([0.0, 1.0]), labels), labels) == 0.5


@pytest.mark.parametrize(
    ("name", "labels", "classes", "chance"),
    [
        ("cross-entropy", [0, 1, 1, 3], 4, 0.25),
        ("next-token", [[1, 1, 2], [1, IGNORED, 0]], 3, 3 / 5),
        ("bce", [[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0]], 2, (0.75 + 1.0) / 2),
        ("mse", [[1.0], [2.0]], 1, 0.0),
        ("reconstruction", [[1.0], [2.0]], 1, 0.0),
        (OWN, [0, 1], 2, 0.5),
        (OWN, [0.5, 1.5], 1, 0.0),
    ],
)
def test_predictions_without_the_input_have_the_quality_of_chance(
    name: str, labels: Any, classes: int, chance: float
) -> None:
    function = (lambda output, label: output.sum()) if name == OWN else None
    assert Objective(name, function).chance(torch.tensor(labels), classes) == pytest.approx(chance)


@dataclass
class Output:
    hidden: Tensor
    logits: Tensor


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda scores: {"hidden": scores[:, :1], "logits": scores},
        lambda scores: (scores, scores[:, :1]),
        lambda scores: [scores],
        lambda scores: Output(scores[:, :1], scores),
    ],
    ids=["mapping", "tuple", "list", "dataclass"],
)
def test_scores_are_found_in_whatever_a_model_returns(wrapped: Callable[[Tensor], Any]) -> None:
    scores, labels = drawn("cross-entropy")
    assert torch.equal(CROSS_ENTROPY.loss(wrapped(scores), labels), CROSS_ENTROPY.loss(scores, labels))
    sums = CROSS_ENTROPY.sums(wrapped(scores), labels)
    assert CROSS_ENTROPY.figures(sums, labels) == CROSS_ENTROPY.figures(
        CROSS_ENTROPY.sums(scores, labels), labels
    )


def own(function: Callable[[Any, Tensor], Any]) -> Objective:
    return Objective(OWN, function)


def test_of_a_loss_alone_over_classes_the_quality_is_accuracy() -> None:
    scores, labels = drawn("cross-entropy")
    objective = own(functional.multi_margin_loss)
    assert objective.quality == "quality"
    figures = objective.figures(objective.sums(scores, labels), labels)
    assert figures[0] == pytest.approx(functional.multi_margin_loss(scores, labels).item())
    assert figures[1] == (scores.argmax(1) == labels).double().mean().item()


def test_a_quality_of_ones_own_is_a_mean_over_items_however_they_are_batched() -> None:
    outputs, labels = torch.arange(6.0), torch.tensor([0.0, 1.0, 2.0, 9.0, 9.0, 9.0])
    objective = own(
        lambda output, label: {"loss": output.mean(), "quality": (output == label).sum() / len(label)}
    )
    total: Sums = objective.sums(outputs[:4], labels[:4]) + objective.sums(outputs[4:], labels[4:])
    assert objective.figures(total, labels) == (2.5, 0.5)


def test_a_loss_of_ones_own_is_handed_the_output_as_it_is() -> None:
    output = Output(torch.ones(2, 1), torch.ones(2, 3, requires_grad=True))
    seen: list[Any] = []

    def loss(output: Any, labels: Tensor) -> Tensor:
        seen.append(output)
        return output.logits.mean()

    assert own(loss).loss(output, torch.zeros(2)).requires_grad
    assert seen == [output]


def raising(output: Any, labels: Tensor) -> Tensor:
    raise KeyError("no such head\nsecond line")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (raising, r"task\.loss: 'theirs:loss' raised KeyError: .no such head"),
        (
            lambda output, labels: 0.5,
            r"'theirs:loss' returned float; expected the mean loss, a tensor of one number",
        ),
        (lambda output, labels: output, r"'theirs:loss' returned shape \(30, 3\); expected the mean loss"),
        (
            lambda output, labels: {"loss": output.mean()},
            r"returned a mapping of loss; expected loss and quality",
        ),
    ],
)
def test_a_wrong_return_value_of_a_loss_of_ones_own_is_refused(
    function: Callable[[Any, Tensor], Any], message: str
) -> None:
    scores, labels = drawn("cross-entropy")
    for read in (own(function).loss, own(function).sums):
        with pytest.raises(RecipeError, match=message):
            read(scores, labels)


def test_a_loss_alone_over_numbers_has_no_quality_and_is_refused() -> None:
    scores, labels = drawn("mse")
    objective = own(functional.l1_loss)
    assert objective.loss(scores, labels).item() > 0
    with pytest.raises(
        RecipeError, match=r"returns a loss alone, and which of these predictions are right is undefined"
    ):
        objective.sums(scores, labels)


def test_a_path_that_leads_nowhere_is_a_fault_of_the_recipe() -> None:
    with pytest.raises(RecipeError, match=r"task\.loss: 'no_such_module' does not import"):
        Objective.of("no_such_module:loss")


@pytest.mark.parametrize(
    ("quality", "message"),
    [
        (3.0, r"'theirs:loss' returned a quality of 3; expected at most 1, the best there is"),
        (math.nan, r"'theirs:loss' returned a quality of nan; expected at most 1, the best there is"),
        (-math.inf, r"returned a quality of -inf"),
        ("good", r"'theirs:loss' returned a quality that is no number \(str\); expected one number"),
        (
            torch.ones(2),
            r"'theirs:loss' returned a quality that is no number \(Tensor\); expected one number",
        ),
    ],
)
def test_a_quality_that_is_no_share_is_refused_where_it_is_needed(quality: Any, message: str) -> None:
    scores, labels = drawn("cross-entropy")
    objective = own(lambda output, label: {"loss": output.mean(), "quality": quality})
    assert objective.loss(scores, labels).ndim == 0
    with pytest.raises(RecipeError, match=message):
        objective.sums(scores, labels)


def test_a_quality_with_a_slope_is_read_without_a_warning() -> None:
    scores, labels = drawn("cross-entropy")
    scores.requires_grad_()
    objective = own(lambda output, label: {"loss": output.mean(), "quality": output.mean() * 0 + 0.5})
    assert objective.figures(objective.sums(scores, labels), labels)[1] == 0.5
